//! What there is to run, and what of it is news: a look at the API at a time.
//!
//! A look that fails has changed nothing: what was news stays news until all of it was fetched.

use std::sync::Arc;

use super::{
    api::{Api, Known},
    assemble::{Content, Parts, UnusableReleaseError, assemble, quantity_of},
    error::ApiError,
    model::{Formation, Release as HerokuRelease, Runs},
};
use crate::{
    name::ProcessType,
    release::Release,
    releases::Newness,
    source::{Loaded, Origin, Update},
};

/// How often a release is fetched anew that another one overtakes meanwhile.
const OVERTAKEN: usize = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) api: Arc<Api>,
    deployed: Option<Known<Option<HerokuRelease>>>,
    formation: Option<Known<Vec<Formation>>>,
    told: Option<Told>,
    has_told_release: bool,
}

/// What was told last.
#[derive(Debug)]
struct Told {
    /// The release's id; empty if there was none.
    release: String,
    /// The formation that it was told with.
    formation: Vec<Formation>,
    /// Why it cannot be run.
    unusable: Option<String>,
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
        formation: Vec<Formation>,
        result: Result<(Box<Release>, Vec<String>), UnusableReleaseError>,
    },
}

impl Watcher {
    pub(super) const fn new(api: Arc<Api>) -> Self {
        Self {
            api,
            deployed: None,
            formation: None,
            told: None,
            has_told_release: false,
        }
    }

    /// Looks once, and answers what is news.
    ///
    /// # Errors
    /// When something could not be fetched: then nothing is news.
    pub(super) async fn look(&mut self) -> Result<Vec<Update>, ApiError> {
        let found = self.find().await?;
        Ok(self.news(found))
    }

