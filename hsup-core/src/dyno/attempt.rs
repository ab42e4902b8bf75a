//! One attempt to run a dyno, as calls to the driver: Start, Wait, Stop, Remove, and what each
//! error means (driver protocol §8 and §9).
//!
//! Every call may outlive the connection it was made on. Start, Wait, Stop and Remove can be
//! made again with the same id, so a lost connection only means: on the next one, again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hsup_proto::driver::{
    ListRequest, RemoveRequest, StartRequest, State, StopRequest, WaitRequest, remove_request::What,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tracing::{debug, warn};

use super::{DynoSpec, Shared, io::IoDir};
use crate::{
    command,
    driver::{Up, demands, up},
    environment,
    exit::ExitStatus,
    lifecycle::{Kind, Stop},
    name::DynoId,
    time::now_unix_ms,
};

/// Deadlines of driver protocol §9.
const START_WITHIN: Duration = Duration::from_mins(1);
const QUICK_WITHIN: Duration = Duration::from_secs(5);
const STOP_BEYOND_GRACE: Duration = Duration::from_secs(10);
const WAIT_FOR: Duration = Duration::from_mins(10);
const WAIT_BEYOND: Duration = Duration::from_secs(5);

/// The process, or the try to have one.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) dyno_id: DynoId,
    pub(super) io: IoDir,
    /// 0: none.
    pub(super) port: u16,
}

/// What a failed Start means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// The same call again, after a pause.
    Again,
    /// Build again, then Start: the driver has lost the artifact.
    Rebuild,
    /// The attempt has failed; why.
    Failed(String),
}

/// Reads a Start's error as the protocol's table does.
fn verdict(status: &Status, connection_gone: bool) -> Verdict {
    if connection_gone {
        return Verdict::Again;
    }
    match status.code() {
        Code::Unavailable | Code::Aborted | Code::DeadlineExceeded => Verdict::Again,
        Code::NotFound if status.message().starts_with("artifact") => Verdict::Rebuild,
        _ => Verdict::Failed(said(status)),
    }
}

/// A driver's error, for people.
pub(crate) fn said(status: &Status) -> String {
    let code = status.code();
    if status.message().is_empty() {
        format!("the driver answered {code:?}")
    } else {
        format!("{} ({code:?})", status.message())
    }
}

/// Pauses that double from `0.1` s to 30 s, as the protocol asks for a backend that is down.
struct Pause(Duration);

impl Pause {
    const fn new() -> Self {
        Self(Duration::from_millis(100))
    }

    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(30));
    }
}

/// Starts the process. `Err` is how the attempt ended.
pub(super) async fn start(shared: &Shared, spec: &DynoSpec, run: &Run) -> Result<(), ExitStatus> {
    let _permit = shared.starts.acquire().await;
    let failed = |why: String| Err(ExitStatus::not_started(why, now_unix_ms()));
    let mut link = shared.link.clone();
    let mut pause = Pause::new();
    let mut asked: Option<String> = None;
    let mut artifact = Arc::clone(&spec.artifact);
    let mut rebuilt = false;
    loop {
        let up = up(&mut link).await;
        let instance = &up.info.instance_id;
        if spec.kind == Kind::OneShot && asked.as_ref().is_some_and(|asked| asked != instance) {
            return Err(ExitStatus::lost(
                "the driver restarted while it was being started; a one-off is never started twice",
                now_unix_ms(),
            ));
        }
        asked = Some(instance.clone());
        // Made now and for this call only: it holds the whole environment, which many dynos
        // that wait for their turn would hold many times.
        let request = match request(shared, spec, run, &artifact, &up) {
            Ok(request) => request,
            Err(why) => return failed(why),
        };
        let answer = timeout(START_WITHIN, up.client().start(request)).await;
        let status = match answer {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer"),
        };
        debug!(id = %run.dyno_id, code = ?status.code(), message = status.message(), "start failed");
        match verdict(&status, up.is_gone()) {
            Verdict::Again => pause.wait().await,
            Verdict::Failed(why) => return failed(why),
            Verdict::Rebuild if rebuilt => return failed(said(&status)),
            Verdict::Rebuild => {
                rebuilt = true;
                match build_again(&up, spec).await {
                    Ok(built) => artifact = built,
                    Err(why) => return failed(why),
                }
            }
        }
    }
}

/// Has the driver make the artifact that it has lost.
async fn build_again(up: &Up, spec: &DynoSpec) -> Result<Arc<str>, String> {
    let explain = |error: &dyn std::error::Error| crate::errors::chain(error);
    let base = std::env::current_dir().unwrap_or_default();
    let request = crate::build::request(&spec.release, &base).map_err(|e| explain(&e))?;
    let artifact = crate::build::build(up, request, |_| {}).await;
    Ok(artifact.map_err(|e| explain(&e))?.into())
}

fn request(
    shared: &Shared,
    spec: &DynoSpec,
    run: &Run,
    artifact: &str,
    up: &Up,
) -> Result<StartRequest, String> {
    demands::check_binds(&up.info, &shared.binds).map_err(|error| error.to_string())?;
    let io_dir = run
        .io
        .path()
        .to_str()
        .ok_or("the runtime folder's path is not UTF-8")?;
    let base = if shared.has_own_network() {
        environment::Base::Container
    } else {
        shared.host_base
    };
    let host = shared.host_vars.iter().cloned();
    let linger = shared.policy.linger.as_millis();
    Ok(StartRequest {
        dyno_id: run.dyno_id.to_string(),
        supervisor_id: shared.supervisor_id.clone(),
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
    })
}

