//! Starts and restarts by hand that somebody waits for: until each dyno is up, or has failed
//! to be.

use std::collections::BTreeSet;

use thiserror::Error;
use tokio::sync::oneshot;

use crate::{dyno::Key, name::DynoName};

/// A dyno that was started and did not come up.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum NotUp {
    #[error("{name} did not come up: {why}")]
    Failed { name: DynoName, why: String },

    /// Before it was up somebody stopped it, or scaled it away.
    #[error("{name} was stopped meanwhile")]
    Stopped { name: DynoName },
}

/// Tells which dynos did not come up, once it is known of each.
pub(super) type Settled = oneshot::Receiver<Vec<NotUp>>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Restarts(Vec<Waiting>);

#[derive(Debug)]
struct Waiting {
    /// Neither up nor failed.
    open: BTreeSet<Key>,
    /// Names whose next dyno waits for the one before to end.
    coming: BTreeSet<DynoName>,
    not_up: Vec<NotUp>,
    reply: oneshot::Sender<Vec<NotUp>>,
}

impl Restarts {
    /// Answers which of `dynos`, and of the next ones of the names `coming`, did not come up,
    /// once that is known of each.
    pub(super) fn wait_for(&mut self, dynos: BTreeSet<Key>, coming: BTreeSet<DynoName>) -> Settled {
        let (reply, over) = oneshot::channel();
        self.0.push(Waiting {
            open: dynos,
            coming,
            not_up: Vec::new(),
            reply,
        });
        self.answer();
        over
    }

    /// There is a dyno of this name now.
    pub(super) fn spawned(&mut self, name: &DynoName, dyno: Key) {
        for waiting in &mut self.0 {
            if waiting.coming.remove(name) {
                waiting.open.insert(dyno);
            }
        }
    }

    /// The last dyno of this name has ended, and no other was started.
    pub(super) fn gone(&mut self, name: &DynoName) {
        for waiting in &mut self.0 {
            if waiting.coming.remove(name) {
                waiting.not_up.push(NotUp::Stopped { name: name.clone() });
            }
        }
        self.answer();
    }

    /// The dyno is up, or ran once, or goes because its name is another release's now.
    pub(super) fn settled(&mut self, dyno: Key) {
        for waiting in &mut self.0 {
            waiting.open.remove(&dyno);
        }
        self.answer();
    }

    /// The dyno ended, or was not ready in time.
    pub(super) fn failed(&mut self, dyno: Key, name: &DynoName, why: &str) {
        self.not_up(
            dyno,
            &NotUp::Failed {
                name: name.clone(),
                why: why.to_owned(),
            },
        );
    }

    /// The dyno goes, and no other of its name is wanted.
    pub(super) fn stopped(&mut self, dyno: Key, name: &DynoName) {
        self.not_up(dyno, &NotUp::Stopped { name: name.clone() });
    }

    fn not_up(&mut self, dyno: Key, how: &NotUp) {
        for waiting in &mut self.0 {
            if waiting.open.remove(&dyno) {
                waiting.not_up.push(how.clone());
            }
        }
        self.answer();
    }

    fn answer(&mut self) {
        let is_over = |waiting: &mut Waiting| waiting.open.is_empty() && waiting.coming.is_empty();
        for over in self.0.extract_if(.., is_over) {
            // Whoever asked may have gone.
            drop(over.reply.send(over.not_up));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: &[u64]) -> BTreeSet<Key> {
        numbers.iter().copied().map(Key).collect()
    }

    #[test]
    fn the_answer_comes_when_nothing_is_open_and_names_what_failed() {
        let mut restarts = Restarts::default();
        let mut both = restarts.wait_for(keys(&[1, 2]), BTreeSet::new());
        let mut second = restarts.wait_for(keys(&[2]), BTreeSet::new());
        restarts.settled(Key(1));
        restarts.settled(Key(9));
        assert!(both.try_recv().is_err(), "2 is open");
        let name: DynoName = "web.2".parse().unwrap();
        restarts.failed(Key(2), &name, "exit 1");
        // What it does after that is no answer any more.
        restarts.settled(Key(2));
        let why = "exit 1".to_owned();
        let failure = vec![NotUp::Failed { name, why }];
        assert_eq!(both.try_recv().as_ref(), Ok(&failure));
        assert_eq!(second.try_recv(), Ok(failure));
        let mut nothing = restarts.wait_for(BTreeSet::new(), BTreeSet::new());
        assert_eq!(nothing.try_recv(), Ok(Vec::new()));
    }

    #[test]
    fn a_dyno_that_follows_one_on_its_way_out_is_waited_for_unless_it_does_not_come() {
        let mut restarts = Restarts::default();
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let mut both = restarts.wait_for(BTreeSet::new(), names(&["web.1", "web.2"]));
        restarts.spawned(&"web.1".parse().unwrap(), Key(7));
        restarts.gone(&"web.2".parse().unwrap());
        assert!(both.try_recv().is_err(), "web.1 is open");
        restarts.settled(Key(7));
        let name = "web.2".parse().unwrap();
        assert_eq!(both.try_recv(), Ok(vec![NotUp::Stopped { name }]));
    }

    #[test]
    fn one_that_is_stopped_before_it_is_up_is_not_up() {
        let mut restarts = Restarts::default();
        let mut waiting = restarts.wait_for(keys(&[1]), BTreeSet::new());
        let name: DynoName = "web.1".parse().unwrap();
        restarts.stopped(Key(1), &name);
        // It ends by and by.
        restarts.settled(Key(1));
        let told = waiting.try_recv().unwrap();
        assert_eq!(told, [NotUp::Stopped { name }]);
        assert_eq!(told[0].to_string(), "web.1 was stopped meanwhile");
    }
}
