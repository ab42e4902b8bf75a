//! The driver as a process: how it takes its socket, how it ends, what becomes of its dynos.
//!
//! Each case starts a driver of its own, beside the one of the other chapters.

use std::{
    fs,
    io::Write as _,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use hsup_proto::driver::{Capability, Durability, GetInfoRequest};
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::{
    super::{
        calls::Problem,
        case::{Case, Failure, Need, NotPassed, case, check, check_eq},
        context::Context,
        driver::{Driver, Left, calls, reach},
        dyno::Dyno,
        process::{DriverProcess, SocketDir},
        requests::{ONE_SECOND, force, remove, wait_for},
    },
    stop::DYNO_MARK,
};

const PROCESS: &str = "driver process";
const EXEC: &[Need] = &[Need::Exec];
const EXEC_FIFO: &[Need] = &[Need::Exec, Need::Has(Capability::StdioFifo)];

pub(crate) const CASES: &[Case] = &[
    case!(
        PROCESS,
        "the socket is its owner's alone, from the first moment",
        "§7: umask 0177 around bind or fchmod before it, not chmod after",
        socket_mode,
        EXEC
    ),
    case!(
        PROCESS,
        "a stale socket file is replaced",
        "§7: unlinks a stale file first",
        stale_socket,
        EXEC
    ),
    case!(
        PROCESS,
        "a socket that another process serves is left to it",
        "§7: unlinks a stale file first: this one is not; docs/drivers.md: ends with an error",
        live_socket,
        EXEC
    ),
    case!(
        PROCESS,
        "what is no socket is left alone",
        "§7: unlinks a stale file first: this is none; docs/drivers.md: ends with an error",
        no_socket,
        EXEC
    ),
    case!(
        PROCESS,
        "every process has an instance_id of its own",
        "§6: instance_id: random per driver process",
        instance_id,
        EXEC
    ),
    case!(
        PROCESS,
        "a listening descriptor is taken over",
        "§7: LISTEN_FDS: a driver MUST accept both",
        listen_fds,
        EXEC
    ),
    case!(
        PROCESS,
        "a listening descriptor of another process is not taken",
        "§7: the LISTEN_FDS convention: LISTEN_PID says whose it is",
        others_descriptor,
        EXEC
    ),
    case!(
        PROCESS,
        "SIGTERM ends it, and nothing of it is left",
        "§7: driver ends on SIGTERM",
        sigterm,
        EXEC
    ),
    case!(
        PROCESS,
        "SIGTERM ends it though Waits are open",
        "§7: driver ends on SIGTERM: stop accepting",
        sigterm_with_waits,
        EXEC_FIFO
    ),
    Case {
        beside: true,
        ..case!(
            PROCESS,
            "dynos outlive the end of every connection",
            "§7: driver down never means dynos down; linger_ms 0: never",
            disconnected,
            EXEC_FIFO
        )
    },
    Case {
        beside: true,
        ..case!(
            PROCESS,
            "linger_ms stops a dyno whose supervisor stays away",
            "§6 StartRequest: linger_ms: stop the dyno once its supervisor has been unconnected for so long",
            linger,
            EXEC_FIFO
        )
    },
    Case {
        beside: true,
        ..case!(
            PROCESS,
            "a supervisor that comes back within linger_ms keeps its dynos",
            "§6 StartRequest: linger_ms: only once its supervisor has been unconnected for so long",
            returned,
            EXEC_FIFO
        )
    },
];

fn make_dir(cx: &Context) -> Result<SocketDir, NotPassed> {
    SocketDir::make(cx.config().as_peer)
        .map_err(|error| NotPassed::hindered("a directory for a socket", &error))
}

/// Starts a driver of the case's own.
pub(super) async fn another(cx: &Context) -> Result<Driver, NotPassed> {
    spawn(cx, make_dir(cx)?).await
}

/// Starts a driver with its socket in `dir`.
pub(super) async fn spawn(cx: &Context, dir: SocketDir) -> Result<Driver, NotPassed> {
    let started = cx.session.spawn(cx.command()?, dir, cx.record()).await;
    let (on, expected) = (
        "the start of another driver",
        "one that can be connected to",
    );
    started.map_err(|error| NotPassed::unreached(on, expected, &error))
}

/// Where `driver` was killed or ended: the directory of its socket.
pub(super) fn its_dir(dir: Option<SocketDir>) -> Result<SocketDir, NotPassed> {
    dir.ok_or_else(|| NotPassed::Skipped("needs --exec".to_owned()))
}

/// Looks at a socket as soon as it is there, until dropped.
struct Watcher {
    enough: Arc<AtomicBool>,
    watching: Option<thread::JoinHandle<Option<u32>>>,
}

impl Watcher {
    fn watch(socket: &Path) -> Self {
        let (socket, enough) = (socket.to_owned(), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&enough);
        let watching = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                if let Ok(found) = fs::symlink_metadata(&socket) {
                    return Some(found.permissions().mode());
                }
                thread::yield_now();
            }
            None
        });
        Self {
            enough,
            watching: Some(watching),
        }
    }

    /// The mode that the socket had when first seen.
    fn seen(mut self) -> Option<u32> {
        self.enough.store(true, Ordering::Relaxed);
        self.watching.take()?.join().ok().flatten()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}

