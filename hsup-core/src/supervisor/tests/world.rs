//! The supervisor's own task in a world of the test's making.
//!
//! It is fed reports, requests and news as its loop feeds it, and decides as it always does. What
//! it spawns goes to a runtime that nobody drives: no build and no dyno does anything by itself.
//! A dyno is what a [`State`] says, and tells what `dyno/task.rs` would tell, in that order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use hsup_proto::{control::DynoState, driver::dyno_driver_server::DynoDriver};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Semaphore, broadcast, mpsc, watch},
};

use super::super::{
    Settings,
    actor::{Actor, Live},
    building::{BuildDone, NotBuilt},
};
use crate::{
    backoff,
    driver::{DriverLink, DriverOptions, Link, fake},
    dyno::{
        self, Crash, DynoPolicy, DynoStatus, FdBudget, Key, Ledger, Report, Shared, Tasks, What,
    },
    environment::Base,
    exit::ExitStatus,
    files::write_atomic,
    lifecycle::{Kind, Stop},
    logs::{LogSettings, Logs},
    name::{DynoId, DynoName},
    paths::Paths,
    ports::HostPorts,
    releases::Id,
    rollout::{Policy, Strategy},
    source::{ControlDir, Directory, Source, Update},
    state::{Artifact, LiveDyno, StateDir},
};

/// What all worlds have in common: a driver that is there and is asked nothing, and the log.
struct Stage {
    link: watch::Receiver<Link>,
    logs: Logs,
    /// The driver's connections are on it.
    _runtime: Runtime,
}

static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let runtime = undriven();
    Stage {
        link: runtime.block_on(fake::link(Idle)),
        logs: Logs::start(LogSettings::default()).unwrap(),
        _runtime: runtime,
    }
});

struct Idle;

impl DynoDriver for Idle {}

/// A runtime: what is spawned on it waits for ever.
pub(super) fn undriven() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Where a dyno is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    /// It serves. A web is ready then; another has yet to show that it goes on.
    Up,
    Ready,
    /// It serves since an earlier life, and has not said so in this.
    Unsaid,
    /// It failed on trial, and is not started again.
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Dyno {
    state: State,
    /// Until it was ready for the first time.
    on_trial: bool,
}

/// How what is expected of a dyno comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Luck {
    Well,
    Badly,
    /// The driver loses it.
    Lost,
}

/// A supervisor, its dynos, and what is on its disk.
pub(super) struct World {
    pub(super) actor: Actor,
    dynos: BTreeMap<Key, Dyno>,
    policy: Policy,
    disk: TempDir,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actor = &self.actor;
        writeln!(f, "{:?}", actor.releases)?;
        writeln!(f, "{:?}", actor.trial)?;
        writeln!(
            f,
            "deferred {:?}, successors {:?}",
            actor.deferred, actor.successors
        )?;
        for (key, live) in actor.dynos.iter() {
            let spec = &live.handle.spec;
            let going = if live.retiring { ", goes" } else { "" };
            let state = self.dynos[&key].state;
            writeln!(
                f,
                "{key:?} {} of {}: {state:?}{going}",
                spec.name, spec.release_id
            )?;
        }
        Ok(())
    }
}

impl World {
    /// Nothing runs, and there is no release.
    pub(super) fn new(policy: &Policy) -> Self {
        Self::on(disk(), policy)
    }

    /// Nothing runs yet of the app in a directory with this Procfile.
    pub(super) fn of_directory(procfile: &str) -> Self {
        let disk = disk();
        write_procfile(&disk, procfile);
        Self::on(disk, &Policy::default())
    }

    /// Somebody changes the Procfile. hsup reads it when it is started.
    pub(super) fn edit(&self, procfile: &str) {
        write_procfile(&self.disk, procfile);
    }

    fn on(disk: TempDir, policy: &Policy) -> Self {
        let mut world = Self {
            actor: actor(&disk, policy, Vec::new()),
            dynos: BTreeMap::new(),
            policy: policy.clone(),
            disk,
        };
        world.begin(|_| ());
        world
    }

    /// hsup was stopped with all that ran, and is started again.
    pub(super) fn is_started_again(&mut self) {
        self.actor = actor(&self.disk, &self.policy, Vec::new());
        self.dynos.clear();
        self.begin(|_| ());
    }

