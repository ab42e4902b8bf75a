//! Log drains: lines on their way out of hsup, to any number of places side by side.
//!
//! ```text
//!           ┌─▶ queue ─▶ thread: 8 senders ─▶ Logplex, an HTTPS drain
//!  router ──┼─▶ queue ─▶ thread: 1 sender  ─▶ syslog over TCP or TLS, JSON over TCP or a socket
//!           └─▶ queue ─▶ thread: 1 sender  ─▶ a rotated file, of text or JSON
//! ```
//!
//! - Each drain has a queue with a bound and a thread of its own: a slow one holds up neither
//!   another drain nor a dyno, and nothing here is shared but the lines themselves.
//! - The order of a dyno's lines holds at the drain. Several requests are on their way at once,
//!   each with lines of other dynos: all of one dyno's go through the same sender.
//! - Nothing goes missing in silence. What had no room (L12; L10 where Logplex says that) or
//!   could not be delivered (L13) is counted and told to the drain itself, again and again until
//!   it has heard of it.
//! - Without a drain there is no thread, and nothing of TLS is touched.

mod batch;
mod encode;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod http;
mod queue;
mod registry;
mod retry;
mod sender;
mod stream;
mod target;

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use hsup_driver_kit::hex;
use reqwest::{Client, Url};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    batch::Limits,
    encode::{Encoder, Encoding, token},
    file::RotatedFile,
    http::Poster,
    sender::{Delivery, Health, Sender},
    stream::Stream,
    target::Kind,
};
pub use self::{
    queue::Counts,
    target::{DrainTarget, ParseTargetError},
};
pub(super) use self::{
    queue::Queue,
    registry::{Drains, finish_all},
};
use super::{line::counted_past, shared::Shared};

/// What may wait for one drain, in bytes: seconds of a flood, or hours of a usual app.
const ROOM: usize = 32 << 20;
/// How many requests to an HTTP drain are on their way at once.
const LANES: usize = 8;
/// log-shuttle's batches, but for their bytes.
const HTTP_LIMITS: Limits = Limits {
    messages: 500,
    bytes: 256 * 1024,
};
const HTTP_LINGER: Duration = Duration::from_millis(250);
/// What is written at once to a file or a stream.
const WRITE_LIMITS: Limits = Limits {
    messages: usize::MAX,
    bytes: 256 * 1024,
};
/// How long a drain may take for what waits when nothing more comes.
pub(super) const LAST_LINES_WITHIN: Duration = Duration::from_secs(5);
/// How much longer its thread may take to report its end.
const OVER_WITHIN: Duration = Duration::from_millis(250);

/// How a drain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainStatus {
    /// Which of those that this hsup has begun, from 1.
    pub number: u32,
    /// Which, without its secrets.
    pub target: String,
    /// What became of its lines.
    pub counts: Counts,
}

/// Lines that a drain did not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undelivered {
    /// Which, without its secrets.
    pub target: String,
    /// How many still waited when hsup ended.
    pub lines: u64,
    /// How many had been dropped before that, announced or not.
    pub dropped: u64,
    /// How many had been lost before that, announced or not.
    pub lost: u64,
    /// What went wrong last, if anything did.
    pub why: Option<String>,
}

impl Undelivered {
    /// Whether all of them are none.
    fn is_nothing(&self) -> bool {
        self.lines + self.dropped + self.lost == 0
    }
}

/// For people: `12 lines were not delivered to …`.
impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target,
            lines,
            dropped,
            lost,
            why,
        } = self;
        write!(f, "{} not delivered to {target}", counted_past(*lines))?;
        if dropped + lost > 0 {
            write!(f, " ({dropped} dropped and {lost} lost before)")?;
        }
        match why {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}

/// A drain that works.
#[derive(Debug)]
pub(super) struct Drain {
    number: u32,
    pub(super) target: DrainTarget,
    pub(super) queue: Arc<Queue>,
    health: Arc<Health>,
    /// Its thread is to say at the end what was not delivered. Whoever resets it says it.
    tells: Arc<AtomicBool>,
    stop: CancellationToken,
    /// How many lines it did not deliver, once it is over.
    over: watch::Receiver<Option<u64>>,
}

