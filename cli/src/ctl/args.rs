//! The command line of `hsupctl`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::duration;

/// Drives a running hsup.
#[derive(Debug, Parser)]
#[command(
    name = "hsupctl",
    version,
    long_version = env!("HSUP_VERSION"),
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done; 1 failed; 2 usage; 4 unknown name, or no hsup answers.\n\
                  ps and status: 0 all wanted dynos are up, 3 some are not; status also 3 for a\n\
                  dyno that was stopped by hand or has completed, and for an app all of whose\n\
                  dynos are so. logs -t and events: 0 hsup has shut down, 4 it was killed.\n\
                  \n\
                  Environment:\n  \
                    HSUP_CONTROL_SOCKET  the control socket, where no option says which hsup is meant\n  \
                    NO_COLOR             no colours; FORCE_COLOR: colours even where there is no terminal"
)]
pub struct Cli {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Which hsup is meant.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// The control socket of the hsup to drive; before the command word also `-s`
    #[arg(long, global = true, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// The same, before the command word: after it, `-s` is an option of `logs`
    #[arg(
        short = 's',
        value_name = "PATH",
        conflicts_with = "control_socket",
        hide = true
    )]
    pub short_socket: Option<PathBuf>,
    /// The app whose hsup to drive, where several run
    #[arg(short, long, global = true, value_name = "NAME")]
    pub app: Option<String>,
}

