//! The tasks that act for dynos: each ends when it is through, or all end when hsup does.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// Whatever acts for a dyno is spawned here, so that nothing of it goes on when hsup leaves.
#[derive(Debug, Default)]
pub struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.lock();
        // Nobody else takes out what is through. One that panicked has said so.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Waits so long until they are through, and ends the others where they are, as a kill of hsup
    /// would. Nothing of them runs when this returns.
    pub async fn end(&self, within: Duration) {
        let deadline = Instant::now() + within;
        while let Some(mut tasks) = self.take() {
            let through = async { while tasks.join_next().await.is_some() {} };
            drop(timeout_at(deadline, through).await);
            tasks.shutdown().await;
        }
    }

    /// All that there are now, unless there are none: one may spawn another.
    fn take(&self) -> Option<JoinSet<()>> {
        let tasks = std::mem::take(&mut *self.lock());
        (!tasks.is_empty()).then_some(tasks)
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc};

    use tokio::{task::yield_now, time::sleep};

    use super::*;

    #[tokio::test]
    async fn nothing_goes_on_once_all_have_ended() {
        let tasks = Arc::new(Tasks::default());
        let alive = Arc::new(());
        for _ in 0..3 {
            let alive = Arc::clone(&alive);
            tasks.spawn(async move {
                pending::<()>().await;
                drop(alive);
            });
        }
        yield_now().await;
        tasks.end(Duration::ZERO).await;
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_soon_through_may_end_with_what_it_spawns() {
        let tasks = Arc::new(Tasks::default());
        let done = Arc::new(Mutex::new(Vec::new()));
        let (spawner, told) = (Arc::clone(&tasks), Arc::clone(&done));
        tasks.spawn(async move {
            sleep(Duration::from_millis(400)).await;
            told.lock().unwrap().push("one");
            let after = async move {
                sleep(Duration::from_millis(400)).await;
                told.lock().unwrap().push("the next");
                sleep(Duration::from_secs(1)).await;
                told.lock().unwrap().push("too late");
            };
            spawner.spawn(after);
        });
        tasks.end(Duration::from_secs(1)).await;
        assert_eq!(*done.lock().unwrap(), ["one", "the next"]);
        assert_eq!(Arc::strong_count(&done), 1);
    }

    #[tokio::test]
    async fn those_that_are_through_are_not_kept() {
        let tasks = Tasks::default();
        for _ in 0..100 {
            tasks.spawn(async {});
            yield_now().await;
        }
        assert!(tasks.lock().len() <= 2);
    }
}
