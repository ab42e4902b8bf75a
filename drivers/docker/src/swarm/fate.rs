//! What becomes of a dyno by what the Swarm says of its tasks and nodes.
//!
//! The states of a task: <https://docs.docker.com/engine/swarm/how-swarm-mode-works/swarm-task-states/>

use std::collections::{HashMap, hash_map::Entry};

use hsup_driver_kit::proto::{ExitStatus, exit_status::How};

use super::model::{Node, Task, TaskStatus};
use crate::life;

/// What no node is: a constraint for a service that is to end.
pub(crate) const NOWHERE: &str = "node.id==none";
/// What a node says of a task whose container it could not start.
const STARTING: &str = "starting";

/// How far a dyno is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fate {
    /// It is on its way to a node.
    Coming {
        /// A node has been found for it.
        is_placed: bool,
        /// Why it does not get further, if the Swarm says so.
        why: String,
    },
    Running,
    /// It never ran.
    Refused(String),
    Ended(ExitStatus),
    /// Somebody else changed its service, which runs another task for that, or soon will.
    Changed,
}

impl Fate {
    /// Whether it has no process, and will have none.
    const fn is_over(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Ended(_))
    }
}

/// What is known of a dyno besides its task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Besides {
    /// Its node was away since it was last seen to run: how it ended may be anything.
    pub(crate) is_doubted: bool,
    /// This driver had it stopped: its service is for no node any more.
    pub(crate) is_stopped: bool,
    /// Its service has a task besides that this driver had no part in.
    pub(crate) is_changed: bool,
}

/// What became of the dyno whose task this is.
pub(crate) fn fate(task: &Task, node: Option<&Node>, besides: Besides) -> Fate {
    let TaskStatus {
        state,
        message,
        err,
        container_status,
        ..
    } = &task.status;
    if besides.is_changed {
        return Fate::Changed;
    }
    let name = node.map_or("of the Swarm", Node::name);
    let code = container_status.exit_code;
    let has_run = !container_status.container_id.is_empty();
    let is_end = matches!(
        state.as_str(),
        "complete" | "failed" | "shutdown" | "remove"
    );
    if node.is_some_and(Node::is_down) && !is_end && state != "rejected" {
        return lost(task, format!("its node {name} is down"));
    }
    if is_end && besides.is_doubted && has_run {
        return lost(task, format!("its node {name} was away when it ended"));
    }
    // Its node may be faster to say that the process has ended than that it was told to. A dyno
    // that had ended by itself is taken for one of these only if nobody looked before the drain.
    let is_sent_away = task.desired_state == "shutdown"
        && node.is_some_and(Node::is_drained)
        && !besides.is_stopped;
    let sent_away = || {
        lost(
            task,
            format!("the Swarm ended it: its node {name} was drained, or does not fit any more"),
        )
    };
    match state.as_str() {
        "running" => Fate::Running,
        "complete" if is_sent_away => sent_away(),
        "complete" => ended(task, code),
        // The command cannot be executed.
        "failed" if matches!(code, 126 | 127) => ended(task, code),
        "failed" if message == STARTING || !has_run => Fate::Refused(err.clone()),
        "failed" if is_sent_away => sent_away(),
        // Also where the node failed to clear away what was around it.
        "failed" => ended(task, code),
        "rejected" => Fate::Refused(err.clone()),
        "shutdown" | "remove" if !besides.is_stopped => sent_away(),
        "shutdown" | "remove" if has_run => ended(task, code),
        "shutdown" | "remove" => lost(task, "it was stopped before it ran".to_owned()),
        "orphaned" => lost(task, "its node is gone".to_owned()),
        _ => Fate::Coming {
            is_placed: !task.node_id.is_empty(),
            why: err.clone(),
        },
    }
}

fn ended(task: &Task, code: i64) -> Fate {
    exit(task, life::how(code))
}

fn lost(task: &Task, why: String) -> Fate {
    exit(task, How::Lost(why))
}

fn exit(task: &Task, how: How) -> Fate {
    Fate::Ended(ExitStatus {
        how: Some(how),
        // A Swarm does not say.
        oom_killed: false,
        exited_at_unix_ms: life::at(&task.status.timestamp),
    })
}

