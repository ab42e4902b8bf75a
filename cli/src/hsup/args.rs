//! The arguments of `hsup`: the original's forms, and the new ones.
//!
//! Every option may stand before or after the command word. From the first word of the
//! command of `run` on, everything is the command's.

use std::{convert::Infallible, ffi::OsString, fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use hsup_core::{
    backoff::Policy,
    driver::DriverOption,
    dyno::HttpCheck,
    formation::{MAX_QUANTITY, MAX_START_NUMBER},
    name::ProcessType,
    rollout::{StrategyArg, Surge},
};
use hsup_proto::driver::Bind;

use crate::duration;

/// What `--poll-every` may be.
const SHORTEST_POLL: Duration = Duration::from_millis(10);
const LONGEST_POLL: Duration = Duration::from_hours(1);

/// The parts of the help: there are many options.
const APP: &str = "Where releases come from";
const DYNOS: &str = "How dynos run";
const ROLLOUTS: &str = "How releases replace each other";
const LOGS: &str = "Logs";

const AFTER_HELP: &str = "\
Examples:
  hsup start                              run the Procfile of this directory
  hsup start web=2 worker                 only these process types
  hsup run bundle exec rake db:migrate    one command with the app's environment
  hsup run 'echo $PORT | wc -c'           one word is a shell line
  hsup start --driver-socket /run/hsup-lc.sock
  hsup start --log-to \"file://$PWD/app.log\" --log-to syslog+tls://logs.example
  HSUP_CONTROL_DIR=/etc/hsup hsup start   releases arrive as files: see docs/control-directory.md
  HEROKU_API_KEY=… hsup start -a shop -d docker
                                          follow an app on Heroku: see docs/heroku.md

Of several sources of releases, --control-dir or -C goes first, then -a with a token, then
HSUP_CONTROL_DIR, then a Procfile in the current directory.

Every option can also be a variable or stand in a file: see docs/configuration.md, and
`hsup config show`.

Environment:
  HSUP_CONTROL_DIR    the control directory
  HSUP_GRACE, …       any other option: HSUP_ and its name
  HEROKU_API_KEY, HEROKU_ACCESS_TOKEN
                      the token for -a; without one, ~/.netrc
  HEROKU_HOST         where Heroku's API is, if not at heroku.com
  LOGPLEX_URL, HSUP_LOG_TO
                      where log lines are sent to: as --logplex-url and --log-to, the second
                      with blanks between URLs; see docs/logs.md
  LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES
                      the control socket of `start`, handed down by a service manager unless -s
                      names one; of several sockets the one named `control`
  NOTIFY_SOCKET       who is told that `start` answers on its control socket (Type=notify)
  NO_COLOR            no colours; FORCE_COLOR: colours even where there is no terminal
  XDG_RUNTIME_DIR, XDG_STATE_HOME
                      where sockets and what hsup remembers are kept

A running hsup is driven with hsupctl. SIGUSR1 prints diagnostics to standard error.";

/// Supervises an app the Heroku way: keeps its dynos running, replaces them when a release
/// arrives, shows their logs
#[derive(Debug, Parser)]
#[command(
    name = "hsup",
    version,
    long_version = env!("HSUP_VERSION"),
    after_help = AFTER_HELP,
    arg_required_else_help = true,
    infer_long_args = false,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,

    /// How
    #[command(flatten)]
    pub options: Options,
}

/// The command words.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the app's process types until told to stop
    #[command(after_help = "\
Without types the formation's quantities run. `web=2` runs two; a type without a number, one.
Types that are named run and no others.

Ctrl-C stops every dyno and ends with 130; a second one stops them at once. SIGUSR2 ends hsup alone:
the dynos run on for --linger, and the next start takes them over (docs/systemd.md).")]
    Start {
        /// Process types to run: TYPE or TYPE=QUANTITY
        #[arg(value_name = "TYPE[=N]", value_parser = parse_type)]
        types: Vec<TypeArg>,
    },

    /// Run one command with the app's environment
    #[command(after_help = "\
