//! An upgrade is a restart that nobody notices: each part of hsup is restarted again and again
//! under load, and neither a dyno, nor a visitor, nor whoever reads the log sees anything of it.
//!
//! How often each part is restarted in a test is `HSUP_RESTARTS`, or [`RESTARTS`]; a hundred times
//! is what docs/reliability.md tells of.

use std::{
    collections::BTreeSet,
    env, fs,
    process::{Child, Stdio},
};

use hsup_tests::{deadline, programs, unread};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    activation::{Activator, Asker},
    app::{App, Running, binaries, process, processes_of},
    bad_input::script,
    day::{
        lines::{Kept, in_file, kept, numbers, tallies},
        visits::Visitor,
    },
    survival::driver_pid,
};

/// How often each part is restarted unless somebody wants it more often.
const RESTARTS: u32 = 10;
/// What runs all the time.
const NAMES: [&str; 4] = ["web.1", "web.2", "worker.1", "worker.2"];

fn restarts() -> u32 {
    let wanted = env::var("HSUP_RESTARTS").ok();
    wanted.map_or(RESTARTS, |wanted| wanted.parse().unwrap())
}

/// What runs the dynos: in either case they outlive it.
enum Driver {
    /// hsup's child.
    Child(String),
    /// A process of its own.
    Served(Child),
}

/// An app under load.
struct Stage<'a> {
    app: &'a App,
    activator: &'a Activator,
    driver: Driver,
    /// None for a moment.
    hsup: Option<Running<'a>>,
    ids: Vec<String>,
    processes: BTreeSet<(i32, String)>,
    visitor: Visitor,
    asker: Asker,
}

/// A durable driver that listens at the app's `driver.sock`.
fn serve(app: &App) -> Child {
    let mut command = app.command("hsup-driver-simple");
    command
        .args(["--durable", "--socket"])
        .arg(app.path("driver.sock"))
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

fn child(app: &App) -> Driver {
    let program = binaries().join("hsup-driver-simple");
    let line = format!("#!/bin/sh\nexec {} --durable\n", program.display());
    Driver::Child(script(app, &line))
}

/// Puts another program in the place of hsup, of two that take turns.
fn install(app: &App, round: u32) {
    let (next, place) = (app.path("bin/next"), app.path("bin/hsup"));
    let program = app.path(["bin/one", "bin/other"][round as usize % 2]);
    if !program.exists() {
        fs::create_dir_all(app.path("bin")).unwrap();
        programs::copy(&binaries().join("hsup"), &program);
    }
    fs::hard_link(program, &next).unwrap();
    fs::rename(next, place).unwrap();
}

/// Every process of the app's dynos, with the time of its start.
fn dynos(app: &App) -> BTreeSet<(i32, String)> {
    let of_dyno = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let program = line.split(|byte| *byte == 0).next()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.to_owned();
        program.ends_with(b"test-tally").then_some((pid, start))
    };
    processes_of(app).into_iter().filter_map(of_dyno).collect()
}

/// hsup as its manager starts it.
fn start<'a>(app: &'a App, activator: &Activator, driver: &Driver) -> Running<'a> {
    let mut command = app.command(app.path("bin/hsup").to_str().unwrap());
    command
        .arg("start")
        .arg("--control-dir")
        .arg(app.path("ctl"));
    command.args(["--linger", "60s", "--grace", "20s", "--log-to"]);
    command.arg(format!(
        "file://{}?max-size=1G",
        app.path("all.log").display()
    ));
    match driver {
        Driver::Child(program) => command.args(["-d", program]),
        Driver::Served(_) => command.arg("--driver-socket").arg(app.path("driver.sock")),
    };
    activator.prepare(&mut command);
    app.running(command)
}

