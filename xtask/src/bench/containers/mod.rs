//! Dynos in containers: the libcontainer driver against `docker run` and `runc run`.
//!
//! It needs root and the programs `docker`, `dockerd`, `runc` and `busybox` (packages docker.io,
//! runc and busybox-static), and is therefore run only when asked for by name. What a kernel
//! takes to move a process into a cgroup, one RCU grace period, is most of a start and no
//! program's doing; it differs from kernel to kernel and from minute to minute, so it is
//! measured beside everything else.

mod baselines;
mod builds;
pub(super) mod docker;
mod driver;
mod host;
mod memory;
mod rcu;
mod stack;
pub(super) mod swarm;

use std::{process::Command, thread, time::Duration};

use anyhow::{Result, ensure};
use nix::unistd::Uid;

use self::{
    baselines::{Docker, Runc},
    driver::{Dynos, Slug},
    host::Host,
};
use super::{
    clock::{self, Spread},
    report::{Row, say},
};

/// How many dynos start at once, and share what the driver takes up.
const TOGETHER: usize = 100;
/// How many are up when the machine is said to be full.
const MANY: usize = 1000;
/// How many Starts are on their way at once while it is filled.
const IN_FLIGHT: usize = 64;
const SMALL: usize = 1 << 20;
const LARGE: usize = 200 << 20;
/// How long the kernel has to clear away a dyno that has ended, before the next one is measured,
/// and once more after the grace period with which that is over. It does so on the processors
/// that the next one starts on, and a start that comes into it waits for two grace periods.
const PAUSE: Duration = Duration::from_millis(200);
/// How much slower what should be as fast may be found: the difference of two medians is seldom
/// less on a machine that does anything else.
const NOISE: f64 = 1.2;

/// Measures, each row so many times.
pub(super) fn measure(rounds: usize) -> Result<Vec<Row>> {
    ensure!(Uid::effective().is_root(), "containers need root");
    let mut rows = runs(rounds)?;
    rows.extend(starts(rounds)?);
    Ok(rows)
}

/// Whole programs, from the call to the exit status.
fn runs(rounds: usize) -> Result<Vec<Row>> {
    let host = Host::new()?;
    let docker = Docker::start(host.disk(), host.memory(), &host.stack())?;
    let runc = Runc::new(host.disk(), host.memory(), &host.stack(), "true")?;
    let driver = host.driver()?;
    let mut taken: [Vec<u64>; 3] = Default::default();
    // The first of each finds nothing in the page cache, and makes what all share.
    for round in 0..=rounds {
        let times = [
            time(&mut driver.hsup_run("true"))?,
            time(&mut docker.run("true"))?,
            time(&mut runc.run())?,
        ];
        if round > 0 {
            for (all, one) in taken.iter_mut().zip(times) {
                all.push(one);
            }
        }
    }
    let [hsup, docker, runc] = taken.map(Spread::of_nanoseconds);
    let (of_docker, of_runc) = (hsup.median / docker.median, hsup.median / runc.median);
    Ok(vec![
        Row {
            what: "`hsup run --driver-socket … true`, network and slug included; `docker run --rm IMAGE true`",
            hsup: show(hsup),
            baseline: show(docker),
            ratio: Some(of_docker),
            budget: "≤ 0.2 ×",
            met: Some(of_docker <= 0.2),
        },
        Row {
            what: "the same; `runc run` of the same root file system, no network",
            hsup: show(hsup),
            baseline: show(runc),
            ratio: Some(of_runc),
            budget: "≤ 1.3 ×",
            met: Some(of_runc <= 1.3),
        },
    ])
}

