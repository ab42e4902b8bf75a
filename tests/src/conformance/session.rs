//! What the cases of a run share: its settings, its token, and the slug they build.

use std::{
    collections::hash_map::RandomState,
    fs::{self, File, Permissions},
    hash::{BuildHasher as _, Hasher as _},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use hsup_proto::driver::{BuildRequest, Release};
use tempfile::TempDir;

use super::{
    config::{Config, Target},
    driver::{ConnectDriverError, Driver, calls, greet, reach},
    kernel::OpenFiles,
    process::{DriverProcess, SocketDir, kill_marked},
    record::Record,
};

/// Every dyno of a run has this variable, with the run's token as its value.
pub(crate) const MARK: &str = "HSUP_CHECK_RUN";

/// One run of the suite.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) config: Config,
    pub(crate) token: String,
    pub(crate) limits: OpenFiles,
    serial: AtomicU32,
    slug: Slug,
}

/// A directory that is a slug, with the least that a driver takes for an app.
#[derive(Debug)]
pub(crate) struct Slug(TempDir);

impl Slug {
    pub(crate) fn make() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("hsup-slug-").tempdir()?;
        // A root driver reads the slug as whoever asks, a container's user may be anybody.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let slug = Self(dir);
        slug.write("Procfile", "web: /bin/sh\n")?;
        // To a driver that knows slugs by their content, two that say the same are one.
        slug.write("name", &format!("{}\n", slug.path().display()))?;
        Ok(slug)
    }

    /// Puts a file into it, in the place of the one that was there.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.0.path())?;
        file.write_all(text.as_bytes())?;
        fs::set_permissions(file.path(), Permissions::from_mode(0o644))?;
        file.persist(self.0.path().join(name))?;
        Ok(())
    }

    /// Makes a directory in it.
    pub(crate) fn make_dir(&self, name: &str) -> io::Result<()> {
        let path = self.0.path().join(name);
        fs::create_dir(&path)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))
    }

    /// Writes to a file of it as some editors do: no directory shows that.
    pub(crate) fn edit(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.0.path().join(name);
        let mut file = File::options().write(true).truncate(true).open(path)?;
        file.write_all(text.as_bytes())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("file://{}/", self.0.path().display())
    }
}

impl Session {
    pub(crate) fn new(config: Config, limits: OpenFiles) -> io::Result<Self> {
        let random = RandomState::new().build_hasher().finish();
        Ok(Self {
            config,
            token: format!("{random:016x}"),
            limits,
            serial: AtomicU32::new(1),
            slug: Slug::make()?,
        })
    }

    /// A dyno id that was never used before.
    pub(crate) fn fresh_id(&self) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("c{}-{serial}", &self.token[..6])
    }

    /// The supervisor id of this run.
    pub(crate) fn supervisor_id(&self) -> String {
        format!("check-{}", self.token)
    }

    /// The Build of this run.
    pub(crate) fn build_request(&self) -> BuildRequest {
        let slug_url = match &self.config.slug_url {
            Some(url) => url.clone(),
            None => self.slug.url(),
        };
        BuildRequest {
            release: Some(Release {
                app: "conformance".to_owned(),
                version: 1,
                stack: self.config.stack.clone(),
                slug_url,
                ..Release::default()
            }),
            options: self.config.build_options.clone(),
        }
    }

    /// Reaches the driver of the configuration.
    pub(crate) async fn connect(&self, record: &Record) -> Result<Driver, ConnectDriverError> {
        match &self.config.target {
            Target::Socket(socket) => {
                let control = calls(socket, record)
                    .await
                    .map_err(ConnectDriverError::Connect)?;
                greet(socket.clone(), control, None, None).await
            }
            Target::Exec(command) => {
                let dir =
                    SocketDir::make(self.config.as_peer).map_err(ConnectDriverError::Spawn)?;
                self.spawn(command, dir, record).await
            }
        }
    }

    /// Starts `command` with its socket in `dir` and connects to it.
    pub(crate) async fn spawn(
        &self,
        command: &str,
        dir: SocketDir,
        record: &Record,
    ) -> Result<Driver, ConnectDriverError> {
        let socket = dir.socket();
        let process = DriverProcess::spawn(command, &socket, self.limits)
            .map_err(ConnectDriverError::Spawn)?;
        reach(process, dir, record).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whatever a driver under test forgot: nothing of a run may stay.
        kill_marked(MARK, &self.token);
    }
}