impl<'a> Stage<'a> {
    fn begin(app: &'a App, activator: &'a Activator, driver: Driver) -> Self {
        install(app, 0);
        fs::create_dir(app.path("tallies")).unwrap();
        let front = app.port + 250;
        let tally = binaries().join("test-tally");
        let line = |words: &str, more: String| {
            let folder = app.path("tallies");
            format!(
                "exec {} {words} {}{more}",
                tally.display(),
                folder.display()
            )
        };
        let web = process("web", &line("web", format!(" {front}")), 2);
        let worker = process("worker", &line("worker", String::new()), 2);
        app.release(1, "", &format!("{web},{worker}"));
        let hsup = start(app, activator, &driver);
        let ids = hsup.wait_up(&NAMES);
        // A worker is up while its shell has yet to become what it runs.
        let processes = hsup.wait_for("the processes of all dynos", || {
            Some(dynos(app)).filter(|processes| processes.len() == NAMES.len())
        });
        Self {
            app,
            activator,
            driver,
            hsup: Some(hsup),
            ids,
            processes,
            visitor: Visitor::of(front),
            asker: Asker::of(activator),
        }
    }

    fn hsup(&self) -> &Running<'a> {
        self.hsup.as_ref().unwrap()
    }

    fn start(&mut self) {
        self.hsup = Some(start(self.app, self.activator, &self.driver));
    }

    /// Ends hsup as an upgrade does.
    fn leave(&mut self) {
        let mut hsup = self.hsup.take().unwrap();
        hsup.signal(Signal::SIGUSR2);
        assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
        hsup.leave();
    }

    /// Kills hsup; answers how many lines it had read and not written.
    fn kill(&mut self) -> u64 {
        self.hsup.take().unwrap().kill();
        // What it has not read waits, and what comes now waits behind it.
        let first_unread = deadline::poll(|| {
            let unread = unread::by_dyno(&self.app.path("rt")).unwrap();
            let unread = self.ids.iter().map(|id| {
                let line = unread.get(id)?.split_inclusive('\n').next()?;
                numbers(line.lines().filter(|_| line.ends_with('\n')))
                    .get(&**id)
                    .map(|numbers| numbers[0])
            });
            unread.collect::<Option<Vec<_>>>()
        });
        let first_unread = first_unread.expect("a dyno that writes no more");
        let text = fs::read_to_string(self.app.path("all.log")).unwrap();
        // Half a line is one that was not written.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let written = in_file(whole);
        let in_hand = self.ids.iter().zip(first_unread).map(|(id, first)| {
            let last = written.get(&**id).and_then(|numbers| numbers.last());
            first - 1 - last.copied().unwrap_or(0)
        });
        in_hand.sum()
    }

    /// Ends the driver, and has it come back.
    fn restart_driver(&mut self, signal: Signal) {
        match &mut self.driver {
            Driver::Child(_) => {
                let before = driver_pid(self.hsup());
                kill(Pid::from_raw(before), signal).unwrap();
                self.hsup().wait_for("another driver", || {
                    (driver_pid(self.hsup()) != before).then_some(())
                });
            }
            Driver::Served(process) => {
                kill(Pid::from_raw(process.id().cast_signed()), signal).unwrap();
                process.wait().unwrap();
                *process = serve(self.app);
                let new = process.id().cast_signed();
                if let Some(hsup) = &self.hsup {
                    hsup.wait_for("the new driver", || (driver_pid(hsup) == new).then_some(()));
                }
            }
        }
    }

    /// The driver is restarted, and then hsup: one that saw its driver end again and again would
    /// let it wait for longer and longer.
    fn restart_driver_of_a_fresh_hsup(&mut self, signal: Signal) {
        self.restart_driver(signal);
        self.nothing_has_changed();
        self.leave();
        self.start();
    }

    /// Waits until the formation is up, and looks that it is the one that always was.
    fn nothing_has_changed(&self) {
        assert_eq!(self.hsup().wait_up(&NAMES), self.ids);
        assert_eq!(dynos(self.app), self.processes);
        let dynos = self.hsup().dynos();
        assert!(dynos.iter().all(|dyno| dyno["restarts"] == 0), "{dynos:?}");
        // Where each is the driver is asked anew.
        self.hsup().wait_for("addresses", || {
            let mut dynos = self.hsup().dynos().into_iter();
            dynos.all(|dyno| dyno["ip"] == "127.0.0.1").then_some(())
        });
    }

    /// Ends it all; answers what there is of the lines that were written.
    #[expect(clippy::print_stdout, reason = "the figures for docs/reliability.md")]
    fn end(mut self, kills: u32) -> Kept {
        let visits = self.visitor.end();
        assert!(visits.answered > 0, "{visits:?}");
        assert_eq!((visits.cut, visits.refused), (0, 0), "{visits:?}");
        let asked = self.asker.end();
        // Who was being answered by an hsup that was killed.
        assert!(asked.answered > 0 && asked.cut <= kills, "{asked:?}");
        let mut hsup = self.hsup.take().unwrap();
        hsup.signal(Signal::SIGINT);
        assert_eq!(hsup.end().code(), Some(130), "{}", hsup.log());
        if let Driver::Served(process) = &mut self.driver {
            kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGTERM).unwrap();
            process.wait().unwrap();
        }
        hsup.nothing_is_left();
        let text = fs::read_to_string(self.app.path("all.log")).unwrap();
        let kept = kept(&text, &tallies(&self.app.path("tallies")));
        println!("{} visits, {asked:?}, {kept:?}", visits.answered);
        kept
    }
}

