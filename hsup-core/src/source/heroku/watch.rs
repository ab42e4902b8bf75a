//! What there is to run, and what of it is news: a look at the API at a time.
//!
//! A look that fails has changed nothing of the release: what was news stays news until all of it
//! was fetched. The formation counts on its own.

use std::sync::Arc;

use super::{
    api::{Api, Known},
    assemble::{Content, Parts, UnusableReleaseError, assemble},
    error::ApiError,
    model::{Formation, OciImage, Release as HerokuRelease, Runs, Slug},
    quantities::Quantities,
};
use crate::{
    errors::chain,
    release::Release,
    releases::Newness,
    source::{Loaded, Origin, Update},
};

/// How often a release is fetched anew that another one overtakes meanwhile.
const OVERTAKEN: usize = 3;
/// So many looks in a row an answer is not believed that is older than one before: a server of
/// Heroku's that has not heard of the newest release is soon told. An app that was made anew under
/// its name stays so.
const OLDER: u32 = 6;
/// So many looks at most are between two at a release that is not whole.
const LONGEST_PAUSE: u32 = 64;
/// And at one whose answers cannot be read: that passes by itself, as an API's failures do.
const LONGEST_PAUSE_UNREAD: u32 = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) api: Arc<Api>,
    deployed: Option<Known<Option<HerokuRelease>>>,
    formation: Option<Known<Vec<Formation>>>,
    told: Option<Told>,
    quantities: Quantities,
    has_told_release: bool,
    /// How many looks in a row have found a release older than the one that was told.
    older: u32,
}

/// What was told last.
#[derive(Debug)]
struct Told {
    /// The release's id; empty if there was none.
    release: String,
    version: u64,
    /// Why it cannot be run.
    unusable: Option<Unusable>,
}

/// A release that cannot be run, for now.
#[derive(Debug)]
struct Unusable {
    /// Why, without what is another each time.
    why: String,
    is_told: bool,
    /// The formation with which it cannot.
    formation: Vec<Formation>,
    /// When it is looked at again, if time may mend it.
    again: Option<Again>,
}

/// A wait that is counted in looks, so that it is longer where Heroku is asked less often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Again {
    pause: u32,
    left: u32,
}

/// What one look found.
pub(super) enum Found {
    /// No release is deployed.
    Nothing,
    /// One is, with this formation, and it is known already.
    Same(Vec<Formation>),
    /// Another one.
    Release {
        id: String,
        version: u64,
        formation: Vec<Formation>,
        result: Result<(Box<Release>, Vec<String>), UnusableReleaseError>,
    },
}

impl Watcher {
    pub(super) fn new(api: Arc<Api>) -> Self {
        Self {
            api,
            deployed: None,
            formation: None,
            told: None,
            quantities: Quantities::default(),
            has_told_release: false,
            older: 0,
        }
    }

    /// Looks once, and answers what is news, and whether all that there is could be seen. If not,
    /// only the formation may be news.
    pub(super) async fn look(&mut self) -> (Vec<Update>, Result<(), ApiError>) {
        self.wait_less();
        match self.find().await {
            Ok(found) => (self.news(found), Ok(())),
            Err(error) => {
                let formation = self.formation.as_ref();
                let scaled = formation.map(|known| self.quantities.news(&known.value));
                (scaled.unwrap_or_default(), Err(error))
            }
        }
    }

    /// Fetches what there is, all of it where it is not known.
    pub(super) async fn find(&mut self) -> Result<Found, ApiError> {
        if let Err(error) = self.api.deployed(&mut self.deployed).await {
            // The formation may be told all the same. Of who does not answer, nothing more is asked.
            if error.is_of_one() {
                drop(self.api.formation(&mut self.formation).await);
            }
            return Err(error);
        }
        self.api.formation(&mut self.formation).await?;
        for _ in 0..OVERTAKEN {
            let Some(release) = self.deployed.clone().and_then(|known| known.value) else {
                return Ok(Found::Nothing);
            };
            let formation = self.formation.as_ref().map(|known| known.value.clone());
            let formation = formation.unwrap_or_default();
            if self.is_old(&release, &formation) {
                return Ok(Found::Same(formation));
            }
            let (id, version) = (release.id.clone(), release.version);
            let result = self.fetch(release, formation.clone()).await?;
            // Else its config could be the one release's, and its formation the next one's.
            self.api.deployed(&mut self.deployed).await?;
            let now = self
                .deployed
                .as_ref()
                .and_then(|known| known.value.as_ref());
            if now.is_some_and(|now| now.id == id) {
                return Ok(Found::Release {
                    id,
                    version,
                    formation,
                    result,
                });
            }
            self.api.formation(&mut self.formation).await?;
        }
        // Somebody deploys faster than it can be fetched; the next look sees the end of it.
        Ok(Found::Same(Vec::new()))
    }

