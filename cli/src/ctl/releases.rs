//! `hsupctl releases`, `apply`, `rollback` and `plan`.

mod report;

use std::{fs::File, io, path::Path};

use hsup_core::{files::read_at_most, source::control_file::MAX_SIZE};
use hsup_proto::control::{
    ApplyReleaseRequest, ApplyReleaseResponse, ListReleasesRequest, PlanReleaseRequest,
    ReleaseState, RollbackRequest,
};
use tonic::{Code, Status};

pub(super) use self::report::state_word;
pub use self::report::{ApplyReport, PlanReport, ProcessReport, ReleaseReport, ReleasesReport};
use super::{Outcome, args::Output, connect::Supervisor, error::CtlError, promptly, to_json};
use crate::look::{Look, Report as _};

/// The text of a control file, from a file or for `-` from standard input. What is larger than a
/// release may be is refused here: as a message it would be cut off before hsup can say so.
pub fn read(path: &Path) -> Result<Vec<u8>, CtlError> {
    let read = if path == Path::new("-") {
        read_at_most(io::stdin().lock(), MAX_SIZE)
    } else {
        File::open(path).and_then(|file| read_at_most(file, MAX_SIZE))
    };
    let path = || path.to_owned();
    let text = read.map_err(|source| CtlError::ReadRelease {
        path: path(),
        source,
    })?;
    text.ok_or_else(|| CtlError::TooLarge { path: path() })
}

pub async fn list(
    mut supervisor: Supervisor,
    output: Output,
    look: &Look,
) -> Result<Outcome, CtlError> {
    let answer = promptly(supervisor.client.list_releases(ListReleasesRequest {})).await?;
    let report = ReleasesReport {
        releases: answer.releases.into_iter().map(Into::into).collect(),
    };
    Ok(Outcome::done(match output {
        Output::Text => report.show(look).to_string(),
        Output::Json => to_json(&report)?,
    }))
}

/// One release: the newest with this version.
pub async fn show(
    mut supervisor: Supervisor,
    version: u64,
    output: Output,
    look: &Look,
) -> Result<Outcome, CtlError> {
    let answer = promptly(supervisor.client.list_releases(ListReleasesRequest {})).await?;
    let mut releases = answer.releases.into_iter();
    let release = releases.find(|release| release.version == version);
    let report: ReleaseReport = release
        .ok_or_else(|| CtlError::NotFound(format!("no release v{version}")))?
        .into();
    Ok(Outcome::done(match output {
        Output::Text => report.show(look).to_string(),
        Output::Json => to_json(&report)?,
    }))
}

pub async fn rollback(
    mut supervisor: Supervisor,
    version: Option<u64>,
    no_wait: bool,
    look: &Look,
) -> Result<Outcome, CtlError> {
    let request = RollbackRequest { version, no_wait };
    let answer = match supervisor.client.rollback(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(refused(&mut supervisor, status).await),
    };
    let report = ApplyReport(ApplyReleaseResponse {
        release: answer.release,
        warnings: answer.warnings,
        unchanged: answer.unchanged,
    });
    let text = report.show(look).to_string();
    Ok(Outcome::new(text, u8::from(report.is_rejected())))
}

pub async fn apply(
    mut supervisor: Supervisor,
    json: Vec<u8>,
    no_wait: bool,
    look: &Look,
) -> Result<Outcome, CtlError> {
    let request = ApplyReleaseRequest { json, no_wait };
    let answer = match supervisor.client.apply_release(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(refused(&mut supervisor, status).await),
    };
    let report = ApplyReport(answer);
    let text = report.show(look).to_string();
    Ok(Outcome::new(text, u8::from(report.is_rejected())))
}

/// Why a release does not run that was handed in.
async fn refused(supervisor: &mut Supervisor, status: Status) -> CtlError {
    if status.code() != Code::FailedPrecondition {
        return status.into();
    }
    let why = status.message().to_owned();
    match has_last_lines(supervisor, &why).await {
        Ok(true) => CtlError::Rejected(why),
        Ok(false) => CtlError::Refused(why),
        Err(error) => error,
    }
}

/// Whether the newest release is one that was rejected for what `why` tells of, and its dyno
/// said something. A release may also be refused before it is one.
async fn has_last_lines(supervisor: &mut Supervisor, why: &str) -> Result<bool, CtlError> {
    let asked = promptly(supervisor.client.list_releases(ListReleasesRequest {})).await;
    Ok(asked?.releases.first().is_some_and(|newest| {
        newest.state() == ReleaseState::Rejected
            && !newest.last_lines.is_empty()
            && why.contains(&newest.reason)
    }))
}

pub async fn plan(
    mut supervisor: Supervisor,
    json: Vec<u8>,
    look: &Look,
) -> Result<Outcome, CtlError> {
    let answer = promptly(supervisor.client.plan_release(PlanReleaseRequest { json })).await?;
    Ok(Outcome::done(PlanReport(answer).show(look).to_string()))
}
