//! What a dyno wrote, kept for Logs and for whoever attaches to its terminal.

use std::{
    io::{self, Read, Write as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use hsup_proto::driver::logs_response::Stream;
use tokio::sync::watch;

/// Writes a line of the driver's own log. Nothing is left to tell it to when stderr is gone.
pub(crate) fn say(text: &str) {
    drop(writeln!(io::stderr(), "naive-driver: {text}"));
}

/// What has been written so far, and whether that is all.
#[derive(Debug)]
pub(crate) struct Log {
    chunks: Mutex<Vec<(Stream, Vec<u8>)>>,
    /// How many chunks there are, and whether there will be more.
    state: watch::Sender<(usize, bool)>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            chunks: Mutex::default(),
            state: watch::Sender::new((0, false)),
        }
    }
}

impl Log {
    /// Keeps what comes from `source`, until it ends.
    pub(crate) fn keep(
        self: &Arc<Self>,
        stream: Stream,
        mut source: impl Read + Send + 'static,
    ) -> thread::JoinHandle<()> {
        let log = Arc::clone(self);
        thread::spawn(move || {
            let mut piece = [0; 8192];
            // A terminal without a process ends with an error.
            while let Ok(n @ 1..) = source.read(&mut piece) {
                let mut chunks = log.chunks();
                chunks.push((stream, piece[..n].to_vec()));
                log.state.send_modify(|state| state.0 = chunks.len());
            }
        })
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.state.send_modify(|state| state.1 = true);
    }

    /// The chunk with this number, once it is there; `None` when there will be none.
    pub(crate) async fn chunk(&self, number: usize) -> Option<(Stream, Vec<u8>)> {
        let mut state = self.state.subscribe();
        let here = state
            .wait_for(|(count, closed)| *count > number || *closed)
            .await;
        drop(here.ok()?);
        self.chunks().get(number).cloned()
    }

    fn chunks(&self) -> MutexGuard<'_, Vec<(Stream, Vec<u8>)>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
