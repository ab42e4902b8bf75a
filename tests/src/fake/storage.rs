//! Files over https, from a server that an authority of the test's own vouches for.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

/// Who vouches for servers.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What is wrong with a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It is another host's.
    Name,
    /// It was good once.
    Age,
}

impl Authority {
    /// Writes the certificate that a client must trust to `certificate`.
    ///
    /// # Errors
    /// When it cannot be made or written.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's file is no state of hsup's"
    )]
    pub fn new(certificate: &Path) -> io::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two of one name would be one for whoever looks for the issuer of a certificate.
        let name = certificate.display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)?;
        std::fs::write(certificate, issuer.pem())?;
        Ok(Self(issuer))
    }

    fn server(&self, flaw: Flaw) -> Result<ServerConfig, Box<dyn std::error::Error>> {
        let name = match flaw {
            Flaw::Name => "elsewhere.example",
            Flaw::None | Flaw::Age => "localhost",
        };
        let mut params = CertificateParams::new([name.to_owned()])?;
        if flaw == Flaw::Age {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(config)
    }
}

/// See the module. Its thread ends with the test program.
#[derive(Debug)]
pub struct FakeStorage {
    address: SocketAddr,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl FakeStorage {
    /// One without files, on a port of its own.
    ///
    /// # Errors
    /// When its certificate cannot be made, or there is no port.
    pub fn start(authority: &Authority, flaw: Flaw) -> io::Result<Self> {
        let config = authority.server(flaw);
        let config = Arc::new(config.map_err(|error| io::Error::other(error.to_string()))?);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let storage = Self {
            address: listener.local_addr()?,
            files: Arc::default(),
        };
        let files = Arc::clone(&storage.files);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, files) = (Arc::clone(&config), Arc::clone(&files));
                // Who does not trust it goes.
                thread::spawn(move || drop(answer(stream, config, &files)));
            }
        });
        Ok(storage)
    }

    /// Gives out a file from now on; its URL.
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> String {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(format!("/{name}"), bytes);
        format!("https://{}/{name}", self.host())
    }

    /// Whom a client asks.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }
}

fn answer(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    files: &Mutex<BTreeMap<String, Vec<u8>>>,
) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    // The query is a token's, which opens everything.
    let target = head.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let files = files.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, body) = match files.get(path) {
        Some(bytes) => ("200 OK", bytes.clone()),
        None => ("404 Not Found", Vec::new()),
    };
    drop(files);
    let mut stream = stream.into_inner();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&body)?;
    stream.conn.send_close_notify();
    stream.flush()
}
