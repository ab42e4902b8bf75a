//! The rules of the protocol's calls, once for all drivers.
//!
//! A [`Service`] serves `hsup.driver.v1` over a [`Runtime`]. What a call means is decided in
//! the `table.rs`; here are the tasks that act on it. Every one of them goes on when its
//! caller is gone: a call that is cancelled rolls nothing back (docs/driver-rules.md §8).

mod attach;
mod build;
mod calls;
mod check;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod guard;
mod links;
mod record;
mod recovery;
mod runtime;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    future::pending,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use hsup_proto::driver::{ExitStatus, StartRequest, exit_status::How};
use tokio::{
    sync::Notify,
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

use self::{
    build::Builds,
    guard::guarded,
    links::Links,
    table::{Key, Started, Stop, Stopping, Table, View},
};
pub use self::{
    record::{Record, RecordError},
    runtime::{
        BuildLog, Dyno, Identity, IdentityError, Names, RecoverError, Recovered, Runtime, Terminal,
    },
};
use crate::{
    clock::now_unix_ms,
    serve::{Peer, Quota},
    signal::Signal,
};

/// The grace period of a dyno whose supervisor did not say, or is gone.
const GRACE: Duration = Duration::from_secs(30);

/// How long a driver that ends goes on with what it was told to remove.
const LAST_REMOVALS: Duration = Duration::from_secs(3);

/// A driver: serves the calls over a runtime. Cheap to clone.
pub struct Service<R: Runtime>(Arc<Inner<R>>);

struct Inner<R: Runtime> {
    runtime: R,
    identity: Identity,
    instance_id: String,
    /// How many dynos a user may have who is neither root nor our own.
    most_dynos: usize,
    /// Builds under way.
    building: Quota,
    /// Dynos and artifacts that are being removed.
    removals: TaskTracker,
    state: Mutex<State<R::Dyno>>,
    /// Something happened that may make the driver idle, or not idle any more.
    stirred: Notify,
    /// The dynos of an earlier process are being looked for.
    looking: AtomicBool,
}

struct State<D> {
    table: Table<Arc<Live<D>>>,
    links: Links,
    builds: Builds,
    /// Starts in flight, to be cancelled by a Stop.
    starting: HashMap<Key, CancellationToken>,
    /// Artifacts that are being removed, each as often as it is: their user, their name.
    removing: Vec<(u32, Box<str>)>,
    /// Nothing is started any more.
    ending: bool,
}

/// What is kept of each dyno besides its record.
struct Live<D> {
    /// Its record has changed, or went away.
    changed: Notify,
    dyno: OnceLock<D>,
    /// Why it could not be started, or could not be stopped.
    refused: OnceLock<Box<Status>>,
    attached: AtomicBool,
}

/// An artifact is being removed, as long as this is there: nothing is started from it.
struct Removal<R: Runtime> {
    service: Service<R>,
    artifact: (u32, Box<str>),
}

impl<R: Runtime> Drop for Removal<R> {
    fn drop(&mut self) {
        let removing = &mut self.service.state().removing;
        if let Some(at) = removing.iter().position(|other| *other == self.artifact) {
            removing.swap_remove(at);
        }
    }
}

impl<D> State<D> {
    fn is_being_removed(&self, uid: u32, artifact: &str) -> bool {
        self.removing
            .iter()
            .any(|(owner, name)| *owner == uid && **name == *artifact)
    }
}

impl<R: Runtime> Clone for Service<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Runtime> fmt::Debug for Service<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("identity", &self.0.identity)
            .finish_non_exhaustive()
    }
}

impl<D> Live<D> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            changed: Notify::new(),
            dyno: OnceLock::new(),
            refused: OnceLock::new(),
            attached: AtomicBool::new(false),
        })
    }
}

impl<R: Runtime> Service<R> {
    /// A driver without dynos.
    ///
    /// # Errors
    /// When the runtime promises what this kit cannot keep.
    pub fn new(runtime: R) -> Result<Self, IdentityError> {
        Self::limited(runtime, usize::MAX)
    }

    /// The same, where a user who is neither root nor our own may have so many dynos.
    pub(crate) fn limited(runtime: R, most_dynos: usize) -> Result<Self, IdentityError> {
        let identity = runtime.identity();
        identity.check()?;
        Ok(Self(Arc::new(Inner {
            identity,
            runtime,
            instance_id: instance_id(),
            most_dynos,
            building: Quota::new(build::MOST_AT_ONCE),
            removals: TaskTracker::new(),
            state: Mutex::new(State {
                table: Table::default(),
                links: Links::default(),
                builds: Builds::default(),
                starting: HashMap::new(),
                removing: Vec::new(),
                ending: false,
            }),
            stirred: Notify::new(),
            looking: AtomicBool::new(false),
        })))
    }

    /// A connection was opened.
    pub(crate) fn connected(&self, peer: Peer) {
        self.state().links.opened(peer.connection);
        self.0.stirred.notify_waiters();
    }

