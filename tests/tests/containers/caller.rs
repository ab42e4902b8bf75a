//! Calls to the driver itself, where hsup would be in the way: limits, signals, the exact status.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use hsup_driver_kit::client::{Client, Connection};
use hsup_proto::driver::{
    AttachRequest, AttachResponse, BuildRequest, Dyno as Listed, ExitStatus, GetInfoRequest,
    GetInfoResponse, IpInfoRequest, ListRequest, Release, RemoveRequest, StartRequest,
    StatsRequest, StatsResponse, StopRequest, WaitRequest, attach_request, attach_response,
    build_response, exit_status::How, remove_request,
};
use hsup_tests::{
    deadline::{PATIENCE, poll},
    peer,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Status};

/// A connection of root's, as whom the driver runs too.
pub(crate) struct Caller {
    runtime: Runtime,
    client: Client,
    /// An artifact of the stack alone.
    artifact: String,
}

impl Caller {
    pub(crate) fn new(socket: &Path) -> Self {
        Self::of(0, socket)
    }

    /// A connection of this user's, who can build, and start nothing: the FIFOs are root's.
    pub(crate) fn of(uid: u32, socket: &Path) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let stream = peer::connect(uid, socket).unwrap();
        stream.set_nonblocking(true).unwrap();
        let connection = runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream).unwrap();
            Connection::over(stream, None).await.unwrap()
        });
        let mut caller = Self {
            client: connection.client(),
            runtime,
            artifact: String::new(),
        };
        caller.artifact = caller.build(release("test")).unwrap();
        caller
    }

    /// A call, with an end.
    fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let limited = async { tokio::time::timeout(PATIENCE, call).await };
        let answer = self.runtime.block_on(limited);
        answer
            .expect("the driver answers in time")
            .map(tonic::Response::into_inner)
    }

    /// What the driver says of itself.
    pub(crate) fn info(&self) -> GetInfoResponse {
        let request = GetInfoRequest::default();
        self.call(self.client.clone().get_info(request)).unwrap()
    }

    /// Builds a release; its artifact.
    pub(crate) fn build(&self, release: Release) -> Result<String, Status> {
        let request = BuildRequest {
            release: Some(release),
            ..BuildRequest::default()
        };
        let mut client = self.client.clone();
        self.runtime.block_on(async {
            let mut events = client.build(request).await?.into_inner();
            while let Some(message) = events.message().await? {
                if let Some(build_response::Event::Artifact(artifact)) = message.event {
                    return Ok(artifact);
                }
            }
            Err(Status::internal("a build without an artifact"))
        })
    }

    /// What starts a dyno that runs `line`.
    pub(crate) fn request(&self, id: &str, line: &str) -> StartRequest {
        let env = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", "/app"),
            ("PORT", "5000"),
        ];
        StartRequest {
            dyno_id: id.to_owned(),
            supervisor_id: "tests".to_owned(),
            artifact: self.artifact.clone(),
            app: "test".to_owned(),
            release: 1,
            process_type: "worker".to_owned(),
            process_number: 1,
            argv: ["bash", "-c", line].map(str::to_owned).to_vec(),
            shell_line: line.to_owned(),
            env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..StartRequest::default()
        }
    }

    /// Starts a dyno; `change` may add to what is asked for.
    pub(crate) fn try_start(
        &self,
        id: &str,
        line: &str,
        change: impl FnOnce(&mut StartRequest),
    ) -> Result<Dyno<'_>, Status> {
        let mut request = self.request(id, line);
        change(&mut request);
        let streams = (!request.tty).then(Streams::new);
        if let Some(streams) = &streams {
            request.io_dir = streams.folder.path().to_string_lossy().into_owned();
        }
        self.ask(request)?;
        Ok(Dyno {
            caller: self,
            id: id.to_owned(),
            streams: streams.map(Streams::started),
        })
    }

    /// Asks for a dyno, whose FIFOs are the caller's business.
    pub(crate) fn ask(&self, request: StartRequest) -> Result<(), Status> {
        self.call(self.client.clone().start(request)).map(drop)
    }

    /// The same, which must work.
    pub(crate) fn start(&self, id: &str, line: &str) -> Dyno<'_> {
        let started = self.try_start(id, line, |_| ());
        started.unwrap_or_else(|status| panic!("{id}: {status}"))
    }

    /// What a dyno with these wishes prints until it ends.
    pub(crate) fn output(
        &self,
        id: &str,
        line: &str,
        change: impl FnOnce(&mut StartRequest),
    ) -> (String, ExitStatus) {
        let mut dyno = self.try_start(id, line, change).unwrap();
        let status = self.wait(id);
        let said = dyno.said();
        self.remove(id);
        (said, status)
    }

    pub(crate) fn list(&self) -> Vec<Listed> {
        let request = ListRequest::default();
        let mut dynos = self.call(self.client.clone().list(request)).unwrap().dynos;
        dynos.sort_by(|a, b| a.dyno_id.cmp(&b.dyno_id));
        dynos
    }

    /// The ids of all dynos, sorted.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.list().into_iter().map(|dyno| dyno.dyno_id).collect()
    }

    /// Waits for the end of a dyno.
    pub(crate) fn wait(&self, id: &str) -> ExitStatus {
        let request = WaitRequest {
            dyno_id: id.to_owned(),
            timeout_ms: 0,
        };
        let answer = self.call(self.client.clone().wait(request)).unwrap();
        answer.status.unwrap()
    }

    /// Ends a dyno at once.
    pub(crate) fn kill(&self, id: &str) {
        let request = StopRequest {
            dyno_id: id.to_owned(),
            force: true,
            ..StopRequest::default()
        };
        self.call(self.client.clone().stop(request)).unwrap();
    }

    pub(crate) fn remove(&self, id: &str) {
        let request = RemoveRequest {
            what: Some(remove_request::What::DynoId(id.to_owned())),
        };
        self.call(self.client.clone().remove(request)).unwrap();
    }

    /// Ends and forgets every dyno.
    pub(crate) fn remove_all(&self) {
        for id in self.ids() {
            self.kill(&id);
            self.remove(&id);
        }
    }

    pub(crate) fn stats(&self, id: &str) -> StatsResponse {
        let request = StatsRequest {
            dyno_id: id.to_owned(),
        };
        self.call(self.client.clone().stats(request)).unwrap()
    }

    /// The address of a dyno.
    pub(crate) fn ip(&self, id: &str) -> String {
        let request = IpInfoRequest {
            dyno_id: id.to_owned(),
        };
        self.call(self.client.clone().ip_info(request)).unwrap().ip
    }

    /// Types `text` at a dyno's terminal, and waits for `answer` there.
    pub(crate) fn at_terminal(&self, id: &str, text: &str, answer: &str) {
        let events = [
            attach_request::Event::DynoId(id.to_owned()),
            attach_request::Event::Stdin(text.as_bytes().to_vec()),
        ];
        let mut client = self.client.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let talk = async {
            for event in events {
                let request = AttachRequest { event: Some(event) };
                sender.send(request).await.unwrap();
            }
            let answers = client.attach(ReceiverStream::new(receiver)).await;
            let mut answers = answers.unwrap().into_inner();
            let mut seen = String::new();
            while let Some(Ok(AttachResponse { event: Some(event) })) = answers.next().await {
                if let attach_response::Event::Stdout(bytes) = event {
                    seen.push_str(&String::from_utf8_lossy(&bytes));
                }
                if seen.contains(answer) {
                    return Ok(());
                }
            }
            Err(seen)
        };
        let limited = async { tokio::time::timeout(PATIENCE, talk).await };
        let talked = self.runtime.block_on(limited);
        let talked = talked.unwrap_or_else(|_| panic!("{answer:?} was not said in time"));
        talked.unwrap_or_else(|seen| panic!("{answer:?} is not in {seen:?}"));
    }
}

