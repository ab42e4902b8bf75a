//! Who the driver is, and how it answers those it does not know.

use std::collections::BTreeSet;

use hsup_proto::driver::{
    AttachRequest, Capability, Durability, GetInfoRequest, GetInfoResponse, LogsRequest,
    SignalRequest, StatsRequest, attach_request,
};
use tonic::{Code, Status};

use super::super::{
    calls::{Answer, Problem},
    case::{Case, Failure, Need, NotPassed, case, check, check_eq},
    context::Context,
    raw::{self, LaterGetInfoRequest},
    requests::ONE_SECOND,
};

const IDENTITY: &str = "identity";

pub(crate) const CASES: &[Case] = &[
    case!(
        IDENTITY,
        "GetInfo answers within 1 s",
        "§8 GetInfo: pure, answers within 1 s",
        quick
    ),
    case!(
        IDENTITY,
        "name, version and instance_id are there",
        "§6 GetInfoResponse: name, version, instance_id",
        complete
    ),
    case!(
        IDENTITY,
        "every answer is the same, on every connection",
        "§10: capabilities and instance_id are fixed for the life of a driver process",
        stable
    ),
    case!(
        IDENTITY,
        "no capability is declared twice",
        "§6: capabilities are a set",
        distinct
    ),
    case!(
        IDENTITY,
        "output can be had: STDIO_FIFO or LOGS",
        "§11: a driver MUST have one of the two",
        has_output
    ),
    case!(
        IDENTITY,
        "durability is declared",
        "§6: durability is declared, so that exactly what is claimed is tested",
        durability
    ),
    case!(
        IDENTITY,
        "any :authority is served",
        "§0: servers MUST ignore :authority",
        authority
    ),
    case!(
        IDENTITY,
        "a field added later is ignored",
        "§10: an old driver ignores a new request field",
        later_field
    ),
    case!(
        IDENTITY,
        "an unknown method is UNIMPLEMENTED",
        "§10: the supervisor tries v2 then v1; UNIMPLEMENTED tells",
        unknown_method
    ),
    case!(
        IDENTITY,
        "Signal is there if and only if declared",
        "§10: declared ⇔ not UNIMPLEMENTED",
        signal_declared
    ),
    case!(
        IDENTITY,
        "Stats is there if and only if declared",
        "§10: declared ⇔ not UNIMPLEMENTED",
        stats_declared
    ),
    case!(
        IDENTITY,
        "Logs is there if and only if declared",
        "§10: declared ⇔ not UNIMPLEMENTED",
        logs_declared
    ),
    case!(
        IDENTITY,
        "Attach is there if and only if declared",
        "§10: declared ⇔ not UNIMPLEMENTED",
        attach_declared
    ),
    case!(
        IDENTITY,
        "the socket is served by the process that was started",
        "§7: the supervisor checks the peer of the socket",
        peer,
        &[Need::Exec]
    ),
];

const GET_INFO: &str = "/hsup.driver.v1.DynoDriver/GetInfo";

fn request() -> GetInfoRequest {
    GetInfoRequest {
        supervisor_version: "conformance".to_owned(),
    }
}

async fn quick(cx: &Context) -> Result<(), NotPassed> {
    for _ in 0..10 {
        let answer = cx.control().get_info(request()).await;
        answer.within(ONE_SECOND)?.ok()?;
    }
    Ok(())
}

async fn complete(cx: &Context) -> Result<(), NotPassed> {
    let info = cx.control().get_info(request()).await.ok()?;
    for (field, value) in [
        ("name", &info.name),
        ("version", &info.version),
        ("instance_id", &info.instance_id),
    ] {
        check(
            !value.is_empty(),
            "GetInfo",
            format_args!("a {field}"),
            "none",
        )?;
    }
    Ok(())
}

async fn stable(cx: &Context) -> Result<(), NotPassed> {
    let other = cx.another_connection().await?;
    for calls in [cx.control(), cx.waits(), &other] {
        let info = calls.get_info(request()).await.ok()?;
        check_eq("GetInfo", &info, &cx.driver.info)?;
    }
    Ok(())
}

async fn distinct(cx: &Context) -> Result<(), NotPassed> {
    let declared = &cx.driver.info.capabilities;
    let distinct: BTreeSet<_> = declared.iter().collect();
    check(
        distinct.len() == declared.len(),
        "GetInfo",
        "each capability once",
        format_args!("{declared:?}"),
    )?;
    Ok(())
}

