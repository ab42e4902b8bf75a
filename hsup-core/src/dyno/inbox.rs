//! What the supervisor has told a dyno and the dyno has not taken up yet.
//!
//! A queue of its own, because it is nearly always empty and there is one for every dyno:
//! a channel of tokio's keeps room for 32 commands ready, over a kilobyte each time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use super::Command;

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    commands: VecDeque<Command>,
    closed: bool,
}

impl Queue {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }
}

/// Where commands are put in; dropped, there will be no more.
#[derive(Debug)]
pub(super) struct Outside(Arc<Queue>);

/// Where they are taken out, one after the other.
#[derive(Debug)]
pub(super) struct Inbox(Arc<Queue>);

pub(super) fn inbox() -> (Outside, Inbox) {
    let queue = Arc::<Queue>::default();
    (Outside(Arc::clone(&queue)), Inbox(queue))
}

impl Outside {
    pub(super) fn put(&self, command: Command) {
        self.0.change(|state| state.commands.push_back(command));
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.change(|state| state.closed = true);
    }
}

impl Inbox {
    /// The next command; `None` when there is none and nobody is left to give one. Nothing
    /// is lost when this is given up halfway.
    pub(super) async fn take(&mut self) -> Option<Command> {
        loop {
            {
                let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
                match state.commands.pop_front() {
                    None if !state.closed => {}
                    next => return next,
                }
            }
            self.0.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::lifecycle::Stop;

    #[tokio::test]
    async fn commands_come_out_in_order_and_then_the_end() {
        let (outside, mut inbox) = inbox();
        outside.put(Command::Restart(Stop::Immediately));
        outside.put(Command::Retire(Stop::Immediately));
        assert!(matches!(inbox.take().await, Some(Command::Restart(_))));
        drop(outside);
        assert!(matches!(inbox.take().await, Some(Command::Retire(_))));
        assert!(inbox.take().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_a_command_and_with_its_giver() {
        let (outside, mut inbox) = inbox();
        let waited = timeout(Duration::from_secs(1), inbox.take()).await;
        assert!(waited.is_err(), "there is nothing to take");
        let taking = tokio::spawn(async move {
            let first = inbox.take().await;
            (first, inbox.take().await)
        });
        tokio::task::yield_now().await;
        outside.put(Command::Retire(Stop::Immediately));
        tokio::task::yield_now().await;
        drop(outside);
        let (first, second) = taking.await.unwrap();
        assert!(first.is_some() && second.is_none());
    }
}
