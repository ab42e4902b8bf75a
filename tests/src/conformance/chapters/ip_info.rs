//! `IPInfo`: where a dyno listens.

use std::{net::IpAddr, time::Duration};

use hsup_proto::driver::{IpInfoRequest, IpInfoResponse};
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::super::{
    calls::Problem,
    case::{Case, Failure, NotPassed, case, check, check_eq},
    context::{Context, ONE_SECOND},
};

const IP_INFO: &str = "ip info";

pub(crate) const CASES: &[Case] = &[
    case!(
        IP_INFO,
        "a running dyno has an address, and its PORT",
        "§6 IPInfoResponse: ip, port; §9: UNAVAILABLE while the address is not assigned yet",
        running
    ),
    case!(
        IP_INFO,
        "an exited dyno has none",
        "§9: IPInfo after exit → FAILED_PRECONDITION",
        exited
    ),
    case!(
        IP_INFO,
        "an unknown dyno is NOT_FOUND",
        "§9: no such dyno → NOT_FOUND",
        unknown
    ),
];

async fn running(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("read _").await?;
    let info = assigned(cx, dyno.id()).await?;
    let on = format!("IPInfo of {}", dyno.id());
    let parsed = info.ip.parse::<IpAddr>();
    check(parsed.is_ok(), &on, "an IP address", &info.ip)?;
    check_eq(on, &info.port, &5000)?;
    Ok(())
}

/// The address, once the backend has given one.
async fn assigned(cx: &Context, id: &str) -> Result<IpInfoResponse, Failure> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let dyno_id = id.to_owned();
        let answer = cx.control().ip_info(IpInfoRequest { dyno_id }).await;
        let answer = answer.within(ONE_SECOND)?;
        match &answer.result {
            Err(Problem::Refused(status))
                if status.code() == Code::Unavailable && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(100)).await;
            }
            _ => return answer.ok(),
        }
    }
}

async fn exited(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 0").await?;
    cx.exit(dyno.id()).await?;
    let dyno_id = dyno.id().to_owned();
    let answer = cx.control().ip_info(IpInfoRequest { dyno_id }).await;
    answer.refused(&[Code::FailedPrecondition])?;
    Ok(())
}

async fn unknown(cx: &Context) -> Result<(), NotPassed> {
    let dyno_id = cx.fresh_id();
    let answer = cx.control().ip_info(IpInfoRequest { dyno_id }).await;
    answer.within(ONE_SECOND)?.refused(&[Code::NotFound])?;
    Ok(())
}