    /// A connection has ended; dynos whose supervisor is gone begin to linger.
    pub(crate) fn disconnected(&self, peer: Peer) {
        let now = Instant::now();
        {
            let mut state = self.state();
            for (uid, supervisor) in state.links.closed(peer.connection, now) {
                self.begin_to_linger(&state.table, uid, &supervisor, now);
            }
            let State { links, table, .. } = &mut *state;
            links.forget(|(uid, supervisor)| !table.list(*uid, supervisor).is_empty());
        }
        self.0.stirred.notify_waiters();
    }

    /// A supervisor is away since `now`: its dynos linger.
    fn begin_to_linger(
        &self,
        table: &Table<Arc<Live<R::Dyno>>>,
        uid: u32,
        supervisor: &str,
        now: Instant,
    ) {
        for linger in table.lingers(uid, supervisor) {
            tokio::spawn(self.clone().linger(uid, supervisor.into(), now, linger));
        }
    }

    /// Stops what a supervisor left, unless it comes back in time.
    async fn linger(self, uid: u32, supervisor: Box<str>, since: Instant, linger: Duration) {
        time::sleep_until(since + linger).await;
        let keys = {
            let state = self.state();
            if state.links.away_since(uid, &supervisor) != Some(since) {
                return;
            }
            state.table.lingering(uid, &supervisor)
        };
        let due = keys.into_iter().filter(|(of_dyno, _)| *of_dyno == linger);
        for (_, key) in due {
            tracing::info!(dyno_id = %key.id, "stopping a dyno whose supervisor is gone");
            self.begin_stop(&key, Signal::TERM, GRACE);
        }
        // Of those that have exited nobody is waited for any more.
        self.0.stirred.notify_waiters();
    }

    /// Starts no dyno any more, and stops every one unless they outlive the driver. A second call
    /// may shorten the grace.
    pub(crate) async fn wind_up(&self, grace: Duration) {
        let keys = {
            let mut state = self.state();
            state.ending = true;
            state.table.alive_keys()
        };
        if self.0.identity.outlives() {
            return self.leave(grace).await;
        }
        for key in &keys {
            self.begin_stop(key, Signal::TERM, grace);
        }
        self.until_stirred(|state| state.table.alive() == 0).await;
    }

    /// Lets the runtime clear up. A supervisor that ends waits for no removal.
    pub(crate) async fn end(&self) {
        self.0.removals.close();
        drop(time::timeout(LAST_REMOVALS, self.0.removals.wait()).await);
        // It has been told.
        drop(guarded("clear up", self.0.runtime.end()).await);
    }

    /// Resolves when the driver is, or is not, without connections, without running dynos, and
    /// without exited ones whose supervisor may still come back to ask how they ended.
    pub(crate) async fn until_idle(&self, wanted: bool) {
        self.until_stirred(|State { links, table, .. }| {
            let awaited = || {
                table.is_awaited(Instant::now(), |uid, supervisor| {
                    links.away_since(uid, supervisor)
                })
            };
            let idle = links.count() == 0 && table.alive() == 0 && !awaited();
            idle == wanted
        })
        .await;
    }

