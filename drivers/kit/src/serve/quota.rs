//! How much of a driver one user may have at a time who is neither root nor the driver's own
//! (docs/driver-rules.md §12, R9): a driver that runs as root serves callers that it does not
//! trust.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    /// Bytes of the requests that are read or carried out, beyond a small part of each that is
    /// free.
    pub request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dynos: 1_000,
            // Some Waits for each dyno, and what else goes on.
            calls: 4_096,
            // A supervisor has two.
            connections: 64,
            // A thousand Starts at once of an app with as many config vars as there may be.
            request_bytes: 64 << 20,
        }
    }
}

/// Whether limits are for this user.
pub(crate) fn is_stranger(uid: Uid) -> bool {
    !uid.is_root() && uid != Uid::effective()
}

/// So many of something for each stranger. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Quota {
    most: usize,
    used: Arc<Mutex<HashMap<Uid, usize>>>,
}

/// Some of them, given back when dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Whose they are; nobody's, who has no limit.
    of: Option<(Quota, Uid)>,
    many: usize,
}

impl Quota {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            used: Arc::default(),
        }
    }

    /// Takes one for `uid`, who is no stranger or has not got all of them.
    pub(crate) fn take(&self, uid: Uid) -> Option<Pass> {
        let mut pass = self.none(uid);
        pass.grow(1).then_some(pass)
    }

    /// Takes none for `uid` yet.
    pub(super) fn none(&self, uid: Uid) -> Pass {
        Pass {
            of: is_stranger(uid).then(|| (self.clone(), uid)),
            many: 0,
        }
    }

    pub(crate) const fn most(&self) -> usize {
        self.most
    }

    fn used(&self) -> MutexGuard<'_, HashMap<Uid, usize>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// Takes what is missing to `many`; if there is not so much left, takes nothing.
    pub(super) fn grow(&mut self, many: usize) -> bool {
        let more = many.saturating_sub(self.many);
        let Some((quota, uid)) = self.of.as_ref().filter(|_| more > 0) else {
            return true;
        };
        let mut used = quota.used();
        let of_user = used.get(uid).copied().unwrap_or_default();
        if more > quota.most.saturating_sub(of_user) {
            return false;
        }
        used.insert(*uid, of_user + more);
        self.many = many;
        true
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some((quota, uid)) = &self.of else {
            return;
        };
        let mut used = quota.used();
        if let Some(of_user) = used.get_mut(uid) {
            *of_user -= self.many;
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
        let passes = [quota.take(one), quota.take(one), quota.take(other)];
        assert!(passes.iter().all(Option::is_some));
        assert!(quota.take(one).is_none());
        assert!(quota.take(other).is_some());
        drop(passes);
        assert!(quota.take(one).is_some());
        assert!(quota.used.lock().unwrap().is_empty(), "a user is forgotten");
    }

    #[test]
    fn a_pass_grows_by_what_is_missing_or_not_at_all() {
        let quota = Quota::new(10);
        let uid = Uid::from_raw(4711);
        let (mut one, mut other) = (quota.none(uid), quota.none(uid));
        assert!(one.grow(6) && one.grow(4), "it has those");
        assert!(!other.grow(5));
        assert!(other.grow(4));
        assert!(!one.grow(usize::MAX));
        drop(one);
        assert!(other.grow(10));
        drop(other);
        assert!(quota.used().is_empty(), "a user is forgotten");
    }

    #[test]
    fn root_and_the_driver_itself_have_no_limit() {
        let quota = Quota::new(0);
        assert!(quota.take(Uid::from_raw(0)).is_some());
        assert!(quota.take(Uid::effective()).is_some());
        assert!(quota.take(Uid::from_raw(4711)).is_none());
    }
}
