//! Which release is good, which is on trial and which comes next, as a pure state machine.
//!
//! ```text
//!   taken in ──▶ building ──built──▶ on trial ──up──▶ good
//!                   │          │        │
//!                   │          └▶ next ─┘ (while another one is undone)
//!                   └──▶ rejected ◀─────┘
//! ```
//!
//! Three rules hold in any order of releases, failures and restarts of hsup, and the tests
//! try them all: a release that was good once is never rejected, the last good one is never
//! lost, and none stays undecided for ever, unless the driver has no room to build it.
//!
//! Releases go by the ids of the history on disk, where a newer one has the larger id. It and
//! this are one truth: every [`Decision`] is written there before it is acted upon, and
//! [`Releases::restarted`] begins with what it says. Which release a restart is to begin
//! with, [`Releases::wanted`], is also what a control directory's file `loaded` holds.

/// Who a release is, in the history.
pub type Id = u64;

/// What is to be done about a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Have the driver build it, and run its release command; answer with
    /// [`Releases::built`], [`Releases::build_failed`], [`Releases::no_room_to_build`] or
    /// [`Releases::release_failed`].
    Build(Id),
    /// As [`Decision::Build`], after a pause: the last build failed, and there is nothing
    /// better to do, or it was not the release's fault.
    BuildAgain(Id),
    /// Replace the dynos of the good release by its own; answer with [`Releases::up`], or
    /// [`Releases::given_up`] and [`Releases::undone`].
    Try(Id),
    /// It is the good one now, and its dynos are to run.
    Run(Id),
    /// It will never run, or no longer.
    Reject(Id, Why),
}

/// Why a release is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Another one was taken in before it was decided.
    Overtaken {
        /// Which.
        by: Id,
    },
    /// hsup ended before it was decided, and does not begin with it.
    LeftBehind,
    /// It could not be built, or did not come up.
    Failed(String),
}

/// What is known of a release that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Newness {
    /// Somebody has just handed it in.
    New,
    /// It is what an earlier hsup had left to begin with. When it cannot be built, that may
    /// be the machine's fault.
    Kept,
}

