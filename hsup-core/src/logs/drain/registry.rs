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
}

impl Drains {
    /// # Errors
    /// When the system refuses a thread.
    pub(in crate::logs) fn start(
        targets: Vec<DrainTarget>,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let own = targets
            .into_iter()
            .map(|target| begin(target, shared))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            own,
            ..Self::default()
        })
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
        if let Some(old) = self.of_release.take() {
            let mut state = shared.lock();
            state.drains.retain(|queue| !Arc::ptr_eq(queue, &old.queue));
            drop(state);
            old.queue.end();
            self.ending.retain(|drain| !drain.is_over());
            self.ending.push(old);
        }
        let target = match wanted {
            Ok(target) => target?,
            Err(error) => return Some(format!("LogplexURL is not used: {error}")),
        };
        let shown = target.to_string();
        match begin(target, shared) {
            Ok(drain) => {
                self.of_release = Some(drain);
                Some(format!("Lines are sent to {shown}"))
            }
            Err(error) => Some(format!("Log drain {shown}: {error}")),
        }
    }

    pub(in crate::logs) fn status(&self) -> Vec<DrainStatus> {
        self.all().map(Drain::status).collect()
    }

    pub(in crate::logs) fn take(&mut self) -> Vec<Drain> {
        let Self {
            own,
            of_release,
            ending,
            ..
        } = std::mem::take(self);
        own.into_iter().chain(of_release).chain(ending).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Drain> {
        self.own.iter().chain(&self.of_release)
    }
}

fn begin(target: DrainTarget, shared: &Arc<Shared>) -> io::Result<Drain> {
    let drain = Drain::start(target, Arc::downgrade(shared))?;
    let mut state = shared.lock();
    if state.ended {
        drop(state);
        drain.queue.end();
    } else {
        state.drains.push(Arc::clone(&drain.queue));
    }
    Ok(drain)
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
    all.into_iter()
        .filter(|all| all.lines + all.dropped + all.lost > 0)
        .collect()
}
