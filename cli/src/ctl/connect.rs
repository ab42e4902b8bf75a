//! Which hsup is meant, and a connection to it.
//!
//! A socket file proves nothing: one that a killed hsup left behind does not count, and of
//! those that answer the app's name is asked. The file's name counts where no app has the wanted
//! one: that of a unit's instance need not be the app's.

use std::{
    error::Error as _,
    fmt::Write as _,
    future::{Ready, ready},
    io,
    path::{Path, PathBuf},
    task::{Context, Poll},
    time::Duration,
};

use hsup_core::paths::{Paths, SUN_PATH_MAX};
use hsup_proto::control::{
    GetDriverRequest, GetStatusRequest, supervisor_client::SupervisorClient,
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    net::UnixStream,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::access;

/// The status of 10,000 dynos with their last lines must fit.
const MESSAGE_MAX: usize = 256 << 20;
/// How long an hsup may take to show that it is one, and one of several to say its app's name.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the others may take once one is found that runs the wanted app.
const A_MOMENT: Duration = Duration::from_millis(500);

/// The generated client.
pub type Client = SupervisorClient<Channel>;

/// A connection to one hsup.
#[derive(Clone, Debug)]
pub struct Supervisor {
    pub client: Client,
    pub socket: PathBuf,
}

/// There is no hsup to ask, or not just one.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("no hsup answers at `{}`", path.display())]
    Connect { path: PathBuf, source: io::Error },

    #[error(
        "the path of the control socket `{}` is too long: a socket's has at most {SUN_PATH_MAX} bytes",
        path.display()
    )]
    TooLong { path: PathBuf },

    #[error("what listens at `{}` is no hsup: it does not speak gRPC", path.display())]
    NotHsup { path: PathBuf },

    #[error("the hsup at `{}` does not answer: waited {} seconds", path.display(), PATIENCE.as_secs())]
    Silent { path: PathBuf },

    #[error("no hsup runs{}: looked for its control socket in {}{}",
        of_app(app.as_deref()), listed(looked), forbidden(locked))]
    NoneRuns {
        app: Option<String>,
        looked: Vec<PathBuf>,
        /// Sockets that belong to somebody else.
        locked: Vec<PathBuf>,
    },

    #[error(
        "no hsup that answers runs for `{app}`{}\nIt may be the one at {}, which does not \
         answer: waited {} seconds",
        table(others), any_of(silent), PATIENCE.as_secs()
    )]
    MaybeSilent {
        app: String,
        others: Vec<Running>,
        silent: Vec<PathBuf>,
    },

    #[error("hsup runs for other apps only, not for `{app}`{}", table(others))]
    OtherApps { app: String, others: Vec<Running> },

    #[error("several hsups run{}", table(found))]
    Several { found: Vec<Running> },
}

/// An hsup that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Empty where it has not said.
    pub app: String,
    pub socket: PathBuf,
}

fn of_app(app: Option<&str>) -> String {
    app.map(|app| format!(" for the app `{app}`"))
        .unwrap_or_default()
}

fn listed(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

fn any_of(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect();
    paths.join(" or ")
}

fn forbidden(locked: &[PathBuf]) -> String {
    if locked.is_empty() {
        return String::new();
    }
    format!("; you may not connect to {}", listed(locked))
}

fn table(found: &[Running]) -> String {
    let width = found.iter().map(|one| one.app.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Running { app, socket } in found {
        let app = if app.is_empty() { "-" } else { app };
        write!(text, "\n  {app:width$}  {}", socket.display())
            .expect("writing to a string cannot fail");
    }
    text
}

impl ConnectError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(access::advice(path))
            }
            Self::NoneRuns { locked, .. } if !locked.is_empty() => Some(access::advice(&locked[0])),
            Self::Connect { .. } | Self::NoneRuns { .. } => Some(
                "`hsup start` in a directory with a Procfile starts one; `hsupctl -s PATH` names \
                 the socket of one that is not found, such as another user's"
                    .to_owned(),
            ),
            Self::OtherApps { .. } => Some("pass one of them to `--app`".to_owned()),
            // Their names do not tell them apart.
            Self::Several { found } if found.iter().all(|one| one.app == found[0].app) => {
                Some("say which: `hsupctl -s PATH`".to_owned())
            }
            Self::Several { .. } => {
                Some("say which: `hsupctl -a NAME` or `hsupctl -s PATH`".to_owned())
            }
            Self::Silent { .. } | Self::MaybeSilent { .. } => {
                Some("is it stopped, or under a debugger?".to_owned())
            }
            Self::TooLong { .. } | Self::NotHsup { .. } => None,
        }
    }
}

