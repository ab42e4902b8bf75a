//! Asking a driver who it is, for `hsup doctor`: nothing is built, and no dyno is started.

use std::{path::PathBuf, time::Duration};

use hsup_driver_kit::orphans;
use tokio::{sync::watch, time::timeout};

use super::{OneOffSession, RunCommandError, Signals, system};
use crate::driver::{DriverSpec, Link, NOT_YET};

/// How long a driver that answers may take until it is ready: it may just have begun.
const SETTLE: Duration = Duration::from_secs(3);

/// What a driver said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Its name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Whether it can run dynos, and if not, why.
    pub fitness: Result<(), String>,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Introduced {
    /// It answers.
    Driver(Introduction),
    /// It does not; why.
    Silent(String),
    /// hsup is to end, with this code.
    Ended(u8),
}

/// Starts the driver, or connects to the one that runs, and asks it. One that was started is
/// ended again.
///
/// # Errors
/// When not even the folder for a driver's socket can be made.
pub async fn introduce(
    driver: DriverSpec,
    own_program: PathBuf,
) -> Result<Introduced, RunCommandError> {
    let mut signals = Signals::new().map_err(system("receive signals"))?;
    orphans::become_subreaper().map_err(system("become a subreaper"))?;
    let begin = OneOffSession::begin(driver, own_program);
    let session = match signals.unless(begin).await {
        Ok(session) => session?,
        Err(code) => return Ok(Introduced::Ended(code)),
    };
    let answer = signals.unless(first_word(session.link.watch())).await;
    session.end().await;
    Ok(match answer {
        Ok(Ok(introduction)) => Introduced::Driver(introduction),
        Ok(Err(why)) => Introduced::Silent(why),
        Err(code) => Introduced::Ended(code),
    })
}

/// What the link says once it knows; of a driver that is not ready, what it says then.
async fn first_word(mut state: watch::Receiver<Link>) -> Result<Introduction, String> {
    let known = |link: &Link| match link {
        Link::Up(_) => true,
        Link::Down { why, .. } => why != NOT_YET,
    };
    let first = read(&state.wait_for(known).await);
    if !matches!(
        &first,
        Ok(Introduction {
            fitness: Err(_),
            ..
        })
    ) {
        return first;
    }
    let settled = |link: &Link| match link {
        Link::Up(up) => up.info.ready,
        Link::Down { .. } => true,
    };
    // If it takes longer, it is what it is now.
    drop(timeout(SETTLE, state.wait_for(settled)).await);
    let link = state.borrow();
    read(&Ok(link))
}

fn read(
    link: &Result<watch::Ref<'_, Link>, watch::error::RecvError>,
) -> Result<Introduction, String> {
    match link.as_deref() {
        Ok(Link::Up(up)) => Ok(Introduction {
            name: up.info.name.clone(),
            version: up.info.version.clone(),
            fitness: up.fitness(),
        }),
        Ok(Link::Down { why, .. }) => Err(why.clone()),
        Err(_) => Err("nobody looks after it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(why: &str) -> Link {
        Link::Down {
            why: why.to_owned(),
            hopeless: false,
            dynos_ended: false,
            last: None,
        }
    }

    #[tokio::test]
    async fn what_is_not_known_yet_is_waited_for() {
        let (publish, state) = watch::channel(down(NOT_YET));
        let mut asked = std::pin::pin!(first_word(state));
        assert!(futures_util::poll!(&mut asked).is_pending());
        publish.send_replace(down("it is away"));
        assert_eq!(asked.await, Err("it is away".to_owned()));
    }
}
