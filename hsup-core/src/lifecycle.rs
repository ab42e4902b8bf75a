//! The lifecycle of one dyno, as a pure state machine.
//!
//! ```text
//!            stay started            start ok
//!   Stopped ──────────────▶ Starting ─────────▶ Started
//!              elapsed ▶ ▲     │ ended           │  │
//!                        │     ▼                 │  │
//!                      Waiting ◀─────────────────┘  │
//!                                 ended             │
//!      Starting ◀── Restarting ◀────────────────────┤ restart (by hand)
//!             ended                                 │
//!       Retired ◀── Retiring ◀──────────────────────┘ retire
//!             ended
//! ```
//!
//! A dyno of a release that has yet to prove itself is *on trial*: when it ends before it was
//! ready, it is `Failed` and stays so until somebody restarts or retires it. A release that
//! does not work must not be started again and again while the one before waits for its port.
//!
//! [`Lifecycle::step`] takes no clock, no I/O and no driver: it turns one
//! [`Event`] into the [`Action`]s that the dyno's task must carry out. Every
//! rule about restarts lives here, so it can be tested without a process.
//!
//! Each process the machine asks for is one [`Attempt`]. The task gives every
//! attempt a dyno id of its own; here a number is enough to tell a report about
//! the process that runs from a late one about its predecessor.

use std::{fmt, time::Duration};

use hsup_proto::control::DynoState;

use crate::{backoff::Backoff, exit::ExitStatus};

/// One try to run a dyno. Counts up from 1, and no number is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u64);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a dyno is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM, and SIGKILL for what is left after the grace period.
    Gracefully { grace: Duration },
    /// SIGKILL at once.
    Immediately,
}

impl Stop {
    /// Whichever of the two ends the dyno sooner.
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Gracefully { grace: a }, Self::Gracefully { grace: b }) => {
                Self::Gracefully { grace: a.min(b) }
            }
            _ => Self::Immediately,
        }
    }
}

/// What is to become of a dyno whose process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is started again: a dyno of the formation.
    Kept,
    /// It is complete, and never started twice, whatever was lost.
    OneShot,
}

/// How often a dyno on trial may be lost in a row before that is held against it.
const LOSSES_ON_TRIAL: u32 = 3;

/// Where a dyno is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Never started.
    Stopped,
    /// Ended by itself; started again once `wait` has passed.
    Waiting { wait: Duration, last: ExitStatus },
    /// The driver has been asked to start it.
    Starting { attempt: Attempt },
    /// Its first process exists.
    Started { attempt: Attempt },
    /// Ended on trial: whoever tries it decides what becomes of it.
    Failed { last: ExitStatus },
    /// Being stopped in order to be started again.
    Restarting { attempt: Attempt, how: Stop },
    /// Being stopped for good.
    Retiring { attempt: Attempt, how: Stop },
    /// Ended for good; `None` when it never ran.
    Retired { status: Option<ExitStatus> },
}

/// Something that happened to a dyno.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is wanted.
    StayStarted,
    /// Somebody restarts it by hand, whatever its backoff.
    Restart { how: Stop },
    /// The driver says that the first process of this attempt exists.
    StartOk(Attempt),
    /// It is ready for work: a trial is over.
    Ready(Attempt),
    /// This attempt could not be started, has exited, or was lost; its status says which.
    ///
    /// `uptime` is how long it ran: zero when it never did.
    Ended {
        attempt: Attempt,
        status: ExitStatus,
        uptime: Duration,
    },
    /// The backoff has passed.
    Elapsed,
    /// It is wanted no more.
    Retire { how: Stop },
    /// A process that the supervisor had lost sight of turned out to run, and is now this
    /// attempt: take it from [`Lifecycle::next_attempt`].
    Adopt(Attempt),
    /// A stop could not be carried out. The task paces itself before it says so,
    /// for the answer is to stop again.
    StopFailed(Attempt),
}

/// Something the dyno's task must now do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the driver for a process; answer with `StartOk` or `Ended`.
    Start(Attempt),
    /// Ask the driver to end it, or give up what has not come up yet. The end itself arrives
    /// as `Ended`.
    Stop(Attempt, Stop),
    /// Answer with `Elapsed` once this has passed: at once, without a timer, when it is zero.
    ArmBackoff(Duration),
    /// Forget the timer that runs.
    DisarmBackoff,
    /// The dyno is done, with the last status it had.
    Complete(Option<ExitStatus>),
}

