//! A receiver of a stream (syslog or JSON over TCP, or over TLS with a certificate that it made
//! itself) that breaks off as it is told to.
//!
//! What each connection brought is kept apart: whatever became of the one before, a new one must
//! begin with a whole message.

use std::{
    collections::VecDeque,
    io::{self, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::Linger};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

/// What goes wrong with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// It is reset when so many bytes are read: what was on its way is gone.
    Reset(usize),
    /// It is closed in peace when so many bytes are read.
    Close(usize),
    /// Nothing of it is read for so long.
    Delay(Duration),
}

/// See the module. Its thread ends with the test program.
#[derive(Debug)]
pub struct FakeStream {
    address: SocketAddr,
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    /// One for each of the next connections.
    breaks: VecDeque<Break>,
    read: Vec<Vec<u8>>,
}

impl FakeStream {
    /// On a port of its own; each of the first connections breaks in its way.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(breaks: impl IntoIterator<Item = Break>) -> io::Result<Self> {
        Self::listen(None, breaks)
    }

    /// The same over TLS: writes the certificate that a client must trust, of `localhost`, to
    /// `certificate`. What a break counts is what was said, not how.
    ///
    /// # Errors
    /// When it cannot be made or written, or there is no port.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's file is no state of hsup's"
    )]
    pub fn over_tls(
        certificate: &Path,
        breaks: impl IntoIterator<Item = Break>,
    ) -> io::Result<Self> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).map_err(io::Error::other)?;
        std::fs::write(certificate, cert.pem())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config
                    .with_no_client_auth()
                    .with_single_cert(vec![cert.der().clone()], key)
            })
            .map_err(io::Error::other)?;
        Self::listen(Some(Arc::new(config)), breaks)
    }

    fn listen(
        tls: Option<Arc<ServerConfig>>,
        breaks: impl IntoIterator<Item = Break>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let books = Arc::new(Mutex::new(Books {
            breaks: breaks.into_iter().collect(),
            read: Vec::new(),
        }));
        let fake = Self {
            address: listener.local_addr()?,
            books,
        };
        let books = Arc::clone(&fake.books);
        thread::spawn(move || {
            // One after the other: a sender has one at a time.
            for stream in listener.incoming().flatten() {
                drop(receive(stream, tls.as_ref(), &books));
            }
        });
        Ok(fake)
    }

    /// Where it is: `HOST:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What each connection has brought.
    pub fn connections(&self) -> Vec<Vec<u8>> {
        lock(&self.books).read.clone()
    }
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

fn receive(
    mut stream: TcpStream,
    tls: Option<&Arc<ServerConfig>>,
    books: &Mutex<Books>,
) -> io::Result<()> {
    let fault = {
        let mut books = lock(books);
        books.read.push(Vec::new());
        books.breaks.pop_front()
    };
    let mut left = match fault {
        Some(Break::Reset(bytes) | Break::Close(bytes)) => bytes,
        Some(Break::Delay(delay)) => {
            thread::sleep(delay);
            usize::MAX
        }
        None => usize::MAX,
    };
    let own = stream.try_clone()?;
    let mut said: Box<dyn Read> = match tls {
        None => Box::new(own),
        Some(tls) => {
            let connection = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
            Box::new(StreamOwned::new(connection, own))
        }
    };
    let mut buffer = [0; 4096];
    while left > 0 {
        let room = left.min(buffer.len());
        let count = said.read(&mut buffer[..room])?;
        if count == 0 {
            return Ok(());
        }
        left -= count;
        if let Some(read) = lock(books).read.last_mut() {
            read.extend_from_slice(&buffer[..count]);
        }
    }
    if let Some(Break::Reset(_)) = fault {
        // Closed with a linger of zero, a connection is reset.
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, Linger, &linger)?;
    } else {
        stream.shutdown(std::net::Shutdown::Write)?;
        // The rest is read and thrown away, or the close would be a reset, too.
        io::copy(&mut stream, &mut io::sink())?;
    }
    Ok(())
}
