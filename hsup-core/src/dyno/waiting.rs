//! Waiting for a dyno's end: a Wait, and what the driver lists where no Wait tells.

use std::time::Duration;

use hsup_proto::driver::{self, State, WaitRequest};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;
use tracing::{debug, warn};

use crate::{
    driver::{Pause, Up},
    exit::ExitStatus,
    lifecycle::Stop,
    name::DynoId,
    time::now_unix_ms,
};

/// How long one Wait may take before it is asked again.
const WAIT_FOR: Duration = Duration::from_mins(10);
/// And how much longer its answer may take.
const WAIT_BEYOND: Duration = Duration::from_secs(5);
/// A Wait that tells nothing is not asked again sooner than this after it was asked: a driver
/// that answers at once would be asked without end.
const WAIT_EVERY: Duration = Duration::from_secs(1);
/// How long a Wait may take to tell of an end of which something else has told already.
const WAIT_BEHIND: Duration = Duration::from_secs(2);

/// A dyno whose end somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting<'a> {
    /// Under which the driver lists the dyno.
    pub(crate) supervisor_id: &'a str,
    pub(crate) dyno_id: &'a DynoId,
    /// Tells that it may have ended already: the answer of the Wait may have been lost.
    pub(crate) doubt: &'a Notify,
}

impl Waiting<'_> {
    /// Waits until the process and all its offspring have ended.
    ///
    /// # Errors
    /// That of the Wait, when there is no word of its end.
    pub(crate) async fn ask(&self, up: &Up) -> Result<ExitStatus, Status> {
        tokio::select! {
            answer = self.told(up) => answer,
            status = self.doubted(up) => Ok(status),
        }
    }

    /// What the Waits tell in the end.
    async fn told(&self, up: &Up) -> Result<ExitStatus, Status> {
        loop {
            let asked = Instant::now();
            let request = WaitRequest {
                dyno_id: self.dyno_id.to_string(),
                timeout_ms: u32::try_from(WAIT_FOR.as_millis()).expect("ten minutes fit"),
            };
            let mut waits = up.waits();
            let answer = up.call(WAIT_FOR + WAIT_BEYOND, waits.wait(request));
            if let Some(status) = answer.await?.status {
                return Ok(status.into());
            }
            sleep_until(asked + WAIT_EVERY).await;
        }
    }

    /// Resolves when there was doubt whether the dyno runs, and it does not.
    async fn doubted(&self, up: &Up) -> ExitStatus {
        loop {
            self.doubt.notified().await;
            // Rare, and large: every dyno has a Wait.
            if let Some(status) = Box::pin(self.settle(up)).await {
                warn!(dyno_id = %self.dyno_id, "its end was listed, and no Wait told of it");
                return status;
            }
        }
    }

    /// Settles a doubt, as soon as the driver answers; `None`: it runs.
    async fn settle(&self, up: &Up) -> Option<ExitStatus> {
        // Most often the answer is on its way.
        sleep(WAIT_BEHIND).await;
        let mut pause = Pause::new();
        loop {
            match self.look(up, true).await {
                Ok(ended) => return ended,
                Err(status) => {
                    debug!(dyno_id = %self.dyno_id, code = ?status.code(), "doubt not settled");
                }
            }
            pause.wait().await;
        }
    }

    /// What the driver's list says of a dyno that its Wait says nothing of. `None`: it runs.
    ///
    /// Before a dyno that the driver does not know counts as lost, whatever may still run is
    /// stopped, and the driver is asked once more for everything it has (docs/driver-rules.md §7).
    ///
    /// # Errors
    /// When the driver does not tell.
    pub(crate) async fn look(&self, up: &Up, is_known: bool) -> Result<Option<ExitStatus>, Status> {
        if is_known && let Some(dyno) = self.listed(up).await? {
            return Ok(exited(dyno));
        }
        up.stop(self.dyno_id.as_str(), Stop::Immediately).await?;
        up.remove(self.dyno_id.as_str()).await?;
        Ok(match self.listed(up).await? {
            Some(dyno) => exited(dyno),
            None => Some(ExitStatus::lost(
                "the driver has no record of it",
                now_unix_ms(),
            )),
        })
    }

    async fn listed(&self, up: &Up) -> Result<Option<driver::Dyno>, Status> {
        let dynos = up.list(self.supervisor_id).await?;
        let mut dynos = dynos.into_iter();
        Ok(dynos.find(|dyno| dyno.dyno_id == self.dyno_id.as_str()))
    }
}