One word is a shell line; several are words and reach the command as they are:
  hsup run 'echo $PORT'          hsup run -- printf '%s\\n' 'a b'

Ends with the command's own code; 128 + n if signal n killed it; 126 if it is not executable,
127 if there is no such command. At a terminal the command gets one, too.")]
    Run {
        /// The command, and everything that is its own
        #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
        words: Vec<OsString>,
    },

    /// Make the release startable on the driver, and start nothing
    Build,

    /// Read the app's files, say what is wrong with them, show the formation
    Check,

    /// Show what hsup goes by here, and who says so
    #[command(subcommand)]
    Config(ConfigCommand),

    /// Write the JSON Schema of a file that hsup reads
    Schema {
        /// Which file
        what: Schema,
    },

    /// Look at this machine: can it run dynos, and what is to be done where it cannot
    #[command(after_help = "\
Of the kernel, cgroups, users, sockets, drivers, stacks, limits and ports. Drivers are started, asked
and ended again, so for root the libcontainer driver makes its work directory; with -d or
--driver-socket only that one is. What is wrong for it is wrong, what only another driver needs is a
note. Without either, all is judged for the driver `simple`.

Ends with 0 when nothing is wrong, and with 1 when something is.")]
    Doctor {
        /// text or json
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: Output,
    },

    /// Write what another program needs to run the app
    #[command(subcommand)]
    Export(Export),

    /// Write a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
}

/// What is to be known of the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Each option with its value and where that comes from; secrets are not shown
    Show {
        /// text or json
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: Output,
    },
}

/// The files that have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Schema {
    /// hsup.toml
    Config,
    /// A release, as in a control directory
    Control,
}

/// How a command tells what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// For whom something is written.
#[derive(Debug, Subcommand)]
pub enum Export {
    /// Units that run the app, with the options that are given here, also by variables
    #[command(after_help = "\
Without an option that says where releases come from, the app is the one in this directory.
  hsup export systemd shop -C /srv/shop --to /etc/systemd/system
  systemctl daemon-reload && systemctl enable --now hsup-shop

The unit reads variables from /etc/hsup/apps/NAME.env. Where lines are sent to belongs there, as
LOGPLEX_URL and HSUP_LOG_TO, for everybody may read a unit. See docs/systemd.md.")]
    Systemd(SystemdArgs),
}

/// Of `hsup export systemd`.
#[derive(Args, Debug)]
pub struct SystemdArgs {
    /// What the units are called (default: as the app, or its directory)
    pub name: Option<String>,

    /// Who runs the app. The package's libcontainer driver serves `hsup` alone (docs/systemd.md)
    #[arg(long, value_name = "USER", default_value = "hsup")]
    pub user: String,

