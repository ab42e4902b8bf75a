//! The client's side against a real control socket, with a supervisor that only pretends.

use std::{
    os::unix::{fs::DirBuilderExt as _, net::UnixListener},
    path::PathBuf,
    time::Duration,
};

use hsup_core::{
    control::{Control, ControlError, ControlListener, ServeError, serve},
    name::Selector,
    paths::Paths,
};
use hsup_proto::control::{
    ApplyReleaseRequest, ApplyReleaseResponse, Dyno, DynoState, EventsResponse, GetDriverResponse,
    GetStatusRequest, GetStatusResponse, ListReleasesResponse, LogLine, LogsRequest, LogsResponse,
    PlanReleaseRequest, PlanReleaseResponse, Process, Release, ReleaseState, RestartRequest,
    RestartResponse, RollbackRequest, RollbackResponse, ScaleRequest, ScaleResponse,
    ShutdownRequest, StartRequest, StartResponse, StopRequest, StopResponse,
    events_response::Event, scale_request::change::How,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;

use super::{
    Outcome,
    args::{LogsArgs, Output, PsArgs},
    connect::{ConnectError, Supervisor, connect},
    dyno::tests::{crashed, web},
    error::CtlError,
    events, formation, logs, ps, releases, status, version,
};
use crate::look::tests::plain;

const PATIENCE: Duration = Duration::from_secs(30);

/// Knows `web.1`, which is up, and `web.2`, which crashed, and the type `idle`, of which none
/// is wanted; takes in no release.
#[derive(Clone)]
struct Fake {
    app: &'static str,
}

fn formation(web: u32) -> Vec<Process> {
    vec![Process {
        process_type: "web".to_owned(),
        quantity: web,
        command: String::new(),
    }]
}

/// Whether it is about the type without dynos.
fn is_idle(select: &[String]) -> bool {
    select == ["idle"]
}

impl Control for Fake {
    async fn status(&self, request: GetStatusRequest) -> Result<GetStatusResponse, ControlError> {
        let selected = |dyno: &Dyno| {
            let names = [&dyno.name, &dyno.process_type];
            request.select.is_empty() || request.select.iter().any(|name| names.contains(&name))
        };
        for name in &request.select {
            let selector: Selector = name
                .parse()
                .map_err(|error| ControlError::Invalid(format!("{error}")))?;
            let process_type = selector.process_type().as_str();
            if !["web", "idle"].contains(&process_type) {
                return Err(ControlError::NotFound("no such dyno".to_owned()));
            }
        }
        let mut dynos = vec![web(1), crashed()];
        dynos.retain(selected);
        for dyno in &mut dynos {
            if request.last_lines > 0 && dyno.crash.is_some() {
                dyno.crash_lines = (1..=6).map(|number| format!("frame {number}")).collect();
            }
        }
        Ok(GetStatusResponse {
            app: self.app.to_owned(),
            all_up: dynos.iter().all(|dyno| dyno.state() == DynoState::Up),
            hsup_version: "9.9.9".to_owned(),
            dynos,
            ..GetStatusResponse::default()
        })
    }

    async fn scale(&self, request: ScaleRequest) -> Result<ScaleResponse, ControlError> {
        let quantity = match request.changes.first().and_then(|change| change.how) {
            None => 2,
            Some(How::To(to)) => to,
            Some(How::By(by)) => 2_u32.saturating_add_signed(by),
        };
        Ok(ScaleResponse {
            formation: formation(quantity),
        })
    }

    async fn start(&self, request: StartRequest) -> Result<StartResponse, ControlError> {
        if is_idle(&request.select) {
            return Ok(StartResponse::default());
        }
        Err(ControlError::ShuttingDown)
    }

    async fn stop(&self, request: StopRequest) -> Result<StopResponse, ControlError> {
        if is_idle(&request.select) {
            return Ok(StopResponse::default());
        }
        Ok(StopResponse {
            dynos: vec!["web.1".to_owned()],
        })
    }

    async fn restart(&self, request: RestartRequest) -> Result<RestartResponse, ControlError> {
        if is_idle(&request.select) {
            return Ok(RestartResponse::default());
        }
        Err(ControlError::Driver("gone".to_owned()))
    }

    async fn list_releases(&self) -> Result<ListReleasesResponse, ControlError> {
        let rejected = Release {
            version: 7,
            state: ReleaseState::Rejected.into(),
            reason: "web.1 did not come up".to_owned(),
            last_lines: vec!["KeyError".to_owned()],
            ..Release::default()
        };
        Ok(ListReleasesResponse {
            releases: vec![rejected],
        })
    }

    async fn apply(
        &self,
        request: ApplyReleaseRequest,
    ) -> Result<ApplyReleaseResponse, ControlError> {
        if request.json == b"busy" {
            let busy = "another release is being applied".to_owned();
            return Err(ControlError::Rejected(busy));
        }
        if !request.no_wait {
            let why = "release v7 was rejected: web.1 did not come up".to_owned();
            return Err(ControlError::Rejected(why));
        }
        let release = Release {
            version: 8,
            state: ReleaseState::Building.into(),
            ..Release::default()
        };
        Ok(ApplyReleaseResponse {
            release: Some(release),
            ..ApplyReleaseResponse::default()
        })
    }

    async fn rollback(&self, _: RollbackRequest) -> Result<RollbackResponse, ControlError> {
        Err(ControlError::NotFound("no release v9".to_owned()))
    }

    async fn plan(&self, _: PlanReleaseRequest) -> Result<PlanReleaseResponse, ControlError> {
        Ok(PlanReleaseResponse::default())
    }

    async fn driver(&self) -> Result<GetDriverResponse, ControlError> {
        Ok(GetDriverResponse::default())
    }

    async fn shutdown(&self, _: ShutdownRequest) -> Result<(), ControlError> {
        Ok(())
    }

    async fn logs(
        &self,
        request: LogsRequest,
    ) -> Result<impl Stream<Item = LogsResponse> + Send + 'static, ControlError> {
        let lines = vec![LogLine {
            at_unix_us: 1,
            source: "app".to_owned(),
            dyno: "web.1".to_owned(),
            line: b"\xff hello".to_vec(),
            stderr: false,
        }];
        let first = tokio_stream::once(LogsResponse { lines, dropped: 0 });
        let rest: Box<dyn Stream<Item = LogsResponse> + Send + Unpin> = if request.follow {
            Box::new(tokio_stream::pending())
        } else {
            Box::new(tokio_stream::empty())
        };
        Ok(first.chain(rest))
    }

    fn events(&self) -> impl Stream<Item = EventsResponse> + Send + 'static {
        let first = EventsResponse {
            at_unix_ms: 1,
            event: Some(Event::Dyno(web(1))),
        };
        tokio_stream::once(first).chain(tokio_stream::pending())
    }
}

