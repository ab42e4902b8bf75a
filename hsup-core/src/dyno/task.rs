//! The task of one dyno: waits for what can happen, asks the lifecycle, carries out the answer.

mod begin;
mod end;

use std::{pin::Pin, sync::Arc, time::Duration};

use hsup_proto::control::DynoState;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, Sleep, sleep},
};

use super::{
    Birth, Command, DynoHandle, DynoSpec, DynoStatus, Inherited, Key, Report, Shared, What,
    attempt::Run,
    inbox::{Inbox, inbox},
    io::FdShare,
    node::node,
    ready::{self, Probed},
};
use crate::{
    backoff::Backoff,
    exit::ExitStatus,
    lifecycle::{Action, Attempt, Event, Lifecycle, State, Stop, words},
    random,
    time::{now_unix_ms, unix_ms_in},
};

type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// Starts the task of a dyno.
pub fn spawn(
    key: Key,
    spec: DynoSpec,
    birth: Birth,
    inherited: Inherited,
    shared: Arc<Shared>,
    reports: mpsc::UnboundedSender<Report>,
) -> DynoHandle {
    let (commands, inbox) = inbox();
    let backoff = Backoff::new(shared.policy.backoff, random::u64());
    let mut lifecycle = Lifecycle::new(spec.kind, backoff);
    if spec.on_trial {
        lifecycle = lifecycle.on_trial();
    }
    let owner = Arc::clone(&shared);
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
        locating: None,
        stopping: None,
        backoff: None,
        unanswered: None,
        ready: false,
        trusted: false,
        said: DynoState::Down,
        status: DynoStatus::down(inherited),
    };
    owner.tasks.spawn(task.run(birth));
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
    /// Tells whoever waits for its end that this may have been already.
    doubt: Arc<Notify>,
    /// It could not be reached in time.
    killed_at_boot: bool,
    /// The Stop that the driver was last asked for.
    asked: Option<Asked>,
    /// What people were told last of a Stop that failed.
    complaint: Option<String>,
}

/// A Stop that the driver was asked for.
struct Asked {
    how: Stop,
    at: Instant,
    /// How long it took to carry it out, once it has.
    took: Option<Duration>,
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
    Located(Option<String>),
    Stopped(Result<(), String>),
    BackoffElapsed,
    Unanswered,
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
    /// Until the driver tells which machine it is on.
    locating: Pending<Option<String>>,
    stopping: Pending<Result<(), String>>,
    backoff: Option<Pin<Box<Sleep>>>,
    /// Until it is said that the driver does not answer a Stop.
    unanswered: Option<Pin<Box<Sleep>>>,
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
                // The supervisor is gone.
                Woken::Command(None) => return,
                Woken::Command(Some(Command::Restart(how))) => self.apply(Event::Restart { how }),
                Woken::Command(Some(Command::Retire(how))) => self.apply(Event::Retire { how }),
                Woken::Process(Progress::Room(share)) => self.room(share),
                Woken::Process(Progress::Started) => self.started(),
                Woken::Process(Progress::Ended(status)) => self.ended(status).await,
                Woken::Probe(probed) => self.probed(probed),
                Woken::Located(node) => self.located(node),
                Woken::Stopped(result) => self.stopped(result),
                Woken::BackoffElapsed => self.apply(Event::Elapsed),
                Woken::Unanswered => self.not_answered(),
            }
        }
    }

    /// Waits for the next thing to happen.
    async fn next(&mut self) -> Woken {
        let woken = tokio::select! {
            command = self.inbox.take() => Woken::Command(command),
            progress = pending(&mut self.process) => Woken::Process(progress),
            probed = pending(&mut self.probe) => Woken::Probe(probed),
            node = pending(&mut self.locating) => Woken::Located(node),
            result = pending(&mut self.stopping) => Woken::Stopped(result),
            () = timer(&mut self.backoff) => Woken::BackoffElapsed,
            () = timer(&mut self.unanswered) => Woken::Unanswered,
        };
        match woken {
            Woken::Process(_) => self.process = None,
            Woken::Probe(_) => self.probe = None,
            Woken::Located(_) => self.locating = None,
            Woken::Stopped(_) => self.stopping = None,
            Woken::BackoffElapsed => self.backoff = None,
            Woken::Unanswered => self.unanswered = None,
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

    // ---- readiness

    fn begin_probe(&mut self) {
        let Some(running) = &self.running else {
            return;
        };
        if !self.spec.name.process_type.is_web() {
            return self.settle();
        }
        let shared = Arc::clone(&self.shared);
        let (dyno_id, port) = (running.run.dyno_id.clone(), running.run.port);
        self.probe = Some(Box::pin(async move {
            let policy = &shared.policy;
            let check = policy.http_check.as_ref();
            ready::probe(&shared.link, (&dyno_id, port), policy.boot_timeout, check).await
        }));
    }

    /// Sees whether it goes on for a moment.
    fn settle(&mut self) {
        let settle = self.shared.policy.settle;
        self.probe = Some(Box::pin(async move {
            sleep(settle).await;
            Probed::Settled
        }));
    }

    /// Has the driver tell where a web is that needs no probe.
    fn locate(&mut self) {
        let Some(running) = &self.running else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        let dyno_id = running.run.dyno_id.clone();
        self.probe = Some(Box::pin(async move {
            Probed::Accepts(ready::locate(&shared.link, &dyno_id).await)
        }));
    }

    /// Has the driver tell which machine the process is on.
    fn begin_locating(&mut self) {
        let Some(running) = &self.running else {
            return;
        };
        let link = self.shared.link.clone();
        let dyno_id = running.run.dyno_id.clone();
        self.locating = Some(Box::pin(async move { node(link, &dyno_id).await }));
    }

    fn located(&mut self, node: Option<String>) {
        if let Some(node) = node {
            self.status.node = node;
            self.publish();
        }
    }

    fn probed(&mut self, probed: Probed) {
        match probed {
            Probed::Accepts(address) => {
                if !std::mem::replace(&mut self.ready, true)
                    && let Some(running) = &self.running
                {
                    self.shared.ledger.ready(&running.run.dyno_id);
                }
                self.status.ip = address.ip;
                self.status.port = address.port;
                if self.spec.proves && !self.trusted {
                    // Servers bind their port, and end of what they load afterwards.
                    self.say_state();
                    self.publish();
                    self.settle();
                } else if self.trusted {
                    // It was taken over: where it is was all that was not known.
                    self.publish();
                } else {
                    self.trust();
                }
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

    // ---- telling

    /// The state as Heroku shows it: a web is up when it can be reached.
    fn shown(&self) -> DynoState {
        match self.lifecycle.heroku_state() {
            DynoState::Up => self.shown_when_started(),
            state => state,
        }
    }

    const fn shown_when_started(&self) -> DynoState {
        if self.ready {
            DynoState::Up
        } else {
            DynoState::Starting
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
