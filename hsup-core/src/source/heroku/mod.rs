//! An app on Heroku as a source: its deployed release and its formation, as the Platform API
//! (v3) has them.
//!
//! ```text
//!  pace ◀─ how it went ─ watch ─ what is news ─▶ supervisor
//!    └── when to look ──▶  │
//!                         api ─▶ client ─▶ api.heroku.com
//! ```
//!
//! One task looks, and what it finds waits in a channel: the supervisor drops the future of
//! [`Heroku::next`] whenever something else happens. It begins with the first call, so that
//! who finds that another hsup has the app has asked nothing.

use std::{future::pending, pin::pin, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

mod access;
mod api;
mod assemble;
mod client;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod locate;
mod model;
mod netrc;
mod pace;
mod quantities;
mod watch;

pub use access::{Access, FindAccessError};
pub use assemble::UnusableReleaseError;
pub use client::NewClientError;
pub use error::{ApiError, Refusal, RequestId, Trouble};

use api::Api;
use pace::{Next, Pace, Tell, Went};
use watch::{Found, Watcher};

use super::{Loaded, Update};
use crate::{locate::SlugLocator, random, release::Release, time::reached};

/// How often the API is asked, unless people say otherwise. A look is two requests of the 4500
/// that Heroku allows an account in an hour.
pub const POLL_EVERY: Duration = Duration::from_secs(10);

/// What there is need not wait longer than this for Heroku's first word.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(5);
/// How often [`load`] asks an API that fails, and the pause after the first time.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
/// So many looks later a release comes again that could not be taken in.
const AGAIN_AFTER: u32 = 6;
/// News that nobody has taken yet.
const NEWS: usize = 8;

/// An app on Heroku.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HerokuApp {
    /// Its name or its id.
    pub name: String,
    /// Where to ask, and as whom.
    pub access: Access,
    /// How often to look.
    pub poll_every: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Heroku {
    api: Arc<Api>,
    poll_every: Duration,
    polling: Option<Polling>,
    refused: Option<Refused>,
    /// The version of the release that was taken back last.
    taken_back: Option<u64>,
}

/// A release that could not be taken in for a reason that is none of its own.
#[derive(Debug)]
struct Refused {
    loaded: Box<Loaded>,
    again_at: Instant,
}

#[derive(Debug)]
struct Polling {
    news: mpsc::Receiver<Update>,
    _task: AbortOnDropHandle<()>,
}

impl Heroku {
    /// Prepares to ask; nothing is asked before [`Heroku::next`].
    ///
    /// # Errors
    /// When there is nothing to do HTTPS with.
    pub fn open(app: &HerokuApp) -> Result<Self, NewClientError> {
        Ok(Self {
            api: Arc::new(Api::new(&app.name, &app.access)?),
            poll_every: app.poll_every,
            polling: None,
            refused: None,
            taken_back: None,
        })
    }

    /// Who knows where its slugs are.
    pub fn locator(&self) -> Arc<dyn SlugLocator> {
        Arc::<Api>::clone(&self.api)
    }

    /// Waits for the next news. Cancel safe; inside a tokio runtime.
    pub async fn next(&mut self) -> Update {
        let polling = self.polling.get_or_insert_with(|| {
            let (sender, news) = mpsc::channel(NEWS);
            let watcher = Watcher::new(Arc::clone(&self.api));
            let task = tokio::spawn(poll(watcher, Pace::new(self.poll_every), sender));
            Polling {
                news,
                _task: AbortOnDropHandle::new(task),
            }
        });
        tokio::select! {
            biased;
            Some(update) = polling.news.recv() => {
                self.overtake_refused(&update);
                update
            }
            () = reached(self.refused.as_ref().map(|refused| refused.again_at)) => {
                match self.refused.take() {
                    Some(refused) => Update::Release(refused.loaded),
                    None => pending().await,
                }
            }
        }
    }

    /// Takes back a release that the supervisor could not take in, say because its disk is full.
    /// Heroku tells it once, so it comes again from here. Answers whether it is the first time.
    pub fn take_back(&mut self, loaded: Box<Loaded>) -> bool {
        let version = Some(loaded.release.version);
        self.refused = Some(Refused {
            loaded,
            again_at: Instant::now() + self.poll_every * AGAIN_AFTER,
        });
        std::mem::replace(&mut self.taken_back, version) != version
    }

    /// What is news counts before what was refused.
    fn overtake_refused(&mut self, update: &Update) {
        match (update, &mut self.refused) {
            (Update::Scaled(quantities), Some(refused)) => {
                refused.loaded.release.scale(quantities);
            }
            (Update::Release(_) | Update::Rejected { .. }, refused) => *refused = None,
            _ => {}
        }
    }
}

/// Looks again and again, and tells what is news.
async fn poll(mut watcher: Watcher, mut pace: Pace, news: mpsc::Sender<Update>) {
    let mut has_spoken = false;
    let (mut found, mut looked) = first_look(&mut watcher, &news).await;
    loop {
        let went = match &looked {
            Ok(()) => Went::Well {
                remaining: watcher.api.client.remaining(),
            },
            Err(error) => Went::Badly(error.trouble()),
        };
        let next = pace.after(went, random::u64());
        tracing::debug!(?went, delay = ?next.delay, "looked at Heroku");
        let told = told(looked.as_ref().err(), next, has_spoken);
        for update in told.into_iter().chain(found) {
            has_spoken = true;
            if news.send(update).await.is_err() {
                return;
            }
        }
        sleep(next.delay).await;
        (found, looked) = watcher.look().await;
    }
}

/// The first look, which a start waits for. It is told when that takes long; the answer counts
/// whenever it comes.
async fn first_look(
    watcher: &mut Watcher,
    news: &mpsc::Sender<Update>,
) -> (Vec<Update>, Result<(), ApiError>) {
    let host = watcher.api.client.host().to_owned();
    let mut look = pin!(watcher.look());
    if let Ok(looked) = timeout(FIRST_WORD_WITHIN, &mut look).await {
        return looked;
    }
    let why = format!("{host} has not answered for {FIRST_WORD_WITHIN:?}");
    // Nobody listens to a source that is closed, and this task ends with it.
    drop(news.send(Update::Late { why }).await);
    look.await
}

/// What to tell of how the look went. Without a release the supervisor waits for a first word.
fn told(error: Option<&ApiError>, next: Next, has_spoken: bool) -> Option<Update> {
    match (next.tell, error) {
        (_, Some(error)) if !has_spoken => Some(Update::Empty {
            why: error.to_string(),
            is_final: error.trouble() == Trouble::Denied,
        }),
        (Tell::Trouble, Some(error)) => {
            Some(Update::Warning(format!("{error}; what runs goes on")))
        }
        (Tell::Over, _) => Some(Update::Warning("Heroku's API answers again".to_owned())),
        (Tell::Slower(left), _) => Some(Update::Warning(format!(
            "Heroku's API takes {left} more requests of this account for now: asking every {:.0?}",
            next.delay
        ))),
        (Tell::Trouble | Tell::Nothing, _) => None,
    }
}

/// What is deployed could not be had.
#[derive(Debug, Error)]
pub enum LoadHerokuError {
    /// There is nothing to ask with.
    #[error(transparent)]
    Client(#[from] NewClientError),
    /// The API does not say.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// It cannot be run.
    #[error(transparent)]
    Unusable(#[from] UnusableReleaseError),
    /// There is none.
    #[error("no release of {0} is deployed on Heroku")]
    Nothing(String),
    /// There is another one each time.
    #[error(
        "releases of {0} follow each other on Heroku faster than one can be fetched: try again"
    )]
    Overtaken(String),
}

/// A release of an app on Heroku, once.
#[derive(Debug)]
pub struct LoadedOnce {
    /// The release.
    pub release: Release,
    /// What is odd about it.
    pub warnings: Vec<String>,
    /// Who knows where its slug is.
    pub locator: Arc<dyn SlugLocator>,
}

/// Fetches what is deployed right now. An API that fails is asked again, but not for long:
/// somebody waits.
///
/// # Errors
/// When there is none, or it cannot be had.
pub async fn load(app: &HerokuApp) -> Result<LoadedOnce, LoadHerokuError> {
    let api = Arc::new(Api::new(&app.name, &app.access)?);
    let mut watcher = Watcher::new(Arc::clone(&api));
    let mut tries = 1;
    let found = loop {
        match watcher.find().await {
            Ok(Found::Same(_)) if tries < TRIES => tries += 1,
            Ok(Found::Release {
                result: Err(error), ..
            }) if tries < TRIES && error.is_unread() => {
                tracing::warn!(%error, tries, "Heroku asked again");
                sleep(PAUSE * tries).await;
                tries += 1;
            }
            Ok(found) => break found,
            Err(error) if tries < TRIES && matches!(error.trouble(), Trouble::Passing { .. }) => {
                tracing::warn!(%error, tries, "Heroku asked again");
                sleep(PAUSE * tries).await;
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    };
    match found {
        Found::Release { result, .. } => {
            let (release, warnings) = result?;
            Ok(LoadedOnce {
                release: *release,
                warnings,
                locator: api,
            })
        }
        Found::Nothing => Err(LoadHerokuError::Nothing(app.name.clone())),
        Found::Same(_) => Err(LoadHerokuError::Overtaken(app.name.clone())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// With the clock standing still while nothing happens, the next thing is the next wait to end.
    #[tokio::test(start_paused = true)]
    async fn an_api_that_hangs_keeps_no_start_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut heroku = Heroku::open(&HerokuApp {
            name: "shop".to_owned(),
            access: Access::new(&url, "hunter2"),
            poll_every: POLL_EVERY,
        })
        .unwrap();
        let begun = Instant::now();
        let late = heroku.next().await;
        assert!(matches!(late, Update::Late { .. }), "{late:?}");
        assert_eq!(begun.elapsed().as_secs(), FIRST_WORD_WITHIN.as_secs());
        // How it ends is told as if nothing had been said.
        let ended = heroku.next().await;
        assert!(matches!(ended, Update::Empty { .. }), "{ended:?}");
    }
}