async fn socket_mode(cx: &Context) -> Result<(), NotPassed> {
    let dir = make_dir(cx)?;
    let socket = dir.socket();
    let watcher = Watcher::watch(&socket);
    let driver = spawn(cx, dir).await;
    let first = watcher.seen();
    let driver = driver?;
    let on = "the socket's path";
    let found = fs::symlink_metadata(&socket);
    let found = found.map_err(|error| NotPassed::unreached(on, "a socket", &error))?;
    let is_socket = found.file_type().is_socket();
    check(is_socket, on, "a socket", "something else")?;
    let last = found.permissions().mode();
    for (when, mode) in [("when first seen", first), ("in the end", Some(last))] {
        let Some(mode) = mode else { continue };
        check(
            mode.trailing_zeros() >= 6,
            format_args!("the socket, {when}"),
            "no permission for group and others",
            format_args!("mode {:o}", mode & 0o777),
        )?;
    }
    driver.terminate().await?;
    Ok(())
}

async fn stale_socket(cx: &Context) -> Result<(), NotPassed> {
    let first = another(cx).await?;
    let before = first.info.instance_id.clone();
    let dir = its_dir(first.kill().await)?;
    let there = fs::symlink_metadata(dir.socket()).is_ok();
    let second = spawn(cx, dir).await?;
    let on = format!("GetInfo after kill -9 (the socket file was left: {there})");
    let other = second.info.instance_id != before;
    check(other, on, "another instance_id", "the same")?;
    second.terminate().await?;
    Ok(())
}

/// Starts a driver for `socket`, which must end with an error.
async fn ends_with_error(cx: &Context, socket: &Path) -> Result<(), NotPassed> {
    let process = DriverProcess::spawn(cx.command()?, socket, cx.session.limits);
    let hindered = |error| NotPassed::hindered("another driver", &error);
    let mut process = process.map_err(hindered)?;
    let ended = process.ends_within(Duration::from_secs(10)).await;
    ended.map_err(hindered)?;
    let status = process.ended().map_err(hindered)?;
    check(
        status.is_some_and(|status| !status.success()),
        "a driver whose socket has no room",
        "its end with an error",
        status.map_or("one that runs".to_owned(), |status| status.to_string()),
    )?;
    Ok(())
}

async fn live_socket(cx: &Context) -> Result<(), NotPassed> {
    let first = another(cx).await?;
    ends_with_error(cx, &first.socket).await?;
    let (on, expected) = ("the socket afterwards", "the driver that was there before");
    let again = calls(&first.socket, cx.record()).await;
    let again = again.map_err(|error| NotPassed::unreached(on, expected, &error))?;
    let info = again.get_info(GetInfoRequest::default()).await.ok()?;
    check_eq(on, &info.instance_id, &first.info.instance_id)?;
    first.terminate().await?;
    Ok(())
}

async fn no_socket(cx: &Context) -> Result<(), NotPassed> {
    let dir = make_dir(cx)?;
    let hindered = |error| NotPassed::hindered("a file in the place of a socket", &error);
    let mut file = fs::File::create(dir.socket()).map_err(hindered)?;
    file.write_all(b"somebody's").map_err(hindered)?;
    ends_with_error(cx, &dir.socket()).await?;
    let text = fs::read_to_string(dir.socket());
    let text = text.unwrap_or_else(|error| error.to_string());
    check_eq("the file afterwards", &text.as_str(), &"somebody's")?;
    Ok(())
}

