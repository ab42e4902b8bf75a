//! What a driver knows of its dynos, and what each call means in each of their states.
//!
//! Pure: every rule of docs/driver-rules.md §8 that is about a dyno is decided here, and
//! acted on elsewhere. `H` is whatever the caller keeps for each dyno.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque, btree_map},
    time::Duration,
};

use hsup_proto::driver::{Dyno, ExitStatus, State};
use tokio::time::Instant;

use crate::signal::Signal;

/// How long a removed id is remembered, for a Start that arrives late.
const REMEMBER: Duration = Duration::from_mins(10);
/// How many removed ids are remembered.
const REMEMBERED: usize = 10_000;
/// How long a dyno that lingered out keeps its status for a supervisor that may come back.
const KEEP_STATUS: Duration = Duration::from_hours(1);
/// How many such dynos are kept.
const KEPT: usize = 10_000;

/// A dyno's name: the user who owns it, and the id they gave it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) uid: u32,
    pub(super) id: Box<str>,
}

impl Key {
    pub(super) fn new(uid: u32, id: &str) -> Self {
        Self { uid, id: id.into() }
    }
}

/// What is kept of a Start request: what List shows, and a hash of the rest.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) hash: [u8; 32],
    pub(super) supervisor_id: Box<str>,
    pub(super) artifact: Box<str>,
    pub(super) app: Box<str>,
    pub(super) release: u64,
    pub(super) process_type: Box<str>,
    pub(super) process_number: u32,
    /// Zero: for ever.
    pub(super) linger: Duration,
}

/// How a dyno is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) signal: Signal,
    /// When it is killed.
    pub(super) deadline: Instant,
}

/// Where a dyno is in its life.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Starting { stop: Option<Stop> },
    Running,
    Stopping { stop: Stop },
    Exited { status: ExitStatus, at: Instant },
}

#[derive(Debug)]
struct Entry<H> {
    spec: Spec,
    phase: Phase,
    started_at_unix_ms: i64,
    handle: H,
}

/// What a Start means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It is new: start it.
    Begin,
    /// It is being started: wait for that.
    Join,
    /// It was started before.
    Done,
    /// The id is another dyno's.
    OtherRequest,
    /// The id was removed a while ago: the call comes late.
    Removed,
}

/// What a Stop means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stopping {
    /// Nothing runs under that id.
    Done,
    /// It is being started: cancel that, and wait until it is gone.
    Cancel,
    /// Begin to stop it, and wait until it is gone.
    Begin,
    /// It is being stopped: let its task look at the deadline again, and wait.
    Join,
}

/// What became of a dyno once it was started.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Started {
    Running,
    /// A Stop came in the meantime: carry it out.
    StopNow,
}

/// What a Remove means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remove {
    Done,
    /// It has not exited.
    Running,
}

/// A dyno's state, as the calls that only look at it need it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum View {
    Starting,
    Running,
    Exited(ExitStatus),
}

/// The dynos of a driver.
#[derive(Debug)]
pub(super) struct Table<H> {
    dynos: BTreeMap<Key, Entry<H>>,
    /// In the order of their removal.
    removed: VecDeque<(Instant, Key)>,
    /// The same: every Start asks for one.
    removed_keys: HashSet<Key>,
    alive: usize,
}

impl<H> Default for Table<H> {
    fn default() -> Self {
        Self {
            dynos: BTreeMap::new(),
            removed: VecDeque::new(),
            removed_keys: HashSet::new(),
            alive: 0,
        }
    }
}

impl<H> Table<H> {
    /// How many dynos have not exited.
    pub(super) const fn alive(&self) -> usize {
        self.alive
    }

    pub(super) fn handle(&self, key: &Key) -> Option<&H> {
        Some(&self.dynos.get(key)?.handle)
    }

    pub(super) fn view(&self, key: &Key) -> Option<View> {
        Some(match &self.dynos.get(key)?.phase {
            Phase::Starting { .. } => View::Starting,
            Phase::Running | Phase::Stopping { .. } => View::Running,
            Phase::Exited { status, .. } => View::Exited(status.clone()),
        })
    }

    /// How a dyno is being stopped, if it is.
    pub(super) fn stop_of(&self, key: &Key) -> Option<Stop> {
        match self.dynos.get(key)?.phase {
            Phase::Stopping { stop } => Some(stop),
            _ => None,
        }
    }

