//! Runs the cases, each with a deadline and a clean-up of its own: one after the other, and
//! those that do little but wait beside them.

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow::{self, Break, Continue},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hsup_proto::driver::Durability;
use nix::sys::signal::Signal;
use thiserror::Error;
use tokio::{
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, timeout},
};

use super::{
    case::{Case, Failure, Need, NotPassed},
    chapters,
    config::{Config, Target},
    context::Context,
    driver::ConnectDriverError,
    interrupt::interrupted,
    kernel,
    record::Record,
    report::{CaseResult, DriverFacts, Report, Verdict},
    session::Session,
};

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum Progress<'a> {
    /// The driver has answered its first call.
    Connected(&'a DriverFacts),
    /// A case is over.
    Finished(&'a CaseResult),
}

/// Who is told how a run goes, and says whether it is to go on.
pub type Listener<'a> = &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>;

/// The suite could not be run, or not to its end.
#[derive(Debug, Error)]
pub enum RunError {
    /// The suite's own surroundings failed it.
    #[error("failed to prepare the conformance suite")]
    Prepare(#[source] io::Error),
    /// There is no driver to test.
    #[error(transparent)]
    Connect(#[from] ConnectDriverError),
    /// `--focus` and `--skip` leave nothing.
    #[error("no case has a title that matches")]
    NothingSelected,
    /// A signal came; what the run had started is gone.
    #[error("ended by {0}")]
    Interrupted(Signal),
    /// The listener wants to hear no more.
    #[error("ended before its last case")]
    BrokenOff,
}

/// Runs the suite, on a runtime of its own.
///
/// A signal that ends it ends this process as well, once nothing of the run is left.
pub fn run(config: &Config) -> Result<Report, RunError> {
    run_with(config, &mut |_| Continue(())).inspect_err(|error| {
        if let RunError::Interrupted(signal) = error {
            kernel::die_of(*signal);
        }
    })
}

/// Runs the suite and tells `listener` how it goes.
///
/// SIGINT, SIGTERM and SIGHUP end it with [`RunError::Interrupted`], so that neither the driver
/// nor its dynos stay; this process does not take them for its own end any more.
pub fn run_with(config: &Config, listener: Listener<'_>) -> Result<Report, RunError> {
    let limits = kernel::raise_open_files().map_err(RunError::Prepare)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::Prepare)?;
    let session = Session::new(config.clone(), limits).map_err(RunError::Prepare)?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        tokio::select! {
            report = run_selected(Arc::new(session), listener) => report,
            signal = interrupted() => match signal {
                Ok(signal) => Err(RunError::Interrupted(signal)),
                Err(error) => Err(RunError::Prepare(error)),
            }
        }
    })
}

/// A run of the suite.
struct Run<'a> {
    listener: Listener<'a>,
    facts: DriverFacts,
    results: Vec<CaseResult>,
}

impl Run<'_> {
    fn finished(&mut self, result: CaseResult) -> Result<(), RunError> {
        let goes_on = (self.listener)(Progress::Finished(&result));
        self.results.push(result);
        match goes_on {
            Continue(()) => Ok(()),
            Break(()) => Err(RunError::BrokenOff),
        }
    }

    fn report(self) -> Report {
        Report {
            driver: self.facts,
            results: self.results,
        }
    }
}

async fn run_selected(session: Arc<Session>, listener: Listener<'_>) -> Result<Report, RunError> {
    let config = &session.config;
    let mut selected = chapters::all();
    selected.retain(|case| config.selects(&case.title()));
    if selected.is_empty() {
        return Err(RunError::NothingSelected);
    }
    let record = Record::default();
    let mut driver = session.connect(&record).await?;
    let facts = DriverFacts::of(&driver.info);
    if listener(Progress::Connected(&facts)).is_break() {
        return Err(RunError::BrokenOff);
    }
    let mut run = Run {
        listener,
        facts,
        results: Vec::new(),
    };
    for round in 1..=config.repeat.max(1) {
        let mut context = Context::new(Arc::clone(&session), driver);
        let mut beside = Beside::start(&context, &selected, round);
        for case in &selected {
            record.enter(case.title());
            let result = match beside.result(case).await {
                Some(result) => result,
                None => run_case(&context, case, round).await,
            };
            run.finished(result)?;
            if context.driver.is_gone() {
                // The driver broke off in the case before: the others deserve a living one.
                match session.connect(&record).await {
                    Ok(driver) => context = Context::new(Arc::clone(&session), driver),
                    Err(error) => {
                        run.finished(broken_off(case, round, &error))?;
                        return Ok(run.report());
                    }
                }
                beside.give_up(&context);
            }
        }
        driver = context.driver;
    }
    // The chapter `driver process` judges how a driver ends; this one has done its work, and is
    // killed when dropped if it will not go.
    drop(driver.terminate().await);
    Ok(run.report())
}

/// The cases that are run beside the others.
struct Beside(BTreeMap<String, (Rc<Context>, JoinHandle<CaseResult>)>);

