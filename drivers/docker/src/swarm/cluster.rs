//! One look at everything that this driver has on the Swarm, again and again.
//!
//! A Swarm tells nobody when a task ends: its stream of events has none for tasks. So all tasks
//! of the driver are asked for in one call, whatever their number, and each dyno finds its own.

use std::{
    collections::HashMap,
    sync::{Arc, Once, RwLock},
    time::Duration,
};

use bollard::{
    errors::Error,
    models::{LocalNodeState, SwarmInfo},
};
use hsup_driver_kit::{Status, errors};
use thiserror::Error as ThisError;
use tokio::{sync::watch, time};

use super::task::{self, Besides, Fate, Node, Task, Tasks};
use crate::{
    config,
    engine::{self, Engine, Up},
};

/// How often it is looked while nothing is awaited, and while something is.
const LOOK: Duration = Duration::from_secs(1);
const HASTE: Duration = Duration::from_millis(250);
/// How many tasks of a service the Swarm must keep: the one that has ended, and the one that waits
/// in vain.
const HISTORY: i64 = 2;
/// How long a manager may take to answer: one without a quorum may never.
const PATIENCE: Duration = Duration::from_secs(15);

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

/// What was there at one look.
#[derive(Debug, Default)]
pub(crate) struct View {
    dynos: HashMap<String, Seen>,
    nodes: HashMap<String, Node>,
}

/// A dyno, by its service.
#[derive(Clone, Debug)]
struct Seen {
    tasks: Tasks,
    besides: Besides,
}

/// The Swarm cannot be looked at.
#[derive(Debug, ThisError)]
pub(crate) enum LookError {
    #[error("the Swarm's manager does not answer")]
    Call(#[source] Error),
    #[error("the Swarm's manager did not answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("the engine is about to be a manager of its Swarm again, or cannot: see `docker info`")]
    Preparing,
    #[error(
        "the engine is no manager of a Swarm: make it one with `docker swarm init` or \
         `docker swarm join`, or name one that is, with DOCKER_HOST or --host"
    )]
    NoManager,
    #[error(
        "the Swarm forgets tasks as soon as they have ended, and how: have it keep some, with \
         `docker swarm update --task-history-limit 5`"
    )]
    NoHistory,
}

impl LookError {
    /// What a call that failed says of the Swarm.
    pub(super) fn of(error: Error) -> Self {
        match &error {
            // Its way out is that of a worker, too, and of one that has left; but not of one that
            // has just begun, or has lost the others.
            Error::DockerResponseServerError { message, .. }
                if message.contains("not a swarm manager")
                    && !message.contains("being prepared") =>
            {
                Self::NoManager
            }
            _ => Self::Call(error),
        }
    }
}

impl View {
    /// How far the dyno is whose service this is; `None` where there is no such service, or not yet.
    pub(crate) fn fate(&self, service: &str) -> Option<Fate> {
        let Seen { tasks, besides } = self.dynos.get(service)?;
        let task = &tasks.dyno;
        Some(task::fate(task, self.nodes.get(&task.node_id), *besides))
    }

    /// Whether no task of this service has a process, whoever had it begun.
    pub(super) fn is_silent(&self, service: &str) -> bool {
        let is_gone = |task: &Task| task::is_gone(task, self.nodes.get(&task.node_id));
        let seen = self.dynos.get(service);
        seen.is_none_or(|seen| seen.tasks.iter().all(is_gone))
    }

    /// The node that a dyno was placed on.
    pub(crate) fn node(&self, service: &str) -> Option<&Node> {
        self.nodes.get(&self.dynos.get(service)?.tasks.dyno.node_id)
    }

    /// The port of its node that leads to the dyno.
    pub(crate) fn port(&self, service: &str) -> Option<u16> {
        let task = &self.dynos.get(service)?.tasks.dyno;
        task.port(self.nodes.get(&task.node_id))
    }

