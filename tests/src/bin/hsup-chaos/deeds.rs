//! What people and programs do while something goes wrong: what it takes, and which dynos are
//! none the worse for it.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    books::numbered,
    machine::signal,
    scene::{Dyno, Scene},
    steps::{Deed, Step, Target, Whom},
    world::{Kind, Release, ask, patiently},
};

impl Scene {
    /// The dynos that must be the same when the step is over.
    pub(crate) fn unmoved_by(&self, step: &Step) -> Vec<Dyno> {
        let is_durable = self.world.kind == Kind::Durable;
        let deed = match step {
            Step::Kill { whom, after, .. } if is_durable || *whom == Whom::Hsup => after,
            Step::Upgrade { during, .. } | Step::Clock { during, .. } => during,
            _ => return Vec::new(),
        };
        let dynos = self.dynos.iter().enumerate();
        let unmoved = dynos.filter(|(index, dyno)| !self.is_moved(*deed, *index, dyno));
        unmoved.map(|(_, dyno)| dyno.clone()).collect()
    }

    fn is_moved(&self, deed: Deed, index: usize, dyno: &Dyno) -> bool {
        let is_web = dyno.name.starts_with("web");
        // One that somebody asked for before may still be under way.
        self.is_restless
            || match deed {
                Deed::Nothing | Deed::Write(_) => false,
                Deed::Crash(which) => which as usize % self.dynos.len() == index,
                Deed::Scale { web, worker } => {
                    let number = dyno.name.split('.').nth(1).and_then(|n| n.parse().ok());
                    number.is_none_or(|number: u32| number > if is_web { web } else { worker })
                }
                Deed::Restart(target) => match target {
                    Target::All => true,
                    Target::Web => is_web,
                    Target::Worker => !is_web,
                },
                Deed::Release => true,
            }
    }

    /// Does something that must work.
    pub(crate) fn strictly(&mut self, deed: Deed) -> Result<()> {
        match deed {
            Deed::Scale { web, worker } => {
                (self.web, self.worker) = (web, worker);
                self.scale()
            }
            Deed::Restart(target) if self.quantity(target) > 0 => self.ctl(&["restart"], target),
            Deed::Release => {
                self.good = self.world.release(Release::Good)?;
                ensure!(self.is_current()?, "v{} is rejected", self.good);
                Ok(())
            }
            _ => self.somehow(deed),
        }
    }

    /// Begins something, while nobody knows what becomes of it.
    pub(crate) fn somehow(&mut self, deed: Deed) -> Result<()> {
        match deed {
            Deed::Nothing => {}
            Deed::Write(lines) => self.write(lines)?,
            Deed::Crash(which) => {
                let Some(dyno) = self.dynos.get(which as usize % self.dynos.len().max(1)) else {
                    return Ok(());
                };
                let dyno = dyno.clone();
                self.write_one(&dyno, 1)?;
                signal(dyno.pid, Signal::SIGKILL);
            }
            Deed::Scale { web, worker } => {
                (self.web, self.worker) = (web, worker);
                let (web, worker) = (format!("web={web}"), format!("worker={worker}"));
                // What was not answered is asked for again.
                drop(self.world.ctl(&["scale", &web, &worker])?);
            }
            Deed::Restart(target) => {
                self.is_restless = true;
                let arguments = [&["restart", "--no-wait"], names(target)].concat();
                drop(self.world.ctl(&arguments)?);
            }
            Deed::Release => {
                self.good = self.world.release(Release::Good)?;
            }
        }
        Ok(())
    }

    /// What could not be begun then is begun now.
    pub(crate) fn make_up_for(&mut self, deed: Deed) -> Result<()> {
        match deed {
            Deed::Scale { .. } => self.scale(),
            Deed::Release => self.release_again(),
            _ => Ok(()),
        }
    }

    fn scale(&mut self) -> Result<()> {
        let (web, worker) = (
            format!("web={}", self.web),
            format!("worker={}", self.worker),
        );
        self.answered(&["scale", &web, &worker])
    }

    pub(crate) fn ctl(&mut self, command: &[&str], target: Target) -> Result<()> {
        self.answered(&[command, names(target)].concat())
    }

    /// Has hsupctl ask until hsup, which may have just begun, takes it.
    fn answered(&mut self, arguments: &[&str]) -> Result<()> {
        patiently(|| {
            self.world.look_after_driver()?;
            let output = self.world.ctl(arguments)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Ok(if output.status.success() {
                Ok(())
            } else {
                Err(format!("{arguments:?}: {said}"))
            })
        })
    }

    /// A release that came while something was wrong may be rejected for that; then it comes
    /// again.
    fn release_again(&mut self) -> Result<()> {
        if self.is_current()? {
            return Ok(());
        }
        self.strictly(Deed::Release)
    }

    /// Waits until the newest release is decided: a dyno that ends before condemns it.
    fn is_current(&mut self) -> Result<bool> {
        let version = self.good;
        patiently(|| {
            self.world.look_after_driver()?;
            if self.world.version_in("rejected") == Some(version) {
                return Ok(Ok(false));
            }
            let states = self.releases()?;
            let state = states.iter().find(|(of, _)| *of == version);
            Ok(match state.map(|(_, state)| &**state) {
                Some("current") => Ok(true),
                Some("rejected") => Ok(false),
                state => Err(format!("v{version} is {state:?}")),
            })
        })
    }

    fn releases(&self) -> Result<Vec<(u64, String)>> {
        let shown = self.world.ctl(&["releases", "-o", "json"])?;
        let releases: Vec<Value> = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        let of = |release: &Value| {
            Some((
                release["version"].as_u64()?,
                release["state"].as_str()?.to_owned(),
            ))
        };
        Ok(releases.iter().filter_map(of).collect())
    }

    pub(crate) const fn quantity(&self, what: Target) -> u32 {
        match what {
            Target::All => self.web + self.worker,
            Target::Web => self.web,
            Target::Worker => self.worker,
        }
    }

    /// Every dyno writes so many lines.
    pub(crate) fn write(&mut self, lines: u32) -> Result<()> {
        for dyno in self.dynos.clone() {
            self.write_one(&dyno, lines)?;
        }
        Ok(())
    }

    /// The same, of those that are there to hear it.
    pub(crate) fn have_written(&mut self, lines: u32) {
        if lines == 0 {
            return;
        }
        for dyno in &self.dynos {
            let answer = ask(dyno.port, lines).unwrap_or_default();
            if let Some((writer, written)) = numbered(&answer) {
                self.books.wrote(writer, written);
            }
        }
    }

    pub(crate) fn write_one(&mut self, dyno: &Dyno, lines: u32) -> Result<i32> {
        let answer =
            ask(dyno.port, lines).with_context(|| format!("{} does not answer", dyno.id))?;
        let found = numbered(&answer).and_then(|(writer, written)| {
            let (id, pid) = writer.split_once(':')?;
            Some((writer, written, id, pid.parse().ok()?))
        });
        let (writer, written, id, pid) =
            found.with_context(|| format!("{} answers `{answer}`", dyno.id))?;
        ensure!(id == dyno.id, "{id} answers on the port of {}", dyno.id);
        self.books.wrote(writer, written);
        Ok(pid)
    }
}

/// What hsupctl is told of.
pub(crate) fn names(target: Target) -> &'static [&'static str] {
    match target {
        Target::All => &[],
        Target::Web => &["web"],
        Target::Worker => &["worker"],
    }
}
