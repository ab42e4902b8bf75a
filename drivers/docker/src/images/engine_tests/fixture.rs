//! A stack of the test's own in the engine, slugs, and a server that gives them out.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bollard::Docker;
use flate2::{Compression, write::GzEncoder};
use hsup_driver_kit::{hex, proto::Release};
use hsup_slug::Program;
use nix::unistd::{getegid, geteuid};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use crate::{
    artifact::Artifact,
    images::{ImageError, Settings, build_release, labels, told::Listener},
};

const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nheroku:x:1234:1235::/home/heroku:/bin/sh\n";

/// Whoever runs the test.
pub(super) fn me() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// Runs the engine's client, and gives what it says.
pub(super) fn docker(arguments: &[&str]) -> String {
    let output = tool("docker").args(arguments).output();
    let output = output
        .unwrap_or_else(|error| panic!("docker is needed, from the package docker.io: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "a tool, not a dyno")]
fn tool(name: &str) -> Command {
    Command::new(name)
}

/// The driver's program, which is also each process that fetches and checks. A test is another
/// program, so cargo has to be asked for this one, if it is not in `HSUP_BIN_DIR`.
fn program() -> Program {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let path = PROGRAM.get_or_init(|| {
        let name = env!("CARGO_PKG_NAME");
        if let Some(folder) = std::env::var_os("HSUP_BIN_DIR") {
            return Path::new(&folder).join(name);
        }
        let mut cargo = tool(env!("CARGO"));
        // What cargo says of this package to its tests would be news to build scripts of
        // others, which would be built again.
        for (variable, _) in std::env::vars_os() {
            let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "OUT_DIR"];
            if variable
                .to_str()
                .is_some_and(|text| own.iter().any(|family| text.starts_with(family)))
            {
                cargo.env_remove(&variable);
            }
        }
        let built = cargo
            .args(["build", "--quiet", "--offline"])
            // With a test program, as all that needs programs of the workspace does: so that
            // nothing is built a second time.
            .args(["--workspace", "--bins", "--test", "it"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "{name}: {built}");
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join(name)
    });
    Program::at(path).unwrap()
}

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Said {
    lines: Mutex<Vec<String>>,
    pub(super) progress: Mutex<Vec<(String, u64, u64)>>,
}

impl Listener for Said {
    fn line(&self, text: &str) {
        self.lines.lock().unwrap().push(text.to_owned());
    }

    fn progress(&self, step: &str, done: u64, total: u64) {
        let mut progress = self.progress.lock().unwrap();
        progress.push((step.to_owned(), done, total));
    }
}

/// A stack and an app of the test's own, which go with it.
pub(super) struct Case {
    pub(super) engine: Docker,
    pub(super) app: String,
    pub(super) stack: String,
    pub(super) folder: TempDir,
    pub(super) listener: Said,
}

impl Case {
    /// `changes` are what a Dockerfile would say of the stack.
    pub(super) fn new(name: &str, changes: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = format!("{name}-{}", std::process::id());
        let stack = format!("hsup-test/{own}:1");
        let root = folder.path().join("root.tar");
        write_root(&root, changes.contains(&"USER heroku"));
        let mut arguments = vec!["import"];
        for change in changes {
            arguments.extend(["--change", change]);
        }
        arguments.extend([root.to_str().unwrap(), &stack]);
        docker(&arguments);
        Self {
            engine: Docker::connect_with_defaults().unwrap(),
            app: own,
            stack,
            folder,
            listener: Said::default(),
        }
    }

    /// A release whose slug is a file.
    pub(super) fn release(&self, version: u64, content: &[u8]) -> Release {
        let path = self.folder.path().join(format!("{version}.tgz"));
        fs::File::create(&path).unwrap().write_all(content).unwrap();
        let checksum = format!("SHA256:{}", hex::encode(&Sha256::digest(content)));
        Release {
            app: self.app.clone(),
            version,
            stack: self.stack.clone(),
            slug_url: format!("file://{}", path.display()),
            slug_checksum: checksum,
            ..Release::default()
        }
    }

    pub(super) fn settings(&self) -> Settings {
        let mut settings = Settings::new(&self.app, |_| None).unwrap();
        settings.program = program();
        settings
    }

    pub(super) async fn build(&self, release: &Release) -> Result<Artifact, ImageError> {
        self.build_with(&self.settings(), release).await
    }

    pub(super) async fn build_with(
        &self,
        settings: &Settings,
        release: &Release,
    ) -> Result<Artifact, ImageError> {
        build_release(&self.engine, settings, me(), release, &self.listener).await
    }

    /// Runs a command in the image of an artifact, and gives what it says.
    #[expect(clippy::unused_self, reason = "the image goes with the case")]
    pub(super) fn run(&self, artifact: &Artifact, command: &[&str]) -> String {
        let [program, arguments @ ..] = command else {
            panic!("a command is needed");
        };
        let mut run = vec!["run", "--rm", "--network", "none", "--entrypoint", program];
        run.push(&artifact.image);
        run.extend(arguments);
        docker(&run)
    }

    pub(super) fn said(&self) -> Vec<String> {
        self.listener.lines.lock().unwrap().clone()
    }

    /// The images that were made of the app's slugs.
    pub(super) fn images(&self) -> Vec<String> {
        let label = format!("label={}={}", labels::APP, self.app);
        let images = docker(&["images", "--quiet", "--no-trunc", "--filter", &label]);
        // One that has two names is there twice.
        let images: BTreeSet<_> = images.lines().map(str::to_owned).collect();
        images.into_iter().collect()
    }

    pub(super) fn assert_no_workshop(&self) {
        let ancestor = format!("ancestor={}", self.stack);
        let containers = docker(&["ps", "--all", "--quiet", "--filter", &ancestor]);
        assert_eq!(containers, "");
    }

    pub(super) fn assert_nothing_made(&self) {
        assert_eq!(self.images(), Vec::<String>::new());
        self.assert_no_workshop();
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let images = self.images();
        for image in images.iter().chain([&self.stack]) {
            docker(&["rmi", "--force", image]);
        }
    }
}

/// The root file system of a stack: a shell, and two users; in one for buildpacks `app` is a
/// link, as in `heroku/heroku:22-cnb`.
fn write_root(path: &Path, has_link: bool) {
    let busybox = fs::read("/usr/bin/busybox")
        .unwrap_or_else(|error| panic!("busybox is needed, from busybox-static: {error}"));
    let mut archive = Builder::new(fs::File::create(path).unwrap());
    let file = |mode, size: usize| {
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        header.set_size(size as u64);
        header
    };
    let mut header = file(0o755, busybox.len());
    archive
        .append_data(&mut header, "bin/busybox", &busybox[..])
        .unwrap();
    for name in ["sh", "cat", "id", "ls", "stat"] {
        let mut header = file(0o777, 0);
        header.set_entry_type(EntryType::Symlink);
        let path = format!("bin/{name}");
        archive.append_link(&mut header, path, "busybox").unwrap();
    }
    if has_link {
        let mut header = file(0o777, 0);
        header.set_entry_type(EntryType::Symlink);
        archive
            .append_link(&mut header, "app", "workspace")
            .unwrap();
    }
    for (path, text) in [
        ("etc/passwd", PASSWD),
        ("etc/group", "root:x:0:\nheroku:x:1235:\n"),
    ] {
        let mut header = file(0o644, text.len());
        archive
            .append_data(&mut header, path, text.as_bytes())
            .unwrap();
    }
    archive.into_inner().unwrap().flush().unwrap();
}

/// What is in an archive.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    File(&'a str, u32, &'a str),
    Link(&'a str, &'a str),
    Device(&'a str),
}

/// A slug of files: their names, modes and content.
pub(super) fn slug(files: &[(&str, u32, &str)]) -> Vec<u8> {
    let files: Vec<_> = files
        .iter()
        .map(|(name, mode, text)| Content::File(name, *mode, text))
        .collect();
    archive(&files)
}

/// A slug as no honest program may make it. Names are as they are.
pub(super) fn archive(contents: &[Content<'_>]) -> Vec<u8> {
    let gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let mut archive = Builder::new(gzip);
    for content in contents {
        let (kind, name, mode, target, data) = match content {
            Content::File(name, mode, text) => (EntryType::Regular, name, *mode, "", *text),
            Content::Link(name, target) => (EntryType::Symlink, name, 0o777, *target, ""),
            Content::Device(name) => (EntryType::Block, name, 0o666, "", ""),
        };
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        // Whose it was does not count.
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        archive.append(&header, data.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

/// A slug of one file that is so many megabytes of nothing, each a member of the gzip file.
pub(super) fn zeros(name: &str, megabytes: usize) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size((megabytes as u64) << 20);
    header.set_path(name).unwrap();
    header.set_cksum();
    let zipped = |bytes: &[u8]| {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let megabyte = zipped(&vec![0; 1 << 20]).repeat(megabytes);
    [zipped(header.as_bytes()), megabyte, zipped(&[0; 1024])].concat()
}

/// Text that gzip cannot make much smaller.
pub(super) fn noise(length: usize) -> String {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + (state % 90) as u8)
    })
    .take(length)
    .collect()
}

/// Gives out a slug; the first answer ends after `first` bytes.
pub(super) struct Server {
    host: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    pub(super) fn new(content: Vec<u8>, first: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        // It listens until the process ends.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let most = if number == 0 { first } else { usize::MAX };
                // Whoever has asked may be gone.
                drop(answer(stream.unwrap(), &content, most));
            }
        });
        Self { host, requests }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/slug.tgz?signature=SECRET", self.host)
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, content: &[u8], most: usize) -> std::io::Result<()> {
    let mut from = 0;
    for line in BufReader::new(&stream).lines() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap_or(0);
        }
    }
    let status = if from > 0 {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: \"1\"\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Range: bytes {from}-{}/{}\r\n\r\n",
        content.len() - from,
        content.len() - 1,
        content.len(),
    )?;
    let rest = &content[from..];
    stream.write_all(&rest[..rest.len().min(most)])
}
