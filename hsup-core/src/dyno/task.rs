//! The task of one dyno: waits for what can happen, asks the lifecycle, carries out the answer.

use std::{
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use hsup_proto::control::DynoState;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, Sleep, sleep, timeout},
};

use super::{
    Adopted, Birth, Command, Crash, DynoHandle, DynoSpec, DynoStatus, Key, Past, Report, Shared,
    What,
    attempt::{self, Run},
    inbox::{Inbox, inbox},
    io::{FdShare, IoDir},
    ready::{self, Probed},
};
use crate::{
    backoff::Backoff,
    exit::ExitStatus,
    lifecycle::{Action, Attempt, Event, Lifecycle, State, Stop, words},
    logs::SYSTEM,
    name::DynoId,
    ports::{self, Allotted, Ports},
    random,
    state::LiveDyno,
    time::{now_unix_ms, unix_ms_in},
};

/// How long a dyno's last lines may hold up its restart: its output may be stuck behind a
/// terminal that nobody reads.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// The pause before a Stop that failed is made again.
const STOP_AGAIN_AFTER: Duration = Duration::from_secs(1);

type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// Starts the task of a dyno.
pub fn spawn(
    key: Key,
    spec: DynoSpec,
    birth: Birth,
    past: Past,
    shared: Arc<Shared>,
    reports: mpsc::UnboundedSender<Report>,
) -> DynoHandle {
    let (commands, inbox) = inbox();
    let backoff = Backoff::new(shared.policy.backoff, random::u64());
    let mut lifecycle = Lifecycle::new(spec.kind, backoff);
    if spec.on_trial {
        lifecycle = lifecycle.on_trial();
    }
    let task = Task {
        key,
        lifecycle,
        spec: spec.clone(),
        shared,
        reports,
        inbox,
        share: None,
        refused: false,
        running: None,
        process: None,
        probe: None,
        stopping: None,
        backoff: None,
        grace: None,
        ready: false,
        trusted: false,
        said: DynoState::Down,
        status: DynoStatus {
            state: DynoState::Down,
            since_unix_ms: now_unix_ms(),
            ready: false,
            restarts: 0,
            last_exit: past.last_exit,
            crash: past.crash,
            retry_at_unix_ms: None,
            crashes_in_a_row: 0,
            dyno_id: None,
            ip: String::new(),
            port: 0,
        },
    };
    tokio::spawn(task.run(birth));
    DynoHandle { spec, commands }
}

/// What the present attempt holds.
struct Running {
    attempt: Attempt,
    run: Run,
    /// Since when its process is known to run.
    started: Option<Instant>,
    /// How to stop what is still being started, once that is wanted.
    unwanted: watch::Sender<Option<Stop>>,
    /// Tells that what runs was stopped.
    stopped: Arc<Notify>,
    /// It could not be reached in time.
    killed_at_boot: bool,
}

/// How far the process of the attempt is.
enum Progress {
    /// There are descriptors for it; `None`: not in time.
    Room(Option<FdShare>),
    Started,
    Ended(ExitStatus),
}

/// What woke the task.
enum Woken {
    Command(Option<Command>),
    Process(Progress),
    Probe(Probed),
    Stopped(Result<(), String>),
    BackoffElapsed,
    GraceElapsed,
}

struct Task {
    key: Key,
    spec: DynoSpec,
    shared: Arc<Shared>,
    reports: mpsc::UnboundedSender<Report>,
    inbox: Inbox,
    lifecycle: Lifecycle,
    status: DynoStatus,
    /// The state last told to people.
    said: DynoState,
    /// The descriptors that it costs, for as long as it is not retired.
    share: Option<FdShare>,
    /// The last attempt could not even begin, and why was said.
    refused: bool,
    running: Option<Running>,
    process: Pending<Progress>,
    probe: Pending<Probed>,
    stopping: Pending<Result<(), String>>,
    backoff: Option<Pin<Box<Sleep>>>,
    grace: Option<Pin<Box<Sleep>>>,
    /// A web accepts connections, another has its process.
    ready: bool,
    /// The supervisor was told that this attempt is ready.
    trusted: bool,
}