/// A release of this stack, and no slug.
pub(crate) fn release(stack: &str) -> Release {
    Release {
        app: "test".to_owned(),
        version: 1,
        stack: stack.to_owned(),
        ..Release::default()
    }
}

/// A dyno that was started, and what it writes.
pub(crate) struct Dyno<'a> {
    caller: &'a Caller,
    pub(crate) id: String,
    streams: Option<Started>,
}

impl Dyno<'_> {
    /// What it wrote, to its end.
    pub(crate) fn said(&mut self) -> String {
        let Some(streams) = &mut self.streams else {
            return String::new();
        };
        streams.read();
        String::from_utf8_lossy(&streams.read).into_owned()
    }

    /// Waits until it has written `text`.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let found = poll(|| Some(self.said()).filter(|said| said.contains(text)));
        found.unwrap_or_else(|| panic!("`{text}` is not in {:?}", self.said()))
    }

    /// Closes its standard input.
    pub(crate) fn close(&mut self) {
        if let Some(streams) = &mut self.streams {
            streams.stdin = None;
        }
    }

    /// Lets go of all its FIFOs, as a supervisor does that is killed.
    pub(crate) fn let_go(&mut self) {
        if let Some(streams) = &mut self.streams {
            streams.stdin = None;
            streams.outputs = None;
        }
    }

    /// Has the outputs again, as a supervisor does that comes back.
    pub(crate) fn take_up(&mut self) {
        if let Some(streams) = &mut self.streams {
            let reopen = |name| open(&streams.folder.path().join(name), true, true).unwrap();
            streams.outputs = Some(OUTPUTS.map(reopen));
        }
    }

    /// Ends and forgets it.
    pub(crate) fn end(self) {
        self.caller.kill(&self.id);
        self.caller.remove(&self.id);
    }
}

