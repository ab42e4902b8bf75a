//! Binds, where they are declared: directories of the host in a dyno.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use hsup_proto::driver::{Bind, Capability};
use tempfile::TempDir;
use tonic::Code;

use super::super::{
    calls::Problem,
    case::{Case, Need, NotPassed, case, check, check_eq},
    context::Context,
    dyno::Dyno,
    requests::code,
};

const BINDS: &str = "binds";
const NEEDS: &[Need] = &[Need::Has(Capability::Binds)];
const NEEDS_OUTPUT: &[Need] = &[Need::Has(Capability::Binds), Need::Output];

pub(crate) const CASES: &[Case] = &[
    case!(
        BINDS,
        "a dyno reads what is bound, and changes what it may",
        "§6 Bind: host_path, dyno_path, writable",
        writable,
        NEEDS_OUTPUT
    ),
    case!(
        BINDS,
        "a dyno does not change what it may only read",
        "§6 Bind: writable",
        read_only,
        NEEDS_OUTPUT
    ),
    case!(
        BINDS,
        "a path that is not there is refused",
        "§9: malformed field → INVALID_ARGUMENT; wrong state → FAILED_PRECONDITION; policy → \
         PERMISSION_DENIED",
        missing,
        NEEDS
    ),
    case!(
        BINDS,
        "a bind that is not offered is refused",
        "§6: CAPABILITY_BINDS; §9: malformed field → INVALID_ARGUMENT",
        not_offered,
        &[Need::Lacks(Capability::Binds)]
    ),
];

/// A directory of the host that holds one file, which says `from the host`.
fn host_dir() -> Result<TempDir, NotPassed> {
    let made = tempfile::Builder::new().prefix("hsup-bind-").tempdir();
    let prepared = made.and_then(|dir| {
        // Whatever user the dyno is.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777))?;
        put(&dir, "file", "from the host\n")?;
        Ok(dir)
    });
    prepared.map_err(|error| NotPassed::hindered("a directory to bind", &error))
}

#[expect(
    clippy::disallowed_methods,
    reason = "nobody reads the directory before its dyno is started"
)]
fn put(dir: &TempDir, name: &str, text: &str) -> std::io::Result<()> {
    fs::write(dir.path().join(name), text)
}

/// A dyno that runs `script` in the directory that `host_path` is bound to.
async fn dyno(
    cx: &Context,
    host_path: &str,
    writable: bool,
    script: &str,
) -> Result<Dyno, NotPassed> {
    let mut request = cx.request("").await?;
    let dyno_path = format!("/tmp/hsup-check-{}", request.dyno_id);
    request.argv = cx.argv(&format!("cd {dyno_path} || exit 3; {script}"), &[]);
    request.binds.push(Bind {
        host_path: host_path.to_owned(),
        dyno_path,
        writable,
    });
    cx.with_stdio(request, false)
}

/// Starts `dyno`; skips the case where the driver's own policy has no such binds.
async fn launch(cx: &Context, dyno: &mut Dyno) -> Result<(), NotPassed> {
    let started = cx.control().start(dyno.request.clone()).await;
    if let Err(Problem::Refused(status)) = &started.result
        && status.code() == Code::PermissionDenied
    {
        let reason = format!("the driver's policy: {}", status.message());
        return Err(NotPassed::Skipped(reason));
    }
    started.ok()?;
    // Asked again, it is as good as the first.
    cx.launch(dyno).await
}

async fn run(cx: &Context, host: &TempDir, writable: bool) -> Result<(), NotPassed> {
    let script = "read -r l <file && echo \"$l\"; { echo from the dyno >new; } 2>/dev/null; exit 0";
    let host_path = host.path().to_string_lossy();
    let mut dyno = dyno(cx, &host_path, writable, script).await?;
    launch(cx, &mut dyno).await?;
    cx.exits(dyno.id(), code(0)).await?;
    let printed = dyno.stdout.drain().await?;
    check_eq("stdout", &printed, &b"from the host\n".to_vec())?;
    Ok(())
}

async fn writable(cx: &Context) -> Result<(), NotPassed> {
    let host = host_dir()?;
    run(cx, &host, true).await?;
    let new = fs::read_to_string(host.path().join("new")).unwrap_or_default();
    check_eq(
        "the file that the dyno made",
        &new.as_str(),
        &"from the dyno\n",
    )?;
    Ok(())
}

async fn read_only(cx: &Context) -> Result<(), NotPassed> {
    let host = host_dir()?;
    run(cx, &host, false).await?;
    let made = host.path().join("new").exists();
    let on = "a directory that was bound without `writable`";
    check(!made, on, "as it was", "a file that the dyno made")?;
    Ok(())
}

async fn refused(cx: &Context, host_path: &str, codes: &[Code]) -> Result<(), NotPassed> {
    let dyno = dyno(cx, host_path, false, "exit 0").await?;
    let answer = cx.control().start(dyno.request.clone()).await;
    answer.refused(codes)?;
    check_eq(
        "List after the refused Start",
        &cx.listed(dyno.id()).await?,
        &None,
    )?;
    Ok(())
}

async fn missing(cx: &Context) -> Result<(), NotPassed> {
    let codes = [
        Code::InvalidArgument,
        Code::FailedPrecondition,
        Code::PermissionDenied,
    ];
    for path in ["/no/such/directory", "relative", ""] {
        refused(cx, path, &codes).await?;
    }
    Ok(())
}

async fn not_offered(cx: &Context) -> Result<(), NotPassed> {
    let host = host_dir()?;
    let host_path = host.path().to_string_lossy();
    refused(cx, &host_path, &[Code::InvalidArgument]).await
}
