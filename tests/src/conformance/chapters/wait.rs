//! Wait: how a dyno ended, the same to everybody and for as long as it is kept.

use std::time::Duration;

use hsup_proto::driver::{Capability, ExitStatus, exit_status::How};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::Code;

use super::{
    super::{
        case::{Case, Failure, Need, NotPassed, case, check, check_eq},
        context::Context,
        requests::{ONE_SECOND, code, force, remove, signal, wait_for},
    },
    start::now_ms,
    stop::check_canary,
};

const WAIT: &str = "wait";
const FIFO: Need = Need::Has(Capability::StdioFifo);

pub(crate) const CASES: &[Case] = &[
    case!(
        WAIT,
        "exit codes arrive as they are",
        "§6 ExitStatus: code",
        codes
    ),
    case!(
        WAIT,
        "signals arrive by name",
        "§6: signal and code apart, signals by name",
        signals
    ),
    case!(
        WAIT,
        "exit 137 is a code, not a signal",
        "§6: signal and code apart; 128+n only at the CLI's edge",
        code_137
    ),
    case!(
        WAIT,
        "the time of the exit is told",
        "§6 ExitStatus: exited_at_unix_ms",
        exit_time
    ),
    case!(
        WAIT,
        "a timeout answers without a status, in time",
        "§6 WaitResponse: absent: still running at the timeout",
        times_out
    ),
    case!(
        WAIT,
        "an exit is told at once, before the timeout",
        "§6: Wait long-polls: exits seen at once",
        at_once,
        &[Need::Output]
    ),
    case!(
        WAIT,
        "no timeout means no limit",
        "§6 WaitRequest: timeout_ms 0 means no limit",
        no_limit,
        &[Need::Output]
    ),
    case!(
        WAIT,
        "ten at once get the same answer",
        "§8 Wait: pure; any number of callers",
        ten,
        &[Need::Output]
    ),
    case!(
        WAIT,
        "after the exit the answer stays the same, at once",
        "§8 Wait: after exit always the same answer until Remove",
        repeated
    ),
    case!(
        WAIT,
        "a caller that hangs up touches nothing",
        "§8 Wait: cancelling it touches nothing",
        cancelled,
        &[Need::Output]
    ),
    case!(
        WAIT,
        "an unknown dyno is NOT_FOUND",
        "§9: no such dyno → NOT_FOUND",
        unknown
    ),
    case!(
        WAIT,
        "a removed dyno is NOT_FOUND",
        "§8 Remove: forgets the status; §9: no such dyno → NOT_FOUND",
        removed
    ),
    case!(
        WAIT,
        "one that is open when the dyno is stopped and removed is answered",
        "§8 Wait: after exit always the same answer until Remove; §9: no such dyno → NOT_FOUND",
        open_at_removal,
        &[Need::Output]
    ),
    case!(
        WAIT,
        "what the first process leaves behind is killed before Wait answers",
        "§11: when the first process exits the driver kills what is left of the tree",
        left_behind,
        &[FIFO]
    ),
];

async fn codes(cx: &Context) -> Result<(), NotPassed> {
    for wanted in [0, 1, 2, 42, 128, 255] {
        let dyno = cx.start(&format!("exit {wanted}")).await?;
        cx.exits(dyno.id(), code(wanted)).await?;
    }
    Ok(())
}

async fn signals(cx: &Context) -> Result<(), NotPassed> {
    for name in ["KILL", "TERM", "SEGV", "ABRT", "HUP", "PIPE", "USR1"] {
        let dyno = cx.start(&format!("kill -{name} $$; exit 99")).await?;
        cx.exits(dyno.id(), signal(&format!("SIG{name}"))).await?;
    }
    Ok(())
}

async fn code_137(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 137").await?;
    cx.exits(dyno.id(), code(137)).await?;
    Ok(())
}

async fn exit_time(cx: &Context) -> Result<(), NotPassed> {
    let before = now_ms();
    let dyno = cx.start("exit 0").await?;
    let status = cx.exit(dyno.id()).await?;
    let at = status.exited_at_unix_ms;
    check(
        (before - 1000..=now_ms() + 1000).contains(&at),
        format_args!("Wait of {}", dyno.id()),
        "exited_at_unix_ms of this moment",
        at,
    )?;
    check_eq("oom_killed", &status.oom_killed, &false)?;
    Ok(())
}

async fn times_out(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.hang().await?;
    for limit in [1, 300] {
        let answer = cx.waits().wait(wait_for(dyno.id(), limit)).await;
        let limit = Duration::from_millis(limit.into());
        let (took, call) = (answer.took, answer.call.clone());
        let reply = answer.within(limit + ONE_SECOND)?.ok()?;
        check_eq(&call, &reply.status, &None)?;
        check(
            took >= limit,
            call,
            format_args!("no answer before {} ms", limit.as_millis()),
            format_args!("{} ms", took.as_millis()),
        )?;
    }
    Ok(())
}

async fn at_once(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.paused("exit 21").await?;
    let waiting = tokio::spawn(cx.waits().wait(wait_for(dyno.id(), 20_000)));
    cx.check_runs(dyno.id()).await?;
    let begun = Instant::now();
    cx.release(&mut dyno);
    let status = answer_of(dyno.id(), timeout(ONE_SECOND * 2, waiting).await)?;
    check_eq("Wait", &status.how, &Some(code(21)))?;
    let took = begun.elapsed();
    let observed = format!("{} ms", took.as_millis());
    check(took < ONE_SECOND, "Wait", "the exit within 1 s", observed)?;
    Ok(())
}