/// The state machine, with the memory that attempts and backoff need.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    kind: Kind,
    trial: bool,
    state: State,
    backoff: Backoff,
    next: Attempt,
    restarts: u32,
}

impl Lifecycle {
    /// A dyno that has never run.
    pub const fn new(kind: Kind, backoff: Backoff) -> Self {
        Self {
            kind,
            trial: false,
            state: State::Stopped,
            backoff,
            next: Attempt(1),
            restarts: 0,
        }
    }

    /// The same dyno, on trial until it is ready for the first time.
    #[must_use]
    pub fn on_trial(self) -> Self {
        Self {
            trial: true,
            ..self
        }
    }

    /// Whether it has yet to be ready for the first time.
    pub const fn is_on_trial(&self) -> bool {
        self.trial
    }

    /// Whether its trial is spoilt if it ends like this. That the driver lost it says nothing
    /// of a dyno, unless it happens every time.
    pub fn spoils_trial(&self, status: &ExitStatus) -> bool {
        self.trial && (!status.is_lost() || self.backoff.crashes() + 1 >= LOSSES_ON_TRIAL)
    }

    /// The current state.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// How often it was started again because it had ended by itself.
    pub const fn restarts(&self) -> u32 {
        self.restarts
    }

    /// How often it has crashed without a healthy run in between.
    pub const fn crashes_in_a_row(&self) -> u32 {
        self.backoff.crashes()
    }

    /// The attempt that the next start, or the next adoption, will be.
    pub const fn next_attempt(&self) -> Attempt {
        self.next
    }

    /// What this state is called by Heroku.
    pub fn heroku_state(&self) -> DynoState {
        heroku_state(&self.state, self.kind)
    }

    /// Applies `event` and returns what to do about it, in this order.
    ///
    /// An event that makes no sense in the current state, or that speaks of another
    /// attempt, changes nothing: the driver, the timer and the operator race, and the
    /// loser's message is stale, not wrong.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let current = self.state.attempt().unwrap_or(self.next);
        if event.attempt().is_some_and(|attempt| attempt != current) {
            return vec![];
        }
        match (&self.state, event) {
            (State::Stopped, Event::StayStarted | Event::Restart { .. }) => self.start(vec![]),
            (State::Stopped, Event::Adopt(attempt)) => {
                self.next = Attempt(attempt.0 + 1);
                self.enter(State::Started { attempt }, vec![])
            }
            (State::Stopped, Event::Retire { .. }) => self.retired(None, vec![]),

            (State::Waiting { .. }, Event::Elapsed) => {
                self.restarts = self.restarts.saturating_add(1);
                self.start(vec![])
            }
            (State::Waiting { .. }, Event::Restart { .. }) => {
                self.backoff.reset();
                self.start(vec![Action::DisarmBackoff])
            }
            (State::Waiting { last, .. }, Event::Retire { .. }) => {
                let last = last.clone();
                self.retired(Some(last), vec![Action::DisarmBackoff])
            }

            (State::Failed { .. }, Event::Restart { .. }) => {
                self.backoff.reset();
                self.start(vec![])
            }
            (State::Failed { last }, Event::Retire { .. }) => {
                let last = last.clone();
                self.retired(Some(last), vec![])
            }

            (&State::Starting { attempt }, Event::StartOk(_)) => {
                self.enter(State::Started { attempt }, vec![])
            }
            (State::Started { .. }, Event::Ready(_)) => {
                self.trial = false;
                vec![]
            }
            // A one-shot may not run twice, so nobody can restart it.
            (
                &(State::Starting { attempt } | State::Started { attempt }),
                Event::Restart { how },
            ) if self.kind == Kind::Kept => {
                self.backoff.reset();
                self.enter(
                    State::Restarting { attempt, how },
                    vec![Action::Stop(attempt, how)],
                )
            }
            (
                State::Starting { .. } | State::Started { .. },
                Event::Ended { status, uptime, .. },
            ) => match self.kind {
                Kind::OneShot => self.retired(Some(status), vec![]),
                Kind::Kept if self.spoils_trial(&status) => {
                    self.enter(State::Failed { last: status }, vec![])
                }
                Kind::Kept => {
                    let wait = self.backoff.crashed(uptime);
                    self.enter(
                        State::Waiting { wait, last: status },
                        vec![Action::ArmBackoff(wait)],
                    )
                }
            },
            (
                &(State::Starting { attempt } | State::Started { attempt }),
                Event::Retire { how },
            ) => self.enter(
                State::Retiring { attempt, how },
                vec![Action::Stop(attempt, how)],
            ),

            (State::Restarting { .. }, Event::Ended { .. }) => self.start(vec![]),
            // It is stopping already: only a shorter grace needs saying again.
            (&State::Restarting { attempt, how: old }, Event::Retire { how: new }) => {
                let how = old.sooner(new);
                let again = (how != old).then_some(Action::Stop(attempt, how));
                self.enter(
                    State::Retiring { attempt, how },
                    again.into_iter().collect(),
                )
            }

            (State::Retiring { .. }, Event::Ended { status, .. }) => {
                self.retired(Some(status), vec![])
            }
            (&State::Retiring { attempt, how: old }, Event::Retire { how: new }) => {
                let how = old.sooner(new);
                self.enter(
                    State::Retiring { attempt, how },
                    vec![Action::Stop(attempt, how)],
                )
            }

            // The driver may have seen the Stop before the Start that it was about: now there
            // is something to stop.
            (
                &(State::Restarting { attempt, how } | State::Retiring { attempt, how }),
                Event::StopFailed(_) | Event::StartOk(_),
            ) => vec![Action::Stop(attempt, how)],

            _ => vec![],
        }
    }

    fn start(&mut self, mut before: Vec<Action>) -> Vec<Action> {
        let attempt = self.next;
        self.next = Attempt(attempt.0 + 1);
        before.push(Action::Start(attempt));
        self.enter(State::Starting { attempt }, before)
    }

    fn retired(&mut self, status: Option<ExitStatus>, mut before: Vec<Action>) -> Vec<Action> {
        before.push(Action::Complete(status.clone()));
        self.enter(State::Retired { status }, before)
    }

    fn enter(&mut self, state: State, actions: Vec<Action>) -> Vec<Action> {
        self.state = state;
        actions
    }
}

