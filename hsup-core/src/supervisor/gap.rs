//! For how long fewer dynos ran than were wanted, because of one release.
//!
//! It begins when a dyno of the good release goes for the new one, and ends when every name
//! that lost its dyno has one again that is ready, of whichever release. The times between,
//! when nothing is missing, do not count.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::{name::DynoName, releases::Id};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Gap {
    /// Whose fault it is.
    pub(super) release_id: Id,
    /// Names that lost their dyno to it, at some time.
    touched: BTreeSet<DynoName>,
    missing: BTreeSet<DynoName>,
    since: Instant,
    before: Duration,
}

impl Gap {
    /// Nothing is missing yet because of this release, but for what one that it overtakes has
    /// taken down.
    pub(super) fn new(release_id: Id, overtaken: Option<Self>, now: Instant) -> Self {
        let missing = overtaken.map_or_else(BTreeSet::new, |gap| gap.missing);
        Self {
            release_id,
            touched: missing.clone(),
            missing,
            since: now,
            before: Duration::ZERO,
        }
    }

    /// The good release's dyno of that name has to go.
    pub(super) fn lost(&mut self, name: &DynoName, now: Instant) {
        self.touched.insert(name.clone());
        self.lost_again(name, now);
    }

    /// The new release's dyno of that name has to go, which may have stood in for the good
    /// one's.
    pub(super) fn lost_again(&mut self, name: &DynoName, now: Instant) {
        if !self.touched.contains(name) {
            return;
        }
        if self.missing.is_empty() {
            self.since = now;
        }
        self.missing.insert(name.clone());
    }

    /// The name has a dyno that is ready, or is wanted no more. Answers whether this ended
    /// the gap.
    pub(super) fn back(&mut self, name: &DynoName, now: Instant) -> bool {
        let was_last = self.missing.remove(name) && self.missing.is_empty();
        if was_last {
            self.before += now - self.since;
        }
        was_last
    }

    /// How long it was until now.
    pub(super) fn so_far(&self, now: Instant) -> Duration {
        if self.missing.is_empty() {
            self.before
        } else {
            self.before + (now - self.since)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DynoName {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_time_in_which_something_is_missing_counts() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut gap = Gap::new(2, None, begin);
        assert_eq!(gap.so_far(at(5)), Duration::ZERO);
        gap.lost(&name("web.1"), at(10));
        gap.lost(&name("web.2"), at(11));
        assert!(!gap.back(&name("web.1"), at(12)));
        assert_eq!(gap.so_far(at(13)), Duration::from_secs(3));
        assert!(gap.back(&name("web.2"), at(14)));
        assert_eq!(gap.so_far(at(100)), Duration::from_secs(4));
        // The new one did serve; now it is undone.
        gap.lost_again(&name("web.1"), at(100));
        assert!(gap.back(&name("web.1"), at(103)));
        assert_eq!(gap.so_far(at(200)), Duration::from_secs(7));
    }

    #[test]
    fn a_name_that_the_good_release_did_not_have_is_not_missed() {
        let now = Instant::now();
        let mut gap = Gap::new(2, None, now);
        gap.lost_again(&name("cron.1"), now);
        assert!(!gap.back(&name("cron.1"), now));
        assert_eq!(gap.so_far(now + Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn what_an_overtaken_release_took_down_is_missing_on() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut old = Gap::new(2, None, begin);
        old.lost(&name("web.1"), at(1));
        let mut new = Gap::new(3, Some(old.clone()), at(5));
        assert_eq!(old.so_far(at(5)), Duration::from_secs(4));
        assert!(new.back(&name("web.1"), at(7)));
        assert_eq!(new.so_far(at(9)), Duration::from_secs(2));
    }
}