async fn has_output(cx: &Context) -> Result<(), NotPassed> {
    let either = cx.has(Capability::StdioFifo) || cx.has(Capability::Logs);
    let expected = "CAPABILITY_STDIO_FIFO or CAPABILITY_LOGS";
    let declared = &cx.driver.info.capabilities;
    check(either, "GetInfo", expected, format_args!("{declared:?}"))?;
    Ok(())
}

async fn durability(cx: &Context) -> Result<(), NotPassed> {
    let declared = cx.driver.info.durability;
    check(
        declared != Durability::Unspecified as i32,
        "GetInfo",
        "a durability",
        "DURABILITY_UNSPECIFIED",
    )?;
    Ok(())
}

async fn authority(cx: &Context) -> Result<(), NotPassed> {
    for authority in ["localhost", "driver.example:8080"] {
        let info: Result<GetInfoResponse, Status> =
            raw::unary(&cx.driver.socket, authority, GET_INFO, request()).await;
        let info = raw_answer(&format!("GetInfo with :authority {authority}"), info).ok()?;
        check_eq("GetInfo", &info.instance_id, &cx.driver.info.instance_id)?;
    }
    Ok(())
}

async fn later_field(cx: &Context) -> Result<(), NotPassed> {
    let later = LaterGetInfoRequest {
        supervisor_version: "conformance".to_owned(),
        added_later: "unknown to v1".to_owned(),
    };
    let info: Result<GetInfoResponse, Status> =
        raw::unary(&cx.driver.socket, "localhost", GET_INFO, later).await;
    raw_answer("GetInfo with an unknown field", info).ok()?;
    Ok(())
}

async fn unknown_method(cx: &Context) -> Result<(), NotPassed> {
    for path in [
        "/hsup.driver.v2.DynoDriver/GetInfo",
        "/hsup.driver.v1.DynoDriver/Teleport",
    ] {
        let answer: Result<GetInfoResponse, Status> =
            raw::unary(&cx.driver.socket, "localhost", path, request()).await;
        raw_answer(path, answer).refused(&[Code::Unimplemented])?;
    }
    Ok(())
}

fn raw_answer<T>(call: &str, result: Result<T, Status>) -> Answer<T> {
    Answer {
        call: call.to_owned(),
        result: result.map_err(Problem::Refused),
        took: std::time::Duration::ZERO,
    }
}

/// An optional call on a dyno that nobody has: not found if declared, else unimplemented.
fn expected(cx: &Context, capability: Capability) -> Code {
    if cx.has(capability) {
        Code::NotFound
    } else {
        Code::Unimplemented
    }
}

async fn signal_declared(cx: &Context) -> Result<(), NotPassed> {
    let request = SignalRequest {
        dyno_id: cx.fresh_id(),
        signal: "SIGUSR1".to_owned(),
    };
    let answer = cx.control().signal(request).await;
    answer.refused(&[expected(cx, Capability::Signal)])?;
    Ok(())
}

async fn stats_declared(cx: &Context) -> Result<(), NotPassed> {
    let request = StatsRequest {
        dyno_id: cx.fresh_id(),
    };
    let answer = cx.control().stats(request).await;
    answer.refused(&[expected(cx, Capability::Stats)])?;
    Ok(())
}

async fn logs_declared(cx: &Context) -> Result<(), NotPassed> {
    let request = LogsRequest {
        dyno_id: cx.fresh_id(),
        after_cursor: String::new(),
    };
    let begun = cx.waits().logs(request).await;
    let answer = cx.waits().first(begun).await;
    answer.refused(&[expected(cx, Capability::Logs)])?;
    Ok(())
}

async fn attach_declared(cx: &Context) -> Result<(), NotPassed> {
    let request = AttachRequest {
        event: Some(attach_request::Event::DynoId(cx.fresh_id())),
    };
    let begun = cx.waits().attach(tokio_stream::once(request)).await;
    let answer = cx.waits().first(begun).await;
    answer.refused(&[expected(cx, Capability::Attach)])?;
    Ok(())
}

async fn peer(cx: &Context) -> Result<(), NotPassed> {
    let Some(process) = &cx.driver.process else {
        return Err(NotPassed::Skipped("needs --exec".to_owned()));
    };
    let (started, serving) = (process.pid().as_raw(), cx.control().peer());
    if serving.is_some_and(|pid| process.session().contains(&pid)) {
        return Ok(());
    }
    Err(NotPassed::Failed(Failure {
        on: "the socket's peer credentials".to_owned(),
        expected: format!("a process of the session that {started} leads"),
        observed: format!("{serving:?}"),
    }))
}