    /// Write the units into this directory, not to standard output
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// The options, all of them for every command.
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Options {
    /// The app on Heroku to follow, by its name or id; needs a token
    #[arg(short, long, value_name = "APP", global = true, help_heading = APP)]
    pub app: Option<String>,

    /// How often to ask Heroku what there is to run
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_poll_every, global = true, help_heading = APP)]
    pub poll_every: Duration,

    /// The directory of the app, with its Procfile
    #[arg(short = 'C', long, value_name = "DIR", global = true, help_heading = APP)]
    pub directory: Option<PathBuf>,

    /// The control directory, where releases arrive as files (or `HSUP_CONTROL_DIR`)
    #[arg(long, value_name = "DIR", global = true, help_heading = APP)]
    pub control_dir: Option<PathBuf>,

    /// What runs dynos: simple (the default), docker, libcontainer (as root), or the path of a
    /// driver program
    #[arg(
        short,
        long,
        alias = "dynodriver",
        value_name = "DRIVER",
        global = true,
        help_heading = DYNOS
    )]
    pub driver: Option<String>,

    /// The socket of a driver that runs already
    #[arg(long, value_name = "PATH", global = true, help_heading = DYNOS)]
    pub driver_socket: Option<PathBuf>,

    /// An option of the driver itself, for all that it builds and starts; it refuses a KEY that
    /// it does not know (can be repeated)
    #[arg(long = "driver-option", value_name = "KEY=VALUE", global = true, help_heading = DYNOS)]
    pub driver_options: Vec<DriverOption>,

    /// Start nothing again; end when every dyno has ended, with the largest of their codes
    #[arg(long, global = true, help_heading = DYNOS)]
    pub oneshot: bool,

    /// The number of the first dyno of each type
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_START_NUMBER)), global = true, help_heading = DYNOS)]
    pub start_number: u32,

    /// A path of this machine to show to dynos, where the driver can do that (can be repeated)
    #[arg(long = "bind", value_name = "HOST[:DYNO]", value_parser = parse_bind, global = true, help_heading = DYNOS)]
    pub binds: Vec<Bind>,

    /// Time between SIGTERM and SIGKILL
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse, global = true, help_heading = DYNOS)]
    pub grace: Duration,

    /// How long a web dyno may take to listen on its PORT
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse, global = true, help_heading = DYNOS)]
    pub boot_timeout: Duration,

    /// Ask web dynos for this path, as this host: one is ready when it answers GET with 2xx or 3xx
    #[arg(long, value_name = "[web=][http://HOST]/PATH", global = true, help_heading = DYNOS)]
    pub http_check: Option<HttpCheck>,

    /// Waits between restarts after crashes: BASE..CAP, or heroku for Heroku's own
    #[arg(long, value_name = "WAITS", default_value = "1s..5m", global = true, help_heading = DYNOS)]
    pub restart_backoff: Policy,

    /// How long dynos outlive an hsup that has left them or was killed: a time, or forever
    /// (default: 10s; `start` with a control directory or an app on Heroku: 5m)
    #[arg(long, value_name = "TIME", value_parser = parse_linger, global = true, help_heading = DYNOS)]
    pub linger: Option<Duration>,

    /// Where hsupctl and curl reach hsup (default: in the runtime directory; `run`: nowhere)
    #[arg(short = 's', long, value_name = "PATH", global = true)]
    pub control_socket: Option<PathBuf>,

    /// Where hsup remembers its dynos and releases
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,

    /// The configuration (or `HSUP_CONFIG`), instead of the files in /etc/hsup and the user's
    #[arg(long, value_name = "PATH", global = true)]
    pub config: Option<PathBuf>,

    /// How dynos are replaced: start-first (the old one goes when the new one is ready) or
    /// stop-first; for one process type TYPE=STRATEGY (can be repeated; default: start-first
    /// where the driver gives each dyno an address of its own, else stop-first)
    #[arg(long = "strategy", value_name = "[TYPE=]STRATEGY", global = true, help_heading = ROLLOUTS)]
    pub strategies: Vec<StrategyArg>,

    /// With start-first: how many dynos of a type may run beside its quantity, N or N%
    /// (default: a quarter of the type)
    #[arg(long, value_name = "N", global = true, help_heading = ROLLOUTS)]
    pub max_surge: Option<Surge>,

    /// How long a release's `release` command may take before it counts as failed
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse, global = true, help_heading = ROLLOUTS)]
    pub release_timeout: Duration,

    /// Roll releases out without running their `release` command
    #[arg(long, global = true, help_heading = ROLLOUTS)]
    pub no_release_phase: bool,

    /// Replace each dyno by a fresh one once a day, as Heroku does
    #[arg(long, global = true, help_heading = ROLLOUTS)]
    pub cycle: bool,

    /// The same after another time, and at random up to 15% more, at most 216 minutes
    #[arg(long, value_name = "TIME", value_parser = parse_cycle, global = true, help_heading = ROLLOUTS)]
    pub cycle_every: Option<Duration>,

    /// The Logplex that `start` sends all lines to (better: `LOGPLEX_URL`, which `ps` does not
    /// show), instead of the release's `LogplexURL`
    #[arg(long, value_name = "URL", global = true, help_heading = LOGS)]
    pub logplex_url: Option<SecretUrl>,

    /// Another place that `start` sends all lines to (or `HSUP_LOG_TO`): https, logplex+https,
    /// syslog, syslog+tls, file, json, json+tcp or json+unix (can be repeated)
    #[arg(long, value_name = "URL", global = true, help_heading = LOGS)]
    pub log_to: Vec<SecretUrl>,

    /// Write what each dyno uses into its log every 20 seconds, and R14 when that is more than
    /// its limit, where the driver measures it
    #[arg(long, global = true, help_heading = LOGS)]
    pub log_runtime_metrics: bool,

    /// Show the dynos' lines without time and name
    #[arg(long, global = true, help_heading = LOGS)]
    pub no_prefix: bool,

    /// Show the dynos' lines without the time
    #[arg(long, global = true, help_heading = LOGS)]
    pub no_timestamp: bool,

    /// Show each line as a JSON object
    #[arg(long, global = true, help_heading = LOGS)]
    pub json: bool,
}

