//! What comes from the source, and from people who apply a release: taken in, compared with
//! what is wanted already, or refused. What became of it goes back to the source.

use std::collections::BTreeSet;

use hsup_proto::control::events_response;

use super::{
    RunError,
    actor::{Actor, Known},
    formation, release_phase,
};
use crate::{
    errors::chain,
    lifecycle::Kind,
    name::ProcessType,
    release::{Release, ReleaseChange},
    releases::{Id, Newness},
    source::{ControlText, Keep, Loaded, News, Origin, Source, Update},
    state::{ReleaseRecord, ReleaseState},
    time::now_unix_ms,
};

/// What became of a release that was handed in: which one of the history it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is the same as this one, which is the newest.
    Unchanged(Id),
    /// Only quantities differed; this one has them now.
    Scaled(Id),
    /// It is new, and is being built.
    In(Id),
}

impl Taken {
    pub(super) const fn id(self) -> Id {
        let (Self::Unchanged(id) | Self::Scaled(id) | Self::In(id)) = self;
        id
    }
}

impl Actor {
    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Release(loaded) => self.loaded(*loaded),
            Update::Empty { why, is_final } => self.empty(&why, is_final),
            Update::Late { why } => self.late(&why),
            Update::Scaled(quantities) => self.scaled(&quantities),
            Update::Rejected { reason } => self.tell_refused(&reason),
            Update::Warning(text) => self.note(text),
        }
    }

    fn loaded(&mut self, loaded: Loaded) {
        for warning in &loaded.warnings {
            self.note_release(format!("Warning: {warning}"));
        }
        let (text, newness) = (loaded.text.clone(), loaded.newness);
        let version = loaded.release.version;
        let again = Box::new(Loaded {
            warnings: Vec::new(),
            ..loaded.clone()
        });
        let taken = match newness {
            Newness::New => self.take_in(loaded.release, loaded.text, loaded.origin, newness),
            Newness::Kept => self.keep_on(loaded),
        };
        match (taken, newness) {
            (Ok(_), _) => {}
            (Err(why), newness)
                if newness == Newness::New || self.has_begun || self.has_another() =>
            {
                if let Some(text) = text {
                    let reason = why.clone();
                    self.news = Some(News::Rejected { text, reason });
                }
                if self.source.take_back(again) {
                    self.tell_not_taken(version, &why);
                }
            }
            // It is all there is: what survived waits with its driver for a start that can.
            (Err(why), _) => return self.fail(RunError::NoRelease(why)),
        }
        self.begin();
    }

    /// Whether there is a release of an earlier life to begin with where the first one of the
    /// source is none: its dynos may run, and none of them goes for that.
    fn has_another(&self) -> bool {
        let has_types = |known: &Known| self.check_types(&known.release).is_ok();
        self.wanted().is_some_and(has_types)
    }

    /// Goes on with what an earlier life of hsup had left to begin with. The history knows
    /// better what that is; what it does not know was put there by somebody else.
    fn keep_on(&mut self, loaded: Loaded) -> Result<Taken, String> {
        let mut release = loaded.release;
        self.name_app(&mut release);
        let (newness, knows_quantities) = match &self.source {
            // Its directory is the app: there is no other one to do better with.
            Source::Directory(_) => (Newness::New, true),
            Source::ControlDir(_) => (Newness::Kept, true),
            // It may be newer than anything that ran here. Its quantities are the app's.
            Source::Heroku(_) => (Newness::New, false),
        };
        let is_same = |other: &Release| match release.change_from(other) {
            ReleaseChange::Nothing => true,
            ReleaseChange::QuantitiesOnly => !knows_quantities,
            ReleaseChange::Replace { .. } => false,
        };
        let wanted = self
            .wanted()
            .map(|known| (known.id, is_same(&known.release)));
        let passed_over = wanted.and_then(|(id, is_wanted)| {
            let is_the_app = matches!(self.source, Source::Directory(_));
            let mut records = self.history.iter().filter(|_| !is_wanted && !is_the_app);
            let record = records.find(|record| is_same(&record.release))?;
            Some((id, self.passed_over(record, id)))
        });
        if let Some((id, line)) = passed_over {
            self.note_release(line);
            if !knows_quantities {
                self.scaled(&release.quantities());
            }
            return Ok(Taken::Unchanged(id));
        }
        self.take_in(release, loaded.text, loaded.origin, newness)
    }

    /// Why the release of `record` is not begun with, but the one of this id is.
    fn passed_over(&self, record: &ReleaseRecord, id: Id) -> String {
        let (version, wanted) = (record.release.version, self.version(id));
        match record.state {
            ReleaseState::Rejected => format!(
                "Release v{version} was rejected ({}): {}",
                record.reason,
                self.going_on_with(id)
            ),
            _ => format!("Release v{version} was here before v{wanted}, which is gone on with"),
        }
    }

    /// The source has nothing to begin with.
    fn empty(&mut self, why: &str, is_final: bool) {
        match self.releases.wanted() {
            Some(id) => self.note_release(format!("{why}: {}", self.going_on_with(id))),
            None if is_final || self.kind == Kind::OneShot => {
                return self.fail(RunError::NoRelease(why.to_owned()));
            }
            None => {
                let hint = match &self.source {
                    Source::ControlDir(directory) => {
                        format!(
                            ": write one to `{}`",
                            directory.path().join("new").display()
                        )
                    }
                    Source::Directory(_) | Source::Heroku(_) => String::new(),
                };
                self.note(format!("No release yet ({why}){hint}"));
            }
        }
        self.begin();
    }

    /// The source takes long for its first word.
    fn late(&mut self, why: &str) {
        if self.releases.wanted().is_some() {
            self.empty(why, false);
        } else {
            self.note(format!("No release yet ({why})"));
        }
    }

    fn going_on_with(&self, id: Id) -> String {
        let version = self.version(id);
        if self.releases.good() == Some(id) {
            format!("running v{version}, the last good one")
        } else {
            format!("going on with v{version}, which was not decided yet")
        }
    }

    /// The source has said its first word: what an earlier life left is taken up, unless
    /// there is something newer.
    fn begin(&mut self) {
        if self.has_begun {
            return;
        }
        if let Some(wanted) = self.wanted()
            && let Err(why) = self.check_types(&wanted.release)
        {
            return self.fail(RunError::NoRelease(why));
        }
        self.has_begun = true;
        if let Some(wanted) = self.wanted() {
            self.tell_idle(&wanted.release);
        }
        // What the command line names can be run.
        let saved = self.memory.update(|_| ());
        self.complain(saved);
        let decisions = self.releases.begin();
        self.decide(decisions);
    }

    /// Takes in a release: nothing to do, quantities to change, or a build to begin.
    pub(super) fn take_in(
        &mut self,
        mut release: Release,
        text: Option<ControlText>,
        origin: Origin,
        newness: Newness,
    ) -> Result<Taken, String> {
        self.name_app(&mut release);
        if !self.has_begun {
            // A later release may do without a type that the command line named.
            self.check_types(&release)?;
        }
        self.expect_names(&self.wishes.formation(&release));
        // Of what is begun with it is told when that is known.
        if self.has_begun {
            self.tell_idle(&release);
        }
        if let Some(wanted) = self.wanted() {
            let id = wanted.id;
            match release.change_from(&wanted.release) {
                ReleaseChange::Nothing => {
                    self.remember_text(id, text);
                    return Ok(Taken::Unchanged(id));
                }
                ReleaseChange::QuantitiesOnly => {
                    let ships_elsewhere = release.log_target != wanted.release.log_target;
                    let before = self.formation();
                    self.change_quantities(id, release);
                    self.quantities_changed();
                    if self.formation() != before {
                        self.note_scaled(&origin.to_string());
                    }
                    if ships_elsewhere {
                        let version = self.version(id);
                        self.note_release(format!("Log target of v{version} changed by {origin}"));
                    }
                    self.remember_text(id, text);
                    return Ok(Taken::Scaled(id));
                }
                ReleaseChange::Replace { .. } => {}
            }
        }
        let version = release.version;
        let repeats = match origin {
            Origin::Rollback { id, .. } => Some(id),
            _ => None,
        };
        let taken = self
            .history
            .take_in(release, text, origin.to_string(), repeats, now_unix_ms())
            .map_err(|error| chain(&error))?;
        self.forget_artifacts(&taken.forgotten);
        self.know(taken.id);
        if self.awaits_release_phase(taken.id) {
            let name = release_phase::dyno_name(taken.id);
            self.shared.logs.expect_name(&name.to_string());
        }
        self.note_release(format!("Release v{version} created by {origin}"));
        let decisions = self.releases.taken_in(taken.id, newness);
        self.decide(decisions);
        Ok(Taken::In(taken.id))
    }

    /// Says which strategies a release has no dynos for: one of a type that is written wrongly
    /// would be missed where it is meant.
    fn tell_idle(&self, release: &Release) {
        if let Some(idle) = self.rollouts.idle(release) {
            self.note_release(format!("Warning: {idle}"));
        }
    }

    pub(super) fn name_app(&self, release: &mut Release) {
        if release.app.is_empty() {
            release.app.clone_from(&self.app);
        }
    }

    /// The same release may have been written in other words.
    fn remember_text(&mut self, id: Id, text: Option<ControlText>) {
        if text.is_some() {
            let saved = self.history.update(id, |record| record.text = text);
            self.complain(saved);
        }
    }

    /// The app has other quantities, whatever its release: the good one is changed, and every
    /// one that may still become good.
    fn scaled(&mut self, quantities: &[(ProcessType, u32)]) {
        let before = self.formation();
        let mut is_news = false;
        let hopeful: Vec<Id> = self.releases.hopeful().collect();
        for id in hopeful {
            let Some(known) = self.known.get(&id) else {
                continue;
            };
            let mut release = Release::clone(&known.release);
            release.scale(quantities);
            if release != *known.release {
                self.expect_names(&self.wishes.formation(&release));
                self.change_quantities(id, release);
                is_news = true;
            }
        }
        // Not before all of them are changed: else one would lose dynos that it is to have.
        if is_news {
            self.quantities_changed();
        }
        if self.formation() != before {
            self.note_scaled(&Origin::Heroku.to_string());
        }
    }

    fn change_quantities(&mut self, id: Id, release: Release) {
        let Some(known) = self.known.get(&id).cloned() else {
            return;
        };
        let is_good = self.releases.good() == Some(id);
        if is_good {
            let none = BTreeSet::new();
            self.wishes.follow(&known.release, &release, &none);
        }
        let saved = self.history.update(id, |record| {
            // The release is the later word again, where it says something else.
            record.scaled_since.retain(|process_type| {
                known.release.quantity_of(process_type) == release.quantity_of(process_type)
            });
            record.release = release.clone();
        });
        self.complain(saved);
        let release = release.into();
        self.known.insert(id, Known { release, ..known });
        if is_good {
            self.remember_scaling();
        }
    }

    /// Acts upon [`Actor::change_quantities`].
    fn quantities_changed(&mut self) {
        self.follow_log_target();
        self.converge();
        self.tell_formation();
    }

    /// `hsup start TYPE…` must name types that there are.
    pub(super) fn check_types(&self, release: &Release) -> Result<(), String> {
        self.wishes
            .check(release)
            .map_err(|error| error.to_string())
    }

    fn tell_refused(&self, why: &str) {
        let keeps = self.what_keeps_running();
        self.note_release(format!("Release rejected, {keeps}: {why}"));
    }

    /// Says that a release could not even be taken in, for a reason that is none of its own.
    fn tell_not_taken(&self, version: u64, why: &str) {
        if !self.source.comes_again() {
            return self.tell_refused(why);
        }
        let keeps = match self.releases.wanted() {
            // Nothing has begun yet that could go on, or be gone back to.
            Some(id) if !self.has_begun => self.going_on_with(id),
            _ => self.what_keeps_running(),
        };
        self.note_release(format!(
            "Release v{version} cannot be taken in, trying again, {keeps}: {why}"
        ));
    }

    /// Tells the source what a start of hsup is to begin with from now on, and what came of
    /// the newest release.
    pub(super) async fn tell_source(&mut self) {
        if !self.has_begun {
            return;
        }
        let keep = match self.releases.wanted() {
            None => Keep::Nothing,
            Some(id) => {
                let text = self.history.get(id).and_then(|record| record.text.clone());
                text.map_or(Keep::WhatIsThere, Keep::Release)
            }
        };
        if let Err(error) = self.source.tell(&keep, self.news.take()).await {
            self.note(chain(&error));
        }
    }

    pub(super) fn remember_scaling(&mut self) {
        let scaled = self.wishes.scaled.clone();
        let saved = self.memory.update(|memory| memory.quantities = scaled);
        self.complain(saved);
    }

    pub(super) fn tell_formation(&self) {
        let processes = formation::to_wire(&self.formation());
        self.event(events_response::Event::Formation(
            events_response::Formation { processes },
        ));
    }
}
