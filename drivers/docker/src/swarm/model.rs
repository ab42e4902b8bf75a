//! Tasks and nodes, as the engine's API has them. Of each only what is used is read.

use std::{collections::HashMap, net::IpAddr};

use serde::Deserialize;

use crate::api::or_none;

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
    /// How far the Swarm wants it.
    pub(crate) desired_state: String,
    pub(crate) status: TaskStatus,
    pub(crate) spec: TaskSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct TaskStatus {
    pub(crate) timestamp: String,
    pub(crate) state: String,
    /// What its node did last.
    pub(crate) message: String,
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
    pub(crate) target_port: u16,
    pub(crate) published_port: u16,
}

/// Of what it was made: whose it is, and for which nodes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct TaskSpec {
    #[serde(deserialize_with = "or_none")]
    pub(crate) container_spec: ContainerSpec,
    #[serde(deserialize_with = "or_none")]
    pub(crate) placement: Placement,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Placement {
    #[serde(deserialize_with = "or_none")]
    pub(crate) constraints: Vec<String>,
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
    pub(crate) spec: NodeSpec,
    pub(crate) description: Description,
    pub(crate) status: NodeStatus,
    #[serde(deserialize_with = "or_none")]
    pub(crate) manager_status: ManagerStatus,
}

/// What the Swarm is to do with it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct NodeSpec {
    /// `active`, `pause` or `drain`.
    pub(crate) availability: String,
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

impl Task {
    /// The port of its node that leads to it.
    pub(crate) fn port(&self, node: Option<&Node>) -> Option<u16> {
        let ports = &self.status.port_status.ports;
        let first = ports.first()?;
        let of_target = |port: &&Port| port.target_port == first.target_port;
        // Docker 20.10 has another one for IPv6, which it tells of behind that for IPv4.
        let port = match node.map(|node| node.address().parse()) {
            Some(Ok(IpAddr::V6(_))) => ports.iter().rfind(of_target),
            _ => Some(first),
        };
        port.map(|port| port.published_port)
    }
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

    /// Whether the Swarm is to take everything away from it.
    pub(super) fn is_drained(&self) -> bool {
        self.spec.availability == "drain"
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

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    /// One whose node publishes these ports.
    fn task(ports: &serde_json::Value) -> Task {
        let answer = serde_json::json!({"Status": {"PortStatus": {"Ports": ports}}});
        serde_json::from_value(answer).unwrap()
    }

    fn node() -> Node {
        let answer = serde_json::json!({"ID": "n", "Status": {"Addr": "10.0.0.1"}});
        serde_json::from_value(answer).unwrap()
    }

    #[test_case("10.0.0.1", 32768)]
    #[test_case("fd00::1", 32770; "with a port of its own")]
    fn a_dyno_is_reached_at_the_port_of_its_nodes_address(address: &str, expected: u16) {
        let ports = serde_json::json!([
            {"TargetPort": 5000, "PublishedPort": 32768},
            {"TargetPort": 5000, "PublishedPort": 32770},
            {"TargetPort": 6000, "PublishedPort": 32772},
        ]);
        let once = serde_json::json!([{"PublishedPort": 32768}]);
        let mut node = node();
        node.status.addr = address.to_owned();
        assert_eq!(task(&ports).port(Some(&node)), Some(expected));
        assert_eq!(task(&once).port(Some(&node)), Some(32768));
        assert_eq!(Task::default().port(Some(&node)), None);
    }

    #[test]
    fn a_managers_address_is_the_one_it_advertises() {
        let mut manager = node();
        assert_eq!(manager.address(), "10.0.0.1");
        manager.status.addr = "0.0.0.0".to_owned();
        manager.manager_status.addr = "10.0.0.2:2377".to_owned();
        assert_eq!(manager.address(), "10.0.0.2");
        manager.manager_status.addr = "[fd00::2]:2377".to_owned();
        assert_eq!(manager.address(), "fd00::2");
    }
}
