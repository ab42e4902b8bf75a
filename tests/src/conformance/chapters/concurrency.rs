//! Many calls at once: none is lost, none waits for another.

use std::time::Duration;

use hsup_proto::driver::{GetInfoRequest, StartResponse, State, exit_status::How};
use tokio::task::{JoinSet, yield_now};
use tonic::Code;

use super::{
    super::{
        calls::{Answer, Problem},
        case::{Case, Failure, Need, NotPassed, case, check, check_eq},
        context::Context,
        dyno::Dyno,
        requests::{ONE_SECOND, code, force, remove, stop, stop_in, wait_for},
    },
    stopping::stubborn,
};

const CONCURRENCY: &str = "concurrency";

pub(crate) const CASES: &[Case] = &[
    case!(
        CONCURRENCY,
        "64 Waits and a Stop on one connection",
        "§13: 64 Waits then Stop; §8 Wait: any number of callers",
        waits_and_stop,
        &[Need::Output]
    ),
    case!(
        CONCURRENCY,
        "many Starts at once are as many dynos that run",
        "§13: start storm: 300 Starts → 300 running",
        storm
    ),
    case!(
        CONCURRENCY,
        "GetInfo and List answer within 1 s while many Starts are under way",
        "§8 GetInfo, List: within 1 s whatever else is in flight; §13: start storm",
        not_in_the_way
    ),
    case!(
        CONCURRENCY,
        "100 short lives at once keep their exit statuses apart",
        "§0: never invent an exit code; §8 Wait",
        short_lives
    ),
    case!(
        CONCURRENCY,
        "a Stop on the heels of a Start leaves nothing that runs",
        "§8 all: a different mutating call in flight may get ABORTED; §8 Stop: target state",
        start_and_stop
    ),
    case!(
        CONCURRENCY,
        "Remove during a Stop is refused or waits, and harms nothing",
        "§8 Remove: running → FAILED_PRECONDITION; a call in flight → ABORTED",
        remove_during_stop,
        &[Need::Output]
    ),
    case!(
        CONCURRENCY,
        "eight connections at once are served",
        "§7: two connections for each supervisor, and there may be several",
        connections
    ),
];

async fn waits_and_stop(cx: &Context) -> Result<(), NotPassed> {
    let script = format!("trap 'exit 31' TERM; echo ready; {}", cx.hold());
    let dyno = cx.ready(&script).await?;
    let mut waits = JoinSet::new();
    for n in 0..64 {
        // With a limit and without one.
        let limit = if n % 2 == 0 { 0 } else { 30_000 };
        waits.spawn(cx.control().wait(wait_for(dyno.id(), limit)));
    }
    cx.check_runs(dyno.id()).await?;
    let info = cx.control().get_info(GetInfoRequest::default()).await;
    info.within(ONE_SECOND)?.ok()?;
    let answer = cx.control().stop(stop(dyno.id())).await;
    answer.within(Duration::from_secs(2))?.ok()?;
    for answer in waits.join_all().await {
        let call = answer.call.clone();
        let how = answer.ok()?.status.and_then(|status| status.how);
        check_eq(call, &how, &Some(code(31)))?;
    }
    Ok(())
}

/// Dynos that hold, and their Starts, all at once.
async fn many(cx: &Context) -> Result<(Vec<Dyno>, JoinSet<Answer<StartResponse>>), NotPassed> {
    let mut dynos = Vec::new();
    let mut starts = JoinSet::new();
    for _ in 0..cx.config().storm {
        let dyno = cx.dyno(cx.hold()).await?;
        starts.spawn(cx.control().start(dyno.request.clone()));
        dynos.push(dyno);
    }
    Ok((dynos, starts))
}

async fn not_in_the_way(cx: &Context) -> Result<(), NotPassed> {
    let (_dynos, mut starts) = many(cx).await?;
    // They are on their way before anything is asked.
    yield_now().await;
    loop {
        let info = cx.control().get_info(GetInfoRequest::default()).await;
        info.within(ONE_SECOND)?.ok()?;
        cx.control().list(cx.own()).await.within(ONE_SECOND)?.ok()?;
        while let Some(started) = starts.try_join_next() {
            if let Ok(answer) = started {
                answer.ok()?;
            }
        }
        if starts.is_empty() {
            return Ok(());
        }
    }
}

