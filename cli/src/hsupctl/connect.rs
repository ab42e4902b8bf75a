//! Which supervisor hsupctl speaks to, and the connection to it.
//!
//! A socket given by hand is used as it is. Otherwise the runtime directories are
//! searched for sockets that somebody serves: one that nobody does is a file left over
//! from a crash, and counts for nothing. Of several, the one of the app in the current
//! directory is meant, where there is one.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use hsup_core::paths::{AppKey, Paths};
use hsup_proto::control::{GetStatusRequest, supervisor_client::SupervisorClient};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// The client that every command calls.
pub type Client = SupervisorClient<Channel>;

/// Ten thousand dynos with their last lines are more than gRPC's usual 4 MiB.
const MESSAGE_MAX: usize = 256 << 20;

/// Which supervisor is meant, as far as the command line says.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// `--control-socket` or `HSUP_CONTROL_SOCKET`.
    pub socket: Option<PathBuf>,
    /// `--app`.
    pub app: Option<String>,
}

/// There is no supervisor to speak to, or more than one.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The socket that was given does not answer.
    #[error("failed to connect to the control socket `{}`", .path.display())]
    Connect { path: PathBuf, source: io::Error },

    /// Something else than hsup answers there.
    #[error("failed to speak gRPC on the control socket `{}`", .path.display())]
    Handshake {
        path: PathBuf,
        source: tonic::transport::Error,
    },

    /// Nothing runs.
    #[error("no hsup is running{}", nothing_found(.looked, .denied))]
    NothingRuns {
        looked: Vec<PathBuf>,
        denied: Vec<PathBuf>,
    },

    /// What runs is other apps.
    #[error("no hsup is running the app `{app}`: there is {running}")]
    NoSuchApp { app: String, running: String },

    /// The command line does not say which.
    #[error("several are running: say which with --app NAME or --control-socket PATH{}", listed(.running))]
    Several { running: Vec<(String, PathBuf)> },
}

fn nothing_found(looked: &[PathBuf], denied: &[PathBuf]) -> String {
    let list = |paths: &[PathBuf]| {
        let paths: Vec<String> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        paths.join(", ")
    };
    let mut text = format!(": looked for a control socket in {}", list(looked));
    if !denied.is_empty() {
        text.push_str("; not allowed to connect to ");
        text.push_str(&list(denied));
    }
    text
}

fn listed(running: &[(String, PathBuf)]) -> String {
    let width = running.iter().map(|(app, _)| app.chars().count()).max();
    let line = |(app, path): &(String, PathBuf)| {
        format!("\n  {app:<0$}  {1}", width.unwrap_or(0), path.display())
    };
    running.iter().map(line).collect()
}

/// A socket that somebody serves.
struct Running {
    path: PathBuf,
    client: Client,
}

