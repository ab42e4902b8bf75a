//! A driver's program: its command line, its socket, its log and its exit code.
//!
//! ```no_run
//! # use hsup_driver_kit::{Program, Status, CancellationToken, proto, serve::Peer, service::*};
//! # use std::{convert::Infallible, process::ExitCode};
//! # #[derive(Clone)] struct Nothing;
//! # impl Dyno for Nothing {
//! #     type Terminal = Infallible;
//! #     async fn wait(&self) -> proto::ExitStatus { proto::ExitStatus::default() }
//! #     async fn signal(&self, _: hsup_driver_kit::Signal) {}
//! #     async fn kill(&self) {}
//! #     fn ip_info(&self) -> Result<proto::IpInfoResponse, Status> { Ok(Default::default()) }
//! #     async fn stats(&self) -> Result<proto::StatsResponse, Status> { Ok(Default::default()) }
//! #     fn terminal(&self) -> Option<Infallible> { None }
//! # }
//! # struct Jail;
//! # impl Runtime for Jail {
//! #     type Dyno = Nothing;
//! #     fn identity(&self) -> Identity { unimplemented!() }
//! #     async fn build(&self, _: Peer, _: proto::BuildRequest, _: BuildLog) -> Result<String, Status> { Ok(String::new()) }
//! #     fn has_artifact(&self, _: Peer, _: &str) -> bool { true }
//! #     async fn remove_artifact(&self, _: Peer, _: &str) -> Result<(), Status> { Ok(()) }
//! #     async fn start(&self, _: Peer, _: proto::StartRequest, _: Record, _: CancellationToken) -> Result<Nothing, Status> { Ok(Nothing) }
//! # }
//! # impl Jail { fn new(_: Option<&std::ffi::OsStr>) -> Result<Self, std::io::Error> { Ok(Self) } }
//! fn main() -> ExitCode {
//!     Program::new("hsup-driver-jail", env!("CARGO_PKG_VERSION"), "Runs dynos in jails")
//!         .value("--root", "DIR", "Where the jails are")
//!         .main(std::env::args_os().skip(1), async |given| Jail::new(given.value("--root")))
//! }
//! ```

mod args;

use std::{
    error::Error,
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use nix::unistd::{Uid, getppid};
use thiserror::Error;

use self::args::{Action, Args};
use crate::{
    errors::chain,
    listen::{self, Access, ListenError, Listener, Place},
    log, open_files, orphans, secrecy,
    serve::{self, End, Limits, Options, ServeError},
    service::Runtime,
    spawn,
};

/// How long a driver that is somebody's child goes on with nobody to serve and nothing to run.
const IDLE: Duration = Duration::from_secs(5);

/// A driver's program. It has the options `--socket`, `--allow-uid`, `--socket-group`,
/// `--max-dynos`, `--child`, `--help` and `--version`, and those it is given here.
#[derive(Clone, Debug)]
pub struct Program {
    name: &'static str,
    version: &'static str,
    about: &'static str,
    options: Vec<Opt>,
    /// What the driver has to be root for, if it has to.
    root: Option<&'static str>,
}

/// An option of a driver's own.
#[derive(Clone, Copy, Debug)]
struct Opt {
    name: &'static str,
    /// What its value is, if it has one.
    value: Option<&'static str>,
    help: &'static str,
}

/// What a driver is given when it is to begin.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Given {
    socket: Option<PathBuf>,
    allow: Vec<Uid>,
    options: Vec<(&'static str, Option<OsString>)>,
}

impl Given {
    /// Where the driver is reached; none if that has no name in the file system.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Who may call the driver, besides its own user and root.
    pub fn allowed(&self) -> &[Uid] {
        &self.allow
    }

    /// Whether an option stands on the command line.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|(name, _)| *name == option)
    }

    /// The value of an option; the last one counts.
    pub fn value(&self, option: &str) -> Option<&OsStr> {
        self.values(option).next_back()
    }

    /// The values of an option that may be given more than once, in their order.
    pub fn values(&self, option: &str) -> impl DoubleEndedIterator<Item = &OsStr> {
        self.options
            .iter()
            .filter(move |(name, _)| *name == option)
            .filter_map(|(_, value)| value.as_deref())
    }
}

