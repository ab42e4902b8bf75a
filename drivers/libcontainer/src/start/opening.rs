//! Opening what a caller has named, where it keeps nobody else waiting.
//!
//! Below a mount whose server is gone an open may take for ever, and nobody can call it off. So it
//! is done by a thread that no Start waits for longer than a while, nor the end of the driver at
//! all. What is opened after that is closed at once. Each caller has only so many such threads, or
//! those that hang would become ever more.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use hsup_driver_kit::{
    Status, errors,
    fifo::{self, Fifos},
    proto::Bind,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

use crate::{
    binds::{self, Bounds, Opened},
    runtime::Libcontainer,
};

/// How long an open may take; it is far less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many threads open something for one caller at a time.
const MOST: usize = 16;

/// Who opens something at the moment.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    binds: Turns,
    /// Others than those of binds: a bind that hangs is tried again and again, and no dyno is
    /// without FIFOs.
    fifos: Turns,
}

/// Those that are taken, by the caller that they are for.
#[derive(Debug, Default)]
struct Turns(Mutex<HashMap<u32, Arc<Semaphore>>>);

impl Turns {
    /// What `open` gives, for the user `uid`; `what` is what people call it.
    async fn within<T, E>(
        &self,
        patience: Duration,
        uid: u32,
        what: &str,
        open: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Send + 'static,
        Status: From<E>,
    {
        let turns = self.of(uid);
        let opened = async {
            // It is never closed.
            let turn = turns.acquire_owned().await.ok();
            let (told, answer) = oneshot::channel();
            let work = move || {
                let opened = open();
                drop(turn);
                // Nobody may wait for it any more: then it is closed here.
                drop(told.send(opened));
            };
            let started = thread::Builder::new().name("open".to_owned()).spawn(work);
            started.map_err(|error| {
                let text = format!("failed to start a thread that opens {what}: {error}");
                if errors::is_exhaustion(&error) {
                    Status::resource_exhausted(text)
                } else {
                    Status::internal(text)
                }
            })?;
            let lost = |_| Status::internal(format!("the thread that opens {what} is lost"));
            answer.await.map_err(lost)?.map_err(Status::from)
        };
        timeout(patience, opened).await.unwrap_or_else(|_| {
            Err(Status::unavailable(format!(
                "failed to open {what} within {} s: a file system on the way does not answer",
                patience.as_secs()
            )))
        })
    }

    fn of(&self, uid: u32) -> Arc<Semaphore> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turns = turns.entry(uid);
        Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(MOST))))
    }
}

impl Libcontainer {
    /// Looks at the binds of a dyno and opens them.
    pub(super) async fn open_binds(&self, uid: u32, binds: &[Bind]) -> Result<Vec<Opened>, Status> {
        if binds.is_empty() {
            return Ok(Vec::new());
        }
        let paths: Vec<_> = binds.iter().map(|bind| bind.host_path.as_str()).collect();
        let what = format!("the binds `{}`", paths.join("`, `"));
        let (driver, binds) = (self.clone(), binds.to_vec());
        let open = move || {
            let bounds = Bounds {
                prefixes: &driver.settings().bind_prefixes,
                own: [driver.work_dir().path(), driver.home().run_dir()],
            };
            binds::open(&binds, bounds)
        };
        let turns = &self.opening().binds;
        turns.within(PATIENCE, uid, &what, open).await
    }

    /// Opens the FIFOs of a dyno.
    pub(super) async fn open_fifos(&self, uid: u32, io_dir: &str) -> Result<Fifos, Status> {
        let what = format!("the FIFOs in `{io_dir}`");
        let io_dir = io_dir.to_owned();
        let open = move || fifo::open_all(Path::new(&io_dir), uid);
        let turns = &self.opening().fifos;
        turns.within(PATIENCE, uid, &what, open).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_mins(1);

    /// An open that hangs until its gate is told or dropped. What it gives is a sender, whose
    /// other end finds out that it was dropped.
    fn hangs(
        gate: Receiver<()>,
    ) -> (
        impl FnOnce() -> Result<Sender<()>, Status> + Send + 'static,
        Receiver<()>,
    ) {
        let (given, closed) = mpsc::channel();
        let open = move || {
            let _ = gate.recv();
            Ok(given)
        };
        (open, closed)
    }

    #[tokio::test]
    async fn what_is_opened_too_late_is_closed() {
        let (let_go, gate) = mpsc::channel();
        let (open, closed) = hangs(gate);
        let turns = Turns::default();
        let status = turns.within(SHORT, 1, "`/srv`", open).await.unwrap_err();
        assert_eq!(status.code(), Status::unavailable("").code());
        assert!(status.message().contains("open `/srv` within"), "{status}");
        let_go.send(()).unwrap();
        let closed = closed.recv_timeout(LONG);
        assert_eq!(closed, Err(RecvTimeoutError::Disconnected));
    }

    #[tokio::test]
    async fn a_caller_has_so_many_that_hang_and_others_have_their_own() {
        let turns = Turns::default();
        let well = || Ok::<_, Status>("well");
        let mut gates = Vec::new();
        for _ in 0..MOST {
            let (let_go, gate) = mpsc::channel();
            let (open, _) = hangs(gate);
            turns.within(SHORT, 1, "it", open).await.unwrap_err();
            gates.push(let_go);
        }
        turns.within(SHORT, 1, "it", well).await.unwrap_err();
        assert_eq!(turns.within(LONG, 2, "it", well).await.unwrap(), "well");
        gates.pop();
        assert_eq!(turns.within(LONG, 1, "it", well).await.unwrap(), "well");
    }

    #[tokio::test]
    async fn what_is_wrong_is_told_as_it_is() {
        let turns = Turns::default();
        let open = || Err::<(), _>(Status::permission_denied("no"));
        let status = turns.within(LONG, 1, "it", open).await.unwrap_err();
        assert_eq!(status.message(), "no");
    }
}
