//! The command `hsup-driver-libcontainer stack …`: what an administrator does with stacks.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use hsup_driver_kit::{CancellationToken, errors::chain};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use super::{Event, Listed, StackError, Stacks};
use crate::settings::{DEFAULT_WORK_DIR, WORK_DIR, WORK_DIR_VARIABLE};

const NAME: &str = "hsup-driver-libcontainer";
const HELP: &str = "\
Lists, imports and removes the stacks that dynos run on

Usage: hsup-driver-libcontainer stack [OPTIONS] list
       hsup-driver-libcontainer stack [OPTIONS] import IMAGE[:TAG] [--as NAME]
       hsup-driver-libcontainer stack [OPTIONS] remove NAME-VERSION...

import takes the image from the Docker engine of DOCKER_HOST, or /var/run/docker.sock, which
pulls it if it does not have it. From then on dynos of that stack start on this image:
heroku/heroku:24 is the stack heroku-24, or what --as says.

Options:
      --work-dir DIR  Where the driver keeps what is its own
                      [LIBCONTAINER_WORK_DIR; default: /var/lib/hsup]
      --as NAME       The name of the imported stack
  -h, --help          Print this help
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Help,
    Do { work_dir: PathBuf, what: What },
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    List,
    Import {
        reference: String,
        name: Option<String>,
    },
    Remove(Vec<String>),
}

/// The command line is not one of ours.
#[derive(Debug, Error, PartialEq, Eq)]
enum UsageError {
    #[error("unknown argument `{}`", .0.display())]
    Unknown(OsString),
    #[error("{0} needs a value")]
    NoValue(&'static str),
    #[error("stack needs a command: list, import or remove")]
    NoCommand,
    #[error("import needs an image")]
    NoImage,
    #[error("remove needs a stack, as NAME-VERSION")]
    NoStack,
    #[error("--as goes with import alone")]
    StrayName,
}

/// The command could not be carried out.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error("stack {0} must be run as root: a stack's files are those of many users")]
    NotRoot(&'static str),
    #[error("failed to set up the runtime")]
    Runtime(#[source] io::Error),
    #[error("failed to write what was asked for")]
    Write(#[source] io::Error),
}

/// Carries out `stack …`; `args` are what follows that word.
///
/// Ends with 0 when it is done, 1 when it is not, 2 for a bad command line.
pub fn command(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = match parse(args, env::var_os(WORK_DIR_VARIABLE)) {
        Ok(Action::Help) => print(HELP),
        Ok(Action::Do { work_dir, what }) => carry_out(&work_dir, what),
        Err(error) => {
            complain(&format!("{error}\nTry `{NAME} stack --help`."));
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&chain(&failure));
            ExitCode::FAILURE
        }
    }
}

/// The `variable` says where the driver's work directory is, unless an option does.
fn parse(
    args: impl IntoIterator<Item = OsString>,
    variable: Option<OsString>,
) -> Result<Action, UsageError> {
    let variable = variable.filter(|path| !path.is_empty());
    let mut work_dir = variable.map_or_else(|| DEFAULT_WORK_DIR.into(), PathBuf::from);
    let mut name = None;
    let mut words = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else {
            return Err(UsageError::Unknown(arg));
        };
        let (option, joined) = match text.split_once('=') {
            Some((option, value)) if text.starts_with("--") => (option, Some(value.to_owned())),
            _ => (text, None),
        };
        let mut value = |option| {
            let value = joined.clone().map(OsString::from).or_else(|| args.next());
            value.ok_or(UsageError::NoValue(option))
        };
        match option {
            "-h" | "--help" if joined.is_none() => return Ok(Action::Help),
            WORK_DIR => work_dir = value(WORK_DIR)?.into(),
            "--as" => name = Some(value("--as")?.into_string().map_err(UsageError::Unknown)?),
            _ if text.starts_with('-') => return Err(UsageError::Unknown(arg)),
            _ => words.push(text.to_owned()),
        }
    }
    let mut words = words.into_iter();
    let command = words.next().ok_or(UsageError::NoCommand)?;
    let what = match command.as_str() {
        "list" => What::List,
        "import" => What::Import {
            reference: words.next().ok_or(UsageError::NoImage)?,
            name: name.take(),
        },
        "remove" => What::Remove(words.by_ref().collect()),
        _ => return Err(UsageError::Unknown(command.into())),
    };
    match (words.next(), &what) {
        (Some(word), _) => Err(UsageError::Unknown(word.into())),
        (None, What::Remove(stacks)) if stacks.is_empty() => Err(UsageError::NoStack),
        (None, _) if name.is_some() => Err(UsageError::StrayName),
        (None, _) => Ok(Action::Do { work_dir, what }),
    }
}

fn carry_out(work_dir: &std::path::Path, what: What) -> Result<(), Failure> {
    match what {
        What::List => print(&table(&Stacks::list_in(work_dir)?)),
        What::Remove(names) => {
            be_root("remove")?;
            let stacks = Stacks::open(work_dir, None)?;
            for name in names {
                stacks.remove(&name)?;
                print(&format!("removed {name}\n"))?;
            }
            Ok(())
        }
        What::Import { reference, name } => {
            be_root("import")?;
            let stacks = Stacks::open(work_dir, None)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Failure::Runtime)?;
            let import = runtime.block_on(async {
                let until = CancellationToken::new();
                let _signals = tokio::spawn(cancel_when_told(until.clone()));
                let name = name.as_deref();
                stacks.import(&reference, name, &told, &until).await
            })?;
            let stack = &import.stack;
            let did = if import.was_here {
                "was here already"
            } else {
                "imported"
            };
            print(&format!(
                "{did}: {} version {} from {reference}\n",
                stack.name, stack.version
            ))
        }
    }
}

