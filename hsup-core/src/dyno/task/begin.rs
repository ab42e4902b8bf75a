//! How an attempt begins: descriptors, a port, FIFOs, the journal, and then the driver.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{Progress, Running, Task};
use crate::{
    dyno::{
        Adopted, What,
        attempt::{self, Run},
        io::{FdShare, IoDir},
    },
    errors::chain,
    exit::ExitStatus,
    lifecycle::{Attempt, Event, State, Stop},
    logs::SYSTEM,
    name::DynoId,
    ports::{self, Allotted},
    random,
    state::LiveDyno,
    time::now_unix_ms,
};

impl Task {
    /// Begins an attempt; answers its end when it cannot even begin.
    pub(super) fn start(&mut self, attempt: Attempt) -> Option<Event> {
        self.status.retry_at_unix_ms = None;
        self.ready = false;
        self.trusted = false;
        if self.share.is_none() {
            self.share = self.shared.fds.try_take();
        }
        if self.share.is_some() {
            return self.try_to_begin(attempt);
        }
        self.say_state();
        if let Some(why) = self.shared.fds.why_not_once() {
            let text = format!("No more dynos are started until others end: {why}");
            self.shared.logs.note(SYSTEM, text);
        }
        let fds = self.shared.fds.clone();
        let within = self.patience();
        self.process = Some(Box::pin(async move {
            Progress::Room(match within {
                Some(within) => timeout(within, fds.take()).await.ok(),
                None => Some(fds.take().await),
            })
        }));
        None
    }

    /// There are descriptors for it now, or will not be in time.
    pub(super) fn room(&mut self, share: Option<FdShare>) {
        let Some(attempt) = self.lifecycle.state().attempt() else {
            return;
        };
        let end = if share.is_some() {
            self.share = share;
            self.try_to_begin(attempt)
        } else {
            let why = self.shared.fds.why_not().to_string();
            Some(self.refuse(attempt, why))
        };
        match end {
            Some(event) => self.apply(event),
            None => self.publish(),
        }
    }

    /// How long an attempt may take to have its process. Whoever waits for a trial to end has
    /// an old dyno to start again.
    fn patience(&self) -> Option<Duration> {
        let on_trial = self.lifecycle.is_on_trial();
        on_trial.then_some(self.shared.policy.boot_timeout)
    }

    fn try_to_begin(&mut self, attempt: Attempt) -> Option<Event> {
        match self.prepare(attempt) {
            Ok(allotted) => {
                self.refused = false;
                self.say_state();
                self.note(format!(
                    "Starting process with command `{}`",
                    self.spec.command
                ));
                if allotted.port != allotted.first_choice {
                    self.note(format!(
                        "Port {} is in use, so PORT is {}",
                        allotted.first_choice, allotted.port
                    ));
                }
                None
            }
            Err(why) => Some(self.refuse(attempt, why)),
        }
    }

    /// Ends an attempt that could not even begin. Said once, however often it is tried.
    fn refuse(&mut self, attempt: Attempt, why: String) -> Event {
        let status = ExitStatus::not_started(why, now_unix_ms());
        if !std::mem::replace(&mut self.refused, true) {
            self.say_state();
            self.note(status.to_string());
        }
        self.status.last_exit = Some(status.clone());
        self.fail(What::Failed(status.to_string()));
        Event::Ended {
            attempt,
            status,
            uptime: Duration::ZERO,
        }
    }

    /// Makes what an attempt needs, and asks the driver; answers its port.
    fn prepare(&mut self, attempt: Attempt) -> Result<Allotted, String> {
        let dyno_id = DynoId::mint(&self.spec.name, random::u64());
        let allotted = self.allot_port()?;
        let run = Run {
            port: allotted.port,
            io: IoDir::at(self.shared.io_root.join(dyno_id.as_str())),
            dyno_id,
        };
        let (unwanted, is_unwanted) = watch::channel(None);
        if let Err(why) = self.begin(&run, is_unwanted) {
            run.io.remove();
            self.shared.ports().free(&self.spec.name, run.port);
            return Err(why);
        }
        self.status.dyno_id = Some(run.dyno_id.clone());
        self.status.port = run.port;
        self.running = Some(Running {
            attempt,
            run,
            started: None,
            unwanted,
            doubt: Arc::default(),
            killed_at_boot: false,
            asked: None,
            complaint: None,
        });
        Ok(allotted)
    }

