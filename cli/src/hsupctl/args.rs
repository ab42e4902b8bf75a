//! The arguments of hsupctl.
//!
//! `-s/--control-socket` and `-a/--app` stand before or after the command word. Only `logs` is
//! different: there `-s` is `--source`, as with the Heroku CLI, and the socket has its long name.

use std::{env, ffi::OsString, io, io::Write, path::PathBuf};

use clap::{Arg, ArgMatches, CommandFactory as _, FromArgMatches as _, value_parser};

use super::{
    change::{RestartArgs, ScaleArgs, ShutdownArgs, StartArgs, StopArgs},
    connect::Target,
    logs::LogsArgs,
    ps::PsArgs,
};

/// The variable that names the control socket.
pub const SOCKET_VARIABLE: &str = "HSUP_CONTROL_SOCKET";

const SOCKET: &str = "control_socket";
const APP: &str = "app";

/// Asks a running hsup, and tells it what to do
#[derive(Debug, clap::Parser)]
#[command(name = "hsupctl", version, after_help = AFTER)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "\
Examples:
  hsupctl ps                      every dyno and its state
  hsupctl logs -t -p web          what the web dynos write, as they write it
  hsupctl scale web=3 worker+1    more dynos, without restarting those that run
  hsupctl restart web.1           one dyno, at once

Environment:
  HSUP_CONTROL_SOCKET             the control socket, as --control-socket
  NO_COLOR, FORCE_COLOR           never or always print colours

Exit status:
  0  done; for ps and status: every dyno that is wanted is up
  1  something failed
  2  the command line is wrong
  3  ps and status: some dynos that are wanted are not up
  4  there is no such dyno, or no hsup is running";

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Ps(PsArgs),
    Logs(LogsArgs),
    Scale(ScaleArgs),
    Start(StartArgs),
    Stop(StopArgs),
    Restart(RestartArgs),
    Shutdown(ShutdownArgs),
    Completions(CompletionsArgs),
}

/// Prints a shell's completions for hsupctl
#[derive(Clone, Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The shells that completions are printed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl CompletionsArgs {
    /// Prints the completions.
    pub fn run(&self, output: &mut impl Write) -> io::Result<()> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command(), "hsupctl", &mut text);
        output.write_all(&text)
    }
}

/// A command line that makes sense.
#[derive(Debug)]
pub struct Invocation {
    pub target: Target,
    pub command: Command,
}

/// Reads the command line, the program's name first.
///
/// # Errors
/// When it makes no sense; also for `--help` and `--version`, whose text is in the error.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    let variable = env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    Ok(Invocation {
        target: Target {
            socket: innermost(&matches, SOCKET).or_else(|| variable.map(PathBuf::from)),
            app: innermost(&matches, APP),
        },
        command: Arguments::from_arg_matches(&matches)?.command,
    })
}

/// The value of an option that may stand at any level; the last one counts.
fn innermost<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, id: &str) -> Option<T> {
    let below = matches
        .subcommand()
        .and_then(|(_, below)| innermost(below, id));
    below.or_else(|| matches.try_get_one::<T>(id).ok().flatten().cloned())
}

/// The whole command line, for parsing, help and completions.
fn command() -> clap::Command {
    with_target(Arguments::command())
}

fn with_target(command: clap::Command) -> clap::Command {
    let mut socket = Arg::new(SOCKET)
        .long("control-socket")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .help("The control socket of the hsup that is meant; found when there is but one");
    if command.get_name() != "logs" {
        socket = socket.short('s');
    }
    let app = Arg::new(APP)
        .short('a')
        .long("app")
        .value_name("NAME")
        .help("The app whose hsup is meant");
    if command.get_name() == "completions" {
        return command;
    }
    command.mut_subcommands(with_target).arg(socket).arg(app)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn parsed(line: &str) -> Result<Invocation, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test_case("hsupctl -s S -a A ps")]
    #[test_case("hsupctl ps -s S -a A")]
    #[test_case("hsupctl -s X ps --control-socket S --app A"; "the last one counts")]
    #[test_case("hsupctl -s S logs -s app -a A")]
    #[test_case("hsupctl logs --source heroku --control-socket S -a A")]
    fn the_target_stands_anywhere(line: &str) {
        let target = parsed(line).unwrap().target;
        assert_eq!(target.socket, Some("S".into()));
        assert_eq!(target.app.as_deref(), Some("A"));
    }

    #[test_case("hsupctl"; "no command")]
    #[test_case("hsupctl dance")]
    #[test_case("hsupctl logs -s nobody")]
    #[test_case("hsupctl ps -q -o json")]
    #[test_case("hsupctl stop --force --grace 3")]
    fn nonsense_is_a_usage_error(line: &str) {
        assert_eq!(parsed(line).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn help_names_every_command_and_the_exit_codes() {
        let help = command().render_help().to_string();
        for line in [
            "  ps           Lists dynos and their states",
            "  scale        Changes how many dynos run, or prints how many do",
            "  4  there is no such dyno, or no hsup is running",
            "  -s, --control-socket <PATH>",
        ] {
            assert!(help.contains(line), "{line:?} is not in\n{help}");
        }
    }
}