/// Whether a task has no process, and will have none unless a node is found for it.
pub(crate) fn is_gone(task: &Task, node: Option<&Node>) -> bool {
    task.node_id.is_empty() || fate(task, node, Besides::default()).is_over()
}

impl Task {
    fn is_for_no_node(&self) -> bool {
        let constraints = &self.spec.placement.constraints;
        constraints.iter().any(|constraint| constraint == NOWHERE)
    }
}

/// The tasks of a service.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    /// The one that its dyno is: the first that a node was found for.
    pub(crate) dyno: Task,
    pub(crate) others: Vec<Task>,
}

impl Tasks {
    fn new(dyno: Task) -> Self {
        let others = Vec::new();
        Self { dyno, others }
    }

    fn add(&mut self, mut task: Task) {
        let rank = |task: &Task| (task.node_id.is_empty(), task.created_at.clone());
        if rank(&task) < rank(&self.dyno) {
            std::mem::swap(&mut task, &mut self.dyno);
        }
        self.others.push(task);
    }

    /// Whether one waits in vain, since the dyno was stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.others.iter().any(Task::is_for_no_node)
    }

    /// Whether there is one that somebody else had the Swarm begin.
    pub(crate) fn is_changed(&self) -> bool {
        !self.others.iter().all(Task::is_for_no_node)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Task> {
        self.others.iter().chain([&self.dyno])
    }
}