async fn instance_id(cx: &Context) -> Result<(), NotPassed> {
    let other = another(cx).await?;
    let (theirs, ours) = (&other.info.instance_id, &cx.driver.info.instance_id);
    check(
        theirs != ours,
        "GetInfo",
        "two ids for two processes",
        theirs,
    )?;
    other.terminate().await?;
    Ok(())
}

async fn listen_fds(cx: &Context) -> Result<(), NotPassed> {
    let dir = make_dir(cx)?;
    let bound = UnixListener::bind(dir.socket());
    let listener = bound.map_err(|error| NotPassed::hindered("a socket to hand down", &error))?;
    let command = cx.command()?;
    let process = DriverProcess::spawn_listening(command, &listener, cx.session.limits);
    let process = process.map_err(|error| NotPassed::hindered("another driver", &error))?;
    // Whoever is in the queue now can only be served by the driver.
    drop(listener);
    let (on, expected) = (
        "a driver with LISTEN_FDS=1 and no HSUP_DRIVER_SOCKET",
        "GetInfo answered on the descriptor that it was given",
    );
    let reaching = reach(process, dir, cx.record());
    let driver = match timeout(Duration::from_secs(15), reaching).await {
        Ok(reached) => reached.map_err(|error| NotPassed::unreached(on, expected, &error))?,
        Err(_) => {
            return Err(NotPassed::Failed(Failure {
                on: on.to_owned(),
                expected: expected.to_owned(),
                observed: "no answer within 15 s".to_owned(),
            }));
        }
    };
    driver.terminate().await?;
    Ok(())
}

async fn others_descriptor(cx: &Context) -> Result<(), NotPassed> {
    let (dir, others) = (make_dir(cx)?, make_dir(cx)?);
    let bound = UnixListener::bind(others.socket());
    let listener = bound.map_err(|error| NotPassed::hindered("another's socket", &error))?;
    let (command, limits) = (cx.command()?, cx.session.limits);
    let process = DriverProcess::spawn_beside_listener(command, &dir.socket(), &listener, limits);
    let process = process.map_err(|error| NotPassed::hindered("another driver", &error))?;
    let (on, expected) = (
        "a driver with another's LISTEN_PID, and HSUP_DRIVER_SOCKET",
        "one that serves HSUP_DRIVER_SOCKET",
    );
    let reached = reach(process, dir, cx.record()).await;
    let driver = reached.map_err(|error| NotPassed::unreached(on, expected, &error))?;
    driver.terminate().await?;
    Ok(())
}

async fn sigterm(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    driver.terminate().await?;
    Ok(())
}

/// Starts a dyno on `driver` that runs until its stdin ends, with stdout as its canary.
pub(super) async fn start_on(
    cx: &Context,
    driver: &Driver,
    linger_ms: u32,
) -> Result<Dyno, NotPassed> {
    start_script_on(cx, driver, "echo ready; read _; exit 42", linger_ms).await
}

/// Starts a dyno on `driver` that says `ready`, with stdout as its canary, and its id in
/// [`DYNO_MARK`].
pub(super) async fn start_script_on(
    cx: &Context,
    driver: &Driver,
    script: &str,
    linger_ms: u32,
) -> Result<Dyno, NotPassed> {
    let mut request = cx.request(script).await?;
    if cx.config().artifact.is_none() {
        request.artifact = driver.build(&cx.session).await?;
    }
    request.linger_ms = linger_ms;
    let id = request.dyno_id.clone();
    request.env.insert(DYNO_MARK.to_owned(), id);
    let mut dyno = cx.with_stdio(request, true)?;
    driver.control.start(dyno.request.clone()).await.ok()?;
    let opened = dyno.stdin.started();
    opened.map_err(|error| NotPassed::hindered("the writing end of a stdin", &error))?;
    dyno.stdout.expect("ready").await?;
    dyno.stdout.only_read()?;
    Ok(dyno)
}