impl State {
    /// The attempt whose process runs, or may run.
    pub const fn attempt(&self) -> Option<Attempt> {
        match self {
            Self::Starting { attempt }
            | Self::Started { attempt }
            | Self::Restarting { attempt, .. }
            | Self::Retiring { attempt, .. } => Some(*attempt),
            Self::Stopped | Self::Waiting { .. } | Self::Failed { .. } | Self::Retired { .. } => {
                None
            }
        }
    }
}

impl Event {
    /// The attempt that this event speaks of.
    const fn attempt(&self) -> Option<Attempt> {
        match self {
            Self::StartOk(attempt)
            | Self::Ready(attempt)
            | Self::Ended { attempt, .. }
            | Self::Adopt(attempt)
            | Self::StopFailed(attempt) => Some(*attempt),
            Self::StayStarted | Self::Restart { .. } | Self::Elapsed | Self::Retire { .. } => None,
        }
    }
}

/// Heroku's state for a state of ours.
///
/// A restart by hand goes from up to starting there, with no stopping between.
fn heroku_state(state: &State, kind: Kind) -> DynoState {
    match state {
        State::Stopped => DynoState::Down,
        State::Waiting { .. } | State::Failed { .. } => DynoState::Crashed,
        State::Starting { .. } | State::Restarting { .. } => DynoState::Starting,
        State::Started { .. } => DynoState::Up,
        State::Retiring { .. } => DynoState::Stopping,
        State::Retired { .. } => match kind {
            Kind::OneShot => DynoState::Complete,
            Kind::Kept => DynoState::Down,
        },
    }
}

/// What states are called where people and programs read them.
pub mod words {
    use hsup_proto::control::DynoState;

    /// Heroku's word: `starting`, `up`, `crashed`, `stopping`, `down`, `complete`.
    pub const fn heroku(state: DynoState) -> &'static str {
        match state {
            DynoState::Unspecified => "unknown",
            DynoState::Starting => "starting",
            DynoState::Up => "up",
            DynoState::Crashed => "crashed",
            DynoState::Stopping => "stopping",
            DynoState::Down => "down",
            DynoState::Complete => "complete",
        }
    }

    /// Heroku's log line for a change of state, or nothing when the word stays the same.
    pub fn state_changed(from: DynoState, to: DynoState) -> Option<String> {
        (from != to).then(|| format!("State changed from {} to {}", heroku(from), heroku(to)))
    }
}

#[cfg(test)]
mod tests;