/// Restarts something under load, and looks that every line that was written is there once.
fn unnoticed(driver: impl FnOnce(&App) -> Driver, restart: impl Fn(&mut Stage<'_>, u32)) {
    let app = App::empty();
    let activator = Activator::of(&app);
    let mut stage = Stage::begin(&app, &activator, driver(&app));
    for round in 0..restarts() {
        restart(&mut stage, round);
        stage.nothing_has_changed();
    }
    let kept = stage.end(0);
    assert_eq!((kept.missing, kept.gaps), (0, 0), "{kept:?}");
}

/// In turn.
fn signal(round: u32) -> Signal {
    match round % 2 {
        0 => Signal::SIGTERM,
        _ => Signal::SIGKILL,
    }
}

#[test]
fn hsup_is_replaced_by_another_program() {
    unnoticed(child, |stage, round| {
        install(stage.app, round + 1);
        stage.leave();
        stage.start();
    });
}

#[test]
fn a_child_driver_is_restarted() {
    unnoticed(child, |stage, round| {
        stage.restart_driver_of_a_fresh_hsup(signal(round));
    });
}

#[test]
fn a_driver_of_its_own_is_restarted() {
    let served = |app: &App| Driver::Served(serve(app));
    unnoticed(served, |stage, round| {
        stage.restart_driver_of_a_fresh_hsup(signal(round));
    });
}

#[test]
fn hsup_and_its_driver_are_replaced_together() {
    let served = |app: &App| Driver::Served(serve(app));
    unnoticed(served, |stage, round| {
        stage.leave();
        stage.restart_driver(signal(round));
        stage.start();
    });
}

/// What hsup had read and not written when it was killed is lost (docs/logs.md), and not a line
/// more: what dynos write until there is another hsup, neither.
#[test]
fn hsup_is_killed_with_and_without_its_driver() {
    let app = App::empty();
    let activator = Activator::of(&app);
    let mut stage = Stage::begin(&app, &activator, Driver::Served(serve(&app)));
    let mut in_hand = 0;
    for round in 0..restarts() {
        in_hand += stage.kill();
        if round % 2 == 1 {
            stage.restart_driver(Signal::SIGKILL);
        }
        stage.start();
        stage.nothing_has_changed();
    }
    let kept = stage.end(restarts());
    assert_eq!(kept.missing, in_hand, "{kept:?}");
}