/// Fake hsups in a machine of their own.
pub(super) struct Machine {
    /// Removes the sockets' directory.
    _dir: tempfile::TempDir,
    paths: Paths,
    sockets: PathBuf,
}

/// One fake hsup.
pub(super) struct Served {
    socket: PathBuf,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    pub(super) async fn end(self) {
        self.shutdown.cancel();
        let ended = timeout(PATIENCE, self.task).await;
        ended.expect("the fake hsup did not end").unwrap().unwrap();
    }
}

impl Machine {
    pub(super) fn new() -> Self {
        // Short enough for a socket, wherever TMPDIR points.
        let dir = tempfile::Builder::new()
            .prefix("hc")
            .tempdir_in("/tmp")
            .unwrap();
        let runtime = dir.path().join("x");
        let sockets = runtime.join("hsup");
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&sockets)
            .unwrap();
        let paths = Paths {
            xdg_runtime_dir: Some(runtime),
            run: dir.path().join("run"),
            tmp: dir.path().join("tmp"),
            ..Paths::from_env()
        };
        Self {
            _dir: dir,
            paths,
            sockets,
        }
    }

    pub(super) fn serve(&self, app: &'static str) -> Served {
        self.serve_at(&format!("{app}.sock"), app)
    }

    fn serve_at(&self, name: &str, app: &'static str) -> Served {
        let socket = self.sockets.join(name);
        let listener = ControlListener::bind(&socket).unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Fake { app }, shutdown.clone()));
        Served {
            socket,
            shutdown,
            task,
        }
    }

    /// A socket whose server was killed.
    fn leave_behind(&self, name: &str) -> PathBuf {
        let path = self.sockets.join(name);
        drop(UnixListener::bind(&path).unwrap());
        // What another test spawns meanwhile holds it too, until its `exec`.
        while std::os::unix::net::UnixStream::connect(&path).is_ok() {}
        path
    }

    pub(super) async fn connect(&self, app: Option<&str>) -> Result<Supervisor, ConnectError> {
        connect(None, app, &self.paths).await
    }
}

