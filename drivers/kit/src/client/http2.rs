//! The HTTP/2 below a [`Client`](super::Client).
//!
//! A general client keeps a task and two channels for every call that is under way: over
//! three kilobytes for each of a thousand Waits. Here a call is one future over h2, and
//! only a call that goes on sending while it is answered (Attach) has a task.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Connection, ResponseFuture, SendRequest},
};
use http_body::{Body as _, Frame};
use tokio::net::UnixStream;
use tonic::{Status, body::Body, codegen::http};

/// What one stream may have in flight towards us, and all of them.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// Sends calls over one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Http2 {
    sender: SendRequest<Bytes>,
}

/// Speaks HTTP/2 over the stream; the connection's bytes move while it is polled.
pub(super) async fn handshake(
    stream: UnixStream,
) -> Result<(Http2, Connection<UnixStream>), h2::Error> {
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false)
        .handshake(stream)
        .await?;
    Ok((Http2 { sender }, connection))
}

impl tower::Service<http::Request<Body>> for Http2 {
    type Response = http::Response<Answer>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.sender.poll_ready(cx).map_err(lost)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let sent = self
            .sender
            .send_request(http::Request::from_parts(parts, ()), false);
        match sent {
            Ok((response, stream)) => Box::pin(call(response, stream, body)),
            Err(error) => Box::pin(async { Err(lost(error)) }),
        }
    }
}

async fn call(
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    body: Body,
) -> Result<http::Response<Answer>, Status> {
    send_or_spawn(stream, body).await;
    let answer = response.await.map_err(lost)?;
    Ok(answer.map(|stream| Answer { stream }))
}

/// Sends what there is of the body; what comes later is sent by a task.
async fn send_or_spawn(stream: SendStream<Bytes>, body: Body) {
    let mut sending = Box::pin(send(stream, body));
    let all_sent = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx).is_ready())).await;
    if !all_sent {
        tokio::spawn(sending);
    }
}

/// Sends the body to its end, or until the driver wants no more of it.
async fn send(mut stream: SendStream<Bytes>, body: Body) {
    let mut body = pin!(body);
    let mut first = true;
    loop {
        let next = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Next::Reset),
            Poll::Pending => body.as_mut().poll_frame(cx).map(Next::of),
        });
        let sent = match next.await {
            Next::Data(data) => {
                // The first piece of a call fits in what it has in memory anyway; one behind
                // it waits until the driver has taken those before.
                if !std::mem::take(&mut first) && !has_room(&mut stream).await {
                    return;
                }
                stream.send_data(data, false)
            }
            Next::End => {
                drop(stream.send_data(Bytes::new(), true));
                return;
            }
            Next::Failed => {
                stream.send_reset(h2::Reason::CANCEL);
                return;
            }
            Next::Reset => return,
        };
        // The answer, or the end of the connection, says what happened.
        if sent.is_err() {
            return;
        }
    }
}

enum Next {
    Data(Bytes),
    End,
    Failed,
    Reset,
}

impl Next {
    fn of(frame: Option<Result<Frame<Bytes>, Status>>) -> Self {
        match frame {
            None => Self::End,
            Some(Err(_)) => Self::Failed,
            // A gRPC request has no trailers.
            Some(Ok(frame)) => frame.into_data().map_or(Self::End, Self::Data),
        }
    }
}

/// Waits until everything sent has been taken and there is room for more; `false` if there
/// never will be.
async fn has_room(stream: &mut SendStream<Bytes>) -> bool {
    stream.reserve_capacity(1);
    poll_fn(|cx| stream.poll_capacity(cx))
        .await
        .is_some_and(|capacity| capacity.is_ok())
}

/// What a driver answers.
#[derive(Debug)]
pub struct Answer {
    stream: RecvStream,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = ready!(self.stream.poll_data(cx)) {
            let data = data.map_err(lost)?;
            // It is the caller's now: the driver may send as much again.
            drop(self.stream.flow_control().release_capacity(data.len()));
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(lost)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// Whatever ends a call below gRPC is the loss of the connection.
fn lost(error: h2::Error) -> Status {
    let mut status = Status::unavailable("the connection to the driver was lost");
    status.set_source(Arc::new(error));
    status
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::mpsc, time::timeout};
    use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
    use tower::{Service as _, ServiceExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A client, and the server's end of its connection.
    async fn connected() -> (Http2, h2::server::Connection<UnixStream, Bytes>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (client, server) = tokio::join!(handshake(ours), h2::server::handshake(theirs));
        let (client, connection) = client.unwrap();
        tokio::spawn(connection);
        (client, server.unwrap())
    }

    /// A request whose body is what comes through the channel.
    fn streamed(pieces: mpsc::Receiver<Bytes>) -> http::Request<Body> {
        let frames = ReceiverStream::new(pieces).map(|piece| Ok::<_, Status>(Frame::data(piece)));
        let body = Body::new(http_body_util::StreamBody::new(frames));
        http::Request::post("http://localhost/x")
            .body(body)
            .unwrap()
    }

    async fn start(
        client: &mut Http2,
        request: http::Request<Body>,
    ) -> tokio::task::JoinHandle<Result<http::Response<Answer>, Status>> {
        tokio::spawn(client.ready().await.unwrap().call(request))
    }

    #[tokio::test]
    async fn a_body_goes_on_after_the_answer_has_begun_and_waits_for_its_reader() {
        let (mut client, mut server) = connected().await;
        let (pieces, body) = mpsc::channel(1);
        let answering = start(&mut client, streamed(body)).await;
        let (request, mut respond) = server.accept().await.unwrap().unwrap();
        let answer = respond.send_response(http::Response::new(()), false);
        let _answer = answer.unwrap();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        let _answering = answering.await.unwrap().unwrap();

        // Nobody reads: what is sent ahead is bounded by the window, and the rest waits.
        let piece = Bytes::from(vec![b'x'; 64 << 10]);
        let filling = async {
            for _ in 0..1000 {
                pieces.send(piece.clone()).await.unwrap();
            }
        };
        assert!(timeout(Duration::from_millis(200), filling).await.is_err());

        let mut stream = request.into_body();
        let mut seen = 0;
        drop(pieces);
        while let Some(data) = timeout(PATIENCE, stream.data()).await.unwrap() {
            let data = data.unwrap();
            seen += data.len();
            stream.flow_control().release_capacity(data.len()).unwrap();
        }
        assert!(seen > 0 && seen % piece.len() == 0, "{seen}");
    }

    #[tokio::test]
    async fn a_driver_that_wants_no_more_ends_the_sending() {
        let (mut client, mut server) = connected().await;
        let (pieces, body) = mpsc::channel(1);
        let answering = start(&mut client, streamed(body)).await;
        let (_request, mut respond) = server.accept().await.unwrap().unwrap();
        respond.send_reset(h2::Reason::CANCEL);
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        let status = answering.await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        timeout(PATIENCE, pieces.closed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_driver_that_dies_fails_the_call() {
        let (mut client, mut server) = connected().await;
        let (_pieces, body) = mpsc::channel(1);
        let answering = start(&mut client, streamed(body)).await;
        let accepted = server.accept().await.unwrap().unwrap();
        drop((accepted, server));
        let status = timeout(PATIENCE, answering)
            .await
            .unwrap()
            .unwrap()
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(client.ready().await.is_err());
    }
}
