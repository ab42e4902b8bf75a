//! One attempt to run a dyno, as calls to the driver: Start, Wait, Stop, Remove.
//!
//! Every call may outlive the connection it was made on. Start, Wait, Stop and Remove can be
//! made again with the same id, so a lost connection only means: on the next one, again.

use std::{sync::Arc, time::Duration};

use hsup_proto::driver::StartRequest;
use tokio::sync::{Notify, watch};
use tonic::Code;
use tracing::{debug, warn};

use super::{
    DynoSpec, Shared, io::IoDir, ledger::Ended, request::Request, starting::Starting,
    waiting::Waiting,
};
use crate::{
    driver::{Link, Pause, Up, demands, said, up_again},
    environment,
    exit::ExitStatus,
    lifecycle::Stop,
    name::{DynoId, DynoName},
    time::now_unix_ms,
};

/// How often a Remove that fails is made again.
const REMOVE_TRIES: u32 = 6;

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
    let is_trial = within.is_some() || spec.name.process_type.is_release();
    let starting = Starting {
        dyno_id: &run.dyno_id,
        kind: spec.kind,
        release: &spec.release,
        repeats: spec.repeats.filter(|_| is_trial),
        options: &shared.driver_options,
        locator: shared.locator.as_deref(),
        artifact: shared.built.last(spec),
        request: &|up, artifact| request(shared, spec, run, up, artifact),
        turns: &shared.starts,
        within,
        // A release is not to be rejected for it.
        waits_for_room: is_trial,
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
    let dyno = environment::Dyno {
        name: &spec.name,
        id: &run.dyno_id,
        port: run.port,
    };
    let request = Request {
        supervisor_id: &shared.supervisor_id,
        dyno,
        release: &spec.release,
        line: &spec.command,
        host_base: shared.host_base,
        binds: &shared.binds,
        options: &shared.driver_options,
        linger: shared.policy.linger,
    };
    Ok(StartRequest {
        io_dir: io_dir.to_owned(),
        ..request.to(up, artifact, shared.host_vars.iter().cloned())
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
    let waiting = Waiting {
        supervisor_id: shared.supervisor_id.as_str(),
        dyno_id: &dyno_id,
        doubt: &doubt,
    };
    let tell = |text: &str| shared.logs.note(&name.to_string(), text);
    wait_on(shared.link.clone(), waiting, &tell).await
}

async fn wait_on(
    mut link: watch::Receiver<Link>,
    waiting: Waiting<'_>,
    tell: &(dyn Fn(&str) + Sync),
) -> ExitStatus {
    let mut pause = Pause::new();
    let mut told = false;
    loop {
        let up = match up_again(&mut link).await {
            Ok(up) => up,
            Err(why) => return ExitStatus::lost(why, now_unix_ms()),
        };
        let status = match waiting.ask(&up).await {
            Ok(status) => return status,
            Err(status) => status,
        };
        debug!(dyno_id = %waiting.dyno_id, code = ?status.code(), "wait failed");
        if !up.is_gone() {
            let is_known = status.code() != Code::NotFound;
            if is_known && !std::mem::replace(&mut told, true) {
                tell(&format!(
                    "The driver does not tell when it ends: {}",
                    said(&status)
                ));
            }
            // Rare, and large: every dyno has a Wait.
            let ended = Box::pin(waiting.look(&up, is_known));
            if let Ok(Some(status)) = ended.await {
                return status;
            }
        }
        tokio::select! {
            () = pause.wait() => {}
            () = waiting.doubt.notified() => {}
        }
    }
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

/// Has file system and driver forget the dyno. One that the driver keeps all the same is struck
/// out, so that the sweep takes it for nobody's: it stops what may still run, and removes it.
pub(super) fn forget(shared: &Arc<Shared>, io: &IoDir, ended: Ended) {
    io.remove();
    let removing = remove(Arc::clone(shared), ended);
    shared.tasks.spawn(removing);
}

async fn remove(shared: Arc<Shared>, ended: Ended) {
    let dyno_id = ended.dyno_id();
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
    shared.ledger.forget(ended);
}
