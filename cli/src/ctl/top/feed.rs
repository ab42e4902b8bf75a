//! What hsup says, for as long as `top` runs: a task that asks for the status whenever
//! something has happened and once a second, follows the log of all dynos and that of the
//! selected one, and connects anew when hsup was away.

use std::{future::pending, path::PathBuf, time::Duration};

use hsup_core::{errors, paths::Paths};
use hsup_proto::control::{
    EventsRequest, GetStatusRequest, GetStatusResponse, LogLine, LogsRequest, LogsResponse,
    RestartRequest, ScaleRequest, StartRequest, StopRequest,
    scale_request::{Change, change::How},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use tonic::{Status, Streaming};

use super::super::{
    connect::{Client, Supervisor, connect},
    error::CtlError,
    promptly,
};

/// How often processor time and memory are asked for.
const EVERY: Duration = Duration::from_secs(1);
/// How soon after something has happened: with one dyno, others change.
const SOON: Duration = Duration::from_millis(50);
/// How long to wait before an hsup that is away is looked for again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How many lines of a log there are at its beginning.
const LINES: u32 = 500;
/// Updates that `top` has not taken in yet; a log that is faster waits in hsup, which counts
/// what has no room there.
const QUEUE: usize = 256;

/// Something new.
#[derive(Debug)]
pub(super) enum Update {
    Status(Box<GetStatusResponse>),
    Lines(Whose, Vec<LogLine>),
    /// A log begins anew, with what hsup remembers.
    Anew(Whose),
    /// hsup does not answer; why.
    Away(String),
    /// What became of a wish, or why nothing did.
    Said(Result<String, String>),
}

/// Whose lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    All,
    Dyno(String),
}

/// What is to be done to a dyno or its process type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Restart { dyno: String },
    Stop { dyno: String },
    Start { dyno: String },
    Scale { process_type: String, by: i32 },
}

/// The front of the task, which ends with it.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) updates: mpsc::Receiver<Update>,
    wishes: mpsc::UnboundedSender<Ask>,
    selected: watch::Sender<Option<String>>,
    task: JoinHandle<()>,
}

impl Feed {
    /// Begins with an hsup that answers, and with the name of its app where that was asked for.
    pub(super) fn start(supervisor: Supervisor, app: Option<String>) -> Self {
        let (tell, updates) = mpsc::channel(QUEUE);
        let (wishes, asked) = mpsc::unbounded_channel();
        let (selected, wanted) = watch::channel(None);
        let worker = Worker {
            socket: supervisor.socket.clone(),
            app,
            tell,
            wishes: asked,
            selected: wanted,
        };
        Self {
            updates,
            wishes,
            selected,
            task: tokio::spawn(worker.work(supervisor)),
        }
    }

    /// Has it done. What comes of it is an update.
    pub(super) fn ask(&self, ask: Ask) {
        // The task lives as long as this.
        drop(self.wishes.send(ask));
    }

