//! Limits, where they are declared: memory, processor time, processes.

use std::time::Duration;

use hsup_proto::driver::{Capability, Limits, StatsRequest};
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::{
    super::{
        case::{Case, Need, NotPassed, case, check, check_eq},
        context::Context,
        dyno::Dyno,
        process::marked,
        requests::{ONE_SECOND, signal, stop},
    },
    stop::DYNO_MARK,
};

const LIMITS: &str = "limits";
const NEEDS: &[Need] = &[Need::Has(Capability::Limits)];
const NEEDS_OUTPUT: &[Need] = &[Need::Has(Capability::Limits), Need::Output];

pub(crate) const CASES: &[Case] = &[
    case!(
        LIMITS,
        "a dyno that needs more memory than its limit is OOM killed",
        "§13: OOM if LIMITS; §6 ExitStatus: oom_killed",
        memory,
        NEEDS
    ),
    case!(
        LIMITS,
        "a dyno gets no more processor time than its limit",
        "§6 Limits: cpu_millis",
        processor,
        NEEDS_OUTPUT
    ),
    case!(
        LIMITS,
        "a dyno has no more processes than its limit",
        "§6 Limits: pids",
        processes,
        NEEDS_OUTPUT
    ),
    case!(
        LIMITS,
        "a limit that is not offered is refused",
        "§6: CAPABILITY_LIMITS; §9: malformed field → INVALID_ARGUMENT",
        not_offered,
        &[Need::Lacks(Capability::Limits)]
    ),
];

/// A dyno that runs `script` within `limits`.
async fn limited(cx: &Context, script: &str, limits: Limits) -> Result<Dyno, NotPassed> {
    let mut request = cx.request(script).await?;
    let id = request.dyno_id.clone();
    request.env.insert(DYNO_MARK.to_owned(), id);
    request.limits = Some(limits);
    cx.with_stdio(request, true)
}

async fn memory(cx: &Context) -> Result<(), NotPassed> {
    let limits = Limits {
        memory_bytes: 64 << 20,
        ..Limits::default()
    };
    let script = "x=xxxxxxxx; while :; do x=$x$x; done";
    let mut dyno = limited(cx, script, limits).await?;
    cx.launch(&mut dyno).await?;
    let status = cx.exit(dyno.id()).await?;
    let on = format!("Wait of {}", dyno.id());
    check_eq(&on, &status.how, &Some(signal("SIGKILL")))?;
    check_eq(on, &status.oom_killed, &true)?;
    Ok(())
}

/// How long the processor is kept busy.
const BUSY: Duration = Duration::from_secs(2);
/// A twentieth of one processor: little enough to tell from what a busy machine gives.
const MILLIS: u32 = 50;

async fn processor(cx: &Context) -> Result<(), NotPassed> {
    let limits = Limits {
        cpu_millis: MILLIS,
        ..Limits::default()
    };
    let script = "trap 'times; exit 0' TERM; echo ready; while :; do :; done";
    let mut dyno = limited(cx, script, limits).await?;
    let begun = Instant::now();
    cx.launch(&mut dyno).await?;
    dyno.stdout.expect("ready").await?;
    sleep(BUSY).await;
    cx.control().stop(stop(dyno.id())).await.ok()?;
    let printed = dyno.stdout.line().await?;
    let on = format!("the processor time of {}", dyno.id());
    let Some(used) = seconds(&printed) else {
        let reason = format!("the shell's `times` prints {printed:?}");
        return Err(NotPassed::Skipped(reason));
    };
    // A limit is enforced by the tenth of a second or so: it may begin with one for nothing.
    let allowed = begun.elapsed().as_secs_f64() * f64::from(MILLIS) / 1000.0 * 1.5 + 0.1;
    check(
        used <= allowed,
        on,
        format_args!(
            "no more than {allowed:.2} s in {:.1} s",
            begun.elapsed().as_secs_f64()
        ),
        format_args!("{used:.2} s"),
    )?;
    Ok(())
}

/// The sum of what `times` prints for the shell itself: `0m0.20s 0m0.01s`.
fn seconds(line: &str) -> Option<f64> {
    line.split_whitespace()
        .map(|time| {
            let (minutes, seconds) = time.strip_suffix('s')?.split_once('m')?;
            let seconds: f64 = seconds.replace(',', ".").parse().ok()?;
            Some(minutes.parse::<f64>().ok()? * 60.0 + seconds)
        })
        .sum()
}

/// How many processes a dyno may have, and how many it tries to have.
const PIDS: u32 = 16;
const WANTED: u32 = 48;

async fn processes(cx: &Context) -> Result<(), NotPassed> {
    let limits = Limits {
        pids: PIDS,
        ..Limits::default()
    };
    let script = format!(
        "echo ready; i=0; while [ $i -lt {WANTED} ]; do \
         ( {} ) & i=$((i+1)); done; echo all; {}",
        cx.hold_in_background(),
        cx.hold()
    );
    let mut dyno = limited(cx, &script, limits).await?;
    cx.launch(&mut dyno).await?;
    dyno.stdout.expect("ready").await?;
    // A shell that may not fork gives up, at once or after a while; one that may says `all`.
    drop(dyno.stdout.line().await);
    // Whoever enforces the limit by looking may need a moment.
    let deadline = Instant::now() + ONE_SECOND;
    loop {
        let Some(count) = count(cx, dyno.id()).await? else {
            // Or it was ended for it, and the driver is about to say so.
            if Instant::now() < deadline {
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            let reason = "the processes of a dyno cannot be seen from here".to_owned();
            return Err(NotPassed::Skipped(reason));
        };
        if count <= PIDS {
            return Ok(());
        }
        check(
            Instant::now() < deadline,
            format_args!("the processes of {}", dyno.id()),
            format_args!("no more than {PIDS}"),
            count,
        )?;
        sleep(Duration::from_millis(20)).await;
    }
}

/// How many processes the dyno called `id` has, if there is a way to tell.
async fn count(cx: &Context, id: &str) -> Result<Option<u32>, NotPassed> {
    let seen = u32::try_from(marked(DYNO_MARK, id).len()).unwrap_or(u32::MAX);
    if cx.has(Capability::Stats) {
        let dyno_id = id.to_owned();
        let stats = cx.control().stats(StatsRequest { dyno_id }).await;
        // It may have exited by now.
        if let Some(pids) = stats.result.ok().and_then(|stats| stats.pids) {
            return Ok(Some(pids.max(seen)));
        }
    }
    let exited = cx
        .listed(id)
        .await?
        .is_some_and(|dyno| dyno.status.is_some());
    Ok((exited || seen > 0).then_some(seen))
}

async fn not_offered(cx: &Context) -> Result<(), NotPassed> {
    let limits = Limits {
        memory_bytes: 1 << 30,
        ..Limits::default()
    };
    let dyno = limited(cx, "exit 0", limits).await?;
    let answer = cx.control().start(dyno.request.clone()).await;
    answer.refused(&[Code::InvalidArgument])?;
    check_eq(
        "List after the refused Start",
        &cx.listed(dyno.id()).await?,
        &None,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_times_prints_is_read() {
        assert_eq!(seconds("0m0.200s 0m0.050s"), Some(0.25));
        assert_eq!(seconds("1m0.00s 0m1.50s"), Some(61.5));
        assert_eq!(seconds("what"), None);
    }
}
