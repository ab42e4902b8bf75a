//! What is decided about releases, carried out: built, written to the history, told.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hsup_proto::control::events_response;
use tokio::{sync::watch, time::sleep};
use tonic::Code;
use tracing::{info, warn};

use super::{
    RunError,
    actor::{Actor, Known, Phase},
    formation::Wanted,
    status,
};
use crate::{
    build::{self, BuildError, Order},
    driver::{Link, Pause, demands, ready, said},
    errors::chain,
    lifecycle::Kind,
    logs::API,
    release::{Release, ReleaseChange},
    releases::{Decision, Id, Why},
    source::{News, Source},
    state::{Artifact, ReleaseRecord, ReleaseState},
};

/// How often a driver is asked again to remove what it has made of a release.
const REMOVE_TRIES: u32 = 5;

/// What came of a build.
#[derive(Debug)]
pub(super) struct Built {
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
    /// Carries out what was decided.
    pub(super) fn decide(&mut self, decisions: Vec<Decision>) {
        for decision in decisions {
            info!(?decision, "release");
            match decision {
                Decision::Build(id) => self.start_build(id, Duration::ZERO),
                Decision::BuildAgain(id) => {
                    let pause = self.build_backoff.crashed(Duration::ZERO);
                    self.start_build(id, pause);
                }
                Decision::Try(id) => self.begin_rollout(id),
                Decision::Run(id) => self.run_release(id),
                Decision::Reject(id, why) => self.reject(id, why),
            }
        }
        let releases = &self.releases;
        let needed: BTreeSet<_> = releases
            .undecided()
            .chain(releases.good())
            .chain(releases.on_trial())
            .collect();
        self.known.retain(|id, _| needed.contains(id));
        self.build_said.retain(|id, _| needed.contains(id));
        self.follow_log_target();
    }

    /// Lines go to where the release that is wanted says.
    pub(super) fn follow_log_target(&self) {
        let target = self
            .wanted()
            .and_then(|known| known.release.log_target.as_ref());
        self.shared.logs.drain_to(target);
    }

    /// Makes sure that the release of this id is at hand.
    pub(super) fn know(&mut self, id: Id) {
        if !self.known.contains_key(&id)
            && let Some(known) = self.remembered(id)
        {
            // The driver has not been asked in this life.
            let artifact = None;
            self.known.insert(id, Known { artifact, ..known });
        }
    }

    /// The release of this id, and what this driver made of it some time.
    pub(super) fn remembered(&self, id: Id) -> Option<Known> {
        let record = self.history.get(id)?;
        let artifact = record.artifact.as_ref();
        let artifact = artifact.filter(|artifact| self.is_of_this_driver(artifact));
        Some(Known {
            id,
            release: Arc::new(record.release.clone()),
            artifact: artifact.map(|artifact| artifact.artifact.as_str().into()),
        })
    }

    /// The release that runs, or is gone back to.
    pub(super) fn good(&self) -> Option<&Known> {
        self.known.get(&self.releases.good()?)
    }

    /// The newest release that is not rejected: what another is compared with.
    pub(super) fn wanted(&self) -> Option<&Known> {
        self.known.get(&self.releases.wanted()?)
    }

    pub(super) fn version(&self, id: Id) -> u64 {
        self.history
            .get(id)
            .map_or(0, |record| record.release.version)
    }

    // ---- building

