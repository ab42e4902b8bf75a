//! A syslog receiver over TLS (RFC 5425), with a certificate that it made itself.

use std::{
    io::{self, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

use super::logplex::{Dialect, Message, message_of};

/// See the module. Its thread ends with the test program.
#[derive(Debug)]
pub struct FakeSyslog {
    address: SocketAddr,
    read: Arc<Mutex<Vec<u8>>>,
}

impl FakeSyslog {
    /// Writes the certificate that a client must trust to `certificate`.
    ///
    /// # Errors
    /// When it cannot be made or written, or there is no port.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's file is no state of hsup's"
    )]
    pub fn start(certificate: &Path) -> io::Result<Self> {
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
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let fake = Self {
            address: listener.local_addr()?,
            read: Arc::default(),
        };
        let read = Arc::clone(&fake.read);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, read) = (Arc::clone(&config), Arc::clone(&read));
                thread::spawn(move || drop(receive(stream, config, &read)));
            }
        });
        Ok(fake)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!(
            "syslog+tls://localhost:{}?hostname=box",
            self.address.port()
        )
    }

    /// The whole messages so far; `None` when what came is none.
    pub fn messages(&self) -> Option<Vec<Message>> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = &read[..];
        let mut messages = Vec::new();
        loop {
            let Some(blank) = rest.iter().position(|byte| *byte == b' ') else {
                return Some(messages);
            };
            let length: usize = str::from_utf8(&rest[..blank]).ok()?.parse().ok()?;
            let Some(message) = rest.get(blank + 1..blank + 1 + length) else {
                return Some(messages);
            };
            messages.push(message_of(Dialect::Logplex, message)?);
            rest = &rest[blank + 1 + length..];
        }
    }
}

fn receive(stream: TcpStream, config: Arc<ServerConfig>, read: &Mutex<Vec<u8>>) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
        read.extend_from_slice(&buffer[..count]);
    }
}
