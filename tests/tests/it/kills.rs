//! hsup is killed at each call that it makes to its driver, and begins anew with each text that its
//! journal may have had: the next one adopts what runs, starts what is missing, stops what is
//! nobody's, and runs nothing a second time that is to run once.
//!
//! `HSUP_KILLS=all` tries all calls of a life and every eighth byte of the journal, which takes
//! minutes; without it, some of them.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::process::ExitStatusExt as _,
    sync::{Mutex, PoisonError},
    thread,
};

use hsup_tests::deadline::poll;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::app::{App, Running, binaries, process, processes_of};

/// The calls that hsup makes of itself.
const CALLS: [&str; 8] = [
    "info", "list", "build", "start", "wait", "ip", "stop", "remove",
];
/// Which of each kind a short run tries.
const SOME: [usize; 2] = [0, 3];
/// How many lives there are at a time: most of each is waiting.
const AT_ONCE: usize = 4;

const THREE: [&str; 3] = ["web.1", "worker.1", "worker.2"];
const FOUR: [&str; 4] = ["web.1", "worker.1", "worker.2", "worker.3"];

fn is_thorough() -> bool {
    env::var("HSUP_KILLS").is_ok_and(|wanted| wanted == "all")
}

/// When hsup is killed.
#[derive(Clone, Copy, Debug)]
struct Moment {
    call: &'static str,
    /// How many such calls go well first.
    skip: usize,
    /// `kill`, or `kill-after` when the driver has done what it was called for.
    word: &'static str,
}

/// An app, and the hsup that it has now.
struct Life<'a> {
    app: &'a App,
    arguments: &'a [&'a str],
    /// None for a moment.
    hsup: Option<Running<'a>>,
}

fn start<'a>(app: &'a App, arguments: &[&str]) -> Running<'a> {
    let driver = binaries().join("hsup-driver-fault");
    let mut all = vec!["-d", driver.to_str().unwrap(), "--boot-timeout", "60s"];
    all.extend(arguments);
    app.control(&all)
}

impl<'a> Life<'a> {
    fn begin(app: &'a App, moment: Moment, arguments: &'a [&'a str]) -> Self {
        let Moment { call, skip, word } = moment;
        app.faults(&format!("once skip {skip} {call} {word}\n"));
        Self {
            app,
            arguments,
            hsup: Some(start(app, arguments)),
        }
    }

    /// The hsup that lives now; the next one, if it was killed.
    fn hsup(&mut self) -> &mut Running<'a> {
        if let Some(status) = self.hsup.as_mut().unwrap().has_ended() {
            self.next(status);
        }
        self.hsup.as_mut().unwrap()
    }

    fn next(&mut self, ended: std::process::ExitStatus) {
        let before = self.hsup.take().unwrap();
        assert_eq!(ended.signal(), Some(9), "{ended}: {}", before.log());
        before.leave();
        self.hsup = Some(start(self.app, self.arguments));
    }

    /// Asks for something until an hsup has taken it up, and waits until it is so.
    fn reach<T>(
        &mut self,
        what: &str,
        ask: impl Fn(&App) -> bool,
        goal: impl Fn(&Running<'_>) -> Option<T>,
    ) -> T {
        let mut asked = false;
        let reached = poll(|| {
            let (app, hsup) = (self.app, self.hsup());
            asked = asked || ask(app);
            asked.then(|| goal(hsup)).flatten()
        });
        reached.unwrap_or_else(|| {
            let (log, calls) = (self.hsup().log(), calls(self.app));
            panic!("waited in vain for {what}; hsup said:\n{log}\n{calls}")
        })
    }

    /// Waits until these are up; their ids.
    fn up(&mut self, names: &[&str]) -> Vec<String> {
        self.reach("dynos", |_| true, |hsup| hsup.up(names))
    }

    /// The same once each is a process. One whose Start the driver never heard of is up until the
    /// driver has said so, and another one takes its place.
    fn run(&mut self, names: &[&str]) -> Vec<String> {
        let app = self.app;
        let are_all = |hsup: &Running<'_>| {
            let run = running(app) == names.len();
            run.then(|| hsup.up(names)).flatten()
        };
        self.reach("processes", |_| true, are_all)
    }

