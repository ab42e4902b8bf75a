//! Dynos started by calls to the driver, whose first instructions are heard of.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    path::Path,
    process::id,
};

use anyhow::{Context as _, Result, ensure};
use hsup_driver_kit::{
    client::{Client, Connection},
    proto::{
        BuildRequest, Release, RemoveRequest, StartRequest, StopRequest, WaitRequest,
        build_response::Event, remove_request::What,
    },
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

use super::{
    super::{app, clock, payload::Stamps},
    host::{Driver, Host},
};

/// Whose dynos they are.
const SUPERVISOR: &str = "bench";
/// What a dyno runs.
pub(super) const PROGRAM: [&str; 2] = ["/bin/xtask", "stamp"];
/// The size of the files in a slug.
const FILE: usize = 64 << 10;

/// A slug: a folder, or an archive of one with its checksum.
#[derive(Debug)]
pub(super) struct Slug {
    url: String,
    checksum: String,
}

impl Slug {
    /// A folder of a given size.
    pub(super) fn make(folder: &Path, name: &str, size: usize) -> Result<Self> {
        let folder = folder.join(name);
        fs::create_dir(&folder)?;
        let mut random = File::open("/dev/urandom")?;
        let mut bytes = vec![0; FILE];
        for number in 0..size.div_ceil(FILE) {
            random.read_exact(&mut bytes)?;
            // As many to a folder as an app's dependencies have.
            let folder = folder.join((number / 32).to_string());
            fs::create_dir_all(&folder)?;
            File::create(folder.join(number.to_string()))?.write_all(&bytes)?;
        }
        Ok(Self {
            url: format!("file://{}/", folder.display()),
            checksum: String::new(),
        })
    }

    /// What is in `name` of a folder, packed.
    pub(super) fn pack(folder: &Path, name: &str, archive: &Path) -> Result<Self> {
        let packed = app::command("tar")
            .args(["--use-compress-program", "gzip -1", "-cf"])
            .arg(archive)
            .arg("-C")
            .arg(folder)
            .arg(format!("./{name}"))
            .status()?;
        ensure!(packed.success(), "tar failed");
        let summed = app::command("sha256sum").arg(archive).output()?;
        let summed = String::from_utf8(summed.stdout)?;
        let sum = summed.split(' ').next().unwrap_or_default();
        Ok(Self {
            url: format!("file://{}", archive.display()),
            checksum: format!("SHA256:{sum}"),
        })
    }
}

/// A supervisor's part.
#[derive(Debug)]
pub(super) struct Dynos {
    runtime: Runtime,
    connection: Connection,
    /// All of them write to the same FIFO.
    io_dir: String,
    stamps: Stamps,
    env: BTreeMap<String, String>,
    /// Nobody reads it; it is never full.
    _stderr: File,
    /// How many there have been.
    number: usize,
    up: Vec<String>,
}

impl Dynos {
    pub(super) fn connect(host: &Host, _driver: &Driver<'_>) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let connection = runtime.block_on(Connection::open(&host.socket()))?;
        let io_dir = host.memory().join("io");
        fs::create_dir(&io_dir)?;
        let stamps = Stamps::at(io_dir.join("stdout"))?;
        let stderr = io_dir.join("stderr");
        mkfifo(&stderr, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Self {
            runtime,
            connection,
            io_dir: io_dir
                .to_str()
                .context("a path that is not UTF-8")?
                .to_owned(),
            stamps,
            env: [("PATH", "/bin"), ("HOME", "/app")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            _stderr: File::options().read(true).write(true).open(stderr)?,
            number: 0,
            up: Vec::new(),
        })
    }

    /// The same of another driver in the place of the one before.
    pub(super) fn reconnect(&mut self, host: &Host, _driver: &Driver<'_>) -> Result<()> {
        self.connection = self.runtime.block_on(Connection::open(&host.socket()))?;
        Ok(())
    }

    /// Gives dynos a port that is reached, from here on.
    pub(super) fn give(&mut self, port: &str) {
        self.env.insert("PORT".to_owned(), port.to_owned());
    }

    /// Has the driver build a release with this slug; the artifact.
    pub(super) fn build(&self, slug: &Slug) -> Result<String> {
        let request = BuildRequest {
            release: Some(Release {
                app: "bench".to_owned(),
                version: 1,
                slug_url: slug.url.clone(),
                slug_checksum: slug.checksum.clone(),
                ..Release::default()
            }),
            ..BuildRequest::default()
        };
        let mut client = self.connection.client();
        self.runtime.block_on(async move {
            let mut answers = client.build(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                if let Some(Event::Artifact(artifact)) = answer.event {
                    return Ok(artifact);
                }
            }
            anyhow::bail!("the build came to nothing")
        })
    }

    /// From the call of Start to the first instruction of the command, which is ended then.
    pub(super) fn one(&mut self, artifact: &str) -> Result<u64> {
        let id = self.next_id();
        let request = self.request(&id, artifact);
        let mut client = self.connection.client();
        let begun = clock::now();
        self.runtime.block_on(client.start(request))?;
        let stamp = self.stamps.next()?;
        self.runtime.block_on(end(client, id))?;
        Ok(stamp.at - begun)
    }

    /// The same for so many dynos, of which so many are being started at any time: until the
    /// last one's first instruction. They stay.
    pub(super) fn together(
        &mut self,
        artifact: &str,
        dynos: usize,
        in_flight: usize,
    ) -> Result<u64> {
        let begun = clock::now();
        self.start(artifact, dynos, in_flight)?;
        let stamps = self.stamps.take(dynos)?;
        let last = stamps.iter().map(|stamp| stamp.at).max();
        Ok(last.unwrap_or(begun) - begun)
    }

    /// Starts so many, until the driver has answered for each. They stay.
    pub(super) fn start(&mut self, artifact: &str, dynos: usize, in_flight: usize) -> Result<()> {
        let mut requests = Vec::new();
        for _ in 0..dynos {
            let id = self.next_id();
            requests.push(self.request(&id, artifact));
            self.up.push(id);
        }
        let client = self.connection.client();
        self.runtime.block_on(async {
            let mut starting = JoinSet::new();
            for request in requests {
                if starting.len() >= in_flight {
                    starting.join_next().await.transpose()?.transpose()?;
                }
                let mut client = client.clone();
                starting.spawn(async move { client.start(request).await });
            }
            while let Some(started) = starting.join_next().await {
                started??;
            }
            Ok(())
        })
    }

    /// Ends all that stayed.
    pub(super) fn end(&mut self) -> Result<()> {
        let client = self.connection.client();
        let ids = std::mem::take(&mut self.up);
        self.runtime.block_on(async {
            let mut ending = JoinSet::new();
            for id in ids {
                if ending.len() >= super::IN_FLIGHT {
                    ending.join_next().await.transpose()?.transpose()?;
                }
                ending.spawn(end(client.clone(), id));
            }
            while let Some(ended) = ending.join_next().await {
                ended??;
            }
            Ok(())
        })
    }

    fn next_id(&mut self) -> String {
        self.number += 1;
        format!("bench-{}-{}", id(), self.number)
    }

    fn request(&self, dyno_id: &str, artifact: &str) -> StartRequest {
        StartRequest {
            dyno_id: dyno_id.to_owned(),
            supervisor_id: SUPERVISOR.to_owned(),
            artifact: artifact.to_owned(),
            app: "bench".to_owned(),
            release: 1,
            process_type: "worker".to_owned(),
            process_number: 1,
            argv: PROGRAM.map(str::to_owned).to_vec(),
            env: self.env.clone(),
            io_dir: self.io_dir.clone(),
            ..StartRequest::default()
        }
    }
}

/// Ends a dyno, and has it forgotten.
async fn end(mut client: Client, dyno_id: String) -> Result<()> {
    let stop = StopRequest {
        dyno_id: dyno_id.clone(),
        force: true,
        ..StopRequest::default()
    };
    client.stop(stop).await?;
    let wait = WaitRequest {
        dyno_id: dyno_id.clone(),
        timeout_ms: 0,
    };
    client.wait(wait).await?;
    let remove = RemoveRequest {
        what: Some(What::DynoId(dyno_id)),
    };
    client.remove(remove).await?;
    Ok(())
}

impl Drop for Dynos {
    fn drop(&mut self) {
        // After a failure; what cannot be ended now has no other way to be told.
        if let Err(error) = self.end() {
            super::say(&format!("dynos are left: {error}"));
        }
    }
}
