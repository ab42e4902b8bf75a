//! Stats, where it is declared.

use hsup_proto::driver::{Capability, StatsRequest, StatsResponse};
use tonic::Code;

use super::{
    super::{
        calls::Problem,
        case::{Case, Failure, Need, NotPassed, case, check},
        context::Context,
        requests::ONE_SECOND,
    },
    start::now_ms,
};

const STATS: &str = "stats";
const NEEDS: &[Need] = &[Need::Has(Capability::Stats), Need::Output];
const NEEDS_FIFO: &[Need] = &[
    Need::Has(Capability::Stats),
    Need::Has(Capability::StdioFifo),
];

pub(crate) const CASES: &[Case] = &[
    case!(
        STATS,
        "what is measured is plausible, and of this moment",
        "§6 StatsResponse: at_unix_ms; absent means not measured, never 0",
        plausible,
        NEEDS
    ),
    case!(
        STATS,
        "cpu_ns grows with the work",
        "§6 StatsResponse: cpu_ns",
        grows,
        NEEDS_FIFO
    ),
    case!(
        STATS,
        "an exited dyno has last figures or the wrong state",
        "§9: wrong state → FAILED_PRECONDITION",
        exited,
        NEEDS
    ),
];

async fn stats(cx: &Context, id: &str) -> Result<StatsResponse, Failure> {
    let dyno_id = id.to_owned();
    let answer = cx.control().stats(StatsRequest { dyno_id }).await;
    answer.within(ONE_SECOND)?.ok()
}

async fn plausible(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.paused("").await?;
    let before = now_ms();
    let found = stats(cx, dyno.id()).await?;
    let on = format!("Stats of {}", dyno.id());
    check(
        (before - 1000..=now_ms() + 1000).contains(&found.at_unix_ms),
        &on,
        "at_unix_ms of this moment",
        found.at_unix_ms,
    )?;
    let measured = found.memory_bytes.is_some() || found.cpu_ns.is_some();
    let shown = format!("{found:?}");
    check(measured, &on, "something measured", &shown)?;
    let nonzero = found.memory_bytes != Some(0) && found.pids != Some(0) && found.pid != Some(0);
    check(nonzero, &on, "a process, and its memory", &shown)?;
    if let (Some(now), Some(peak)) = (found.memory_bytes, found.memory_peak_bytes) {
        check(peak >= now, on, "a peak no lower than the present", shown)?;
    }
    Ok(())
}

async fn grows(cx: &Context) -> Result<(), NotPassed> {
    // It says how far it is: on a slow processor all of it takes longer than a line may.
    let script = "echo ready; read _; for part in 1 2 3 4 5 6 7 8 9 10; do i=0; \
                  while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; done; read _";
    let mut dyno = cx.ready(script).await?;
    let before = stats(cx, dyno.id()).await?.cpu_ns;
    dyno.stdin.write(b"\n").await?;
    for _part in 0..10 {
        dyno.stdout.expect("done").await?;
    }
    let after = stats(cx, dyno.id()).await?.cpu_ns;
    let (Some(before), Some(after)) = (before, after) else {
        return Err(NotPassed::Skipped("cpu_ns is not measured".to_owned()));
    };
    check(
        after >= before + 1_000_000,
        format_args!("Stats of {}", dyno.id()),
        "at least 1 ms of processor time more",
        format_args!("{before} ns, then {after} ns"),
    )?;
    Ok(())
}

async fn exited(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 0").await?;
    cx.exit(dyno.id()).await?;
    let dyno_id = dyno.id().to_owned();
    let answer = cx.control().stats(StatsRequest { dyno_id }).await;
    if let Err(Problem::Refused(_)) = answer.result {
        answer.refused(&[Code::FailedPrecondition])?;
    } else {
        answer.ok()?;
    }
    Ok(())
}
