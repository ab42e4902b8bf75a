//! What empties one lane of a drain: gathers a batch, delivers it, tries again, keeps the books.
//!
//! One batch of a lane is on its way at a time, and the next one leaves when that has been
//! taken or given up. So the lines of a dyno, which are all in one lane, arrive in order.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use reqwest::StatusCode;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    batch::{Batch, Filling, Limits},
    encode::Encoder,
    file::RotatedFile,
    http::Poster,
    queue::{Block, Found, Portion, Queue},
    retry::{Answer, Verdict, backoff, judge},
    stream::Stream,
};
use crate::{
    logs::{
        SYSTEM,
        shared::{Shared, now_unix_us},
    },
    random,
};

/// People are told of a drain once so many tries have failed.
const TELL_AFTER: u32 = 2;
/// And of one that comes and goes, not more often than this.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// One line is enough to begin.
const ANYTHING: Portion = Portion { bytes: 1, lines: 1 };

/// How a batch gets to the drain.
#[derive(Debug)]
pub(super) enum Delivery {
    Http(Poster),
    Stream(Stream),
    File(RotatedFile),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) queue: Arc<Queue>,
    pub(super) lane: usize,
    pub(super) encoder: Encoder,
    pub(super) delivery: Delivery,
    pub(super) limits: Limits,
    /// How long a batch that is not full waits for more.
    pub(super) linger: Duration,
    pub(super) health: Arc<Health>,
    /// Taken from the queue, and not in a batch yet.
    pub(super) held: VecDeque<Block>,
    /// How many batches in a row came to nothing.
    pub(super) failures: u32,
}

impl Sender {
    /// Sends until the queue has ended and is empty.
    pub(super) async fn run(mut self) {
        loop {
            let look = if self.held.is_empty() {
                self.queue.look(self.lane)
            } else {
                Found::Work
            };
            match look {
                Found::Nothing => self.queue.wait(self.lane, ANYTHING).await,
                Found::End => break,
                Found::Work => {
                    if let Some(batch) = self.gather().await {
                        self.deliver(batch).await;
                    }
                }
            }
        }
        if let Delivery::Stream(stream) = &mut self.delivery {
            stream.close().await;
        }
    }

    async fn gather(&mut self) -> Option<Batch> {
        let announcement = self.queue.announce();
        let now = now_unix_us();
        let mut filling = Filling::new(self.limits, &mut self.encoder, announcement, now);
        let until = Instant::now() + self.linger;
        loop {
            let (queue, lane) = (&self.queue, self.lane);
            if filling.fill(&mut self.encoder, queue, lane, &mut self.held)
                || self.linger.is_zero()
                || queue.is_through(lane)
                || timeout_at(until, queue.wait(lane, filling.room()))
                    .await
                    .is_err()
            {
                // What came while it waited goes with it.
                filling.fill(&mut self.encoder, queue, lane, &mut self.held);
                return filling.done();
            }
        }
    }

    async fn deliver(&mut self, batch: Batch) {
        let begun = Instant::now();
        for tries in 1.. {
            let answer = match &mut self.delivery {
                Delivery::Http(poster) => poster.deliver(&batch).await,
                Delivery::Stream(stream) => stream.deliver(&batch).await,
                Delivery::File(file) => file.deliver(&batch),
            };
            match judge(&answer, tries, begun.elapsed(), random::u64()) {
                Verdict::Sent => {
                    self.queue.sent(batch.lines.count);
                    self.failures = 0;
                    return self.health.works(&self.queue);
                }
                Verdict::Again(pause) => {
                    self.health.fails(&answer, tries);
                    sleep(pause).await;
                }
                Verdict::Lost => {
                    self.queue.lost(batch.lines, batch.announcement);
                    self.health.fails(&answer, TELL_AFTER);
                    self.failures += 1;
                    if self.failures > 1 || batch.lines.count == 0 {
                        // A drain that refuses everything is not asked without a pause.
                        sleep(backoff(self.failures + 3, random::u64())).await;
                    }
                    // The next batch is no less a request than the same one again.
                    sleep(answer.asked()).await;
                    return;
                }
            }
        }
    }
}

/// What people know of a drain.
#[derive(Debug)]
pub(super) struct Health {
    shown: String,
    shared: Weak<Shared>,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    failing: bool,
    at: Option<Instant>,
    /// What went wrong since it last worked.
    why: Option<String>,
}

impl Health {
    pub(super) fn new(shown: String, shared: Weak<Shared>) -> Self {
        Self {
            shown,
            shared,
            told: Mutex::default(),
        }
    }

    /// What went wrong since it last worked.
    pub(super) fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }

    fn fails(&self, answer: &Answer, tries: u32) {
        {
            let mut told = self.lock();
            told.why = Some(words(answer));
            let is_quiet = told.at.is_some_and(|at| at.elapsed() < TELL_EVERY);
            if tries < TELL_AFTER || told.failing || is_quiet {
                return;
            }
            told.failing = true;
            told.at = Some(Instant::now());
        }
        self.note(&format!("Log drain {}: {}", self.shown, words(answer)));
    }

    fn works(&self, queue: &Queue) {
        {
            let mut told = self.lock();
            told.why = None;
            if !std::mem::take(&mut told.failing) {
                return;
            }
        }
        let counts = queue.counts();
        self.note(&format!(
            "Log drain {} takes lines again; {} were dropped and {} lost until now",
            self.shown, counts.dropped, counts.lost
        ));
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something to people.
    pub(super) fn note(&self, text: &str) {
        if let Some(shared) = self.shared.upgrade() {
            shared.note(SYSTEM, text);
        }
    }
}

/// What went wrong, for people.
fn words(answer: &Answer) -> String {
    match answer {
        Answer::Broken(why) | Answer::Unwritten(why) => why.clone(),
        Answer::Status(status, _) => {
            let reason = StatusCode::from_u16(*status)
                .ok()
                .and_then(|status| status.canonical_reason());
            match reason {
                Some(reason) => format!("it answers {status} {reason}"),
                None => format!("it answers {status}"),
            }
        }
        Answer::Taken => "it works".to_owned(),
    }
}
