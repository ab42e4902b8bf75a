//! The service that a dyno is.

use bollard::models::{
    ContainerCreateBody, EndpointPortConfig, EndpointPortConfigProtocolEnum,
    EndpointPortConfigPublishModeEnum, EndpointSpec, EndpointSpecModeEnum, Limit, Mount,
    NetworkAttachmentConfig, ResourceObject, ServiceSpec, ServiceSpecMode,
    ServiceSpecModeReplicated, TaskSpec, TaskSpecContainerSpec, TaskSpecLogDriver,
    TaskSpecPlacement, TaskSpecPlacementPreferences, TaskSpecPlacementSpread, TaskSpecResources,
    TaskSpecRestartPolicy, TaskSpecRestartPolicyConditionEnum,
};
use hsup_driver_kit::{hex, proto::StartRequest};
use sha2::{Digest as _, Sha256};

use super::wish::Wish;
use crate::config::{self, Order};

/// Which call made a service: of two that are to make the same one.
pub(super) const ATTEMPT: &str = "hsup.attempt";
/// The process type that is reached from elsewhere.
pub(super) const WEB: &str = "web";
/// Longer than what people tell dynos apart by.
const LONGEST_START: usize = 40;

/// The name of a dyno's service: of two drivers' or users' dynos with the same id, too. A Swarm
/// takes 63 characters.
pub(super) fn name(home: &str, uid: u32, dyno_id: &str) -> String {
    let hash = Sha256::digest(format!("{home} {uid} {dyno_id}"));
    let start: String = dyno_id.chars().take(LONGEST_START).collect();
    format!("{start}-{}", hex::encode(&hash[..8]))
}

/// The service that runs what the container would, in the network of this name.
pub(super) fn service(order: &Order<'_>, wish: &Wish, network: &str, attempt: &str) -> ServiceSpec {
    let request = order.request;
    let body = config::container(order);
    let mut labels = body.labels.clone().unwrap_or_default();
    labels.insert(ATTEMPT.to_owned(), attempt.to_owned());
    ServiceSpec {
        name: Some(name(order.home, order.uid, &request.dyno_id)),
        labels: Some(labels),
        mode: Some(ServiceSpecMode {
            replicated: Some(ServiceSpecModeReplicated { replicas: Some(1) }),
            ..ServiceSpecMode::default()
        }),
        endpoint_spec: Some(endpoint(request)),
        task_template: Some(task(request, body, wish, network)),
        ..ServiceSpec::default()
    }
}

fn task(request: &StartRequest, body: ContainerCreateBody, wish: &Wish, network: &str) -> TaskSpec {
    let host = body.host_config.unwrap_or_default();
    let log = host.log_config.map(|log| TaskSpecLogDriver {
        name: log.typ,
        options: log.config,
    });
    let grace = i64::try_from(wish.grace.as_nanos()).unwrap_or(i64::MAX);
    TaskSpec {
        container_spec: Some(TaskSpecContainerSpec {
            image: body.image,
            labels: body.labels,
            command: body.entrypoint,
            args: body.cmd,
            env: body
                .env
                .map(|env| env.iter().map(|text| literal(text)).collect()),
            dir: body.working_dir,
            user: body.user,
            mounts: host
                .mounts
                .map(|mounts| mounts.into_iter().map(untouched).collect()),
            init: host.init,
            stop_grace_period: Some(grace),
            ..TaskSpecContainerSpec::default()
        }),
        // What a dyno may use is what its node must have to spare.
        resources: Some(TaskSpecResources {
            limits: Some(Limit {
                nano_cpus: host.nano_cpus,
                memory_bytes: host.memory,
                pids: host.pids_limit,
            }),
            reservations: Some(ResourceObject {
                nano_cpus: host.nano_cpus,
                memory_bytes: host.memory,
                ..ResourceObject::default()
            }),
            ..TaskSpecResources::default()
        }),
        // Who starts a dyno again is the supervisor.
        restart_policy: Some(TaskSpecRestartPolicy {
            condition: Some(TaskSpecRestartPolicyConditionEnum::NONE),
            ..TaskSpecRestartPolicy::default()
        }),
        placement: Some(placement(wish)),
        networks: Some(vec![NetworkAttachmentConfig {
            target: Some(network.to_owned()),
            // By these names the other dynos find it.
            aliases: Some(vec![
                request.process_type.clone(),
                format!("{}.{}", request.process_type, request.process_number),
            ]),
            ..NetworkAttachmentConfig::default()
        }]),
        log_driver: log,
        ..TaskSpec::default()
    }
}