    /// Hands in a release with a command; whether it is current then. The other way is that its
    /// command was begun, and nobody knows what became of it.
    fn deploy(&mut self, version: u32) -> bool {
        release(self.app, version);
        let verdict = |hsup: &Running<'_>| {
            let releases = hsup.releases();
            let newest = releases.first().filter(|it| it["version"] == version)?;
            match newest["state"].as_str() {
                Some("current") => Some(Ok(())),
                Some("rejected") => Some(Err(newest["reason"].to_string())),
                _ => None,
            }
        };
        match self.reach("a verdict", |_| true, verdict) {
            Ok(()) => true,
            Err(why) => {
                assert!(why.contains("release command failed"), "{why}");
                false
            }
        }
    }

    /// Has all end, and looks that nothing is left.
    fn end(&mut self) {
        loop {
            self.up(&FOUR);
            let hsup = self.hsup();
            hsup.signal(Signal::SIGINT);
            let status = hsup.end();
            if status.code() == Some(130) {
                return hsup.nothing_is_left();
            }
            self.next(status);
        }
    }
}

/// Whoever has a twin says so in `tallies/twins`.
fn tally(app: &App) -> String {
    let tally = binaries().join("test-tally");
    let folder = app.path("tallies");
    format!("exec {} numbered {}", tally.display(), folder.display())
}

fn formation(app: &App) -> String {
    let web = process("web", &tally(app), 1);
    let worker = process("worker", &tally(app), 2);
    format!("{web},{worker}")
}

/// The release of this version, whose command leaves it in `ran`.
fn release(app: &App, version: u32) {
    let line = format!("echo {version} >> {}", app.path("ran").display());
    let command = process("release", &line, 1);
    let processes = format!("{},{command}", formation(app));
    app.hand_in(&app.text(version, "", &processes));
}

