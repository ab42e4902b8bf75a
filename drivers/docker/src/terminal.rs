//! A dyno's terminal, which is the engine's: bytes both ways, and the size of the window.
//!
//! It ends with the dyno. A connection that ends before that is replaced by another; what the dyno
//! shows meanwhile, and what is typed, is lost.

use std::{
    io,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use bollard::query_parameters::ResizeContainerTTYOptionsBuilder;
use hsup_driver_kit::{pty::WindowSize, service::Terminal};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Mutex, mpsc, watch},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    attach::{self, Reads, Streams, Writes},
    engine::{self, Engine},
    life,
};

/// How much output waits for a reader: so many pieces of so many bytes. What is more waits in
/// the engine, and then in the dyno.
const PIECES: usize = 16;
const PIECE: usize = 4 << 10;
/// What ends a line of input without being part of it.
const END: u8 = 4;
/// How often the size of a terminal is set again that is not there yet.
const TRIES: usize = 20;
/// How soon what failed is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// The driver's end of a dyno's terminal. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    output: Mutex<mpsc::Receiver<Vec<u8>>>,
    input: Arc<Mutex<Writes>>,
    size: watch::Sender<WindowSize>,
    /// What was typed last.
    typed: StdMutex<Option<u8>>,
}

impl Remote {
    /// The terminal of a container, which these are the two directions of at first, until it is
    /// `gone`.
    pub(crate) fn new(
        engine: Engine,
        id: String,
        (reads, writes): (Reads, Writes),
        gone: CancellationToken,
    ) -> Self {
        let (sender, output) = mpsc::channel(PIECES);
        let input = Arc::new(Mutex::new(writes));
        let replaced = Arc::clone(&input);
        tokio::spawn(async move {
            let showing = show(&engine, &id, reads, &replaced, &sender);
            gone.run_until_cancelled(showing).await
        });
        Self(Arc::new(Inner {
            output: Mutex::new(output),
            input,
            size: watch::Sender::new(WindowSize::default()),
            typed: StdMutex::default(),
        }))
    }

    /// Keeps the window's size what it was set to last, from now on.
    pub(crate) fn keep_size(&self, engine: Engine, id: String, gone: CancellationToken) {
        let mut sizes = self.0.size.subscribe();
        tokio::spawn(async move {
            let keeping = async {
                while sizes.changed().await.is_ok() {
                    let size = *sizes.borrow_and_update();
                    set(&engine, &id, size).await;
                }
            };
            gone.run_until_cancelled(keeping).await
        });
    }
}

async fn set(engine: &Engine, id: &str, size: WindowSize) {
    for _ in 0..TRIES {
        let options = ResizeContainerTTYOptionsBuilder::new()
            .h(size.rows.into())
            .w(size.columns.into())
            .build();
        let up = engine.up().await;
        match up.docker.resize_container_tty(id, options).await {
            Ok(()) => return,
            Err(error) if engine::is_unknown(&error) => return,
            // It may be about to begin, or have ended.
            Err(error) => tracing::debug!(%error, "failed to set the size of a terminal"),
        }
        time::sleep(PAUSE).await;
    }
}

/// Passes on what the dyno writes, until it has ended or nobody wants any more.
async fn show(
    engine: &Engine,
    id: &str,
    mut reads: Reads,
    input: &Mutex<Writes>,
    output: &mpsc::Sender<Vec<u8>>,
) {
    loop {
        pump(reads, output).await;
        if output.is_closed() {
            return;
        }
        let Some((again, writes)) = attach_again(engine, id).await else {
            return;
        };
        *input.lock().await = writes;
        reads = again;
        // A dyno that is about to have ended still lets itself be attached to.
        time::sleep(PAUSE).await;
    }
}

/// Attaches to a dyno once more, unless it has ended.
async fn attach_again(engine: &Engine, id: &str) -> Option<(Reads, Writes)> {
    loop {
        let up = engine.up().await;
        match up.api.inspect(id).await {
            Ok(found) if life::is_running(&found.state) || life::is_new(&found.state) => {
                match attach::attach(engine.connector(), id, Streams::Terminal).await {
                    Ok(both) => return Some(both),
                    Err(error) => tracing::debug!(%error, "failed to attach to a terminal again"),
                }
            }
            Err(error) if !engine::is_unknown(&error) => {
                tracing::debug!(%error, "failed to look at a container");
                engine.suspect();
            }
            // It has ended, or is gone.
            Ok(_) | Err(_) => return None,
        }
        time::sleep(PAUSE).await;
    }
}

/// Passes on what comes to the end of the connection, as far as anybody wants it.
async fn pump(mut reads: Reads, output: &mpsc::Sender<Vec<u8>>) {
    let mut piece = vec![0; PIECE];
    loop {
        match reads.read(&mut piece).await {
            Ok(length) if length > 0 => {
                if output.send(piece[..length].to_vec()).await.is_err() {
                    return;
                }
            }
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "a terminal broke off");
                return;
            }
        }
    }
}

impl Terminal for Remote {
    async fn read(&self) -> Vec<u8> {
        // Given up while it waits, it has taken nothing.
        self.0.output.lock().await.recv().await.unwrap_or_default()
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if let Some(last) = bytes.last() {
            *self.0.typed.lock().unwrap_or_else(PoisonError::into_inner) = Some(*last);
        }
        self.0.input.lock().await.write_all(bytes).await
    }

    async fn end_input(&self) -> io::Result<()> {
        let typed = *self.0.typed.lock().unwrap_or_else(PoisonError::into_inner);
        // In the middle of a line the first one only hands over what there is of it.
        let ends: &[u8] = match typed {
            None | Some(b'\n' | b'\r' | END) => &[END],
            Some(_) => &[END, END],
        };
        self.write(ends).await
    }

    fn resize(&self, size: WindowSize) -> io::Result<()> {
        self.0.size.send_replace(size);
        Ok(())
    }
}