/// A URL that may hold a token: clap shows what it cannot parse, so this is always parsed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// The whole text. Secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

/// Zero means for ever on the wire, so a time of zero is as short as can be.
fn parse_linger(text: &str) -> Result<Duration, String> {
    if text == "forever" {
        return Ok(Duration::ZERO);
    }
    duration::parse(text).map(|duration| duration.max(Duration::from_millis(1)))
}

/// A time of zero would be a flood.
fn parse_poll_every(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    if time < SHORTEST_POLL || time > LONGEST_POLL {
        return Err(format!("`{text}` is no time from 10ms to 1h"));
    }
    Ok(time)
}

/// A period that leaves dynos time to live.
fn parse_cycle(text: &str) -> Result<Duration, String> {
    let every = duration::parse(text)?;
    if every < Duration::from_secs(1) {
        return Err(format!("`{text}` is too short: dynos run for at least 1s"));
    }
    Ok(every)
}

/// `HOST[:DYNO]`, as the original: without the second the path is the same in the dyno.
fn parse_bind(text: &str) -> Result<Bind, String> {
    let (host, dyno) = text.split_once(':').unwrap_or((text, text));
    for path in [host, dyno] {
        if !path.starts_with('/') {
            return Err(format!("`{path}` is not an absolute path: use HOST[:DYNO]"));
        }
    }
    Ok(Bind {
        host_path: host.to_owned(),
        dyno_path: dyno.to_owned(),
        writable: true,
    })
}

/// `web=2`, `worker`: a process type of `hsup start`, and how many of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeArg {
    /// Which.
    pub process_type: ProcessType,
    /// Absent where none was written: one.
    pub quantity: Option<u32>,
}