    fn begin(
        &mut self,
        run: &Run,
        mut unwanted: watch::Receiver<Option<Stop>>,
    ) -> Result<(), String> {
        match run.io.make(false) {
            // Whoever clears up runtime folders has taken it: it is made with all its care.
            Err(error) if error.is_homeless() => {
                let paths = &self.shared.paths;
                let made = paths.io_dir(&self.shared.supervisor_id);
                made.map_err(|error| chain(&error))?;
                run.io.make(false)
            }
            result => result,
        }
        .map_err(|error| chain(&error))?;
        let output = run.io.open_output().map_err(|error| chain(&error))?;
        // Written before Start is called: after a crash of hsup the driver's dynos that are
        // not in the journal are nobody's.
        self.shared
            .ledger
            .begin(LiveDyno {
                dyno_id: run.dyno_id.clone(),
                name: self.spec.name.clone(),
                release_id: self.spec.release_id,
                port: (run.port != 0).then_some(run.port),
                io_dir: Some(run.io.path().to_owned()),
                at_unix_ms: now_unix_ms(),
                ready: false,
            })
            .map_err(|error| chain(&error))?;
        self.shared
            .logs
            .add(&run.dyno_id, &self.spec.name, output.stdout, output.stderr);
        let shared = Arc::clone(&self.shared);
        let (spec, run) = (self.spec.clone(), run.clone());
        let within = self.patience();
        self.process = Some(Box::pin(async move {
            match attempt::start(&shared, &spec, &run, within, &mut unwanted).await {
                Ok(()) => Progress::Started,
                Err(status) => Progress::Ended(status),
            }
        }));
        Ok(())
    }

    fn allot_port(&self) -> Result<Allotted, String> {
        let base = ports::base(&self.spec.release.config).map_err(|error| chain(&error))?;
        if self.has_own_network() {
            return Ok(Allotted {
                port: base,
                first_choice: base,
            });
        }
        self.shared
            .ports()
            .allot(&self.spec.name, base)
            .map_err(|error| chain(&error))
    }

    fn has_own_network(&self) -> bool {
        self.shared.link.borrow().has_own_network()
    }

    /// Takes over a process that runs since an earlier life of hsup.
    pub(super) fn adopt(&mut self, adopted: Adopted) {
        let attempt = self.lifecycle.next_attempt();
        self.ready = adopted.serves(&self.spec.name);
        let run = Run {
            io: IoDir::at(self.shared.io_root.join(adopted.dyno_id.as_str())),
            dyno_id: adopted.dyno_id,
            port: adopted.port,
        };
        // In a network of its own it takes no port from anybody.
        if run.port != 0 && !self.has_own_network() {
            self.shared.ports().adopt(&self.spec.name, run.port);
        }
        // It has its descriptors, whether or not they fit.
        self.share = self.shared.fds.try_take();
        match run.io.open_output() {
            Ok(output) => {
                let (stdout, stderr) = (output.stdout, output.stderr);
                let name = &self.spec.name;
                self.shared.logs.add(&run.dyno_id, name, stdout, stderr);
            }
            Err(error) => self.note(format!(
                "Its output cannot be read any more: {}",
                chain(&error)
            )),
        }
        self.status.dyno_id = Some(run.dyno_id.clone());
        self.status.port = run.port;
        self.running = Some(Running {
            attempt,
            run,
            started: Some(Instant::now()),
            unwanted: watch::Sender::default(),
            doubt: Arc::default(),
            killed_at_boot: false,
            asked: None,
            complaint: None,
        });
        self.said = self.shown_when_started();
        self.watch_process();
        self.begin_locating();
        self.apply(Event::Adopt(attempt));
        self.status.since_unix_ms = adopted.started_at_unix_ms;
        let is_web = self.spec.name.process_type.is_web();
        if !is_web {
            self.note_host();
        }
        if adopted.was_ready && !self.lifecycle.is_on_trial() {
            // It has shown that it works, and what it does with its port since is its own
            // business, as it was before.
            self.trust();
            if is_web {
                self.locate();
            }
        } else {
            self.begin_probe();
        }
        self.publish();
    }

    /// Where one is that is no web: on this host, or where nobody asks for.
    fn note_host(&mut self) {
        if !self.has_own_network() {
            // A web's address is asked of the driver.
            self.status.ip = Ipv4Addr::LOCALHOST.to_string();
        }
    }

    pub(super) fn started(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        running.started = Some(Instant::now());
        let attempt = running.attempt;
        self.watch_process();
        if !matches!(self.lifecycle.state(), State::Starting { .. }) {
            // Nobody wants it any more.
            self.apply(Event::StartOk(attempt));
            return;
        }
        if !self.spec.name.process_type.is_web() {
            self.ready = true;
            self.note_host();
        }
        self.begin_probe();
        self.begin_locating();
        self.apply(Event::StartOk(attempt));
    }

    fn watch_process(&mut self) {
        let Some(running) = &self.running else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        let (name, dyno_id) = (self.spec.name.clone(), running.run.dyno_id.clone());
        let doubt = Arc::clone(&running.doubt);
        shared.ledger.await_end(&dyno_id, &doubt);
        self.process = Some(Box::pin(async move {
            Progress::Ended(attempt::wait(shared, name, dyno_id, doubt).await)
        }));
    }
}
