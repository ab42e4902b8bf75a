//! The task of one dyno: waits for what can happen, asks the lifecycle, carries out the answer.

use std::{
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use hsup_proto::{control::DynoState, driver};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep, timeout},
};

use super::{
    Adopted, Birth, Command, Crash, DynoHandle, DynoSpec, DynoStatus, Key, Past, Report, Shared,
    What,
    attempt::{self, Run},
    inbox::{Inbox, inbox},
    io::{FdShare, IoDir},
    ready::{self, Address},
};
use crate::{
    backoff::Backoff,
    driver::up,
    exit::ExitStatus,
    lifecycle::{Action, Attempt, Event, Lifecycle, State, Stop, words},
    name::DynoId,
    ports::{self, Ports},
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
    let task = Task {
        key,
        lifecycle: Lifecycle::new(spec.kind, backoff),
        spec: spec.clone(),
        shared,
        reports,
        inbox,
        running: None,
        process: None,
        probe: None,
        stopping: None,
        backoff: None,
        grace: None,
        ready: false,
        trusted: false,
        killed_at_boot: false,
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
    started: Option<Instant>,
    _share: Option<FdShare>,
}

/// How far the process of the attempt is.
enum Progress {
    Started,
    Ended(ExitStatus),
}

/// What became of the watch over a new process.
enum Probed {
    Accepts(Address),
    BootTimeout,
    Settled,
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
    killed_at_boot: bool,
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
            self.say_state();
            for action in actions {
                if let Some(event) = self.carry_out(&action) {
                    // What is over at once has been, too: a crash without a wait.
                    self.publish();
                    events.push(event);
                }
            }
        }
        self.publish();
    }

    fn carry_out(&mut self, action: &Action) -> Option<Event> {
        match *action {
            Action::Start(attempt) => return self.start(attempt),
            Action::Stop(_, how) => self.stop(how),
            Action::ArmBackoff(wait) if wait.is_zero() => return Some(Event::Elapsed),
            Action::ArmBackoff(wait) => {
                self.backoff = Some(Box::pin(sleep(wait)));
                self.status.retry_at_unix_ms = Some(unix_ms_in(wait));
                self.note(format!(
                    "Crashed {} times in a row, starting again in {}",
                    self.lifecycle.crashes_in_a_row(),
                    seconds(wait)
                ));
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
        if attempt.0 > 1 && self.status.last_exit.is_some() {
            self.status.restarts += 1;
        }
        self.status.retry_at_unix_ms = None;
        self.ready = false;
        self.trusted = false;
        self.killed_at_boot = false;
        self.note(format!(
            "Starting process with command `{}`",
            self.spec.command
        ));
        match self.prepare(attempt) {
            Ok(()) => None,
            Err(why) => {
                let status = ExitStatus::not_started(why, now_unix_ms());
                self.note(status.to_string());
                self.status.last_exit = Some(status.clone());
                self.fail(status.to_string());
                Some(Event::Ended {
                    attempt,
                    status,
                    uptime: Duration::ZERO,
                })
            }
        }
    }

    /// Makes what an attempt needs, and asks the driver.
    fn prepare(&mut self, attempt: Attempt) -> Result<(), String> {
        let dyno_id = DynoId::mint(&self.spec.name, random::u64());
        let explain = |error: &dyn std::error::Error| crate::errors::chain(error);
        let share = self.shared.fds.take().map_err(|e| explain(&e))?;
        let io = IoDir::at(self.shared.io_root.join(dyno_id.as_str()));
        io.make(false).map_err(|e| explain(&e))?;
        let run = Run {
            port: self.allot_port()?,
            dyno_id,
            io,
        };
        let begun = self.begin(&run);
        if begun.is_err() {
            run.io.remove();
            self.ports().free(&self.spec.name);
            return begun;
        }
        self.status.dyno_id = Some(run.dyno_id.clone());
        self.status.port = run.port;
        self.running = Some(Running {
            attempt,
            run,
            started: None,
            _share: Some(share),
        });
        Ok(())
    }

    fn begin(&mut self, run: &Run) -> Result<(), String> {
        let explain = |error: &dyn std::error::Error| crate::errors::chain(error);
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
        self.process = Some(Box::pin(async move {
            match attempt::start(&shared, &spec, &run).await {
                Ok(()) => Progress::Started,
                Err(status) => Progress::Ended(status),
            }
        }));
        Ok(())
    }

    fn allot_port(&self) -> Result<u16, String> {
        let explain = |error: &dyn std::error::Error| crate::errors::chain(error);
        let base = ports::base(&self.spec.release.config).map_err(|e| explain(&e))?;
        if self.has_own_network() {
            return Ok(base);
        }
        let in_use = |port| !ports::is_free(port);
        let allotted = self
            .ports()
            .allot(&self.spec.name, base, in_use)
            .map_err(|e| explain(&e))?;
        if allotted.port != allotted.first_choice {
            self.note(format!(
                "Port {} is in use, so PORT is {}",
                allotted.first_choice, allotted.port
            ));
        }
        Ok(allotted.port)
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
        self.shared.ledger.adopt(&run.dyno_id);
        let share = self.shared.fds.take().ok();
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
            _share: share,
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
        // Somebody may have wanted it gone meanwhile, and the driver may have seen that Stop
        // before this Start: say it again, now that there is something to stop.
        if let State::Restarting { how, .. } | State::Retiring { how, .. } = *self.lifecycle.state()
        {
            self.send_stop(how);
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
        let dyno_id = running.run.dyno_id.clone();
        self.process = Some(Box::pin(async move {
            Progress::Ended(attempt::wait(shared, dyno_id).await)
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
        let within = shared.policy.boot_timeout;
        self.probe = Some(Box::pin(async move {
            let accepts = async {
                let address = address(&shared, &dyno_id).await;
                ready::accepts(&address).await;
                address
            };
            match timeout(within, accepts).await {
                Ok(address) => Probed::Accepts(address),
                Err(_) => Probed::BootTimeout,
            }
        }));
    }

    fn probed(&mut self, probed: Probed) {
        match probed {
            Probed::Accepts(address) => {
                self.ready = true;
                self.status.ip = address.ip;
                self.status.port = address.port;
                self.say_state();
                self.publish();
                self.trust();
            }
            Probed::Settled => self.trust(),
            Probed::BootTimeout => {
                let error = format!(
                    "Error R10 (Boot timeout) -> Web process failed to bind to $PORT within {} seconds of launch",
                    self.shared.policy.boot_timeout.as_secs_f64()
                );
                self.note(&error);
                self.note("Stopping process with SIGKILL");
                self.killed_at_boot = true;
                self.fail(error);
                self.send_stop(Stop::Immediately);
            }
        }
    }

    fn trust(&mut self) {
        if !self.trusted {
            self.trusted = true;
            self.tell(What::Ready);
        }
    }

    /// Tells the supervisor that this attempt came to nothing before it was ready.
    fn fail(&mut self, why: String) {
        if !self.trusted {
            self.trusted = true;
            self.tell(What::Failed(why));
        }
    }

    // ---- stopping and ending

    fn stop(&mut self, how: Stop) {
        self.probe = None;
        if self.killed_at_boot {
            // It is being killed already; a gentler word must not come in between.
            return;
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
        let Err(why) = result else {
            // The end itself is the Wait's to tell.
            return;
        };
        self.note(format!("It could not be stopped, trying again: {why}"));
        let Some(running) = &self.running else {
            return;
        };
        let attempt = running.attempt;
        if self.killed_at_boot {
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
            _share: share,
        } = running;
        self.stopping = None;
        self.grace = None;
        self.probe = None;

        let finish = self.shared.logs.finish(&run.dyno_id);
        if timeout(LAST_LINES_WITHIN, finish).await.is_err() {
            tracing::warn!(dyno = %self.spec.name, "last lines are still being written");
        }
        drop(share);
        self.note(status.to_string());
        if status.oom_killed {
            self.note("It was killed because it had used up its memory");
        }
        self.ports().free(&self.spec.name);

        let by_itself = matches!(
            self.lifecycle.state(),
            State::Starting { .. } | State::Started { .. }
        );
        if by_itself {
            self.status.crash = Some(Crash {
                status: status.clone(),
                dyno_id: run.dyno_id.clone(),
            });
            // A process that has done its work and left with 0 was no failure of its release.
            if status.success() && !self.spec.name.process_type.is_web() {
                self.trust();
            } else {
                self.fail(status.to_string());
            }
        }
        self.ready = false;
        self.status.last_exit = Some(status.clone());
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

/// Where the driver says that the dyno can be reached.
async fn address(shared: &Shared, dyno_id: &DynoId) -> Address {
    let mut link = shared.link.clone();
    loop {
        let up = up(&mut link).await;
        let request = driver::IpInfoRequest {
            dyno_id: dyno_id.to_string(),
        };
        if let Ok(answer) = up.client().ip_info(request).await {
            let answer = answer.into_inner();
            if let Ok(port) = u16::try_from(answer.port)
                && port != 0
            {
                return Address {
                    ip: answer.ip,
                    port,
                };
            }
        }
        // UNAVAILABLE means that the address is not assigned yet.
        sleep(Duration::from_millis(100)).await;
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
