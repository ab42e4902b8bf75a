//! What one look at the Swarm found, and what that says together with the looks before it.

use std::collections::HashMap;

use super::{
    fate::{self, Besides, Fate, Tasks},
    model::{Node, Task},
};

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

impl View {
    /// How far the dyno is whose service this is; `None` where there is no such service, or not yet.
    pub(crate) fn fate(&self, service: &str) -> Option<Fate> {
        let Seen { tasks, besides } = self.dynos.get(service)?;
        let task = &tasks.dyno;
        Some(fate::fate(task, self.nodes.get(&task.node_id), *besides))
    }

    /// Whether no task of this service has a process, whoever had it begun.
    pub(super) fn is_silent(&self, service: &str) -> bool {
        let is_gone = |task: &Task| fate::is_gone(task, self.nodes.get(&task.node_id));
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
    pub(super) fn next(
        &self,
        tasks: Vec<Task>,
        nodes: Vec<Node>,
        was_away: bool,
        own_node: &str,
    ) -> Self {
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
        let dynos = fate::by_service(tasks).into_iter().map(seen).collect();
        Self { dynos, nodes }
    }
}

#[cfg(test)]
mod tests {
    use hsup_driver_kit::proto::exit_status::How;

    use super::*;

    fn task(state: &str) -> Task {
        let answer = serde_json::json!({
            "ServiceID": "s", "NodeID": "n",
            "Status": {"State": state, "ContainerStatus": {"ContainerID": "c", "ExitCode": 137}},
        });
        serde_json::from_value(answer).unwrap()
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
