//! One attempt to run a dyno, as calls to the driver: Start, Wait, Stop, Remove.
//!
//! Every call may outlive the connection it was made on. Start, Wait, Stop and Remove can be
//! made again with the same id, so a lost connection only means: on the next one, again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hsup_proto::driver::{self, StartRequest, State, WaitRequest};
use tokio::sync::{Notify, watch};
use tonic::{Code, Status};
use tracing::{debug, warn};

use super::{DynoSpec, Shared, io::IoDir, starting::Starting};
use crate::{
    command,
    driver::{Pause, Up, demands, said, up_again},
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

/// Waits until the process and all its offspring have ended. `stopped` tells that a Stop was
/// carried out: then there is no use in waiting longer before the driver is asked again.
pub(super) async fn wait(
    shared: Arc<Shared>,
    name: DynoName,
    dyno_id: DynoId,
    stopped: Arc<Notify>,
) -> ExitStatus {
    let mut link = shared.link.clone();
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
        let status = match up.call(within, up.waits().wait(request)).await {
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
                let text = format!("The driver does not tell when it ends: {}", said(&status));
                shared.logs.note(&name.to_string(), text);
            }
            // Rare, and large: every dyno has a Wait.
            let ended = Box::pin(look(&up, shared.supervisor_id.as_str(), &dyno_id, is_known));
            if let Some(status) = ended.await {
                return status;
            }
        }
        tokio::select! {
            () = pause.wait() => {}
            () = stopped.notified() => {}
        }
    }
}

/// What the driver's list says of a dyno that its Wait says nothing of. `None`: it runs, or
/// nobody can tell.
///
/// Before a dyno that the driver does not know counts as lost, whatever may still run is
/// stopped, and the driver is asked once more for everything it has (driver protocol §7).
async fn look(
    up: &Up,
    supervisor_id: &str,
    dyno_id: &DynoId,
    is_known: bool,
) -> Option<ExitStatus> {
    if is_known && let Some(dyno) = listed(up, supervisor_id, dyno_id).await.ok()? {
        return exited(dyno);
    }
    up.stop(dyno_id.as_str(), Stop::Immediately).await.ok()?;
    up.remove(dyno_id.as_str()).await.ok()?;
    match listed(up, supervisor_id, dyno_id).await.ok()? {
        Some(dyno) => exited(dyno),
        None => Some(ExitStatus::lost(
            "the driver has no record of it",
            now_unix_ms(),
        )),
    }
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