/// The driver could not run.
#[derive(Debug, Error)]
enum Failure {
    #[error("this driver {what_for}: it has to be root, and is uid {uid}")]
    NotRoot { what_for: &'static str, uid: Uid },
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("failed to set up the runtime")]
    Runtime(#[source] io::Error),
    #[error("failed to begin")]
    Begin(#[source] Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl Program {
    /// A program, by its file name and its own version; `about` is what it does, in a line.
    pub const fn new(name: &'static str, version: &'static str, about: &'static str) -> Self {
        Self {
            name,
            version,
            about,
            options: Vec::new(),
            root: None,
        }
    }

    /// Has it refuse to begin for anybody but root: it `makes namespaces`, say.
    #[must_use]
    pub const fn as_root(mut self, what_for: &'static str) -> Self {
        self.root = Some(what_for);
        self
    }

    /// Gives it an option without a value, `--name`. Lines of the help are separated by `\n`.
    #[must_use]
    pub fn flag(self, name: &'static str, help: &'static str) -> Self {
        self.option(name, None, help)
    }

    /// Gives it an option with a value.
    #[must_use]
    pub fn value(self, name: &'static str, value: &'static str, help: &'static str) -> Self {
        self.option(name, Some(value), help)
    }

    fn option(
        mut self,
        name: &'static str,
        value: Option<&'static str>,
        help: &'static str,
    ) -> Self {
        self.options.push(Opt { name, value, help });
        self
    }

    /// Runs the driver until it is told to end. `args` are those after the program's name;
    /// `begin` makes its runtime, on the thread that then serves, which lives as long as the
    /// process does.
    ///
    /// Ends with 0 after SIGTERM or when idle as a child, 1 when it cannot run, 2 for a bad
    /// command line.
    pub fn main<R: Runtime, E>(
        self,
        args: impl IntoIterator<Item = OsString>,
        begin: impl AsyncFnOnce(Given) -> Result<R, E>,
    ) -> ExitCode
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        secrecy::keep();
        let name = self.name;
        match args::parse(args, &self.options) {
            Ok(Action::Help) => say(io::stdout(), &self.help(), 0),
            Ok(Action::Version) => say(io::stdout(), &format!("{name} {}\n", self.version), 0),
            Ok(Action::Serve(args)) => match self.run(args, begin) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => say(io::stderr(), &format!("{name}: {}\n", chain(&failure)), 1),
            },
            Err(error) => {
                let text = format!("{name}: {error}\nTry `{name} --help`.\n");
                say(io::stderr(), &text, 2)
            }
        }
    }

