//! Start: what was asked for, exactly once, or a refusal that changes nothing.

use hsup_proto::driver::{Bind, Capability, Limits, StartRequest, State};
use tokio::{
    task::JoinSet,
    time::{Duration, timeout},
};
use tonic::Code;

use super::super::{
    case::{Case, Failure, Need, NotPassed, case, check, check_eq},
    context::{Context, code, env, remove, stop},
};

const START: &str = "start";
const FIFO: Need = Need::Has(Capability::StdioFifo);

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
        &[FIFO]
    ),
    case!(
        START,
        "ten at once are one dyno",
        "§8 Start: in flight → join",
        joined,
        &[FIFO]
    ),
    case!(
        START,
        "the same request after the exit is OK and starts nothing",
        "§8 Start: same request → OK (even when it has exited since)",
        after_exit,
        &[FIFO]
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
        &[FIFO]
    ),
    case!(
        START,
        "an empty argv is INVALID_ARGUMENT",
        "§9: missing field → INVALID_ARGUMENT, no state changed",
        empty_argv
    ),
    case!(
        START,
        "a bad dyno_id is INVALID_ARGUMENT",
        "§9: bad dyno_id → INVALID_ARGUMENT; [a-z0-9][a-z0-9-]{0,62}",
        bad_id
    ),
    case!(
        START,
        "a dyno_id of 63 bytes is good",
        "§6 StartRequest: [a-z0-9][a-z0-9-]{0,62}",
        long_id
    ),
    case!(
        START,
        "an unknown artifact is NOT_FOUND, and the message says so",
        "§9: artifact unknown → NOT_FOUND, message starts `artifact`",
        unknown_artifact
    ),
    case!(
        START,
        "a missing artifact is refused",
        "§9: missing field → INVALID_ARGUMENT, artifact unknown → NOT_FOUND",
        missing_artifact
    ),
    case!(
        START,
        "an unknown option is INVALID_ARGUMENT, and the id stays free",
        "§9: unknown option key → INVALID_ARGUMENT, no state changed",
        unknown_option
    ),
    case!(
        START,
        "limits are refused by a driver that has none",
        "§10 rule 2: the core MUST NOT send the field to a driver that lacks the capability; §9: INVALID_ARGUMENT",
        limits,
        &[Need::Lacks(Capability::Limits)]
    ),
    case!(
        START,
        "binds are refused by a driver that has none",
        "§10 rule 2: the core MUST NOT send the field to a driver that lacks the capability; §9: INVALID_ARGUMENT",
        binds,
        &[Need::Lacks(Capability::Binds)]
    ),
    case!(
        START,
        "names without an end do not get in the way of List",
        "§6 Dyno: small on purpose, so a List of thousands stays under 4 MiB",
        endless_names
    ),
    case!(
        START,
        "an io_dir without FIFOs is refused",
        "§9: malformed field → INVALID_ARGUMENT; path refused → PERMISSION_DENIED",
        bad_io_dir,
        &[FIFO]
    ),
    case!(
        START,
        "an id that was removed is refused",
        "§7: a driver refuses a late Start of an id that it has removed",
        removed
    ),
    case!(
        START,
        "an id that was removed before it came is refused",
        "§7: before `lost`: Stop, Remove, List once more; a late Start is refused",
        removed_before
    ),
];

async fn runs(cx: &Context) -> Result<(), NotPassed> {
    let before = now_ms();
    let dyno = cx.start("read _").await?;
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

/// Announces itself; a second process would announce itself, too.
const ANNOUNCE: &str = "echo started; read _";

async fn repeated(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.start(ANNOUNCE).await?;
    for _ in 0..10 {
        cx.control().start(dyno.request.clone()).await.ok()?;
    }
    once(cx, &mut dyno).await
}

/// Lets the dyno end, and fails unless it announced itself once.
async fn once(cx: &Context, dyno: &mut super::super::context::Dyno) -> Result<(), NotPassed> {
    dyno.stdout.expect("started").await?;
    dyno.stdin.close();
    cx.exit(dyno.id()).await?;
    let more = dyno.stdout.drain()?;
    check(
        more.is_empty(),
        format_args!("stdout of {}", dyno.id()),
        "one process that announces itself",
        format_args!("{:?} from another", String::from_utf8_lossy(&more)),
    )?;
    Ok(())
}

async fn joined(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.dyno(ANNOUNCE).await?;
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
    let mut dyno = cx.dyno("read _").await?;
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
    let dyno = cx.start("read _").await?;
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
        let mut dyno = cx.dyno(ANNOUNCE).await?;
        let mut client = cx.control().client();
        let broken_off = client.start(dyno.request.clone());
        // The answer may have come: then nothing was broken off, which is as good.
        drop(timeout(Duration::from_millis(patience), broken_off).await);
        cx.launch(&mut dyno).await?;
        once(cx, &mut dyno).await?;
    }
    Ok(())
}

async fn empty_argv(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("").await?;
    request.argv.clear();
    refused(cx, request, &[Code::InvalidArgument]).await?;
    Ok(())
}