    /// What a look after this one found. `was_away`: the manager was, between the two.
    fn next(&self, tasks: Vec<Task>, nodes: Vec<Node>, was_away: bool, own_node: &str) -> Self {
        let nodes: HashMap<_, _> = nodes
            .into_iter()
            .map(|node| (node.id.clone(), node))
            .collect();
        let seen = |(service, tasks): (String, Tasks)| {
            let task = &tasks.dyno;
            let is_away = nodes
                .get(&task.node_id)
                .is_some_and(|node| !node.is_ready());
            let is_doubted = if task.status.state == "running" {
                is_away
            } else {
                let before = self.dynos.get(&service);
                before.is_some_and(|before| before.besides.is_doubted)
                    || (was_away && task.node_id == own_node)
            };
            let besides = Besides {
                is_doubted,
                is_stopped: tasks.is_stopped(),
                is_changed: tasks.is_changed(),
            };
            (service, Seen { tasks, besides })
        };
        let dynos = task::by_service(tasks).into_iter().map(seen).collect();
        Self { dynos, nodes }
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
        let asked = manager(up).await;
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
                *own_node = Some(manager(up).await?);
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

/// What the engine is in a Swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It is in none.
    None,
    Worker,
    /// Also one that is not sure yet, is locked, or fails: it may have been a manager before.
    Manager,
}

/// What the engine itself says of that: it needs no Swarm that answers for it.
pub(super) async fn part(up: &Up) -> Result<Part, LookError> {
    if up.traits.is_podman {
        return Ok(Part::None);
    }
    let info = time::timeout(PATIENCE, up.docker.info()).await;
    let info = info.map_err(|_| LookError::Late)?;
    let swarm = info.map_err(LookError::Call)?.swarm;
    Ok(part_in(&swarm.unwrap_or_default()))
}

fn part_in(swarm: &SwarmInfo) -> Part {
    match swarm.local_node_state {
        None | Some(LocalNodeState::EMPTY | LocalNodeState::INACTIVE) => Part::None,
        Some(LocalNodeState::ACTIVE) if swarm.control_available != Some(true) => Part::Worker,
        Some(_) => Part::Manager,
    }
}

/// The node that the engine is, if it is a manager of a Swarm that hsup can use.
pub(crate) async fn manager(up: &Up) -> Result<String, LookError> {
    let asking = async {
        let info = up.docker.info().await.map_err(LookError::Call)?;
        let swarm = info.swarm.unwrap_or_default();
        let id = match &swarm.node_id {
            Some(id) if swarm.control_available == Some(true) && !id.is_empty() => id.clone(),
            _ if part_in(&swarm) == Part::Manager => return Err(LookError::Preparing),
            _ => return Err(LookError::NoManager),
        };
        let swarm = up.docker.inspect_swarm().await.map_err(LookError::of)?;
        let orchestration = swarm.spec.and_then(|spec| spec.orchestration);
        let kept = orchestration.and_then(|kept| kept.task_history_retention_limit);
        if kept.is_some_and(is_too_short) {
            return Err(LookError::NoHistory);
        }
        Ok(id)
    };
    let asked = time::timeout(PATIENCE, asking).await;
    asked.map_err(|_| LookError::Late)?
}

/// Whether a Swarm that keeps so many tasks forgets some too early. A negative number is all of them.
fn is_too_short(history: i64) -> bool {
    (0..HISTORY).contains(&history)
}

impl From<LookError> for Status {
    fn from(error: LookError) -> Self {
        let text = errors::chain(&error);
        match error {
            LookError::NoManager | LookError::NoHistory => Self::failed_precondition(text),
            LookError::Call(_) | LookError::Late | LookError::Preparing => Self::unavailable(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use hsup_driver_kit::proto::exit_status::How;
    use test_case::test_case;

    use super::*;
    use crate::context::Host;

    fn task(state: &str) -> Task {
        let answer = serde_json::json!({
            "ServiceID": "s", "NodeID": "n",
            "Status": {"State": state, "ContainerStatus": {"ContainerID": "c", "ExitCode": 137}},
        });
        serde_json::from_value(answer).unwrap()
    }

    #[test_case("inactive", false, Part::None)]
    #[test_case("active", false, Part::Worker)]
    #[test_case("active", true, Part::Manager)]
    #[test_case("pending", false, Part::Manager; "one that begins")]
    #[test_case("pending", true, Part::Manager; "one that the others are away of")]
    #[test_case("locked", false, Part::Manager)]
    #[test_case("error", false, Part::Manager; "one that fails for now")]
    fn only_who_is_in_no_swarm_has_nothing_there(state: &str, control: bool, expected: Part) {
        let info = serde_json::json!({"LocalNodeState": state, "ControlAvailable": control});
        assert_eq!(part_in(&serde_json::from_value(info).unwrap()), expected);
    }

    #[test_case(-1, false; "all of them")]
    #[test_case(0, true)]
    #[test_case(1, true)]
    #[test_case(2, false)]
    #[test_case(5, false)]
    fn the_swarm_must_keep_two_tasks(history: i64, expected: bool) {
        assert_eq!(is_too_short(history), expected);
    }

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

    #[test_case(
        "This node is not a swarm manager. Use \"docker swarm init\" or …",
        true
    )]
    #[test_case(
        "This node is not a swarm manager. Manager is being prepared or has trouble connecting …",
        false
    )]
    #[test_case("Swarm is encrypted and needs to be unlocked", false)]
    fn who_is_no_manager_is_told_what_is_the_matter(said: &str, expected: bool) {
        let error = Error::DockerResponseServerError {
            status_code: 503,
            message: said.to_owned(),
        };
        let found = LookError::of(error);
        assert_eq!(matches!(found, LookError::NoManager), expected, "{found:?}");
    }

