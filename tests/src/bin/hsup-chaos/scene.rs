//! Carries out steps, which have deeds (`deeds.rs`) in them. After each, all must be well (`looks.rs`).

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hsup_tests::fake::logplex::Fault;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    books::Books,
    deeds::names,
    machine::signal,
    steps::{Deed, Step, Target, Whom},
    world::{Release, World, patiently},
};

/// A dyno that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dyno {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) port: u16,
    pub(crate) pid: i32,
}

impl Dyno {
    /// Who has written a line of its.
    pub(crate) fn writer(&self) -> String {
        format!("{}:{}", self.id, self.pid)
    }
}

/// A kill of hsup.
#[derive(Debug)]
pub(crate) struct Killed {
    /// The process of the driver that there was.
    pub(crate) driver: Option<i32>,
}

/// The app as it should be, and as it is.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) books: Books,
    pub(crate) web: u32,
    pub(crate) worker: u32,
    /// The release that should run.
    pub(crate) good: u64,
    pub(crate) dynos: Vec<Dyno>,
    /// Files in the runtime folder that are of no dyno.
    pub(crate) files: Option<Vec<String>>,
    /// How hsup was killed in this step, if it was.
    pub(crate) killed: Option<Killed>,
    /// Somebody wants dynos restarted, and nobody waits until all are.
    pub(crate) is_restless: bool,
}

impl Scene {
    /// Begins with a good release.
    pub(crate) fn begin(mut world: World) -> Result<Self> {
        let good = world.release(Release::Good)?;
        world.begin()?;
        let mut scene = Self {
            books: Books::new(world.path("all.log")),
            world,
            web: 2,
            worker: 1,
            good,
            dynos: Vec::new(),
            files: None,
            killed: None,
            is_restless: false,
        };
        scene.settle()?;
        Ok(scene)
    }

    /// Carries out a step, and waits until all is well.
    pub(crate) fn carry_out(&mut self, step: &Step) -> Result<()> {
        let before = self.unmoved_by(step);
        self.is_restless = false;
        self.begin_step(step)?;
        self.settle()?;
        let lost: Vec<_> = before
            .iter()
            .filter(|dyno| !self.dynos.contains(dyno))
            .collect();
        ensure!(lost.is_empty(), "lost {lost:?}, and {:?} run", self.dynos);
        Ok(())
    }