/// The names of the FIFOs that a dyno writes to.
const OUTPUTS: [&str; 2] = ["stdout", "stderr"];

/// The FIFOs of a dyno.
struct Streams {
    folder: TempDir,
    /// Both ends of its stdin: with no writer there, a dyno that reads at once would be at its end.
    stdin: File,
    /// Both outputs of it.
    outputs: [File; 2],
}

impl Streams {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let outputs = OUTPUTS.map(|name| {
            let path = folder.path().join(name);
            mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
            open(&path, true, false).unwrap()
        });
        let stdin = folder.path().join("stdin");
        mkfifo(&stdin, Mode::from_bits_truncate(0o600)).unwrap();
        let stdin = open(&stdin, true, true).unwrap();
        Self {
            folder,
            stdin,
            outputs,
        }
    }

    fn started(self) -> Started {
        let path = self.folder.path().join("stdin");
        let stdin = open(&path, false, true).unwrap();
        // The other end is the dyno's alone from here on.
        drop(self.stdin);
        Started {
            stdin: Some(stdin),
            outputs: Some(self.outputs),
            read: Vec::new(),
            folder: self.folder,
        }
    }
}

fn open(path: &Path, read: bool, write: bool) -> std::io::Result<File> {
    fs::OpenOptions::new()
        .read(read)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

struct Started {
    stdin: Option<File>,
    outputs: Option<[File; 2]>,
    read: Vec<u8>,
    folder: TempDir,
}

impl Started {
    fn read(&mut self) {
        for output in self.outputs.iter_mut().flatten() {
            let mut piece = vec![0; 65536];
            while let Ok(n @ 1..) = output.read(&mut piece) {
                self.read.extend(&piece[..n]);
            }
        }
    }
}

/// How a dyno ended, in one word.
pub(crate) fn how(status: &ExitStatus) -> String {
    match &status.how {
        Some(How::Code(code)) => code.to_string(),
        Some(How::Signal(signal)) => signal.clone(),
        Some(How::Lost(_)) => "lost".to_owned(),
        None => "nothing".to_owned(),
    }
}

/// That a call was refused for want of something, in these words.
pub(crate) fn is_exhausted(status: &Status, words: &[&str]) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    says(status, words);
}

/// That an error has these words in it.
pub(crate) fn says(status: &Status, words: &[&str]) {
    for word in words {
        assert!(status.message().contains(word), "no `{word}` in: {status}");
    }
}