    /// A Start of `key`; `handle` makes what is kept for a new one.
    pub(super) fn start(
        &mut self,
        key: &Key,
        spec: Spec,
        now: Instant,
        now_unix_ms: i64,
        handle: impl FnOnce() -> H,
    ) -> Start {
        if let Some(known) = self.dynos.get(key) {
            return match &known.phase {
                _ if known.spec.hash != spec.hash => Start::OtherRequest,
                Phase::Starting { .. } => Start::Join,
                _ => Start::Done,
            };
        }
        self.forget_removed(now);
        if self.removed_keys.contains(key) {
            return Start::Removed;
        }
        self.dynos.insert(
            key.clone(),
            Entry {
                spec,
                phase: Phase::Starting { stop: None },
                started_at_unix_ms: now_unix_ms,
                handle: handle(),
            },
        );
        self.alive += 1;
        Start::Begin
    }

    /// A dyno that an earlier process of the driver started. Whether it has ended is not known
    /// yet. False if there is one of that name already.
    pub(super) fn recovered(
        &mut self,
        key: Key,
        spec: Spec,
        started_at_unix_ms: i64,
        handle: H,
    ) -> bool {
        let btree_map::Entry::Vacant(place) = self.dynos.entry(key) else {
            return false;
        };
        place.insert(Entry {
            spec,
            phase: Phase::Running,
            started_at_unix_ms,
            handle,
        });
        self.alive += 1;
        true
    }

    /// The first process of `key` exists.
    pub(super) fn started(&mut self, key: &Key) -> Started {
        let Some(entry) = self.dynos.get_mut(key) else {
            return Started::Running;
        };
        if let Phase::Starting { stop: Some(stop) } = entry.phase {
            entry.phase = Phase::Stopping { stop };
            Started::StopNow
        } else {
            entry.phase = Phase::Running;
            Started::Running
        }
    }

    /// `key` could not be started. Nothing is kept, as if it had never been asked for, unless
    /// a Stop cancelled it: that is its end, and a repeat must not start it after all.
    pub(super) fn failed(&mut self, key: &Key, now: Instant, now_unix_ms: i64) {
        let Some(entry) = self.dynos.get(key) else {
            return;
        };
        if matches!(entry.phase, Phase::Starting { stop: Some(_) }) {
            self.exited(key, never_started(now_unix_ms), now);
        } else {
            self.dynos.remove(key);
            self.alive -= 1;
        }
    }

    /// `key` is to be stopped.
    pub(super) fn stop(&mut self, key: &Key, wanted: Stop) -> Stopping {
        let Some(entry) = self.dynos.get_mut(key) else {
            return Stopping::Done;
        };
        let sooner = |stop: Stop| Stop {
            deadline: stop.deadline.min(wanted.deadline),
            ..stop
        };
        match &mut entry.phase {
            Phase::Starting { stop } => {
                *stop = Some(stop.map_or(wanted, sooner));
                Stopping::Cancel
            }
            Phase::Running => {
                entry.phase = Phase::Stopping { stop: wanted };
                Stopping::Begin
            }
            Phase::Stopping { stop } => {
                *stop = sooner(*stop);
                Stopping::Join
            }
            Phase::Exited { .. } => Stopping::Done,
        }
    }

    /// Every process of `key` is gone. The first status told is kept.
    pub(super) fn exited(&mut self, key: &Key, status: ExitStatus, now: Instant) {
        if let Some(entry) = self.dynos.get_mut(key)
            && !matches!(entry.phase, Phase::Exited { .. })
        {
            entry.phase = Phase::Exited { status, at: now };
            self.alive -= 1;
        }
    }

    /// Forgets `key`, also one that was never known: its Start may still be under way.
    pub(super) fn remove(&mut self, key: &Key, now: Instant) -> (Remove, Option<H>) {
        let gone = match self.dynos.get(key).map(|entry| &entry.phase) {
            None => None,
            Some(Phase::Exited { .. }) => self.dynos.remove(key),
            Some(_) => return (Remove::Running, None),
        };
        self.forget_removed(now);
        if self.removed_keys.insert(key.clone()) {
            self.removed.push_back((now, key.clone()));
        }
        (Remove::Done, gone.map(|entry| entry.handle))
    }

    /// Whether a dyno of `uid` that has not exited runs `artifact`.
    pub(super) fn in_use(&self, uid: u32, artifact: &str) -> bool {
        self.of(uid).any(|(_, entry)| {
            &*entry.spec.artifact == artifact && !matches!(entry.phase, Phase::Exited { .. })
        })
    }

    /// The dynos of `uid`, and of `supervisor` unless that is empty.
    pub(super) fn list(&self, uid: u32, supervisor: &str) -> Vec<Dyno> {
        self.of(uid)
            .filter(|(_, entry)| supervisor.is_empty() || &*entry.spec.supervisor_id == supervisor)
            .map(|(key, entry)| entry.to_wire(&key.id))
            .collect()
    }