impl Drain {
    /// Starts the thread of the drain with this number.
    ///
    /// # Errors
    /// When the system refuses the thread, or there is nothing to do HTTPS with.
    pub(super) fn start(
        number: u32,
        target: DrainTarget,
        shared: Weak<Shared>,
    ) -> io::Result<Self> {
        // Here, where it can still be refused: a drain that cannot begin would lose every line.
        let (lanes, client) = match &target.kind {
            Kind::Logplex(http) | Kind::Https(http) => (LANES, Some(http::client(http)?)),
            _ => (1, None),
        };
        let queue = Arc::new(Queue::new(lanes, ROOM));
        let stop = CancellationToken::new();
        let (is_over, over) = watch::channel(None);
        let health = Arc::new(Health::new(target.to_string(), shared));
        let tells = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&tells);
        let worker = Worker {
            target: target.clone(),
            queue: Arc::clone(&queue),
            lanes,
            client,
            health: Arc::clone(&health),
            stop: stop.clone(),
        };
        thread::Builder::new()
            .name("drain".to_owned())
            .spawn(move || {
                let left = worker.work();
                if told.swap(false, Ordering::AcqRel) {
                    worker.tell(left);
                }
                is_over.send_replace(Some(left));
            })?;
        Ok(Self {
            number,
            target,
            queue,
            health,
            tells,
            stop,
            over,
        })
    }

    pub(super) fn status(&self) -> DrainStatus {
        DrainStatus {
            number: self.number,
            target: self.target.to_string(),
            counts: self.queue.counts(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.borrow().is_some()
    }

    /// Lets nothing more in: what waits is still sent, and what that never delivers is said.
    pub(super) fn retire(&self) {
        self.tells.store(true, Ordering::Release);
        self.queue.end();
    }

    /// Takes from the thread of a retired drain what it would say at its end; answers whether it
    /// has not said it yet.
    pub(super) fn hush(&self) -> bool {
        self.tells.swap(false, Ordering::AcqRel)
    }

    /// Lets the drain send what waits, for [`LAST_LINES_WITHIN`] or until `stop`; answers what it
    /// did not get.
    pub(super) async fn finish(mut self, stop: CancellationToken) -> Undelivered {
        self.queue.end();
        let over = async {
            let over = self.over.wait_for(Option::is_some).await;
            over.ok().and_then(|left| *left)
        };
        let patience = async {
            tokio::select! {
                () = sleep(LAST_LINES_WITHIN) => {}
                () = stop.cancelled() => {}
            }
            self.stop.cancel();
            // A write to a disk that hangs cannot be ended.
            sleep(OVER_WITHIN).await;
        };
        let left = tokio::select! {
            left = over => left,
            () = patience => None,
        };
        let lines = left.unwrap_or_else(|| self.queue.give_up());
        undelivered(&self.target, &self.queue, &self.health, lines)
    }
}

/// What a drain that is over did not get, when it has given up so many lines.
fn undelivered(target: &DrainTarget, queue: &Queue, health: &Health, lines: u64) -> Undelivered {
    let counts = queue.counts();
    Undelivered {
        target: target.to_string(),
        lines,
        dropped: counts.dropped,
        // Those that are given up are counted as lost.
        lost: counts.lost.saturating_sub(lines),
        why: health.why(),
    }
}

/// What the thread of a drain has.
#[derive(Debug)]
struct Worker {
    target: DrainTarget,
    queue: Arc<Queue>,
    lanes: usize,
    /// What its lanes send requests with, where they do.
    client: Option<Client>,
    health: Arc<Health>,
    stop: CancellationToken,
}

impl Worker {
    /// Sends until the queue has ended and is empty, or its time is over; answers how many lines
    /// are left.
    fn work(&self) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => {
                runtime.block_on(self.send());
                runtime.shutdown_background();
            }
            Err(error) => {
                let shown = &self.target;
                self.health.note(&format!("Log drain {shown}: {error}"));
            }
        }
        self.queue.give_up()
    }

    /// Says what was never delivered, where that is anything.
    fn tell(&self, left: u64) {
        let undelivered = undelivered(&self.target, &self.queue, &self.health, left);
        if !undelivered.is_nothing() {
            self.health.note(&undelivered.to_string());
        }
    }

    async fn send(&self) {
        let mut tasks: JoinSet<()> = self.senders().into_iter().map(Sender::run).collect();
        let all = async { while tasks.join_next().await.is_some() {} };
        let time_over = async {
            self.queue.ended().await;
            sleep(LAST_LINES_WITHIN).await;
        };
        tokio::select! {
            () = all => {}
            () = time_over => {}
            () = self.stop.cancelled() => {}
        }
        drop(timeout(OVER_WITHIN, tasks.shutdown()).await);
    }

    fn senders(&self) -> Vec<Sender> {
        let sender = |lane| {
            let (encoding, delivery) = match (&self.target.kind, &self.client) {
                (Kind::Logplex(http), Some(client)) => {
                    let poster = Poster::new(client.clone(), http.clone(), None);
                    (Encoding::Logplex, Delivery::Http(poster))
                }
                (Kind::Https(http), Some(client)) => {
                    let token = drain_token(&http.url);
                    let poster = Poster::new(client.clone(), http.clone(), Some(token));
                    (Encoding::Https, Delivery::Http(poster))
                }
                (Kind::Syslog { peer, hostname }, _) => {
                    let hostname = hostname.clone().unwrap_or_else(own_hostname);
                    let hostname = token(&hostname, 255);
                    let stream = Stream::new(peer.clone());
                    (Encoding::Syslog { hostname }, Delivery::Stream(stream))
                }
                (Kind::JsonStream(peer), _) => {
                    (Encoding::Json, Delivery::Stream(Stream::new(peer.clone())))
                }
                (Kind::Text(place), _) => (
                    Encoding::Text,
                    Delivery::File(RotatedFile::new(place.clone())),
                ),
                (Kind::JsonFile(place), _) => (
                    Encoding::Json,
                    Delivery::File(RotatedFile::new(place.clone())),
                ),
                (Kind::Logplex(_) | Kind::Https(_), None) => {
                    unreachable!("a drain that is posted to has a client")
                }
            };
            let is_http = self.client.is_some();
            Sender {
                queue: Arc::clone(&self.queue),
                lane,
                encoder: Encoder::new(encoding),
                delivery,
                limits: if is_http { HTTP_LIMITS } else { WRITE_LIMITS },
                linger: if is_http { HTTP_LINGER } else { Duration::ZERO },
                health: Arc::clone(&self.health),
                held: VecDeque::new(),
                failures: 0,
            }
        };
        (0..self.lanes).map(sender).collect()
    }
}

/// The drain token by which an HTTPS drain knows us: the same at each start, and another for each
/// URL. It gives nothing of that away to who does not know it already.
fn drain_token(url: &Url) -> String {
    let digest = Sha256::digest(format!("{}\0{url}", own_hostname()));
    let hex = hex::encode(&digest[..16]);
    format!(
        "d.{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn own_hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