/// Starts, from the call to the first instruction.
fn starts(rounds: usize) -> Result<Vec<Row>> {
    let host = Host::new()?;
    let runc = Runc::new(host.disk(), host.memory(), &host.stack(), "true")?;
    let driver = host.driver()?;
    let mut dynos = Dynos::connect(&host, &driver)?;
    let small = dynos.build(&Slug::make(host.disk(), "small", SMALL)?)?;
    let large = dynos.build(&Slug::make(host.disk(), "large", LARGE)?)?;
    // The first dyno stays: with it the rules for all are there.
    dynos.together(&small, 1, 1)?;
    let mut grace = Vec::new();
    let (mut of_small, mut of_large, mut of_runc) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        of_small.push(rested(&mut grace, || dynos.one(&small))?);
        of_large.push(rested(&mut grace, || dynos.one(&large))?);
        of_runc.push(rested(&mut grace, || time(&mut runc.run()))?);
    }
    let [grace, of_small, of_large, of_runc] =
        [grace, of_small, of_large, of_runc].map(Spread::of_nanoseconds);
    dynos.end()?;

    say("measuring a hundred dynos");
    let mut all = Vec::new();
    let mut shares = Vec::new();
    for _ in 0..rounds.div_ceil(10) {
        all.push(dynos.together(&small, TOGETHER, TOGETHER)?);
        shares.push(memory::pss_kib(driver.pid())?);
        dynos.end()?;
    }
    let all = Spread::of_nanoseconds(all);
    shares.sort_unstable();
    let share = shares[shares.len() / 2].of_each(TOGETHER);

    say("measuring among a thousand dynos");
    dynos.together(&small, MANY, IN_FLIGHT)?;
    let (mut of_many, mut runc_of_many) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        of_many.push(rested(&mut Vec::new(), || dynos.one(&small))?);
        runc_of_many.push(rested(&mut Vec::new(), || time(&mut runc.run()))?);
    }
    dynos.end()?;
    let [of_many, runc_of_many] = [of_many, runc_of_many].map(Spread::of_nanoseconds);

    let above = of_small.median - grace.median;
    let of_size = of_large.median / of_small.median;
    // What grows with the dynos is to be the kernel's alone, which runc meets too.
    let more = of_many.median - of_small.median;
    let more_of_runc = runc_of_many.median - of_runc.median;
    let mebibytes = share.total / 1024.0;
    Ok(vec![
        Row {
            what: "Start to the first instruction; one RCU grace period",
            hsup: show(of_small),
            baseline: show(grace),
            ratio: None,
            budget: "≤ 12 ms more",
            met: Some(above <= 12.0),
        },
        Row {
            what: "Start to the first instruction, a slug of 200 MB; of 1 MB",
            hsup: show(of_large),
            baseline: show(of_small),
            ratio: Some(of_size),
            budget: "as fast",
            met: Some(of_size <= NOISE),
        },
        Row {
            what: "100 dynos started together, until the last one's first instruction",
            hsup: format!("{:.0} ms (best {:.0})", all.median, all.best),
            baseline: "–".to_owned(),
            ratio: None,
            budget: "≤ 1.2 s",
            met: Some(all.median <= 1200.0),
        },
        Row {
            what: "PSS a dyno of the driver, hsup-wait and hsup-init, with 100",
            hsup: format!(
                "{mebibytes:.2} MiB ({:.2} + {:.2} + {:.2})",
                share.driver / 1024.0,
                share.waits / 1024.0,
                share.inits / 1024.0
            ),
            baseline: "–".to_owned(),
            ratio: None,
            budget: "≤ 1.5 MiB",
            met: Some(mebibytes <= 1.5),
        },
        Row {
            what: "Start to the first instruction among 1,000 dynos, above that beside one; the same of `runc run`",
            hsup: format!("{:.1} ms, {more:+.1}", of_many.median),
            baseline: format!("{:.1} ms, {more_of_runc:+.1}", runc_of_many.median),
            ratio: None,
            budget: "no slower",
            met: Some(more <= more_of_runc.max(of_small.median * (NOISE - 1.0))),
        },
    ])
}

/// Measures on a machine that has nothing else to do, and the grace period before that.
fn rested(graces: &mut Vec<u64>, measure: impl FnOnce() -> Result<u64>) -> Result<u64> {
    thread::sleep(PAUSE);
    graces.push(rcu::grace_period()?);
    thread::sleep(PAUSE);
    measure()
}

fn show(spread: Spread) -> String {
    format!("{:.1} ms (best {:.1})", spread.median, spread.best)
}

fn time(command: &mut Command) -> Result<u64> {
    let begun = clock::now();
    let output = command.output()?;
    let taken = clock::now() - begun;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(taken)
}
