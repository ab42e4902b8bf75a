//! What the Swarm says of tasks and nodes, and what that says of a dyno.
//!
//! The states of a task: <https://docs.docker.com/engine/swarm/how-swarm-mode-works/swarm-task-states/>

use std::collections::HashMap;

use hsup_driver_kit::proto::{ExitStatus, exit_status::How};
use serde::Deserialize;

use crate::{api::or_none, life};

/// A task, as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Task {
    #[serde(rename = "ServiceID")]
    pub(crate) service_id: String,
    /// Empty until it is placed.
    #[serde(rename = "NodeID")]
    pub(crate) node_id: String,
    pub(crate) created_at: String,
    pub(crate) desired_state: String,
    pub(crate) status: TaskStatus,
    pub(crate) spec: TaskSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct TaskStatus {
    pub(crate) timestamp: String,
    pub(crate) state: String,
    pub(crate) err: String,
    #[serde(deserialize_with = "or_none")]
    pub(crate) container_status: ContainerStatus,
    #[serde(deserialize_with = "or_none")]
    pub(crate) port_status: PortStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    pub(crate) container_id: String,
    pub(crate) exit_code: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct PortStatus {
    #[serde(deserialize_with = "or_none")]
    pub(crate) ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Port {
    pub(crate) published_port: u16,
}

/// Of what it was made: the labels alone.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct TaskSpec {
    #[serde(deserialize_with = "or_none")]
    pub(crate) container_spec: ContainerSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ContainerSpec {
    #[serde(deserialize_with = "or_none")]
    pub(crate) labels: HashMap<String, String>,
}

/// A node of the Swarm.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Node {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) description: Description,
    pub(crate) status: NodeStatus,
    #[serde(deserialize_with = "or_none")]
    pub(crate) manager_status: ManagerStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Description {
    pub(crate) hostname: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct NodeStatus {
    /// `ready`, `down`, `disconnected` or `unknown`.
    pub(crate) state: String,
    pub(crate) addr: String,
}

/// Of a manager alone.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ManagerStatus {
    /// With the port of the Swarm's own protocol.
    pub(crate) addr: String,
}

impl Node {
    /// What people call it.
    pub(crate) fn name(&self) -> &str {
        match self.description.hostname.as_str() {
            "" => &self.id,
            name => name,
        }
    }

    /// Whether the Swarm hears of it.
    pub(crate) fn is_ready(&self) -> bool {
        self.status.state == "ready"
    }

    /// Whether the Swarm has given it up.
    pub(crate) fn is_down(&self) -> bool {
        self.status.state == "down"
    }

    /// Where other machines reach it.
    pub(crate) fn address(&self) -> &str {
        // A manager sees itself where it listens, which may be anywhere.
        let manager = self.manager_status.addr.rsplit_once(':');
        let manager = manager.map(|(ip, _)| ip.trim_matches(['[', ']']));
        match (manager, self.status.addr.as_str()) {
            (Some(ip), _) if !ip.is_empty() => ip,
            (_, addr) => addr,
        }
    }
}

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
}

impl Fate {
    /// Whether it has no process, and will have none.
    pub(crate) const fn is_over(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Ended(_))
    }
}