/// Whether a restart goes on with a release that was undecided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resume {
    /// It does.
    Undecided,
    /// It does not: whoever handed it in will do so again, or wants another one by now.
    Good,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Good {
    id: Id,
    /// Whether it can be started: whether the driver has what it made of it.
    is_built: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Building {
    id: Id,
    newness: Newness,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Trial {
    id: Id,
    /// It is rejected, and what it has done is being undone.
    is_going_back: bool,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Releases {
    good: Option<Good>,
    /// Undecided and not taken up again yet: since an earlier life of hsup, or until the good
    /// release runs for which there may be room.
    left: Option<Id>,
    building: Option<Building>,
    trial: Option<Trial>,
    /// Built while another was being undone: it is tried when that is over.
    next: Option<Id>,
}

impl Releases {
    /// What there is when hsup is started: the release that was good last, and those that
    /// were undecided when it ended.
    pub fn restarted(
        good: Option<Id>,
        undecided: impl IntoIterator<Item = Id>,
        resume: Resume,
    ) -> (Self, Vec<Decision>) {
        let mut undecided: Vec<Id> = undecided.into_iter().collect();
        undecided.sort_unstable();
        // What is older than the good one was overtaken by it.
        let left = undecided
            .pop_if(|newest| resume == Resume::Undecided && good.is_none_or(|good| *newest > good));
        let newest = left.or(good);
        let why = |id| match newest {
            Some(by) if by > id => Why::Overtaken { by },
            _ => Why::LeftBehind,
        };
        let rejected = undecided
            .into_iter()
            .map(|id| Decision::Reject(id, why(id)));
        let decisions = rejected.collect();
        let releases = Self {
            good: good.map(|id| Good {
                id,
                is_built: false,
            }),
            left,
            ..Self::default()
        };
        (releases, decisions)
    }

    /// Dynos have survived, so that the good release needs no build; `left_is_built` says the
    /// same of the one that was undecided.
    pub fn survived(&mut self, left_is_built: bool) -> Vec<Decision> {
        let Some(good) = &mut self.good else {
            return vec![];
        };
        good.is_built = true;
        match self.left.take_if(|_| left_is_built) {
            Some(left) => self.try_out(left),
            None => vec![],
        }
    }

    /// Nothing newer is there: what an earlier life left is taken up again.
    pub fn begin(&mut self) -> Vec<Decision> {
        if let Some(id) = self.left.take() {
            return self.build(id, Newness::New);
        }
        self.rest()
    }

    /// A release was taken in. It overtakes whatever has not been built.
    pub fn taken_in(&mut self, id: Id, newness: Newness) -> Vec<Decision> {
        let building = self.building.take().map(|building| building.id);
        let overtaken = building.into_iter().chain(self.left.take());
        let mut decisions: Vec<_> = overtaken
            .filter(|old| self.good.is_none_or(|good| good.id != *old))
            .map(|old| Decision::Reject(old, Why::Overtaken { by: id }))
            .collect();
        decisions.extend(self.build(id, newness));
        decisions
    }

    /// The driver has built it.
    pub fn built(&mut self, id: Id) -> Vec<Decision> {
        if self
            .building
            .take_if(|building| building.id == id)
            .is_none()
        {
            return vec![];
        }
        match (&mut self.good, self.trial) {
            (None, _) => self.run(id),
            (Some(good), _) if good.id == id => {
                let mut decisions = self.run(id);
                decisions.extend(self.left.take().map(|left| self.build_later(left)));
                decisions
            }
            (Some(_), None) => self.try_out(id),
            (Some(_), Some(trial)) if trial.is_going_back => {
                let overtaken = self.next.replace(id);
                let reject = |old| Decision::Reject(old, Why::Overtaken { by: id });
                overtaken.map(reject).into_iter().collect()
            }
            (Some(_), Some(trial)) => {
                let mut decisions = vec![Decision::Reject(trial.id, Why::Overtaken { by: id })];
                decisions.extend(self.try_out(id));
                decisions
            }
        }
    }

    /// The driver could not build it.
    pub fn build_failed(&mut self, id: Id, why: String) -> Vec<Decision> {
        let Some(building) = self.building.filter(|building| building.id == id) else {
            return vec![];
        };
        let again = match self.good {
            Some(good) => good.id == id,
            None => building.newness == Newness::Kept,
        };
        if again {
            return vec![self.build_again(id)];
        }
        self.building = None;
        let mut decisions = vec![Decision::Reject(id, Why::Failed(why))];
        decisions.extend(self.rest());
        decisions
    }

    /// The driver has no room to build it now, which says nothing of the release: it is built
    /// again and again, and what runs goes on.
    pub fn no_room_to_build(&mut self, id: Id) -> Vec<Decision> {
        if self.building() != Some(id) {
            return vec![];
        }
        vec![self.build_again(id)]
    }

    /// Its release command failed, which says something of the release whatever it is: it is
    /// not run twice.
    pub fn release_failed(&mut self, id: Id, why: String) -> Vec<Decision> {
        let is_good = self.good.is_some_and(|good| good.id == id);
        if is_good
            || self
                .building
                .take_if(|building| building.id == id)
                .is_none()
        {
            return vec![];
        }
        let mut decisions = vec![Decision::Reject(id, Why::Failed(why))];
        decisions.extend(self.rest());
        decisions
    }

    /// Every dyno of the release on trial runs.
    pub fn up(&mut self) -> Vec<Decision> {
        match self.trial.take_if(|trial| !trial.is_going_back) {
            Some(trial) => self.run(trial.id),
            None => vec![],
        }
    }

    /// The release on trial came to nothing. Undoing it begins.
    pub fn given_up(&mut self, why: String) -> Vec<Decision> {
        match &mut self.trial {
            Some(trial) if !trial.is_going_back => {
                trial.is_going_back = true;
                vec![Decision::Reject(trial.id, Why::Failed(why))]
            }
            _ => vec![],
        }
    }

    /// Nothing is left of the release that was on trial.
    pub fn undone(&mut self) -> Vec<Decision> {
        if self.trial.take_if(|trial| trial.is_going_back).is_none() {
            return vec![];
        }
        match self.next.take() {
            Some(next) => self.try_out(next),
            None => self.rest(),
        }
    }

    fn build(&mut self, id: Id, newness: Newness) -> Vec<Decision> {
        self.building = Some(Building { id, newness });
        vec![Decision::Build(id)]
    }

    /// Of a release that is built again and again and a good one that does not run yet, each
    /// has its turn: neither is to wait for room that only the other one needs.
    fn build_again(&mut self, id: Id) -> Decision {
        match self.good {
            Some(good) if good.id == id => {
                let next = self.left.take().unwrap_or(id);
                self.build_later(next)
            }
            Some(good) if !good.is_built && self.trial.is_none() => {
                self.left = Some(id);
                self.build_later(good.id)
            }
            _ => Decision::BuildAgain(id),
        }
    }

    /// With a good release there, how new it is makes no difference.
    fn build_later(&mut self, id: Id) -> Decision {
        let newness = Newness::Kept;
        self.building = Some(Building { id, newness });
        Decision::BuildAgain(id)
    }

    fn try_out(&mut self, id: Id) -> Vec<Decision> {
        self.trial = Some(Trial {
            id,
            is_going_back: false,
        });
        vec![Decision::Try(id)]
    }

    fn run(&mut self, id: Id) -> Vec<Decision> {
        self.good = Some(Good { id, is_built: true });
        vec![Decision::Run(id)]
    }

    /// With nothing else to do, the good release is to run, for which it must be built.
    fn rest(&mut self) -> Vec<Decision> {
        match self.good {
            Some(good) if !good.is_built && self.is_idle() => self.build(good.id, Newness::Kept),
            _ => vec![],
        }
    }

    const fn is_idle(&self) -> bool {
        self.building.is_none() && self.trial.is_none() && self.left.is_none()
    }

    // ---- what is known

    /// The release that runs, or is gone back to.
    pub fn good(&self) -> Option<Id> {
        self.good.map(|good| good.id)
    }

    /// The release that replaces the good one, also while it is being undone.
    pub fn on_trial(&self) -> Option<Id> {
        self.trial.map(|trial| trial.id)
    }

    /// Whether what the release on trial did is being undone.
    pub fn is_going_back(&self) -> bool {
        self.trial.is_some_and(|trial| trial.is_going_back)
    }

    /// The release that the driver works on.
    pub fn building(&self) -> Option<Id> {
        self.building.map(|building| building.id)
    }

    /// The newest release that is not rejected: the one that another is compared with, and
    /// that a restart begins with.
    pub fn wanted(&self) -> Option<Id> {
        self.undecided().max().or(self.good())
    }

    /// Those of which it is still to be seen what becomes of them.
    pub fn undecided(&self) -> impl Iterator<Item = Id> {
        let trial = self.trial.filter(|trial| !trial.is_going_back);
        let good = self.good();
        [self.building(), self.next, self.left, trial.map(|t| t.id)]
            .into_iter()
            .flatten()
            .filter(move |id| Some(*id) != good)
    }

    /// The good release, and every one that may still become it.
    pub fn hopeful(&self) -> impl Iterator<Item = Id> {
        self.good().into_iter().chain(self.undecided())
    }

    /// Whether the good release can be started and nothing else is under way.
    pub fn is_settled(&self) -> bool {
        self.is_idle() && self.good.is_some_and(|good| good.is_built)
    }

    /// Whether there is none, and none on its way.
    pub fn is_empty(&self) -> bool {
        self.wanted().is_none()
    }
}

#[cfg(test)]
mod tests;