    fn start_build(&mut self, id: Id, pause: Duration) {
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
        let built = self.built_to.clone();
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
            drop(built.send(Built { id, result }));
        });
        self.build_task = Some(task);
    }

    pub(super) fn stop_building(&mut self) {
        if let Some(task) = self.build_task.take() {
            task.abort();
        }
    }

    pub(super) fn built(&mut self, built: Built) {
        let Built { id, result } = built;
        // What was under way when hsup was told to end may still arrive.
        if self.releases.building() != Some(id) || self.phase != Phase::Running {
            return;
        }
        self.build_task = None;
        match result {
            Ok(artifact) => self.is_built(id, artifact),
            Err(failure) => self.build_failed(id, failure),
        }
    }

    fn is_built(&mut self, id: Id, artifact: Artifact) {
        self.build_backoff.reset();
        self.build_said.remove(&id);
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
        if is_again && self.build_said.get(&id) != Some(&why) {
            self.note_release(format!(
                "Release v{} cannot be built, trying again: {why}",
                self.version(id)
            ));
            self.build_said.insert(id, why);
        }
        self.decide(decisions);
    }

    /// Writes down what can be, when nothing is begun any more.
    pub(super) fn decide_last(&mut self, mut decisions: Vec<Decision>) {
        decisions.retain(|decision| matches!(decision, Decision::Reject(..)));
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

    /// Whether a Build would make the same of it now: what other options would have made of it,
    /// the driver alone knows.
    pub(super) fn is_as_built_now(&self, artifact: &Artifact) -> bool {
        artifact.options == self.shared.driver_options && self.is_of_this_driver(artifact)
    }

    /// An artifact means nothing to another driver than the one that made it.
    fn is_of_this_driver(&self, artifact: &Artifact) -> bool {
        let link = self.link_state.borrow();
        link.info().is_some_and(|info| info.name == artifact.driver)
    }

    /// Whether there is nobody from whom a better release could come.
    pub(super) fn cannot_change(&self) -> bool {
        matches!(self.source, Source::Directory(_)) || self.kind == Kind::OneShot
    }

    // ---- verdicts

    /// The release is the good one now.
    fn run_release(&mut self, id: Id) {
        let Some(record) = self.history.get(id) else {
            return;
        };
        let is_news = record.state != ReleaseState::Current;
        let was_tried = record.state == ReleaseState::RollingOut;
        let (release, scaled_since) = (record.release.clone(), record.scaled_since.clone());
        let before = self.history.last_good().filter(|before| before.id != id);
        if let Some(before) = before {
            self.wishes.follow(&before.release, &release, &scaled_since);
            // A kill before the release is marked has this decided again; after that nobody
            // would know what it was compared with.
            self.remember_scaling();
        }
        if is_news && !was_tried {
            self.release_holds();
        }
        self.see_types(&release);
        self.mark(id, ReleaseState::Current);
        if is_news {
            self.note_release(format!("Release v{} is current", release.version));
        }
        self.say_wishes();
        self.converge();
        self.tell_formation();
    }

    fn reject(&mut self, id: Id, why: Why) {
        let Some(record) = self.history.get(id) else {
            return;
        };
        let version = record.release.version;
        let text = record.text.clone();
        let is_newest = self
            .history
            .iter()
            .next()
            .is_some_and(|newest| newest.id == id);
        let (reason, keeps) = match why {
            Why::Failed(why) => {
                // Where the old dyno had to end first, there is something to go back to.
                let went =
                    record.state == ReleaseState::RollingOut && self.stops_first(&record.release);
                let keeps = match self.good() {
                    Some(good) if went => format!("going back to v{}", good.release.version),
                    _ => self.what_keeps_running(),
                };
                (why, format!(", {keeps}"))
            }
            Why::LeftBehind => ("hsup ended before it was decided".to_owned(), String::new()),
            Why::Overtaken { by } => {
                let aim = match record.state {
                    ReleaseState::RollingOut => "up",
                    _ if record.release_phase.is_some() => "released",
                    _ => "built",
                };
                let by = self.version(by);
                let reason = format!("overtaken by v{by} before it was {aim}");
                (reason, String::new())
            }
        };
        let (gap, mut last_lines) = self.end_trial(id);
        if last_lines.is_empty() {
            last_lines = std::mem::take(&mut self.release_lines);
        }
        let saved = self.history.update(id, |record| {
            record.state = ReleaseState::Rejected;
            record.reason.clone_from(&reason);
            record.gap_ms = i64::try_from(gap.as_millis()).unwrap_or(i64::MAX);
            record.last_lines = last_lines;
        });
        self.complain(saved);
        self.tell_release(id);
        self.note_release(format!("Release v{version} rejected{keeps}: {reason}"));
        // The files of a control directory speak of the newest release only.
        if let Some(text) = text.filter(|_| is_newest) {
            self.news = Some(News::Rejected { text, reason });
        }
    }

    pub(super) fn what_keeps_running(&self) -> String {
        let on_trial = self.releases.on_trial();
        if let Some(on_trial) = on_trial.filter(|_| !self.releases.is_going_back()) {
            return format!("the rollout of v{} goes on", self.version(on_trial));
        }
        match self.good() {
            Some(good) if good.artifact.is_some() => {
                format!("v{} keeps running", good.release.version)
            }
            Some(good) => format!("going back to v{}", good.release.version),
            None => "nothing runs yet".to_owned(),
        }
    }

    // ---- the history

    pub(super) fn mark(&mut self, id: Id, state: ReleaseState) {
        let saved = self.history.update(id, |record| {
            record.state = state;
            record.reason.clear();
        });
        self.complain(saved);
        self.tell_release(id);
    }

    pub(super) fn tell_release(&self, id: Id) {
        if let Some(record) = self.history.get(id) {
            self.event(events_response::Event::Release(status::release(record)));
        }
    }

    /// Makes room for the names in the terminal's first column.
    pub(super) fn expect_names(&self, formation: &[Wanted]) {
        for process in formation {
            if let Some(name) = self.wishes.names(process).last() {
                self.shared.logs.expect_name(&name.to_string());
            }
        }
    }

    pub(super) fn see_types(&mut self, release: &Release) {
        let types = release
            .processes
            .iter()
            .map(|process| &process.process_type);
        let saved = self.memory.see_types(types.clone());
        self.complain(saved);
        self.shared.ports().learn(types);
    }

    /// A stop by hand holds until a new release.
    pub(super) fn release_holds(&mut self) {
        let saved = self.memory.update(|memory| memory.stopped.clear());
        self.complain(saved);
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
