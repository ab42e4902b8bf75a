use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// What the history on disk says of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum OnDisk {
    Building,
    RollingOut,
    Current,
    Superseded,
    Rejected,
}

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happening {
    TakenIn(Newness),
    Built,
    BuildFailed,
    NoRoom,
    ReleaseFailed,
    Up,
    GivenUp,
    Undone,
    /// hsup ends, and is started again.
    Restarted(Restart),
}

/// How hsup comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Restart {
    resume: Resume,
    /// Its dynos have survived.
    survived: bool,
    /// Somebody handed a release in while it was away.
    new: Option<Newness>,
}

/// The machine, and the disk that outlives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    releases: Releases,
    /// Of the release with the id of its place, from 1.
    disk: Vec<OnDisk>,
    /// What was good at some time.
    was_good: Vec<bool>,
}

fn place(id: Id) -> usize {
    usize::try_from(id).unwrap() - 1
}

const NEWNESS: [Newness; 2] = [Newness::New, Newness::Kept];

fn restarts() -> Vec<Restart> {
    let mut restarts = Vec::new();
    for resume in [Resume::Undecided, Resume::Good] {
        for survived in [false, true] {
            for new in [None, Some(Newness::New), Some(Newness::Kept)] {
                restarts.push(Restart {
                    resume,
                    survived,
                    new,
                });
            }
        }
    }
    restarts
}

impl World {
    fn new() -> Self {
        Self {
            releases: Releases::default(),
            disk: Vec::new(),
            was_good: Vec::new(),
        }
    }

    fn at(&self, id: Id) -> OnDisk {
        self.disk[place(id)]
    }

    fn with(&self, wanted: OnDisk) -> Vec<Id> {
        (1..)
            .zip(&self.disk)
            .filter(|(_, state)| **state == wanted)
            .map(|(id, _)| id)
            .collect()
    }

    fn undecided(&self) -> Vec<Id> {
        [self.with(OnDisk::Building), self.with(OnDisk::RollingOut)].concat()
    }

    /// Writes the first `count` of these decisions down.
    fn write(&mut self, decisions: &[Decision], count: usize) {
        for decision in decisions.iter().take(count) {
            match *decision {
                Decision::Build(id) | Decision::BuildAgain(id) => {
                    assert_ne!(self.at(id), OnDisk::Rejected, "{decision:?}");
                    if !self.was_good[place(id)] {
                        self.disk[place(id)] = OnDisk::Building;
                    }
                }
                Decision::Try(id) => {
                    assert!(matches!(self.at(id), OnDisk::Building | OnDisk::RollingOut));
                    assert!(!self.was_good[place(id)], "{decision:?}");
                    self.disk[place(id)] = OnDisk::RollingOut;
                }
                Decision::Run(id) => {
                    assert_ne!(self.at(id), OnDisk::Rejected, "{decision:?}");
                    for other in &mut self.disk {
                        if *other == OnDisk::Current {
                            *other = OnDisk::Superseded;
                        }
                    }
                    self.disk[place(id)] = OnDisk::Current;
                    self.was_good[place(id)] = true;
                }
                Decision::Reject(id, ref why) => {
                    assert!(
                        !self.was_good[place(id)],
                        "a good one is rejected: {decision:?}"
                    );
                    assert_ne!(
                        self.at(id),
                        OnDisk::Rejected,
                        "rejected twice: {decision:?}"
                    );
                    if let Why::Overtaken { by } = why {
                        assert!(*by > id, "{decision:?}");
                    }
                    self.disk[place(id)] = OnDisk::Rejected;
                }
            }
        }
    }

    fn take_in(&mut self, newness: Newness) -> Vec<Decision> {
        self.disk.push(OnDisk::Building);
        self.was_good.push(false);
        self.releases.taken_in(self.disk.len() as Id, newness)
    }