    /// As the task's loop begins, what happens then, and the source's first word: what is in the
    /// directory, or nothing newer.
    fn begin(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        self.actor.take_up_history();
        self.actor.adopt_survivors();
        self.follow();
        meanwhile(self);
        let word = match &mut self.actor.source {
            Source::Directory(directory) => directory.next().now_or_never().unwrap(),
            Source::ControlDir(_) | Source::Heroku(_) => Update::Late {
                why: "the source says nothing".to_owned(),
            },
        };
        self.actor.update(word);
        self.follow();
    }

    /// Has the supervisor do something.
    pub(super) fn act<T>(&mut self, act: impl FnOnce(&mut Actor) -> T) -> T {
        let done = act(&mut self.actor);
        assert!(
            self.actor.fatal.is_none(),
            "it ends: {:?}",
            self.actor.fatal
        );
        self.follow();
        done
    }

    /// Finds out which dynos were started, or told to start again.
    fn follow(&mut self) {
        self.dynos.retain(|key, _| self.actor.dynos.contains(*key));
        for (key, live) in self.actor.dynos.iter() {
            let dyno = self.dynos.entry(key).or_insert(Dyno {
                state: State::Starting,
                on_trial: live.handle.spec.on_trial,
            });
            if live.status.state == DynoState::Starting && !live.retiring {
                dyno.state = State::Starting;
            }
        }
    }

    fn report(&mut self, key: Key, what: What) {
        self.actor.report(Report { key, what });
    }

    fn tell_status(&mut self, key: Key, state: DynoState, ready: bool) {
        let Some((_, live)) = self.actor.dynos.iter().find(|(of, _)| *of == key) else {
            return;
        };
        let dyno_id = DynoId::mint(&live.handle.spec.name, key.0);
        let status = DynoStatus {
            state,
            ready,
            dyno_id: Some(dyno_id),
            ..live.status.clone()
        };
        self.report(key, What::Status(Box::new(status)));
    }

    fn set(&mut self, key: Key, state: State) {
        self.dynos.get_mut(&key).unwrap().state = state;
    }

    /// What is expected of a dyno comes: its end, where it was told to.
    pub(super) fn moves(&mut self, key: Key, luck: Luck) {
        let live = self.live(key);
        let is_release = live.handle.spec.name.process_type.is_release();
        if live.retiring || is_release {
            let code = i32::from(luck != Luck::Well);
            self.report(key, What::Complete(Some(ExitStatus::code(code, 0))));
            return self.follow();
        }
        let is_web = live.handle.spec.name.process_type.is_web();
        let Dyno { state, on_trial } = self.dynos[&key];
        match (state, luck) {
            (State::Starting, Luck::Well) if !is_web => {
                self.set(key, State::Up);
                self.tell_status(key, DynoState::Up, true);
            }
            (State::Starting | State::Up, Luck::Well) => self.ready(key),
            (State::Unsaid, _) if is_web && !on_trial => self.ready(key),
            (State::Unsaid, _) => {
                self.set(key, State::Up);
                self.tell_status(key, DynoState::Up, true);
            }
            (State::Starting | State::Up, Luck::Badly) => {
                let after = if on_trial {
                    State::Failed
                } else {
                    State::Starting
                };
                self.set(key, after);
                self.report(key, What::Failed("it fails".to_owned()));
                self.tell_status(key, DynoState::Crashed, false);
            }
            (State::Starting | State::Up, Luck::Lost) => {
                self.set(key, State::Starting);
                self.report(key, What::Lost("it is lost".to_owned()));
                self.tell_status(key, DynoState::Crashed, false);
            }
            (State::Ready | State::Failed, _) => {}
        }
        self.follow();
    }

    fn ready(&mut self, key: Key) {
        self.dynos.insert(
            key,
            Dyno {
                state: State::Ready,
                on_trial: false,
            },
        );
        self.tell_status(key, DynoState::Up, true);
        self.report(key, What::Ready);
    }

    /// A dyno that is not started again has ended like this: by itself, or as it was told to.
    pub(super) fn ends(&mut self, key: Key, exit: ExitStatus, by_itself: bool) {
        let live = self.live(key);
        let crash = by_itself.then(|| Crash {
            status: exit.clone(),
            dyno_id: DynoId::mint(&live.handle.spec.name, key.0),
            last_lines: [].into(),
        });
        let status = DynoStatus {
            crash,
            ..live.status.clone()
        };
        self.report(key, What::Status(Box::new(status)));
        self.report(key, What::Complete(Some(exit)));
        self.follow();
    }

