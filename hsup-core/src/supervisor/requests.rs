//! What people ask of the supervisor, carried out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hsup_proto::control::{
    ApplyReleaseResponse, GetStatusRequest, GetStatusResponse, ListReleasesResponse,
    PlanReleaseResponse, RestartRequest, RestartResponse, ScaleRequest, ScaleResponse,
    ShutdownRequest, StartRequest, StartResponse, StopRequest, StopResponse,
};
use tokio::sync::oneshot;

use super::{
    actor::{Actor, LastSeen},
    ending::Phase,
    formation,
    handle::{Applied, Request},
    intake::Taken,
    restarts::Settled,
    status,
    waiters::Until,
};
use crate::{
    control::ControlError,
    lifecycle::{Kind, Stop},
    name::{DynoName, ProcessType},
    plan,
    release::Release,
    releases::Newness,
    rollout,
    source::{ControlText, News, Origin, Source, control_file},
    state::ReleaseRecord,
};

/// How a release comes that is not the source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    Apply,
    Rollback,
}

impl Actor {
    pub(super) fn request(&mut self, request: Request) {
        if self.phase != Phase::Running
            && !matches!(
                request,
                Request::Status(..) | Request::Releases(..) | Request::Shutdown(..)
            )
        {
            request.refuse(&ControlError::ShuttingDown);
            return;
        }
        // A reply that nobody waits for any more is dropped.
        match request {
            Request::Status(request, reply) => drop(reply.send(self.status(&request))),
            Request::Scale(request, reply) => drop(reply.send(self.scale(&request))),
            Request::Start(request, reply) => drop(reply.send(self.start(&request))),
            Request::Stop(request, reply) => drop(reply.send(self.stop(&request))),
            Request::Restart(request, reply) => drop(reply.send(self.restart(&request))),
            Request::Releases(reply) => {
                let releases = self.history.iter().map(status::release).collect();
                drop(reply.send(Ok(ListReleasesResponse { releases })));
            }
            Request::Quotas(reply) => {
                let quotas = self.dynos.iter().filter_map(|(_, live)| {
                    let spec = &live.handle.spec;
                    Some((spec.name.to_string(), spec.release.limits.memory_bytes?))
                });
                drop(reply.send(Ok(quotas.collect())));
            }
            Request::Apply(request, reply) => {
                drop(reply.send(self.apply(&request.json, request.no_wait)));
            }
            Request::Rollback(request, reply) => {
                drop(reply.send(self.rollback(&request)));
            }
            Request::Release(id, reply) => {
                let record = self.history.get(id).map(status::release);
                let missing = || ControlError::NotFound("the release is forgotten".to_owned());
                drop(reply.send(record.ok_or_else(missing)));
            }
            Request::Plan(request, reply) => drop(reply.send(self.plan(&request.json))),
            Request::Shutdown(request, reply) => {
                self.shut_down(self.how(request));
                self.ending.push(reply);
            }
            Request::Leave(reply) => {
                self.save_again();
                drop(reply.send(Ok(())));
            }
        }
    }

    /// How a shutdown is to stop dynos.
    pub(super) fn how(&self, request: ShutdownRequest) -> Stop {
        match request.grace_ms {
            None => self.gracefully(),
            Some(0) => Stop::Immediately,
            Some(ms) => Stop::Gracefully {
                grace: Duration::from_millis(ms.into()),
            },
        }
    }