    fn node(state: &str) -> Node {
        let answer = serde_json::json!({"ID": "n", "Status": {"State": state}});
        serde_json::from_value(answer).unwrap()
    }

    /// What is known of an end after looks at which the task and its node were in these states,
    /// the manager away before some.
    fn after(looks: &[(&str, &str, bool)], own_node: &str) -> How {
        let mut view = View::default();
        for (state, of_node, was_away) in looks {
            view = view.next(vec![task(state)], vec![node(of_node)], *was_away, own_node);
        }
        match view.fate("s") {
            Some(Fate::Ended(status)) => status.how.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_end_is_believed_where_the_node_was_there() {
        let killed = How::Signal("SIGKILL".to_owned());
        let ready = |state| (state, "ready", false);
        assert_eq!(after(&[ready("running"), ready("failed")], "n"), killed);
        // It was away, and the dyno was seen to run since.
        let back = [
            ("running", "disconnected", false),
            ready("running"),
            ready("failed"),
        ];
        assert_eq!(after(&back, "n"), killed);
        // A manager that was away is another machine.
        let other = [ready("running"), ("failed", "ready", true)];
        assert_eq!(after(&other, "m"), killed);
    }

    #[test]
    fn an_end_that_was_told_is_known_whatever_becomes_of_the_node() {
        let gone = [("running", "ready", false), ("failed", "down", false)];
        let killed = How::Signal("SIGKILL".to_owned());
        assert_eq!(after(&gone, "m"), killed);
    }

    #[test]
    fn an_engine_that_was_away_is_doubted() {
        let away = [
            ("running", "disconnected", false),
            ("failed", "ready", false),
        ];
        assert!(matches!(after(&away, "m"), How::Lost(_)));
        let restarted = [("running", "ready", false), ("failed", "ready", true)];
        assert!(matches!(after(&restarted, "n"), How::Lost(_)));
    }

    #[test]
    fn a_service_that_is_not_there_has_no_fate() {
        let view = View::default().next(vec![task("running")], Vec::new(), false, "n");
        assert_eq!(view.fate("s"), Some(Fate::Running));
        assert_eq!(view.fate("t"), None);
        assert!(
            view.next(Vec::new(), Vec::new(), false, "n")
                .fate("s")
                .is_none()
        );
    }
}
