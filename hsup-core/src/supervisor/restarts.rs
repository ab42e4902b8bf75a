//! Starts and restarts by hand that somebody waits for: until each dyno is up, or has failed
//! to be.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use crate::{dyno::Key, name::DynoName};

/// A dyno that was started and did not come up, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotUp {
    pub(super) name: DynoName,
    pub(super) why: String,
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
            waiting.coming.remove(name);
        }
        self.answer();
    }

    /// The dyno is up, or nobody wants it any more.
    pub(super) fn settled(&mut self, dyno: Key) {
        for waiting in &mut self.0 {
            waiting.open.remove(&dyno);
        }
        self.answer();
    }

    /// The dyno ended, or was not ready in time.
    pub(super) fn failed(&mut self, dyno: Key, name: &DynoName, why: &str) {
        for waiting in &mut self.0 {
            if waiting.open.remove(&dyno) {
                waiting.not_up.push(NotUp {
                    name: name.clone(),
                    why: why.to_owned(),
                });
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
        let failure = vec![NotUp { name, why }];
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
        assert_eq!(both.try_recv(), Ok(Vec::new()));
    }
}
