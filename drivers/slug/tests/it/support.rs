//! A store of the test's own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use hsup_slug::{
    Fetch, LayerError, Layering, Owner, Patience, Peer, Program, Progress, Settings, SlugError,
    SlugId, Step, Store,
};
use nix::unistd::{getegid, geteuid};
use tempfile::TempDir;

/// Nobody else has this uid.
pub(crate) const UNPACKER: u32 = 64_997;

pub(crate) struct Env {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
    pub(crate) said: Said,
}

/// What the owner of the slug was told.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) notes: Mutex<Vec<String>>,
    pub(crate) bytes: Mutex<Vec<(Step, u64, u64)>>,
}

impl Progress for Said {
    fn progress(&self, step: Step, done: u64, total: u64) {
        self.bytes.lock().unwrap().push((step, done, total));
    }

    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }
}

pub(crate) fn program() -> Program {
    Program::at(Path::new(env!("CARGO_BIN_EXE_hsup-slug-helper"))).unwrap()
}

pub(crate) fn settings() -> Settings {
    let mut settings = Settings::new(UNPACKER);
    if !geteuid().is_root() {
        settings.uid = geteuid().as_raw();
        settings.gid = getegid().as_raw();
    }
    settings.program = program();
    settings
}

/// Layers of user 7 and group 8.
pub(crate) fn layering() -> Layering {
    let settings = settings();
    Layering {
        program: settings.program,
        user: Peer {
            uid: settings.uid,
            gid: settings.gid,
            groups: Some(Vec::new()),
        },
        limits: settings.limits,
        owner: (7, 8),
    }
}

/// Whoever runs the test.
pub(crate) fn me() -> Peer {
    Peer {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        groups: Some(Vec::new()),
    }
}

pub(crate) fn owner() -> Owner {
    Owner::new(me().uid, "app").unwrap()
}

impl Env {
    pub(crate) fn new() -> Self {
        Self::with(settings())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let dir = TempDir::new().unwrap();
        // For tests in which another user reads here.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let store = Store::open(&dir.path().join("slugs"), settings).unwrap();
        Self {
            dir,
            store,
            said: Said::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of the test's, and its URL.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        #[expect(
            clippy::disallowed_methods,
            reason = "nobody reads it before it is done"
        )]
        fs::write(&path, content).unwrap();
        format!("file://{}", path.display())
    }

    pub(crate) async fn add(&self, fetch: &Fetch) -> Result<SlugId, SlugError> {
        self.store.add(fetch, &owner(), &self.said).await
    }

    /// Adds an archive from a file.
    pub(crate) async fn add_bytes(&self, content: &[u8]) -> Result<SlugId, SlugError> {
        let url = self.file("slug.tgz", content);
        self.add(&fetch(url)).await
    }

    /// A slug as a layer that is user 7's and group 8's, and all that came of it.
    pub(crate) async fn layer(&self, fetch: &Fetch) -> (Result<SlugId, LayerError>, Vec<u8>) {
        let (taker, mut taken) = tokio::sync::mpsc::channel(2);
        let taking = async {
            let mut all = Vec::new();
            while let Some(bytes) = taken.recv().await {
                all.extend(bytes);
            }
            all
        };
        let how = layering();
        tokio::join!(hsup_slug::layer(&how, fetch, taker, &self.said), taking)
    }

    /// What is in the directory of the store.
    pub(crate) fn names(&self, directory: &str) -> Vec<String> {
        let path = self.path("slugs").join(directory);
        let mut names: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Nothing is kept, and nothing is left.
    pub(crate) fn assert_empty(&self) {
        for directory in ["trees", "staging", "trash", "refs"] {
            assert_eq!(self.names(directory), Vec::<String>::new(), "{directory}");
        }
    }
}

/// A slug that is given up soon.
pub(crate) fn fetch(url: String) -> Fetch {
    let mut fetch = Fetch::new(url, None, me());
    fetch.patience = Patience {
        connect: Duration::from_secs(5),
        stall: Duration::from_secs(20),
        tries: 3,
        backoff: Duration::from_millis(1),
    };
    fetch
}

/// All that is in a tree: name and content, or target of a link.
pub(crate) fn tree(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let kind = fs::symlink_metadata(&path).unwrap();
            if kind.is_dir() {
                found.push((format!("{name}/"), String::new()));
                todo.push(path);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.push((format!("{name}@"), target.display().to_string()));
            } else {
                let content = fs::read(&path).unwrap();
                found.push((name, String::from_utf8_lossy(&content).into_owned()));
            }
        }
    }
    found.sort();
    found
}

/// An error as a person reads it.
pub(crate) fn shown<E: std::error::Error>(result: Result<SlugId, E>) -> String {
    let error: &dyn std::error::Error = &result.expect_err("it should have been refused");
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
