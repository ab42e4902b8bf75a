//! Stop: a target state, reached for every process of the dyno.

use std::time::Duration;

use hsup_proto::driver::{Capability, State, StopRequest};
use tokio::time::timeout;
use tonic::Code;

use super::super::{
    case::{Case, Need, NotPassed, case, check, check_eq},
    context::Context,
    dyno::Dyno,
    process::marked,
    requests::{ONE_SECOND, code, force, remove, signal, stop, stop_in},
};

pub(super) const STOP: &str = "stop";
const FIFO: Need = Need::Has(Capability::StdioFifo);
/// How long after the grace a dyno must be gone (docs/driver-rules.md §13).
pub(super) const BEYOND: Duration = Duration::from_secs(2);

pub(crate) const CASES: &[Case] = &[
    case!(
        STOP,
        "an unknown dyno is stopped already",
        "§8 Stop: unknown or exited → OK",
        unknown
    ),
    case!(
        STOP,
        "an exited dyno is stopped already, and keeps its status",
        "§8 Stop: unknown or exited → OK",
        exited
    ),
    case!(
        STOP,
        "no dyno_id is INVALID_ARGUMENT",
        "§9: missing field → INVALID_ARGUMENT",
        no_id
    ),
    case!(
        STOP,
        "SIGTERM comes first, and a dyno may end in its own way",
        "§6 StopRequest: signal, default SIGTERM",
        graceful,
        &[Need::Output]
    ),
    case!(
        STOP,
        "a dyno that does nothing about SIGTERM dies of it",
        "§6 StopRequest: default SIGTERM; §6: signals by name",
        terminated,
        &[Need::Output]
    ),
    case!(
        STOP,
        "another signal may come first",
        "§6 StopRequest: signal",
        other_signal,
        &[Need::Output]
    ),
    case!(
        STOP,
        "a signal that does not exist is INVALID_ARGUMENT, and harms nobody",
        "§9: malformed field → INVALID_ARGUMENT, no state changed",
        bad_signal
    ),
    case!(
        STOP,
        "a dyno that ignores SIGTERM is killed after its grace, not before",
        "§8 Stop; §13: ignoring TERM → KILL within grace + 2 s",
        ignoring,
        &[Need::Output]
    ),
    Case {
        beside: true,
        ..case!(
            STOP,
            "no grace given means 30 s, not none",
            "§6 StopRequest: grace_ms 0 means 30000",
            default_grace,
            &[FIFO]
        )
    },
    case!(
        STOP,
        "force kills now",
        "§6 StopRequest: force: SIGKILL now",
        forced,
        &[Need::Output]
    ),
    case!(
        STOP,
        "when Stop has answered, the dyno is exited",
        "§8 Stop: returns when every process of the dyno is gone",
        gone,
        &[Need::Output]
    ),
    case!(
        STOP,
        "a grandchild in a session of its own that ignores SIGTERM is gone, too",
        "§8 Stop: returns when every process of the dyno is gone",
        grandchild,
        &[FIFO]
    ),
    case!(
        STOP,
        "a grandchild that closed its output is gone, too",
        "§8 Stop: returns when every process of the dyno is gone",
        quiet_grandchild,
        &[Need::Output]
    ),
];

async fn unknown(cx: &Context) -> Result<(), NotPassed> {
    let id = cx.fresh_id();
    for request in [stop(&id), force(&id)] {
        let answer = cx.control().stop(request).await;
        answer.within(ONE_SECOND)?.ok()?;
    }
    Ok(())
}

async fn exited(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 9").await?;
    let before = cx.exit(dyno.id()).await?;
    for request in [stop(dyno.id()), force(dyno.id())] {
        let answer = cx.control().stop(request).await;
        answer.within(ONE_SECOND)?.ok()?;
    }
    let after = cx.exit(dyno.id()).await?;
    check_eq(format_args!("Wait of {}", dyno.id()), &after, &before)?;
    Ok(())
}