fn parse_type(text: &str) -> Result<TypeArg, String> {
    let (name, quantity) = match text.split_once('=') {
        Some((name, quantity)) => (name, Some(quantity)),
        None => (text, None),
    };
    let process_type = name
        .parse::<ProcessType>()
        .map_err(|error| error.to_string())?;
    let parse = |digits: &str| {
        let parsed = digits.parse().ok();
        parsed
            .filter(|quantity| *quantity <= MAX_QUANTITY)
            .ok_or_else(|| format!("`{text}`: a quantity is 0 to {MAX_QUANTITY}"))
    };
    Ok(TypeArg {
        process_type,
        quantity: quantity.map(parse).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn words(cli: &Cli) -> Vec<&str> {
        match &cli.command {
            Command::Run { words } => words.iter().map(|word| word.to_str().unwrap()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_forms_of_the_original_work() {
        let cli = parse("hsup -d simple -s S run CMD");
        assert_eq!(cli.options.control_socket.as_deref(), Some("S".as_ref()));
        assert_eq!(words(&cli), ["CMD"]);
        let cli = parse("hsup run -d simple -a APP -- echo hello");
        assert_eq!(words(&cli), ["echo", "hello"]);
        assert_eq!(cli.options.app.as_deref(), Some("APP"));
        let cli = parse("hsup start -d docker -a APP");
        assert_eq!(cli.options.driver.as_deref(), Some("docker"));
        let cli = parse("hsup start --dynodriver docker --oneshot --start-number 3");
        assert_eq!(
            (cli.options.driver.as_deref(), cli.options.start_number),
            (Some("docker"), 3)
        );
        parse("hsup build");
        parse("hsup check -C /tmp");
    }

    #[test]
    fn what_follows_the_first_word_is_the_commands() {
        assert_eq!(words(&parse("hsup run ls -la")), ["ls", "-la"]);
        assert_eq!(
            words(&parse("hsup run -d simple -- echo -d x")),
            ["echo", "-d", "x"]
        );
        assert_eq!(
            words(&parse("hsup run echo -s x --oneshot --help")),
            ["echo", "-s", "x", "--oneshot", "--help"]
        );
    }

    #[test]
    fn before_the_first_word_a_hyphen_is_an_option_with_its_value_attached_or_not() {
        for (line, driver) in [
            ("hsup run -dsimple true", "simple"),
            ("hsup run -d=docker true", "docker"),
            ("hsup run --driver=docker true", "docker"),
        ] {
            let cli = parse(line);
            assert_eq!(cli.options.driver.as_deref(), Some(driver), "{line}");
            assert_eq!(words(&cli), ["true"], "{line}");
        }
        let cli = parse("hsup run -C. -s/x.sock ls -C.");
        assert_eq!(cli.options.directory.as_deref(), Some(".".as_ref()));
        assert_eq!(
            cli.options.control_socket.as_deref(),
            Some("/x.sock".as_ref())
        );
        assert_eq!(words(&cli), ["ls", "-C."]);
        assert_eq!(
            words(&parse("hsup run git log -- -x")),
            ["git", "log", "--", "-x"]
        );
        assert_eq!(words(&parse("hsup run -- -x y")), ["-x", "y"]);
        for line in ["hsup run --nosuch true", "hsup run --grac 3s true"] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::UnknownArgument);
        }
    }

    #[test]
    fn binds_are_as_the_originals() {
        let cli = parse("hsup start --bind /a:/b --bind /c");
        let paths: Vec<_> = cli
            .options
            .binds
            .iter()
            .map(|bind| (bind.host_path.as_str(), bind.dyno_path.as_str()))
            .collect();
        assert_eq!(paths, [("/a", "/b"), ("/c", "/c")]);
        assert!(Cli::try_parse_from(["hsup", "start", "--bind", "a"]).is_err());
    }

    #[test]
    fn an_option_of_the_driver_has_a_key_and_a_value() {
        let cli = parse("hsup run --driver-option a=1 --driver-option b=x=y true");
        let expected = ["a=1", "b=x=y"].map(|text| text.parse().unwrap());
        assert_eq!(cli.options.driver_options, expected);
        for bad in ["swarm", "=true", "a/b=1"] {
            let line = ["hsup", "start", "--driver-option", bad];
            assert!(Cli::try_parse_from(line).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_linger_may_be_for_ever() {
        assert_eq!(parse_linger("forever"), Ok(Duration::ZERO));
        assert_eq!(parse_linger("0"), Ok(Duration::from_millis(1)));
    }

    #[test]
    fn heroku_is_asked_now_and_then() {
        assert_eq!(
            parse("hsup start").options.poll_every,
            Duration::from_secs(10)
        );
        assert_eq!(parse_poll_every("50ms"), Ok(Duration::from_millis(50)));
        for bad in ["0", "2h", "often"] {
            assert!(parse_poll_every(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_period_is_one_that_dynos_can_live_in() {
        assert_eq!(parse_cycle("24h"), Ok(Duration::from_hours(24)));
        for bad in ["0", "500ms", "daily"] {
            assert!(parse_cycle(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn types_have_quantities() {
        assert_eq!(parse_type("web=2").unwrap().quantity, Some(2));
        assert_eq!(parse_type("worker").unwrap().quantity, None);
        for bad in [
            "web=-1",
            "web=x",
            "web=",
            "web=10001",
            "../etc=1",
            "a/b",
            "",
        ] {
            let error = Cli::try_parse_from(["hsup", "start", bad]).unwrap_err();
            let kind = error.kind();
            assert_eq!(kind, clap::error::ErrorKind::ValueValidation, "{bad}");
        }
    }

    #[test]
    fn clap_finds_nothing_wrong_with_it() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