    fn begin_step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Do(deed) => self.strictly(*deed)?,
            Step::BadRelease { kill } => self.bad_release(*kill)?,
            Step::StopAndStart { what, kill } => self.stop_and_start(*what, *kill)?,
            Step::Kill {
                whom,
                after,
                pause_ms,
                again_ms,
                lines: (gone, begun),
            } => {
                self.somehow(*after)?;
                pause(*pause_ms);
                self.kill(*whom, matches!(after, Deed::Nothing))?;
                self.have_written(*gone);
                self.world.begin()?;
                self.have_written(*begun);
                if let Some(again_ms) = again_ms {
                    pause(*again_ms);
                    self.kill(*whom, false)?;
                    self.have_written(*gone);
                    self.world.begin()?;
                }
                self.make_up_for(*after)?;
            }
            Step::Upgrade {
                whom,
                during,
                pause_ms,
                lines,
            } => {
                self.somehow(*during)?;
                pause(*pause_ms);
                if *whom != Whom::Driver {
                    self.world.leave_hsup()?;
                }
                if *whom != Whom::Hsup {
                    self.world.end_driver()?;
                }
                self.have_written(*lines);
                self.world.begin()?;
                self.have_written(*lines);
                self.make_up_for(*during)?;
            }
            Step::Hang {
                whom,
                during,
                noticed,
            } => self.hang(*whom, *during, *noticed)?,
            Step::End { whom, after } => {
                self.somehow(*after)?;
                match whom {
                    Whom::Hsup => self.world.end_hsup()?,
                    Whom::Driver | Whom::Both => self.world.end_driver()?,
                }
                self.world.begin()?;
                self.make_up_for(*after)?;
            }
            Step::Fault {
                script,
                during,
                kill,
            } => self.fault(script, *during, *kill)?,
            Step::FullDisk { during, kill } => {
                let disk = self.world.disk.as_ref().context("no disk of its own")?;
                disk.fill()?;
                self.somehow(*during)?;
                if *kill {
                    self.kill(Whom::Hsup, false)?;
                    self.world.begin()?;
                    self.taken_over()?;
                }
                let disk = self.world.disk.as_ref().context("no disk of its own")?;
                disk.free()?;
                self.make_up_for(*during)?;
            }
            Step::Outage {
                refuses,
                during,
                kill,
            } => self.outage(*refuses, *during, *kill)?,
            Step::Clock {
                minutes,
                during,
                kill,
            } => {
                self.somehow(*during)?;
                if *kill {
                    self.kill(Whom::Hsup, false)?;
                }
                let clock = self.world.clock.as_mut().context("no clock to be set")?;
                clock.jump(*minutes)?;
                self.have_written(10);
                self.world.begin()?;
                self.make_up_for(*during)?;
            }
        }
        Ok(())
    }

    fn bad_release(&mut self, kill: bool) -> Result<()> {
        let version = self.world.release(Release::Ends)?;
        if kill {
            self.kill(Whom::Hsup, false)?;
            self.world.begin()?;
        }
        patiently(|| {
            let rejected = self.world.version_in("rejected");
            Ok(if rejected == Some(version) {
                Ok(())
            } else {
                Err(format!("v{version} is not rejected"))
            })
        })
    }

    fn stop_and_start(&mut self, what: Target, kill: bool) -> Result<()> {
        if self.quantity(what) == 0 {
            return Ok(());
        }
        self.ctl(&["stop"], what)?;
        if kill {
            self.kill(Whom::Hsup, true)?;
            self.world.begin()?;
        }
        patiently(|| {
            let dynos = self.world.dynos()?;
            let is_of = |dyno: &&Value| {
                let name = dyno["name"].as_str().unwrap_or_default();
                names(what).iter().any(|target| name.starts_with(target)) || names(what).is_empty()
            };
            let is_up = |dyno: &&Value| dyno["state"] != "down";
            let up: Vec<_> = dynos.iter().filter(is_of).filter(is_up).collect();
            let is_answered = dynos.len() == (self.web + self.worker) as usize;
            Ok(if up.is_empty() && is_answered {
                Ok(())
            } else {
                Err(format!("stopped, but {up:?}"))
            })
        })?;
        self.ctl(&["start"], what)
    }

    /// Kills; when that is of hsup's, and it was quiet, every line of a dyno had arrived.
    fn kill(&mut self, whom: Whom, is_quiet: bool) -> Result<()> {
        if whom == Whom::Driver {
            return self.world.kill_driver();
        }
        let driver = self.world.driver_pid();
        self.killed.get_or_insert(Killed { driver });
        self.world.kill_hsup()?;
        let waiting = self.world.waiting()?;
        if whom == Whom::Both {
            self.world.kill_driver()?;
        }
        patiently(|| {
            let is_through = self.world.logplex.is_through()?;
            Ok(is_through
                .then_some(())
                .ok_or_else(|| "a request that nobody makes any more".to_owned()))
        })?;
        self.books.killed(&self.world.logplex, &waiting, is_quiet)
    }

    /// Waits until an hsup that has begun knows its dynos.
    fn taken_over(&self) -> Result<()> {
        patiently(|| {
            let dynos = self.world.dynos()?;
            Ok(if dynos.is_empty() {
                Err("no hsup answers".to_owned())
            } else {
                Ok(())
            })
        })
    }

    fn hang(&mut self, whom: Whom, during: Deed, noticed: bool) -> Result<()> {
        let pid = match whom {
            Whom::Hsup => self.world.hsup_pid(),
            Whom::Driver | Whom::Both => self.world.driver_pid(),
        };
        let pid = pid.context("nobody to stop")?;
        signal(pid, Signal::SIGSTOP);
        // Nobody answers hsupctl while hsup is stopped.
        let asks = matches!(during, Deed::Scale { .. } | Deed::Restart(_));
        if whom == Whom::Hsup && asks {
            signal(pid, Signal::SIGCONT);
        }
        self.somehow(during)?;
        if whom == Whom::Driver && noticed {
            patiently(|| {
                let shown = self.world.ctl(&["ps"])?;
                Ok(if shown.stderr.is_empty() {
                    Err("nobody says that the driver does not answer".to_owned())
                } else {
                    Ok(())
                })
            })?;
        }
        signal(pid, Signal::SIGCONT);
        self.make_up_for(during)
    }

    fn fault(&mut self, script: &str, during: Deed, kill: bool) -> Result<()> {
        self.world.faults(script)?;
        self.somehow(during)?;
        // Until it has happened, or all is well without.
        patiently(|| {
            self.world.look_after_driver()?;
            if self.world.has_failed() {
                return Ok(Ok(()));
            }
            self.formation().map(|found| found.map(drop))
        })?;
        if kill {
            self.kill(Whom::Hsup, false)?;
            self.world.begin()?;
        }
        self.world.faults("")?;
        self.make_up_for(during)
    }

    fn outage(&mut self, refuses: bool, during: Deed, kill: bool) -> Result<()> {
        if refuses {
            self.world
                .logplex
                .fail([Fault::Status(400, None), Fault::Status(503, None)]);
        } else {
            self.world.logplex.down();
        }
        self.write(20)?;
        self.somehow(during)?;
        if kill {
            self.kill(Whom::Hsup, false)?;
            self.world.begin()?;
        }
        if !refuses {
            self.world.logplex.back()?;
        }
        self.make_up_for(during)
    }
}

/// Nothing is waited for: what comes next comes at one moment or another.
fn pause(ms: u32) {
    sleep(Duration::from_millis(u64::from(ms)));
}