impl Task {
    async fn run(mut self, birth: Birth) {
        match birth {
            Birth::Start => self.apply(Event::StayStarted),
            Birth::Adopt(adopted) => self.adopt(adopted),
        }
        loop {
            if let State::Retired { status } = self.lifecycle.state() {
                self.tell(What::Complete(status.clone()));
                return;
            }
            match self.next().await {
                // The supervisor is gone, and the runtime with it.
                Woken::Command(None) => return,
                Woken::Command(Some(Command::Restart(how))) => self.apply(Event::Restart { how }),
                Woken::Command(Some(Command::Retire(how))) => self.apply(Event::Retire { how }),
                Woken::Process(Progress::Room(share)) => self.room(share),
                Woken::Process(Progress::Started) => self.started(),
                Woken::Process(Progress::Ended(status)) => self.ended(status).await,
                Woken::Probe(probed) => self.probed(probed),
                Woken::Stopped(result) => self.stopped(result),
                Woken::BackoffElapsed => self.apply(Event::Elapsed),
                Woken::GraceElapsed => self.grace_elapsed(),
            }
        }
    }

    /// Waits for the next thing to happen.
    async fn next(&mut self) -> Woken {
        let woken = tokio::select! {
            command = self.inbox.take() => Woken::Command(command),
            progress = pending(&mut self.process) => Woken::Process(progress),
            probed = pending(&mut self.probe) => Woken::Probe(probed),
            result = pending(&mut self.stopping) => Woken::Stopped(result),
            () = timer(&mut self.backoff) => Woken::BackoffElapsed,
            () = timer(&mut self.grace) => Woken::GraceElapsed,
        };
        match woken {
            Woken::Process(_) => self.process = None,
            Woken::Probe(_) => self.probe = None,
            Woken::Stopped(_) => self.stopping = None,
            Woken::BackoffElapsed => self.backoff = None,
            Woken::GraceElapsed => self.grace = None,
            Woken::Command(_) => {}
        }
        woken
    }

