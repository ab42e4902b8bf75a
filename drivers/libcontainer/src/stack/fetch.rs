//! Stacks and lists over http and https: downloads that go on where they were broken off.
//!
//! What has come so far is a `.part` file, named after the checksum that it is to have, so a
//! later driver goes on with it. Whether the server still has the same file is not asked: the
//! checksum of the whole tells. A file without one is begun anew each time.
//!
//! No error holds a URL's query, nor what came instead of the file.

use std::{error::Error, io, path::Path, time::Duration};

use hsup_slug::web::{self, ContentRange};
use reqwest::{Client, StatusCode, header::RANGE};
use thiserror::Error;
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncSeekExt as _, AsyncWriteExt as _, BufWriter},
    task::spawn_blocking,
    time::sleep,
};

use super::{Event, Progress, manifest::shown};

/// How long a server may take to be reached, and how long it may send nothing.
const CONNECT: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_mins(1);
/// How often in a row nothing new may come.
const TRIES: u32 = 5;
/// The wait before the first of them, doubled each time.
const PAUSE: Duration = Duration::from_millis(100);
/// A list is small.
const LONGEST_LIST: usize = 4 << 20;
/// How much comes between two reports.
const REPORT: u64 = 4 << 20;

/// Something could not be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error("failed to prepare for https")]
    Client(#[source] Box<dyn Error + Send + Sync>),
    #[error("{url} answered {status}")]
    Status { url: String, status: StatusCode },
    #[error(
        "{url} is not fetched: this machine does not trust who answers there; SSL_CERT_FILE \
         names whom it trusts"
    )]
    Untrusted {
        url: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{url} sends on the download too often, or from https to http")]
    Redirect { url: String },
    #[error("failed to fetch {url}: {done} bytes came, and nothing more in {TRIES} tries")]
    Broken {
        url: String,
        done: u64,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{url} is longer than the {expected} bytes that it is to have; nothing of it was kept")]
    TooLong { url: String, expected: u64 },
    #[error("{url} is no text of at most {LONGEST_LIST} bytes")]
    NoText { url: String },
    #[error("failed to write `{}`", .path.display())]
    Write {
        path: std::path::PathBuf,
        source: io::Error,
    },
}

/// Why one try ended.
#[derive(Debug, Error)]
enum TryError {
    #[error(transparent)]
    Final(#[from] FetchError),
    #[error(transparent)]
    Again(Box<dyn Error + Send + Sync>),
}

fn client() -> Result<Client, FetchError> {
    web::client(|client| client.connect_timeout(CONNECT).read_timeout(SILENCE))
        .map_err(|error| FetchError::Client(error.into()))
}

/// Fetches a list of stacks.
pub(super) async fn text(url: &str) -> Result<String, FetchError> {
    let broken = |error: reqwest::Error| FetchError::Broken {
        url: shown(url),
        done: 0,
        source: error.without_url().into(),
    };
    let client = client()?;
    let mut tries = 0;
    let mut response = loop {
        tries += 1;
        match client.get(url).send().await {
            Ok(response) if response.status().is_success() => break response,
            Ok(response) if tries == TRIES || !is_passing(response.status()) => {
                return Err(FetchError::Status {
                    url: shown(url),
                    status: response.status(),
                });
            }
            Err(error) if is_final(&error) => return Err(refused(url, error)),
            Err(error) if tries == TRIES => return Err(broken(error)),
            Ok(_) | Err(_) => sleep(PAUSE * (1 << tries)).await,
        }
    };
    let mut bytes = Vec::new();
    let no_text = || FetchError::NoText { url: shown(url) };
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if bytes.len() + chunk.len() > LONGEST_LIST {
            return Err(no_text());
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| no_text())
}

/// Whether another try would end in the same way.
fn is_final(error: &reqwest::Error) -> bool {
    error.is_redirect() || web::is_untrusted(error)
}

/// What is said of an error that is final.
fn refused(url: &str, error: reqwest::Error) -> FetchError {
    let url = shown(url);
    if error.is_redirect() {
        FetchError::Redirect { url }
    } else {
        let source = error.without_url().into();
        FetchError::Untrusted { url, source }
    }
}

/// Whether asking again may help.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// Fetches a file to `path`, after what is there already. `size` is what it is known to have.
pub(super) async fn file(
    url: &str,
    path: &Path,
    size: Option<u64>,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let client = client()?;
    let written = |source| FetchError::Write {
        path: path.to_owned(),
        source,
    };
    let opened = async {
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(false).mode(0o600);
        let file = options.open(path).await?.into_std().await;
        // A caller that gave up may have left a write under way, on a thread that nobody waits
        // for. It holds the file, and with it this lock.
        let locked = spawn_blocking(move || file.lock().map(|()| file)).await;
        locked.map_err(io::Error::other)?.map(File::from_std)
    };
    let mut part = Part {
        url,
        path,
        size,
        done: 0,
        reported: None,
        file: BufWriter::with_capacity(1 << 20, opened.await.map_err(written)?),
    };
    part.done = part
        .file
        .seek(io::SeekFrom::End(0))
        .await
        .map_err(written)?;
    let mut tries = 0;
    loop {
        let before = part.done;
        let result = part.more(&client, progress).await;
        // Whatever came is kept, for the next try and the next driver.
        part.file.flush().await.map_err(written)?;
        match result {
            Ok(()) => return Ok(()),
            Err(TryError::Final(error)) => return Err(error),
            Err(TryError::Again(source)) => {
                tries = if part.done > before { 1 } else { tries + 1 };
                if tries == TRIES {
                    return Err(FetchError::Broken {
                        url: shown(url),
                        done: part.done,
                        source,
                    });
                }
                sleep(PAUSE * (1 << tries)).await;
            }
        }
    }
}

/// What there is of a file.
struct Part<'a> {
    url: &'a str,
    path: &'a Path,
    size: Option<u64>,
    done: u64,
    /// How much of it was reported last.
    reported: Option<u64>,
    file: BufWriter<File>,
}

impl Part<'_> {
    /// Asks once for what is missing.
    async fn more(&mut self, client: &Client, progress: &dyn Progress) -> Result<(), TryError> {
        let mut request = client.get(self.url);
        if self.done > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.done));
        }
        let again = |error: reqwest::Error| {
            if is_final(&error) {
                refused(self.url, error).into()
            } else {
                TryError::Again(error.without_url().into())
            }
        };
        let mut response = request.send().await.map_err(again)?;
        let status = response.status();
        let range = ContentRange::of(response.headers());
        let total = match status {
            StatusCode::PARTIAL_CONTENT if range.first == Some(self.done) => range.total,
            StatusCode::RANGE_NOT_SATISFIABLE if self.done > 0 => {
                if range.total == Some(self.done) {
                    // All of it was here already.
                    self.report(progress, range.total);
                    return Ok(());
                }
                self.restart().await?;
                return Err(TryError::Again("the file has become shorter".into()));
            }
            StatusCode::PARTIAL_CONTENT => {
                self.restart().await?;
                return Err(TryError::Again(
                    "another part came than was asked for".into(),
                ));
            }
            status if status.is_success() => {
                self.restart().await?;
                response.content_length()
            }
            status => {
                let url = shown(self.url);
                let error = FetchError::Status { url, status };
                return Err(if is_passing(status) {
                    TryError::Again(error.into())
                } else {
                    error.into()
                });
            }
        };
        self.report(progress, total);
        while let Some(chunk) = response.chunk().await.map_err(again)? {
            self.done += chunk.len() as u64;
            if let Some(expected) = self.size
                && self.done > expected
            {
                self.restart().await?;
                let url = shown(self.url);
                return Err(FetchError::TooLong { url, expected }.into());
            }
            let written = self.file.write_all(&chunk).await;
            written.map_err(|source| self.unwritten(source))?;
            self.report_sometimes(progress, total);
        }
        match total {
            Some(total) if self.done < total => Err(TryError::Again(
                format!("the connection ended at {} of {total} bytes", self.done).into(),
            )),
            _ => {
                self.report(progress, total);
                Ok(())
            }
        }
    }

    fn unwritten(&self, source: io::Error) -> FetchError {
        FetchError::Write {
            path: self.path.to_owned(),
            source,
        }
    }

    /// Forgets what there is.
    async fn restart(&mut self) -> Result<(), FetchError> {
        let emptied = async {
            self.file.flush().await?;
            self.file.get_mut().set_len(0).await?;
            self.file.rewind().await
        };
        emptied.await.map_err(|source| self.unwritten(source))?;
        self.done = 0;
        self.reported = None;
        Ok(())
    }

    fn report_sometimes(&mut self, progress: &dyn Progress, total: Option<u64>) {
        if self.done >= self.reported.unwrap_or(0) + REPORT {
            self.report(progress, total);
        }
    }

    fn report(&mut self, progress: &dyn Progress, total: Option<u64>) {
        if self.reported != Some(self.done) {
            self.reported = Some(self.done);
            progress.report(Event::Fetching {
                done: self.done,
                total: total.or(self.size),
            });
        }
    }
}
