//! The container that a Start asks for.
//!
//! All that the driver must know of a dyno again stands in labels, so that the engine's list is
//! the one truth about what runs. Nothing secret is in them.

use std::{collections::HashMap, net::IpAddr};

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use hsup_driver_kit::{hex, identity, proto::StartRequest, pty::WindowSize, service::Record};

use crate::{
    artifact::{Artifact, Kind},
    engine::Traits,
};

/// Which driver a container belongs to.
pub(crate) const DRIVER: &str = "hsup.driver";
/// The service's record of the dyno.
pub(crate) const RECORD: &str = "hsup.record";
/// Where its FIFOs are, and whose they are.
pub(crate) const IO_DIR: &str = "hsup.io_dir";
pub(crate) const UID: &str = "hsup.uid";
/// The port that it was given, if it is one to be reached.
pub(crate) const PORT: &str = "hsup.port";
/// Whose it is, as people call it.
pub(crate) const APP: &str = "hsup.app";
/// What a Swarm puts on the container of a service's task.
pub(crate) const SERVICE: &str = "com.docker.swarm.service.id";
pub(crate) const TYPE: &str = "hsup.process_type";
/// What it runs on.
pub(crate) const ARTIFACT: &str = "hsup.artifact";

/// Of each container's log, as the engine keeps it.
const LOG_SIZE: &str = "20m";
const LOG_FILES: &str = "5";
/// What the engine adds to every environment, and what runs its containers adds to that.
const ADDED: [&str; 3] = ["PATH", "HOSTNAME", "TERM"];
const ADDED_LATER: [&str; 2] = ["HOME", "container"];
/// `hsup-init` in an image of a slug, and where it says how the command ended: the engine knows its
/// own exit status, and that not always.
pub(crate) const INIT: &str = "/.hsup/init";
pub(crate) const STATUS: &str = "/.hsup/status";

/// What a container is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order<'a> {
    pub(crate) request: &'a StartRequest,
    pub(crate) artifact: &'a Artifact,
    pub(crate) record: &'a Record,
    /// The driver's name among others on the engine.
    pub(crate) home: &'a str,
    pub(crate) uid: u32,
    pub(crate) stdin: Stdin,
    /// At which address of the engine's machine its port is published.
    pub(crate) publish: IpAddr,
    /// The engine's network for it, where it is not to be the default one.
    pub(crate) network: Option<&'a str>,
    /// The names of the variables that the image sets.
    pub(crate) image_env: &'a [String],
    pub(crate) traits: Traits,
}

/// What the dyno reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// `/dev/null`.
    Nothing,
    Fifo,
    Terminal,
}

/// The name of a dyno's container: of two users' dynos with the same id, too.
pub(crate) fn name(uid: u32, dyno_id: &str) -> String {
    format!("hsup.{uid}.{dyno_id}")
}

/// The port that a dyno was given, if it is one.
pub(crate) fn port(text: Option<&str>) -> Option<u16> {
    text?.parse().ok().filter(|port| *port > 0)
}

/// Whether it is a dyno that nobody reaches from elsewhere, as on Heroku: to publish its port would
/// only take time.
pub(crate) fn is_one_off(request: &StartRequest) -> bool {
    request.process_type == "run"
}

/// What the dyno was given for a port, if it is one to be reached.
pub(crate) fn published(request: &StartRequest) -> Option<&str> {
    let given = request.env.get("PORT").filter(|_| !is_one_off(request));
    given.map(String::as_str)
}

/// How a port is called in the engine's messages.
pub(crate) fn exposed(port: u16) -> String {
    format!("{port}/tcp")
}

/// The container that is to be made.
pub(crate) fn container(order: &Order<'_>) -> ContainerCreateBody {
    let Order {
        request,
        artifact,
        stdin,
        ..
    } = *order;
    let port = port(published(request)).map(exposed);
    let (entrypoint, cmd) = command(request, artifact.kind);
    let user = match artifact.kind {
        Kind::Slug { uid, gid } => Some(format!("{uid}:{gid}")),
        Kind::Plain | Kind::Cnb => None,
    };
    let is_slug = matches!(artifact.kind, Kind::Slug { .. });
    let open = stdin != Stdin::Nothing;
    ContainerCreateBody {
        image: Some(artifact.image.clone()),
        labels: Some(labels(order)),
        env: Some(environment(order)),
        entrypoint,
        cmd,
        user,
        working_dir: is_slug.then(|| "/app".to_owned()),
        tty: Some(request.tty),
        open_stdin: Some(open),
        attach_stdin: Some(open),
        // The end of the FIFO is the end of what the dyno reads.
        stdin_once: Some(stdin == Stdin::Fifo),
        exposed_ports: port.clone().map(|port| vec![port]),
        host_config: Some(host_config(order, port)),
        ..ContainerCreateBody::default()
    }
}

