//! What must hold for every answer of the run. Stays last.

use hsup_proto::driver::{Dyno, ListRequest};
use tonic::Code;

use super::super::{
    calls::code_name,
    case::{Case, Failure, Need, NotPassed, case, check},
    context::Context,
    process::{CANARY, marked},
    record::Refusal,
    session::MARK,
};

const WHOLE_RUN: &str = "whole run";

pub(crate) const CASES: &[Case] = &[
    case!(
        WHOLE_RUN,
        "no call answered UNKNOWN or INTERNAL",
        "§9: a bug; the suite fails a driver that returns either",
        no_bugs
    ),
    case!(
        WHOLE_RUN,
        "no refusal carried details",
        "§9: details empty in v1",
        no_details
    ),
    case!(
        WHOLE_RUN,
        "no refusal showed a value of env",
        "§6, §12 R9: never log env",
        no_secrets
    ),
    case!(
        WHOLE_RUN,
        "the driver's output shows no value of env",
        "§6, §12 R9: never log env",
        no_secrets_logged,
        &[Need::Exec]
    ),
    case!(
        WHOLE_RUN,
        "no dyno of the run is left",
        "§8 Stop, Remove: every process gone, everything freed",
        nothing_left
    ),
];

/// Fails with the first refusal that `is_bad`.
fn none(cx: &Context, expected: &str, is_bad: impl Fn(&Refusal) -> bool) -> Result<(), NotPassed> {
    let refusals = cx.record().refusals();
    let bad: Vec<_> = refusals.iter().filter(|refusal| is_bad(refusal)).collect();
    let Some(first) = bad.first() else {
        return Ok(());
    };
    let (code, message) = (code_name(first.status.code()), first.status.message());
    Err(NotPassed::Failed(Failure {
        on: format!("{} in the case `{}`", first.call, first.case),
        expected: expected.to_owned(),
        observed: format!("{code} \"{message}\", the first of {}", bad.len()),
    }))
}

async fn no_bugs(cx: &Context) -> Result<(), NotPassed> {
    none(cx, "a code of the table in §9", |refusal| {
        matches!(refusal.status.code(), Code::Unknown | Code::Internal)
    })
}

async fn no_details(cx: &Context) -> Result<(), NotPassed> {
    none(cx, "no details", |refusal| {
        !refusal.status.details().is_empty()
    })
}

async fn no_secrets(cx: &Context) -> Result<(), NotPassed> {
    none(cx, "a message without values of env", |refusal| {
        refusal.status.message().contains(&cx.session.token)
    })
}

async fn no_secrets_logged(cx: &Context) -> Result<(), NotPassed> {
    let Some(process) = &cx.driver.process else {
        return Err(NotPassed::Skipped("needs --exec".to_owned()));
    };
    let output = process.output();
    // The token is part of the supervisor id as well, which may be logged.
    let line = output.lines().find(|line| {
        let rest = line.replace(&cx.session.supervisor_id(), "");
        rest.contains(&cx.session.token) || line.contains(CANARY)
    });
    let observed = line.unwrap_or_default();
    check(
        line.is_none(),
        "the driver's output",
        "no value of env",
        observed,
    )?;
    Ok(())
}

async fn nothing_left(cx: &Context) -> Result<(), NotPassed> {
    let list = cx.control().list(ListRequest::default()).await.ok()?;
    // Those of the cases that were run beside the others as well.
    let ours = |dyno: &&Dyno| dyno.supervisor_id.starts_with(&cx.supervisor_id);
    let dynos = list.dynos.iter().filter(ours);
    let left: Vec<_> = dynos.map(|dyno| &dyno.dyno_id).collect();
    check(left.is_empty(), "List", "no dyno", format_args!("{left:?}"))?;
    let marked = marked(MARK, &cx.session.token);
    let expected = "no process of a dyno";
    check(
        marked.is_empty(),
        "the processes",
        expected,
        format_args!("{marked:?}"),
    )?;
    Ok(())
}