async fn no_id(cx: &Context) -> Result<(), NotPassed> {
    let answer = cx.control().stop(stop("")).await;
    answer.refused(&[Code::InvalidArgument])?;
    Ok(())
}

async fn graceful(cx: &Context) -> Result<(), NotPassed> {
    let script = format!("trap 'echo bye; exit 7' TERM; echo ready; {}", cx.hold());
    let mut dyno = cx.ready(&script).await?;
    cx.control().stop(stop(dyno.id())).await.ok()?;
    cx.exits(dyno.id(), code(7)).await?;
    dyno.stdout.expect("bye").await?;
    Ok(())
}

async fn terminated(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.ready(&format!("echo ready; {}", cx.hold())).await?;
    let answer = cx.control().stop(stop(dyno.id())).await;
    answer.within(BEYOND)?.ok()?;
    cx.exits(dyno.id(), signal("SIGTERM")).await?;
    Ok(())
}

async fn other_signal(cx: &Context) -> Result<(), NotPassed> {
    for (name, exit) in [("SIGINT", 12), ("SIGUSR1", 13), ("SIGQUIT", 14)] {
        let (short, hold) = (&name[3..], cx.hold());
        let script = format!("trap 'exit {exit}' {short}; echo ready; {hold}");
        let dyno = cx.ready(&script).await?;
        let request = StopRequest {
            signal: name.to_owned(),
            ..stop_in(dyno.id(), 5000)
        };
        cx.control().stop(request).await.ok()?;
        cx.exits(dyno.id(), code(exit)).await?;
    }
    Ok(())
}

async fn bad_signal(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.hang().await?;
    for name in ["SIGNOPE", "15;", "SIGTERM\n"] {
        let request = StopRequest {
            signal: name.to_owned(),
            ..stop(dyno.id())
        };
        let answer = cx.control().stop(request).await;
        answer.refused(&[Code::InvalidArgument])?;
    }
    cx.check_runs(dyno.id()).await?;
    Ok(())
}

/// Ignores SIGTERM until it is killed.
async fn ignoring_dyno(cx: &Context) -> Result<Dyno, NotPassed> {
    let script = format!("trap '' TERM; echo ready; while :; do {}; done", cx.hold());
    cx.ready(&script).await
}

async fn ignoring(cx: &Context) -> Result<(), NotPassed> {
    let grace = Duration::from_millis(600);
    let dyno = ignoring_dyno(cx).await?;
    let answer = cx.control().stop(stop_in(dyno.id(), 600)).await;
    check(
        answer.took >= grace,
        &answer.call,
        "no answer before the grace of 600 ms is over",
        format_args!("an answer after {} ms", answer.took.as_millis()),
    )?;
    answer.within(grace + BEYOND)?.ok()?;
    cx.exits(dyno.id(), signal("SIGKILL")).await?;
    Ok(())
}

async fn default_grace(cx: &Context) -> Result<(), NotPassed> {
    // It has seen SIGTERM and goes on; were there no grace, it would be dead a second later.
    let mut dyno = cx.ready(LINGER).await?;
    let mut stopping = Box::pin(cx.control().stop(stop_in(dyno.id(), 0)));
    let begun = timeout(Duration::from_millis(1500), &mut stopping).await;
    if let Ok(answer) = begun {
        answer.ok()?;
    }
    dyno.stdout.expect("term").await?;
    cx.check_runs(dyno.id()).await?;
    dyno.stdin.write(b"\n").await?;
    cx.exits(dyno.id(), code(11)).await?;
    Ok(())
}

/// Says `term` at each SIGTERM and ends with 11 when it is written a line.
const LINGER: &str = "trap 'echo term' TERM; echo ready; until read _; do :; done; exit 11";

async fn forced(cx: &Context) -> Result<(), NotPassed> {
    let dyno = ignoring_dyno(cx).await?;
    let answer = cx.control().stop(force(dyno.id())).await;
    answer.within(BEYOND)?.ok()?;
    cx.exits(dyno.id(), signal("SIGKILL")).await?;
    Ok(())
}