/// What became of the dyno whose task this is. `is_doubted`: its node was away meanwhile.
pub(crate) fn fate(task: &Task, node: Option<&Node>, is_doubted: bool) -> Fate {
    let status = &task.status;
    let has_run = !status.container_status.container_id.is_empty();
    if let Some(node) = node.filter(|node| node.is_down()) {
        let is_settled = matches!(
            status.state.as_str(),
            "complete" | "failed" | "shutdown" | "rejected"
        );
        if !is_settled {
            return lost(task, format!("its node {} is down", node.name()));
        }
    }
    match status.state.as_str() {
        "running" => Fate::Running,
        "complete" | "failed" | "shutdown" | "remove" if is_doubted && has_run => {
            let node = node.map_or("of the Swarm", Node::name);
            lost(task, format!("its node {node} was away when it ended"))
        }
        "complete" => ended(task, 0),
        "failed" if status.container_status.exit_code != 0 => {
            ended(task, status.container_status.exit_code)
        }
        "failed" if has_run => lost(task, format!("it failed: {}", status.err)),
        "shutdown" | "remove" if has_run => ended(task, status.container_status.exit_code),
        "shutdown" | "remove" => lost(task, "it was stopped before it ran".to_owned()),
        "failed" | "rejected" => Fate::Refused(status.err.clone()),
        "orphaned" => lost(task, "its node is gone".to_owned()),
        _ => Fate::Coming {
            is_placed: !task.node_id.is_empty(),
            why: status.err.clone(),
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

/// Of the tasks of a service the one that its dyno is: the only one that a node was found for. The
/// other one waits in vain, since the dyno was stopped.
pub(crate) fn first(tasks: impl IntoIterator<Item = Task>) -> HashMap<String, Task> {
    let mut found: HashMap<String, Task> = HashMap::new();
    for task in tasks {
        let rank = |task: &Task| (task.node_id.is_empty(), task.created_at.clone());
        match found.get(&task.service_id) {
            Some(other) if rank(other) <= rank(&task) => {}
            _ => drop(found.insert(task.service_id.clone(), task)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn task(state: &str, code: i64, err: &str) -> Task {
        let answer = serde_json::json!({
            "ServiceID": "s", "NodeID": "n", "CreatedAt": "2026-11-29T10:00:00Z",
            "Status": {
                "Timestamp": "2026-11-29T10:00:01.5Z", "State": state, "Err": err,
                "ContainerStatus": {"ContainerID": "c0ffee", "PID": 7, "ExitCode": code},
                "PortStatus": {"Ports": [{"PublishedPort": 32768}]},
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

    #[test_case("complete", 0, "", How::Code(0))]
    #[test_case("failed", 3, "task: non-zero exit (3)", How::Code(3))]
    #[test_case("failed", 137, "task: non-zero exit (137)", How::Signal("SIGKILL".to_owned()))]
    #[test_case("shutdown", 0, "", How::Code(0); "stopped, and ended in order")]
    #[test_case("shutdown", 143, "", How::Signal("SIGTERM".to_owned()); "stopped")]
    fn an_end_is_the_tasks(state: &str, code: i64, err: &str, expected: How) {
        let found = fate(&task(state, code, err), Some(&node("ready")), false);
        assert_eq!(how(found), Some(expected));
        // The same of a node that has gone down since.
        let found = fate(&task(state, code, err), Some(&node("down")), false);
        assert!(matches!(found, Fate::Ended(_)));
    }

    #[test_case("running", "down", false)]
    #[test_case("preparing", "down", false; "on its way")]
    #[test_case("failed", "ready", true; "an end while its node was away")]
    #[test_case("orphaned", "ready", false; "a node that is gone")]
    fn what_nobody_knows_is_lost(state: &str, node_state: &str, is_doubted: bool) {
        let found = fate(&task(state, 0, ""), Some(&node(node_state)), is_doubted);
        assert!(matches!(how(found), Some(How::Lost(_))));
    }

    #[test]
    fn a_node_that_is_not_heard_of_is_given_time() {
        for state in ["unknown", "disconnected"] {
            let found = fate(&task("running", 0, ""), Some(&node(state)), true);
            assert_eq!(found, Fate::Running);
        }
    }

    #[test]
    fn what_never_ran_is_refused() {
        let mut rejected = task("rejected", 0, "No such image: a");
        rejected.status.container_status = ContainerStatus::default();
        let found = fate(&rejected, Some(&node("ready")), false);
        assert_eq!(found, Fate::Refused("No such image: a".to_owned()));
    }

    #[test]
    fn the_task_on_a_node_is_the_dyno() {
        let on_node = task("shutdown", 0, "");
        let mut waits = task("pending", 0, "no suitable node");
        waits.node_id = String::new();
        waits.created_at = "2026-11-29T09:00:00Z".to_owned();
        for tasks in [[on_node.clone(), waits.clone()], [waits, on_node]] {
            assert_eq!(first(tasks)["s"].status.state, "shutdown");
        }
    }

    #[test]
    fn a_managers_address_is_the_one_it_advertises() {
        let mut manager = node("ready");
        assert_eq!(manager.address(), "10.0.0.1");
        manager.status.addr = "0.0.0.0".to_owned();
        manager.manager_status.addr = "10.0.0.2:2377".to_owned();
        assert_eq!(manager.address(), "10.0.0.2");
        manager.manager_status.addr = "[fd00::2]:2377".to_owned();
        assert_eq!(manager.address(), "fd00::2");
    }
}
