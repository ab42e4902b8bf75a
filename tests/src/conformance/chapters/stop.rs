//! Stop: a target state, reached for every process of the dyno.

use std::time::Duration;

use hsup_proto::driver::{Capability, GetInfoRequest, State, StopRequest};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::super::{
    case::{Case, Need, NotPassed, case, check, check_eq},
    context::{
        Context, Dyno, ONE_SECOND, check_exit, code, remove, signal, stop, stop_in, wait_for,
    },
    process::marked,
};

const STOP: &str = "stop";
const FIFO: Need = Need::Has(Capability::StdioFifo);
/// How long after the grace a dyno must be gone (§13).
const BEYOND: Duration = Duration::from_secs(2);

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
        &[FIFO]
    ),
    case!(
        STOP,
        "a dyno that does nothing about SIGTERM dies of it",
        "§6 StopRequest: default SIGTERM; §6: signals by name",
        terminated,
        &[FIFO]
    ),
    case!(
        STOP,
        "another signal may come first",
        "§6 StopRequest: signal",
        other_signal,
        &[FIFO]
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
        &[FIFO]
    ),
    case!(
        STOP,
        "no grace given means 30 s, not none",
        "§6 StopRequest: grace_ms 0 means 30000",
        default_grace,
        &[FIFO]
    ),
    case!(
        STOP,
        "force kills now",
        "§6 StopRequest: force: SIGKILL now",
        forced,
        &[FIFO]
    ),
    case!(
        STOP,
        "when Stop has answered, the dyno is exited",
        "§8 Stop: returns when every process of the dyno is gone",
        gone,
        &[FIFO]
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
        &[FIFO]
    ),
    case!(
        STOP,
        "a caller that hangs up changes nothing",
        "§8 Stop: caller hanging up changes nothing: the stop goes on",
        hang_up,
        &[FIFO]
    ),
    case!(
        STOP,
        "a connection that ends changes nothing",
        "§8 Stop: caller hanging up changes nothing: the stop goes on",
        disconnect,
        &[FIFO]
    ),
    case!(
        STOP,
        "a deadline that passes changes nothing",
        "§8 all: a deadline never rolls work back",
        deadline,
        &[FIFO]
    ),
    case!(
        STOP,
        "a second Stop shortens the grace of the first",
        "§8 Stop: a later Stop may only shorten the remaining grace",
        shortened,
        &[FIFO]
    ),
    case!(
        STOP,
        "a second Stop does not lengthen the grace of the first",
        "§8 Stop: a later Stop may only shorten the remaining grace",
        not_lengthened,
        &[FIFO]
    ),
    case!(
        STOP,
        "force ends a Stop that is under way",
        "§8 Stop: a later Stop may only shorten the remaining grace",
        forced_later,
        &[FIFO]
    ),
    case!(
        STOP,
        "GetInfo, List, IPInfo and Wait answer within 1 s during a Stop of 30 s",
        "§8 GetInfo, List, IPInfo: within 1 s whatever else is in flight, a Stop included",
        not_in_the_way,
        &[FIFO]
    ),
    case!(
        STOP,
        "other dynos start and stop during a Stop of 30 s",
        "§0.5: calls must not queue behind Stop",
        others_go_on,
        &[FIFO]
    ),
];

/// Ignores SIGTERM until it is killed.
const IGNORE: &str = "trap '' TERM; echo ready; read _";

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
    let mut dyno = cx
        .ready("trap 'echo bye; exit 7' TERM; echo ready; read _")
        .await?;
    cx.control().stop(stop(dyno.id())).await.ok()?;
    cx.exits(dyno.id(), code(7)).await?;
    dyno.stdout.expect("bye").await?;
    Ok(())
}

async fn terminated(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.ready("echo ready; read _").await?;
    let answer = cx.control().stop(stop(dyno.id())).await;
    answer.within(BEYOND)?.ok()?;
    cx.exits(dyno.id(), signal("SIGTERM")).await?;
    Ok(())
}

