//! Having releases built: what the driver makes of them, has made of them before, and may
//! remove again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tonic::Code;
use tracing::warn;

use super::{RunError, actor::Actor, ending::Phase};
use crate::{
    backoff::{Backoff, Policy},
    build::{self, BuildError, Order},
    driver::{Link, Pause, demands, ready, said},
    errors::chain,
    lifecycle::Kind,
    logs::API,
    random,
    release::ReleaseChange,
    releases::{Decision, Id},
    source::Source,
    state::{Artifact, ReleaseRecord, ReleaseState},
};

/// How often a driver is asked again to remove what it has made of a release.
const REMOVE_TRIES: u32 = 5;

/// How far building is.
#[derive(Debug)]
pub(super) struct Builds {
    /// What has the driver build.
    pub(super) task: Option<JoinHandle<()>>,
    pub(super) backoff: Backoff,
    /// Why releases that are built again and again cannot be built, as people were told.
    pub(super) said: BTreeMap<Id, String>,
}

impl Builds {
    pub(super) fn new() -> Self {
        Self {
            task: None,
            backoff: Backoff::new(Policy::default(), random::u64()),
            said: BTreeMap::new(),
        }
    }
}

/// What came of a build.
#[derive(Debug)]
pub(super) struct BuildDone {
    pub(super) id: Id,
    pub(super) result: Result<Artifact, NotBuilt>,
}

/// Why a build failed.
#[derive(Debug)]
pub(super) struct NotBuilt {
    pub(super) why: String,
    /// It is the machine's fault and may pass.
    pub(super) no_room: bool,
}

impl NotBuilt {
    fn of(error: &BuildError) -> Self {
        Self {
            why: chain(error),
            no_room: matches!(error, BuildError::NoRoom(_)),
        }
    }
}

/// How a driver says, in Heroku's words and with its slip, that a slug is not the one that was meant.
const CHECKSUM_ERROR: &str = "Checksum does match expected value.";

impl Actor {
    pub(super) fn start_build(&mut self, id: Id, pause: Duration) {
        self.stop_building();
        self.know(id);
        let Some(known) = self.known.get(&id) else {
            return;
        };
        let release = Arc::clone(&known.release);
        let kept = self.good().and_then(|good| {
            let change = release.change_from(&good.release);
            let needs_none = matches!(change, ReleaseChange::Replace { builds: false });
            good.artifact.clone().filter(|_| needs_none)
        });
        let kept = kept.or_else(|| self.artifact_repeated(id));
        if self.releases.good() != Some(id) {
            self.mark(id, ReleaseState::Building);
        }
        let mut link = self.shared.link.clone();
        let base = self.base.clone();
        let locator = self.shared.locator.clone();
        let options = self.shared.driver_options.clone();
        // Without its URL the driver may still have what it made of it.
        let insists = self.artifact_of_before(id).is_none();
        let done = self.built_to.clone();
        let logs = self.shared.logs.clone();
        let task = tokio::spawn(async move {
            sleep(pause).await;
            let driver = ready(&mut link).await;
            if let Some(unmet) = demands::unmet(&driver.info, &release) {
                logs.note(API, format!("Warning: {unmet}"));
            }
            let result = match kept {
                Some(artifact) => Ok(Artifact {
                    driver: driver.info.name.clone(),
                    options,
                    artifact: artifact.to_string(),
                }),
                None => match Order::of(&release, &options, &base, locator.as_deref(), insists) {
                    Err(error) => Err(NotBuilt {
                        why: chain(&error),
                        no_room: false,
                    }),
                    Ok(order) => build::build(&mut link, order, |saying| match saying {
                        build::Saying::Log(bytes) if !bytes.is_empty() => {
                            logs.note("build", String::from_utf8_lossy(&bytes));
                        }
                        build::Saying::Log(_) => {}
                        build::Saying::Progress(line) => logs.note("build", line),
                        build::Saying::NotYet(why) => {
                            logs.note("build", format!("It cannot be built yet: {why}"));
                        }
                    })
                    .await
                    .map_err(|error| NotBuilt::of(&error)),
                },
            };
            // No receiver means that hsup ends.
            drop(done.send(BuildDone { id, result }));
        });
        self.builds.task = Some(task);
    }

    pub(super) fn stop_building(&mut self) {
        if let Some(task) = self.builds.task.take() {
            task.abort();
        }
    }

    pub(super) fn built(&mut self, done: BuildDone) {
        let BuildDone { id, result } = done;
        // What was under way when hsup was told to end may still arrive.
        if self.releases.building() != Some(id) || self.phase != Phase::Running {
            return;
        }
        self.builds.task = None;
        match result {
            Ok(artifact) => self.is_built(id, artifact),
            Err(failure) => self.build_failed(id, failure),
        }
    }

