//! Start: what is refused, and that a refusal changes nothing.

use hsup_proto::driver::{Capability, StartRequest};
use tonic::Code;

use super::{
    super::{
        case::{Case, Need, NotPassed, case, check, check_eq},
        context::Context,
        requests::{code, env, remove, stop},
    },
    start::START,
};

pub(crate) const CASES: &[Case] = &[
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
        "a missing supervisor_id is INVALID_ARGUMENT",
        "§9: missing field → INVALID_ARGUMENT; §6 StartRequest: supervisor_id: who owns it",
        no_supervisor
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
        "a NUL byte in argv or env is INVALID_ARGUMENT",
        "§6: argv exec'd as is, env complete: no process can have one; §9: malformed field",
        nul_byte
    ),
    case!(
        START,
        "a name in env that is empty or holds = is INVALID_ARGUMENT",
        "§6: env complete: no process can have such a name; §9: malformed field",
        no_name
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
        &[Need::Has(Capability::StdioFifo)]
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
) -> Result<tonic::Status, NotPassed> {
    let id = request.dyno_id.clone();
    let dyno = cx.with_stdio(request, true)?;
    let answer = cx.control().start(dyno.request.clone()).await;
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

async fn no_supervisor(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 0").await?;
    request.supervisor_id.clear();
    refused(cx, request, &[Code::InvalidArgument]).await?;
    Ok(())
}

async fn long_id(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 6").await?;
    request.dyno_id = format!("{:0<63}", request.dyno_id);
    cx.clear_away(&request.dyno_id);
    let mut dyno = cx.with_stdio(request, true)?;
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
    let mut dyno = cx.with_stdio(good, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(8)).await?;
    Ok(())
}

async fn nul_byte(cx: &Context) -> Result<(), NotPassed> {
    let spoil: [fn(&mut StartRequest); 3] = [
        |request| request.argv.push("a\0b".to_owned()),
        |request| request.env.extend(env(&[("A\0B", "1")])),
        |request| request.env.extend(env(&[("A", "a\0b")])),
    ];
    for spoil in spoil {
        let mut request = cx.request("exit 0").await?;
        spoil(&mut request);
        refused(cx, request, &[Code::InvalidArgument]).await?;
    }
    Ok(())
}

async fn no_name(cx: &Context) -> Result<(), NotPassed> {
    for name in ["", "=", "A=B", "=A"] {
        let mut request = cx.request("exit 0").await?;
        request.env.extend(env(&[(name, "1")]));
        refused(cx, request, &[Code::InvalidArgument]).await?;
    }
    Ok(())
}

async fn endless_names(cx: &Context) -> Result<(), NotPassed> {
    for _ in 0..5 {
        let endless = "x".repeat(1 << 20);
        let mut request = cx.request(cx.hold()).await?;
        request.app.clone_from(&endless);
        request.process_type = endless;
        let dyno = cx.with_stdio(request, true)?;
        let answer = cx.control().start(dyno.request.clone()).await;
        if answer.result.is_err() {
            answer.refused(&[Code::InvalidArgument])?;
        }
    }
    cx.control().list(cx.own()).await.ok()?;
    Ok(())
}

async fn bad_io_dir(cx: &Context) -> Result<(), NotPassed> {
    let empty = tempfile::tempdir();
    let empty = empty.map_err(|error| NotPassed::hindered("an empty directory", &error))?;
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
    let dyno = cx.dyno(cx.hold()).await?;
    cx.control().stop(stop(dyno.id())).await.ok()?;
    cx.control().remove(remove(dyno.id())).await.ok()?;
    let late = cx.control().start(dyno.request.clone()).await;
    late.refused(&LATE)?;
    Ok(())
}