    fn status(&self, request: &GetStatusRequest) -> Result<GetStatusResponse, ControlError> {
        let names = self.selected(&request.select)?;
        let wanted = self
            .good()
            .map_or_else(BTreeSet::new, |good| self.wishes.all_names(&good.release));
        let mut dynos = Vec::with_capacity(names.len());
        let mut all_up = self.good().is_some();
        for name in &names {
            let live: Vec<_> = self.dynos.of_name(name).collect();
            let wanted_up = wanted.contains(name)
                && !self.is_held(name)
                && !self.past.get(name).is_some_and(LastSeen::is_complete);
            if wanted_up {
                all_up &= live
                    .iter()
                    .any(|(_, live)| live.status.ready && !live.retiring);
            }
            if live.is_empty() {
                dynos.push(match self.past.get(name) {
                    Some(past) => status::past(name, past),
                    None => self.absent(name),
                });
            }
            for (_, live) in live {
                let mut dyno = status::dyno(live);
                if request.last_lines > 0
                    && let Some(crash) = &live.status.crash
                {
                    dyno.crash_lines = crash.last_lines.to_vec();
                }
                dynos.push(dyno);
            }
        }
        let driver = status::link(&self.link_state.borrow());
        Ok(GetStatusResponse {
            app: self.name_of_app(),
            release: self
                .releases
                .good()
                .and_then(|id| self.history.get(id))
                .map(status::release),
            formation: formation::to_wire(&self.formation()),
            dynos,
            driver: driver.name,
            driver_ready: driver.ready,
            driver_message: driver.message,
            hsup_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_unix_ms: self.started_at_unix_ms,
            all_up,
            pid: std::process::id(),
        })
    }

    /// As its release has it; as long as there is none, as its directory is called.
    fn name_of_app(&self) -> String {
        let known = self.good().or_else(|| self.wanted());
        known.map_or_else(|| self.app.clone(), |known| known.release.app.clone())
    }

    fn absent(&self, name: &DynoName) -> hsup_proto::control::Dyno {
        let good = self.good();
        let version = good.map_or(0, |good| good.release.version);
        let command = good
            .and_then(|good| good.release.process(name.process_type.as_str()))
            .map_or("", |process| process.command.as_str());
        status::absent(name, version, command)
    }

    fn running_release(&self) -> Result<&Release, ControlError> {
        match self.good() {
            Some(good) => Ok(&good.release),
            None => Err(ControlError::Rejected(
                "there is no release yet: nothing to scale, start or stop".to_owned(),
            )),
        }
    }

    fn scale(&mut self, request: &ScaleRequest) -> Result<ScaleResponse, ControlError> {
        let release = self.running_release()?.clone();
        if !request.changes.is_empty() {
            self.wishes.scale(&release, &request.changes)?;
            self.remember_scaling();
            // Scaling a type is wanting it: a stop by hand ends here.
            let types = request.changes.iter().map(|change| &change.process_type);
            let types: BTreeSet<ProcessType> = types.flat_map(|text| text.parse()).collect();
            let saved = self.memory.update(|memory| {
                let stopped = &mut memory.stopped;
                stopped.retain(|name| !types.contains(&name.process_type));
            });
            self.complain(saved);
            let undecided: Vec<_> = self.releases.undecided().collect();
            for id in undecided {
                let said = |record: &mut ReleaseRecord| {
                    record.scaled_since.extend(types.iter().cloned());
                };
                let saved = self.history.update(id, said);
                self.complain(saved);
            }
            self.note_scaled("hsupctl");
            self.expect_names(&self.formation());
            self.converge();
            self.tell_formation();
        }
        Ok(ScaleResponse {
            formation: formation::to_wire(&self.formation()),
        })
    }

    /// Says what the formation is now, in Heroku's words.
    pub(super) fn note_scaled(&self, by: &str) {
        let said: Vec<_> = self
            .formation()
            .iter()
            .map(|process| format!("{}@{}", process.process_type, process.quantity))
            .collect();
        self.note_release(format!("Scaled to {} by {by}", said.join(" ")));
    }

    fn start(
        &mut self,
        request: &StartRequest,
    ) -> Result<(StartResponse, Option<Settled>), ControlError> {
        self.running_release()?;
        let names = self.selected(&request.select)?;
        let started = self.start_stopped(&names);
        let response = StartResponse {
            dynos: started.iter().map(ToString::to_string).collect(),
        };
        let wait = (!request.no_wait).then(|| self.wait_until_up(&started));
        Ok((response, wait))
    }

