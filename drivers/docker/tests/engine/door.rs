//! A way to an engine that can be shut, also in the middle of a call, or for one call alone.

use std::{net::SocketAddr, path::Path, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{broadcast, watch},
};

use super::fixture::Engine;

/// What it lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// All but the answer to the first call that has this in its head, after which it is shut.
    ShutAfter(&'static str),
    Shut,
}

/// A way to an engine. It ends with the test.
pub(crate) struct Door {
    address: SocketAddr,
    way: Arc<watch::Sender<Way>>,
    cuts: broadcast::Sender<&'static str>,
}

impl Door {
    pub(crate) async fn of(engine: &Engine) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = engine.socket();
        let way = Arc::new(watch::Sender::new(Way::Open));
        let ours = Arc::clone(&way);
        let cuts = broadcast::Sender::new(1);
        let all_cuts = cuts.clone();
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let (way, socket) = (Arc::clone(&ours), socket.clone());
                let cut = all_cuts.subscribe();
                tokio::spawn(async move {
                    let mut shut = way.subscribe();
                    tokio::select! {
                        () = pass(caller, &socket, &way, cut) => {}
                        _ = shut.wait_for(|way| *way == Way::Shut) => {}
                    }
                });
            }
        });
        Self { address, way, cuts }
    }

    pub(crate) fn host(&self) -> String {
        format!("tcp://{}", self.address)
    }

    pub(crate) fn open(&self) {
        self.way.send_replace(Way::Open);
    }

    pub(crate) fn shut(&self) {
        self.way.send_replace(Way::Shut);
    }

    /// Cuts the connections of the calls that have this in their heads, and no others.
    pub(crate) fn cut(&self, call: &'static str) {
        self.cuts.send(call).unwrap();
    }

    /// Shuts it once the engine has done what such a call asks for, and before it has said so.
    pub(crate) fn shut_after(&self, call: &'static str) {
        self.way.send_replace(Way::ShutAfter(call));
    }
}

/// Passes on one call and its answer.
async fn pass(
    mut caller: TcpStream,
    socket: &Path,
    way: &watch::Sender<Way>,
    cut: broadcast::Receiver<&'static str>,
) {
    let mut engine = UnixStream::connect(socket).await.unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if caller.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    engine.write_all(&head).await.unwrap();
    let head = String::from_utf8_lossy(&head);
    let is_last = match &*way.borrow() {
        Way::ShutAfter(call) => head.contains(call),
        Way::Open | Way::Shut => false,
    };
    if is_last {
        engine.read_u8().await.unwrap();
        way.send_replace(Way::Shut);
    } else {
        tokio::select! {
            // Either may go before the other.
            _ = copy_bidirectional(&mut caller, &mut engine) => {}
            () = until_cut(cut, &head) => {}
        }
    }
}

/// Waits until the call that has this head is to be cut.
async fn until_cut(mut cut: broadcast::Receiver<&'static str>, head: &str) {
    while !head.contains(cut.recv().await.unwrap()) {}
}