    /// Feeds `event` to the lifecycle, and what follows from it at once.
    fn apply(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let actions = self.lifecycle.step(event);
            if !matches!(self.lifecycle.state(), State::Starting { .. }) {
                // A start is said when it has begun.
                self.say_state();
            }
            for action in actions {
                events.extend(self.carry_out(&action));
            }
        }
        self.publish();
    }

    fn carry_out(&mut self, action: &Action) -> Option<Event> {
        match *action {
            Action::Start(attempt) => return self.start(attempt),
            Action::Stop(attempt, how) => return self.stop(attempt, how),
            Action::ArmBackoff(wait) if wait.is_zero() => return Some(Event::Elapsed),
            Action::ArmBackoff(wait) => {
                self.backoff = Some(Box::pin(sleep(wait)));
                self.status.retry_at_unix_ms = Some(unix_ms_in(wait));
                if !self.refused {
                    self.note(format!(
                        "Crashed {} times in a row, starting again in {}",
                        self.lifecycle.crashes_in_a_row(),
                        seconds(wait)
                    ));
                }
            }
            Action::DisarmBackoff => self.backoff = None,
            // The loop sees it in the state.
            Action::Complete(_) => {}
        }
        None
    }

    // ---- starting

    /// Begins an attempt; answers its end when it cannot even begin.
    fn start(&mut self, attempt: Attempt) -> Option<Event> {
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
    fn room(&mut self, share: Option<FdShare>) {
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
            self.ports().free(&self.spec.name);
            return Err(why);
        }
        self.status.dyno_id = Some(run.dyno_id.clone());
        self.status.port = run.port;
        self.running = Some(Running {
            attempt,
            run,
            started: None,
            unwanted,
            stopped: Arc::default(),
            killed_at_boot: false,
        });
        Ok(allotted)
    }

    fn begin(
        &mut self,
        run: &Run,
        mut unwanted: watch::Receiver<Option<Stop>>,
    ) -> Result<(), String> {
        let explain = |error: &dyn std::error::Error| crate::errors::chain(error);
        match run.io.make(false) {
            // Whoever clears up runtime folders has taken it: it is made with all its care.
            Err(error) if error.is_homeless() => {
                let paths = &self.shared.paths;
                let made = paths.io_dir(&self.shared.supervisor_id);
                made.map_err(|e| explain(&e))?;
                run.io.make(false)
            }
            result => result,
        }
        .map_err(|e| explain(&e))?;
        let output = run.io.open_output().map_err(|e| explain(&e))?;
        // Written before Start is called: after a crash of hsup the driver's dynos that are
        // not in the journal are nobody's.
        self.shared
            .ledger
            .begin(LiveDyno {
                dyno_id: run.dyno_id.clone(),
                name: self.spec.name.clone(),
                release: self.spec.release_id,
                port: (run.port != 0).then_some(run.port),
                io_dir: Some(run.io.path().to_owned()),
                at_unix_ms: now_unix_ms(),
            })
            .map_err(|e| explain(&e))?;
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
        let explain = |error: &dyn std::error::Error| crate::errors::chain(error);
        let base = ports::base(&self.spec.release.config).map_err(|e| explain(&e))?;
        if self.has_own_network() {
            return Ok(Allotted {
                port: base,
                first_choice: base,
            });
        }
        let in_use = |port| !ports::is_free(port);
        self.ports()
            .allot(&self.spec.name, base, in_use)
            .map_err(|e| explain(&e))
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.shared
            .ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn has_own_network(&self) -> bool {
        self.shared.has_own_network()
    }

    /// Takes over a process that runs since an earlier life of hsup.
    fn adopt(&mut self, adopted: Adopted) {
        let attempt = self.lifecycle.next_attempt();
        let run = Run {
            io: IoDir::at(self.shared.io_root.join(adopted.dyno_id.as_str())),
            dyno_id: adopted.dyno_id,
            port: adopted.port,
        };
        if run.port != 0 {
            self.ports().adopt(&self.spec.name, run.port);
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
                crate::errors::chain(&error)
            )),
        }
        self.status.dyno_id = Some(run.dyno_id.clone());
        self.status.port = run.port;
        self.running = Some(Running {
            attempt,
            run,
            started: Some(Instant::now()),
            unwanted: watch::Sender::default(),
            stopped: Arc::default(),
            killed_at_boot: false,
        });
        // It was up; should it not be, its end or the boot timeout tells.
        self.ready = true;
        self.said = DynoState::Up;
        self.watch_process();
        self.apply(Event::Adopt(attempt));
        self.status.since_unix_ms = adopted.started_at_unix_ms;
        self.begin_probe();
        self.publish();
    }

    fn started(&mut self) {
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
            if !self.has_own_network() {
                // It shares this host; a web's address is asked of the driver.
                self.status.ip = Ipv4Addr::LOCALHOST.to_string();
            }
        }
        self.begin_probe();
        self.apply(Event::StartOk(attempt));
    }

    fn watch_process(&mut self) {
        let Some(running) = &self.running else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        let (name, dyno_id) = (self.spec.name.clone(), running.run.dyno_id.clone());
        let stopped = Arc::clone(&running.stopped);
        self.process = Some(Box::pin(async move {
            Progress::Ended(attempt::wait(shared, name, dyno_id, stopped).await)
        }));
    }

    // ---- readiness

    fn begin_probe(&mut self) {
        let Some(running) = &self.running else {
            return;
        };
        if !self.spec.name.process_type.is_web() {
            let settle = self.shared.policy.settle;
            self.probe = Some(Box::pin(async move {
                sleep(settle).await;
                Probed::Settled
            }));
            return;
        }
        let shared = Arc::clone(&self.shared);
        let dyno_id = running.run.dyno_id.clone();
        self.probe = Some(Box::pin(async move {
            ready::probe(&shared.link, &dyno_id, shared.policy.boot_timeout).await
        }));
    }

    fn probed(&mut self, probed: Probed) {
        match probed {
            Probed::Accepts(address) => {
                self.ready = true;
                self.status.ip = address.ip;
                self.status.port = address.port;
                self.trust();
            }
            Probed::Settled => self.trust(),
            Probed::BootTimeout(error) => {
                self.note(&error);
                self.note("Stopping process with SIGKILL");
                if let Some(running) = &mut self.running {
                    running.killed_at_boot = true;
                }
                self.fail(What::Failed(error));
                self.send_stop(Stop::Immediately);
            }
        }
    }

    /// The attempt has shown that it works.
    fn trust(&mut self) {
        if !self.trusted {
            self.trusted = true;
            if let Some(attempt) = self.lifecycle.state().attempt() {
                self.apply(Event::Ready(attempt));
            }
            self.tell(What::Ready);
        }
    }

    /// Tells the supervisor that this attempt came to nothing before it was ready.
    fn fail(&mut self, what: What) {
        if !self.trusted {
            self.trusted = true;
            self.tell(what);
        }
    }

    // ---- stopping and ending

    /// Has the attempt end; answers its end when there is nothing to be stopped.
    fn stop(&mut self, attempt: Attempt, how: Stop) -> Option<Event> {
        self.probe = None;
        let Some(running) = &self.running else {
            // It waits for descriptors.
            self.process = None;
            return Some(Event::Ended {
                attempt,
                status: ExitStatus::not_started("it was stopped before it ran", now_unix_ms()),
                uptime: Duration::ZERO,
            });
        };
        if running.started.is_none() {
            // Nothing is known to run that could be told anything, or have a grace.
            running.unwanted.send_replace(Some(how));
            return None;
        }
        if running.killed_at_boot {
            // It is being killed already; a gentler word must not come in between.
            return None;
        }
        match how {
            Stop::Gracefully { grace } => {
                self.note("Stopping all processes with SIGTERM");
                self.grace = Some(Box::pin(sleep(grace)));
            }
            Stop::Immediately => {
                self.note("Stopping process with SIGKILL");
                self.grace = None;
            }
        }
        self.send_stop(how);
        None
    }

    fn send_stop(&mut self, how: Stop) {
        let Some(running) = &self.running else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        let dyno_id = running.run.dyno_id.clone();
        self.stopping = Some(Box::pin(async move {
            let result = attempt::stop(shared, dyno_id, how).await;
            if result.is_err() {
                sleep(STOP_AGAIN_AFTER).await;
            }
            result
        }));
    }

    fn stopped(&mut self, result: Result<(), String>) {
        let Some(running) = &self.running else {
            return;
        };
        let Err(why) = result else {
            // The end itself is the Wait's to tell.
            running.stopped.notify_one();
            return;
        };
        self.note(format!("It could not be stopped, trying again: {why}"));
        let attempt = running.attempt;
        if running.killed_at_boot {
            self.send_stop(Stop::Immediately);
        }
        self.apply(Event::StopFailed(attempt));
    }

    fn grace_elapsed(&mut self) {
        let (State::Restarting {
            how: Stop::Gracefully { grace },
            ..
        }
        | State::Retiring {
            how: Stop::Gracefully { grace },
            ..
        }) = self.lifecycle.state()
        else {
            return;
        };
        let error = format!(
            "Error R12 (Exit timeout) -> At least one process failed to exit within {} seconds of SIGTERM",
            grace.as_secs_f64()
        );
        self.note(error);
        self.note("Stopping remaining processes with SIGKILL");
    }

    async fn ended(&mut self, status: ExitStatus) {
        let Some(running) = self.running.take() else {
            return;
        };
        let Running {
            attempt,
            run,
            started,
            ..
        } = running;
        self.stopping = None;
        self.probe = None;
        // The driver kills when its grace is over, and that end may be seen before our own
        // timer is.
        if let Some(grace) = self.grace.take()
            && grace.deadline() <= Instant::now()
        {
            self.grace_elapsed();
        }

        let finish = self.shared.logs.finish(&run.dyno_id);
        if timeout(LAST_LINES_WITHIN, finish).await.is_err() {
            tracing::warn!(dyno = %self.spec.name, "last lines are still being written");
        }
        let by_itself = matches!(
            self.lifecycle.state(),
            State::Starting { .. } | State::Started { .. }
        );
        if by_itself || started.is_some() {
            self.note(status.to_string());
            self.status.last_exit = Some(status.clone());
        }
        if status.oom_killed {
            self.note("It was killed because it had used up its memory");
        }
        self.ports().free(&self.spec.name);

        if by_itself {
            self.status.crash = Some(Crash {
                status: status.clone(),
                dyno_id: run.dyno_id.clone(),
            });
            // A process that has done its work and left with 0 was no failure of its release.
            if status.success() && !self.spec.name.process_type.is_web() {
                self.trust();
            } else if status.is_lost() && !self.lifecycle.spoils_trial(&status) {
                self.fail(What::Lost(status.to_string()));
            } else {
                self.fail(What::Failed(status.to_string()));
            }
        }
        self.ready = false;
        self.status.dyno_id = None;
        self.status.ip.clear();
        self.status.port = 0;
        self.clean_up(run, &status);
        self.apply(Event::Ended {
            attempt,
            status,
            uptime: started.map(|at| at.elapsed()).unwrap_or_default(),
        });
    }

    /// Has driver, journal and file system forget the attempt, beside whatever comes next.
    fn clean_up(&self, run: Run, status: &ExitStatus) {
        self.shared.ledger.end(&run.dyno_id, status);
        run.io.remove();
        tokio::spawn(attempt::remove(Arc::clone(&self.shared), run.dyno_id));
    }

    // ---- telling

    /// The state as Heroku shows it: a web is up when it can be reached.
    fn shown(&self) -> DynoState {
        match self.lifecycle.heroku_state() {
            DynoState::Up if !self.ready => DynoState::Starting,
            state => state,
        }
    }

    fn say_state(&mut self) {
        let now = self.shown();
        if now == self.said {
            return;
        }
        // Stopping is a word of ours, for `ps`; Heroku's log goes from up to down.
        if now != DynoState::Stopping {
            if let Some(line) = words::state_changed(self.said, now) {
                self.note(line);
            }
            self.said = now;
        }
    }

    fn publish(&mut self) {
        let state = self.shown();
        let before = self.status.clone();
        self.status.state = state;
        self.status.ready = self.ready && state == DynoState::Up;
        self.status.restarts = self.lifecycle.restarts();
        self.status.crashes_in_a_row = self.lifecycle.crashes_in_a_row();
        if before.state != state {
            self.status.since_unix_ms = now_unix_ms();
        }
        self.tell(What::Status(Box::new(self.status.clone())));
    }

    fn tell(&self, what: What) {
        // No receiver means that hsup ends.
        drop(self.reports.send(Report {
            key: self.key,
            what,
        }));
    }

    fn note(&self, text: impl AsRef<str>) {
        self.shared.logs.note(&self.spec.name.to_string(), text);
    }
}

fn seconds(wait: Duration) -> String {
    if wait < Duration::from_secs(10) {
        format!("{:.1} s", wait.as_secs_f64())
    } else {
        format!("{} s", wait.as_secs())
    }
}

async fn pending<T>(future: &mut Pending<T>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn timer(sleep: &mut Option<Pin<Box<Sleep>>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}