    /// Starts those of `names` that somebody has stopped, or that ran once; answers which.
    fn start_stopped(&mut self, names: &BTreeSet<DynoName>) -> BTreeSet<DynoName> {
        let is_complete = |name| self.past.get(name).is_some_and(LastSeen::is_complete);
        let down: BTreeSet<_> = names
            .iter()
            .filter(|name| self.is_held(name) || is_complete(name))
            .cloned()
            .collect();
        if down.is_empty() {
            return down;
        }
        let saved = self.memory.update(|memory| {
            for name in &down {
                memory.stopped.remove(name);
            }
        });
        self.complain(saved);
        for name in &down {
            self.past.remove(name);
        }
        self.converge();
        down
    }

    /// Tells which of these do not come up, once that is known of each.
    fn wait_until_up(&mut self, names: &BTreeSet<DynoName>) -> Settled {
        let (mut open, mut coming) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            let of_name: Vec<_> = self.dynos.of_name(name).collect();
            match of_name.iter().find(|(_, live)| !live.retiring) {
                Some((_, live)) if live.status.ready => {}
                Some((key, _)) => drop(open.insert(*key)),
                None if of_name.is_empty() => {}
                // The next one begins when this one has ended.
                None => drop(coming.insert(name.clone())),
            }
        }
        self.restarts.wait_for(open, coming)
    }

    fn stop(
        &mut self,
        request: &StopRequest,
    ) -> Result<(StopResponse, Option<oneshot::Receiver<()>>), ControlError> {
        let how = if request.force {
            Stop::Immediately
        } else {
            match request.grace_ms {
                Some(ms) => Stop::Gracefully {
                    grace: Duration::from_millis(ms.into()),
                },
                None => self.gracefully(),
            }
        };
        let names = self.selected(&request.select)?;
        let held: Vec<_> = names
            .iter()
            .filter(|name| !self.is_held(name) && !name.process_type.is_release())
            .cloned()
            .collect();
        let saved = self
            .memory
            .update(|memory| memory.stopped.extend(held.iter().cloned()));
        self.complain(saved);
        let mut stopped = Vec::new();
        let mut keys = BTreeSet::new();
        for name in &names {
            let of_name: Vec<_> = self.dynos.of_name(name).map(|(key, _)| key).collect();
            if !of_name.is_empty() {
                stopped.push(name.to_string());
            }
            for key in of_name {
                self.retire(key, how);
                keys.insert(key);
            }
            self.forget_in_rollout(name, None, rollout::Event::Stopped);
        }
        let wait = (!request.no_wait).then(|| self.wait_until(Until::Gone(keys)));
        Ok((StopResponse { dynos: stopped }, wait))
    }

    /// A stop by hand holds until a new release.
    pub(super) fn release_holds(&mut self) {
        let saved = self.memory.update(|memory| memory.stopped.clear());
        self.complain(saved);
    }

    fn restart(
        &mut self,
        request: &RestartRequest,
    ) -> Result<(RestartResponse, Option<Settled>), ControlError> {
        let names = self.selected(&request.select)?;
        // What has ended is meant where it is named.
        let is_named = !request.select.is_empty();
        if self.kind == Kind::OneShot
            && let Some(name) = names.iter().find(|name| self.has_run(name, is_named))
        {
            return Err(ControlError::Rejected(format!(
                "{name} is not started twice: hsup runs with --oneshot"
            )));
        }
        let how = self.gracefully();
        let mut restarted = BTreeSet::new();
        for (_, live) in self.dynos.iter_mut() {
            let name = &live.handle.spec.name;
            // Those that retire are as good as gone; a release command is not run twice.
            if !names.contains(name) || live.retiring || name.process_type.is_release() {
                continue;
            }
            restarted.insert(name.clone());
            live.restart(how);
        }
        // What somebody has stopped is started by whoever means it, and not by a restart of
        // everything.
        if is_named {
            restarted.extend(self.start_stopped(&names));
        }
        let wait = (!request.no_wait).then(|| self.wait_until_up(&restarted));
        let response = RestartResponse {
            dynos: restarted.iter().map(ToString::to_string).collect(),
        };
        Ok((response, wait))
    }

    /// Whether a dyno of this name runs, or did, if those that ended are meant as well.
    fn has_run(&self, name: &DynoName, or_did: bool) -> bool {
        let mut of_name = self.dynos.of_name(name);
        of_name.any(|(_, live)| or_did || !live.retiring) || or_did && self.past.contains_key(name)
    }

    fn parse(&self, json: &[u8]) -> Result<(Release, Vec<String>), ControlError> {
        let parsed = control_file::parse(json)
            .map_err(|error| ControlError::Invalid(crate::errors::chain(&error)))?;
        let (mut release, mut warnings) = (parsed.release, parsed.warnings);
        warnings.extend(self.lasts_until(Handed::Apply).map(str::to_owned));
        self.name_app(&mut release);
        Ok((release, warnings))
    }

    /// What becomes of a release that does not come from the source. None: it stays.
    pub(super) fn lasts_until(&self, handed: Handed) -> Option<&'static str> {
        match (&self.source, handed) {
            (Source::Directory(_), Handed::Apply) => Some(
                "the next start of hsup runs the Procfile again: a release that is applied lasts \
                 until then, in a control directory for good",
            ),
            (Source::Directory(_), Handed::Rollback) => Some(
                "the next start of hsup runs the Procfile again: a rollback lasts until then, in a \
                 control directory for good",
            ),
            (Source::Heroku(_), Handed::Apply) => {
                Some("a release that is applied lasts until the next one on Heroku")
            }
            (Source::Heroku(_), Handed::Rollback) => {
                Some("a rollback lasts until the next release on Heroku")
            }
            (Source::ControlDir(_), _) => None,
        }
    }

    /// Takes in a release from hsupctl. A control directory keeps it, as if it had come as a
    /// file.
    fn apply(&mut self, json: &[u8], no_wait: bool) -> Result<Applied, ControlError> {
        let (release, warnings) = self.parse(json)?;
        let text = match &self.source {
            Source::ControlDir(_) => Some(ControlText::new(json)),
            Source::Directory(_) | Source::Heroku(_) => None,
        };
        let taken = self
            .take_in(release, text, Origin::Apply, Newness::New)
            .map_err(ControlError::Rejected)?;
        self.news = Some(News::TakenIn);
        Ok(self.applied(taken, warnings, no_wait))
    }

    /// The answer to whoever handed in a release.
    pub(super) fn applied(
        &mut self,
        taken: Taken,
        warnings: Vec<String>,
        no_wait: bool,
    ) -> Applied {
        let id = taken.id();
        let is_decided = self.is_decided(id);
        let response = ApplyReleaseResponse {
            release: self.history.get(id).map(status::release),
            warnings,
            unchanged: is_decided && matches!(taken, Taken::Unchanged(_)),
        };
        let decided = (!is_decided && !no_wait).then(|| (id, self.wait_until(Until::Decided(id))));
        Applied { response, decided }
    }

    fn plan(&self, json: &[u8]) -> Result<PlanReleaseResponse, ControlError> {
        let (release, warnings) = self.parse(json)?;
        let newest = self.wanted().map(|known| Arc::clone(&known.release));
        let mut wishes = self.wishes.clone();
        let before = newest.as_deref().map_or_else(BTreeSet::new, |old| {
            let before = wishes.all_names(old);
            wishes.follow(old, &release, &BTreeSet::new());
            before
        });
        let after = wishes.all_names(&release);
        Ok(plan::plan(
            newest.as_deref(),
            &release,
            &before,
            &after,
            warnings,
        ))
    }
}
