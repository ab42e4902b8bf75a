//! Looks that all is well: the dynos that are wanted run, once each; nobody and nothing is left of
//! others; every line is accounted for.

use std::{collections::BTreeSet, fs};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{
    machine::{all_below, descriptors, names_in},
    scene::{Dyno, Scene},
    world::{Kind, patiently},
};

/// What may be in a control directory, and in a state directory.
const CONTROL: [&str; 4] = ["last_error", "loaded", "new", "rejected"];
const STATE: [&str; 5] = [
    "history.json",
    "journal",
    "lock",
    "memory.json",
    "supervisor_id",
];

/// hsup and the driver have so many descriptors at most that are of no dyno: their sockets to
/// each other and to whoever asks, and those of drains and of what they watch.
const OWN_DESCRIPTORS: usize = 36;
/// A dyno has so many at most in one of them.
const DESCRIPTORS_OF_A_DYNO: usize = 4;

impl Dyno {
    /// As hsupctl shows it; who it is, is for it to say.
    fn of(shown: &Value) -> Option<Self> {
        Some(Self {
            name: shown["name"].as_str()?.to_owned(),
            id: shown["dyno_id"].as_str()?.to_owned(),
            port: shown["port"].as_u64()?.try_into().ok()?,
            pid: 0,
        })
    }
}

/// Whether a dyno is up, and of this release. A worker is ready after a second, which nobody has
/// to wait for.
fn is_right(dyno: &Value, release: u64) -> bool {
    let is_web = dyno["name"]
        .as_str()
        .is_some_and(|name| name.starts_with("web"));
    let is_ready = dyno["ready"] == true || !is_web;
    dyno["state"] == "up" && is_ready && dyno["release"] == release
}

impl Scene {
    /// Waits until all is well.
    pub(crate) fn settle(&mut self) -> Result<()> {
        patiently(|| {
            self.world.look_after_driver()?;
            // A dyno that has just died may be shown as up, and what is left of it be found.
            let found = self.formation()?.and_then(|dynos| self.answering(dynos));
            Ok(found.and_then(|dynos| {
                self.dynos = dynos;
                self.nothing_is_left()
            }))
        })?;
        self.lines_arrive()?;
        let twins = fs::read_to_string(self.world.path("tally/twins")).unwrap_or_default();
        ensure!(twins.is_empty(), "two processes of one dyno: {twins}");
        Ok(())
    }

    /// The dynos, if they are those that are wanted.
    pub(crate) fn formation(&self) -> Result<Result<Vec<Dyno>, String>> {
        let of_type = |name: &'static str, count| (1..=count).map(move |n| format!("{name}.{n}"));
        let (web, worker) = (of_type("web", self.web), of_type("worker", self.worker));
        let (wanted, good): (Vec<_>, _) = (web.chain(worker).collect(), self.good);
        let dynos = self.world.dynos()?;
        let right: Vec<_> = dynos.iter().filter(|dyno| is_right(dyno, good)).collect();
        let names = right.iter().filter_map(|dyno| dyno["name"].as_str());
        Ok(if names.eq(&wanted) && dynos.len() == wanted.len() {
            Ok(right.into_iter().filter_map(Dyno::of).collect())
        } else {
            Err(format!("{wanted:?} of v{good} are wanted: {dynos:?}"))
        })
    }

    /// The same dynos with their processes, if each of them answers.
    fn answering(&mut self, mut dynos: Vec<Dyno>) -> Result<Vec<Dyno>, String> {
        for dyno in &mut dynos {
            let pid = self.write_one(dyno, 1);
            dyno.pid = pid.map_err(|error| format!("{error:#}"))?;
        }
        Ok(dynos)
    }

    fn ids(&self) -> BTreeSet<&str> {
        self.dynos.iter().map(|dyno| &*dyno.id).collect()
    }

