//! One attempt to run a dyno, as calls to the driver: Start, Wait, Stop, Remove.
//!
//! Every call may outlive the connection it was made on. Start, Wait, Stop and Remove can be
//! made again with the same id, so a lost connection only means: on the next one, again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hsup_proto::driver::{self, StartRequest, State, WaitRequest};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tonic::{Code, Status};
use tracing::{debug, warn};

use super::{DynoSpec, Shared, io::IoDir, starting::Starting};
use crate::{
    command,
    driver::{Link, Pause, Up, demands, said, up_again},
    environment,
    exit::ExitStatus,
    lifecycle::Stop,
    name::{DynoId, DynoName},
    time::now_unix_ms,
};

/// How often a Remove that fails is made again.
const REMOVE_TRIES: u32 = 6;
const WAIT_FOR: Duration = Duration::from_mins(10);
const WAIT_BEYOND: Duration = Duration::from_secs(5);
/// How long a Wait may take to tell of an end of which something else has told already.
const WAIT_BEHIND: Duration = Duration::from_secs(2);

/// The process, or the try to have one.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) dyno_id: DynoId,
    pub(super) io: IoDir,
    /// 0: none.
    pub(super) port: u16,
}

/// Starts the process, unless it is said how to stop it or takes longer than `within`. `Err` is
/// how the attempt ended.
pub(super) async fn start(
    shared: &Shared,
    spec: &DynoSpec,
    run: &Run,
    within: Option<Duration>,
    unwanted: &mut watch::Receiver<Option<Stop>>,
) -> Result<(), ExitStatus> {
    let starting = Starting {
        dyno_id: &run.dyno_id,
        kind: spec.kind,
        release: &spec.release,
        artifact: Arc::clone(&spec.artifact),
        request: &|up, artifact| request(shared, spec, run, up, artifact),
        turns: &shared.starts,
        within,
        tell: &|text| shared.logs.note(&spec.name.to_string(), text),
    };
    starting.start(&shared.link, unwanted).await.map(|_| ())
}

fn request(
    shared: &Shared,
    spec: &DynoSpec,
    run: &Run,
    up: &Up,
    artifact: &str,
) -> Result<StartRequest, String> {
    demands::check_binds(&up.info, &shared.binds).map_err(|error| error.to_string())?;
    let io_dir = run
        .io
        .path()
        .to_str()
        .ok_or("the runtime folder's path is not UTF-8")?;
    let base = if up.has_own_network() {
        environment::Base::Container
    } else {
        shared.host_base
    };
    let host = shared.host_vars.iter().cloned();
    let linger = shared.policy.linger.as_millis();
    Ok(StartRequest {
        dyno_id: run.dyno_id.to_string(),
        supervisor_id: shared.supervisor_id.as_str().to_owned(),
        artifact: artifact.to_owned(),
        app: spec.release.app.clone(),
        release: spec.release.version,
        process_type: spec.name.process_type.to_string(),
        process_number: spec.name.number.get(),
        argv: command::argv(&spec.command),
        env: environment::dyno_environment(base, host, &spec.release.config, &spec.name, run.port),
        io_dir: io_dir.to_owned(),
        tty: false,
        limits: demands::limits(&up.info, &spec.release.limits),
        binds: shared.binds.clone(),
        options: BTreeMap::new(),
        shell_line: spec.command.to_string(),
        linger_ms: u32::try_from(linger).unwrap_or(u32::MAX),
        tty_rows: 0,
        tty_columns: 0,
    })
}

/// Waits until the process and all its offspring have ended. `doubt` tells that they may have
/// ended already, by a Stop that was carried out or by what the driver lists: the answer of the
/// Wait may have been lost.
pub(super) async fn wait(
    shared: Arc<Shared>,
    name: DynoName,
    dyno_id: DynoId,
    doubt: Arc<Notify>,
) -> ExitStatus {
    let link = shared.link.clone();
    let supervisor_id = shared.supervisor_id.as_str();
    let tell = |text: &str| shared.logs.note(&name.to_string(), text);
    wait_on(link, supervisor_id, &dyno_id, &doubt, &tell).await
}

async fn wait_on(
    mut link: watch::Receiver<Link>,
    supervisor_id: &str,
    dyno_id: &DynoId,
    doubt: &Notify,
    tell: &(dyn Fn(&str) + Sync),
) -> ExitStatus {
    let mut pause = Pause::new();
    let mut told = false;
    loop {
        let up = match up_again(&mut link).await {
            Ok(up) => up,
            Err(why) => return ExitStatus::lost(why, now_unix_ms()),
        };
        let request = WaitRequest {
            dyno_id: dyno_id.to_string(),
            timeout_ms: u32::try_from(WAIT_FOR.as_millis()).expect("ten minutes fit"),
        };
        let within = WAIT_FOR + WAIT_BEYOND;
        let mut waits = up.waits();
        let answer = tokio::select! {
            answer = up.call(within, waits.wait(request)) => answer,
            status = doubted(&up, supervisor_id, dyno_id, doubt) => return status,
        };
        let status = match answer {
            Ok(answer) => match answer.status {
                Some(status) => return status.into(),
                None => continue,
            },
            Err(status) => status,
        };
        debug!(%dyno_id, code = ?status.code(), "wait failed");
        if !up.is_gone() {
            let is_known = status.code() != Code::NotFound;
            if is_known && !std::mem::replace(&mut told, true) {
                tell(&format!(
                    "The driver does not tell when it ends: {}",
                    said(&status)
                ));
            }
            // Rare, and large: every dyno has a Wait.
            let ended = Box::pin(look(&up, supervisor_id, dyno_id, is_known));
            if let Ok(Some(status)) = ended.await {
                return status;
            }
        }
        tokio::select! {
            () = pause.wait() => {}
            () = doubt.notified() => {}
        }
    }
}