/// Fails unless Start is refused with one of `codes` and List knows nothing of it.
async fn refused(
    cx: &Context,
    request: StartRequest,
    codes: &[Code],
) -> Result<tonic::Status, Failure> {
    let id = request.dyno_id.clone();
    let dyno = cx.with_fifos(request, true)?;
    let answer = cx.control().start(dyno.request).await;
    if answer.result.is_ok() {
        cx.clear_away(&id);
    }
    let status = answer.refused(codes)?;
    let listed = cx.listed(&id).await?;
    check(
        listed.is_none(),
        format_args!("List after the refused Start of {id:?}"),
        "no state changed",
        format_args!("{listed:?}"),
    )?;
    Ok(status)
}

async fn bad_id(cx: &Context) -> Result<(), NotPassed> {
    let (long, longer) = ("a".repeat(64), "a".repeat(255));
    let bad = [
        "", "-a", "A", "aB", "a_b", "a.b", "a b", "a\n", "..", "a/b", "../a", "\u{e9}", &long,
        &longer,
    ];
    for id in bad {
        let mut request = cx.request("exit 0").await?;
        id.clone_into(&mut request.dyno_id);
        refused(cx, request, &[Code::InvalidArgument]).await?;
    }
    Ok(())
}

async fn long_id(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 6").await?;
    request.dyno_id = format!("{:0<63}", request.dyno_id);
    cx.clear_away(&request.dyno_id);
    let mut dyno = cx.with_fifos(request, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(6)).await?;
    Ok(())
}

async fn unknown_artifact(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 0").await?;
    request.artifact = format!("no-such-artifact-{}", request.dyno_id);
    let on = format!("Start of {}", request.dyno_id);
    let status = refused(cx, request, &[Code::NotFound]).await?;
    let message = status.message();
    let expected = "a message that starts with `artifact`";
    check(message.starts_with("artifact"), on, expected, message)?;
    Ok(())
}

async fn missing_artifact(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 0").await?;
    request.artifact.clear();
    refused(cx, request, &[Code::InvalidArgument, Code::NotFound]).await?;
    Ok(())
}

async fn unknown_option(cx: &Context) -> Result<(), NotPassed> {
    let good = cx.request("exit 8").await?;
    let mut bad = good.clone();
    bad.options = env(&[("no-such-option-of-any-driver", "1")]);
    refused(cx, bad, &[Code::InvalidArgument]).await?;
    let mut dyno = cx.with_fifos(good, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(8)).await?;
    Ok(())
}

async fn limits(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 0").await?;
    request.limits = Some(Limits {
        memory_bytes: 1 << 30,
        ..Limits::default()
    });
    refused(cx, request, &[Code::InvalidArgument]).await?;
    Ok(())
}

async fn binds(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 0").await?;
    request.binds = vec![Bind {
        host_path: "/tmp".to_owned(),
        dyno_path: "/tmp".to_owned(),
        writable: false,
    }];
    refused(cx, request, &[Code::InvalidArgument]).await?;
    Ok(())
}

async fn endless_names(cx: &Context) -> Result<(), NotPassed> {
    for _ in 0..5 {
        let endless = "x".repeat(1 << 20);
        let mut request = cx.request("read _").await?;
        request.app.clone_from(&endless);
        request.process_type = endless;
        let dyno = cx.with_fifos(request, true)?;
        let answer = cx.control().start(dyno.request).await;
        if answer.result.is_err() {
            answer.refused(&[Code::InvalidArgument])?;
        }
    }
    cx.control().list(cx.own()).await.ok()?;
    Ok(())
}

async fn bad_io_dir(cx: &Context) -> Result<(), NotPassed> {
    let empty = tempfile::tempdir().map_err(|error| Failure {
        on: "the suite itself".to_owned(),
        expected: "an empty directory".to_owned(),
        observed: error.to_string(),
    })?;
    let codes = [Code::InvalidArgument, Code::PermissionDenied];
    for io_dir in [
        "/no/such/directory",
        "relative/directory",
        &empty.path().to_string_lossy(),
    ] {
        let mut request = cx.request("exit 0").await?;
        io_dir.clone_into(&mut request.io_dir);
        let id = request.dyno_id.clone();
        let mut answer = cx.control().start(request).await;
        answer.call = format!("{} with io_dir {io_dir}", answer.call);
        answer.refused(&codes)?;
        check_eq(
            "List after the refused Start",
            &cx.listed(&id).await?,
            &None,
        )?;
    }
    Ok(())
}

/// A removed id is as good as used, or in the wrong state for a Start.
const LATE: [Code; 2] = [Code::AlreadyExists, Code::FailedPrecondition];

async fn removed(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 0").await?;
    cx.exits(dyno.id(), code(0)).await?;
    cx.control().remove(remove(dyno.id())).await.ok()?;
    let late = cx.control().start(dyno.request.clone()).await;
    late.refused(&LATE)?;
    check_eq(
        "List after the refused Start",
        &cx.listed(dyno.id()).await?,
        &None,
    )?;
    Ok(())
}

async fn removed_before(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.dyno("read _").await?;
    cx.control().stop(stop(dyno.id())).await.ok()?;
    cx.control().remove(remove(dyno.id())).await.ok()?;
    let late = cx.control().start(dyno.request.clone()).await;
    late.refused(&LATE)?;
    Ok(())
}
