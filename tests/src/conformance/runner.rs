//! Runs the cases, one after the other, each with a deadline and a clean-up of its own.

use std::{io, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::{
    case::{Case, Failure, Need, NotPassed},
    chapters,
    config::{Config, Target},
    context::Context,
    kernel,
    report::{CaseResult, DriverFacts, Report, Verdict},
    session::{ConnectDriverError, Session},
};

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum Progress<'a> {
    /// The driver has answered its first call.
    Connected(&'a DriverFacts),
    /// A case is over.
    Finished(&'a CaseResult),
}

/// The suite could not be run.
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
}

/// Runs the suite, on a runtime of its own.
pub fn run(config: &Config) -> Result<Report, RunError> {
    run_with(config, &mut |_| ())
}

/// Runs the suite and tells `listener` how it goes.
pub fn run_with(
    config: &Config,
    listener: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, RunError> {
    let limits = kernel::raise_open_files().map_err(RunError::Prepare)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::Prepare)?;
    let session = Session::new(config.clone(), limits).map_err(RunError::Prepare)?;
    runtime.block_on(run_selected(Arc::new(session), listener))
}

async fn run_selected(
    session: Arc<Session>,
    listener: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, RunError> {
    let all = chapters::all();
    let config = &session.config;
    let selected: Vec<&Case> = all
        .iter()
        .copied()
        .filter(|case| config.selects(&case.title()))
        .collect();
    if selected.is_empty() {
        return Err(RunError::NothingSelected);
    }
    let mut driver = session.connect().await?;
    let facts = DriverFacts::of(&driver.info);
    listener(Progress::Connected(&facts));
    let mut results = Vec::new();
    for round in 1..=config.repeat.max(1) {
        let mut context = Context::new(Arc::clone(&session), driver);
        for case in &selected {
            session.record.enter(case.title());
            let result = run_case(&context, case, round).await;
            listener(Progress::Finished(&result));
            results.push(result);
            if context.control().is_closed() || context.waits().is_closed() {
                // The driver broke off in the case before: the others deserve a living one.
                match session.connect().await {
                    Ok(driver) => context = Context::new(Arc::clone(&session), driver),
                    Err(error) => {
                        let result = broken_off(case, round, &error);
                        listener(Progress::Finished(&result));
                        results.push(result);
                        let driver = facts;
                        return Ok(Report { driver, results });
                    }
                }
            }
        }
        driver = context.driver;
    }
    // The chapter `process` judges how a driver ends; this one has done its work, and is killed
    // when dropped if it will not go.
    drop(driver.terminate().await);
    Ok(Report {
        driver: facts,
        results,
    })
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
    let outcome = match timeout(deadline, (case.run)(context)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(NotPassed::Failed(Failure {
            on: "the case".to_owned(),
            expected: format!("its end within {} s", deadline.as_secs()),
            observed: "no end".to_owned(),
        })),
    };
    let cleared = match timeout(deadline, context.clear()).await {
        Ok(cleared) => cleared,
        Err(_) => Err(Failure {
            on: "Stop and Remove of the case's dynos".to_owned(),
            expected: format!("their end within {} s", deadline.as_secs()),
            observed: "no end".to_owned(),
        }),
    };
    match (outcome, cleared) {
        (Err(NotPassed::Failed(failure)), _) => Verdict::Failed(failure),
        (_, Err(mut failure)) => {
            failure.on = format!("after the case, {}", failure.on);
            Verdict::Failed(failure)
        }
        (Err(NotPassed::Skipped(reason)), Ok(())) => Verdict::Skipped(reason),
        (Ok(()), Ok(())) => Verdict::Passed,
    }
}

/// What the case needs and this run has not.
fn unmet(context: &Context, case: &Case) -> Option<String> {
    let config = context.config();
    let exec = matches!(config.target, Target::Exec(_));
    case.needs.iter().find_map(|need| match *need {
        Need::Has(capability) if !context.has(capability) => {
            Some(format!("{} is not declared", capability.as_str_name()))
        }
        Need::Lacks(capability) if context.has(capability) => {
            Some(format!("{} is declared", capability.as_str_name()))
        }
        Need::Is(durability) if context.driver.info.durability() != durability => {
            Some(format!("{} is not claimed", durability.as_str_name()))
        }
        Need::Build if config.artifact.is_some() => Some("--artifact is given".to_owned()),
        Need::BareArgv if !config.argv_prefix.is_empty() => {
            Some("--argv-prefix is given".to_owned())
        }
        Need::Exec if !exec => Some("needs --exec".to_owned()),
        _ => None,
    })
}
