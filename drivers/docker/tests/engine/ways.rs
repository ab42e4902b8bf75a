//! The ways to an engine that is not on this machine: for the tests it is, behind them.

use std::{fs, path::Path, sync::Arc};

use hsup_proto::driver::exit_status::How;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
};
use tokio_rustls::TlsAcceptor;

use super::fixture::{Driver, Dyno, Engine, Namespaces, is_greeted, output};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for 127.0.0.1 and its key.
fn signed(by: &Issuer, purpose: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    params.extended_key_usages = vec![purpose];
    (params.signed_by(&key, by).unwrap(), key)
}

/// Serves the engine over TLS to whom the authority knows; the address.
async fn serve(engine: &Engine, by: &Issuer) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(by.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let (certificate, key) = signed(by, ExtendedKeyUsagePurpose::ServerAuth);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = engine.socket();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, socket) = (acceptor.clone(), socket.clone());
            tokio::spawn(async move {
                // Who is not known, or has gone, is not served.
                if let Ok(mut caller) = acceptor.accept(tcp).await {
                    let mut engine = UnixStream::connect(socket).await.unwrap();
                    drop(copy_bidirectional(&mut caller, &mut engine).await);
                }
            });
        }
    });
    format!("tcp://{address}")
}

fn write_certificates(folder: &Path, ca: &Issuer, by: &Issuer) {
    let (certificate, key) = signed(by, ExtendedKeyUsagePurpose::ClientAuth);
    let write = |name: &str, text: String| {
        #[expect(clippy::disallowed_methods, reason = "nobody reads it yet")]
        fs::write(folder.join(name), text).unwrap();
    };
    write("ca.pem", ca.pem());
    write("cert.pem", certificate.pem());
    write("key.pem", key.serialize_pem());
}

fn with_tls(folder: &TempDir) -> Vec<(&'static str, String)> {
    let path = folder.path().to_str().unwrap().to_owned();
    vec![
        ("DOCKER_TLS_VERIFY", "1".to_owned()),
        ("DOCKER_CERT_PATH", path),
    ]
}

/// A dyno with an input of its own, so that its streams go the same way as the calls.
pub(crate) async fn runs_a_dyno(engine: &Engine, driver: &Driver) {
    let mut client = driver.client().await;
    let dyno = Dyno::with_input(engine, "d-far", "read -r word; echo \"$word\"; exit 3");
    dyno.start(&mut client).await;
    dyno.write("hello\n");
    let mut all = Vec::new();
    dyno.read(&mut all, 6).await;
    assert_eq!(all, b"hello\n");
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(3)));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn an_engine_over_tls_runs_dynos() {
    let engine = Engine::start().await;
    let authority = authority();
    let address = serve(&engine, &authority).await;
    let folder = TempDir::with_prefix("hsup").unwrap();
    write_certificates(folder.path(), &authority, &authority);
    let driver = Driver::reaching(&address, with_tls(&folder));
    runs_a_dyno(&engine, &driver).await;
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn an_engine_that_nobody_vouches_for_is_none() {
    let engine = Engine::start().await;
    let (known, unknown) = (authority(), authority());
    let address = serve(&engine, &known).await;
    // The engine is another than it should be; the caller is one whom the engine does not know.
    let cases = [
        (&unknown, &known, "invalid peer certificate"),
        (&known, &unknown, "received fatal alert"),
    ];
    for (ca, by, expected) in cases {
        let folder = TempDir::with_prefix("hsup").unwrap();
        write_certificates(folder.path(), ca, by);
        let driver = Driver::reaching(&address, with_tls(&folder));
        let info = driver.info(|info| !info.ready).await;
        assert!(info.message.contains(expected), "{}", info.message);
    }
}

const NEAR: &str = "10.98.0.1";
const FAR: &str = "10.98.0.2";

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_dyno_of_another_machine_is_reached_there() {
    let [near, far] = [Namespaces::new(), Namespaces::new()];
    let cable = format!("link add eth0 type veth peer name eth0 netns {}", far.first);
    output(near.in_network("ip").args(cable.split(' ')));
    for (machine, address) in [(&near, NEAR), (&far, FAR)] {
        let address = format!("address add {address}/24 dev eth0");
        for line in [&address, "link set eth0 up"] {
            output(machine.in_network("ip").args(line.split(' ')));
        }
    }
    let listens = format!("--host=tcp://{FAR}:2375");
    let engine = Engine::on(far, &[&listens, "--tls=false"]).await;
    let driver = Driver::on(Some(near), &format!("tcp://{FAR}"), Vec::new());
    let mut client = driver.client().await;
    let dyno = Dyno::new(&engine, "d-far", "exec nc -ll -p $PORT -e echo hello");
    dyno.start(&mut client).await;
    let info = dyno.ip_info(&mut client).await;
    assert_eq!(info.ip, FAR);
    is_greeted(driver.inside("timeout"), &info);
    dyno.kill(&mut client).await;
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}