    /// Has it follow this dyno's lines besides those of all.
    pub(super) fn follow(&self, dyno: Option<&str>) {
        self.selected.send_if_modified(|selected| {
            let is_other = selected.as_deref() != dyno;
            if is_other {
                *selected = dyno.map(str::to_owned);
            }
            is_other
        });
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Worker {
    /// Where hsup is looked for again, and nowhere else, and the name of its app once that is known:
    /// keys are meant for it.
    socket: PathBuf,
    app: Option<String>,
    tell: mpsc::Sender<Update>,
    wishes: mpsc::UnboundedReceiver<Ask>,
    selected: watch::Receiver<Option<String>>,
}

impl Worker {
    async fn work(mut self, mut supervisor: Supervisor) {
        loop {
            let why = match self.follow(supervisor.client).await {
                Ok(()) => "it has shut down".to_owned(),
                Err(error) => errors::chain(&error),
            };
            self.say(Update::Away(why)).await;
            supervisor = self.reconnect().await;
        }
    }

    /// Whether anybody hears it must not matter: the task ends with who would.
    async fn say(&self, update: Update) {
        drop(self.tell.send(update).await);
    }

    async fn reconnect(&mut self) -> Supervisor {
        loop {
            sleep(AGAIN_AFTER).await;
            while let Ok(ask) = self.wishes.try_recv() {
                drop(ask);
                self.say(Update::Said(Err("hsup is away".to_owned()))).await;
            }
            let app = self.app.as_deref();
            match connect(Some(&self.socket), app, &Paths::from_env()).await {
                Ok(supervisor) => return supervisor,
                Err(error) => self.say(Update::Away(errors::chain(&error))).await,
            }
        }
    }

    /// Until its end, which is no error, or until it does not answer.
    async fn follow(&mut self, mut client: Client) -> Result<(), CtlError> {
        let mut events = promptly(client.events(EventsRequest {})).await?;
        let mut log = promptly(client.logs(lines_of(Vec::new()))).await?;
        self.say(Update::Anew(Whose::All)).await;
        let mut own: Option<Own> = None;
        self.selected.mark_changed();
        let mut clock = interval(EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_due = false;
        loop {
            tokio::select! {
                event = events.message() => {
                    if event?.is_none() {
                        return Ok(());
                    }
                    if !is_due {
                        clock.reset_after(SOON);
                        is_due = true;
                    }
                }
                lines = log.message() => match lines? {
                    Some(answer) => self.say(Update::Lines(Whose::All, answer.lines)).await,
                    None => return Ok(()),
                },
                Ok(()) = self.selected.changed() => own = self.own(&mut client).await?,
                (whose, lines) = next_of(&mut own) => match lines? {
                    Some(answer) => self.say(Update::Lines(whose, answer.lines)).await,
                    // Whether hsup ends says the log of all.
                    None => own = None,
                },
                Some(ask) = self.wishes.recv() => {
                    let (client, tell) = (client.clone(), self.tell.clone());
                    // Beside all else: a dyno may take its time. It is over in PATIENCE.
                    tokio::spawn(async move {
                        drop(tell.send(Update::Said(carry_out(ask, client).await)).await);
                    });
                }
                _ = clock.tick() => {
                    is_due = false;
                    self.status(&mut client).await?;
                }
            }
        }
    }

    /// Begins with the lines of the selected dyno.
    async fn own(&mut self, client: &mut Client) -> Result<Option<Own>, CtlError> {
        let Some(dyno) = self.selected.borrow_and_update().clone() else {
            return Ok(None);
        };
        match promptly(client.logs(lines_of(vec![dyno.clone()]))).await {
            Ok(lines) => {
                let whose = Whose::Dyno(dyno);
                self.say(Update::Anew(whose.clone())).await;
                Ok(Some(Own { whose, lines }))
            }
            // It has gone meanwhile, and will not stay selected.
            Err(CtlError::NotFound(_) | CtlError::Invalid(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn status(&mut self, client: &mut Client) -> Result<(), CtlError> {
        let request = GetStatusRequest {
            stats: true,
            ..GetStatusRequest::default()
        };
        let status = promptly(client.get_status(request)).await?;
        self.app.get_or_insert_with(|| status.app.clone());
        self.say(Update::Status(Box::new(status))).await;
        Ok(())
    }
}

/// The lines of one dyno.
struct Own {
    whose: Whose,
    lines: Streaming<LogsResponse>,
}

/// Never where nobody's are followed.
async fn next_of(own: &mut Option<Own>) -> (Whose, Result<Option<LogsResponse>, Status>) {
    match own {
        Some(own) => (own.whose.clone(), own.lines.message().await),
        None => pending().await,
    }
}

/// The last lines of these, and what follows; of all where nobody is named.
fn lines_of(select: Vec<String>) -> LogsRequest {
    LogsRequest {
        follow: true,
        lines: Some(LINES),
        select,
        ..LogsRequest::default()
    }
}

/// Answers with what has been done, or why nothing was.
async fn carry_out(ask: Ask, mut client: Client) -> Result<String, String> {
    let done = match ask {
        Ask::Restart { dyno } => {
            let request = RestartRequest {
                select: vec![dyno.clone()],
                no_wait: true,
            };
            let restarted = promptly(client.restart(request)).await;
            let nothing = || format!("Nothing to restart: no {dyno} is wanted. + scales up");
            restarted.map(|answer| said(&answer.dynos, "restarted", nothing))
        }
        Ask::Stop { dyno } => {
            let request = StopRequest {
                select: vec![dyno.clone()],
                no_wait: true,
                ..StopRequest::default()
            };
            let stopped = promptly(client.stop(request)).await;
            let nothing = || format!("Nothing to stop: no {dyno} runs");
            stopped.map(|answer| said(&answer.dynos, "stopped", nothing))
        }
        Ask::Start { dyno } => {
            let request = StartRequest {
                select: vec![dyno.clone()],
                no_wait: true,
            };
            let started = promptly(client.start(request)).await;
            let nothing = || format!("Nothing to start: no {dyno} was stopped. + scales up");
            started.map(|answer| said(&answer.dynos, "started", nothing))
        }
        Ask::Scale { process_type, by } => {
            let change = Change {
                process_type: process_type.clone(),
                how: Some(How::By(by)),
            };
            let request = ScaleRequest {
                changes: vec![change],
            };
            let scaled = promptly(client.scale(request)).await;
            scaled.map(|answer| {
                let process = answer
                    .formation
                    .iter()
                    .find(|process| process.process_type == process_type);
                let quantity = process.map_or(0, |process| process.quantity);
                Ok(format!("{process_type} is now at {quantity}"))
            })
        }
    };
    done.unwrap_or_else(|error| Err(errors::chain(&error)))
}

/// What is being done to these dynos, or why to none: that of a process type there may be none is
/// no error.
fn said(dynos: &[String], done: &str, nothing: impl FnOnce() -> String) -> Result<String, String> {
    match dynos {
        [] => Err(nothing()),
        [dyno] => Ok(format!("{dyno} is being {done}")),
        dynos => Ok(format!("{} are being {done}", dynos.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fake::Machine;

    #[tokio::test]
    async fn what_is_done_to_no_dyno_is_not_said_to_be_done() {
        let machine = Machine::new();
        let served = machine.serve("shop");
        let client = machine.connect(None).await.unwrap().client;
        let dyno = || "idle".to_owned();
        for (ask, nothing) in [
            (
                Ask::Restart { dyno: dyno() },
                "Nothing to restart: no idle is wanted. + scales up",
            ),
            (
                Ask::Start { dyno: dyno() },
                "Nothing to start: no idle was stopped. + scales up",
            ),
            (Ask::Stop { dyno: dyno() }, "Nothing to stop: no idle runs"),
        ] {
            let said = carry_out(ask, client.clone()).await;
            assert_eq!(said, Err(nothing.to_owned()));
        }
        let stop = Ask::Stop {
            dyno: "web.1".to_owned(),
        };
        let said = carry_out(stop, client).await;
        assert_eq!(said.as_deref(), Ok("web.1 is being stopped"));
        served.end().await;
    }
}
