//! How much of a driver one user may have at a time who is neither root nor the driver's own
//! (driver protocol §12, R9): a driver that runs as root serves callers that it does not trust.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use nix::unistd::Uid;

/// What a stranger may have at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Dynos that are not removed.
    pub dynos: usize,
    /// Calls in flight, Waits too.
    pub calls: usize,
    /// Open connections.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dynos: 1_000,
            // Some Waits for each dyno, and what else goes on.
            calls: 4_096,
            // A supervisor has two.
            connections: 64,
        }
    }
}

/// Whether limits are for this user.
pub(crate) fn is_stranger(uid: Uid) -> bool {
    !uid.is_root() && uid != Uid::effective()
}

/// So many of something for each stranger. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    most: usize,
    used: Arc<Mutex<HashMap<Uid, usize>>>,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub(super) struct Pass(Option<(Quota, Uid)>);

impl Quota {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            used: Arc::default(),
        }
    }

    /// Takes one for `uid`, who is no stranger or has not got all of them.
    pub(super) fn take(&self, uid: Uid) -> Option<Pass> {
        if is_stranger(uid) {
            self.count(uid)
        } else {
            Some(Pass(None))
        }
    }

    fn count(&self, uid: Uid) -> Option<Pass> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = used.entry(uid).or_default();
        if *of_user >= self.most {
            return None;
        }
        *of_user += 1;
        Some(Pass(Some((self.clone(), uid))))
    }

    pub(super) const fn most(&self) -> usize {
        self.most
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some((quota, uid)) = &self.0 else {
            return;
        };
        let mut used = quota.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = used.get_mut(uid) {
            *of_user -= 1;
            if *of_user == 0 {
                used.remove(uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stranger_has_so_many_and_gets_them_back() {
        let quota = Quota::new(2);
        let (one, other) = (Uid::from_raw(4711), Uid::from_raw(4712));
        let passes = [quota.count(one), quota.count(one), quota.count(other)];
        assert!(passes.iter().all(Option::is_some));
        assert!(quota.count(one).is_none());
        assert!(quota.count(other).is_some());
        drop(passes);
        assert!(quota.count(one).is_some());
        assert!(quota.used.lock().unwrap().is_empty(), "a user is forgotten");
    }

    #[test]
    fn root_and_the_driver_itself_have_no_limit() {
        let quota = Quota::new(0);
        assert!(quota.take(Uid::from_raw(0)).is_some());
        assert!(quota.take(Uid::effective()).is_some());
        assert!(quota.take(Uid::from_raw(4711)).is_none());
    }
}