    /// Whether there is no more to be known of it. A release that cannot be run may be better
    /// with another formation, and one that is not whole may be so later.
    fn is_told(&self, release: &HerokuRelease, formation: &[Formation]) -> bool {
        let is_final = |unusable: &Unusable| {
            unusable.formation == formation && unusable.again.is_none_or(|again| again.left > 0)
        };
        self.told.as_ref().is_some_and(|told| {
            told.release == release.id && told.unusable.as_ref().is_none_or(is_final)
        })
    }

    /// Whether it is no news: because it is told, or because an answer that has it is to be taken
    /// for one that is not up to date.
    fn is_old(&mut self, release: &HerokuRelease, formation: &[Formation]) -> bool {
        let version = release.version;
        let told = self.told.as_ref().map_or(0, |told| told.version);
        if version >= told {
            self.older = 0;
            return self.is_told(release, formation);
        }
        self.older += 1;
        tracing::warn!(
            version,
            told,
            looks = self.older,
            "Heroku's answer is an older one"
        );
        self.older <= OLDER
    }

    /// A look more has gone by.
    fn wait_less(&mut self) {
        let unusable = self.told.as_mut().and_then(|told| told.unusable.as_mut());
        if let Some(again) = unusable.and_then(|unusable| unusable.again.as_mut()) {
            again.left = again.left.saturating_sub(1);
        }
    }

    /// Fetches a release. What of it is not there, or is no good, makes it one that cannot be run:
    /// others can, and the API as a whole has answered.
    async fn fetch(
        &self,
        release: HerokuRelease,
        formation: Vec<Formation>,
    ) -> Result<Result<(Box<Release>, Vec<String>), UnusableReleaseError>, ApiError> {
        let app = self.api.app().await?;
        let version = release.version;
        let parts = async {
            let content = match release.runs() {
                // Its id is what it was asked for by, whatever the answer leaves out.
                Runs::Slug(id) => Content::Slug(Slug {
                    id: id.to_owned(),
                    ..self.api.slug(id).await?
                }),
                Runs::Image(id) => Content::Image(OciImage {
                    id: id.to_owned(),
                    ..self.api.oci_image(id).await?
                }),
                Runs::Nothing => Content::Nothing,
            };
            let config = self.api.config_vars(&release).await?;
            Ok((content, config))
        };
        let (content, config) = match parts.await {
            Ok(parts) => parts,
            Err(source) if ApiError::is_missing(&source) => {
                return Ok(Err(UnusableReleaseError::Missing { version, source }));
            }
            Err(source) if ApiError::is_of_one(&source) => {
                return Ok(Err(UnusableReleaseError::Unread { version, source }));
            }
            Err(error) => return Err(error),
        };
        let parts = Parts {
            app,
            release,
            config,
            formation,
            content,
        };
        let result = assemble(&self.api.app, parts);
        Ok(result.map(|(release, warnings)| (Box::new(release), warnings)))
    }

    /// What of it is news; from now on it is not.
    fn news(&mut self, found: Found) -> Vec<Update> {
        match found {
            Found::Nothing if self.told.is_some() => vec![],
            Found::Nothing => {
                self.told = Some(Told {
                    release: String::new(),
                    version: 0,
                    unusable: None,
                });
                let why = format!("no release of {} is deployed on Heroku", self.api.app);
                vec![Update::Empty {
                    why,
                    is_final: false,
                }]
            }
            Found::Same(formation) => self.quantities.news(&formation),
            Found::Release {
                id,
                version,
                formation,
                result,
            } => {
                if let Ok((release, _)) = &result {
                    self.quantities.learn(release);
                }
                // A release that is refused, here or later, leaves the one before it running.
                let mut news = self.quantities.news(&formation);
                let before = self.told.take();
                let is_first = before.is_none();
                let said = before
                    .filter(|told| told.release == id)
                    .and_then(|told| told.unusable);
                let unusable = match result {
                    Ok((release, warnings)) => {
                        news.extend(self.other_name(&release));
                        news.push(self.loaded(release, warnings));
                        None
                    }
                    Err(error) => {
                        let why = error.to_string();
                        // An answer that fails once is none to be told; who starts hsup looks.
                        let is_due = !error.is_unread() || is_first || said.is_some();
                        let is_told = |said: &Unusable| said.is_told && said.why == why;
                        if is_due && !said.as_ref().is_some_and(is_told) {
                            news.push(refusal(&error, is_first));
                        }
                        let again = said.and_then(|said| said.again);
                        let most = if error.is_unread() {
                            LONGEST_PAUSE_UNREAD
                        } else {
                            LONGEST_PAUSE
                        };
                        Some(Unusable {
                            why,
                            is_told: is_due,
                            formation,
                            again: error.may_pass().then(|| Again::after(again, most)),
                        })
                    }
                };
                self.told = Some(Told {
                    release: id,
                    version,
                    unusable,
                });
                news
            }
        }
    }