/// Connects to the supervisor that is meant.
///
/// # Errors
/// When there is none, or several and nothing says which.
pub async fn connect(target: &Target) -> Result<Client, ConnectError> {
    if let Some(path) = &target.socket {
        return open(path).await;
    }
    let paths = Paths::from_env();
    let mut running = Vec::new();
    let mut denied = Vec::new();
    for path in paths.find_sockets() {
        match open(&path).await {
            Ok(client) => running.push(Running { path, client }),
            Err(ConnectError::Connect { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                denied.push(path);
            }
            Err(_) => {}
        }
    }
    if running.is_empty() {
        return Err(ConnectError::NothingRuns {
            looked: places(&paths),
            denied,
        });
    }
    if let Some(app) = &target.app {
        return of_app(running, app).await;
    }
    if running.len() > 1
        && let Some(here) = here(&running)
    {
        return Ok(running.swap_remove(here).client);
    }
    match <[Running; 1]>::try_from(running) {
        Ok([only]) => Ok(only.client),
        Err(running) => Err(ConnectError::Several {
            running: named(running)
                .await
                .into_iter()
                .map(|(app, one)| (app, one.path))
                .collect(),
        }),
    }
}

async fn of_app(running: Vec<Running>, app: &str) -> Result<Client, ConnectError> {
    let named = named(running).await;
    let names: Vec<String> = named.iter().map(|(name, _)| format!("`{name}`")).collect();
    let mut matching: Vec<(String, Running)> =
        named.into_iter().filter(|(name, _)| name == app).collect();
    match matching.len() {
        0 => Err(ConnectError::NoSuchApp {
            app: app.to_owned(),
            running: names.join(", "),
        }),
        1 => Ok(matching.swap_remove(0).1.client),
        _ => Err(ConnectError::Several {
            running: matching
                .into_iter()
                .map(|(app, one)| (app, one.path))
                .collect(),
        }),
    }
}

/// The app's name of each; its socket's where it does not answer.
async fn named(running: Vec<Running>) -> Vec<(String, Running)> {
    let mut named = Vec::with_capacity(running.len());
    for mut one in running {
        let status = one.client.get_status(GetStatusRequest::default()).await;
        let name = match status {
            Ok(status) => status.into_inner().app,
            Err(_) => stem(&one.path).to_owned(),
        };
        named.push((name, one));
    }
    named
}

/// The one that supervises the app in the current directory.
fn here(running: &[Running]) -> Option<usize> {
    let directory = fs::canonicalize(env::current_dir().ok()?).ok()?;
    let key = AppKey::directory(&directory);
    running
        .iter()
        .position(|one| stem(&one.path) == key.as_str())
}

fn stem(path: &Path) -> &str {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("-")
}

/// Where sockets are looked for, to tell people.
fn places(paths: &Paths) -> Vec<PathBuf> {
    let user = paths.xdg_runtime_dir.clone();
    let user = user.unwrap_or_else(|| paths.run.join(format!("user/{}", paths.uid)));
    vec![
        user.join("hsup"),
        paths.run.join("hsup"),
        paths.tmp.join(format!("hsup-{}", paths.uid)),
    ]
}

/// Connects to the supervisor that serves `path`.
async fn open(path: &Path) -> Result<Client, ConnectError> {
    let failed = |source| ConnectError::Connect {
        path: path.to_owned(),
        source,
    };
    let mut stream = Some(UnixStream::connect(path).await.map_err(failed)?);
    let connector = tower::service_fn(move |_| {
        // A connection that has ended is not made again: hsup may have been restarted,
        // and what was asked of the old one is not meant for the new one.
        let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
        async move { stream.map(TokioIo::new).map_err(io::Error::from) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Handshake {
            path: path.to_owned(),
            source,
        })?;
    Ok(Client::new(channel).max_decoding_message_size(MESSAGE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named() {
        let target = Target {
            socket: Some("/nonexistent/hsup.sock".into()),
            app: None,
        };
        let error = connect(&target).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to connect to the control socket `/nonexistent/hsup.sock`"
        );
    }

    #[test]
    fn several_are_listed() {
        let running = vec![
            ("shop".to_owned(), PathBuf::from("/run/hsup/shop.sock")),
            (
                "blog-2".to_owned(),
                PathBuf::from("/run/hsup/+srv+blog.sock"),
            ),
        ];
        assert_eq!(
            ConnectError::Several { running }.to_string(),
            "several are running: say which with --app NAME or --control-socket PATH\n  \
             shop    /run/hsup/shop.sock\n  blog-2  /run/hsup/+srv+blog.sock"
        );
    }

    #[test]
    fn nothing_running_says_where_it_looked() {
        let error = ConnectError::NothingRuns {
            looked: vec!["/run/hsup".into(), "/tmp/hsup-7".into()],
            denied: vec!["/run/hsup/shop.sock".into()],
        };
        assert_eq!(
            error.to_string(),
            "no hsup is running: looked for a control socket in /run/hsup, /tmp/hsup-7; \
             not allowed to connect to /run/hsup/shop.sock"
        );
    }
}
