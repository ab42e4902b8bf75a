//! Calls that the generated client cannot make: another authority, an unknown method, a message
//! from the future.

use std::path::{Path, PathBuf};

use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::{Uri, uri::PathAndQuery},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// A `GetInfo` request as a later supervisor might send it: with a field that `v1` lacks.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct LaterGetInfoRequest {
    #[prost(string, tag = "1")]
    pub(crate) supervisor_version: String,
    #[prost(string, tag = "1000")]
    pub(crate) added_later: String,
}

/// What is no request of `v1`, though it begins like one: its first field, the `dyno_id`, is a
/// number.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct WrongType {
    #[prost(uint64, tag = "1")]
    pub(crate) dyno_id: u64,
}

/// The same, with bytes that are no text.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct NoText {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) dyno_id: Vec<u8>,
}

/// Calls `path` on the driver at `socket` with `authority` as the `:authority`.
pub(crate) async fn unary<Req, Res>(
    socket: &Path,
    authority: &str,
    path: &'static str,
    request: Req,
) -> Result<Res, Status>
where
    Req: prost::Message + 'static,
    Res: prost::Message + Default + 'static,
{
    let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(unavailable)?;
    let socket = PathBuf::from(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move {
            let stream = UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let channel: Channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(unavailable)?;
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(unavailable)?;
    let path = PathAndQuery::from_static(path);
    let reply = grpc
        .unary(
            Request::new(request),
            path,
            ProstCodec::<Req, Res>::default(),
        )
        .await?;
    Ok(reply.into_inner())
}
