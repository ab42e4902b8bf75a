//! Durability: what becomes of dynos when their driver ends, exactly as it claims.

use std::time::Duration;

use hsup_proto::driver::{Capability, Durability, SignalRequest, State, exit_status::How};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::sleep;
use tonic::Code;

use super::{
    super::{
        calls::Problem,
        case::{Case, Failure, Need, NotPassed, case, check, check_eq},
        context::Context,
        driver::{Driver, Left},
        dyno::Dyno,
        process::{SocketDir, marked},
        requests::{ONE_SECOND, code, remove, wait_for},
    },
    driver_process::{another, free, its_dir, left_by, spawn, start_on, start_script_on},
    stop::{DYNO_MARK, grandchild_script},
};

/// Its cases prove what the driver claims of its durability.
pub(crate) const DURABILITY: &str = "durability";
const EXEC_FIFO: &[Need] = &[Need::Exec, Need::Has(Capability::StdioFifo)];
const OUTLIVES: &[Need] = &[Need::Exec, Need::Has(Capability::StdioFifo), Need::Outlives];
const EXACT: &[Need] = &[Need::Exec, Need::Has(Capability::StdioFifo), Need::Exact];
/// How often a driver is killed, and another started.
const DRIVERS: usize = 3;

pub(crate) const CASES: &[Case] = &[
    case!(
        DURABILITY,
        "SIGTERM leaves the dynos that it says",
        "§7: leave dynos running if durability ≥ SURVIVES, else stop them",
        sigterm,
        EXEC_FIFO
    ),
    case!(
        DURABILITY,
        "kill -9 leaves the dynos that it says",
        "§13: driver kill -9: NONE → no survivor and empty List; SURVIVES → still running",
        killed,
        EXEC_FIFO
    ),
    case!(
        DURABILITY,
        "an exit while the driver is down is told as it says, and never invented",
        "§13: EXACT → exit 42 while the driver is down is reported as 42; §0: never invent",
        exit_meanwhile,
        EXEC_FIFO
    ),
    case!(
        DURABILITY,
        "a dyno runs on over several drivers, and each of them tells how it ended",
        "§13: kill -9: SURVIVES → still running; §8 Wait: after exit always the same answer until \
         Remove",
        several_drivers,
        EXACT
    ),
    case!(
        DURABILITY,
        "a dyno that was removed after a restart does not come back",
        "§8 Remove: frees everything, forgets the status",
        removed,
        EXACT
    ),
    case!(
        DURABILITY,
        "a Start is known again after a restart",
        "§8 Start: same request → OK; same id, other request → ALREADY_EXISTS",
        started_again,
        OUTLIVES
    ),
    case!(
        DURABILITY,
        "what a dyno writes while both driver and supervisor are away is kept",
        "§11: no SIGPIPE when the core restarts, up to 64 KiB buffered meanwhile",
        written_meanwhile,
        OUTLIVES
    ),
];

/// Starts a dyno on `driver` as [`start_on`] does, with a grandchild that is no part of its
/// session where there is `setsid`, and that has nothing of the dyno's but its stderr.
async fn start_family_on(cx: &Context, driver: &Driver) -> Result<Dyno, NotPassed> {
    let script = grandchild_script(
        "exec >/dev/null; read _ <&2",
        "exec 2>/dev/null; echo ready; read _; exit 42",
    );
    start_script_on(cx, driver, &script, 0).await
}

/// Runs for ever, whatever becomes of its stdin, and says so when it gets SIGUSR1.
const RUNS_ON: &str = "trap 'echo alive' USR1; echo ready; while :; do :; done";

/// Fails unless the dyno is gone or runs, as `driver`'s durability has it, and the next driver
/// lists it accordingly; and unless whoever was left of it is gone by then.
async fn check_survival(
    cx: &Context,
    durability: Durability,
    dir: SocketDir,
    dyno: Dyno,
) -> Result<(), NotPassed> {
    if left_by(durability) == Left::Dynos {
        check_runs_on(cx, dir, dyno).await
    } else {
        check_gone(cx, dir, dyno).await
    }
}

/// A FIFO that ends proves nothing here: a driver may pass on what its dynos write.
async fn check_runs_on(cx: &Context, dir: SocketDir, mut dyno: Dyno) -> Result<(), NotPassed> {
    let on = format!("the dyno {} of a driver that ended", dyno.id());
    let ended = dyno.stdout.ends_within(ONE_SECOND).await?;
    let next = spawn(cx, dir).await?;
    let list = next.control.list(cx.own()).await.ok()?;
    let state = list.dynos.iter().find(|d| d.dyno_id == dyno.id());
    let state = state.map(hsup_proto::driver::Dyno::state);
    check_eq("List of the next driver", &state, &Some(State::Running))?;
    if ended {
        dyno.stdout.reopen()?;
    }
    if next
        .info
        .capabilities()
        .any(|has| has == Capability::Signal)
    {
        let signal = SignalRequest {
            dyno_id: dyno.id().to_owned(),
            signal: "SIGUSR1".to_owned(),
        };
        next.control.signal(signal).await.ok()?;
        expect_after_kill(&mut dyno, "alive").await?;
    } else {
        check(!ended, on, "a dyno that runs on", "none left")?;
    }
    free(&next, &dyno).await?;
    next.end(Left::Dynos).await?;
    Ok(())
}

