//! Staying with a dyno until it has ended, whatever wishes it away meanwhile.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use hsup_proto::driver::StopRequest;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    RunCommandError,
    current::Current,
    outputs::Outputs,
    progress::Progress,
    signals::{Origin, Signals},
};
use crate::{
    driver::{Pause, STOP_BEYOND_GRACE, Up, Verdict, said, verdict},
    dyno::Waiting,
    exit::ExitStatus,
    lifecycle::Stop,
    name::DynoId,
    state::SupervisorId,
    time::{now_unix_ms, reached},
};

/// How often the driver is asked whether the dyno still runs, whatever its Wait says: the end
/// of the output tells nothing, for hsup holds both ends of the FIFOs.
const DOUBT_EVERY: Duration = Duration::from_secs(5);

/// A dyno that runs, and who may wish it away.
#[derive(Debug)]
pub(super) struct Company<'a> {
    pub(super) driver: Current,
    /// What ties it to us outlives the driver: pipes do, the wire to a terminal does not.
    pub(super) survives: bool,
    pub(super) dyno_id: &'a DynoId,
    /// Under which the driver lists it.
    pub(super) supervisor_id: &'a SupervisorId,
    /// Tells that it may have ended, though no Wait has told.
    pub(super) doubt: Arc<Notify>,
    pub(super) signals: &'a mut Signals,
    /// Between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
    /// Whom to tell how far it is.
    pub(super) progress: &'a Progress,
}

/// How a dyno ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// hsup's exit code, if a signal ended it.
    pub(super) signalled: Option<u8>,
    /// Somebody wished for its end.
    pub(super) is_wished: bool,
}

impl Company<'_> {
    /// Waits for the dyno's end and does meanwhile what is to be done `beside`. A signal is
    /// passed on, the second one with no grace; an output that is given up ends it as well. A
    /// driver that does not stop it in time is waited for no more.
    pub(super) async fn until_end(
        &mut self,
        output: &Outputs,
        beside: impl Future<Output = Infallible>,
    ) -> Result<Ended, RunCommandError> {
        let (dyno_id, usual) = (self.dyno_id, self.grace);
        let doubt = Arc::clone(&self.doubt);
        let waiting = Waiting {
            supervisor_id: self.supervisor_id.as_str(),
            dyno_id,
            doubt: &doubt,
        };
        let mut wait = std::pin::pin!(wait(&self.driver, self.survives, waiting, self.progress));
        let mut now_and_then = interval_at(Instant::now() + DOUBT_EVERY, DOUBT_EVERY);
        now_and_then.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beside = std::pin::pin!(beside);
        let mut signalled: Option<u8> = None;
        let (mut is_wished, mut is_told) = (false, false);
        let mut overdue: Option<Instant> = None;
        let status = loop {
            let (signal, grace) = tokio::select! {
                status = &mut wait => break status?,
                never = &mut beside => match never {},
                () = reached(overdue) => {
                    break ExitStatus::lost("the driver did not stop it in time", now_unix_ms());
                }
                _ = now_and_then.tick() => {
                    doubt.notify_one();
                    continue;
                }
                () = output.failed(), if !is_told => {
                    is_told = true;
                    (output.signal(), usual)
                }
                wish = self.signals.next() => {
                    if wish.from == Origin::Signal {
                        signalled = Some(wish.code());
                    }
                    let is_first = !std::mem::replace(&mut is_wished, true);
                    (wish.signal, wish.grace(usual, is_first))
                }
            };
            self.progress.stopping();
            let driver = self.driver.clone();
            stop(driver, dyno_id, signal, grace, Arc::clone(&doubt));
            let due = Instant::now().checked_add(grace.saturating_add(STOP_BEYOND_GRACE));
            overdue = overdue.into_iter().chain(due).min();
        };
        self.progress.complete(Some(status.clone()));
        Ok(Ended {
            status,
            signalled,
            is_wished,
        })
    }

    /// Waits until the output is written, what is still `on_its_way` first; answers hsup's exit
    /// code for a signal that cut it off.
    pub(super) async fn finish(
        &mut self,
        output: &Outputs,
        on_its_way: impl Future<Output = ()>,
        ended: &Ended,
    ) -> Option<u8> {
        let up = self.driver.get();
        let (cut_off, ()) = tokio::join!(
            output.finish(on_its_way, self.signals, ended.is_wished),
            forget(&up, self.supervisor_id, self.dyno_id)
        );
        cut_off
    }

    /// Ends a dyno that nobody stays with, and waits for that; a signal ends it at once.
    pub(super) async fn abandon(&mut self) {
        let Self {
            supervisor_id,
            dyno_id,
            grace,
            ..
        } = *self;
        let up = self.driver.get();
        self.progress.stopping();
        let stopping = up.stop(dyno_id.as_str(), Stop::Gracefully { grace });
        let stopped = match self.signals.unless(stopping).await {
            Ok(stopped) => stopped,
            Err(_) => up.stop(dyno_id.as_str(), Stop::Immediately).await,
        };
        if let Err(status) = stopped {
            tracing::warn!(code = ?status.code(), message = status.message(), "stop failed");
        }
        forget(&up, supervisor_id, dyno_id).await;
    }
}