impl Beside {
    fn start(context: &Context, selected: &[&'static Case], round: u32) -> Self {
        let cases = selected.iter().copied().filter(|case| case.beside);
        let running = cases.enumerate().map(|(number, case)| {
            let context = Rc::new(context.beside(case.title(), number));
            let own = Rc::clone(&context);
            let running = spawn_local(async move { run_case(&own, case, round).await });
            (case.title(), (context, running))
        });
        Self(running.collect())
    }

    /// What came of `case`, if it was run here.
    async fn result(&mut self, case: &Case) -> Option<CaseResult> {
        let (_, running) = self.0.remove(&case.title())?;
        running.await.ok()
    }

    /// Their driver is gone: they are run in their turn, and `context` clears away what they
    /// leave with the one that came after it.
    fn give_up(&mut self, context: &Context) {
        for (own, running) in std::mem::take(&mut self.0).into_values() {
            running.abort();
            context.take_over(&own);
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for (_, running) in self.0.values() {
            running.abort();
        }
    }
}

/// The last result of a run whose driver did not come back.
fn broken_off(case: &Case, round: u32, error: &ConnectDriverError) -> CaseResult {
    CaseResult {
        chapter: "whole run",
        name: "the driver is there until the end",
        rule: "§7: a driver ends on SIGTERM",
        round,
        verdict: Verdict::Failed(Failure {
            on: format!("the driver after the case `{}`", case.title()),
            expected: "one that can be connected to; the cases after it were not run".to_owned(),
            observed: error.to_string(),
        }),
        took: Duration::ZERO,
    }
}

async fn run_case(context: &Context, case: &Case, round: u32) -> CaseResult {
    let begun = Instant::now();
    let verdict = match unmet(context, case) {
        Some(reason) => Verdict::Skipped(reason),
        None => judge(context, case).await,
    };
    CaseResult {
        chapter: case.chapter,
        name: case.name,
        rule: case.rule,
        round,
        verdict,
        took: begun.elapsed(),
    }
}

async fn judge(context: &Context, case: &Case) -> Verdict {
    let deadline = context.session.config.deadline;
    let ran = timeout(deadline, (case.run)(context)).await;
    let outcome = ran.unwrap_or_else(|_| {
        let failure = Failure {
            on: "the case".to_owned(),
            expected: format!("its end within {} s", deadline.as_secs()),
            observed: "no end".to_owned(),
        };
        context.give_up(&failure);
        Err(NotPassed::Failed(failure))
    });
    let cleared = timeout(deadline, context.clear()).await;
    let cleared = cleared.unwrap_or_else(|_| {
        Err(Failure {
            on: "Stop and Remove of the case's dynos".to_owned(),
            expected: format!("their end within {} s", deadline.as_secs()),
            observed: "no end".to_owned(),
        })
    });
    match (outcome, cleared) {
        (Err(NotPassed::Failed(failure)), _) => Verdict::Failed(failure),
        (_, Err(mut failure)) => {
            failure.on = format!("after the case, {}", failure.on);
            Verdict::Failed(failure)
        }
        (Err(NotPassed::Skipped(reason)), Ok(())) => Verdict::Skipped(reason),
        (Err(NotPassed::Hindered(reason)), Ok(())) => Verdict::Hindered(reason),
        (Ok(()), Ok(())) => Verdict::Passed,
    }
}

/// What the case needs and this run has not.
fn unmet(context: &Context, case: &Case) -> Option<String> {
    let config = context.config();
    let exec = matches!(config.target, Target::Exec(_));
    let durability = context.driver.info.durability();
    let own_slug = config.artifact.is_none() && config.slug_url.is_none();
    case.needs.iter().find_map(|need| match *need {
        Need::Has(capability) if !context.has(capability) => {
            Some(format!("{} is not declared", capability.as_str_name()))
        }
        Need::Lacks(capability) if context.has(capability) => {
            Some(format!("{} is declared", capability.as_str_name()))
        }
        Need::Output if !context.has_output() => {
            Some("neither CAPABILITY_STDIO_FIFO nor CAPABILITY_LOGS is declared".to_owned())
        }
        Need::Build if config.artifact.is_some() => Some("--artifact is given".to_owned()),
        Need::OwnSlug if !own_slug => Some("--artifact or --slug-url is given".to_owned()),
        Need::BareArgv if !config.argv_prefix.is_empty() => {
            Some("--argv-prefix is given".to_owned())
        }
        Need::Exec if !exec => Some("needs --exec".to_owned()),
        Need::Outlives if !matches!(durability, Durability::Survives | Durability::Exact) => {
            Some("dynos do not outlive the driver".to_owned())
        }
        Need::Exact if durability != Durability::Exact => {
            Some("durability EXACT is not claimed".to_owned())
        }
        Need::Peer if config.as_peer.is_none() => Some("needs --as-peer".to_owned()),
        _ => None,
    })
}