/// Resolves when there was doubt whether the dyno runs, and it does not.
async fn doubted(up: &Up, supervisor_id: &str, dyno_id: &DynoId, doubt: &Notify) -> ExitStatus {
    loop {
        doubt.notified().await;
        // Rare, and large, as above.
        if let Some(status) = Box::pin(settle(up, supervisor_id, dyno_id)).await {
            warn!(%dyno_id, "its end was listed, and no Wait told of it");
            return status;
        }
    }
}

/// Settles a doubt, as soon as the driver answers; `None`: it runs.
async fn settle(up: &Up, supervisor_id: &str, dyno_id: &DynoId) -> Option<ExitStatus> {
    // Most often the answer is on its way.
    sleep(WAIT_BEHIND).await;
    let mut pause = Pause::new();
    loop {
        match look(up, supervisor_id, dyno_id, true).await {
            Ok(ended) => return ended,
            Err(status) => debug!(%dyno_id, code = ?status.code(), "doubt not settled"),
        }
        pause.wait().await;
    }
}

/// What the driver's list says of a dyno that its Wait says nothing of. `None`: it runs.
///
/// Before a dyno that the driver does not know counts as lost, whatever may still run is
/// stopped, and the driver is asked once more for everything it has (driver protocol §7).
///
/// # Errors
/// When the driver does not tell.
async fn look(
    up: &Up,
    supervisor_id: &str,
    dyno_id: &DynoId,
    is_known: bool,
) -> Result<Option<ExitStatus>, Status> {
    if is_known && let Some(dyno) = listed(up, supervisor_id, dyno_id).await? {
        return Ok(exited(dyno));
    }
    up.stop(dyno_id.as_str(), Stop::Immediately).await?;
    up.remove(dyno_id.as_str()).await?;
    Ok(match listed(up, supervisor_id, dyno_id).await? {
        Some(dyno) => exited(dyno),
        None => Some(ExitStatus::lost(
            "the driver has no record of it",
            now_unix_ms(),
        )),
    })
}

fn exited(dyno: driver::Dyno) -> Option<ExitStatus> {
    (dyno.state() == State::Exited).then(|| dyno.status.unwrap_or_default().into())
}

async fn listed(
    up: &Up,
    supervisor_id: &str,
    dyno_id: &DynoId,
) -> Result<Option<driver::Dyno>, Status> {
    let dynos = up.list(supervisor_id).await?;
    let mut dynos = dynos.into_iter();
    Ok(dynos.find(|dyno| dyno.dyno_id == dyno_id.as_str()))
}

/// Ends the process and all its offspring; waits for the driver to come back if it is away.
pub(super) async fn stop(shared: Arc<Shared>, dyno_id: DynoId, how: Stop) -> Result<(), String> {
    let mut link = shared.link.clone();
    let Ok(up) = up_again(&mut link).await else {
        return Ok(());
    };
    let stopped = up.stop(dyno_id.as_str(), how).await;
    stopped.map_err(|status| said(&status))
}

/// Has the driver forget the dyno. One that it keeps all the same is struck out, so that the
/// sweep takes it for nobody's: it stops what may still run, and removes it.
pub(super) async fn remove(shared: Arc<Shared>, dyno_id: DynoId) {
    let mut link = shared.link.clone();
    let mut pause = Pause::new();
    for _ in 0..REMOVE_TRIES {
        let Ok(up) = up_again(&mut link).await else {
            break;
        };
        let Err(status) = up.remove(dyno_id.as_str()).await else {
            break;
        };
        warn!(%dyno_id, code = ?status.code(), message = status.message(), "remove failed");
        pause.wait().await;
    }
    shared.ledger.forget(&dyno_id);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hsup_proto::driver::{
        Dyno, ListRequest, ListResponse, RemoveRequest, RemoveResponse, StopRequest, StopResponse,
        WaitResponse, dyno_driver_server::DynoDriver, exit_status::How,
    };
    use tokio::time::timeout;
    use tonic::{Request, Response};

    use super::*;
    use crate::{driver::fake, exit::Ending};

    /// A driver that never answers a Wait, lists what it is told to, and notes what it is asked.
    #[derive(Clone, Default)]
    struct Mute {
        listed: Arc<Mutex<Vec<Dyno>>>,
        asked: Arc<Mutex<Vec<&'static str>>>,
    }

    #[tonic::async_trait]
    impl DynoDriver for Mute {
        async fn wait(&self, _: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
            std::future::pending().await
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
        let driver = Mute::default();
        driver.listed.lock().unwrap().extend(dynos);
        let link = fake::link(driver.clone()).await;
        let (dyno_id, doubt) = ("web-1-abc".parse().unwrap(), Notify::new());
        let mut waited = Box::pin(wait_on(link, "me", &dyno_id, &doubt, &|_| ()));
        let early = timeout(Duration::from_mins(5), &mut waited).await;
        assert!(early.is_err(), "nobody doubts yet");
        doubt.notify_one();
        let status = timeout(Duration::from_secs(4), waited).await;
        let asked = driver.asked.lock().unwrap().clone();
        (status.ok().map(|status| status.how), asked)
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
}