/// Has a driver forget the dyno, unless that goes with our own child, and waits until that has
/// reached it. What the dyno held takes the kernel a while to free, which is nothing that its
/// user waits for: a driver that goes on does not need us for it.
async fn forget(up: &Up, supervisor_id: &SupervisorId, dyno_id: &DynoId) {
    if up.child && !up.dynos_outlive_it() {
        return;
    }
    // Calls arrive in the order in which they are made.
    let arrived = async {
        if up.child || up.list(supervisor_id.as_str()).await.is_err() {
            // It ends with us, or it will say of the Remove what is wrong.
            pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        removed = up.remove(dyno_id.as_str()) => {
            if let Err(status) = removed {
                tracing::warn!(said = said(&status), "remove failed");
            }
        }
        () = arrived => {}
    }
}

/// Waits for its end. A driver that cannot tell just then is asked again, and one that went away
/// when it is back, if it keeps how dynos end: its answer is all that is left of that.
async fn wait(
    driver: &Current,
    survives: bool,
    waiting: Waiting<'_>,
    progress: &Progress,
) -> Result<ExitStatus, RunCommandError> {
    let mut pause = Pause::new();
    loop {
        let up = driver.get();
        let status = match waiting.ask(&up).await {
            Ok(ended) => return Ok(ended),
            Err(status) => status,
        };
        if up.is_gone() {
            let back = if survives {
                driver.returned().await
            } else {
                None
            };
            let Some(back) = back else {
                return Err(RunCommandError::Lost(said(&status)));
            };
            progress.moved(&back);
            continue;
        }
        if verdict(&status, false) != Verdict::Again {
            return Err(RunCommandError::Lost(said(&status)));
        }
        tracing::debug!(code = ?status.code(), message = status.message(), "wait failed");
        if let Ok(Some(ended)) = waiting.look(&up, true).await {
            return Ok(ended);
        }
        pause.wait().await;
    }
}

/// Asks for its end, and asks again where the driver could not see to it just then, beside
/// whatever else goes on. The Wait tells when it came, or is doubted where it does not.
fn stop(driver: Current, dyno_id: &DynoId, signal: &str, grace: Duration, doubt: Arc<Notify>) {
    let request = StopRequest {
        dyno_id: dyno_id.to_string(),
        signal: signal.to_owned(),
        grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
        force: grace.is_zero(),
    };
    tokio::spawn(async move {
        let mut pause = Pause::new();
        while let Err(status) = driver.get().client().stop(request.clone()).await {
            tracing::warn!(said = said(&status), "stop failed");
            if verdict(&status, false) != Verdict::Again {
                return;
            }
            pause.wait().await;
        }
        doubt.notify_one();
    });
}