fn exited(dyno: driver::Dyno) -> Option<ExitStatus> {
    (dyno.state() == State::Exited).then(|| dyno.status.unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use hsup_proto::driver::{
        Dyno, ListRequest, ListResponse, RemoveRequest, RemoveResponse, StopRequest, StopResponse,
        WaitResponse, dyno_driver_server::DynoDriver, exit_status::How,
    };
    use tokio::time::timeout;
    use tonic::{Request, Response};

    use super::*;
    use crate::{driver::fake, exit::Ending};

    /// A driver whose Waits tell nothing, which lists what it is told to, and notes what it is
    /// asked.
    #[derive(Clone, Default)]
    struct Mute {
        /// It answers them at once, instead of never.
        hasty: bool,
        waits: Arc<Mutex<u32>>,
        listed: Arc<Mutex<Vec<Dyno>>>,
        asked: Arc<Mutex<Vec<&'static str>>>,
    }

    #[tonic::async_trait]
    impl DynoDriver for Mute {
        async fn wait(&self, _: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
            let waits = {
                let mut waits = self.waits.lock().unwrap();
                *waits += 1;
                *waits
            };
            // A clock that is paused stands still while somebody asks without end.
            if !self.hasty || waits > 1000 {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(WaitResponse { status: None }))
        }

        async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
            self.asked.lock().unwrap().push("list");
            let dynos = self.listed.lock().unwrap().clone();
            Ok(Response::new(ListResponse { dynos }))
        }

        async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
            self.asked.lock().unwrap().push("stop");
            Ok(Response::new(StopResponse {}))
        }

        async fn remove(
            &self,
            _: Request<RemoveRequest>,
        ) -> Result<Response<RemoveResponse>, Status> {
            self.asked.lock().unwrap().push("remove");
            Ok(Response::new(RemoveResponse {}))
        }
    }

    fn listed(state: State, status: Option<driver::ExitStatus>) -> Dyno {
        let mut dyno = Dyno {
            dyno_id: "web-1-abc".to_owned(),
            status,
            ..Dyno::default()
        };
        dyno.set_state(state);
        dyno
    }

    /// What comes of a Wait that is never answered, once there is doubt; and what the driver
    /// was asked.
    async fn doubted_with(dynos: Vec<Dyno>) -> (Option<Ending>, Vec<&'static str>) {
        doubted_of(Mute::default(), dynos).await
    }

    async fn doubted_of(driver: Mute, dynos: Vec<Dyno>) -> (Option<Ending>, Vec<&'static str>) {
        driver.listed.lock().unwrap().extend(dynos);
        let up = fake::serve(driver.clone()).await;
        let (dyno_id, doubt) = ("web-1-abc".parse().unwrap(), Notify::new());
        let waiting = Waiting {
            supervisor_id: "me",
            dyno_id: &dyno_id,
            doubt: &doubt,
        };
        let mut waited = Box::pin(waiting.ask(&up));
        let early = timeout(Duration::from_mins(5), &mut waited).await;
        assert!(early.is_err(), "nobody doubts yet");
        doubt.notify_one();
        let status = timeout(Duration::from_secs(4), waited).await;
        let asked = driver.asked.lock().unwrap().clone();
        (status.ok().map(|status| status.unwrap().how), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_no_wait_tells_is_seen_in_the_list() {
        let status = driver::ExitStatus {
            how: Some(How::Signal("SIGKILL".to_owned())),
            ..driver::ExitStatus::default()
        };
        let (ending, asked) = doubted_with(vec![listed(State::Exited, Some(status))]).await;
        assert_eq!(ending, Some(Ending::Signal("SIGKILL".to_owned())));
        assert_eq!(asked, ["list"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dyno_that_runs_after_all_is_left_alone() {
        let (ending, asked) = doubted_with(vec![listed(State::Running, None)]).await;
        assert_eq!((ending, asked), (None, vec!["list"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dyno_that_is_missing_is_stopped_and_removed_before_it_counts_as_lost() {
        let (ending, asked) = doubted_with(vec![]).await;
        assert!(matches!(ending, Some(Ending::Lost(_))), "{ending:?}");
        assert_eq!(asked, ["list", "stop", "remove", "list"]);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_that_are_answered_at_once_are_not_asked_at_once_and_do_not_hide_an_end() {
        let driver = Mute {
            hasty: true,
            ..Mute::default()
        };
        let listed = vec![listed(State::Exited, Some(driver::ExitStatus::default()))];
        let (ending, _) = doubted_of(driver.clone(), listed).await;
        assert!(ending.is_some(), "the doubt was lost");
        // In five minutes, and those few seconds.
        let waits = *driver.waits.lock().unwrap();
        assert!((250..=310).contains(&waits), "{waits}");
    }
}