    fn loaded(&mut self, release: Box<Release>, warnings: Vec<String>) -> Update {
        let has_told = std::mem::replace(&mut self.has_told_release, true);
        Update::Release(Box::new(Loaded {
            release: *release,
            warnings,
            origin: Origin::Heroku,
            newness: if has_told {
                Newness::New
            } else {
                Newness::Kept
            },
            text: None,
        }))
    }

    /// What hsup keeps of an app goes by what it was asked for, before it can ask what that is.
    fn other_name(&self, release: &Release) -> Option<Update> {
        let (asked, name) = (&self.api.app, &release.app);
        (!self.has_told_release && asked != name).then(|| {
            Update::Warning(format!(
                "Warning: {asked} is the app {name}, and `-a {name}` has another history and dynos of \
                 its own: use always the same of both"
            ))
        })
    }
}

/// How a release that cannot be run is told.
fn refusal(error: &UnusableReleaseError, is_first: bool) -> Update {
    let again = if error.may_pass() {
        "; it is asked for again from time to time"
    } else {
        ""
    };
    let why = format!("{}{again}", chain(error));
    if is_first {
        Update::Empty {
            why,
            is_final: false,
        }
    } else if error.is_unread() {
        Update::Warning(format!("{why}; what runs goes on"))
    } else {
        Update::Rejected { reason: why }
    }
}