    fn is_built(&mut self, id: Id, artifact: Artifact) {
        self.builds.backoff.reset();
        self.builds.said.remove(&id);
        let made: Arc<str> = artifact.artifact.as_str().into();
        self.shared.built.put(id, Arc::clone(&made));
        if let Some(known) = self.known.get_mut(&id) {
            known.artifact = Some(made);
        }
        let saved = self
            .history
            .update(id, |record| record.artifact = Some(artifact));
        self.complain(saved);
        self.release_or_try(id);
    }

    fn build_failed(&mut self, id: Id, failure: NotBuilt) {
        let NotBuilt { why, no_room } = failure;
        if let Some(at) = why.find(CHECKSUM_ERROR) {
            let text = format!("Error R17 (Checksum error) -> {}", &why[at..]);
            self.shared.logs.note("build", text);
        }
        if let Some(artifact) = self.artifact_of_before(id) {
            self.note_release(format!(
                "Release v{} could not be built again, running what was built before: {why}",
                self.version(id)
            ));
            return self.is_built(id, artifact);
        }
        let decisions = if no_room {
            self.releases.no_room_to_build(id)
        } else {
            self.releases.build_failed(id, why.clone())
        };
        let is_again = matches!(decisions[..], [Decision::BuildAgain(_)]);
        let nothing_better = is_again || self.kind == Kind::OneShot;
        let is_stuck = self.releases.is_empty() || nothing_better && self.dynos.is_empty();
        if is_stuck && self.cannot_change() {
            self.decide_last(decisions);
            return self.fail(RunError::NoRelease(why));
        }
        if is_again && self.builds.said.get(&id) != Some(&why) {
            self.note_release(format!(
                "Release v{} cannot be built, trying again: {why}",
                self.version(id)
            ));
            self.builds.said.insert(id, why);
        }
        self.decide(decisions);
    }

    /// What this driver made of the good release in an earlier life: when it cannot be built
    /// again, that is better than nothing. A directory is the app itself, and may have
    /// changed since.
    fn artifact_of_before(&self, id: Id) -> Option<Artifact> {
        if self.releases.good() != Some(id) || matches!(self.source, Source::Directory(_)) {
            return None;
        }
        let artifact = self.history.get(id)?.artifact.clone()?;
        self.is_as_built_now(&artifact).then_some(artifact)
    }

    /// What this driver made of the release that this one repeats. Should it have lost it, that
    /// is seen when a dyno is started, and it is built then.
    fn artifact_repeated(&self, id: Id) -> Option<Arc<str>> {
        let earlier = self.history.get(id)?.repeats?;
        let artifact = self.history.get(earlier)?.artifact.as_ref()?;
        let holds = self.is_as_built_now(artifact);
        holds.then(|| artifact.artifact.as_str().into())
    }

    /// The version of the release that this one repeats.
    pub(super) fn version_repeated(&self, id: Id) -> Option<u64> {
        let record = self.history.get(id)?;
        // It may be forgotten by now.
        let earlier = self.history.get(record.repeats?).unwrap_or(record);
        Some(earlier.release.version)
    }

    /// Whether a Build would make the same of it now: what other options would have made of it,
    /// the driver alone knows.
    pub(super) fn is_as_built_now(&self, artifact: &Artifact) -> bool {
        artifact.options == self.shared.driver_options && self.is_of_this_driver(artifact)
    }

    /// An artifact means nothing to another driver than the one that made it.
    pub(super) fn is_of_this_driver(&self, artifact: &Artifact) -> bool {
        let link = self.link_state.borrow();
        link.info().is_some_and(|info| info.name == artifact.driver)
    }

    /// Has the driver remove what nobody will start again.
    pub(super) fn forget_artifacts(&self, forgotten: &[ReleaseRecord]) {
        for record in forgotten {
            self.shared.built.forget(record.id);
        }
        let kept: BTreeSet<_> = self
            .history
            .iter()
            .filter_map(|record| record.artifact.as_ref())
            .map(|artifact| &artifact.artifact)
            .collect();
        let gone: BTreeSet<_> = forgotten
            .iter()
            .filter_map(|record| record.artifact.as_ref())
            .map(|artifact| &artifact.artifact)
            .filter(|artifact| !kept.contains(artifact))
            .cloned()
            .collect();
        if gone.is_empty() {
            return;
        }
        let link = self.shared.link.clone();
        tokio::spawn(join_all(gone.into_iter().map(move |artifact| {
            let link = link.clone();
            async move { remove_artifact(link, &artifact).await }
        })));
    }
}

/// Has the driver remove what it has made of a release. No list names it any more: who does not
/// ask again now never does.
async fn remove_artifact(mut link: watch::Receiver<Link>, artifact: &str) {
    let mut pause = Pause::new();
    let mut tries = 0..REMOVE_TRIES;
    loop {
        let driver = ready(&mut link).await;
        let Err(status) = driver.remove_artifact(artifact).await else {
            return;
        };
        match status.code() {
            Code::NotFound => return,
            // What it works with is away, or it is itself.
            Code::Unavailable => {}
            _ => {
                warn!(artifact, said = said(&status), "artifact not removed");
                if tries.next().is_none() {
                    return;
                }
            }
        }
        pause.wait().await;
    }
}
