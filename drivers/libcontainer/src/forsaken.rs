//! What drivers left that are away: how long it may stay.
//!
//! A dyno has a linger, for which it runs on without its supervisor. Its own driver sees to that,
//! but one that was killed and is not started again sees to nothing; then any driver of the same
//! work directory does. It cannot know since when the other is away, so it counts from when it
//! saw that first. A dyno without a linger runs for ever, as it would with its driver.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_driver_kit::{
    Signal, errors,
    service::{Dyno as _, Record, RecoverError},
};
use tokio::time::Instant;

use crate::{dyno::Contained, life, recover, runtime::Libcontainer, start};

/// How long it is remembered how a dyno ended, for a driver that may come back: as long as that
/// driver would remember it.
const NEWS_STAY: Duration = Duration::from_hours(1);
/// How long a start may go on after its driver has gone.
const STARTS_WITHIN: Duration = Duration::from_mins(1);

/// The homes of drivers that are away, and what was done about their dynos.
#[derive(Debug, Default)]
pub(crate) struct Forsaken(HashMap<PathBuf, Away>);

#[derive(Debug)]
struct Away {
    since: Instant,
    /// The dynos that were asked to end.
    asked: Vec<PathBuf>,
}

/// How a dyno is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Its start was cut off, or goes on.
    HalfStarted,
    Running {
        linger: Duration,
        asked: bool,
    },
    Ended {
        linger: Duration,
    },
}

/// What is to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    /// It is asked to end.
    Asked,
    /// It is killed.
    Killed,
    /// Nothing of it is kept.
    Forgotten,
}

impl Found {
    /// What becomes of it when its driver has been away for so long.
    fn fate(self, away: Duration) -> Fate {
        let is_over = |linger: Duration| !linger.is_zero() && away >= linger;
        match self {
            Self::HalfStarted if away >= STARTS_WITHIN => Fate::Forgotten,
            Self::Running { linger, asked } if is_over(linger) => {
                if asked {
                    Fate::Killed
                } else {
                    Fate::Asked
                }
            }
            Self::Ended { linger } if is_over(linger) && away >= linger + NEWS_STAY => {
                Fate::Forgotten
            }
            _ => Fate::Stays,
        }
    }
}

impl Forsaken {
    /// Looks through them. What it asks to end, it kills the next time.
    pub(crate) async fn look(&mut self, driver: &Libcontainer) {
        let now = Instant::now();
        let absent = match driver.home().absent() {
            Ok(absent) => absent,
            Err(error) => {
                tracing::warn!(%error, "failed to look for what other drivers left");
                return;
            }
        };
        self.0
            .retain(|home, _| absent.iter().any(|absent| absent.path == *home));
        for home in &absent {
            let away = self.0.entry(home.path.clone()).or_insert_with(|| Away {
                since: now,
                asked: Vec::new(),
            });
            for dir in home.dynos().unwrap_or_default() {
                if let Err(error) = away.end_overdue(&dir, now, driver).await {
                    let error = errors::chain(&*error);
                    tracing::warn!(dir = %dir.display(), error, "a dyno of another driver stays");
                }
            }
        }
    }
}

impl Away {
    async fn end_overdue(
        &mut self,
        dir: &Path,
        now: Instant,
        driver: &Libcontainer,
    ) -> Result<(), RecoverError> {
        let dyno = life::was_started(dir)?
            .then(|| Contained::found(dir.to_owned(), driver.hierarchies()))
            .transpose()?;
        let found = match &dyno {
            None => Found::HalfStarted,
            Some(dyno) => {
                let linger = Record::from_bytes(&fs::read(dir.join(start::RECORD))?)?.linger();
                let asked = self.asked.iter().any(|asked| asked == dir);
                if dyno.has_ended() {
                    Found::Ended { linger }
                } else {
                    Found::Running { linger, asked }
                }
            }
        };
        match (found.fate(now - self.since), dyno) {
            (Fate::Asked, Some(dyno)) => {
                tracing::info!(dir = %dir.display(), "stopping a dyno whose driver is gone");
                dyno.signal(Signal::TERM).await;
                self.asked.push(dir.to_owned());
            }
            (Fate::Killed, Some(dyno)) => dyno.kill().await,
            (Fate::Forgotten, _) => recover::clear(dir.to_owned()).await,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test_case(Found::HalfStarted, 59 => Fate::Stays; "a start that may go on")]
    #[test_case(Found::HalfStarted, 60 => Fate::Forgotten; "a start that was cut off")]
    #[test_case(Found::Running { linger: MINUTE, asked: false }, 59 => Fate::Stays; "it lingers")]
    #[test_case(Found::Running { linger: MINUTE, asked: false }, 60 => Fate::Asked; "it has lingered")]
    #[test_case(Found::Running { linger: MINUTE, asked: true }, 70 => Fate::Killed; "it does not end")]
    #[test_case(Found::Running { linger: Duration::ZERO, asked: false }, 9_999_999 => Fate::Stays; "it has no linger")]
    #[test_case(Found::Ended { linger: MINUTE }, 3659 => Fate::Stays; "its driver may come back")]
    #[test_case(Found::Ended { linger: MINUTE }, 3660 => Fate::Forgotten; "nobody comes back")]
    #[test_case(Found::Ended { linger: Duration::ZERO }, 9_999_999 => Fate::Stays; "its news has no end")]
    fn what_becomes_of_a_dyno_whose_driver_is_away(found: Found, seconds: u64) -> Fate {
        found.fate(Duration::from_secs(seconds))
    }
}
