//! The driver as a process: how it takes its socket, how it ends, what becomes of its dynos.
//!
//! Each case starts a driver of its own, beside the one of the other chapters.

use std::{
    fs, io,
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

use hsup_proto::driver::{Capability, Durability, GetInfoRequest, State};
use tokio::time::timeout;

use super::super::{
    case::{Case, Failure, Need, NotPassed, case, check, check_eq},
    context::{Context, Dyno, ONE_SECOND, code, wait_for},
    process::{DriverProcess, SocketDir},
    session::{Driver, Left},
};
use super::stop::grandchild_script;

const PROCESS: &str = "driver process";
const EXEC: &[Need] = &[Need::Exec];
const EXEC_FIFO: &[Need] = &[Need::Exec, Need::Has(Capability::StdioFifo)];

pub(crate) const CASES: &[Case] = &[
    case!(
        PROCESS,
        "the socket is its owner's alone, from the first moment",
        "§7.1: umask 0177 before bind, not chmod after",
        socket_mode,
        EXEC
    ),
    case!(
        PROCESS,
        "a stale socket file is replaced",
        "§7.1: unlinks a stale file first",
        stale_socket,
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
        "§7.2: LISTEN_FDS: a driver MUST accept both",
        listen_fds,
        EXEC
    ),
    case!(
        PROCESS,
        "SIGTERM ends it, and nothing of it is left",
        "§7.6: driver ends on SIGTERM",
        sigterm,
        EXEC
    ),
    case!(
        PROCESS,
        "SIGTERM ends it though Waits are open",
        "§7.6: driver ends on SIGTERM: stop accepting",
        sigterm_with_waits,
        EXEC_FIFO
    ),
    case!(
        PROCESS,
        "SIGTERM leaves the dynos that its durability says",
        "§7.6: leave dynos running if durability ≥ SURVIVES, else stop them",
        sigterm_durability,
        EXEC_FIFO
    ),
    case!(
        PROCESS,
        "kill -9 leaves the dynos that its durability says",
        "§13: driver kill -9: NONE → no survivor and empty List; SURVIVES → still running",
        kill_durability,
        EXEC_FIFO
    ),
    case!(
        PROCESS,
        "an exit while the driver is down is told by the next one",
        "§13: EXACT → exit 42 while the driver is down is reported as 42",
        exact,
        &[
            Need::Exec,
            Need::Has(Capability::StdioFifo),
            Need::Is(Durability::Exact)
        ]
    ),
    case!(
        PROCESS,
        "dynos outlive the end of every connection",
        "§7: driver down never means dynos down; linger_ms 0: never",
        disconnected,
        EXEC_FIFO
    ),
    case!(
        PROCESS,
        "linger_ms stops a dyno whose supervisor stays away",
        "§6 StartRequest: linger_ms: stop the dyno once its supervisor has been unconnected for so long",
        linger,
        EXEC_FIFO
    ),
];

/// A failure of the suite's own doing.
fn own(what: &str, error: &io::Error) -> Failure {
    Failure {
        on: "the suite itself".to_owned(),
        expected: what.to_owned(),
        observed: error.to_string(),
    }
}

fn make_dir() -> Result<SocketDir, Failure> {
    SocketDir::make().map_err(|error| own("a directory for a socket", &error))
}

/// Starts a driver with its socket in `dir`.
async fn spawn(cx: &Context, dir: SocketDir) -> Result<Driver, NotPassed> {
    let started = cx.session.spawn(cx.command()?, dir).await;
    started.map_err(|error| {
        NotPassed::Failed(Failure {
            on: "the start of another driver".to_owned(),
            expected: "one that can be connected to".to_owned(),
            observed: chain(&error),
        })
    })
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Where `driver` was killed or ended: the directory of its socket.
fn its_dir(dir: Option<SocketDir>) -> Result<SocketDir, Failure> {
    dir.ok_or_else(|| {
        own(
            "the directory of the socket",
            &io::ErrorKind::NotFound.into(),
        )
    })
}

/// Watches for `socket` and returns the mode it has when first seen.
fn watch(socket: &Path, stop: Arc<AtomicBool>) -> thread::JoinHandle<Option<u32>> {
    let socket = socket.to_owned();
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if let Ok(found) = fs::symlink_metadata(&socket) {
                return Some(found.permissions().mode());
            }
            thread::yield_now();
        }
        None
    })
}

