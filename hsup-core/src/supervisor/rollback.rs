//! Going back to an earlier release: which one is meant, and taking it in again as a new one.

use std::collections::BTreeSet;

use hsup_proto::control::RollbackRequest;
use thiserror::Error;

use super::{actor::Actor, handle::Applied, intake::Taken, requests::Handed};
use crate::{
    control::ControlError,
    releases::{Id, Newness},
    source::{News, Origin, Source, control_file},
    state::{ReleaseRecord, ReleaseState},
};

/// There is no release to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum RollbackError {
    #[error("there is no release yet: nothing to go back to")]
    NoRelease,

    /// Which says nothing of those that are forgotten.
    #[error("hsup remembers no release that ran before v{version}: there is none to go back to")]
    NoneBefore { version: u64 },

    #[error("no release v{version}: hsup remembers {known}")]
    Unknown { version: u64, known: String },

    #[error("v{version} never ran: it was rejected: {reason}")]
    Rejected { version: u64, reason: String },

    #[error("v{version} is still on its way: without a version hsup goes back to the good release")]
    Undecided { version: u64 },
}

impl From<RollbackError> for ControlError {
    fn from(error: RollbackError) -> Self {
        let text = error.to_string();
        match error {
            RollbackError::Unknown { .. } => Self::NotFound(text),
            _ => Self::Rejected(text),
        }
    }
}

/// Which release of the history, newest first, a rollback means.
///
/// Without a version it is the good one where another is on its way, and the one that was good
/// before it where none is. Versions may repeat: the newest one that ran counts.
fn target(history: &[&ReleaseRecord], version: Option<u64>) -> Result<Id, RollbackError> {
    let current = history
        .iter()
        .find(|record| record.state == ReleaseState::Current)
        .ok_or(RollbackError::NoRelease)?;
    let Some(version) = version else {
        if history.iter().any(|record| record.state.is_undecided()) {
            return Ok(current.id);
        }
        let mut good = history.iter().filter(|record| record.state.is_good());
        let before = good.find(|record| record.id != current.id);
        let version = current.release.version;
        return before
            .map(|record| record.id)
            .ok_or(RollbackError::NoneBefore { version });
    };
    let of_version = || {
        let all = history.iter();
        all.filter(move |record| record.release.version == version)
    };
    if let Some(record) = of_version().find(|record| record.state.is_good()) {
        return Ok(record.id);
    }
    Err(match of_version().next() {
        Some(record) if record.state == ReleaseState::Rejected => RollbackError::Rejected {
            version,
            reason: record.reason.clone(),
        },
        Some(_) => RollbackError::Undecided { version },
        None => {
            let good = history.iter().filter(|record| record.state.is_good());
            let mut seen = BTreeSet::new();
            let known: Vec<_> = good
                .map(|record| record.release.version)
                .filter(|version| seen.insert(*version))
                .map(|version| format!("v{version}"))
                .collect();
            let known = known.join(", ");
            RollbackError::Unknown { version, known }
        }
    })
}

impl Actor {
    /// Takes an earlier release in again, as a new one. Its number is one of its own, but for a
    /// release of Heroku: there the next number is Heroku's to give, to another release.
    pub(super) fn rollback(&mut self, request: &RollbackRequest) -> Result<Applied, ControlError> {
        let history: Vec<_> = self.history.iter().collect();
        let id = target(&history, request.version)?;
        let newest = history.iter().map(|record| record.release.version).max();
        if self.releases.wanted() == Some(id) {
            return Ok(self.applied(Taken::Unchanged(id), Vec::new(), request.no_wait));
        }
        let Some(earlier) = self.history.get(id) else {
            return Err(RollbackError::NoRelease.into());
        };
        let version = earlier.release.version;
        let mut release = earlier.release.clone();
        match (&self.source, self.wanted()) {
            // Quantities are the app's there, not the release's.
            (Source::Heroku(_), Some(wanted)) => release.scale(&wanted.release.quantities()),
            (Source::Heroku(_), None) => {}
            _ => release.version = newest.unwrap_or(version).saturating_add(1),
        }
        let is_control_dir = matches!(self.source, Source::ControlDir(_));
        let text = is_control_dir.then(|| control_file::text(&release));
        let warnings = self
            .lasts_until(Handed::Rollback)
            .map(str::to_owned)
            .into_iter()
            .collect();
        let origin = Origin::Rollback { version, id };
        let taken = self
            .take_in(release, text, origin, Newness::New)
            .map_err(ControlError::Rejected)?;
        self.news = Some(News::TakenIn);
        Ok(self.applied(taken, warnings, request.no_wait))
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::release::Release;

    /// Newest first: `5 current`. The id is ten times the version.
    fn history(text: &str) -> Vec<ReleaseRecord> {
        let records = text.split_terminator(", ").map(|entry| {
            let (version, state) = entry.split_once(' ').unwrap();
            let version = version.parse().unwrap();
            let release = Release {
                version,
                ..Release::default()
            };
            ReleaseRecord {
                state: match state {
                    "building" => ReleaseState::Building,
                    "rolling" => ReleaseState::RollingOut,
                    "current" => ReleaseState::Current,
                    "rejected" => ReleaseState::Rejected,
                    _ => ReleaseState::Superseded,
                },
                reason: "it crashed".to_owned(),
                ..ReleaseRecord::new(version * 10, release, "", 0)
            }
        });
        records.collect()
    }

    const USUAL: &str = "5 rejected, 4 current, 3 superseded, 2 rejected, 1 superseded";

    #[test_case(USUAL, None => Ok(30); "the good one before")]
    #[test_case(USUAL, Some(1) => Ok(10); "an old one")]
    #[test_case(USUAL, Some(4) => Ok(40); "the one that runs")]
    #[test_case("6 rolling, 4 current, 3 superseded", None => Ok(40); "away from one on trial")]
    #[test_case("6 building, 4 current, 3 superseded", Some(3) => Ok(30); "past one on trial")]
    #[test_case(USUAL, Some(2) => Err("v2 never ran: it was rejected: it crashed".to_owned()))]
    #[test_case(USUAL, Some(9) => Err("no release v9: hsup remembers v4, v3, v1".to_owned()))]
    #[test_case("2 current, 1 superseded, 2 superseded, 1 superseded", Some(7) => Err(
        "no release v7: hsup remembers v2, v1".to_owned()); "each version once")]
    #[test_case("6 building, 4 current", Some(6) => Err(
        "v6 is still on its way: without a version hsup goes back to the good release".to_owned()))]
    #[test_case("2 rejected, 1 current", None => Err(
        "hsup remembers no release that ran before v1: there is none to go back to".to_owned()))]
    #[test_case("1 rejected", None => Err("there is no release yet: nothing to go back to".to_owned()))]
    fn a_rollback(text: &str, version: Option<u64>) -> Result<Id, String> {
        let records = history(text);
        let newest_first: Vec<_> = records.iter().collect();
        target(&newest_first, version).map_err(|error| error.to_string())
    }
}
