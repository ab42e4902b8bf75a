//! A driver in the test's own process: the calls that a test needs, and the clock is the test's.

use std::{io, sync::Arc};

use hsup_driver_kit::client::{Capabilities, Connection};
use hsup_proto::driver::{
    GetInfoResponse,
    dyno_driver_server::{DynoDriver, DynoDriverServer},
};
use tokio::{net::UnixStream, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::{Link, Up};

/// Serves `driver`, and answers what connects to it.
pub(crate) async fn serve(driver: impl DynoDriver) -> Arc<Up> {
    let driver = Arc::new(driver);
    let connect = async || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let service = DynoDriverServer::from_arc(Arc::clone(&driver));
        let incoming = tokio_stream::once(Ok::<_, io::Error>(theirs));
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        Connection::over(ours, None).await.unwrap()
    };
    let info = GetInfoResponse {
        name: "fake".to_owned(),
        ready: true,
        ..GetInfoResponse::default()
    };
    Arc::new(Up {
        capabilities: Capabilities::of(&info),
        info,
        socket: "/nowhere".into(),
        child: true,
        silent: false,
        child_pid: None,
        control: connect().await,
        waits: connect().await,
        gone: CancellationToken::new(),
    })
}

/// A link to `driver` that stays up.
pub(crate) async fn link(driver: impl DynoDriver) -> watch::Receiver<Link> {
    let (publish, state) = watch::channel(Link::Up(serve(driver).await));
    // The link's task would live as long as the process.
    std::mem::forget(publish);
    state
}
