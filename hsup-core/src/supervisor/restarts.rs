//! Restarts by hand that somebody waits for: until each dyno is up, or has failed to be.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use crate::{dyno::Key, name::DynoName};

/// A dyno that was restarted and did not come up, and why.
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
    not_up: Vec<NotUp>,
    reply: oneshot::Sender<Vec<NotUp>>,
}

impl Restarts {
    /// Answers which of `dynos` did not come up, once that is known of each.
    pub(super) fn wait_for(&mut self, dynos: BTreeSet<Key>) -> Settled {
        let (reply, over) = oneshot::channel();
        self.0.push(Waiting {
            open: dynos,
            not_up: Vec::new(),
            reply,
        });
        self.answer();
        over
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
        for over in self.0.extract_if(.., |waiting| waiting.open.is_empty()) {
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
        let mut both = restarts.wait_for(keys(&[1, 2]));
        let mut second = restarts.wait_for(keys(&[2]));
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
        assert_eq!(restarts.wait_for(keys(&[])).try_recv(), Ok(Vec::new()));
    }
}