fn be_root(command: &'static str) -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(Failure::NotRoot(command))
    }
}

/// Calls it off at Ctrl-C or SIGTERM, so that the engine is left as it was.
async fn cancel_when_told(until: CancellationToken) {
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    // Without them the signals do what they always do.
    if let (Ok(mut interrupt), Ok(mut terminate)) = signals {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        until.cancel();
    }
}

/// Tells a person what is going on.
fn told(event: Event<'_>) {
    match event {
        Event::Waiting { stack } => {
            complain(&format!("waits for another process that makes {stack}"));
        }
        Event::Warning(text) => complain(&format!("warning: {text}")),
        Event::Fetching { .. } | Event::Installing { .. } => {}
    }
}

fn table(stacks: &[Listed]) -> String {
    let head = ["NAME", "VERSION", "FORMAT", "SIZE", "PRIMARY"].map(str::to_owned);
    let rows = stacks.iter().map(|stack| {
        [
            stack.name.to_string(),
            stack.version.to_string(),
            stack.format.to_owned(),
            size(stack.bytes),
            (if stack.primary { "yes" } else { "no" }).to_owned(),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
            // Writing to a string cannot fail.
            let _: Result<(), _> = match column {
                3 => write!(text, "{cell:>width$}  "),
                4 => writeln!(text, "{cell}"),
                _ => write!(text, "{cell:width$}  "),
            };
        }
    }
    text
}

/// A size with a digit after the point.
fn size(bytes: u64) -> String {
    let mut tenths = bytes.saturating_mul(10) / 1024;
    for unit in ["KiB", "MiB", "GiB"] {
        if tenths < 10240 {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
        tenths /= 1024;
    }
    format!("{}.{} TiB", tenths / 10, tenths % 10)
}

/// Prints what was asked for. A reader that wants no more of it is none the worse.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Write(error)),
        _ => Ok(()),
    }
}

/// Says what is wrong; whether anybody can hear it must not matter.
fn complain(text: &str) {
    drop(writeln!(io::stderr(), "{NAME}: {text}"));
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn parsed(line: &str) -> Result<Action, UsageError> {
        parse(line.split_whitespace().map(OsString::from), None)
    }

    #[test_case("list", None => "/var/lib/hsup")]
    #[test_case("list", Some("") => "/var/lib/hsup"; "an empty variable says nothing")]
    #[test_case("list", Some("/v") => "/v")]
    #[test_case("list --work-dir /w", Some("/v") => "/w"; "an option outdoes the variable")]
    fn the_work_directory_is_the_drivers(line: &str, variable: Option<&str>) -> String {
        let words = line.split_whitespace().map(OsString::from);
        match parse(words, variable.map(OsString::from)) {
            Ok(Action::Do { work_dir, .. }) => work_dir.display().to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_asked_for() {
        let import = |work_dir: &str, name: Option<&str>| Action::Do {
            work_dir: work_dir.into(),
            what: What::Import {
                reference: "heroku/heroku:24".to_owned(),
                name: name.map(str::to_owned),
            },
        };
        let line = "import heroku/heroku:24";
        assert_eq!(parsed(line), Ok(import("/var/lib/hsup", None)));
        let line = "--work-dir=/w import heroku/heroku:24 --as mine";
        assert_eq!(parsed(line), Ok(import("/w", Some("mine"))));
        let list = Action::Do {
            work_dir: "/w".into(),
            what: What::List,
        };
        assert_eq!(parsed("list --work-dir /w"), Ok(list));
        assert_eq!(parsed("import --help"), Ok(Action::Help));
        let remove = Action::Do {
            work_dir: DEFAULT_WORK_DIR.into(),
            what: What::Remove(vec!["a-1".to_owned(), "b-2".to_owned()]),
        };
        assert_eq!(parsed("remove a-1 b-2"), Ok(remove));
    }

    #[test_case("", "stack needs a command: list, import or remove"; "nothing")]
    #[test_case("fetch", "unknown argument `fetch`")]
    #[test_case("list all", "unknown argument `all`")]
    #[test_case("list --all", "unknown argument `--all`")]
    #[test_case("list --as x", "--as goes with import alone")]
    #[test_case("import", "import needs an image")]
    #[test_case("import a b", "unknown argument `b`")]
    #[test_case("import a --as", "--as needs a value")]
    #[test_case("remove", "remove needs a stack, as NAME-VERSION")]
    fn what_is_wrong_is_named(line: &str, expected: &str) {
        assert_eq!(parsed(line).unwrap_err().to_string(), expected);
    }

    #[test]
    fn the_columns_are_aligned() {
        let listed = |name: &str, version: &str, bytes, primary| Listed {
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
            format: "directory",
            bytes,
            primary,
        };
        let stacks = [
            listed("cedar-14", "v9", 1 << 30, false),
            listed("heroku-24", "5f3a0c9d1e2b", 1536, true),
        ];
        let expected = "\
NAME       VERSION       FORMAT        SIZE  PRIMARY
cedar-14   v9            directory  1.0 GiB  no
heroku-24  5f3a0c9d1e2b  directory  1.5 KiB  yes
";
        assert_eq!(table(&stacks), expected);
    }
}