async fn other_signal(cx: &Context) -> Result<(), NotPassed> {
    for (name, exit) in [("SIGINT", 12), ("SIGUSR1", 13), ("SIGQUIT", 14)] {
        let script = format!("trap 'exit {exit}' {}; echo ready; read _", &name[3..]);
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
    let dyno = cx.start("read _").await?;
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

async fn ignoring(cx: &Context) -> Result<(), NotPassed> {
    let grace = Duration::from_millis(600);
    let dyno = cx.ready(IGNORE).await?;
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
    let dyno = cx.ready(IGNORE).await?;
    let answer = cx.control().stop(force(dyno.id())).await;
    answer.within(BEYOND)?.ok()?;
    cx.exits(dyno.id(), signal("SIGKILL")).await?;
    Ok(())
}

fn force(id: &str) -> StopRequest {
    StopRequest {
        force: true,
        ..stop(id)
    }
}

async fn gone(cx: &Context) -> Result<(), NotPassed> {
    for _ in 0..10 {
        let dyno = cx.ready("echo ready; read _").await?;
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
const DYNO_MARK: &str = "HSUP_CHECK_DYNO";

/// A grandchild that ignores what can be ignored, in a session of its own where there is
/// `setsid`; it prints `ready` itself. `sleep` may be missing: then it reads what never comes.
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
    let mut dyno = cx.with_fifos(request, true)?;
    cx.launch(&mut dyno).await?;
    Ok(dyno)
}

async fn grandchild(cx: &Context) -> Result<(), NotPassed> {
    let loud = "echo ready; read _ <&2";
    let mut dyno = with_grandchild(cx, loud, "read _").await?;
    dyno.stdout.expect("ready").await?;
    dyno.stdout.only_read()?;
    let answer = cx.control().stop(stop_in(dyno.id(), 300)).await;
    answer.within(Duration::from_millis(300) + BEYOND)?.ok()?;
    check_canary(cx, &mut dyno).await
}

async fn quiet_grandchild(cx: &Context) -> Result<(), NotPassed> {
    // It keeps its stderr, whose FIFO nobody writes, as the thing that it waits for.
    let quiet = "exec >/dev/null; read _ <&2";
    let mut dyno = with_grandchild(cx, quiet, "echo ready; read _").await?;
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

/// Fails unless the dyno dies of SIGKILL though nobody waits for the Stop any more.
async fn dies(cx: &Context, dyno: &Dyno, since: Instant) -> Result<(), NotPassed> {
    let status = cx.exit_within(dyno.id(), 5000).await?;
    check_exit(dyno.id(), &status, &signal("SIGKILL"))?;
    let took = since.elapsed();
    check(
        took <= Duration::from_millis(800) + BEYOND,
        format_args!("Wait of {}", dyno.id()),
        "its end within the grace of 800 ms and 2 s",
        format_args!("{} ms", took.as_millis()),
    )?;
    Ok(())
}

/// Says `term` at each SIGTERM and does not end.
const SAY_TERM: &str = "trap 'echo term' TERM; echo ready; while :; do read _; done";

async fn hang_up(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.ready(SAY_TERM).await?;
    let begun = Instant::now();
    let mut client = cx.control().client();
    let request = stop_in(dyno.id(), 800);
    let call = tokio::spawn(async move { client.stop(request).await.map(drop) });
    dyno.stdout.expect("term").await?;
    call.abort();
    dies(cx, &dyno, begun).await
}

async fn disconnect(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.ready(SAY_TERM).await?;
    let begun = Instant::now();
    let other = cx.another_connection().await?;
    let call = tokio::spawn(other.stop(stop_in(dyno.id(), 800)));
    dyno.stdout.expect("term").await?;
    call.abort();
    drop(other);
    dies(cx, &dyno, begun).await
}

async fn deadline(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.ready(SAY_TERM).await?;
    let begun = Instant::now();
    let mut request = tonic::Request::new(stop_in(dyno.id(), 800));
    request.set_timeout(Duration::from_millis(200));
    let mut client = cx.control().client();
    // The answer may be DEADLINE_EXCEEDED or CANCELLED: it is the dyno's end that counts.
    let call = tokio::spawn(async move { client.stop(request).await.map(drop) });
    dyno.stdout.expect("term").await?;
    dies(cx, &dyno, begun).await?;
    call.abort();
    Ok(())
}

async fn shortened(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.ready(SAY_TERM).await?;
    let first = tokio::spawn(cx.control().stop(stop_in(dyno.id(), 8000)));
    dyno.stdout.expect("term").await?;
    let second = cx.control().stop(stop_in(dyno.id(), 300)).await;
    second.within(Duration::from_millis(300) + BEYOND)?.ok()?;
    if let Ok(Ok(first)) = timeout(BEYOND, first).await {
        first.ok()?;
    } else {
        let on = format!("the first Stop of {}", dyno.id());
        check(false, on, "an answer once the dyno is gone", "none")?;
    }
    cx.exits(dyno.id(), signal("SIGKILL")).await?;
    Ok(())
}

async fn not_lengthened(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.ready(SAY_TERM).await?;
    let begun = Instant::now();
    let first = tokio::spawn(cx.control().stop(stop_in(dyno.id(), 800)));
    dyno.stdout.expect("term").await?;
    let second = tokio::spawn(cx.control().stop(stop_in(dyno.id(), 8000)));
    dies(cx, &dyno, begun).await?;
    for call in [first, second] {
        if let Ok(Ok(answer)) = timeout(BEYOND, call).await {
            answer.ok()?;
        } else {
            let on = format!("a Stop of {}", dyno.id());
            check(false, on, "an answer once the dyno is gone", "none")?;
        }
    }
    Ok(())
}

async fn forced_later(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.ready(SAY_TERM).await?;
    let first = tokio::spawn(cx.control().stop(stop_in(dyno.id(), 8000)));
    dyno.stdout.expect("term").await?;
    let second = cx.control().stop(force(dyno.id())).await;
    second.within(BEYOND)?.ok()?;
    cx.exits(dyno.id(), signal("SIGKILL")).await?;
    first.abort();
    Ok(())
}

async fn not_in_the_way(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.ready(SAY_TERM).await?;
    let stopping = tokio::spawn(cx.control().stop(stop_in(dyno.id(), 30_000)));
    dyno.stdout.expect("term").await?;
    for _ in 0..5 {
        let info = GetInfoRequest::default();
        let answer = cx.control().get_info(info).await;
        answer.within(ONE_SECOND)?.ok()?;
        let list = cx.control().list(cx.own()).await.within(ONE_SECOND)?.ok()?;
        let listed = list.dynos.iter().find(|d| d.dyno_id == dyno.id());
        let state = listed.map(hsup_proto::driver::Dyno::state);
        let on = format!("List of {}", dyno.id());
        check_eq(on, &state, &Some(State::Stopping))?;
        let ip = hsup_proto::driver::IpInfoRequest {
            dyno_id: dyno.id().to_owned(),
        };
        cx.control().ip_info(ip).await.within(ONE_SECOND)?.ok()?;
        let wait = cx.waits().wait(wait_for(dyno.id(), 50)).await;
        wait.within(ONE_SECOND)?.ok()?;
        sleep(Duration::from_millis(20)).await;
    }
    stopping.abort();
    Ok(())
}

async fn others_go_on(cx: &Context) -> Result<(), NotPassed> {
    let mut slow = cx.ready(SAY_TERM).await?;
    let stopping = tokio::spawn(cx.control().stop(stop_in(slow.id(), 30_000)));
    slow.stdout.expect("term").await?;
    let begun = Instant::now();
    let other = cx.ready("echo ready; read _").await?;
    cx.control().stop(stop(other.id())).await.ok()?;
    cx.exits(other.id(), signal("SIGTERM")).await?;
    cx.control().remove(remove(other.id())).await.ok()?;
    check(
        begun.elapsed() < Duration::from_secs(10),
        "Start, Stop and Remove of another dyno",
        "their end long before that of the Stop of 30 s",
        format_args!("{} s", begun.elapsed().as_secs()),
    )?;
    stopping.abort();
    Ok(())
}