/// A driver that passes on what its dynos write, and was killed before it had noted that, may
/// do so again.
async fn expect_after_kill(dyno: &mut Dyno, wanted: &str) -> Result<(), Failure> {
    let line = dyno.stdout.line().await?;
    if line == "ready" {
        return dyno.stdout.expect(wanted).await;
    }
    check_eq("the dyno's next line", &line.as_str(), &wanted)
}

async fn check_gone(cx: &Context, dir: SocketDir, mut dyno: Dyno) -> Result<(), NotPassed> {
    let on = format!("the dyno {} of a driver that ended", dyno.id());
    let ended = dyno.stdout.ends_within(Duration::from_secs(3)).await?;
    check(ended, &on, "no process left", "one that runs")?;
    let next = spawn(cx, dir).await?;
    dyno.stderr.only_read()?;
    // What its dying driver could not kill, the next one must, or nobody ever will.
    let ended = dyno.stderr.ends_within(Duration::from_secs(3)).await?;
    let expected = "no grandchild left, either, once the next driver serves";
    check(ended, on, expected, "one that runs")?;
    let list = next.control.list(cx.own()).await.ok()?;
    let listed = list.dynos.iter().any(|d| d.dyno_id == dyno.id());
    check_eq("it in the List of the next driver", &listed, &false)?;
    next.end(Left::Nothing).await?;
    Ok(())
}

async fn sigterm(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    let durability = driver.info.durability();
    let dyno = match left_by(durability) {
        Left::Dynos => start_script_on(cx, &driver, RUNS_ON, 0).await?,
        Left::Nothing => start_on(cx, &driver, 0).await?,
    };
    let dir = its_dir(driver.end(left_by(durability)).await?)?;
    check_survival(cx, durability, dir, dyno).await
}

async fn killed(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    let durability = driver.info.durability();
    let dyno = match left_by(durability) {
        Left::Dynos => start_script_on(cx, &driver, RUNS_ON, 0).await?,
        Left::Nothing => start_family_on(cx, &driver).await?,
    };
    let dir = its_dir(driver.kill().await)?;
    check_survival(cx, durability, dir, dyno).await
}

async fn exit_meanwhile(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    let durability = driver.info.durability();
    let mut dyno = start_on(cx, &driver, 0).await?;
    let dir = its_dir(driver.kill().await)?;
    dyno.stdin.close();
    let ended = dyno.stdout.ends_within(Duration::from_secs(10)).await?;
    let on = format!("the dyno {} while its driver is down", dyno.id());
    check(ended, on, "its end", "one that runs")?;
    let next = spawn(cx, dir).await?;
    let answer = next.waits.wait(wait_for(dyno.id(), 5000)).await;
    let told = match &answer.result {
        Ok(reply) => reply.status.as_ref().and_then(|status| status.how.clone()),
        Err(_) => None,
    };
    let unknown =
        matches!(&answer.result, Err(Problem::Refused(status)) if status.code() == Code::NotFound);
    let (holds, expected) = match durability {
        Durability::Exact => (told == Some(code(42)), "exit code 42"),
        // The dyno may have been killed with the driver, and its record may be gone.
        Durability::Survives => (
            unknown || matches!(told, Some(How::Lost(_))) || told == Some(code(42)),
            "exit code 42, lost, or NOT_FOUND",
        ),
        Durability::None | Durability::Unspecified => (
            unknown || matches!(told, Some(How::Lost(_))),
            "lost or NOT_FOUND",
        ),
    };
    let observed = match &answer.result {
        Ok(reply) => format!("{:?}", reply.status),
        Err(problem) => problem.to_string(),
    };
    let told = check(
        holds,
        format_args!("Wait of {} at the next driver", dyno.id()),
        expected,
        observed,
    );
    // Where it is not known any more, this is no harm.
    next.control.remove(remove(dyno.id())).await.ok()?;
    next.end(left_by(durability)).await?;
    Ok(told?)
}

/// Kills `driver` and starts the next one in its place.
async fn next(cx: &Context, driver: Driver) -> Result<Driver, NotPassed> {
    spawn(cx, its_dir(driver.kill().await)?).await
}

