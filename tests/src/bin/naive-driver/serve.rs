//! The driver as a process: its socket, its connections, its end (docs/driver-rules.md §7).

use std::{
    env, fs, io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use hsup_proto::driver::dyno_driver_server::DynoDriverServer;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl::set_child_subreaper,
        stat::{Mode, umask},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::transport::{Server, server::Connected};

use crate::{Args, Fault, driver::Driver, left, log::say};

/// Serves until SIGTERM.
pub(crate) async fn serve(args: &Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to wait for SIGTERM")?;
    set_child_subreaper(true).context("failed to become the parent of what dynos leave")?;
    let (listener, path) = listen(args.fault).context("failed to listen")?;
    if args.fault != Some(Fault::LeavesGrandchildren) {
        left::kill_all();
    }
    let driver = Driver::new(args.clone());
    let open = Arc::new(watch::Sender::new(0_u32));
    let lingering = tokio::spawn(linger(driver.clone(), open.subscribe()));
    let incoming = UnixListenerStream::new(listener).map(move |accepted| {
        accepted.map(|stream| {
            open.send_modify(|open| *open += 1);
            Connection {
                stream,
                open: Arc::clone(&open),
            }
        })
    });
    let served = Server::builder()
        .add_service(DynoDriverServer::new(driver.clone()))
        .serve_with_incoming(incoming);
    let told = async {
        loop {
            terminate.recv().await;
            if args.fault != Some(Fault::IgnoresSigterm) {
                break;
            }
            say("SIGTERM, which is ignored");
        }
    };
    tokio::select! {
        served = served => served.context("failed to serve")?,
        () = told => {}
    }
    lingering.abort();
    if let Some(path) = path {
        // Whoever made it anew has removed this one.
        drop(fs::remove_file(path));
    }
    driver.stop_all().await;
    left::forget();
    Ok(())
}

/// The descriptor that was handed down, or a socket at `HSUP_DRIVER_SOCKET`.
fn listen(fault: Option<Fault>) -> anyhow::Result<(UnixListener, Option<PathBuf>)> {
    let any = fault == Some(Fault::ListenPidIsIgnored);
    let own = std::process::id().to_string();
    let is_ours = env::var("LISTEN_PID").is_ok_and(|pid| pid == own || any);
    if is_ours && fault != Some(Fault::ListenFdsAreIgnored) {
        return Ok((handed_down()?, None));
    }
    let path = env::var_os("HSUP_DRIVER_SOCKET").context("HSUP_DRIVER_SOCKET is not set")?;
    let path = PathBuf::from(path);
    let stale = is_stale(&path) || fault == Some(Fault::TakesAnySocket);
    if stale && fault != Some(Fault::StaleSocketStays) {
        // Most often there is none.
        drop(fs::remove_file(&path));
    }
    let late = fault == Some(Fault::ChmodsAfterBind);
    let for_all = fault == Some(Fault::KnowsNoUsers);
    let mask = if late || for_all { 0 } else { 0o177 };
    let before = umask(Mode::from_bits_truncate(mask));
    let bound = UnixListener::bind(&path);
    umask(before);
    let listener = bound.with_context(|| format!("failed to bind `{}`", path.display()))?;
    if late {
        // Long enough to be seen by whoever looks.
        thread::sleep(Duration::from_millis(50));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    }
    Ok((listener, Some(path)))
}

/// Whether a socket is there that nobody serves.
fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = std::os::unix::net::UnixStream::connect(path);
    is_socket && refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[expect(unsafe_code, reason = "a descriptor that was handed down is a number")]
fn handed_down() -> io::Result<UnixListener> {
    // SAFETY: LISTEN_PID says that descriptor 3 is this process's to own.
    let fd = unsafe { OwnedFd::from_raw_fd(3) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let listener = std::os::unix::net::UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Stops dynos whose supervisor stays away. This driver knows of one supervisor: whoever is
/// connected.
async fn linger(driver: Driver, mut open: watch::Receiver<u32>) {
    loop {
        if open.wait_for(|open| *open == 0).await.is_err() {
            return;
        }
        let mut away = Duration::ZERO;
        let pause = Duration::from_millis(50);
        let stays = driver.has(Fault::LingerIsNotCancelled);
        while *open.borrow_and_update() == 0 || stays {
            driver.stop_lingering(away).await;
            tokio::select! {
                () = sleep(pause) => away += pause,
                changed = open.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// A connection that is counted for as long as it lives.
struct Connection {
    stream: UnixStream,
    open: Arc<watch::Sender<u32>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.send_modify(|open| *open -= 1);
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
