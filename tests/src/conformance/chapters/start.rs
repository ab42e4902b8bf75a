//! Start: what was asked for, exactly once, or a refusal that changes nothing.

use hsup_proto::driver::{StartRequest, State};
use tokio::{
    task::JoinSet,
    time::{Duration, timeout},
};
use tonic::Code;

use super::super::{
    case::{Case, Failure, Need, NotPassed, case, check, check_eq},
    context::Context,
    dyno::Dyno,
    requests::{code, env, stop},
};

pub(super) const START: &str = "start";

pub(crate) const CASES: &[Case] = &[
    case!(
        START,
        "a started dyno runs, and List says what it is",
        "§8 Start: returns once the first process exists; §7: List includes every accepted Start",
        runs
    ),
    case!(
        START,
        "ten times the same request is one dyno",
        "§8 Start: same request → OK",
        repeated,
        &[Need::Output]
    ),
    case!(
        START,
        "ten at once are one dyno",
        "§8 Start: in flight → join",
        joined,
        &[Need::Output]
    ),
    case!(
        START,
        "the same request after the exit is OK and starts nothing",
        "§8 Start: same request → OK (even when it has exited since)",
        after_exit,
        &[Need::Output]
    ),
    case!(
        START,
        "the order of env does not make another request",
        "§8 Start: a repeat is compared by a canonical hash of the request, maps sorted",
        canonical
    ),
    case!(
        START,
        "the same id with another request is ALREADY_EXISTS",
        "§8 Start: same id, other request → ALREADY_EXISTS",
        other_request
    ),
    case!(
        START,
        "the same id with another request is ALREADY_EXISTS after the exit, too",
        "§8 Start: same id, other request → ALREADY_EXISTS",
        other_request_after_exit
    ),
    case!(
        START,
        "a caller that hangs up rolls nothing back",
        "§8 all: cancellation never rolls work back; the same call again with the same id",
        hang_up,
        &[Need::Output]
    ),
];

async fn runs(cx: &Context) -> Result<(), NotPassed> {
    let before = now_ms();
    let dyno = cx.hang().await?;
    let listed = cx.listed(dyno.id()).await?;
    let on = format!("List of {}", dyno.id());
    let Some(listed) = listed else {
        return Err(NotPassed::Failed(Failure {
            on,
            expected: "the dyno".to_owned(),
            observed: "no such dyno".to_owned(),
        }));
    };
    check_eq(&on, &listed.state(), &State::Running)?;
    check_eq(&on, &listed.status, &None)?;
    check_eq(&on, &listed.supervisor_id, &dyno.request.supervisor_id)?;
    check_eq(&on, &listed.app, &dyno.request.app)?;
    check_eq(&on, &listed.release, &dyno.request.release)?;
    check_eq(&on, &listed.process_type, &dyno.request.process_type)?;
    check_eq(&on, &listed.process_number, &dyno.request.process_number)?;
    let started = listed.started_at_unix_ms;
    check(
        (before - 1000..=now_ms() + 1000).contains(&started),
        on,
        "started_at_unix_ms of this moment",
        started,
    )?;
    Ok(())
}

/// The wall clock, which the driver's times are compared with.
pub(super) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

async fn repeated(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = announced(cx).await?;
    cx.launch(&mut dyno).await?;
    for _ in 0..10 {
        cx.control().start(dyno.request.clone()).await.ok()?;
    }
    once(cx, &mut dyno).await
}

/// A dyno that announces itself; a second process would announce itself, too.
async fn announced(cx: &Context) -> Result<Dyno, NotPassed> {
    cx.dyno(&format!("echo started; {}", cx.hold())).await
}

/// Has the dyno end, and fails unless it announced itself once.
async fn once(cx: &Context, dyno: &mut Dyno) -> Result<(), NotPassed> {
    dyno.stdout.expect("started").await?;
    cx.control().stop(stop(dyno.id())).await.ok()?;
    cx.exit(dyno.id()).await?;
    let more = dyno.stdout.drain().await?;
    check(
        more.is_empty(),
        format_args!("stdout of {}", dyno.id()),
        "one process that announces itself",
        format_args!("{:?} from another", String::from_utf8_lossy(&more)),
    )?;
    Ok(())
}

async fn joined(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = announced(cx).await?;
    let mut starts = JoinSet::new();
    for _ in 0..10 {
        starts.spawn(cx.control().start(dyno.request.clone()));
    }
    for answer in starts.join_all().await {
        answer.ok()?;
    }
    cx.launch(&mut dyno).await?;
    once(cx, &mut dyno).await
}

async fn after_exit(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.start("echo started; exit 42").await?;
    let first = cx.exit(dyno.id()).await?;
    for _ in 0..3 {
        cx.control().start(dyno.request.clone()).await.ok()?;
    }
    let second = cx.exit(dyno.id()).await?;
    check_eq(format_args!("Wait of {}", dyno.id()), &second, &first)?;
    once(cx, &mut dyno).await
}

async fn canonical(cx: &Context) -> Result<(), NotPassed> {
    // Maps have no order on the wire: many entries make it likely that two encodings differ.
    let mut dyno = cx.dyno(cx.hold()).await?;
    for n in 0..64 {
        dyno.request.env.insert(format!("VAR_{n}"), n.to_string());
    }
    cx.launch(&mut dyno).await?;
    cx.control().start(dyno.request.clone()).await.ok()?;
    Ok(())
}

/// Requests that differ from `request` in one field.
fn others(request: &StartRequest) -> Vec<(&'static str, StartRequest)> {
    let change = |change: fn(&mut StartRequest)| {
        let mut other = request.clone();
        change(&mut other);
        other
    };
    vec![
        ("argv", change(|r| r.argv.push("more".to_owned()))),
        ("env", change(|r| r.env.extend(env(&[("PORT", "5001")])))),
        ("release", change(|r| r.release += 1)),
        ("process_number", change(|r| r.process_number += 1)),
    ]
}

async fn refuse_others(cx: &Context, request: &StartRequest) -> Result<(), Failure> {
    for (field, other) in others(request) {
        let mut answer = cx.control().start(other).await;
        answer.call = format!("{} with another {field}", answer.call);
        answer.refused(&[Code::AlreadyExists])?;
    }
    Ok(())
}

async fn other_request(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.hang().await?;
    refuse_others(cx, &dyno.request).await?;
    cx.check_runs(dyno.id()).await?;
    Ok(())
}

async fn other_request_after_exit(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 5").await?;
    cx.exits(dyno.id(), code(5)).await?;
    refuse_others(cx, &dyno.request).await?;
    cx.exits(dyno.id(), code(5)).await?;
    Ok(())
}

async fn hang_up(cx: &Context) -> Result<(), NotPassed> {
    for patience in [0, 1, 3] {
        let mut dyno = announced(cx).await?;
        let mut client = cx.control().client();
        let broken_off = client.start(dyno.request.clone());
        // The answer may have come: then nothing was broken off, which is as good.
        drop(timeout(Duration::from_millis(patience), broken_off).await);
        cx.launch(&mut dyno).await?;
        once(cx, &mut dyno).await?;
    }
    Ok(())
}