    fn run<R: Runtime, E>(
        &self,
        args: Args,
        begin: impl AsyncFnOnce(Given) -> Result<R, E>,
    ) -> Result<(), Failure>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        log::begin(self.name);
        let uid = Uid::effective();
        if let Some(what_for) = self.root.filter(|_| !uid.is_root()) {
            // Before anything else fails for the same reason.
            return Err(Failure::NotRoot { what_for, uid });
        }
        if let Err(error) = open_files::raise() {
            tracing::warn!(%error, "failed to raise the open-file limit");
        }
        if let Err(error) = spawn::low::reserve() {
            tracing::warn!(%error, "starts will be slower with many dynos");
        }
        let by_flag = args.socket.is_some();
        let place = Place::choose(
            args.socket,
            |name| std::env::var_os(name),
            std::process::id(),
        )?;
        let end = match &place {
            _ if args.child => End::WhenIdle(IDLE),
            // A listening descriptor comes from a parent, and a parent can be killed.
            Place::Descriptor => End::WhenIdle(IDLE),
            Place::Path(_) if by_flag => End::WhenTold,
            // A variable comes from hsup, or from a unit whose manager is there for ever.
            Place::Path(_) => End::WhenOrphaned(IDLE, getppid()),
        };
        let group = args.group.as_deref();
        let access = Access::choose(uid, &args.allow, group, listen::group);
        let access = access.map_err(ListenError::from)?;
        let limits = Limits::default();
        let options = Options {
            allow: args.allow.clone(),
            end,
            limits: Limits {
                dynos: args.max_dynos.unwrap_or(limits.dynos),
                ..limits
            },
            ..Options::default()
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::Runtime)?
            .block_on(async {
                let listener = Listener::open(&place, access)?;
                if let Place::Path(path) = &place {
                    // Who hands a descriptor down looks after what its earlier children left.
                    orphans::kill_left_by(path).await;
                }
                let given = Given {
                    socket: listener.path().map(Path::to_owned),
                    allow: args.allow,
                    options: args.options,
                };
                let runtime = begin(given).await;
                let runtime = runtime.map_err(|error| Failure::Begin(error.into()))?;
                Ok(serve::serve(listener, runtime, options).await?)
            })
    }

    fn help(&self) -> String {
        let Self { name, about, .. } = self;
        let mut options = vec![
            (
                "--socket",
                Some("PATH"),
                "Make a socket at PATH and serve on it",
            ),
            (
                "--allow-uid",
                Some("USER"),
                "Let this user (a number or a name) call the driver, besides its own and\n\
                 root (can be repeated); a driver that runs as root gives the socket to\n\
                 that user",
            ),
            (
                "--socket-group",
                Some("GROUP"),
                "Let the members of this group reach the socket; of those who may call\n\
                 the driver --allow-uid decides [default: hsup, with several users]",
            ),
            (
                "--max-dynos",
                Some("N"),
                "How many dynos each of those users may have [default: 1000]",
            ),
            (
                "--child",
                None,
                "End when there is no connection and no running dyno for 5 s",
            ),
        ];
        let own = self.options.iter();
        options.splice(
            4..4,
            own.map(|option| (option.name, option.value, option.help)),
        );
        let mut lines: Vec<_> = options
            .iter()
            .map(|(name, value, help)| {
                let value = value.map_or_else(String::new, |value| format!(" {value}"));
                (format!("      {name}{value}"), *help)
            })
            .collect();
        lines.push(("  -h, --help".to_owned(), "Print this help"));
        lines.push(("  -V, --version".to_owned(), "Print the version"));
        let width = lines.iter().map(|(option, _)| option.len()).max();
        let width = width.unwrap_or(0) + 2;
        let shown = lines.iter().map(|(option, help)| {
            let help = help.replace('\n', &format!("\n{:width$}", ""));
            format!("{option:width$}{help}")
        });
        let shown = shown.collect::<Vec<_>>().join("\n");
        format!(
            "{about}\n\n\
             Usage: {name} [OPTIONS]\n\n\
             It speaks hsup.driver.v1 on the socket of --socket, on a listening descriptor handed\n\
             down by its parent (LISTEN_FDS), or on the socket HSUP_DRIVER_SOCKET.\n\n\
             Options:\n{shown}\n"
        )
    }
}

/// Says something; whether anybody can hear it must not matter.
fn say(mut to: impl Write, text: &str, code: u8) -> ExitCode {
    drop(to.write_all(text.as_bytes()));
    drop(to.flush());
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_may_have_several_values() {
        let value = |text: &str| Some(OsString::from(text));
        let given = Given {
            socket: None,
            allow: Vec::new(),
            options: vec![
                ("--bind", value("/a")),
                ("--root", value("/r")),
                ("--bind", value("/b")),
            ],
        };
        assert!(given.values("--bind").eq(["/a", "/b"]));
        assert_eq!(given.value("--bind"), Some(OsStr::new("/b")));
        assert_eq!(given.values("--none").next(), None);
    }

    #[test]
    fn the_help_has_the_drivers_own_options_too() {
        let program = Program::new("hsup-driver-jail", "1.2", "Runs dynos in jails")
            .flag("--no-fun", "Be serious,\nalways")
            .value("--root", "DIR", "Where the jails are");
        let help = program.help();
        assert!(help.starts_with("Runs dynos in jails\n\nUsage: hsup-driver-jail [OPTIONS]\n"));
        let own = "
      --no-fun              Be serious,
                            always
      --root DIR            Where the jails are
      --child               End when";
        assert!(help.contains(own), "{help}");
        assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    }
}