    /// Fetches what there is, all of it where it is not known.
    pub(super) async fn find(&mut self) -> Result<Found, ApiError> {
        self.api.deployed(&mut self.deployed).await?;
        self.api.formation(&mut self.formation).await?;
        for _ in 0..OVERTAKEN {
            let Some(release) = self.deployed.clone().and_then(|known| known.value) else {
                return Ok(Found::Nothing);
            };
            let formation = self.formation.as_ref().map(|known| known.value.clone());
            let formation = formation.unwrap_or_default();
            if self.is_told(&release, &formation) {
                return Ok(Found::Same(formation));
            }
            let id = release.id.clone();
            let parts = self.fetch(release, formation.clone()).await?;
            // Else its config could be the one release's, and its formation the next one's.
            self.api.deployed(&mut self.deployed).await?;
            let now = self
                .deployed
                .as_ref()
                .and_then(|known| known.value.as_ref());
            if now.is_some_and(|now| now.id == id) {
                let result = assemble(&self.api.app, parts);
                let result = result.map(|(release, warnings)| (Box::new(release), warnings));
                return Ok(Found::Release {
                    id,
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
    /// with another formation.
    fn is_told(&self, release: &HerokuRelease, formation: &[Formation]) -> bool {
        self.told.as_ref().is_some_and(|told| {
            told.release == release.id && (told.unusable.is_none() || told.formation == formation)
        })
    }

    async fn fetch(
        &self,
        release: HerokuRelease,
        formation: Vec<Formation>,
    ) -> Result<Parts, ApiError> {
        let app = self.api.app().await?;
        let content = match release.runs() {
            Runs::Slug(id) => Content::Slug(self.api.slug(id).await?),
            Runs::Image(id) => Content::Image(self.api.oci_image(id).await?),
            Runs::Nothing => Content::Nothing,
        };
        let config = self.api.config_vars(&release).await?;
        Ok(Parts {
            app,
            release,
            config,
            formation,
            content,
        })
    }

    /// What of it is news; from now on it is not.
    fn news(&mut self, found: Found) -> Vec<Update> {
        match found {
            Found::Nothing if self.told.is_some() => vec![],
            Found::Nothing => {
                self.told = Some(Told {
                    release: String::new(),
                    formation: Vec::new(),
                    unusable: None,
                });
                let why = format!("no release of {} is deployed on Heroku", self.api.app);
                vec![Update::Empty {
                    why,
                    is_final: false,
                }]
            }
            Found::Same(formation) => self.scaled(&formation).into_iter().collect(),
            Found::Release {
                id,
                formation,
                result,
            } => {
                let before = self.told.take();
                // A release that is refused here leaves the one before it running.
                let scaled = before
                    .as_ref()
                    .and_then(|told| scaling(&told.formation, &formation));
                let unusable = result.as_ref().err().map(ToString::to_string);
                let is_first = before.is_none();
                let said = before
                    .filter(|told| told.release == id)
                    .and_then(|told| told.unusable);
                self.told = Some(Told {
                    release: id,
                    formation,
                    unusable,
                });
                let release = match result {
                    Ok((release, warnings)) => Some(self.loaded(release, warnings)),
                    Err(error) if is_first => Some(Update::Empty {
                        why: error.to_string(),
                        is_final: false,
                    }),
                    Err(error) => {
                        let reason = error.to_string();
                        (said.as_ref() != Some(&reason)).then_some(Update::Rejected { reason })
                    }
                };
                scaled.into_iter().chain(release).collect()
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

    fn scaled(&mut self, formation: &[Formation]) -> Option<Update> {
        let told = self.told.as_mut()?;
        let scaled = scaling(&told.formation, formation)?;
        formation.clone_into(&mut told.formation);
        Some(scaled)
    }
}

/// The quantities that are others than before, of process types that were there.
fn scaling(before: &[Formation], now: &[Formation]) -> Option<Update> {
    let quantities: Vec<(ProcessType, u32)> = now
        .iter()
        .filter(|entry| {
            before.iter().any(|before| {
                before.process_type == entry.process_type && before.quantity != entry.quantity
            })
        })
        .filter_map(|entry| {
            let process_type = entry.process_type.parse().ok()?;
            Some((process_type, quantity_of(entry.quantity)?))
        })
        .collect();
    (!quantities.is_empty()).then_some(Update::Scaled(quantities))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::heroku::access::Access;

    fn watcher() -> Watcher {
        let access = Access::new("http://127.0.0.1:1", "hunter2");
        Watcher::new(Arc::new(Api::new("shop", &access).unwrap()))
    }

    fn formation(quantities: &[(&str, i64)]) -> Vec<Formation> {
        let entry = |&(name, quantity): &(&str, i64)| Formation {
            process_type: name.to_owned(),
            quantity,
            ..Formation::default()
        };
        quantities.iter().map(entry).collect()
    }

    fn release(id: &str, web: i64) -> Found {
        Found::Release {
            id: id.to_owned(),
            formation: formation(&[("web", web)]),
            result: Ok((Box::default(), vec![])),
        }
    }

    fn unusable(id: &str, web: i64) -> Found {
        let result = Err(UnusableReleaseError::Empty { version: 2 });
        match release(id, web) {
            Found::Release { id, formation, .. } => Found::Release {
                id,
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
            Update::Scaled(quantities) => format!("{} to {}", quantities[0].0, quantities[0].1),
        };
        watcher.news(found).iter().map(tell).collect()
    }

    #[tokio::test]
    async fn a_release_is_news_once_and_a_scaling_each_time() {
        let mut watcher = watcher();
        assert_eq!(told(&mut watcher, release("a", 1)), ["release Kept"]);
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
        assert_eq!(told(&mut watcher, unusable("a", 1)), ["empty"]);
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
    async fn nothing_deployed_is_told_once() {
        let mut watcher = watcher();
        assert_eq!(told(&mut watcher, Found::Nothing), ["empty"]);
        assert!(told(&mut watcher, Found::Nothing).is_empty());
        assert_eq!(told(&mut watcher, release("a", 1)), ["release Kept"]);
    }
}