fn ps_of(names: &[&str]) -> PsArgs {
    PsArgs {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        output: None,
        quiet: true,
    }
}

fn logs_args(tail: bool) -> LogsArgs {
    LogsArgs {
        tail,
        lines: None,
        dyno_name: Vec::new(),
        process_type: Vec::new(),
        source: None,
        output: Output::Text,
    }
}

#[tokio::test]
async fn the_only_hsup_that_answers_is_meant() {
    let machine = Machine::new();
    machine.leave_behind("old.sock");
    let served = machine.serve("shop");
    let supervisor = machine.connect(None).await.unwrap();
    assert_eq!(supervisor.socket, served.socket);
    let ps = ps::run(supervisor, ps_of(&[]), &plain()).await.unwrap();
    assert_eq!((ps.text.as_str(), ps.code), ("web.1\nweb.2\n", 3));
    served.end().await;
}

#[tokio::test]
async fn of_several_the_app_says_which() {
    let machine = Machine::new();
    let (blog, shop) = (machine.serve("blog"), machine.serve("shop"));
    let error = machine.connect(None).await.unwrap_err();
    let sockets = machine.sockets.display();
    let expected =
        format!("several hsups run\n  blog  {sockets}/blog.sock\n  shop  {sockets}/shop.sock");
    assert_eq!(error.to_string(), expected);
    assert!(error.hint().unwrap().contains("`hsupctl -a NAME`"));

    let supervisor = machine.connect(Some("shop")).await.unwrap();
    assert_eq!(supervisor.socket, shop.socket);

    let error = machine.connect(Some("wiki")).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("hsup runs for other apps only, not for `wiki`\n"),
        "{text}"
    );

    // A socket that was named must be the app's, too.
    let named = connect(Some(&blog.socket), Some("shop"), &machine.paths).await;
    assert!(matches!(named, Err(ConnectError::OtherApps { .. })));
    blog.end().await;
    shop.end().await;
}

#[tokio::test]
async fn with_none_it_says_where_it_looked_and_how_to_start_one() {
    let machine = Machine::new();
    let stale = machine.leave_behind("old.sock");
    let error = CtlError::from(machine.connect(None).await.unwrap_err());
    let text = error.to_string();
    assert!(
        text.starts_with("no hsup runs: looked for its control socket in "),
        "{text}"
    );
    assert!(text.contains(&*machine.sockets.to_string_lossy()), "{text}");
    assert!(error.hint().unwrap().contains("`hsup start`"));
    assert_eq!(error.exit_code(), 4);

    let named = connect(Some(&stale), None, &machine.paths).await;
    assert!(matches!(named, Err(ConnectError::Connect { .. })));
    let long = PathBuf::from(format!("/{}", "x".repeat(200)));
    let long = connect(Some(&long), None, &machine.paths).await;
    assert!(matches!(long, Err(ConnectError::TooLong { .. })));

    let version = version::run(machine.connect(None).await).await.unwrap();
    assert!(
        version.text.ends_with("hsup not running\n"),
        "{}",
        version.text
    );
}

