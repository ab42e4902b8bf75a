//! Both faces, over a real socket, with a supervisor that only pretends.

use std::{
    fs,
    os::unix::{fs::FileTypeExt as _, net::UnixStream as StdUnixStream},
    path::PathBuf,
};

use hsup_proto::control::{
    EventsRequest, ListReleasesRequest, events_response::Event, supervisor_client::SupervisorClient,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinHandle,
};
use tonic::{
    Code,
    transport::{Channel, Endpoint, Uri},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::{
    fake::{Fake, snapshot},
    *,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// HTTP/2's own, far below what tonic's clients ask for.
const SMALL_WINDOW: Option<u32> = Some(65_535);

struct Server {
    path: PathBuf,
    fake: Fake,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        Self::start_with(|path| ControlListener::bind(path).unwrap())
    }

    fn start_with(bind: impl FnOnce(&Path) -> ControlListener) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hc")
            .tempdir_in("/tmp")
            .unwrap();
        let path = dir.path().join("hsup.sock");
        let fake = Fake::default();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(bind(&path), fake.clone(), shutdown.clone()));
        Self {
            path,
            fake,
            shutdown,
            task,
            dir,
        }
    }

    async fn channel(&self) -> Channel {
        self.channel_with(None).await
    }

    async fn channel_with(&self, window: Option<u32>) -> Channel {
        let path = self.path.clone();
        Endpoint::from_static("http://localhost")
            .initial_stream_window_size(window)
            .initial_connection_window_size(window)
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .unwrap()
    }

    async fn client(&self) -> SupervisorClient<Channel> {
        SupervisorClient::new(self.channel().await)
    }

    /// Sends a request as text and returns the whole answer as text.
    async fn http(&self, head: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("no answer")
            .unwrap();
        answer
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended.expect("the server did not end").unwrap().unwrap();
        assert_eq!(
            fs::read_dir(self.dir.path()).unwrap().count(),
            0,
            "files were left"
        );
    }
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn a_grpc_call_is_answered() {
    let server = Server::start();
    let mut client = server.client().await;
    let status = client
        .get_status(GetStatusRequest::default())
        .await
        .unwrap();
    assert_eq!(status.into_inner(), snapshot());
    client.shutdown(ShutdownRequest::default()).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn errors_have_the_codes_of_the_contract() {
    let server = Server::start();
    let mut client = server.client().await;
    let invalid = client.scale(ScaleRequest::default()).await.unwrap_err();
    assert_eq!(
        (invalid.code(), invalid.message()),
        (Code::InvalidArgument, "no process type `x`; known: web")
    );
    let ending = client.start(StartRequest::default()).await.unwrap_err();
    assert_eq!(
        (ending.code(), ending.message()),
        (Code::Unavailable, "hsup is shutting down")
    );
    let driver = client.restart(RestartRequest::default()).await.unwrap_err();
    assert_eq!(
        (driver.code(), driver.message()),
        (Code::Unavailable, "driver: gone")
    );
    let rejected = client
        .apply_release(ApplyReleaseRequest::default())
        .await
        .unwrap_err();
    assert_eq!(rejected.code(), Code::FailedPrecondition);
    let long = client
        .list_releases(ListReleasesRequest {})
        .await
        .unwrap_err();
    assert_eq!(long.code(), Code::NotFound);
    assert!(long.message().len() < 5000, "{}", long.message().len());
    let request = LogsRequest {
        source: "nobody".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        client.logs(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    server.stop().await;
}

#[tokio::test]
async fn reflection_lists_the_service_and_describes_it() {
    let server = Server::start();
    let mut client = ServerReflectionClient::new(server.channel().await);
    let ask = |request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(
            "hsup.control.v1.Supervisor".to_owned(),
        )),
    ];
    let mut answers = client
        .server_reflection_info(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let first = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = first else {
        panic!("{first:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["hsup.control.v1.Supervisor"]);
    let second = answers.message().await.unwrap().unwrap().message_response;
    assert!(
        matches!(second, Some(MessageResponse::FileDescriptorResponse(_))),
        "{second:?}"
    );
    drop((answers, client));
    server.stop().await;
}

#[tokio::test]
async fn the_originals_paths_answer_on_the_same_socket() {
    let server = Server::start();
    let health = server.http("GET /health", "").await;
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n"), "{health}");
    assert_eq!(body(&health), "OK");

    let status = server.http("GET /status", "").await;
    assert!(status.starts_with("HTTP/1.1 200 OK\r\n"), "{status}");
    assert!(
        status.contains("content-type: application/json\r\n"),
        "{status}"
    );
    let value: serde_json::Value = serde_json::from_str(body(&status)).unwrap();
    let expected =
        serde_json::json!({ "Status": "Started", "IPAddress": "127.0.0.1", "Port": 5001 });
    assert_eq!(value["Processes"]["web"], expected);
    assert_eq!(value["Processes"].as_object().unwrap().len(), 5, "{value}");
    server.stop().await;
}

#[tokio::test]
async fn stop_names_what_it_stopped_and_leaves_out_what_it_does_not_know() {
    let server = Server::start();
    let wanted = r#"{"Processes":["web","nobody","worker.1","","../x"]}"#;
    let answer = server.http("POST /control/stop", wanted).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(
        body(&answer),
        "{\"StoppedProcesses\":[\"web\",\"worker.1\"]}\n"
    );
    let asked: Vec<_> = server.fake.stops.lock().unwrap().drain(..).collect();
    let request = |name: &str| StopRequest {
        select: vec![name.to_owned()],
        no_wait: true,
        ..Default::default()
    };
    let expected = ["web", "nobody", "worker.1"].map(request);
    assert_eq!(asked, expected, "what is no name was asked for");

    for nothing in ["{}", r#"{"Processes":[]}"#, r#"{"Processes":null}"#] {
        let answer = server.http("POST /control/stop", nothing).await;
        assert_eq!(body(&answer), "{\"StoppedProcesses\":[]}\n", "{nothing}");
    }
    assert_eq!(*server.fake.stops.lock().unwrap(), []);
    server.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_as_the_original_did() {
    let server = Server::start();
    for bad in ["", "{", "[]", r#"[["web"]]"#, r#"{"Processes":"web"}"#] {
        let answer = server.http("POST /control/stop", bad).await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{bad}: {answer}");
    }
    assert_eq!(*server.fake.stops.lock().unwrap(), []);
    for (wrong, allow) in [
        ("POST /status", "allow: GET,HEAD\r\n"),
        ("GET /control/stop", "allow: POST\r\n"),
        ("PUT /health", "allow: GET,HEAD\r\n"),
    ] {
        let answer = server.http(wrong, "").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{wrong}: {answer}");
        assert!(answer.contains(allow), "{wrong}: {answer}");
    }
    for unknown in ["GET /", "GET /nothing", "POST /status/x"] {
        let answer = server.http(unknown, "").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{unknown}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_grpc_service_is_unimplemented() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut client = hsup_proto::driver::dyno_driver_client::DynoDriverClient::new(channel);
    let error = client
        .get_info(hsup_proto::driver::GetInfoRequest::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn streams_end_with_the_server() {
    let server = Server::start();
    let mut client = server.client().await;
    let mut events = client.events(EventsRequest {}).await.unwrap().into_inner();
    let first = events.message().await.unwrap().unwrap();
    assert_eq!(first.event, Some(Event::Snapshot(snapshot())));
    server.shutdown.cancel();
    let end = tokio::time::timeout(PATIENCE, events.message()).await;
    assert_eq!(end.expect("the stream did not end").unwrap(), None);
    server.stop().await;
}

#[tokio::test]
async fn clients_that_have_stopped_reading_do_not_keep_the_server() {
    let server = Server::start();
    let mut client = SupervisorClient::new(server.channel_with(SMALL_WINDOW).await);
    let mut flood = client
        .logs(LogsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(flood.message().await.unwrap().is_some());
    // The server fills the client's window, and then has to wait for it.
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    // Connected, and silent.
    let silent = StdUnixStream::connect(&server.path).unwrap();
    server.stop().await;
    drop((flood, silent));
}

#[tokio::test]
async fn a_socket_that_was_handed_in_is_served_and_left_where_it_is() {
    let server = Server::start_with(|path| {
        let bound = std::os::unix::net::UnixListener::bind(path).unwrap();
        let listener = ControlListener::taken_over(bound).unwrap();
        assert_eq!(listener.path(), Some(path));
        listener
    });
    assert_eq!(body(&server.http("GET /health", "").await), "OK");
    server.shutdown.cancel();
    server.task.await.unwrap().unwrap();
    assert!(
        fs::symlink_metadata(&server.path)
            .unwrap()
            .file_type()
            .is_socket()
    );
}

/// Time stands still while somebody blocks: what the server waits for is only what it is sent.
#[tokio::test(start_paused = true)]
async fn who_was_connected_to_a_socket_that_outlives_hsup_is_answered_at_its_end() {
    fn ask(mut stream: StdUnixStream) -> String {
        let mut answer = String::new();
        std::io::Write::write_all(&mut stream, b"GET /health HTTP/1.0\r\n\r\n").unwrap();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        body(&answer).to_owned()
    }
    let server = Server::start_with(|path| {
        let bound = std::os::unix::net::UnixListener::bind(path).unwrap();
        ControlListener::taken_over(bound).unwrap()
    });
    let (path, shutdown) = (server.path.clone(), server.shutdown.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let [first, second] = [(); 2].map(|()| StdUnixStream::connect(&path).unwrap());
        // When this one is answered the server has the other one, too.
        assert_eq!(ask(second), "OK");
        shutdown.cancel();
        ask(first)
    });
    assert_eq!(asked.await.unwrap(), "OK");
    server.task.await.unwrap().unwrap();
}