/// Waits until the process and all its offspring have ended.
pub(super) async fn wait(shared: Arc<Shared>, dyno_id: DynoId) -> ExitStatus {
    let mut link = shared.link.clone();
    let mut pause = Pause::new();
    loop {
        let up = up(&mut link).await;
        let request = WaitRequest {
            dyno_id: dyno_id.to_string(),
            timeout_ms: u32::try_from(WAIT_FOR.as_millis()).expect("ten minutes fit"),
        };
        let status = match timeout(WAIT_FOR + WAIT_BEYOND, up.waits().wait(request)).await {
            Err(_) => Status::deadline_exceeded("no answer"),
            Ok(Err(status)) => status,
            Ok(Ok(answer)) => match answer.into_inner().status {
                Some(status) => return status.into(),
                None => continue,
            },
        };
        if status.code() == Code::NotFound
            && !up.is_gone()
            && let Some(status) = lost(&up, &shared.supervisor_id, &dyno_id).await
        {
            return status;
        }
        debug!(%dyno_id, code = ?status.code(), "wait failed");
        pause.wait().await;
    }
}

/// The driver does not know the dyno. Before it counts as lost, whatever may still run is
/// stopped, and the driver is asked once more for everything it has (driver protocol §7).
async fn lost(up: &Up, supervisor_id: &str, dyno_id: &DynoId) -> Option<ExitStatus> {
    let force = Stop::Immediately;
    stop_on(up, dyno_id, force).await.ok()?;
    remove_on(up, dyno_id).await.ok()?;
    let request = ListRequest {
        supervisor_id: supervisor_id.to_owned(),
    };
    let list = timeout(QUICK_WITHIN, up.client().list(request)).await;
    let dynos = list.ok()?.ok()?.into_inner().dynos;
    let found = dynos
        .into_iter()
        .find(|dyno| dyno.dyno_id == dyno_id.as_str());
    match found {
        Some(dyno) if dyno.state() == State::Exited => Some(dyno.status.unwrap_or_default().into()),
        Some(_) => None,
        None => Some(ExitStatus::lost(
            "the driver has no record of it",
            now_unix_ms(),
        )),
    }
}

/// Ends the process and all its offspring; waits for the driver to come back if it is away.
pub(super) async fn stop(shared: Arc<Shared>, dyno_id: DynoId, how: Stop) -> Result<(), String> {
    let mut link = shared.link.clone();
    let up = up(&mut link).await;
    stop_on(&up, &dyno_id, how)
        .await
        .map_err(|status| said(&status))
}

async fn stop_on(up: &Up, dyno_id: &DynoId, how: Stop) -> Result<(), Status> {
    let (force, grace) = match how {
        Stop::Immediately => (true, Duration::ZERO),
        // 0 would mean the default on the wire.
        Stop::Gracefully { grace } => (false, grace.max(Duration::from_millis(1))),
    };
    let request = StopRequest {
        dyno_id: dyno_id.to_string(),
        signal: String::new(),
        grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
        force,
    };
    match timeout(grace + STOP_BEYOND_GRACE, up.client().stop(request)).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => Err(Status::deadline_exceeded(
            "the driver did not stop it in time",
        )),
    }
}

/// Has the driver forget the dyno. What fails here is made good by the next reconciliation.
pub(super) async fn remove(shared: Arc<Shared>, dyno_id: DynoId) {
    let mut link = shared.link.clone();
    let up = up(&mut link).await;
    if let Err(status) = remove_on(&up, &dyno_id).await {
        warn!(%dyno_id, code = ?status.code(), message = status.message(), "remove failed");
    }
    shared.ledger.forget(&dyno_id);
}

async fn remove_on(up: &Up, dyno_id: &DynoId) -> Result<(), Status> {
    let request = RemoveRequest {
        what: Some(What::DynoId(dyno_id.to_string())),
    };
    match timeout(QUICK_WITHIN, up.client().remove(request)).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_as_the_protocol_says() {
        let failed = |why: &str| Verdict::Failed(why.to_owned());
        for (status, expected) in [
            (Status::unavailable("dockerd is down"), Verdict::Again),
            (Status::aborted("in flight"), Verdict::Again),
            (
                Status::not_found("artifact dir:/x is gone"),
                Verdict::Rebuild,
            ),
            (Status::not_found("dyno"), failed("dyno (NotFound)")),
            (
                Status::invalid_argument("argv is empty"),
                failed("argv is empty (InvalidArgument)"),
            ),
            (
                Status::resource_exhausted(""),
                failed("the driver answered ResourceExhausted"),
            ),
        ] {
            assert_eq!(verdict(&status, false), expected, "{status:?}");
        }
    }

    #[test]
    fn any_error_of_a_dead_connection_means_again() {
        assert_eq!(verdict(&Status::unknown("h2"), true), Verdict::Again);
    }
}