async fn storm(cx: &Context) -> Result<(), NotPassed> {
    let (dynos, starts) = many(cx).await?;
    for answer in starts.join_all().await {
        answer.ok()?;
    }
    let list = cx.control().list(cx.own()).await.within(ONE_SECOND)?.ok()?;
    let running = list.dynos.iter().filter(|dyno| {
        let ours = dynos.iter().any(|d| d.id() == dyno.dyno_id);
        ours && dyno.state() == State::Running
    });
    check_eq("List after all Starts", &running.count(), &dynos.len())?;
    let mut stops = JoinSet::new();
    for dyno in &dynos {
        stops.spawn(cx.control().stop(stop(dyno.id())));
    }
    for answer in stops.join_all().await {
        answer.ok()?;
    }
    let list = cx.control().list(cx.own()).await.within(ONE_SECOND)?.ok()?;
    let alive = list.dynos.iter().filter(|d| d.state() != State::Exited);
    check_eq("List after all Stops", &alive.count(), &0)?;
    Ok(())
}

async fn short_lives(cx: &Context) -> Result<(), NotPassed> {
    let mut starts = JoinSet::new();
    let mut wanted = Vec::new();
    for n in 0..100 {
        let dyno = cx.dyno(&format!("exit {n}")).await?;
        let (start, wait) = (cx.control().start(dyno.request.clone()), cx.waits().clone());
        let id = dyno.id().to_owned();
        wanted.push((id.clone(), n));
        starts.spawn(async move {
            start.await.ok()?;
            wait.wait(wait_for(&id, 20_000)).await.ok().map(|r| (id, r))
        });
        drop(dyno);
    }
    let mut seen = Vec::new();
    for answer in starts.join_all().await {
        seen.push(answer?);
    }
    for (id, n) in wanted {
        let reply = seen.iter().find(|(other, _)| *other == id);
        let how = reply.and_then(|(_, reply)| reply.status.as_ref()?.how.clone());
        check_eq(format_args!("Wait of {id}"), &how, &Some(How::Code(n)))?;
    }
    Ok(())
}

async fn start_and_stop(cx: &Context) -> Result<(), NotPassed> {
    for _ in 0..20 {
        let dyno = cx.dyno(cx.hold()).await?;
        let id = dyno.id().to_owned();
        let starting = tokio::spawn(cx.control().start(dyno.request.clone()));
        // A Stop that overtakes its Start is one of a dyno that is not known: OK as well.
        let stopped = cx.control().stop(stop(&id)).await;
        if !matches!(&stopped.result, Err(Problem::Refused(s)) if s.code() == Code::Aborted) {
            stopped.ok()?;
        }
        let started = starting.await.map_err(|error| Failure {
            on: format!("Start of {id}"),
            expected: "an answer".to_owned(),
            observed: error.to_string(),
        })?;
        let known = if let Err(Problem::Refused(status)) = &started.result {
            // Whatever the driver says of a Start that was stopped on its way, it is no bug.
            let code = status.code();
            let allowed = [Code::Aborted, Code::FailedPrecondition, Code::AlreadyExists];
            let expected = "OK, ABORTED, FAILED_PRECONDITION or ALREADY_EXISTS";
            check(allowed.contains(&code), &started.call, expected, status)?;
            false
        } else {
            started.ok()?;
            true
        };
        // Now that both have answered, a Stop must end what may run still.
        cx.control().stop(stop(&id)).await.ok()?;
        if known {
            cx.exit_within(&id, 1).await?;
        }
    }
    Ok(())
}

async fn remove_during_stop(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = stubborn(cx).await?;
    let stopping = tokio::spawn(cx.control().stop(stop_in(dyno.id(), 25_000)));
    dyno.stdout.expect("term").await?;
    let answer = cx.control().remove(remove(dyno.id())).await;
    answer.refused(&[Code::FailedPrecondition, Code::Aborted])?;
    cx.check_runs(dyno.id()).await?;
    cx.control().stop(force(dyno.id())).await.ok()?;
    cx.control().remove(remove(dyno.id())).await.ok()?;
    check_eq("List", &cx.listed(dyno.id()).await?, &None)?;
    stopping.abort();
    Ok(())
}

async fn connections(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.hang().await?;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(cx.another_connection().await?);
    }
    for calls in &open {
        let info = calls.get_info(GetInfoRequest::default()).await;
        info.within(ONE_SECOND)?.ok()?;
        let wait = calls.wait(wait_for(dyno.id(), 1)).await;
        wait.within(ONE_SECOND)?.ok()?;
    }
    Ok(())
}
