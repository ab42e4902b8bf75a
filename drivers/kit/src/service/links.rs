//! Which supervisors are connected, as far as a driver can tell.
//!
//! A connection belongs to every supervisor it has named in List or Start, and a supervisor
//! is there while an open connection has named it (`linger_ms` of the protocol).

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

/// A supervisor: the user it runs as, and its id.
pub(super) type Supervisor = (u32, Box<str>);

/// The open connections and whom they have named.
#[derive(Debug, Default)]
pub(super) struct Links {
    open: HashMap<u64, BTreeSet<Supervisor>>,
    away: HashMap<Supervisor, Instant>,
}

impl Links {
    pub(super) fn opened(&mut self, connection: u64) {
        self.open.insert(connection, BTreeSet::new());
    }

    pub(super) fn is_open(&self, connection: u64) -> bool {
        self.open.contains_key(&connection)
    }

    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// `connection` speaks for `supervisor`.
    pub(super) fn named(&mut self, connection: u64, uid: u32, supervisor: &str) {
        if let Some(named) = self.open.get_mut(&connection) {
            let supervisor: Supervisor = (uid, supervisor.into());
            self.away.remove(&supervisor);
            named.insert(supervisor);
        }
    }

    /// Forgets a connection, and gives the supervisors that are away from now on.
    pub(super) fn closed(&mut self, connection: u64, now: Instant) -> Vec<Supervisor> {
        let named = self.open.remove(&connection).unwrap_or_default();
        let gone: Vec<Supervisor> = named
            .into_iter()
            .filter(|supervisor| !self.open.values().any(|other| other.contains(supervisor)))
            .collect();
        for supervisor in &gone {
            self.away.insert(supervisor.clone(), now);
        }
        gone
    }

    /// `supervisor` left dynos behind, and has not been seen yet: it is away from now on.
    pub(super) fn expected(&mut self, uid: u32, supervisor: &str, now: Instant) {
        self.away.insert((uid, supervisor.into()), now);
    }

    /// Since when a supervisor has been away.
    pub(super) fn away_since(&self, uid: u32, supervisor: &str) -> Option<Instant> {
        self.away.get(&(uid, supervisor.into())).copied()
    }

    pub(super) fn anybody_away(&self) -> bool {
        !self.away.is_empty()
    }

    /// Forgets supervisors that left nothing behind.
    pub(super) fn forget(&mut self, has_dynos: impl Fn(&Supervisor) -> bool) {
        self.away.retain(|supervisor, _| has_dynos(supervisor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_is_away_when_its_last_connection_closes() {
        let mut links = Links::default();
        let now = Instant::now();
        links.opened(1);
        links.opened(2);
        links.named(1, 0, "a");
        links.named(2, 0, "a");
        links.named(2, 0, "b");
        assert_eq!(links.closed(2, now), [(0, "b".into())]);
        assert_eq!(links.away_since(0, "a"), None);
        assert_eq!(links.away_since(0, "b"), Some(now));
        assert_eq!(links.closed(1, now), [(0, "a".into())]);
        assert_eq!(links.count(), 0);
    }

    #[test]
    fn a_supervisor_that_comes_back_is_there() {
        let mut links = Links::default();
        links.opened(1);
        links.named(1, 0, "a");
        links.closed(1, Instant::now());
        links.opened(2);
        links.named(2, 0, "a");
        assert_eq!(links.away_since(0, "a"), None);
    }

    #[test]
    fn a_closed_connection_speaks_for_nobody() {
        let mut links = Links::default();
        let now = Instant::now();
        links.opened(1);
        links.named(1, 0, "a");
        links.closed(1, now);
        links.named(1, 0, "a");
        assert_eq!(links.away_since(0, "a"), Some(now));
    }

    #[test]
    fn users_do_not_share_a_supervisor_id() {
        let mut links = Links::default();
        links.opened(1);
        links.opened(2);
        links.named(1, 1, "a");
        links.named(2, 2, "a");
        assert_eq!(links.closed(1, Instant::now()), [(1, "a".into())]);
    }
}
