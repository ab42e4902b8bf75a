//! `hsup-chaos`: hsup, its driver and their surroundings, under kills, hangs, faults and full disks.
//!
//! Steps are drawn from a seed (`steps.rs`) and carried out (`scene.rs`, `deeds.rs`) on the real
//! programs (`world.rs`). After each, all must be well again (`looks.rs`, `books.rs`): nothing is waited for but that.
//!
//! Ends with 0 when all went well, and with 1 and the seed when it did not.

mod books;
mod deeds;
mod interrupt;
mod looks;
mod machine;
mod scene;
mod steps;
mod world;

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use clap::Parser;
use nix::unistd::Uid;

use self::{
    machine::Clock,
    scene::Scene,
    steps::{Means, Step, Steps},
    world::{Kind, World},
};

/// So many steps are told of when one has gone wrong.
const TOLD: usize = 10;

/// Has everything go wrong that can, and looks whether hsup gets over it
///
/// It runs the programs beside it: build the workspace first. As root it has a small disk, which
/// is filled now and then.
#[derive(Debug, Parser)]
#[command(version, name = "hsup-chaos")]
struct Args {
    /// So many steps
    #[arg(long, value_name = "N", default_value_t = 100)]
    steps: u32,

    /// The same steps for the same seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// The driver behind the one that plants faults
    #[arg(long, value_enum, default_value_t = Kind::Durable)]
    driver: Kind,

    /// Have the clock of this machine jump, too, if that is its name: it is everybody's
    #[arg(long, value_name = "HOSTNAME")]
    clock: Option<String>,

    /// Print each step before it is carried out
    #[arg(long)]
    verbose: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    interrupt::listen()?;
    let has_disk = Uid::effective().is_root();
    let mut out = io::stdout();
    if !has_disk {
        writeln!(
            out,
            "not root: no disk is filled, and no descriptors are counted"
        )?;
    }
    let clock = args.clock.as_deref().map(Clock::of).transpose()?;
    let means = Means {
        disk: has_disk,
        durable: args.driver == Kind::Durable,
        clock: clock.is_some(),
    };
    let mut scene = Scene::begin(World::new(args.driver, has_disk, clock)?)?;
    let mut steps = Steps::new(args.seed, means);
    let (mut last, mut done) = (VecDeque::new(), BTreeMap::<_, u32>::new());
    for number in 1..=args.steps {
        let step = steps.draw();
        if args.verbose {
            writeln!(out, "{number}: {step:?}")?;
        }
        let carried_out = scene.carry_out(&step);
        *done.entry(kind_of(&step)).or_default() += 1;
        last.push_back((number, step));
        if last.len() > TOLD {
            last.pop_front();
        }
        if let Err(error) = carried_out {
            writeln!(out, "{}", scene.world.last_words())?;
            for (number, step) in last {
                writeln!(out, "{number}: {step:?}")?;
            }
            writeln!(out, "{}", scene.books.counts())?;
            writeln!(out, "step {number}: {error:#}")?;
            writeln!(out, "{}", again(&args))?;
            return Ok(ExitCode::FAILURE);
        }
    }
    let counts = scene.books.counts();
    if let Err(error) = scene.world.close() {
        writeln!(out, "at the end: {error:#}\n{}", again(&args))?;
        return Ok(ExitCode::FAILURE);
    }
    writeln!(out, "{} steps, seed {}: {done:?}", args.steps, args.seed)?;
    writeln!(out, "{counts}")?;
    Ok(ExitCode::SUCCESS)
}

/// How to have the same steps again.
fn again(args: &Args) -> String {
    let kind = match args.driver {
        Kind::Simple => "simple",
        Kind::Durable => "durable",
    };
    let Args { seed, steps, .. } = args;
    let clock = args.clock.as_ref();
    let clock = clock.map_or_else(String::new, |name| format!(" --clock {name}"));
    format!("again: hsup-chaos --driver {kind} --seed {seed} --steps {steps}{clock}")
}

const fn kind_of(step: &Step) -> &'static str {
    match step {
        Step::Do(_) => "deeds",
        Step::BadRelease { .. } => "bad releases",
        Step::StopAndStart { .. } => "stops",
        Step::Kill { .. } => "kills",
        Step::Upgrade { .. } => "upgrades",
        Step::Hang { .. } => "hangs",
        Step::End { .. } => "ends",
        Step::Fault { .. } => "faults",
        Step::FullDisk { .. } => "full disks",
        Step::Outage { .. } => "outages",
        Step::Clock { .. } => "clock jumps",
    }
}