/// The hsup at a socket that was named, or the only one that runs for the app.
pub async fn connect(
    socket: Option<&Path>,
    app: Option<&str>,
    paths: &Paths,
) -> Result<Supervisor, ConnectError> {
    let candidates = match socket {
        Some(path) => {
            let supervisor = open(path).await?;
            if app.is_none() {
                return Ok(supervisor);
            }
            sorted([named(supervisor).await])
        }
        None => answering(paths.find_sockets(), app).await,
    };
    choose(candidates, app, paths.socket_dirs()).await
}

/// What there is at the sockets that were found.
#[derive(Default)]
struct Candidates {
    /// With the app's name where that was asked for.
    live: Vec<(Option<String>, Supervisor)>,
    /// Connected to, and no word from there.
    silent: Vec<PathBuf>,
    /// They may not be asked.
    locked: Vec<PathBuf>,
}

/// What came of asking at one socket.
type Asked = Result<(Option<String>, Supervisor), ConnectError>;

/// Asks at all of these. One that is found to run the `app` is as good as the answer.
///
/// Another of the same name must be seen, too: to stop the dynos of one by chance is worse
/// than to ask which is meant. But an hsup answers in milliseconds, and the word of one that
/// does not answer never counts: so the others get a moment, and not all the patience there
/// is.
async fn answering(sockets: Vec<PathBuf>, app: Option<&str>) -> Candidates {
    let by_name = app.is_some();
    let asked = sockets.into_iter().map(move |path| async move {
        let supervisor = open(&path).await?;
        if by_name {
            named(supervisor).await
        } else {
            Ok((None, supervisor))
        }
    });
    let is_it = |answer: &Asked| {
        let name = answer.as_ref().ok().and_then(|(name, _)| name.as_deref());
        app.is_some() && name == app
    };
    sorted(at_once(asked, is_it).await)
}

fn sorted(answers: impl IntoIterator<Item = Asked>) -> Candidates {
    let mut candidates = Candidates::default();
    for answer in answers {
        match answer {
            Ok(live) => candidates.live.push(live),
            Err(ConnectError::Silent { path }) => candidates.silent.push(path),
            Err(ConnectError::Connect { path, source })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                candidates.locked.push(path);
            }
            // Left behind by one that was killed.
            Err(_) => {}
        }
    }
    candidates
}

