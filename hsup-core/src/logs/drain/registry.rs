//! All drains of an hsup: those of its command line, and the one of the release.

use std::{io, sync::Arc};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{Drain, DrainStatus, DrainTarget, Undelivered};
use crate::{logs::shared::Shared, release::LogTarget};

/// See the module.
#[derive(Debug, Default)]
pub(in crate::logs) struct Drains {
    own: Vec<Drain>,
    of_release: Option<Drain>,
    /// The log target of the release as it was last seen, usable or not.
    seen: Option<LogTarget>,
    /// Those of earlier releases that still send what waits.
    ending: Vec<Drain>,
    /// How many there have been: each keeps its number, and none is given twice.
    begun: u32,
}

impl Drains {
    /// # Errors
    /// When the system refuses a thread.
    pub(in crate::logs) fn start(
        targets: Vec<DrainTarget>,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let mut drains = Self::default();
        for target in targets {
            let shown = target.to_string();
            let named = |error| io::Error::other(format!("log drain {shown}: {error}"));
            let drain = drains.begin(target, shared).map_err(named)?;
            shared.change_drains(None, Some(&drain.queue));
            drains.own.push(drain);
        }
        Ok(drains)
    }

    fn begin(&mut self, target: DrainTarget, shared: &Arc<Shared>) -> io::Result<Drain> {
        self.begun += 1;
        Drain::start(self.begun, target, Arc::downgrade(shared))
    }

    /// Makes the drain of the release be this one; answers what people should know of it.
    pub(in crate::logs) fn follow(
        &mut self,
        target: Option<&LogTarget>,
        shared: &Arc<Shared>,
    ) -> Option<String> {
        if self.seen.as_ref() == target {
            return None;
        }
        self.seen = target.cloned();
        // One that the command line names goes before, and is no reason to send lines twice.
        if self.own.iter().any(|drain| drain.target.is_logplex()) {
            return None;
        }
        let wanted = target.map(DrainTarget::of_release).transpose();
        let is_same = matches!(&wanted, Ok(wanted)
            if self.of_release.as_ref().map(|drain| &drain.target) == wanted.as_ref());
        if is_same {
            return None;
        }
        let begun = match &wanted {
            Ok(Some(target)) => Some(self.begin(target.clone(), shared)),
            _ => None,
        };
        let old = self.of_release.take();
        let new = begun.as_ref().and_then(|begun| begun.as_ref().ok());
        // At once: a line in between would be nobody's, and in nobody's books.
        shared.change_drains(
            old.as_ref().map(|drain| &drain.queue),
            new.map(|drain| &drain.queue),
        );
        if let Some(old) = old {
            old.retire();
            self.ending.retain(|drain| !drain.is_over());
            self.ending.push(old);
        }
        let target = match wanted {
            Ok(target) => target?,
            Err(error) => return Some(format!("LogplexURL is not used: {error}")),
        };
        match begun? {
            Ok(drain) => {
                self.of_release = Some(drain);
                let how = if target.bares_its_token() {
                    ", and its token in plain text: use https"
                } else {
                    ""
                };
                Some(format!("Lines are sent to {target}{how}"))
            }
            Err(error) => Some(format!("Log drain {target}: {error}")),
        }
    }

    /// Those of earlier releases, too, until they are over.
    pub(in crate::logs) fn status(&self) -> Vec<DrainStatus> {
        let ending = self.ending.iter().filter(|drain| !drain.is_over());
        let now = self.own.iter().chain(&self.of_release);
        now.chain(ending).map(Drain::status).collect()
    }

    /// All that have something to say at the end of hsup.
    pub(in crate::logs) fn take(&mut self) -> Vec<Drain> {
        let Self {
            own,
            of_release,
            ending,
            ..
        } = std::mem::take(self);
        let ending = ending.into_iter().filter(Drain::hush);
        own.into_iter().chain(of_release).chain(ending).collect()
    }
}

/// Ends all of them at once; `stop` ends the waiting.
pub(in crate::logs) async fn finish_all(
    drains: Vec<Drain>,
    stop: impl Future<Output = ()>,
) -> Vec<Undelivered> {
    if drains.is_empty() {
        return Vec::new();
    }
    let token = CancellationToken::new();
    let finished = drains.into_iter().map(|drain| drain.finish(token.clone()));
    let finished = join_all(finished);
    tokio::pin!(finished);
    let all = tokio::select! {
        biased;
        all = &mut finished => all,
        () = stop => {
            token.cancel();
            finished.await
        }
    };
    all.into_iter().filter(|one| !one.is_nothing()).collect()
}