async fn gone(cx: &Context) -> Result<(), NotPassed> {
    for _ in 0..10 {
        let dyno = cx.ready(&format!("echo ready; {}", cx.hold())).await?;
        cx.control().stop(stop(dyno.id())).await.ok()?;
        let state = cx.listed(dyno.id()).await?.map(|dyno| dyno.state());
        let on = format!("List of {}", dyno.id());
        check_eq(on, &state, &Some(State::Exited))?;
        cx.exit_within(dyno.id(), 1).await?;
    }
    Ok(())
}

/// Fails unless every process that has the dyno's stdout open is gone.
pub(super) async fn check_canary(cx: &Context, dyno: &mut Dyno) -> Result<(), NotPassed> {
    // A driver may hold the FIFO itself until Remove; a process of the dyno may not live so long.
    if !dyno.stdout.ends_within(ONE_SECOND).await? {
        let left = marked(DYNO_MARK, dyno.id());
        let on = format!("stdout of {}", dyno.id());
        let expected = "no process of the dyno that holds it open";
        check(left.is_empty(), &on, expected, format_args!("{left:?}"))?;
        cx.control().remove(remove(dyno.id())).await.ok()?;
        let ended = dyno.stdout.ends_within(ONE_SECOND).await?;
        check(ended, on, expected, "a FIFO that is still open")?;
    }
    Ok(())
}

/// Holds the dyno's own id, so that its processes can be found.
pub(super) const DYNO_MARK: &str = "HSUP_CHECK_DYNO";

/// A grandchild that ignores what can be ignored, in a session of its own where there is
/// `setsid`.
pub(super) fn grandchild_script(grandchild: &str, rest: &str) -> String {
    format!(
        "trap '' TERM HUP INT; \
         s=; command -v setsid >/dev/null && s=setsid; \
         $s /bin/sh -c '{grandchild}' & \
         {rest}"
    )
}

async fn with_grandchild(cx: &Context, grandchild: &str, rest: &str) -> Result<Dyno, NotPassed> {
    let script = grandchild_script(grandchild, rest);
    let mut request = cx.request(&script).await?;
    let id = request.dyno_id.clone();
    request.env.insert(DYNO_MARK.to_owned(), id);
    let mut dyno = cx.with_stdio(request, true)?;
    cx.launch(&mut dyno).await?;
    Ok(dyno)
}

async fn grandchild(cx: &Context) -> Result<(), NotPassed> {
    let loud = format!("echo ready; {}", cx.hold_in_background());
    let mut dyno = with_grandchild(cx, &loud, cx.hold()).await?;
    dyno.stdout.expect("ready").await?;
    dyno.stdout.only_read()?;
    let answer = cx.control().stop(stop_in(dyno.id(), 300)).await;
    answer.within(Duration::from_millis(300) + BEYOND)?.ok()?;
    check_canary(cx, &mut dyno).await
}

async fn quiet_grandchild(cx: &Context) -> Result<(), NotPassed> {
    let quiet = format!("exec >/dev/null; {}", cx.hold_in_background());
    let rest = format!("echo ready; while :; do {}; done", cx.hold());
    let mut dyno = with_grandchild(cx, &quiet, &rest).await?;
    dyno.stdout.expect("ready").await?;
    if marked(DYNO_MARK, dyno.id()).is_empty() {
        let reason = "the processes of a dyno cannot be seen from here".to_owned();
        return Err(NotPassed::Skipped(reason));
    }
    cx.control().stop(stop_in(dyno.id(), 300)).await.ok()?;
    let left = marked(DYNO_MARK, dyno.id());
    check(
        left.is_empty(),
        format_args!("Stop of {}", dyno.id()),
        "no process of the dyno",
        format_args!("{left:?}"),
    )?;
    Ok(())
}