fn lines(app: &App, name: &str) -> Vec<String> {
    let text = fs::read_to_string(app.path(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn calls(app: &App) -> String {
    fs::read_to_string(app.path("faults.calls")).unwrap_or_default()
}

fn was_killed(app: &App) -> bool {
    calls(app).contains(": kill")
}

/// Nothing is there twice.
fn are_different(words: &[String]) -> bool {
    words.iter().collect::<BTreeSet<_>>().len() == words.len()
}

/// How many dynos run.
fn running(app: &App) -> usize {
    let is_dyno = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = line.split(|byte| *byte == 0).next();
        program.is_some_and(|program| program.ends_with(b"test-tally"))
    };
    processes_of(app).iter().filter(|pid| is_dyno(pid)).count()
}

/// Waits until so many dynos run, and no more.
fn run_exactly(app: &App, dynos: usize) {
    let reached = poll(|| (running(app) == dynos).then_some(()));
    assert!(reached.is_some(), "{} run, not {dynos}", running(app));
}

/// A start, a scaling, a release, a restart and the end; whether hsup was killed in it.
fn life(moment: Moment) -> bool {
    let app = App::empty();
    fs::create_dir_all(app.path("tallies/locks")).unwrap();
    app.hand_in(&app.text(1, "", &formation(&app)));
    let mut life = Life::begin(&app, moment, &[]);
    let first = life.run(&THREE);

    let scale = |app: &App| app.ctl(&["scale", "worker=3"]).status.success();
    life.reach("a scaling", scale, |hsup| hsup.up(&FOUR));
    let scaled = life.run(&FOUR);
    assert!(
        first.iter().all(|id| scaled.contains(id)),
        "{moment:?}: {first:?} and {scaled:?}\n{}\n{}",
        life.hsup().log(),
        calls(&app)
    );

    let mut version = 2;
    if !life.deploy(version) {
        assert_eq!(lines(&app, "ran"), [""; 0], "{moment:?}");
        assert_eq!(life.up(&FOUR), scaled, "{moment:?}");
        version = 3;
        assert!(life.deploy(version), "{moment:?}");
    }
    let rolled_out = life.run(&FOUR);
    assert!(
        rolled_out.iter().all(|id| !scaled.contains(id)),
        "{moment:?}"
    );

    let restart = |app: &App| app.ctl(&["restart", "worker"]).status.success();
    life.reach("a restart", restart, |hsup| hsup.up(&FOUR));
    let restarted = life.run(&FOUR);
    assert_eq!(restarted[0], rolled_out[0], "{moment:?}");
    let is_new = |id: &String| !rolled_out.contains(id);
    assert!(restarted[1..].iter().all(is_new), "{moment:?}");

    life.end();
    assert_eq!(lines(&app, "ran"), [version.to_string()], "{moment:?}");
    assert_eq!(lines(&app, "tallies/twins"), [""; 0], "{moment:?}");
    assert!(are_different(&app.calls("start")), "{}", calls(&app));
    was_killed(&app)
}

/// What is to run once; whether hsup was killed in it. What had ended by then, by the journal, a
/// start that begins again may run again (docs/reliability.md); nothing else runs twice.
fn once(moment: Moment) -> bool {
    let app = App::empty();
    let line = format!("echo $DYNO >> {}", app.path("ran").display());
    let jobs = [process("job", &line, 2), process("task", &line, 1)];
    app.hand_in(&app.text(1, "", &jobs.join(",")));
    let state = app.path("memory");
    let arguments = ["--oneshot", "--state-dir", state.to_str().unwrap()];
    let mut life = Life::begin(&app, moment, &arguments);
    let mut hsup = life.hsup.take().unwrap();
    let mut ended = BTreeSet::new();
    if let Some(9) = hsup.end().signal() {
        hsup.leave();
        let journal = fs::read_to_string(app.path("memory/journal")).unwrap_or_default();
        ended = ended_in(&journal);
        hsup = start(&app, &arguments);
        hsup.end();
    }
    let (ran, log) = (lines(&app, "ran"), hsup.log());
    for name in ["job.1", "job.2", "task.1"] {
        let times = ran.iter().filter(|ran| *ran == name).count();
        let most = 1 + usize::from(ended.contains(name));
        // Of one that is in the journal and the driver does not know nobody can say that it did
        // not run.
        let lost = format!("{name}: Process exited with unknown status");
        let is_lost = without_columns(&log).contains(&lost);
        let least = usize::from(!is_lost);
        assert!(
            (least..=most).contains(&times),
            "{moment:?}: {name} of {ran:?}\n{log}"
        );
    }
    hsup.nothing_is_left();
    was_killed(&app)
}

/// `12:00:00 job.1  | text` as `job.1: text`.
fn without_columns(log: &str) -> String {
    let line = |line: &str| {
        let (head, text) = line.split_once(" | ")?;
        Some(format!("{}: {text}\n", head.split_whitespace().nth(1)?))
    };
    log.lines().filter_map(line).collect()
}

/// Lives that life with hsup killed at one call after the other, or at some.
#[expect(clippy::print_stdout, reason = "the figures for docs/reliability.md")]
fn at_each_call(what: &str, live: fn(Moment) -> bool) {
    let kinds = CALLS
        .iter()
        .flat_map(|call| [(*call, "kill"), (*call, "kill-after")]);
    let kinds = Mutex::new(kinds);
    let next = || kinds.lock().unwrap_or_else(PoisonError::into_inner).next();
    let kills = thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let mut kills = 0;
                    while let Some((call, word)) = next() {
                        let moments = (0..).map(|skip| Moment { call, skip, word });
                        let of_kind =
                            |moment: &Moment| is_thorough() || SOME.contains(&moment.skip);
                        let most = if is_thorough() {
                            usize::MAX
                        } else {
                            SOME.len()
                        };
                        kills += moments
                            .filter(of_kind)
                            .take(most)
                            .take_while(|moment| live(*moment))
                            .count();
                    }
                    kills
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum::<usize>()
    });
    println!("{what}: hsup was killed at {kills} calls");
    assert!(kills >= CALLS.len());
}