    /// Whether nobody and nothing is left of dynos that are gone.
    fn nothing_is_left(&mut self) -> Result<(), String> {
        let all = all_below(&self.world.path("rt/hsup"));
        let (of_dynos, files): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|path| path.contains("/io/"));
        let folders = of_dynos.iter().filter_map(|path| path.split_once("/io/"));
        let found = folders.filter_map(|(_, path)| path.split('/').next());
        self.is_of_dynos("FIFOs", &found.collect())?;
        if let Some(before) = &self.files
            && *before != files
        {
            return Err(format!(
                "{files:?} in the runtime folder, before: {before:?}"
            ));
        }
        let journal = fs::read_to_string(self.world.state().join("journal"));
        let live = live_in_journal(&journal.unwrap_or_default());
        self.is_of_dynos("records", &live.iter().map(String::as_str).collect())?;
        if self.world.kind == Kind::Durable {
            let kept = names_in(&self.world.path("driver.sock.dynos"));
            let kept = kept.iter().filter_map(|name| Some(name.split_once('.')?.1));
            self.is_of_dynos("folders of the driver", &kept.collect())?;
        }
        self.processes_are_right()?;
        for (folder, known) in [
            (self.world.path("ctl"), &CONTROL[..]),
            (self.world.state(), &STATE[..]),
        ] {
            let mut found = names_in(&folder);
            found.retain(|name| !known.contains(&&**name));
            if !found.is_empty() {
                return Err(format!("left in {}: {found:?}", folder.display()));
            }
        }
        self.files = Some(files);
        Ok(())
    }

    fn is_of_dynos(&self, what: &str, found: &BTreeSet<&str>) -> Result<(), String> {
        let ids = self.ids();
        if *found == ids {
            return Ok(());
        }
        Err(format!("{what} of {found:?}, but {ids:?} run"))
    }

    fn processes_are_right(&self) -> Result<(), String> {
        let of_a_dyno = match self.world.kind {
            Kind::Simple => 1,
            // It has a shim.
            Kind::Durable => 2,
        };
        let (processes, expected) = (self.world.processes(), 2 + self.dynos.len() * of_a_dyno);
        if processes.len() != expected {
            return Err(format!("{expected} processes are right: {processes:?}"));
        }
        let most = OWN_DESCRIPTORS + DESCRIPTORS_OF_A_DYNO * self.dynos.len();
        let both = [self.world.hsup_pid(), self.world.driver_pid()];
        let is_root = self.world.disk.is_some();
        for pid in both.into_iter().flatten().filter(|_| is_root) {
            let open = descriptors(pid).map_err(|error| format!("process {pid}: {error}"))?;
            let of_dynos = open.iter().filter(|link| link.contains("/io/"));
            let is_gone = |link: &&String| !self.ids().iter().any(|id| link.contains(*id));
            let gone: Vec<_> = of_dynos.filter(is_gone).collect();
            if open.len() > most || !gone.is_empty() {
                return Err(format!(
                    "process {pid} has open of dynos that are gone: {gone:?}; all: {open:?}"
                ));
            }
        }
        Ok(())
    }

    /// Waits until every line has arrived, or somebody was told that it is missing.
    fn lines_arrive(&mut self) -> Result<()> {
        let live: BTreeSet<_> = self.dynos.iter().map(Dyno::writer).collect();
        let (world, books) = (&self.world, &mut self.books);
        // With their driver they may have ended before there was an hsup again, and with both of
        // them the FIFOs.
        let killed = self.killed.take();
        let are_bereft = world.kind == Kind::Simple
            && killed.is_some_and(|killed| killed.driver != world.driver_pid());
        let is_bereft = |writer: &str| are_bereft && !live.contains(writer);
        patiently(|| {
            books.read(&world.logplex)?;
            let missing = books.missing_in_file(is_bereft);
            Ok(if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("not in the file: {missing:?}"))
            })
        })?;
        if are_bereft {
            // Nothing is on its way, and nothing has come meanwhile.
            patiently(|| {
                let before = books.read(&world.logplex)?;
                let (read, done) = world.drained()?;
                let after = books.read(&world.logplex)?;
                Ok(if read == done && before == after {
                    Ok(())
                } else {
                    Err(format!("{read} lines read, {done} sent"))
                })
            })?;
            books.forget(is_bereft);
        }
        patiently(|| {
            books.read(&world.logplex)?;
            Ok(books.missing_at_logplex().map_or(Ok(()), Err))
        })?;
        books.close()
    }
}

/// The dynos that a journal says have not ended.
fn live_in_journal(text: &str) -> BTreeSet<String> {
    let mut live = BTreeSet::new();
    for record in text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let id = |kind: &str| record[kind]["dyno_id"].as_str().map(str::to_owned);
        live.extend(id("start"));
        if let Some(ended) = id("end") {
            live.remove(&ended);
        }
    }
    live
}
