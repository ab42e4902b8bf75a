//! A dyno's terminal, which is the engine's: bytes both ways, and the size of the window.

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
    attach::{Reads, Writes},
    engine::{self, Engine},
};

/// How much output waits for a reader: so many pieces of so many bytes. What is more waits in
/// the engine, and then in the dyno.
const PIECES: usize = 16;
const PIECE: usize = 4 << 10;
/// What ends a line of input without being part of it.
const END: u8 = 4;
/// How often, and how soon, the size of a terminal is set again that is not there yet.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// The driver's end of a dyno's terminal. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    output: Mutex<mpsc::Receiver<Vec<u8>>>,
    input: Mutex<Writes>,
    size: watch::Sender<WindowSize>,
    /// What was typed last.
    typed: StdMutex<Option<u8>>,
}

impl Remote {
    /// The terminal that these are the two directions of, until it is `gone`.
    pub(crate) fn new((reads, writes): (Reads, Writes), gone: CancellationToken) -> Self {
        let (sender, output) = mpsc::channel(PIECES);
        tokio::spawn(async move { gone.run_until_cancelled(pump(reads, sender)).await });
        Self(Arc::new(Inner {
            output: Mutex::new(output),
            input: Mutex::new(writes),
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

/// Reads what the dyno writes, as far as anybody wants it.
async fn pump(mut reads: Reads, output: mpsc::Sender<Vec<u8>>) {
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