#[tokio::test]
async fn a_server_of_another_kind_is_no_hsup() {
    let machine = Machine::new();
    for (name, answer) in [
        (
            "http",
            &b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"[..],
        ),
        ("ssh", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("mute", b""),
    ] {
        let path = machine.sockets.join(format!("{name}.sock"));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut preface = [0; 24];
                stream.read_exact(&mut preface).await.unwrap();
                stream.write_all(answer).await.unwrap();
            }
        });
        let error = connect(Some(&path), None, &machine.paths).await;
        let error = CtlError::from(error.unwrap_err());
        let expected = format!(
            "what listens at `{}` is no hsup: it does not speak gRPC",
            path.display()
        );
        assert_eq!((error.to_string(), error.exit_code()), (expected, 4));
        let none = machine.connect(None).await.unwrap_err();
        assert!(matches!(none, ConnectError::NoneRuns { .. }), "{none}");
        server.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_is_waited_for_once() {
    let machine = Machine::new();
    // The kernel accepts for them.
    let listeners = ["a.sock", "b.sock"].map(|name| {
        let path = machine.sockets.join(name);
        (UnixListener::bind(&path).unwrap(), path)
    });
    let begin = Instant::now();
    let error = CtlError::from(machine.connect(None).await.unwrap_err());
    assert_eq!(begin.elapsed().as_secs(), 5, "both at once");
    let silent = |path: &std::path::Path| {
        format!(
            "the hsup at `{}` does not answer: waited 5 seconds",
            path.display()
        )
    };
    assert_eq!(error.to_string(), silent(&listeners[0].1));
    assert_eq!(error.exit_code(), 4);
    let named = connect(Some(&listeners[1].1), None, &machine.paths).await;
    assert_eq!(named.unwrap_err().to_string(), silent(&listeners[1].1));

    // Beside one that answers it may be the one that is meant.
    let served = machine.serve("shop");
    let several = machine.connect(None).await.unwrap_err().to_string();
    assert_eq!(several.lines().count(), 4, "{several}");
    let begin = Instant::now();
    let supervisor = machine.connect(Some("shop")).await.unwrap();
    assert_eq!(supervisor.socket, served.socket);
    assert!(begin.elapsed().as_secs() < 1, "{:?}", begin.elapsed());
    let error = CtlError::from(machine.connect(Some("blog")).await.unwrap_err());
    let [a, b] = listeners.each_ref().map(|(_, path)| path.display());
    let expected = format!(
        "no hsup that answers runs for `blog`\n  shop  {}\n\
         It may be the one at `{a}` or `{b}`, which does not answer: waited 5 seconds",
        served.socket.display()
    );
    assert_eq!((error.to_string(), error.exit_code()), (expected, 4));
    served.end().await;
}

#[tokio::test]
async fn of_two_hsups_of_one_app_none_is_meant() {
    let machine = Machine::new();
    let served = [machine.serve("shop"), machine.serve_at("twin.sock", "shop")];
    let error = machine.connect(Some("shop")).await.unwrap_err();
    let [shop, twin] = served.each_ref().map(|one| one.socket.display());
    let expected = format!("several hsups run\n  shop  {shop}\n  shop  {twin}");
    assert_eq!(error.to_string(), expected);
    let hint = "say which: `hsupctl -s PATH`";
    assert_eq!(error.hint().unwrap(), hint);
    for one in served {
        one.end().await;
    }
}

#[tokio::test]
async fn the_exit_status_says_whether_all_is_up() {
    let machine = Machine::new();
    let look = plain();
    let served = machine.serve("shop");
    let supervisor = machine.connect(None).await.unwrap();
    for (names, code) in [(&["web.1"][..], 0), (&["web"][..], 3)] {
        let ps = ps::run(supervisor.clone(), ps_of(names), &plain())
            .await
            .unwrap();
        assert_eq!(ps.code, code, "ps {names:?}");
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let status = status::run(supervisor.clone(), names, &plain())
            .await
            .unwrap();
        assert_eq!(status.code, code, "{}", status.text);
    }
    for (names, said, code) in [
        (&["clock"][..], "No clock dynos on shop\n", 4),
        (&["../x"], "No ../x dynos on shop\n", 4),
        (&["idle"], "No idle dynos on shop\n", 0),
    ] {
        let args = PsArgs {
            quiet: false,
            ..ps_of(names)
        };
        let ps = ps::run(supervisor.clone(), args, &plain()).await.unwrap();
        assert_eq!((ps.text.as_str(), ps.code), (said, code));
    }
    let ps = ps::run(supervisor.clone(), ps_of(&["web.1", "clock"]), &plain()).await;
    let ps = ps.unwrap();
    assert_eq!((ps.text.as_str(), ps.code), ("web.1\n", 4));
    assert_eq!(ps.complaint, "No clock dynos on shop\n");

    let status = |name: &str| status::run(supervisor.clone(), vec![name.to_owned()], &look);
    let idle = status("idle").await.unwrap();
    let expected = ("No idle dynos on shop\n", 0);
    assert_eq!((idle.text.as_str(), idle.code), expected);
    for (name, said) in [
        ("clock", "no such dyno"),
        ("../x", "`../x` is neither a process type nor a dyno name"),
    ] {
        let error = status(name).await.unwrap_err();
        assert!(error.to_string().starts_with(said), "{error}");
        assert_eq!(error.exit_code(), 4);
    }
    served.end().await;
}