impl Again {
    /// The next wait: twice the last one, and `most` at most.
    fn after(last: Option<Self>, most: u32) -> Self {
        let pause = last.map_or(1, |last| (last.pause * 2).min(most));
        Self { pause, left: pause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::heroku::{access::Access, error::RequestId};

    fn watcher() -> Watcher {
        let access = Access::new("http://127.0.0.1:1", "hunter2");
        Watcher::new(Arc::new(Api::new("shop", &access).unwrap()))
    }

    fn formation(quantities: &[(&str, i64)]) -> Vec<Formation> {
        let entry = |&(name, quantity): &(&str, i64)| Formation {
            process_type: name.to_owned(),
            command: "exec true".to_owned(),
            quantity,
        };
        quantities.iter().map(entry).collect()
    }

    fn shop() -> Release {
        Release {
            app: "shop".to_owned(),
            ..Release::default()
        }
    }

    fn release(id: &str, web: i64) -> Found {
        Found::Release {
            id: id.to_owned(),
            version: 2,
            formation: formation(&[("web", web)]),
            result: Ok((Box::new(shop()), vec![])),
        }
    }

    fn unusable(id: &str, web: i64) -> Found {
        let result = Err(UnusableReleaseError::Empty { version: 2 });
        match release(id, web) {
            Found::Release { id, formation, .. } => Found::Release {
                id,
                version: 2,
                formation,
                result,
            },
            other => other,
        }
    }

    fn told(watcher: &mut Watcher, found: Found) -> Vec<String> {
        let tell = |update: &Update| match update {
            Update::Release(loaded) => format!("release {:?}", loaded.newness),
            Update::Empty { .. } => "empty".to_owned(),
            Update::Rejected { .. } => "rejected".to_owned(),
            Update::Warning(_) => "warning".to_owned(),
            Update::Late { .. } => "late".to_owned(),
            Update::Scaled(quantities) => format!("{} to {}", quantities[0].0, quantities[0].1),
        };
        watcher.news(found).iter().map(tell).collect()
    }

    #[tokio::test]
    async fn a_release_is_news_once_and_a_scaling_each_time() {
        let mut watcher = watcher();
        let first = ["web to 1", "release Kept"];
        assert_eq!(told(&mut watcher, release("a", 1)), first);
        assert!(told(&mut watcher, Found::Same(formation(&[("web", 1)]))).is_empty());
        assert_eq!(
            told(&mut watcher, Found::Same(formation(&[("web", 3)]))),
            ["web to 3"]
        );
        assert!(told(&mut watcher, Found::Same(formation(&[("web", 3)]))).is_empty());
        assert_eq!(
            told(&mut watcher, release("b", 2)),
            ["web to 2", "release New"]
        );
    }

    #[tokio::test]
    async fn a_release_that_cannot_be_run_is_told_once() {
        let mut watcher = watcher();
        // What runs meanwhile is an earlier life's, and scaled with the app.
        assert_eq!(told(&mut watcher, unusable("a", 1)), ["web to 1", "empty"]);
        assert_eq!(told(&mut watcher, release("b", 1)), ["release Kept"]);
        assert_eq!(told(&mut watcher, unusable("c", 1)), ["rejected"]);
        assert_eq!(
            told(&mut watcher, unusable("c", 2)),
            ["web to 2"],
            "of what runs"
        );
        assert_eq!(told(&mut watcher, release("d", 2)), ["release New"]);
    }

    #[tokio::test]
    async fn an_older_release_counts_once_it_has_been_said_for_long() {
        let mut watcher = watcher();
        let first = ["web to 1", "release Kept"];
        assert_eq!(told(&mut watcher, release("a", 1)), first);
        let mut is_old = |id: &str, version| {
            let release = HerokuRelease {
                id: id.to_owned(),
                version,
                ..HerokuRelease::default()
            };
            watcher.is_old(&release, &formation(&[("web", 1)]))
        };
        for look in 0..OLDER {
            assert!(is_old("z", 1), "{look}");
        }
        assert!(is_old("a", 2), "it is told");
        for look in 0..OLDER {
            assert!(is_old("z", 1), "{look}");
        }
        assert!(!is_old("z", 1), "it stays so");
        assert!(!is_old("b", 3));
    }

    #[tokio::test]
    async fn nothing_deployed_is_told_once() {
        let mut watcher = watcher();
        assert_eq!(told(&mut watcher, Found::Nothing), ["empty"]);
        assert!(told(&mut watcher, Found::Nothing).is_empty());
        let first = ["web to 1", "release Kept"];
        assert_eq!(told(&mut watcher, release("a", 1)), first);
    }

    #[tokio::test]
    async fn another_name_of_the_app_is_told_once() {
        let mut watcher = watcher();
        let of = |id: &str| match release(id, 1) {
            Found::Release { id, formation, .. } => Found::Release {
                id,
                version: 2,
                formation,
                result: Ok((Box::default(), vec![])),
            },
            other => other,
        };
        let first = ["web to 1", "warning", "release Kept"];
        assert_eq!(told(&mut watcher, of("a")), first);
        assert_eq!(told(&mut watcher, of("b")), ["release New"]);
    }

    #[tokio::test]
    async fn a_release_that_is_not_whole_is_looked_at_less_and_less_often() {
        let mut watcher = watcher();
        let missing = |request: u32| Found::Release {
            id: "a".to_owned(),
            version: 2,
            formation: formation(&[("web", 1)]),
            result: Err(UnusableReleaseError::Missing {
                version: 2,
                source: ApiError::Redirect {
                    what: format!("it, in request {request}"),
                    host: String::new(),
                    request: RequestId::default(),
                },
            }),
        };
        let of_a = HerokuRelease {
            id: "a".to_owned(),
            ..HerokuRelease::default()
        };
        let (mut looks, mut waits) = (0, Vec::new());
        for request in 0..9 {
            let told = told(&mut watcher, missing(request));
            assert_eq!(told.contains(&"empty".to_owned()), request == 0, "{told:?}");
            let begun = looks;
            while watcher.is_told(&of_a, &formation(&[("web", 1)])) {
                watcher.wait_less();
                looks += 1;
            }
            waits.push(looks - begun);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        // It may be better with another formation.
        assert_eq!(told(&mut watcher, missing(9)), [""; 0]);
        assert!(!watcher.is_told(&of_a, &formation(&[("web", 2)])));
    }

    #[tokio::test]
    async fn a_release_that_cannot_be_read_is_told_when_that_does_not_pass() {
        let mut watcher = watcher();
        let unread = |id: &str| Found::Release {
            id: id.to_owned(),
            version: 2,
            formation: formation(&[("web", 1)]),
            result: Err(UnusableReleaseError::Unread {
                version: 2,
                source: ApiError::Redirect {
                    what: "it".to_owned(),
                    host: String::new(),
                    request: RequestId::default(),
                },
            }),
        };
        assert_eq!(told(&mut watcher, unread("a")), ["web to 1", "empty"]);
        assert_eq!(told(&mut watcher, unread("a")), [""; 0]);
        assert_eq!(told(&mut watcher, release("a", 1)), ["release Kept"]);
        assert_eq!(told(&mut watcher, unread("b")), [""; 0], "it may pass");
        let mut waits = Vec::new();
        for failure in 2..8 {
            let told = told(&mut watcher, unread("b"));
            let expected: &[&str] = if failure == 2 { &["warning"] } else { &[] };
            assert_eq!(told, expected, "{failure}");
            let unusable = watcher.told.as_ref().unwrap().unusable.as_ref();
            waits.push(unusable.unwrap().again.unwrap().left);
        }
        assert_eq!(waits, [2, 4, 8, 16, 16, 16]);
        assert_eq!(
            told(&mut watcher, unread("c")),
            [""; 0],
            "nor does the next"
        );
        assert_eq!(told(&mut watcher, release("c", 1)), ["release New"]);
    }
}