impl TargetArgs {
    /// The socket that was named: by an option, or where none says which hsup is meant by
    /// the `variable`. An empty variable is none.
    pub fn socket(&self, variable: Option<OsString>) -> Option<PathBuf> {
        let named = self.short_socket.as_ref().or(self.control_socket.as_ref());
        named.cloned().or_else(|| {
            variable
                .filter(|path| !path.is_empty() && self.app.is_none())
                .map(PathBuf::from)
        })
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the dynos
    Ps(PsArgs),
    /// Show the app, or a dyno with its last lines and why it ended last
    Status {
        /// Dynos or process types; without any, the app
        names: Vec<String>,
    },
    /// Show the dynos as they are now, what they use and what they write; drive them with keys
    #[command(after_help = "\
Up and down select a dyno; r restarts it, s stops or starts it, + and - scale its process type, l shows
its log and a that of all; q quits. What takes something away is asked about first.

CPU is of one processor, over the last second. When hsup is away, what was known last is shown until
it is back. Needs a terminal; `ps`, `logs -t` and `events` do not.")]
    Top,
    /// Show the last log lines, or follow them
    Logs(LogsArgs),
    /// Show or change how many dynos each process type has
    Scale {
        /// web=3, worker+1, worker-1; each process type once
        #[arg(value_name = "CHANGE")]
        changes: Vec<String>,
    },
    /// Start dynos that were stopped or have completed
    Start {
        /// Dynos or process types; without any, all
        names: Vec<String>,
        /// Do not wait until they are up
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop dynos; they stay down until a start, a scaling or a new release
    Stop(StopArgs),
    /// Restart dynos; one that was stopped is started if it, or its type, is named
    Restart {
        /// Dynos or process types; without any, all that were not stopped
        names: Vec<String>,
        /// Do not wait until they are up
        #[arg(long)]
        no_wait: bool,
    },
    /// Show what happens, as it happens
    Events {
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: Output,
    },
    /// List the releases that hsup remembers, or show one
    Releases {
        /// The release to show, such as v3; without one, all
        #[arg(value_name = "VERSION", value_parser = version)]
        version: Option<u64>,
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: Output,
    },
    /// Take in a release: the text of a control file
    Apply {
        /// The file; `-` for standard input
        file: PathBuf,
        /// Do not wait until it runs
        #[arg(long)]
        no_wait: bool,
    },
    /// Run an earlier release again, as a new one
    #[command(after_help = "\
Without a version: the release that ran before the current one; while another is rolled out, the
current one. hsup remembers the last 20 releases. What the driver still has of one (libcontainer:
the last 5 slugs, --keep-slugs; docker: the last 3 images, DOCKER_KEEP_IMAGES) is neither fetched
nor built. Else a slug with a checksum is fetched again and verified, and one without is refused.
The simple driver keeps nothing: its dynos run in the directory as it is now.")]
    Rollback {
        /// The release to go back to, such as v3
        #[arg(value_name = "VERSION", value_parser = version)]
        version: Option<u64>,
        /// Do not wait until it runs
        #[arg(long)]
        no_wait: bool,
    },
    /// Show what applying a release would change
    Plan {
        /// The file; `-` for standard input
        file: PathBuf,
    },
    /// Ask about the driver, or check that it follows the driver protocol
    #[command(subcommand)]
    Driver(DriverCommand),
    /// Stop every dyno and end hsup
    Shutdown {
        /// Time between SIGTERM and SIGKILL
        #[arg(long, value_name = "TIME", value_parser = duration::parse)]
        grace: Option<Duration>,
    },
    /// Show the versions of hsupctl and of the hsup that runs
    Version,
    /// Write a completion script for a shell
    Completions { shell: Shell },
}

/// `v3`, as releases are shown, or `3`.
fn version(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix('v').unwrap_or(text);
    let explain = |_| format!("`{text}` is not a version: use v3 or 3");
    digits.parse().map_err(explain)
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Dynos or process types; without any, all
    #[arg(value_name = "TYPE")]
    pub names: Vec<String>,
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<PsOutput>,
    /// Only the names, one a line
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PsOutput {
    /// One row for each dyno
    Wide,
    /// An array
    Json,
    /// An object for each dyno, one a line
    Jsonl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on with new lines as they come
    #[arg(short, long)]
    pub tail: bool,
    /// How many of the last lines, up to 10000
    #[arg(short = 'n', long = "num", value_name = "N", value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub lines: Option<u32>,
    /// Only this dyno; `api` for releases and scaling, `system` for hsup itself
    #[arg(short, long, value_name = "DYNO")]
    pub dyno_name: Vec<String>,
    /// Only the dynos of this process type; either option takes both kinds of name
    #[arg(short, long, value_name = "TYPE")]
    pub process_type: Vec<String>,
    /// Only the lines of one source
    #[arg(short, long)]
    pub source: Option<LogSource>,
    /// json is an object for each line; bytes that are not UTF-8 become U+FFFD in it
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogSource {
    /// What the dynos write, and what changes the app: its releases and scaling (-d api)
    App,
    /// What hsup says of the dynos and of itself
    Heroku,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Dynos or process types; without any, all
    pub names: Vec<String>,
    /// SIGKILL at once
    #[arg(long, conflicts_with = "grace")]
    pub force: bool,
    /// Time between SIGTERM and SIGKILL
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub grace: Option<Duration>,
    /// Do not wait until they are down
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum DriverCommand {
    /// What the driver says of itself
    Info,
    /// Run hsup-driver-check against the driver
    Check {
        /// The driver's socket; without it, that of the running hsup's driver
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn minus_s_is_a_socket_before_the_command_word_and_a_source_after_it() {
        let cli = Cli::try_parse_from(["hsupctl", "-s", "/x", "logs", "-s", "app"]).unwrap();
        assert_eq!(cli.target.short_socket, Some("/x".into()));
        let Command::Logs(logs) = cli.command else {
            panic!("not logs");
        };
        assert_eq!(logs.source, Some(LogSource::App));
        let cli = Cli::try_parse_from(["hsupctl", "ps", "--control-socket", "/y"]).unwrap();
        assert_eq!(cli.target.control_socket, Some("/y".into()));
    }

    #[test]
    fn a_version_is_as_it_is_shown_or_a_number() {
        assert_eq!((version("v3"), version("12")), (Ok(3), Ok(12)));
        for bad in ["v", "", "-1", "vv3", "latest"] {
            assert!(version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_grace_is_a_time_as_that_of_hsup() {
        for command in ["stop", "shutdown"] {
            for (text, expected) in [("1s", 1000), ("2", 2000), ("1500ms", 1500)] {
                let cli = Cli::try_parse_from(["hsupctl", command, "--grace", text]).unwrap();
                let (Command::Stop(StopArgs { grace, .. }) | Command::Shutdown { grace }) =
                    cli.command
                else {
                    panic!("not {command}");
                };
                assert_eq!(grace, Some(Duration::from_millis(expected)), "{text}");
            }
        }
        let error = Cli::try_parse_from(["hsupctl", "stop", "--grace", "soon"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`soon` is not a time: use 30, "), "{text}");
    }

    #[test]
    fn an_option_beats_the_variable_and_an_empty_variable_is_none() {
        let socket = |options: &str, variable: Option<&str>| {
            let line = format!("hsupctl {options} ps");
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            let socket = cli.target.socket(variable.map(Into::into));
            socket.map(|path| path.display().to_string())
        };
        assert_eq!(socket("-s /y", Some("/x")).as_deref(), Some("/y"));
        let long = socket("--control-socket /y", Some("/x"));
        assert_eq!(long.as_deref(), Some("/y"));
        assert_eq!(socket("--app shop", Some("/x")), None);
        assert_eq!(socket("", Some("/x")).as_deref(), Some("/x"));
        assert_eq!(socket("", Some("")), None);
        assert_eq!(socket("", None), None);
    }
}