type Waited = Result<
    Result<super::super::calls::Answer<hsup_proto::driver::WaitResponse>, tokio::task::JoinError>,
    tokio::time::error::Elapsed,
>;

/// The status that a spawned Wait came to.
fn answer_of(id: &str, waited: Waited) -> Result<ExitStatus, Failure> {
    let failed = |observed: &str| Failure {
        on: format!("Wait of {id}"),
        expected: "the exit status".to_owned(),
        observed: observed.to_owned(),
    };
    match waited {
        Ok(Ok(answer)) => {
            let status = answer.ok()?.status;
            status.ok_or_else(|| failed("no status"))
        }
        Ok(Err(_)) | Err(_) => Err(failed("no answer in time")),
    }
}

async fn no_limit(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.paused("exit 22").await?;
    let mut waiting = tokio::spawn(cx.waits().wait(wait_for(dyno.id(), 0)));
    let early = timeout(Duration::from_millis(700), &mut waiting).await;
    check(
        early.is_err(),
        format_args!("Wait of {}", dyno.id()),
        "no answer while the dyno runs",
        format_args!("{early:?}"),
    )?;
    cx.release(&mut dyno);
    let status = answer_of(dyno.id(), timeout(ONE_SECOND * 10, waiting).await)?;
    check_eq("Wait", &status.how, &Some(code(22)))?;
    Ok(())
}

async fn ten(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.paused("exit 23").await?;
    let mut waits = JoinSet::new();
    for n in 0..10 {
        let calls = if n % 2 == 0 { cx.waits() } else { cx.control() };
        waits.spawn(calls.wait(wait_for(dyno.id(), 20_000)));
    }
    cx.check_runs(dyno.id()).await?;
    cx.release(&mut dyno);
    let mut statuses = Vec::new();
    for answer in waits.join_all().await {
        statuses.push(answer.ok()?.status);
    }
    let expected = Some(cx.exit(dyno.id()).await?);
    for status in statuses {
        check_eq("one Wait of ten", &status, &expected)?;
    }
    check_eq("Wait", &expected.and_then(|s| s.how), &Some(code(23)))?;
    Ok(())
}

async fn repeated(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 24").await?;
    let first = cx.exit(dyno.id()).await?;
    check_eq("Wait", &first.how, &Some(code(24)))?;
    for n in 0..10 {
        let calls = if n % 2 == 0 { cx.waits() } else { cx.control() };
        let answer = calls.wait(wait_for(dyno.id(), 1000 * (n % 3))).await;
        let reply = answer.within(ONE_SECOND)?.ok()?;
        check_eq("Wait again", &reply.status.as_ref(), &Some(&first))?;
    }
    Ok(())
}

async fn cancelled(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.paused("exit 25").await?;
    let patient = tokio::spawn(cx.waits().wait(wait_for(dyno.id(), 20_000)));
    for _ in 0..20 {
        let call = tokio::spawn(cx.waits().wait(wait_for(dyno.id(), 20_000)));
        cx.check_runs(dyno.id()).await?;
        call.abort();
    }
    cx.check_runs(dyno.id()).await?;
    cx.release(&mut dyno);
    let status = answer_of(dyno.id(), timeout(ONE_SECOND * 10, patient).await)?;
    check_eq("Wait", &status.how, &Some(code(25)))?;
    Ok(())
}

async fn unknown(cx: &Context) -> Result<(), NotPassed> {
    let id = cx.fresh_id();
    for limit in [0, 1] {
        let answer = cx.waits().wait(wait_for(&id, limit)).await;
        answer.refused(&[Code::NotFound])?;
    }
    Ok(())
}

async fn removed(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 0").await?;
    cx.exit(dyno.id()).await?;
    cx.control().remove(remove(dyno.id())).await.ok()?;
    let answer = cx.waits().wait(wait_for(dyno.id(), 1)).await;
    answer.refused(&[Code::NotFound])?;
    Ok(())
}

async fn open_at_removal(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.ready(&format!("echo ready; {}", cx.hold())).await?;
    let waiting = tokio::spawn(cx.waits().wait(wait_for(dyno.id(), 0)));
    cx.check_runs(dyno.id()).await?;
    cx.control().stop(force(dyno.id())).await.ok()?;
    cx.control().remove(remove(dyno.id())).await.ok()?;
    let on = format!("Wait of {}, which was removed meanwhile", dyno.id());
    let Ok(Ok(answer)) = timeout(ONE_SECOND * 4, waiting).await else {
        return Err(NotPassed::Failed(Failure {
            on,
            expected: "how it ended, or NOT_FOUND".to_owned(),
            observed: "no answer".to_owned(),
        }));
    };
    match answer.result {
        Ok(reply) => {
            let how = reply.status.and_then(|status| status.how);
            check_eq(on, &how, &Some(signal("SIGKILL")))?;
        }
        Err(_) => drop(answer.refused(&[Code::NotFound])?),
    }
    Ok(())
}

async fn left_behind(cx: &Context) -> Result<(), NotPassed> {
    // The child ignores what it can, and so lives until it is killed.
    let script = "s=; command -v setsid >/dev/null && s=setsid; \
                  $s /bin/sh -c 'trap \"\" TERM HUP; echo ready; read _ <&2' & \
                  read _; exit 26";
    let mut dyno = cx.ready(script).await?;
    dyno.stdout.only_read()?;
    dyno.stdin.close();
    let status = cx.exit(dyno.id()).await?;
    check_eq("Wait", &status.how, &Some(How::Code(26)))?;
    check_canary(cx, &mut dyno).await
}