    fn possible(&self, most: usize) -> Vec<Happening> {
        let mut possible = Vec::new();
        let room = self.disk.len() < most;
        if room {
            possible.extend(NEWNESS.map(Happening::TakenIn));
        }
        if self.releases.building().is_some() {
            possible.extend([Happening::Built, Happening::BuildFailed, Happening::NoRoom]);
            // A release command is run for no release that was good.
            if self.releases.building() != self.releases.good() {
                possible.push(Happening::ReleaseFailed);
            }
        }
        if self.releases.is_going_back() {
            possible.push(Happening::Undone);
        } else if self.releases.on_trial().is_some() {
            possible.extend([Happening::Up, Happening::GivenUp]);
        }
        let restarts = restarts()
            .into_iter()
            .filter(|restart| room || restart.new.is_none());
        possible.extend(restarts.map(Happening::Restarted));
        possible
    }

    /// What is decided when this happens; only what a restart begins with is written down.
    fn happens(&mut self, happening: Happening) -> Vec<Decision> {
        match happening {
            Happening::TakenIn(newness) => self.take_in(newness),
            Happening::Built => self.releases.built(self.releases.building().unwrap()),
            Happening::BuildFailed => {
                let id = self.releases.building().unwrap();
                self.releases.build_failed(id, "no".to_owned())
            }
            Happening::NoRoom => {
                let id = self.releases.building().unwrap();
                self.releases.no_room_to_build(id)
            }
            Happening::ReleaseFailed => {
                let id = self.releases.building().unwrap();
                self.releases.release_failed(id, "no".to_owned())
            }
            Happening::Up => self.releases.up(),
            Happening::GivenUp => self.releases.given_up("no".to_owned()),
            Happening::Undone => self.releases.undone(),
            Happening::Restarted(restart) => {
                let good = self
                    .with(OnDisk::Current)
                    .pop()
                    .or(self.with(OnDisk::Superseded).pop());
                let rolling = self.with(OnDisk::RollingOut);
                let (releases, decisions) =
                    Releases::restarted(good, self.undecided(), restart.resume);
                self.releases = releases;
                self.write(&decisions, usize::MAX);
                if restart.survived {
                    let left = self.releases.left;
                    let left_is_built = left.is_some_and(|left| rolling.contains(&left));
                    let decisions = self.releases.survived(left_is_built);
                    self.write(&decisions, usize::MAX);
                }
                match restart.new {
                    Some(newness) => self.take_in(newness),
                    None => self.releases.begin(),
                }
            }
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        let good = self.releases.good();
        assert!(self.with(OnDisk::Current).len() <= 1);
        assert_eq!(
            self.with(OnDisk::Current)
                .pop()
                .or(self.with(OnDisk::Superseded).pop()),
            good,
            "the last good one is what the disk says"
        );
        let mut undecided: Vec<_> = self.releases.undecided().collect();
        undecided.sort_unstable();
        let mut on_disk = self.undecided();
        on_disk.sort_unstable();
        assert_eq!(undecided, on_disk, "each undecided one is somebody's");
        match self.releases.wanted() {
            Some(wanted) => {
                assert_ne!(
                    self.at(wanted),
                    OnDisk::Rejected,
                    "a restart would begin with it"
                );
                assert!(good.is_none_or(|good| wanted >= good));
                assert!(undecided.iter().all(|id| *id <= wanted), "it is the newest");
            }
            None => assert!(good.is_none() && undecided.is_empty()),
        }
        // With something good there is always something that runs, or will.
        if good.is_some() {
            let waits = self.releases.building().is_some() || self.releases.on_trial().is_some();
            assert!(waits || self.releases.is_settled(), "{self:?}");
        }
    }

    /// Lets everything take its course, well or badly, until there is nothing to wait for;
    /// what is still not decided then.
    fn come_to_rest(mut self, goes_well: bool) -> Vec<Id> {
        for _ in 0..20 {
            let next = if self.releases.is_going_back() {
                Happening::Undone
            } else if self.releases.on_trial().is_some() {
                if goes_well {
                    Happening::Up
                } else {
                    Happening::GivenUp
                }
            } else if self.releases.building().is_some() {
                if goes_well {
                    Happening::Built
                } else {
                    Happening::BuildFailed
                }
            } else {
                return self.undecided();
            };
            let decisions = self.happens(next);
            self.write(&decisions, usize::MAX);
            self.check();
            if let [Decision::BuildAgain(id)] = decisions[..]
                && self.releases.good().is_none_or(|good| good == id)
            {
                let undecided = self.undecided();
                return undecided.into_iter().filter(|other| *other != id).collect();
            }
        }
        panic!("it never comes to rest: {self:?}");
    }
}

/// Every state that six releases can get into, with hsup ending at any moment, even with
/// only a part of what it had decided on disk.
#[test]
fn whatever_happens_the_rules_hold() {
    let mut seen = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    while let Some(world) = queue.pop_front() {
        world.check();
        for goes_well in [true, false] {
            let undecided = world.clone().come_to_rest(goes_well);
            assert!(
                undecided.is_empty(),
                "undecided for ever: {undecided:?} of {world:?}"
            );
        }
        for happening in world.possible(6) {
            let mut next = world.clone();
            let decisions = next.happens(happening);
            for written in 0..decisions.len() {
                let mut killed = next.clone();
                killed.write(&decisions, written);
                for restart in restarts()
                    .into_iter()
                    .filter(|restart| restart.new.is_none())
                {
                    let mut again = killed.clone();
                    let decisions = again.happens(Happening::Restarted(restart));
                    again.write(&decisions, usize::MAX);
                    if seen.insert(again.clone()) {
                        queue.push_back(again);
                    }
                }
            }
            next.write(&decisions, usize::MAX);
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    assert!(seen.len() > 1000, "only {} states were seen", seen.len());
}

proptest! {
    /// The same along paths that are long rather than complete.
    #[test]
    fn the_rules_hold_for_many_releases(
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0usize..8), 0..200),
    ) {
        let mut world = World::new();
        for (which, written) in steps {
            let possible = world.possible(100);
            let decisions = world.happens(possible[which.index(possible.len())]);
            world.write(&decisions, written);
            if written < decisions.len() {
                let restart = restarts()[which.index(restarts().len())];
                let decisions = world.happens(Happening::Restarted(Restart { new: None, ..restart }));
                world.write(&decisions, usize::MAX);
            }
            world.check();
        }
        prop_assert!(world.clone().come_to_rest(true).is_empty());
        prop_assert!(world.come_to_rest(false).is_empty());
    }
}

fn after(happenings: &[Happening]) -> (World, Vec<Decision>) {
    let mut world = World::new();
    let mut decisions = Vec::new();
    for happening in happenings {
        decisions = world.happens(*happening);
        world.write(&decisions, usize::MAX);
    }
    (world, decisions)
}

const NEW: Happening = Happening::TakenIn(Newness::New);

fn restarted(survived: bool) -> Happening {
    Happening::Restarted(Restart {
        resume: Resume::Undecided,
        survived,
        new: None,
    })
}

#[test]
fn the_first_release_runs_as_soon_as_it_is_built() {
    let (_, decisions) = after(&[NEW, Happening::Built]);
    assert_eq!(decisions, [Decision::Run(1)]);
}

#[test]
fn a_release_that_does_not_come_up_leads_back_to_the_one_before() {
    let (world, decisions) = after(&[
        NEW,
        Happening::Built,
        NEW,
        Happening::Built,
        Happening::GivenUp,
    ]);
    assert_eq!(decisions, [Decision::Reject(2, Why::Failed("no".into()))]);
    assert_eq!(world.releases.wanted(), Some(1));
    let (world, _) = after(&[
        NEW,
        Happening::Built,
        NEW,
        Happening::Built,
        Happening::GivenUp,
        Happening::Undone,
    ]);
    assert!(world.releases.is_settled());
}

#[test]
fn of_two_that_wait_for_a_going_back_the_newer_is_tried() {
    let begin = [
        NEW,
        Happening::Built,
        NEW,
        Happening::Built,
        Happening::GivenUp,
        NEW,
        Happening::Built,
        NEW,
        Happening::Built,
    ];
    let (mut world, decisions) = after(&begin);
    assert_eq!(decisions, [Decision::Reject(3, Why::Overtaken { by: 4 })]);
    assert_eq!(world.happens(Happening::Undone), [Decision::Try(4)]);
}

#[test]
fn a_bad_build_does_not_hide_the_release_that_is_on_trial() {
    let (world, decisions) = after(&[
        NEW,
        Happening::Built,
        NEW,
        Happening::Built,
        NEW,
        Happening::BuildFailed,
    ]);
    assert_eq!(decisions, [Decision::Reject(3, Why::Failed("no".into()))]);
    assert_eq!(world.releases.wanted(), Some(2));
}

#[test]
fn a_restart_tries_again_what_was_on_trial() {
    let on_trial = [NEW, Happening::Built, NEW, Happening::Built];
    let (mut world, decisions) = after(&[&on_trial[..], &[restarted(false)]].concat());
    assert_eq!(decisions, [Decision::Build(2)]);
    let built = world.happens(Happening::Built);
    assert_eq!(built, [Decision::Try(2)], "it never was good");
    world.write(&built, 1);
    let given_up = world.happens(Happening::GivenUp);
    world.write(&given_up, 1);
    assert_eq!(world.happens(Happening::Undone), [Decision::Build(1)]);

    // With its dynos there it goes on at once.
    let (world, _) = after(&[&on_trial[..], &[restarted(true)]].concat());
    assert_eq!(world.releases.on_trial(), Some(2));
    assert_eq!(world.disk, [OnDisk::Current, OnDisk::RollingOut]);
}

#[test]
fn a_good_release_that_cannot_be_built_after_a_restart_is_built_again() {
    let (mut world, _) = after(&[
        NEW,
        Happening::Built,
        NEW,
        Happening::Built,
        Happening::Up,
        restarted(false),
    ]);
    for _ in 0..3 {
        assert_eq!(
            world.happens(Happening::BuildFailed),
            [Decision::BuildAgain(2)]
        );
    }
    assert_eq!(world.happens(Happening::Built), [Decision::Run(2)]);
}

#[test]
fn a_release_that_there_is_no_room_for_is_built_again_and_never_keeps_the_good_one_down() {
    let (mut world, decisions) = after(&[NEW, Happening::Built, NEW, Happening::NoRoom]);
    assert_eq!(decisions, [Decision::BuildAgain(2)]);
    assert_eq!(world.happens(Happening::Built), [Decision::Try(2)]);

    // After a restart nothing runs: the good one has its turn.
    let left = [NEW, Happening::Built, NEW, restarted(false)];
    let (mut world, decisions) = after(&[&left[..], &[Happening::NoRoom]].concat());
    assert_eq!(decisions, [Decision::BuildAgain(1)]);
    assert_eq!(world.releases.wanted(), Some(2));
    let decisions = world.happens(Happening::NoRoom);
    assert_eq!(decisions, [Decision::BuildAgain(2)]);
    let decisions = world.happens(Happening::NoRoom);
    assert_eq!(decisions, [Decision::BuildAgain(1)]);
    let decisions = world.happens(Happening::Built);
    assert_eq!(decisions, [Decision::Run(1), Decision::BuildAgain(2)]);
    let decisions = world.happens(Happening::NoRoom);
    assert_eq!(decisions, [Decision::BuildAgain(2)]);
}

#[test]
fn a_release_whose_command_failed_is_not_built_again_whatever_it_is() {
    for newness in NEWNESS {
        let (mut world, _) = after(&[Happening::TakenIn(newness)]);
        let failed = Why::Failed("no".to_owned());
        let expected = [Decision::Reject(1, failed)];
        assert_eq!(world.happens(Happening::ReleaseFailed), expected);
        assert!(world.releases.is_empty());
    }
}

#[test]
fn a_report_about_a_build_that_was_overtaken_changes_nothing() {
    let (mut world, _) = after(&[NEW, Happening::Built, NEW, NEW]);
    let before = world.clone();
    assert_eq!(world.releases.built(2), []);
    assert_eq!(world.releases.build_failed(2, "no".to_owned()), []);
    assert_eq!(world.releases.release_failed(2, "no".to_owned()), []);
    assert_eq!(world, before);
}

#[test]
fn what_is_older_than_the_good_release_was_overtaken_by_it() {
    let (releases, decisions) = Releases::restarted(Some(5), [4, 3], Resume::Undecided);
    let overtaken = |id| Decision::Reject(id, Why::Overtaken { by: 5 });
    assert_eq!(decisions, [overtaken(3), overtaken(4)]);
    assert_eq!(releases.wanted(), Some(5));
}