/// What runs, and its first words. The image's own where there are none.
fn command(request: &StartRequest, kind: Kind) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let argv = &request.argv;
    match kind {
        Kind::Slug { .. } => (Some(words(&[INIT])), Some(init_words(request))),
        Kind::Plain if !request.shell_line.is_empty() => {
            (None, Some(words(&["/bin/sh", "-c", &request.shell_line])))
        }
        Kind::Plain => (None, (!argv.is_empty()).then(|| argv.clone())),
        Kind::Cnb if argv.is_empty() => {
            let process = format!("/cnb/process/{}", request.process_type);
            (Some(vec![process]), Some(Vec::new()))
        }
        Kind::Cnb => {
            let cmd = if request.shell_line.is_empty() {
                let mut cmd = words(&["--"]);
                cmd.extend_from_slice(argv);
                cmd
            } else {
                vec![request.shell_line.clone()]
            };
            (Some(words(&["/cnb/lifecycle/launcher"])), Some(cmd))
        }
    }
}

/// What `hsup-init` is asked for.
fn init_words(request: &StartRequest) -> Vec<String> {
    let size = WindowSize::wanted(request);
    let (terminal, size) = if request.tty {
        // The engine has made it.
        ("0", [size.rows, size.columns])
    } else {
        ("-1", [0, 0])
    };
    let mut words = ["hsup-init", STATUS, terminal].map(str::to_owned).to_vec();
    words.extend(size.map(|number| number.to_string()));
    let added = ADDED.into_iter().chain(ADDED_LATER);
    let added = added.filter(|name| !request.env.contains_key(*name));
    words.extend(added.map(str::to_owned));
    words.push(format!("{}={}", identity::PATH, identity::text(request)));
    words.push("--".to_owned());
    words.extend_from_slice(&request.argv);
    words
}

/// The environment, and nothing that the engine would add. What the image sets is the image's.
fn environment(order: &Order<'_>) -> Vec<String> {
    let given = &order.request.env;
    let is_cnb = order.artifact.kind == Kind::Cnb;
    let is_slug = matches!(order.artifact.kind, Kind::Slug { .. });
    let mut env: Vec<_> = given
        .iter()
        // The launcher makes PATH from what the image has.
        .filter(|(name, _)| !(is_cnb && *name == "PATH"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let is_set = |name: &str| {
        let image = order.image_env.iter().any(|other| other == name);
        given.contains_key(name) || image || (is_cnb && name == "PATH")
    };
    // To the engine a name alone says that there is no such variable. In a slug's dyno
    // `hsup-init` takes them out, which leaves nothing to what comes after the engine.
    let without = ADDED.iter().filter(|name| !is_slug && !is_set(name));
    env.extend(without.map(|name| (*name).to_owned()));
    env
}

fn labels(order: &Order<'_>) -> HashMap<String, String> {
    let request = order.request;
    let port = published(request).unwrap_or_default().to_owned();
    [
        (DRIVER, order.home.to_owned()),
        (RECORD, hex::encode(&order.record.to_bytes())),
        (IO_DIR, request.io_dir.clone()),
        (UID, order.uid.to_string()),
        (PORT, port),
        (ARTIFACT, order.artifact.to_string()),
        // For people, and for `docker ps --filter`.
        ("hsup.dyno_id", request.dyno_id.clone()),
        ("hsup.supervisor_id", request.supervisor_id.clone()),
        (APP, request.app.clone()),
        ("hsup.release", request.release.to_string()),
        (TYPE, request.process_type.clone()),
        ("hsup.process_number", request.process_number.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn host_config(order: &Order<'_>, port: Option<String>) -> HostConfig {
    let Order {
        request,
        artifact,
        traits,
        ..
    } = *order;
    let limits = request.limits.unwrap_or_default();
    let memory = some(limits.memory_bytes);
    let has_init = matches!(artifact.kind, Kind::Slug { .. });
    let size = WindowSize::wanted(request);
    HostConfig {
        network_mode: order.network.map(str::to_owned),
        // Somebody must reap what the dyno leaves, and a PID 1 has no default signal actions.
        init: Some(!has_init),
        memory,
        // No swap besides: a dyno that is over its limit is to be known for it.
        memory_swap: memory,
        nano_cpus: some(u64::from(limits.cpu_millis) * 1_000_000),
        // The init is one of them.
        pids_limit: some(limits.pids.into()).map(|pids| pids.saturating_add(1)),
        mounts: Some(mounts(request)),
        port_bindings: port.map(|port| {
            let binding = PortBinding {
                host_ip: Some(order.publish.to_string()),
                host_port: Some(String::new()),
            };
            [(port, Some(vec![binding]))].into()
        }),
        // Who starts a dyno again is the supervisor.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        // The one that keeps bytes as they are. Podman has another, and no choice.
        log_config: (!traits.is_podman).then(|| HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(
                [("max-size", LOG_SIZE), ("max-file", LOG_FILES)]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            ),
        }),
        console_size: request
            .tty
            .then(|| vec![usize::from(size.rows), usize::from(size.columns)]),
        ..HostConfig::default()
    }
}

fn mounts(request: &StartRequest) -> Vec<Mount> {
    // Unlike its older way, this one makes no folder where there is none.
    request
        .binds
        .iter()
        .map(|bind| Mount {
            source: Some(bind.host_path.clone()),
            target: Some(bind.place().to_owned()),
            typ: Some(MountType::BIND),
            read_only: Some(!bind.writable),
            ..Mount::default()
        })
        .collect()
}

/// A limit; 0 is none.
fn some(limit: u64) -> Option<i64> {
    (limit > 0).then(|| i64::try_from(limit).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[path = "config_tests.rs"]
pub(crate) mod tests;