/// What all of these answer, in their order: one that takes its time holds up none. Once an
/// answer `is_enough`, the others have [`A_MOMENT`].
async fn at_once<T: Send + 'static>(
    asked: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
    is_enough: impl Fn(&T) -> bool,
) -> Vec<T> {
    let mut tasks = JoinSet::new();
    for (place, answer) in asked.enumerate() {
        tasks.spawn(async move { (place, answer.await) });
    }
    let mut answers = Vec::new();
    let mut until = None;
    loop {
        let next = match until {
            None => tasks.join_next().await,
            Some(until) => timeout_at(until, tasks.join_next()).await.unwrap_or(None),
        };
        let Some(next) = next else { break };
        let (place, answer) = next.expect("asking neither panics nor is it aborted");
        if until.is_none() && is_enough(&answer) {
            until = Some(Instant::now() + A_MOMENT);
        }
        answers.push((place, answer));
    }
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

async fn choose(
    candidates: Candidates,
    app: Option<&str>,
    looked: Vec<PathBuf>,
) -> Result<Supervisor, ConnectError> {
    let Candidates {
        mut live,
        silent,
        locked,
    } = candidates;
    if live.is_empty() {
        return Err(match silent.into_iter().next() {
            Some(path) => ConnectError::Silent { path },
            None => ConnectError::NoneRuns {
                app: app.map(str::to_owned),
                looked,
                locked,
            },
        });
    }
    let Some(app) = app else {
        if live.len() == 1 && silent.is_empty() {
            return Ok(live.remove(0).1);
        }
        let asked = live.into_iter().map(|(_, supervisor)| named(supervisor));
        let Candidates {
            live, silent: hung, ..
        } = sorted(at_once(asked, |_| false).await);
        let mut found = running(live);
        let unnamed = silent.into_iter().chain(hung).map(|socket| Running {
            app: String::new(),
            socket,
        });
        found.extend(unnamed);
        return Err(ConnectError::Several { found });
    };
    let is_named = |(name, _): &(Option<String>, Supervisor)| name.as_deref() == Some(app);
    let has_name = live.iter().any(is_named);
    let (mut wanted, others): (Vec<_>, Vec<_>) = live.into_iter().partition(|one| {
        let is_filed = || one.1.socket.file_stem() == Some(app.as_ref());
        is_named(one) || !has_name && is_filed()
    });
    match wanted.len() {
        1 => Ok(wanted.remove(0).1),
        0 if silent.is_empty() => Err(ConnectError::OtherApps {
            app: app.to_owned(),
            others: running(others),
        }),
        0 => Err(ConnectError::MaybeSilent {
            app: app.to_owned(),
            others: running(others),
            silent,
        }),
        _ => Err(ConnectError::Several {
            found: running(wanted),
        }),
    }
}

fn running(all: Vec<(Option<String>, Supervisor)>) -> Vec<Running> {
    let running = |(app, supervisor): (Option<String>, Supervisor)| Running {
        app: app.unwrap_or_default(),
        socket: supervisor.socket,
    };
    all.into_iter().map(running).collect()
}

/// The hsup, and the name of its app.
async fn named(supervisor: Supervisor) -> Asked {
    let mut client = supervisor.client.clone();
    match timeout(PATIENCE, client.get_status(GetStatusRequest::default())).await {
        Ok(Ok(answer)) => Ok((Some(answer.into_inner().app), supervisor)),
        // It ends, or is of another version, and has no name.
        Ok(Err(_)) => Ok((None, supervisor)),
        Err(_) => Err(ConnectError::Silent {
            path: supervisor.socket,
        }),
    }
}

/// Connects to the hsup that serves `path`.
pub async fn open(path: &Path) -> Result<Supervisor, ConnectError> {
    let stream = UnixStream::connect(path).await.map_err(|source| {
        if source.kind() == io::ErrorKind::InvalidInput {
            ConnectError::TooLong {
                path: path.to_owned(),
            }
        } else {
            ConnectError::Connect {
                path: path.to_owned(),
                source,
            }
        }
    })?;
    // Servers that check the authority want a host name there, never the socket's path.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(Once(Some(stream)))
        .await;
    let not_hsup = || ConnectError::NotHsup {
        path: path.to_owned(),
    };
    let supervisor = Supervisor {
        client: Client::new(channel.map_err(|_| not_hsup())?)
            .max_decoding_message_size(MESSAGE_MAX),
        socket: path.to_owned(),
    };
    match timeout(PATIENCE, speaks(&supervisor)).await {
        Ok(true) => Ok(supervisor),
        Ok(false) => Err(not_hsup()),
        Err(_) => Err(ConnectError::Silent {
            path: path.to_owned(),
        }),
    }
}

/// Whether the answer is one that gRPC understands. Without this question a server of another
/// kind looks like an hsup that went away.
async fn speaks(supervisor: &Supervisor) -> bool {
    let mut client = supervisor.client.clone();
    match client.get_driver(GetDriverRequest {}).await {
        // Only a status that was made on this side has a source.
        Err(status) => status.source().is_none(),
        Ok(_) => true,
    }
}

/// Hands out the one stream there is: a connection that was lost is not made anew, for
/// another hsup might answer then.
struct Once(Option<UnixStream>);

impl tower::Service<Uri> for Once {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(
            self.0
                .take()
                .map(TokioIo::new)
                .ok_or_else(|| io::ErrorKind::ConnectionAborted.into()),
        )
    }
}