    /// A dyno that had to be started again after it was ready does not come up.
    pub(super) fn fails_again(&mut self, key: Key) {
        self.set(key, State::Starting);
        self.report(key, What::Lost("it is lost".to_owned()));
        self.report(key, What::Failed("it fails".to_owned()));
        self.follow();
    }

    /// A dyno that was ready ends, and is started again by itself.
    pub(super) fn crashes(&mut self, key: Key) {
        self.set(key, State::Starting);
        self.report(key, What::Crashed("it crashed".to_owned()));
        self.tell_status(key, DynoState::Crashed, false);
        self.follow();
    }

    /// The build that is under way has come to something.
    pub(super) fn build(&mut self, result: Result<(), bool>) {
        if self.actor.builds.task.is_some() {
            self.was_built(result);
        }
        assert!(
            self.actor.fatal.is_none(),
            "it ends: {:?}",
            self.actor.fatal
        );
    }

    /// The same, also of a build for which nobody waits any more.
    pub(super) fn was_built(&mut self, result: Result<(), bool>) {
        let Some(id) = self.actor.releases.building() else {
            return;
        };
        let artifact = Artifact {
            driver: "fake".to_owned(),
            options: DriverOptions::default(),
            artifact: format!("of {id}"),
        };
        let result = result.map(|()| artifact).map_err(|no_room| NotBuilt {
            why: "it cannot be built".to_owned(),
            no_room,
        });
        self.actor.built(BuildDone { id, result });
        self.follow();
    }

    /// hsup is killed, and the next one takes its dynos over.
    pub(super) fn is_killed(&mut self) {
        self.is_killed_and(|_| ());
    }

    /// hsup is killed, and the next one told to end before it knows its driver.
    pub(super) fn is_killed_and_told_to_stop(&mut self) {
        self.leave();
        self.act(|actor| {
            actor.take_up_history();
            actor.take_over_to_stop(Stop::Immediately);
        });
    }

    /// hsup is killed, and something happens before the source of the next one has said a word.
    pub(super) fn is_killed_and(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        let mut taken_over = self.leave();
        self.begin(meanwhile);
        for (key, live) in self.actor.dynos.iter() {
            let spec = &live.handle.spec;
            let mut taken_over_then = taken_over.iter();
            let at = taken_over_then
                .position(|(name, release, _)| *name == spec.name && *release == spec.release_id);
            let Some((_, _, before)) = at.map(|at| taken_over.remove(at)) else {
                continue;
            };
            // The driver goes on with a Start that was under way.
            if before != State::Starting || !spec.name.process_type.is_web() {
                self.dynos.get_mut(&key).unwrap().state = State::Unsaid;
            }
        }
    }

    /// There is another hsup, and it finds these dynos.
    fn leave(&mut self) -> Vec<(DynoName, Id, State)> {
        let mut taken_over = Vec::new();
        let mut survivors = Vec::new();
        for (key, live) in self.actor.dynos.iter() {
            let (spec, dyno) = (&live.handle.spec, self.dynos[&key]);
            // What was told to end does so meanwhile.
            if live.retiring || dyno.state == State::Failed {
                continue;
            }
            survivors.push(LiveDyno {
                dyno_id: DynoId::mint(&spec.name, key.0),
                name: spec.name.clone(),
                release_id: spec.release_id,
                at_unix_ms: 0,
                port: None,
                io_dir: None,
                ready: dyno.state == State::Ready && spec.name.process_type.is_web(),
            });
            taken_over.push((spec.name.clone(), spec.release_id, dyno.state));
        }
        self.actor = actor(&self.disk, &self.policy, survivors);
        self.dynos.clear();
        taken_over
    }

    // ---- what is seen

    pub(super) fn live(&self, key: Key) -> &Live {
        let mut all = self.actor.dynos.iter();
        all.find(|(of, _)| *of == key).unwrap().1
    }