/// A text as the Swarm leaves it, which takes it for a template of Go's.
/// <https://docs.docker.com/reference/cli/docker/service/create/#create-services-using-templates>
fn literal(text: &str) -> String {
    text.replace("{{", r#"{{"{{"}}"#)
}

fn untouched(mount: Mount) -> Mount {
    Mount {
        source: mount.source.as_deref().map(literal),
        target: mount.target.as_deref().map(literal),
        ..mount
    }
}

/// Without wishes the Swarm itself takes the node with the fewest tasks.
fn placement(wish: &Wish) -> TaskSpecPlacement {
    let preference = |label: &String| TaskSpecPlacementPreferences {
        spread: Some(TaskSpecPlacementSpread {
            spread_descriptor: Some(label.clone()),
        }),
    };
    TaskSpecPlacement {
        constraints: Some(wish.constraints.clone()),
        preferences: Some(wish.spread.iter().map(preference).collect()),
        ..TaskSpecPlacement::default()
    }
}

/// The port that a dyno is reached at from outside its app's network, as on Heroku one of web dynos
/// alone: its node publishes it at each of its addresses.
pub(super) fn port(request: &StartRequest) -> Option<u16> {
    let is_web = request.process_type == WEB;
    config::port(config::published(request)).filter(|_| is_web)
}

/// On its node alone, and without a virtual address: the kernel may not have what that takes (IPVS).
fn endpoint(request: &StartRequest) -> EndpointSpec {
    let port = port(request).map(|port| EndpointPortConfig {
        protocol: Some(EndpointPortConfigProtocolEnum::TCP),
        target_port: Some(port.into()),
        publish_mode: Some(EndpointPortConfigPublishModeEnum::HOST),
        ..EndpointPortConfig::default()
    });
    EndpointSpec {
        mode: Some(EndpointSpecModeEnum::DNSRR),
        ports: Some(port.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use hsup_driver_kit::proto::Limits;

    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        artifact::Artifact,
        config::{Stdin, tests::record},
        engine::Traits,
    };

    fn request() -> StartRequest {
        StartRequest {
            dyno_id: "web-1-abc".to_owned(),
            app: "shop".to_owned(),
            process_type: "web".to_owned(),
            process_number: 1,
            argv: ["bash", "-c", "run"].map(str::to_owned).to_vec(),
            env: [("PORT".to_owned(), "5000".to_owned())].into(),
            limits: Some(Limits {
                memory_bytes: 64 << 20,
                cpu_millis: 500,
                pids: 10,
            }),
            ..StartRequest::default()
        }
    }

    fn made(request: &StartRequest, wish: &Wish) -> ServiceSpec {
        let image = format!("10.0.0.1:5000/hsup/shop@sha256:{}", "a5".repeat(32));
        let artifact: Artifact = format!("slug:1000:1001:{image}").parse().unwrap();
        let record = record();
        let order = Order {
            request,
            artifact: &artifact,
            record: &record,
            home: "0123456789abcdef",
            uid: 1000,
            stdin: Stdin::Nothing,
            publish: Ipv4Addr::UNSPECIFIED.into(),
            network: None,
            image_env: &[],
            traits: Traits::default(),
        };
        service(&order, wish, "hsup-shop-01234567", "a1")
    }

    #[test]
    fn a_dyno_is_one_task_that_nobody_starts_again() {
        let made = made(&request(), &Wish::default());
        let replicas = made.mode.unwrap().replicated.unwrap().replicas;
        assert_eq!(replicas, Some(1));
        let task = made.task_template.unwrap();
        let restart = task.restart_policy.unwrap().condition;
        assert_eq!(restart, Some(TaskSpecRestartPolicyConditionEnum::NONE));
        let container = task.container_spec.unwrap();
        assert!(container.image.unwrap().contains("@sha256:"));
        assert_eq!(container.user.as_deref(), Some("1000:1001"));
        assert_eq!(container.command.unwrap(), [config::INIT]);
        assert_eq!(container.stop_grace_period, Some(30_000_000_000));
        // Both are looked for by them: the service by a driver that begins, the task always.
        let labels = [made.labels.unwrap(), container.labels.unwrap()];
        assert!(
            labels
                .iter()
                .all(|labels| labels[config::DRIVER] == "0123456789abcdef")
        );
        assert_eq!(task.log_driver.unwrap().name.as_deref(), Some("local"));
    }

    #[test]
    fn a_config_var_is_no_template() {
        let mut request = request();
        let value = "Dear {{name}} {{{".to_owned();
        request.env.insert("LETTER".to_owned(), value);
        let task = made(&request, &Wish::default()).task_template.unwrap();
        let env = task.container_spec.unwrap().env.unwrap();
        let escaped = r#"LETTER=Dear {{"{{"}}name}} {{"{{"}}{"#.to_owned();
        assert!(env.contains(&escaped), "{env:?}");
    }

    #[test]
    fn limits_are_what_a_node_must_have_to_spare() {
        let task = made(&request(), &Wish::default()).task_template.unwrap();
        let resources = task.resources.unwrap();
        let (limits, reserved) = (resources.limits.unwrap(), resources.reservations.unwrap());
        assert_eq!(limits.memory_bytes, Some(64 << 20));
        assert_eq!(limits.nano_cpus, Some(500_000_000));
        assert_eq!(limits.pids, Some(11));
        assert_eq!(reserved.memory_bytes, limits.memory_bytes);
        assert_eq!(reserved.nano_cpus, limits.nano_cpus);
    }

    #[test]
    fn a_port_is_the_nodes_own_and_there_is_no_virtual_address() {
        let endpoint = made(&request(), &Wish::default()).endpoint_spec.unwrap();
        assert_eq!(endpoint.mode, Some(EndpointSpecModeEnum::DNSRR));
        let port = endpoint.ports.unwrap().remove(0);
        assert_eq!(port.target_port, Some(5000));
        assert_eq!(port.published_port, None);
        assert_eq!(
            port.publish_mode,
            Some(EndpointPortConfigPublishModeEnum::HOST)
        );
        let (mut silent, mut worker) = (request(), request());
        silent.env.clear();
        worker.process_type = "worker".to_owned();
        for request in [silent, worker] {
            let endpoint = made(&request, &Wish::default()).endpoint_spec.unwrap();
            assert!(endpoint.ports.unwrap().is_empty());
        }
    }

    #[test]
    fn wishes_become_placement() {
        let wish = Wish {
            constraints: vec!["node.role==worker".to_owned()],
            spread: vec!["node.labels.rack".to_owned()],
            ..Wish::default()
        };
        let task = made(&request(), &wish).task_template.unwrap();
        let placement = task.placement.unwrap();
        assert_eq!(placement.constraints.unwrap(), ["node.role==worker"]);
        let spread = placement.preferences.unwrap().remove(0).spread.unwrap();
        assert_eq!(
            spread.spread_descriptor.as_deref(),
            Some("node.labels.rack")
        );
        let network = task.networks.unwrap().remove(0);
        assert_eq!(network.target.as_deref(), Some("hsup-shop-01234567"));
        assert_eq!(network.aliases.unwrap(), ["web", "web.1"]);
    }

    #[test]
    fn a_name_is_short_enough_for_a_swarm() {
        let long = name("0123456789abcdef", 1000, &"a".repeat(63));
        assert!(long.len() <= 63, "{long}");
        assert_ne!(long, name("0123456789abcdef", 1001, &"a".repeat(63)));
    }
}
