//! Who lives on this machine, by mark and by session.

use std::{collections::HashMap, fs, mem::MaybeUninit, sync::Arc};

use nix::unistd::{Pid, getsid};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
};

/// Wants the next census.
pub(super) type Taker = oneshot::Sender<Arc<Census>>;

/// Everybody who wants one.
#[derive(Debug)]
pub(super) struct Takers(pub(super) mpsc::UnboundedReceiver<Taker>);

/// One look at all processes.
#[derive(Debug, Default)]
pub(super) struct Census {
    by_mark: HashMap<u64, Vec<Pid>>,
    by_session: HashMap<i32, Vec<Pid>>,
}

impl Census {
    /// Looks at every process.
    fn take() -> Self {
        let mut census = Self::default();
        let Ok(entries) = fs::read_dir("/proc") else {
            return census;
        };
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids {
            let process = Pid::from_raw(pid);
            if let Some(mark) = mark_of(pid) {
                census.by_mark.entry(mark).or_default().push(process);
            }
            if let Ok(session) = getsid(Some(process)) {
                let members = census.by_session.entry(session.as_raw()).or_default();
                members.push(process);
            }
        }
        census
    }

    /// The dyno whose first process was `leader` and whose mark is `mark`.
    ///
    /// A process that we may not read the mark of, because it runs as somebody else, is
    /// known by its session only.
    pub(super) fn of(&self, leader: i32, mark: u64) -> Vec<Pid> {
        let mut members = self.by_mark.get(&mark).cloned().unwrap_or_default();
        for pid in self.by_session.get(&leader).into_iter().flatten() {
            if !members.contains(pid) {
                members.push(*pid);
            }
        }
        members
    }
}

/// Takes a census for everybody who has asked, whenever somebody has.
pub(super) async fn serve(mut takers: Takers) {
    while let Some(first) = takers.0.recv().await {
        // Whoever is about to ask in this round of the runtime is served, too.
        yield_now().await;
        let mut waiting = vec![first];
        while let Ok(taker) = takers.0.try_recv() {
            waiting.push(taker);
        }
        let census = Arc::new(Census::take());
        for taker in waiting {
            // It may have given up.
            drop(taker.send(Arc::clone(&census)));
        }
    }
}

/// Asks for a census that begins after this.
pub(super) async fn ask(takers: &mpsc::UnboundedSender<Taker>) -> Arc<Census> {
    let (taker, answer) = oneshot::channel();
    if takers.send(taker).is_ok()
        && let Ok(census) = answer.await
    {
        return census;
    }
    Arc::new(Census::take())
}

/// The soft limit that marks a process; `None` if it may not be read or is none.
#[expect(unsafe_code, reason = "nix has no prlimit(2)")]
pub(super) fn mark_of(pid: i32) -> Option<u64> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the kernel writes a whole rlimit where it answers 0, and reads nothing.
    let limit = unsafe {
        let result = libc::prlimit(
            pid,
            libc::RLIMIT_LOCKS,
            std::ptr::null(),
            limit.as_mut_ptr(),
        );
        if result != 0 {
            return None;
        }
        limit.assume_init()
    };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