    /// Of which something is to be heard.
    pub(super) fn moving(&self) -> Vec<Key> {
        let moves = |key: &Key, live: &Live| {
            let state = self.dynos[key].state;
            let is_release = live.handle.spec.name.process_type.is_release();
            let is_waited_for = matches!(state, State::Starting | State::Up | State::Unsaid);
            live.retiring || is_release || is_waited_for
        };
        let all = self.actor.dynos.iter();
        all.filter(|(key, live)| moves(key, live))
            .map(|it| it.0)
            .collect()
    }

    /// Those that could crash.
    pub(super) fn crashable(&self) -> Vec<Key> {
        let all = self.actor.dynos.iter();
        all.filter(|(key, live)| !live.retiring && self.dynos[key].state == State::Ready)
            .map(|it| it.0)
            .collect()
    }

    /// Whether a dyno that is to stay serves, and of which release.
    pub(super) fn serving(&self) -> BTreeSet<(DynoName, Id)> {
        let serves = |key: &Key| {
            matches!(
                self.dynos[key].state,
                State::Up | State::Ready | State::Unsaid
            )
        };
        let all = self.actor.dynos.iter();
        all.filter(|(key, live)| !live.retiring && serves(key))
            .map(|(_, live)| &live.handle.spec)
            .map(|spec| (spec.name.clone(), spec.release_id))
            .collect()
    }

    /// What is to run now: of the good release, and held by nobody.
    pub(super) fn wanted(&self) -> BTreeSet<DynoName> {
        let Some(good) = self.actor.good() else {
            return BTreeSet::new();
        };
        let mut names = self.actor.wishes.all_names(&good.release);
        names.retain(|name| !self.actor.is_held(name));
        names
    }

    pub(super) fn strategy(&self, name: &DynoName) -> Strategy {
        self.actor.strategy(&name.process_type)
    }
}

fn disk() -> TempDir {
    // Its files are written again and again, and nothing is to be found after a power cut.
    let memory = Path::new("/dev/shm");
    match tempfile::tempdir_in(memory) {
        Ok(disk) => disk,
        Err(_) => tempfile::tempdir().unwrap(),
    }
}

fn write_procfile(disk: &TempDir, text: &str) {
    let app = disk.path().join("app");
    fs::create_dir_all(&app).unwrap();
    write_atomic(&app.join("Procfile"), text.as_bytes()).unwrap();
}

/// A supervisor of what is on the disk.
fn actor(disk: &TempDir, policy: &Policy, survivors: Vec<LiveDyno>) -> Actor {
    let path = disk.path().join("state");
    let state = StateDir::open(&path).unwrap();
    let app = disk.path().join("app");
    let source = if app.exists() {
        Source::Directory(Directory::open(&app).unwrap())
    } else {
        let control = ControlDir::open(&disk.path().join("control")).unwrap();
        Source::ControlDir(Box::new(control))
    };
    let shared = Shared {
        supervisor_id: state.supervisor_id().clone(),
        link: STAGE.link.clone(),
        logs: STAGE.logs.clone(),
        ledger: Ledger::new(state.journal().unwrap().0),
        tasks: Tasks::default(),
        ports: Mutex::new(HostPorts::new()),
        paths: Paths::from_env(),
        io_root: disk.path().join("io"),
        fds: FdBudget::new(1024),
        starts: Semaphore::new(0),
        host_base: Base::Login,
        host_vars: Vec::new(),
        binds: Vec::new(),
        driver_options: DriverOptions::default(),
        built: dyno::Built::default(),
        locator: None,
        policy: DynoPolicy {
            backoff: backoff::Policy::default(),
            grace: Duration::from_secs(30),
            boot_timeout: Duration::from_mins(1),
            http_check: None,
            linger: Duration::ZERO,
            settle: Duration::from_secs(1),
        },
    };
    let settings = Settings {
        app: "shop".to_owned(),
        source,
        explicit: None,
        start_number: 1,
        kind: Kind::Kept,
        rollouts: policy.clone(),
        release_timeout: Some(Duration::from_hours(1)),
        cycle_every: Some(Duration::from_hours(24)),
        base: disk.path().to_owned(),
        shared: Arc::new(shared),
        link: DriverLink::to(STAGE.link.clone()),
        history: state.history().unwrap().0,
        memory: state.memory().unwrap().0,
        survivors,
    };
    // Nobody asks by the inbox, or listens.
    Actor::new(settings, mpsc::channel(1).1, broadcast::channel(1).0)
}