async fn sigterm_with_waits(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    let mut dyno = start_on(cx, &driver, 0).await?;
    let waiting = tokio::spawn(driver.waits.wait(wait_for(dyno.id(), 0)));
    let info = driver.control.get_info(GetInfoRequest::default()).await;
    info.ok()?;
    let left = left_by(driver.info.durability());
    let dir = driver.end(left).await?;
    dyno.stdin.close();
    waiting.abort();
    if left == Left::Dynos {
        let next = spawn(cx, its_dir(dir)?).await?;
        free(&next, &dyno).await?;
        next.terminate().await?;
    }
    Ok(())
}

/// What a driver of this durability may leave behind.
pub(super) fn left_by(durability: Durability) -> Left {
    match durability {
        Durability::Survives | Durability::Exact => Left::Dynos,
        Durability::None | Durability::Unspecified => Left::Nothing,
    }
}

/// Drops both connections, but keeps the process.
fn disconnect(driver: Driver) -> Result<(DriverProcess, SocketDir), NotPassed> {
    let parts = driver.disconnect();
    parts.ok_or_else(|| NotPassed::Skipped("needs --exec".to_owned()))
}

async fn disconnected(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    let mut dyno = start_on(cx, &driver, 0).await?;
    let (process, dir) = disconnect(driver)?;
    let ended = dyno.stdout.ends_within(ONE_SECOND).await?;
    let on = format!("the dyno {} while nobody is connected", dyno.id());
    check(!ended, on, "a dyno that runs on", "none left")?;
    let driver = reach_again(cx, process, dir).await?;
    let reply = driver.waits.wait(wait_for(dyno.id(), 1)).await.ok()?;
    check_eq("Wait after connecting again", &reply.status, &None)?;
    free(&driver, &dyno).await?;
    let left = left_by(driver.info.durability());
    driver.end(left).await?;
    Ok(())
}

async fn linger(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    let mut dyno = start_on(cx, &driver, 500).await?;
    let early = dyno.stdout.ends_within(ONE_SECOND).await?;
    let on = format!("the dyno {} with linger_ms 500", dyno.id());
    check(!early, &on, "one that runs while connected", "none left")?;
    let (process, dir) = disconnect(driver)?;
    let ended = dyno.stdout.ends_within(Duration::from_secs(10)).await?;
    let expected = "its end after 500 ms without a connection";
    check(ended, on, expected, "one that runs")?;
    let driver = reach_again(cx, process, dir).await?;
    free(&driver, &dyno).await?;
    driver.terminate().await?;
    Ok(())
}

/// Leaves nothing of a dyno, whatever its driver leaves.
pub(super) async fn free(driver: &Driver, dyno: &Dyno) -> Result<(), Failure> {
    let stopping = driver.control.stop(force(dyno.id())).await;
    // A driver whose dynos end with it, or one that has let go of it, knows none.
    if let Err(Problem::Refused(status)) = &stopping.result
        && status.code() == Code::NotFound
    {
        return Ok(());
    }
    stopping.ok()?;
    driver.control.remove(remove(dyno.id())).await.ok()?;
    Ok(())
}

async fn returned(cx: &Context) -> Result<(), NotPassed> {
    let linger = Duration::from_secs(3);
    let driver = another(cx).await?;
    let mut dyno = start_on(cx, &driver, 3000).await?;
    let (process, dir) = disconnect(driver)?;
    let away = Instant::now();
    let on = format!("the dyno {} with linger_ms 3000", dyno.id());
    let early = dyno.stdout.ends_within(Duration::from_millis(300)).await?;
    check(!early, &on, "one that runs at first", "none left")?;
    let driver = reach_again(cx, process, dir).await?;
    driver.control.list(cx.own()).await.ok()?;
    if away.elapsed() >= linger {
        let reason = "this machine is too busy to come back within 3 s".to_owned();
        return Err(NotPassed::Hindered(reason));
    }
    let ended = dyno.stdout.ends_within(linger + ONE_SECOND / 2).await?;
    let expected = "one that runs on, for its supervisor is back";
    check(!ended, on, expected, "none left")?;
    free(&driver, &dyno).await?;
    let left = left_by(driver.info.durability());
    driver.end(left).await?;
    Ok(())
}

async fn reach_again(
    cx: &Context,
    process: DriverProcess,
    dir: SocketDir,
) -> Result<Driver, NotPassed> {
    let reached = reach(process, dir, cx.record()).await;
    let (on, expected) = ("another connection", "a driver that is still there");
    reached.map_err(|error| NotPassed::unreached(on, expected, &error))
}