/// Fails unless Wait says that the dyno called `id` ended with 42.
async fn check_42(driver: &Driver, id: &str) -> Result<(), NotPassed> {
    let reply = driver.waits.wait(wait_for(id, 5000)).await.ok()?;
    let how = reply.status.and_then(|status| status.how);
    check_eq(format_args!("Wait of {id}"), &how, &Some(code(42)))?;
    Ok(())
}

async fn several_drivers(cx: &Context) -> Result<(), NotPassed> {
    let mut driver = another(cx).await?;
    let mut dyno = start_on(cx, &driver, 0).await?;
    for _ in 0..DRIVERS {
        driver = next(cx, driver).await?;
        let reply = driver.waits.wait(wait_for(dyno.id(), 1)).await.ok()?;
        check_eq("Wait of a dyno that runs on", &reply.status, &None)?;
    }
    let dir = its_dir(driver.kill().await)?;
    dyno.stdin.close();
    let ended = dyno.stdout.ends_within(Duration::from_secs(10)).await?;
    check(
        ended,
        "the dyno's stdin, closed",
        "its end",
        "one that runs",
    )?;
    driver = spawn(cx, dir).await?;
    for _ in 0..DRIVERS {
        check_42(&driver, dyno.id()).await?;
        driver = next(cx, driver).await?;
    }
    check_42(&driver, dyno.id()).await?;
    driver.control.remove(remove(dyno.id())).await.ok()?;
    driver.terminate().await?;
    Ok(())
}

async fn removed(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    let mut dyno = start_on(cx, &driver, 0).await?;
    let driver = next(cx, driver).await?;
    dyno.stdin.close();
    check_42(&driver, dyno.id()).await?;
    driver.control.remove(remove(dyno.id())).await.ok()?;
    let driver = next(cx, driver).await?;
    let list = driver.control.list(cx.own()).await.ok()?;
    check_eq("List after Remove and a restart", &list.dynos, &Vec::new())?;
    let waiting = driver.waits.wait(wait_for(dyno.id(), 1)).await;
    waiting.refused(&[Code::NotFound])?;
    driver.terminate().await?;
    Ok(())
}

async fn started_again(cx: &Context) -> Result<(), NotPassed> {
    let driver = another(cx).await?;
    let mut dyno = start_on(cx, &driver, 0).await?;
    let driver = next(cx, driver).await?;
    driver.control.start(dyno.request.clone()).await.ok()?;
    let mut other = dyno.request.clone();
    other.argv.push("other".to_owned());
    let answer = driver.control.start(other).await;
    answer.refused(&[Code::AlreadyExists])?;
    // The one that was there is the only one.
    dyno.stdin.close();
    let ended = dyno.stdout.ends_within(Duration::from_secs(10)).await?;
    let on = "the end of the dyno that was started once";
    check(ended, on, "no process left", "one that runs")?;
    driver.control.start(dyno.request.clone()).await.ok()?;
    let reply = driver.waits.wait(wait_for(dyno.id(), 5000)).await.ok()?;
    let how = reply.status.and_then(|status| status.how);
    check_eq("Wait of a dyno that has ended", &how, &Some(code(42)))?;
    driver.control.remove(remove(dyno.id())).await.ok()?;
    driver.terminate().await?;
    Ok(())
}

async fn written_meanwhile(cx: &Context) -> Result<(), NotPassed> {
    let script = "trap 'echo meanwhile' USR1; trap 'exit 42' USR2; echo ready; while :; do :; done";
    let driver = another(cx).await?;
    let mut dyno = start_script_on(cx, &driver, script, 0).await?;
    let dir = its_dir(driver.kill().await)?;
    dyno.stdout.release();
    dyno.stderr.release();
    let is_here = signal_marked(&dyno, Signal::SIGUSR1);
    // Long enough for a dyno that has nobody to write to to be killed by that.
    sleep(ONE_SECOND / 2).await;
    let driver = spawn(cx, dir).await?;
    if is_here {
        dyno.stdout.reopen()?;
        expect_after_kill(&mut dyno, "meanwhile").await?;
        signal_marked(&dyno, Signal::SIGUSR2);
        check_42(&driver, dyno.id()).await?;
    }
    free(&driver, &dyno).await?;
    driver.terminate().await?;
    if is_here {
        Ok(())
    } else {
        let reason = "the dyno's processes are not on this machine".to_owned();
        Err(NotPassed::Skipped(reason))
    }
}

/// Signals what is left of a dyno without any driver; says whether there was anybody.
fn signal_marked(dyno: &Dyno, signal: Signal) -> bool {
    let found = marked(DYNO_MARK, dyno.id());
    for pid in &found {
        // The dyno's init hands it on, and may be faster.
        _ = kill(Pid::from_raw(*pid), signal);
    }
    !found.is_empty()
}
