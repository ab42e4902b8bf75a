//! `hsup-driver-check`: does a driver keep the rules of `hsup.driver.v1`?
//!
//! Ends with 0 when every case passed or was skipped, 1 when one failed, 2 when the suite could
//! not be run, or not all of it, and with 128 and its number when a signal ended it.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    ops::ControlFlow::{Break, Continue},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use hsup_tests::conformance::{
    Config, Progress, RunError, cases,
    report::{Json, Junit, Render, Tap, Text},
    run_with,
};
use nix::unistd::User;

/// Checks that a driver keeps the rules of hsup.driver.v1
///
/// A dyno of the suite needs nothing but /bin/sh.
#[derive(Debug, Parser)]
#[expect(
    clippy::doc_markdown,
    reason = "the documentation is the text of --help"
)]
#[command(version, name = "hsup-driver-check")]
struct Args {
    /// Test the driver that serves this socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Start this command and test the driver that it is
    ///
    /// The driver finds the path of its socket in HSUP_DRIVER_SOCKET. The command is one command
    /// for /bin/sh; the suite ends and restarts it where a case asks for that.
    #[arg(long, value_name = "COMMAND", conflicts_with = "socket")]
    exec: Option<String>,

    /// Start dynos from this artifact instead of building one
    #[arg(long, value_name = "ID")]
    artifact: Option<String>,

    /// Put these words before the argv of every dyno (can be repeated)
    #[arg(long, value_name = "WORD", num_args = 1.., allow_hyphen_values = false)]
    argv_prefix: Vec<String>,

    /// Give every Build this option (can be repeated)
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    build_option: Vec<(String, String)>,

    /// Build this slug instead of an empty directory
    #[arg(long, value_name = "URL")]
    slug_url: Option<String>,

    /// Build on this stack
    #[arg(long, value_name = "NAME", default_value = "")]
    stack: String,

    /// Act as this user, too: for a driver that runs as root, and serves that user
    ///
    /// The suite must run as root then, and the driver's command let the user in (--allow-uid).
    #[arg(long, value_name = "USER", value_parser = user)]
    as_peer: Option<u32>,

    /// Run only cases whose title contains this (can be repeated)
    #[arg(long, value_name = "TEXT")]
    focus: Vec<String>,

    /// Leave out cases whose title contains this (can be repeated)
    #[arg(long, value_name = "TEXT")]
    skip: Vec<String>,

    /// How many times to run the selection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// How long one case may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    deadline: u64,

    /// How many dynos to start at once where there are to be many
    ///
    /// A Start must answer within 60 s, also among so many: fewer, where what the driver drives
    /// takes longer.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..))]
    storm: u16,

    /// How to print the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// List the cases and the rules they check, and run none
    ///
    /// docs/driver-rules.md has the cases by their rules.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(
    clippy::doc_markdown,
    reason = "the documentation is the text of --help"
)]
enum Format {
    /// For people
    Text,
    /// Test Anything Protocol, version 14
    Tap,
    /// One JSON object
    Json,
    /// JUnit XML
    Junit,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| "expected KEY=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A user by number or name, who is not root.
fn user(text: &str) -> Result<u32, String> {
    let uid = match text.parse() {
        Ok(uid) => uid,
        Err(_) => match User::from_name(text) {
            Ok(Some(user)) => user.uid.as_raw(),
            Ok(None) => return Err("there is no such user".to_owned()),
            Err(errno) => return Err(errno.to_string()),
        },
    };
    if uid == 0 {
        return Err("root is no other user".to_owned());
    }
    Ok(uid)
}

fn main() -> ExitCode {
    let args = Args::parse();
    match check(args) {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to tell it to when stderr is gone.
            drop(writeln!(io::stderr(), "error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn check(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = match (args.socket, args.exec) {
        (Some(socket), _) => Config::socket(socket),
        (None, Some(command)) => Config::exec(command),
        (None, None) if args.list => Config::socket(PathBuf::new()),
        (None, None) => anyhow::bail!("either --socket PATH or --exec COMMAND is needed"),
    };
    config.artifact = args.artifact;
    config.argv_prefix = args.argv_prefix;
    config.build_options = args.build_option.into_iter().collect::<BTreeMap<_, _>>();
    config.slug_url = args.slug_url;
    config.stack = args.stack;
    config.as_peer = args.as_peer;
    config.focus = args.focus;
    config.skip = args.skip;
    config.repeat = args.repeat;
    config.deadline = Duration::from_secs(args.deadline);
    config.storm = args.storm.into();

    let selected: Vec<_> = cases()
        .into_iter()
        .filter(|case| config.selects(&case.title()))
        .collect();
    let mut stdout = io::stdout();
    if args.list {
        for case in selected {
            writeln!(stdout, "{}\n    {}", case.title(), case.rule)?;
        }
        return Ok(ExitCode::SUCCESS);
    }

    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let mut renderer: Box<dyn Render> = match args.format {
        Format::Text => Box::new(Text::new(colour)),
        Format::Tap => Box::<Tap>::default(),
        Format::Json => Box::new(Json),
        Format::Junit => Box::new(Junit),
    };
    let planned = selected.len() * usize::try_from(config.repeat)?;
    let mut printed = Ok(());
    let ran = run_with(&config, &mut |progress| {
        let text = match progress {
            Progress::Connected(driver) => renderer.begin(driver, planned),
            Progress::Finished(result) => renderer.case(result),
        };
        printed = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
        // A report that nobody reads is not worth the rest of the run.
        if printed.is_ok() {
            Continue(())
        } else {
            Break(())
        }
    });
    printed.context(UNPRINTED)?;
    let report = match ran {
        Err(RunError::Interrupted(signal)) => {
            return Ok(ExitCode::from(128 + u8::try_from(signal as i32)?));
        }
        ran => ran?,
    };
    let end = renderer.end(&report);
    stdout.write_all(end.as_bytes()).context(UNPRINTED)?;
    let counts = report.counts();
    Ok(match (counts.failed, counts.hindered) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        (_, _) => ExitCode::FAILURE,
    })
}

/// What failed when the report cannot be written.
const UNPRINTED: &str = "failed to print the report";