    async fn until_stirred(&self, holds: impl Fn(&State<R::Dyno>) -> bool) {
        loop {
            let mut stirred = pin!(self.0.stirred.notified());
            stirred.as_mut().enable();
            if holds(&self.state()) {
                return;
            }
            stirred.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State<R::Dyno>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds what it wants in a dyno's record, or the record is gone.
    async fn until<T>(
        &self,
        key: &Key,
        live: &Live<R::Dyno>,
        look: impl Fn(Option<View>) -> Option<T>,
    ) -> T {
        loop {
            let mut changed = pin!(live.changed.notified());
            changed.as_mut().enable();
            let view = self.state().table.view(key);
            if let Some(found) = look(view) {
                return found;
            }
            changed.await;
        }
    }

    /// Starts a dyno whose record says that it is starting, and watches it from then on.
    async fn carry_out_start(
        self,
        key: Key,
        live: Arc<Live<R::Dyno>>,
        peer: Peer,
        request: StartRequest,
        record: Record,
        cancelled: CancellationToken,
    ) {
        let runtime = &self.0.runtime;
        let starting = async {
            if runtime.has_artifact(peer, &request.artifact) {
                return runtime.start(peer, request, record, cancelled).await;
            }
            Err(Status::not_found(format!(
                "artifact `{}` is not known to this driver",
                check::shown(&request.artifact)
            )))
        };
        match guarded("start a dyno", starting).await.flatten() {
            Ok(dyno) => {
                // Nobody else sets it: a dyno is started once.
                drop(live.dyno.set(dyno));
                let next = {
                    let mut state = self.state();
                    state.starting.remove(&key);
                    state.table.started(&key)
                };
                if next == Started::StopNow {
                    tokio::spawn(self.clone().carry_out_stop(key.clone(), Arc::clone(&live)));
                }
                live.changed.notify_waiters();
                // One that ends may be waiting for this.
                self.0.stirred.notify_waiters();
                tokio::spawn(self.watch(key, live));
            }
            Err(status) => {
                tracing::info!(dyno_id = %key.id, code = ?status.code(), "a dyno could not be started");
                drop(live.refused.set(Box::new(status)));
                {
                    let mut state = self.state();
                    state.starting.remove(&key);
                    state.table.failed(&key, Instant::now(), now_unix_ms());
                }
                live.changed.notify_waiters();
                self.0.stirred.notify_waiters();
            }
        }
    }

    /// Waits for the end of a dyno and records it.
    async fn watch(self, key: Key, live: Arc<Live<R::Dyno>>) {
        let Some(dyno) = live.dyno.get() else {
            return;
        };
        let status = guarded("wait for a dyno", dyno.wait()).await;
        self.record_exit(&key, status.unwrap_or_else(|status| lost(&status)));
        live.changed.notify_waiters();
        self.0.stirred.notify_waiters();
    }

    fn record_exit(&self, key: &Key, status: ExitStatus) {
        let now = Instant::now();
        let mut state = self.state();
        state.table.exited(key, status, now);
        let State { table, links, .. } = &mut *state;
        if links.anybody_away() {
            let expired = table.expire(now, |uid, supervisor| {
                links.away_since(uid, supervisor).is_some()
            });
            drop(state);
            for live in expired {
                tokio::spawn(forget(live));
            }
        }
    }

    /// Begins to stop a dyno, or hurries a stop; says whether there is one to wait for.
    fn begin_stop(&self, key: &Key, signal: Signal, grace: Duration) -> Option<Arc<Live<R::Dyno>>> {
        let stop = Stop {
            signal,
            deadline: Instant::now() + grace,
        };
        let mut state = self.state();
        let meaning = state.table.stop(key, stop);
        let live = Arc::clone(state.table.handle(key)?);
        match meaning {
            Stopping::Done => return None,
            Stopping::Cancel => {
                if let Some(cancelled) = state.starting.get(key) {
                    cancelled.cancel();
                }
            }
            Stopping::Begin => {
                tokio::spawn(self.clone().carry_out_stop(key.clone(), Arc::clone(&live)));
            }
            Stopping::Join => live.changed.notify_waiters(),
        }
        Some(live)
    }

    /// Sends the signal, gives the dyno its grace, which may shrink meanwhile, and kills it.
    async fn carry_out_stop(self, key: Key, live: Arc<Live<R::Dyno>>) {
        let Some(dyno) = live.dyno.get() else {
            return;
        };
        let Some(stop) = self.state().table.stop_of(&key) else {
            return;
        };
        // If that fails, or takes longer than the grace, it is killed in time.
        let signalled = async {
            if Instant::now() < stop.deadline {
                drop(guarded("signal a dyno", dyno.signal(stop.signal)).await);
            }
            pending::<Infallible>().await
        };
        let is_over = tokio::select! {
            biased;
            never = signalled => match never {},
            is_over = self.grace_is_over(&key, &live) => is_over,
        };
        if !is_over {
            return;
        }
        if let Err(status) = guarded("kill a dyno", dyno.kill()).await {
            // Nobody must wait for an end that does not come.
            let exit = lost(&status);
            drop(live.refused.set(Box::new(status)));
            self.record_exit(&key, exit);
            live.changed.notify_waiters();
            self.0.stirred.notify_waiters();
        }
    }

    /// Waits for the deadline of the stop, which may come nearer meanwhile; answers whether there is
    /// still anything to kill then.
    async fn grace_is_over(&self, key: &Key, live: &Live<R::Dyno>) -> bool {
        loop {
            let mut changed = pin!(live.changed.notified());
            changed.as_mut().enable();
            let Some(stop) = self.state().table.stop_of(key) else {
                return false;
            };
            if Instant::now() >= stop.deadline {
                return true;
            }
            tokio::select! {
                () = changed => {}
                () = time::sleep_until(stop.deadline) => {}
            }
        }
    }
}

/// Has the runtime forget a dyno that has ended.
async fn forget<D: Dyno>(live: Arc<Live<D>>) {
    if let Some(dyno) = live.dyno.get() {
        // If that fails it has been told, and nobody could do anything about it.
        drop(guarded("forget a dyno", dyno.remove()).await);
    }
}

/// The status of a dyno that the runtime has lost track of.
fn lost(why: &Status) -> ExitStatus {
    ExitStatus {
        how: Some(How::Lost(why.message().to_owned())),
        oom_killed: false,
        exited_at_unix_ms: now_unix_ms(),
    }
}

fn instance_id() -> String {
    let mut bytes = [0_u8; 16];
    if let Err(error) = getrandom::fill(&mut bytes) {
        // It only has to differ from that of another process.
        tracing::warn!(%error, "failed to get random bytes");
        bytes[..4].copy_from_slice(&std::process::id().to_le_bytes());
        bytes[4..12].copy_from_slice(&now_unix_ms().to_le_bytes());
    }
    format!("{:032x}", u128::from_le_bytes(bytes))
}
