//! One look at everything that this driver has on the Swarm, again and again.
//!
//! A Swarm tells nobody when a task ends: its stream of events has none for tasks. So all tasks
//! of the driver are asked for in one call, whatever their number, and each dyno finds its own.

use std::{
    sync::{Arc, Once, RwLock},
    time::Duration,
};

use hsup_driver_kit::errors;
use tokio::{sync::watch, time};

use super::{
    manager::{self, LookError, PATIENCE},
    model::Task,
    view::View,
};
use crate::{
    config,
    engine::{self, Engine, Up},
};

/// How often it is looked while nothing is awaited, and while something is.
const LOOK: Duration = Duration::from_secs(1);
const HASTE: Duration = Duration::from_millis(250);
/// The Swarm, as its manager tells of it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    home: String,
    begun: Once,
    interest: watch::Sender<Interest>,
    views: watch::Sender<Arc<View>>,
    /// Why the last look came to nothing.
    trouble: RwLock<Option<String>>,
    /// Why nobody knows yet whether there are dynos to look at.
    awaited: RwLock<Option<String>>,
}

/// Who wants it looked at. One that nobody wants anything of is left alone, whatever its trouble.
#[derive(Clone, Copy, Debug, Default)]
struct Interest {
    /// How many rely on it: the driver is not ready without it.
    holds: usize,
    /// How many wait for something that is about to be.
    hasty: usize,
}

impl Interest {
    const fn is_any(self) -> bool {
        self.holds > 0 || self.hasty > 0
    }
}

/// Has the Swarm looked at, as long as it is held, and the driver depend on it.
#[derive(Debug)]
pub(crate) struct Hold(Cluster);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0
            .0
            .interest
            .send_modify(|interest| interest.holds -= 1);
    }
}

/// Has the Swarm looked at more often, as long as it is held.
#[derive(Debug)]
pub(crate) struct Haste(Cluster);

impl Drop for Haste {
    fn drop(&mut self) {
        self.0
            .0
            .interest
            .send_modify(|interest| interest.hasty -= 1);
    }
}

impl Cluster {
    /// A Swarm that nobody has asked for yet.
    pub(crate) fn new(engine: Engine, home: String) -> Self {
        Self(Arc::new(Inner {
            engine,
            home,
            begun: Once::new(),
            interest: watch::Sender::default(),
            views: watch::Sender::new(Arc::default()),
            trouble: RwLock::default(),
            awaited: RwLock::default(),
        }))
    }

    /// For who has a dyno there, or is there for such dynos.
    pub(crate) fn hold(&self) -> Hold {
        self.want(|interest| interest.holds += 1);
        Hold(self.clone())
    }

    /// For who waits for something that is about to be.
    pub(crate) fn hurry(&self) -> Haste {
        self.want(|interest| interest.hasty += 1);
        Haste(self.clone())
    }

    fn want(&self, more: impl FnOnce(&mut Interest)) {
        self.0.interest.send_modify(more);
        let cluster = self.clone();
        self.0
            .begun
            .call_once(|| drop(tokio::spawn(async move { cluster.look_always().await })));
    }

    /// Keeps why it is waited for while nobody looks at it; a look knows that by itself.
    pub(super) fn is_awaited(&self, trouble: Option<String>) {
        replace(&self.0.awaited, trouble);
    }

