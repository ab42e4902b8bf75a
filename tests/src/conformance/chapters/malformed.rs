//! Messages that are none, or too large: the caller's mistake, and nobody else's harm.
//!
//! Many gRPC libraries answer these before the driver is asked, with a code of their own that
//! a driver's author cannot change. Such an answer is reported as skipped.

use hsup_proto::driver::{AttachResponse, Capability, StartRequest, StartResponse, StopResponse};
use tonic::{Code, Status};

use super::super::{
    calls::code_name,
    case::{Case, Failure, Need, NotPassed, case, check, check_eq},
    context::Context,
    raw::{self, NoText, WrongType},
};

const MALFORMED: &str = "malformed";

const STOP: &str = "/hsup.driver.v1.DynoDriver/Stop";
const START: &str = "/hsup.driver.v1.DynoDriver/Start";
const ATTACH: &str = "/hsup.driver.v1.DynoDriver/Attach";

pub(crate) const CASES: &[Case] = &[
    case!(
        MALFORMED,
        "a Stop that cannot be decoded is INVALID_ARGUMENT",
        "§9: malformed field → INVALID_ARGUMENT",
        stop
    ),
    case!(
        MALFORMED,
        "a Start that cannot be decoded is INVALID_ARGUMENT",
        "§9: malformed field → INVALID_ARGUMENT, no state changed",
        start
    ),
    case!(
        MALFORMED,
        "an Attach that cannot be decoded is INVALID_ARGUMENT",
        "§9: malformed field → INVALID_ARGUMENT",
        attach,
        &[Need::Has(Capability::Attach)]
    ),
    case!(
        MALFORMED,
        "a Start of more than 4 MiB is INVALID_ARGUMENT, and the limit is told",
        "§12 R9: cap message size (4 MiB); §9: INVALID_ARGUMENT, no state changed",
        too_large
    ),
];

/// Fails unless the message was refused as it should be and the driver goes on.
async fn refused<T: std::fmt::Debug>(
    cx: &Context,
    on: &str,
    answer: Result<T, Status>,
    by_library: &[Code],
) -> Result<Status, NotPassed> {
    let observed = match answer {
        Err(status) if status.code() == Code::InvalidArgument => {
            let list = cx.control().list(cx.own()).await.ok()?;
            check_eq("List after it", &list.dynos, &Vec::new())?;
            return Ok(status);
        }
        Err(status) if by_library.contains(&status.code()) => {
            let code = code_name(status.code());
            return Err(NotPassed::Skipped(format!(
                "the gRPC library answered {code} before the driver was asked"
            )));
        }
        other => format!("{other:?}"),
    };
    Err(NotPassed::Failed(Failure {
        on: on.to_owned(),
        expected: code_name(Code::InvalidArgument).to_owned(),
        observed,
    }))
}

async fn stop(cx: &Context) -> Result<(), NotPassed> {
    let message = WrongType { dyno_id: 7 };
    let answer: Result<StopResponse, _> =
        raw::unary(&cx.driver.socket, "localhost", STOP, message).await;
    refused(
        cx,
        "Stop with a number as dyno_id",
        answer,
        &[Code::Internal],
    )
    .await?;
    Ok(())
}

async fn start(cx: &Context) -> Result<(), NotPassed> {
    let message = NoText {
        dyno_id: vec![0xff, 0xfe],
    };
    let answer: Result<StartResponse, _> =
        raw::unary(&cx.driver.socket, "localhost", START, message).await;
    refused(
        cx,
        "Start with a dyno_id that is no text",
        answer,
        &[Code::Internal],
    )
    .await?;
    Ok(())
}

async fn attach(cx: &Context) -> Result<(), NotPassed> {
    let message = WrongType { dyno_id: 7 };
    let answer: Result<AttachResponse, _> =
        raw::unary(&cx.driver.socket, "localhost", ATTACH, message).await;
    refused(
        cx,
        "Attach with a number as dyno_id",
        answer,
        &[Code::Internal],
    )
    .await?;
    Ok(())
}

async fn too_large(cx: &Context) -> Result<(), NotPassed> {
    let request = StartRequest {
        argv: vec!["x".repeat(5 << 20)],
        ..cx.request("exit 0").await?
    };
    let answer: Result<StartResponse, _> =
        raw::unary(&cx.driver.socket, "localhost", START, request).await;
    let library = [Code::ResourceExhausted, Code::OutOfRange];
    let on = "Start of 5 MiB";
    let status = refused(cx, on, answer, &library).await?;
    let message = status.message();
    let tells = ["4194304", "4 MiB"]
        .iter()
        .any(|limit| message.contains(limit));
    check(tells, on, "a message that tells the limit", message)?;
    Ok(())
}