#[tokio::test]
async fn the_apps_screen_has_the_last_lines_of_who_crashed() {
    let machine = Machine::new();
    let served = machine.serve("shop");
    let supervisor = machine.connect(None).await.unwrap();
    let status = status::run(supervisor, Vec::new(), &plain()).await.unwrap();
    let (_, crash) = status.text.split_once("× web.2: ").unwrap();
    let (_, lines) = crash.split_once('\n').unwrap();
    let expected: Vec<_> = (2..=6).map(|n| format!("        frame {n}\n")).collect();
    assert_eq!(lines, expected.concat(), "{}", status.text);
    served.end().await;
}

#[tokio::test]
async fn changes_reach_hsup_and_its_refusals_come_back_as_sentences() {
    let machine = Machine::new();
    let served = machine.serve("shop");
    let supervisor = machine.connect(None).await.unwrap();
    let scaled = formation::scale(supervisor.clone(), &["web-1".to_owned()]).await;
    assert_eq!(
        scaled.unwrap().text,
        "Scaling dynos... done, now running web at 1\n"
    );
    let error = formation::start(supervisor.clone(), Vec::new(), false)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "hsup is shutting down");
    let error = formation::restart(supervisor.clone(), Vec::new(), false).await;
    assert_eq!(error.unwrap_err().to_string(), "driver: gone");
    let apply = |json: &[u8], no_wait| {
        let (supervisor, json) = (supervisor.clone(), json.to_vec());
        async move { releases::apply(supervisor, json, no_wait, &plain()).await }
    };
    let error = apply(b"{}", false).await.unwrap_err();
    let told = (error.to_string(), error.exit_code());
    let expected = "release v7 was rejected: web.1 did not come up";
    assert_eq!(told, (expected.to_owned(), 1));
    assert!(error.hint().unwrap().contains("`hsupctl releases`"));
    let error = apply(b"busy", false).await.unwrap_err();
    let told = (error.to_string(), error.exit_code(), error.hint());
    assert_eq!(
        told,
        ("another release is being applied".to_owned(), 1, None)
    );
    let taken_in = apply(b"{}", true).await.unwrap();
    let expected = ("Release v8... building\n", 0);
    assert_eq!((taken_in.text.as_str(), taken_in.code), expected);
    served.end().await;
}

#[tokio::test]
async fn logs_keep_their_bytes_and_end_by_themselves() {
    let machine = Machine::new();
    let served = machine.serve("shop");
    let supervisor = machine.connect(None).await.unwrap();
    let mut out = Vec::new();
    logs::run(supervisor, logs_args(false), &plain(), &mut out)
        .await
        .unwrap();
    assert_eq!(
        out,
        b"1970-01-01T00:00:00.000001+00:00 app[web.1]: \xff hello\n"
    );
    served.end().await;
}

/// Ends the fake hsup once the first line was written.
struct EndsAtFirst(CancellationToken);

impl std::io::Write for EndsAtFirst {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.cancel();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_follows_is_over_when_hsup_shuts_down() {
    let machine = Machine::new();
    let served = machine.serve("shop");
    let supervisor = machine.connect(None).await.unwrap();
    let mut out = EndsAtFirst(served.shutdown.clone());
    let look = plain();
    let followed = logs::run(supervisor, logs_args(true), &look, &mut out);
    let outcome = timeout(PATIENCE, followed)
        .await
        .expect("logs -t did not end");
    assert_eq!(outcome.unwrap(), Outcome::done(String::new()));
    served.end().await;

    let served = machine.serve("shop");
    let supervisor = machine.connect(None).await.unwrap();
    let mut out = EndsAtFirst(served.shutdown.clone());
    let followed = events::run(supervisor, Output::Text, &look, &mut out);
    let outcome = timeout(PATIENCE, followed)
        .await
        .expect("events did not end");
    assert_eq!(outcome.unwrap(), Outcome::done(String::new()));
    served.end().await;
}

/// A reader that has gone, as `head` does.
struct Closed;

impl std::io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_error() {
    let machine = Machine::new();
    let served = machine.serve("shop");
    let supervisor = machine.connect(None).await.unwrap();
    let (look, mut out) = (plain(), Closed);
    let followed = logs::run(supervisor, logs_args(true), &look, &mut out);
    let error = timeout(PATIENCE, followed)
        .await
        .expect("logs -t did not end");
    assert!(error.unwrap_err().is_broken_pipe());
    served.end().await;
}