    /// Whether the driver can do without it, or with it as it is.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if self.0.interest.borrow().holds > 0 {
            return self.looked();
        }
        kept(&self.0.awaited).map_or(Ok(()), Err)
    }

    /// Whether the last look came to something, if there was one.
    pub(crate) fn looked(&self) -> Result<(), String> {
        kept(&self.0.trouble).map_or(Ok(()), Err)
    }

    /// Whether dynos can be started there: as the last look says, or the engine while nobody looks.
    pub(super) async fn usable(&self, up: &Up) -> Result<(), String> {
        self.looked()?;
        if self.0.interest.borrow().is_any() {
            return Ok(());
        }
        let asked = manager::manager(up).await;
        asked.map(drop).map_err(|error| errors::chain(&error))
    }

    /// What each look finds, from the last one on.
    pub(crate) fn views(&self) -> watch::Receiver<Arc<View>> {
        self.0.views.subscribe()
    }

    /// What the last look found.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.0.views.borrow())
    }

    /// Waits until the node of a service is not heard of.
    pub(crate) async fn until_away(&self, service: &str) {
        let mut views = self.views();
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            let is_away = view.node(service).is_some_and(|node| !node.is_ready());
            if is_away || views.changed().await.is_err() {
                return;
            }
        }
    }

    async fn look_always(&self) {
        let mut interest = self.0.interest.subscribe();
        // We ourselves hold the sender.
        while interest.wait_for(|some| some.is_any()).await.is_ok() {
            self.look_while_wanted(&mut interest).await;
            // What is seen next has nothing to do with it. That is no look, which wakes who waits.
            self.0.views.send_if_modified(|view| {
                *view = Arc::default();
                false
            });
            self.tell(None);
        }
    }

    async fn look_while_wanted(&self, interest: &mut watch::Receiver<Interest>) {
        let inner = &self.0;
        let mut own_node = None;
        let mut was_away = false;
        while interest.borrow().is_any() {
            was_away |= inner.engine.now().is_err();
            let up = inner.engine.up().await;
            match self.look(&up, &mut own_node, was_away).await {
                Ok(view) => {
                    if self.tell(None).is_some() {
                        tracing::info!("the Swarm's manager answers");
                    }
                    was_away = false;
                    inner.views.send_replace(Arc::new(view));
                }
                Err(error) => {
                    if matches!(&error, LookError::Call(error) if engine::code(error).is_none()) {
                        inner.engine.suspect();
                        was_away = true;
                    }
                    own_node = None;
                    let text = errors::chain(&error);
                    if self.tell(Some(text.clone())).as_ref() != Some(&text) {
                        tracing::warn!(error = text, "the Swarm cannot be looked at");
                    }
                    // Whoever waits is to see that.
                    inner.views.send_modify(|_| {});
                }
            }
            let is_hasty = interest.borrow().hasty > 0;
            if is_hasty {
                time::sleep(HASTE).await;
            } else {
                let hurried = interest.wait_for(|some| some.hasty > 0 || !some.is_any());
                drop(time::timeout(LOOK, hurried).await);
            }
        }
    }

    /// Keeps what is wrong, and gives what was wrong before.
    fn tell(&self, trouble: Option<String>) -> Option<String> {
        replace(&self.0.trouble, trouble)
    }

    async fn look(
        &self,
        up: &Up,
        own_node: &mut Option<String>,
        was_away: bool,
    ) -> Result<View, LookError> {
        let looking = async {
            if own_node.is_none() {
                *own_node = Some(manager::manager(up).await?);
            }
            let tasks = up.api.tasks(config::DRIVER, &self.0.home);
            let (tasks, nodes) = tokio::join!(tasks, up.api.nodes());
            Ok((tasks.map_err(LookError::of)?, nodes.map_err(LookError::of)?))
        };
        let looked = time::timeout(PATIENCE, looking).await;
        let (mut tasks, nodes) = looked.map_err(|_| LookError::Late)??;
        // Whatever the manager made of what it was asked for.
        let home = Some(&self.0.home);
        tasks.retain(|task: &Task| task.spec.container_spec.labels.get(config::DRIVER) == home);
        let own_node = own_node.as_deref().unwrap_or_default();
        Ok(self.view().next(tasks, nodes, was_away, own_node))
    }
}

fn kept(place: &RwLock<Option<String>>) -> Option<String> {
    place.read().map_or(None, |kept| kept.clone())
}

fn replace(place: &RwLock<Option<String>>, text: Option<String>) -> Option<String> {
    match place.write() {
        Ok(mut kept) => std::mem::replace(&mut kept, text),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Host;

    #[tokio::test]
    async fn its_trouble_is_the_drivers_while_somebody_relies_on_it() {
        let host = Host::find(Some("unix:///nowhere"), |_| None).unwrap();
        let engine = Engine::open(host).await.unwrap();
        let cluster = Cluster::new(engine, "home".to_owned());
        let hold = cluster.hold();
        cluster.tell(Some("no quorum".to_owned()));
        assert_eq!(cluster.ready(), Err("no quorum".to_owned()));
        // A Start that waits is told itself.
        let haste = cluster.hurry();
        drop(hold);
        assert_eq!(cluster.ready(), Ok(()));
        assert_eq!(cluster.looked(), Err("no quorum".to_owned()));
        drop(haste);
        // Before it is known whether there are dynos.
        cluster.is_awaited(Some("locked".to_owned()));
        assert_eq!(cluster.ready(), Err("locked".to_owned()));
        cluster.is_awaited(None);
        assert_eq!(cluster.ready(), Ok(()));
    }
}