#[test]
fn hsup_is_killed_at_one_call_after_the_other() {
    at_each_call("a life", life);
}

#[test]
fn hsup_is_killed_at_one_call_after_the_other_and_what_runs_once_does() {
    at_each_call("what runs once", once);
}

/// The records of a journal: a line that is cut off is none, one that lacks nothing but its end is.
fn records(journal: &str) -> impl Iterator<Item = Value> {
    let lines = journal.lines();
    lines.filter_map(|line| serde_json::from_str(line).ok())
}

fn id_in(record: &Value, kind: &str) -> Option<String> {
    Some(record[kind]["dyno_id"].as_str()?.to_owned())
}

/// The ids of the dynos that live by this text.
fn live_in(journal: &str) -> BTreeSet<String> {
    let mut live = BTreeSet::new();
    for record in records(journal) {
        live.extend(id_in(&record, "start"));
        if let Some(ended) = id_in(&record, "end") {
            live.remove(&ended);
        }
    }
    live
}

/// The names of the dynos that have ended by this text.
fn ended_in(journal: &str) -> BTreeSet<String> {
    let live = live_in(journal);
    let started = records(journal).filter_map(|record| {
        let id = id_in(&record, "start")?;
        let name = record["start"]["name"].as_str()?.to_owned();
        (!live.contains(&id)).then_some(name)
    });
    started.collect()
}

/// Where a journal is cut: before each line, in its middle and before its end, and at many places
/// more in a long run.
fn cuts(journal: &str) -> Vec<usize> {
    let mut begin = 0;
    let mut cuts = vec![journal.len()];
    if is_thorough() {
        cuts.extend((0..journal.len()).step_by(8));
    }
    for line in journal.split_inclusive('\n') {
        cuts.extend([begin, begin + line.len() / 2, begin + line.len() - 1]);
        begin += line.len();
    }
    cuts
}

/// An hsup that was killed while it wrote has written so much and no more; what runs is what ran.
#[test]
#[expect(clippy::print_stdout, reason = "the figures for docs/reliability.md")]
fn hsup_begins_with_each_text_that_its_journal_may_have_had() {
    let app = App::empty();
    fs::create_dir_all(app.path("tallies/locks")).unwrap();
    app.hand_in(&app.text(1, "", &formation(&app)));
    let (state, journal) = (app.path("memory"), app.path("memory/journal"));
    let arguments = ["--state-dir", state.to_str().unwrap()];
    let mut hsup = start(&app, &arguments);
    hsup.wait_up(&THREE);
    let mut lives = 0;
    loop {
        // So that there are the end of one and the start of the next.
        assert!(app.ctl(&["restart", "worker.1"]).status.success());
        let running = hsup.wait_up(&THREE);
        hsup.kill();
        let text = fs::read_to_string(&journal).unwrap();
        // A start leaves no line but those of what lives: the next journal has as many.
        let cut = cuts(&text).get(lives).copied();
        let kept = &text[..cut.unwrap_or(text.len())];
        app.write("memory/journal", kept);
        let live = live_in(kept);
        hsup = start(&app, &arguments);
        let after = hsup.wait_up(&THREE);
        for (id, after) in running.iter().zip(&after) {
            let is_adopted = live.contains(id);
            assert_eq!(
                id == after,
                is_adopted,
                "{id}, {after}, cut at {cut:?}:\n{kept}"
            );
        }
        run_exactly(&app, THREE.len());
        if cut.is_none() {
            break;
        }
        lives += 1;
    }
    println!("hsup began with {lives} texts of its journal");
    assert_eq!(lines(&app, "tallies/twins"), [""; 0]);
    hsup.interrupt();
}
