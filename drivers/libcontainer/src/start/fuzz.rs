//! What a stranger may have root do: the requests that pass the protocol's checks, and what a
//! container is made of them.

use std::path::{Component, Path, PathBuf};

use hsup_driver_kit::{
    identity,
    proto::{BuildRequest, StartRequest},
};
use prost::Message as _;

use super::request::{LONGEST_WORD, command, fits_execve, limits};
use crate::{
    artifact::Artifact,
    binds::{self, Bind, Bounds},
    runtime::IDENTITY,
    spec::Container,
    stack::{StackName, Version},
};

const OWN: [&str; 2] = ["/var/lib/hsup", "/run/hsup"];
const PREFIXES: [&str; 3] = ["/srv/data", "/var/lib", "/run"];

/// A message: a Build if the first byte is even, else a Start.
pub fn container_requests(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else {
        return;
    };
    if kind % 2 == 0 {
        let request = BuildRequest::decode(message).unwrap_or_default();
        let Ok(release) = IDENTITY.check_build(&request) else {
            return;
        };
        // It becomes the name of a file.
        assert!(hsup_slug::Owner::new(12_345, &release.app).is_ok());
        return;
    }
    let request = StartRequest::decode(message).unwrap_or_default();
    if IDENTITY.check_start(&request).is_err() || fits_execve(&request).is_err() {
        return;
    }
    let (Ok(limits), Ok(artifact)) = (limits(&request), request.artifact.parse::<Artifact>())
    else {
        return;
    };
    // What is in use is known by its name: it has one.
    assert_eq!(artifact.to_string(), request.artifact);
    if let (Ok(name), Ok(version)) = (
        artifact.stack.parse::<StackName>(),
        artifact.version.parse::<Version>(),
    ) {
        let path = format!("{name}-{version}");
        assert_eq!(Path::new(&path).file_name(), Some(path.as_ref()));
    }
    // In a stack without a bash, too.
    let words = command(
        Path::new("/nowhere"),
        request.argv.clone(),
        &request.shell_line,
    );
    for word in &words {
        assert!(!word.contains('\0') && word.len() < LONGEST_WORD);
    }
    let identity = identity::text(&request);
    assert!(serde_json::from_str::<serde_json::Value>(&identity).is_ok());
    let binds: Vec<Bind> = request.binds.iter().filter_map(bind).collect();
    let container = Container {
        root: Path::new("/stack"),
        app: Path::new("/own"),
        uid: 40_000,
        hostname: &request.dyno_id,
        netns: "/proc/self/ns/net".into(),
        cgroup: "hsup/x",
        unified: true,
        limits,
        most_processes: 1000,
        tmp_size: 1 << 20,
        binds: &binds,
    };
    let spec = container.spec().expect("a specification");
    let process = spec.process().as_ref().expect("a process");
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!(process.user().uid(), 40_000);
    let mounts = spec.mounts().as_ref().expect("mounts");
    for mount in &mounts[mounts.len() - binds.len()..] {
        let options = mount.options().as_ref().expect("options");
        let has = |option: &str| options.iter().any(|it| it == option);
        assert!(has("nosuid") && has("nodev"));
        let place = mount.destination();
        assert!(place.is_absolute() && place != Path::new("/"));
        for own in ["/proc", "/sys", "/dev"] {
            assert!(!place.starts_with(own));
        }
    }
}

/// A bind that may be: below what the operator allows, and not where the driver has its own.
fn bind(bind: &hsup_driver_kit::proto::Bind) -> Option<Bind> {
    let prefixes = PREFIXES.map(PathBuf::from);
    let bounds = Bounds {
        prefixes: &prefixes,
        own: OWN.map(Path::new),
    };
    let (host, dyno) = binds::allowed(bind, bounds).ok()?;
    assert!(host.components().all(|it| it != Component::ParentDir));
    assert!(PREFIXES.iter().any(|prefix| host.starts_with(prefix)));
    for own in OWN.map(Path::new) {
        assert!(!host.starts_with(own) && !own.starts_with(host));
    }
    Some(Bind {
        source: host.to_owned(),
        dyno_path: dyno.to_owned(),
        writable: bind.writable,
    })
}