    /// How many dynos of `uid` are known.
    pub(super) fn count(&self, uid: u32) -> usize {
        self.of(uid).count()
    }

    /// The dynos that have not exited.
    pub(super) fn alive_keys(&self) -> Vec<Key> {
        self.dynos
            .iter()
            .filter(|(_, entry)| !matches!(entry.phase, Phase::Exited { .. }))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// How long the dynos of a supervisor, those too that have exited, wait for it to come back.
    pub(super) fn lingers(&self, uid: u32, supervisor: &str) -> BTreeSet<Duration> {
        self.of(uid)
            .filter(|(_, entry)| {
                &*entry.spec.supervisor_id == supervisor && !entry.spec.linger.is_zero()
            })
            .map(|(_, entry)| entry.spec.linger)
            .collect()
    }

    /// Whether somebody may still come back in time for a dyno that has exited: `away_since`
    /// says since when a supervisor is gone.
    pub(super) fn is_awaited(
        &self,
        now: Instant,
        away_since: impl Fn(u32, &str) -> Option<Instant>,
    ) -> bool {
        self.dynos.iter().any(|(key, entry)| {
            matches!(entry.phase, Phase::Exited { .. })
                && away_since(key.uid, &entry.spec.supervisor_id)
                    .is_some_and(|since| now < since + entry.spec.linger)
        })
    }

    /// The dynos of a supervisor that are to be stopped once it has been away for so long.
    pub(super) fn lingering(&self, uid: u32, supervisor: &str) -> Vec<(Duration, Key)> {
        self.of(uid)
            .filter(|(_, entry)| {
                &*entry.spec.supervisor_id == supervisor
                    && !entry.spec.linger.is_zero()
                    && !matches!(entry.phase, Phase::Exited { .. })
            })
            .map(|(key, entry)| (entry.spec.linger, key.clone()))
            .collect()
    }

    /// Forgets exited dynos that nobody came back for, and gives what was kept of them: `away`
    /// says whose supervisor is gone. Those without a linger are kept for ever.
    pub(super) fn expire(&mut self, now: Instant, away: impl Fn(u32, &str) -> bool) -> Vec<H> {
        let mut kept: Vec<(Instant, Key)> = self
            .dynos
            .iter()
            .filter_map(|(key, entry)| match entry.phase {
                Phase::Exited { at, .. }
                    if !entry.spec.linger.is_zero() && away(key.uid, &entry.spec.supervisor_id) =>
                {
                    Some((at, key.clone()))
                }
                _ => None,
            })
            .collect();
        kept.sort_by_key(|(at, _)| *at);
        let surplus = kept.len().saturating_sub(KEPT);
        let forget = kept
            .iter()
            .enumerate()
            .filter(|(index, (at, _))| *index < surplus || now.duration_since(*at) >= KEEP_STATUS);
        forget
            .filter_map(|(_, (_, key))| self.dynos.remove(key))
            .map(|entry| entry.handle)
            .collect()
    }

    fn forget_removed(&mut self, now: Instant) {
        while let Some((at, _)) = self.removed.front()
            && (now.duration_since(*at) >= REMEMBER || self.removed.len() >= REMEMBERED)
            && let Some((_, key)) = self.removed.pop_front()
        {
            self.removed_keys.remove(&key);
        }
    }

    fn of(&self, uid: u32) -> impl Iterator<Item = (&Key, &Entry<H>)> {
        let first = Key::new(uid, "");
        self.dynos
            .range(first..)
            .take_while(move |(key, _)| key.uid == uid)
    }
}

impl<H> Entry<H> {
    fn to_wire(&self, id: &str) -> Dyno {
        let (state, status) = match &self.phase {
            Phase::Starting { .. } => (State::Starting, None),
            Phase::Running => (State::Running, None),
            Phase::Stopping { .. } => (State::Stopping, None),
            Phase::Exited { status, .. } => (State::Exited, Some(status.clone())),
        };
        Dyno {
            dyno_id: id.into(),
            supervisor_id: self.spec.supervisor_id.clone().into(),
            app: self.spec.app.clone().into(),
            release: self.spec.release,
            process_type: self.spec.process_type.clone().into(),
            process_number: self.spec.process_number,
            state: state.into(),
            started_at_unix_ms: self.started_at_unix_ms,
            status,
        }
    }
}

/// The status of a dyno that was stopped before it had a process.
fn never_started(now_unix_ms: i64) -> ExitStatus {
    ExitStatus {
        how: Some(hsup_proto::driver::exit_status::How::Lost(
            "it was stopped before it had started".into(),
        )),
        oom_killed: false,
        exited_at_unix_ms: now_unix_ms,
    }
}