async fn socket_mode(cx: &Context) -> Result<(), NotPassed> {
    let dir = make_dir()?;
    let socket = dir.socket();
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch(&socket, Arc::clone(&stop));
    let driver = spawn(cx, dir).await;
    stop.store(true, Ordering::Relaxed);
    let first = watcher.join().ok().flatten();
    let driver = driver?;
    let found = fs::symlink_metadata(&socket).map_err(|error| own("a socket", &error))?;
    let is_socket = found.file_type().is_socket();
    check(is_socket, "the socket's path", "a socket", "something else")?;
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
    let first = spawn(cx, make_dir()?).await?;
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

async fn instance_id(cx: &Context) -> Result<(), NotPassed> {
    let other = spawn(cx, make_dir()?).await?;
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
    let dir = make_dir()?;
    let bound = UnixListener::bind(dir.socket());
    let listener = bound.map_err(|error| own("a socket to hand down", &error))?;
    let command = cx.command()?;
    let process = DriverProcess::spawn_listening(command, &listener, cx.session.limits);
    let process = process.map_err(|error| own("another driver", &error))?;
    // Whoever is in the queue now can only be served by the driver.
    drop(listener);
    let reached = timeout(Duration::from_secs(15), cx.session.reach(process, dir)).await;
    let failed = |observed: String| Failure {
        on: "a driver with LISTEN_FDS=1 and no HSUP_DRIVER_SOCKET".to_owned(),
        expected: "GetInfo answered on the descriptor that it was given".to_owned(),
        observed,
    };
    let driver = match reached {
        Ok(Ok(driver)) => driver,
        Ok(Err(error)) => return Err(failed(chain(&error)).into()),
        Err(_) => return Err(failed("no answer within 15 s".to_owned()).into()),
    };
    driver.terminate().await?;
    Ok(())
}

async fn sigterm(cx: &Context) -> Result<(), NotPassed> {
    let driver = spawn(cx, make_dir()?).await?;
    driver.terminate().await?;
    Ok(())
}

/// Starts a dyno on `driver` that runs until its stdin ends, with stdout as its canary.
async fn start_on(cx: &Context, driver: &Driver, linger_ms: u32) -> Result<Dyno, NotPassed> {
    start_script_on(cx, driver, "echo ready; read _; exit 42", linger_ms).await
}

async fn start_script_on(
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
    let mut dyno = cx.with_fifos(request, true)?;
    driver.control.start(dyno.request.clone()).await.ok()?;
    let opened = dyno.stdin.started();
    opened.map_err(|error| own("the writing end of stdin", &error))?;
    dyno.stdout.expect("ready").await?;
    dyno.stdout.only_read()?;
    Ok(dyno)
}

async fn sigterm_with_waits(cx: &Context) -> Result<(), NotPassed> {
    let driver = spawn(cx, make_dir()?).await?;
    let mut dyno = start_on(cx, &driver, 0).await?;
    let waiting = tokio::spawn(driver.waits.wait(wait_for(dyno.id(), 0)));
    let info = driver.control.get_info(GetInfoRequest::default()).await;
    info.ok()?;
    let left = left_by(driver.info.durability());
    driver.end(left).await?;
    dyno.stdin.close();
    waiting.abort();
    Ok(())
}

/// What a driver of this durability may leave behind.
fn left_by(durability: Durability) -> Left {
    match durability {
        Durability::Survives | Durability::Exact => Left::Dynos,
        Durability::None | Durability::Unspecified => Left::Nothing,
    }
}

/// Starts a dyno on `driver` as [`start_on`] does, with a grandchild that is no part of its
/// session where there is `setsid`, and that has nothing of the dyno's but its stderr.
async fn start_family_on(cx: &Context, driver: &Driver) -> Result<Dyno, NotPassed> {
    let script = grandchild_script(
        "exec >/dev/null; read _ <&2",
        "exec 2>/dev/null; echo ready; read _; exit 42",
    );
    start_script_on(cx, driver, &script, 0).await
}

/// Fails unless the dyno is gone or runs, as `driver`'s durability has it, and the next driver
/// lists it accordingly; and unless whoever was left of it is gone by then.
async fn check_survival(
    cx: &Context,
    durability: Durability,
    dir: SocketDir,
    mut dyno: Dyno,
) -> Result<(), NotPassed> {
    let on = format!("the dyno {} of a driver that ended", dyno.id());
    let survives = left_by(durability) == Left::Dynos;
    let patience = if survives {
        ONE_SECOND
    } else {
        Duration::from_secs(3)
    };
    let ended = dyno.stdout.ends_within(patience).await?;
    let expected = if survives {
        "a dyno that runs on"
    } else {
        "no process left"
    };
    let observed = if ended { "none left" } else { "one that runs" };
    check(ended != survives, &on, expected, observed)?;
    let next = spawn(cx, dir).await?;
    if !survives {
        dyno.stderr.only_read()?;
        // What its dying driver could not kill, the next one must, or nobody ever will.
        let ended = dyno.stderr.ends_within(Duration::from_secs(3)).await?;
        let expected = "no grandchild left, either, once the next driver serves";
        check(ended, on, expected, "one that runs")?;
    }
    let list = next.control.list(cx.own()).await.ok()?;
    let state = list.dynos.iter().find(|d| d.dyno_id == dyno.id());
    let state = state.map(hsup_proto::driver::Dyno::state);
    let listed = check_eq(
        "List of the next driver",
        &state,
        &survives.then_some(State::Running),
    );
    // Let it end in any case, and the driver with it.
    dyno.stdin.close();
    next.end(left_by(durability)).await?;
    Ok(listed?)
}

async fn sigterm_durability(cx: &Context) -> Result<(), NotPassed> {
    let driver = spawn(cx, make_dir()?).await?;
    let durability = driver.info.durability();
    let dyno = start_on(cx, &driver, 0).await?;
    let dir = its_dir(driver.end(left_by(durability)).await?)?;
    check_survival(cx, durability, dir, dyno).await
}

async fn kill_durability(cx: &Context) -> Result<(), NotPassed> {
    let driver = spawn(cx, make_dir()?).await?;
    let durability = driver.info.durability();
    let dyno = start_family_on(cx, &driver).await?;
    let dir = its_dir(driver.kill().await)?;
    check_survival(cx, durability, dir, dyno).await
}

async fn exact(cx: &Context) -> Result<(), NotPassed> {
    let driver = spawn(cx, make_dir()?).await?;
    let mut dyno = start_on(cx, &driver, 0).await?;
    let dir = its_dir(driver.kill().await)?;
    dyno.stdin.close();
    let ended = dyno.stdout.ends_within(Duration::from_secs(10)).await?;
    let on = format!("the dyno {} while its driver is down", dyno.id());
    check(ended, on, "its end once its stdin ends", "one that runs")?;
    let next = spawn(cx, dir).await?;
    let reply = next.waits.wait(wait_for(dyno.id(), 5000)).await.ok()?;
    let how = reply.status.and_then(|status| status.how);
    let on = format!("Wait of {} at the next driver", dyno.id());
    check_eq(on, &how, &Some(code(42)))?;
    next.end(Left::Dynos).await?;
    Ok(())
}

/// Drops both connections, but keeps the process.
fn disconnect(driver: Driver) -> Result<(DriverProcess, SocketDir), Failure> {
    let parts = driver.disconnect();
    parts.ok_or_else(|| own("a driver process", &io::ErrorKind::NotFound.into()))
}

async fn disconnected(cx: &Context) -> Result<(), NotPassed> {
    let driver = spawn(cx, make_dir()?).await?;
    let mut dyno = start_on(cx, &driver, 0).await?;
    let (process, dir) = disconnect(driver)?;
    let ended = dyno.stdout.ends_within(ONE_SECOND).await?;
    let on = format!("the dyno {} while nobody is connected", dyno.id());
    check(!ended, on, "a dyno that runs on", "none left")?;
    let driver = reach_again(cx, process, dir).await?;
    let reply = driver.waits.wait(wait_for(dyno.id(), 1)).await.ok()?;
    check_eq("Wait after connecting again", &reply.status, &None)?;
    let left = left_by(driver.info.durability());
    driver.end(left).await?;
    Ok(())
}

async fn linger(cx: &Context) -> Result<(), NotPassed> {
    let driver = spawn(cx, make_dir()?).await?;
    let mut dyno = start_on(cx, &driver, 500).await?;
    let early = dyno.stdout.ends_within(ONE_SECOND).await?;
    let on = format!("the dyno {} with linger_ms 500", dyno.id());
    check(!early, &on, "one that runs while connected", "none left")?;
    let (process, dir) = disconnect(driver)?;
    let ended = dyno.stdout.ends_within(Duration::from_secs(10)).await?;
    let expected = "its end after 500 ms without a connection";
    check(ended, on, expected, "one that runs")?;
    reach_again(cx, process, dir).await?.terminate().await?;
    Ok(())
}

async fn reach_again(
    cx: &Context,
    process: DriverProcess,
    dir: SocketDir,
) -> Result<Driver, NotPassed> {
    let reached = cx.session.reach(process, dir).await;
    reached.map_err(|error| {
        NotPassed::Failed(Failure {
            on: "another connection".to_owned(),
            expected: "a driver that is still there".to_owned(),
            observed: chain(&error),
        })
    })
}