/// The tasks of each service.
pub(crate) fn by_service(tasks: impl IntoIterator<Item = Task>) -> HashMap<String, Tasks> {
    let mut found: HashMap<String, Tasks> = HashMap::new();
    for task in tasks {
        match found.entry(task.service_id.clone()) {
            Entry::Vacant(place) => {
                place.insert(Tasks::new(task));
            }
            Entry::Occupied(mut place) => place.get_mut().add(task),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::{super::model::ContainerStatus, *};

    fn task(state: &str, code: i64, err: &str) -> Task {
        let answer = serde_json::json!({
            "ServiceID": "s", "NodeID": "n", "CreatedAt": "2026-11-29T10:00:00Z",
            "Status": {
                "Timestamp": "2026-11-29T10:00:01.5Z", "State": state, "Err": err,
                "ContainerStatus": {"ContainerID": "c0ffee", "PID": 7, "ExitCode": code},
            },
        });
        serde_json::from_value(answer).unwrap()
    }

    fn node(state: &str) -> Node {
        let answer = serde_json::json!({
            "ID": "n", "Description": {"Hostname": "one"},
            "Status": {"State": state, "Addr": "10.0.0.1"},
        });
        serde_json::from_value(answer).unwrap()
    }

    fn how(fate: Fate) -> Option<How> {
        match fate {
            Fate::Ended(status) => status.how,
            _ => None,
        }
    }

    const DOUBTED: Besides = Besides {
        is_doubted: true,
        is_stopped: false,
        is_changed: false,
    };
    const STOPPED: Besides = Besides {
        is_doubted: false,
        is_stopped: true,
        is_changed: false,
    };

    #[test_case("complete", 0, "", How::Code(0))]
    #[test_case("failed", 0, "error while removing network", How::Code(0); "and its node's trouble after it")]
    #[test_case("failed", 3, "task: non-zero exit (3)", How::Code(3))]
    #[test_case("failed", 137, "task: non-zero exit (137)", How::Signal("SIGKILL".to_owned()))]
    #[test_case("shutdown", 0, "", How::Code(0); "stopped, and ended in order")]
    #[test_case("shutdown", 143, "", How::Signal("SIGTERM".to_owned()); "stopped")]
    fn an_end_is_the_tasks(state: &str, code: i64, err: &str, expected: How) {
        let found = fate(&task(state, code, err), Some(&node("ready")), STOPPED);
        assert_eq!(how(found), Some(expected));
        // The same of a node that has gone down since.
        let found = fate(&task(state, code, err), Some(&node("down")), STOPPED);
        assert!(matches!(
            found,
            Fate::Ended(ExitStatus {
                how: Some(How::Code(_) | How::Signal(_)),
                ..
            })
        ));
    }

    #[test_case("running", "down", Besides::default())]
    #[test_case("preparing", "down", Besides::default(); "on its way")]
    #[test_case("failed", "ready", DOUBTED; "an end while its node was away")]
    #[test_case("shutdown", "ready", Besides::default(); "a node that is drained")]
    #[test_case("orphaned", "ready", Besides::default(); "a node that is gone")]
    fn what_nobody_knows_is_lost(state: &str, node_state: &str, besides: Besides) {
        let found = fate(&task(state, 0, ""), Some(&node(node_state)), besides);
        assert!(matches!(how(found), Some(How::Lost(_))));
    }

    #[test_case("complete", 0)]
    #[test_case("failed", 143)]
    fn what_ends_as_its_node_is_drained_is_lost(state: &str, code: i64) {
        let mut task = task(state, code, "");
        task.desired_state = "shutdown".to_owned();
        let mut node = node("ready");
        let found = fate(&task, Some(&node), Besides::default());
        assert!(!matches!(how(found), Some(How::Lost(_))), "its own end");
        let drained = serde_json::json!({"Availability": "drain"});
        node.spec = serde_json::from_value(drained).unwrap();
        let found = fate(&task, Some(&node), Besides::default());
        assert!(matches!(how(found), Some(How::Lost(_))));
        // Who had it stopped is told how it ended.
        let found = fate(&task, Some(&node), STOPPED);
        assert!(!matches!(how(found), Some(How::Lost(_))));
    }

    #[test]
    fn a_node_that_is_not_heard_of_is_given_time() {
        for state in ["unknown", "disconnected"] {
            let found = fate(&task("running", 0, ""), Some(&node(state)), DOUBTED);
            assert_eq!(found, Fate::Running);
        }
    }

    #[test]
    fn what_never_ran_is_refused() {
        let mut rejected = task("rejected", 0, "No such image: a");
        rejected.status.container_status = ContainerStatus::default();
        let mut failed = task("failed", 0, "No such image: a");
        failed.status.message = STARTING.to_owned();
        for task in [rejected, failed] {
            let found = fate(&task, Some(&node("ready")), Besides::default());
            assert_eq!(found, Fate::Refused("No such image: a".to_owned()));
        }
    }

    /// One that a node is not found for yet, or never.
    fn waiting(constraint: &str) -> Task {
        let mut task = task("pending", 0, "no suitable node");
        task.node_id = String::new();
        task.created_at = "2026-11-29T09:00:00Z".to_owned();
        task.spec.placement.constraints = vec![constraint.to_owned()];
        task
    }

    #[test]
    fn the_task_on_a_node_is_the_dyno() {
        let (on_node, waits) = (task("shutdown", 0, ""), waiting(NOWHERE));
        for tasks in [[on_node.clone(), waits.clone()], [waits, on_node]] {
            let tasks = &by_service(tasks)["s"];
            assert_eq!(tasks.dyno.status.state, "shutdown");
            assert!(tasks.is_stopped() && !tasks.is_changed());
        }
    }

    #[test]
    fn another_task_for_a_node_is_somebody_elses() {
        let mut second = task("running", 0, "");
        second.created_at = "2026-11-29T11:00:00Z".to_owned();
        for other in [second, waiting("node.role==worker")] {
            let tasks = &by_service([task("shutdown", 143, ""), other])["s"];
            assert_eq!(tasks.dyno.status.state, "shutdown");
            assert!(tasks.is_changed() && !tasks.is_stopped());
        }
        let changed = Besides {
            is_changed: true,
            ..STOPPED
        };
        let found = fate(&task("shutdown", 143, ""), Some(&node("ready")), changed);
        assert_eq!(found, Fate::Changed);
        // Whatever is there of it runs, but for what has ended and what waits.
        assert!(!is_gone(&task("running", 0, ""), Some(&node("ready"))));
        assert!(is_gone(&task("shutdown", 143, ""), Some(&node("ready"))));
        assert!(is_gone(&waiting(NOWHERE), None));
    }
}
