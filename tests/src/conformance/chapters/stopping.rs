//! Stop: what happens to one that is under way, and what goes on beside it.

use std::time::Duration;

use hsup_proto::driver::{GetInfoRequest, IpInfoRequest, State};
use tokio::time::{Instant, sleep, timeout};

use super::{
    super::{
        case::{Case, Need, NotPassed, case, check, check_eq},
        context::Context,
        dyno::Dyno,
        requests::{ONE_SECOND, check_exit, force, remove, signal, stop, stop_in, wait_for},
    },
    stop::{BEYOND, STOP},
};

const OUTPUT: &[Need] = &[Need::Output];

pub(crate) const CASES: &[Case] = &[
    case!(
        STOP,
        "a caller that hangs up changes nothing",
        "§8 Stop: caller hanging up changes nothing: the stop goes on",
        hang_up,
        OUTPUT
    ),
    case!(
        STOP,
        "a connection that ends changes nothing",
        "§8 Stop: caller hanging up changes nothing: the stop goes on",
        disconnect,
        OUTPUT
    ),
    case!(
        STOP,
        "a deadline that passes changes nothing",
        "§8 all: a deadline never rolls work back",
        deadline,
        OUTPUT
    ),
    case!(
        STOP,
        "a second Stop shortens the grace of the first",
        "§8 Stop: a later Stop may only shorten the remaining grace",
        shortened,
        OUTPUT
    ),
    case!(
        STOP,
        "a second Stop does not lengthen the grace of the first",
        "§8 Stop: a later Stop may only shorten the remaining grace",
        not_lengthened,
        OUTPUT
    ),
    case!(
        STOP,
        "force ends a Stop that is under way",
        "§8 Stop: a later Stop may only shorten the remaining grace",
        forced_later,
        OUTPUT
    ),
    case!(
        STOP,
        "GetInfo, List, IPInfo and Wait answer within 1 s during a Stop of 30 s",
        "§8 GetInfo, List, IPInfo: within 1 s whatever else is in flight, a Stop included",
        not_in_the_way,
        OUTPUT
    ),
    case!(
        STOP,
        "other dynos start and stop during a Stop of 30 s",
        "§0: calls must not queue behind Stop",
        others_go_on,
        OUTPUT
    ),
];

/// A dyno that says `ready`, then `term` at each SIGTERM, and does not end.
pub(super) async fn stubborn(cx: &Context) -> Result<Dyno, NotPassed> {
    let hold = cx.hold();
    let script = format!("trap 'echo term' TERM; echo ready; while :; do {hold}; done");
    cx.ready(&script).await
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

async fn hang_up(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = stubborn(cx).await?;
    let begun = Instant::now();
    let mut client = cx.control().client();
    let request = stop_in(dyno.id(), 800);
    let call = tokio::spawn(async move { client.stop(request).await.map(drop) });
    dyno.stdout.expect("term").await?;
    call.abort();
    dies(cx, &dyno, begun).await
}

async fn disconnect(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = stubborn(cx).await?;
    let begun = Instant::now();
    let other = cx.another_connection().await?;
    let call = tokio::spawn(other.stop(stop_in(dyno.id(), 800)));
    dyno.stdout.expect("term").await?;
    call.abort();
    drop(other);
    dies(cx, &dyno, begun).await
}

async fn deadline(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = stubborn(cx).await?;
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
    let mut dyno = stubborn(cx).await?;
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
    let mut dyno = stubborn(cx).await?;
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
    let mut dyno = stubborn(cx).await?;
    let first = tokio::spawn(cx.control().stop(stop_in(dyno.id(), 8000)));
    dyno.stdout.expect("term").await?;
    let second = cx.control().stop(force(dyno.id())).await;
    second.within(BEYOND)?.ok()?;
    cx.exits(dyno.id(), signal("SIGKILL")).await?;
    first.abort();
    Ok(())
}

async fn not_in_the_way(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = stubborn(cx).await?;
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
        let ip = IpInfoRequest {
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
    let mut slow = stubborn(cx).await?;
    let stopping = tokio::spawn(cx.control().stop(stop_in(slow.id(), 30_000)));
    slow.stdout.expect("term").await?;
    let begun = Instant::now();
    let other = cx.ready(&format!("echo ready; {}", cx.hold())).await?;
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
