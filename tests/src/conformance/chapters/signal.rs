//! Signal, where it is declared.

use hsup_proto::driver::{Capability, SignalRequest};
use tonic::Code;

use super::super::{
    case::{Case, Need, NotPassed, case},
    context::Context,
    requests::signal,
};

const SIGNAL: &str = "signal";
const NEEDS: &[Need] = &[Need::Has(Capability::Signal)];
const NEEDS_OUTPUT: &[Need] = &[Need::Has(Capability::Signal), Need::Output];

pub(crate) const CASES: &[Case] = &[
    case!(
        SIGNAL,
        "a signal arrives, and the dyno goes on",
        "§6 Signal: signals by name",
        arrives,
        NEEDS_OUTPUT
    ),
    case!(
        SIGNAL,
        "a signal that ends the dyno is its exit status",
        "§6 ExitStatus: signal",
        ends,
        NEEDS_OUTPUT
    ),
    case!(
        SIGNAL,
        "a signal that does not exist is INVALID_ARGUMENT",
        "§9: malformed field → INVALID_ARGUMENT, no state changed",
        bad,
        NEEDS
    ),
    case!(
        SIGNAL,
        "an exited dyno is not signalled",
        "§9: wrong state → FAILED_PRECONDITION",
        exited,
        NEEDS
    ),
];

fn request(id: &str, signal: &str) -> SignalRequest {
    SignalRequest {
        dyno_id: id.to_owned(),
        signal: signal.to_owned(),
    }
}

async fn arrives(cx: &Context) -> Result<(), NotPassed> {
    let script = format!(
        "trap 'echo usr1' USR1; trap 'echo hup' HUP; echo ready; while :; do {}; done",
        cx.hold()
    );
    let mut dyno = cx.ready(&script).await?;
    for (name, said) in [("SIGUSR1", "usr1"), ("SIGHUP", "hup"), ("SIGUSR1", "usr1")] {
        let answer = cx.control().signal(request(dyno.id(), name)).await;
        answer.ok()?;
        dyno.stdout.expect(said).await?;
    }
    cx.check_runs(dyno.id()).await?;
    Ok(())
}

async fn ends(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.paused("").await?;
    let answer = cx.control().signal(request(dyno.id(), "SIGKILL")).await;
    answer.ok()?;
    cx.exits(dyno.id(), signal("SIGKILL")).await?;
    Ok(())
}

async fn bad(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.hang().await?;
    for name in ["", "SIGNOPE", "99"] {
        let answer = cx.control().signal(request(dyno.id(), name)).await;
        answer.refused(&[Code::InvalidArgument])?;
    }
    cx.check_runs(dyno.id()).await?;
    Ok(())
}

async fn exited(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 0").await?;
    cx.exit(dyno.id()).await?;
    let answer = cx.control().signal(request(dyno.id(), "SIGUSR1")).await;
    answer.refused(&[Code::FailedPrecondition])?;
    Ok(())
}
