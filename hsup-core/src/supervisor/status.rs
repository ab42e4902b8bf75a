//! What the supervisor knows, as the control protocol says it.

use std::sync::Arc;

use hsup_proto::{
    control::{self, GetDriverResponse},
    driver::{Capability, Durability},
};

use super::actor::{LastSeen, Live};
use crate::{
    driver::{Link, Up},
    dyno::DynoStatus,
    name::DynoName,
    state::{ReleasePhase, ReleaseRecord, ReleaseState},
};

/// A dyno whose task lives.
pub(super) fn dyno(live: &Live) -> control::Dyno {
    let spec = &live.handle.spec;
    from_parts(
        &spec.name,
        spec.release.version,
        &spec.command,
        &live.status,
    )
}

/// A name that has no dyno now.
pub(super) fn past(name: &DynoName, past: &LastSeen) -> control::Dyno {
    from_parts(name, past.version, &past.command, &past.status)
}

/// A name that never had one, or lost what was known of it.
pub(super) fn absent(name: &DynoName, version: u64, command: &str) -> control::Dyno {
    control::Dyno {
        name: name.to_string(),
        process_type: name.process_type.to_string(),
        number: name.number.get(),
        state: control::DynoState::Down.into(),
        release: version,
        command: command.to_owned(),
        ..control::Dyno::default()
    }
}

fn from_parts(
    name: &DynoName,
    version: u64,
    command: &Arc<str>,
    status: &DynoStatus,
) -> control::Dyno {
    control::Dyno {
        name: name.to_string(),
        process_type: name.process_type.to_string(),
        number: name.number.get(),
        state: status.state.into(),
        since_unix_ms: status.since_unix_ms,
        ready: status.ready,
        release: version,
        command: command.to_string(),
        restarts: status.restarts,
        last_exit: status.last_exit.as_ref().map(Into::into),
        retry_at_unix_ms: status.retry_at_unix_ms,
        crashes_in_a_row: status.crashes_in_a_row,
        dyno_id: status
            .dyno_id
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        ip: status.ip.clone(),
        port: u32::from(status.port),
        cpu_ns: None,
        memory_bytes: None,
        pids: None,
        pid: None,
        node: status.node.clone(),
        last_lines: Vec::new(),
        crash: status.crash.as_ref().map(|crash| (&crash.status).into()),
        crash_lines: Vec::new(),
    }
}

/// A release, without its secrets.
pub(crate) fn release(record: &ReleaseRecord) -> control::Release {
    let release = &record.release;
    control::Release {
        id: record.id,
        version: release.version,
        state: match (record.state, record.release_phase) {
            (ReleaseState::Building, Some(ReleasePhase::Begun)) => control::ReleaseState::Releasing,
            (state, _) => state.into(),
        }
        .into(),
        reason: record.reason.clone(),
        source: record.source.clone(),
        at_unix_ms: record.at_unix_ms,
        stack: release.stack.clone(),
        slug: release
            .slug
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        image: release.image.clone().unwrap_or_default(),
        config_names: release.config.names().map(str::to_owned).collect(),
        processes: release
            .processes
            .iter()
            .map(|process| control::Process {
                process_type: process.process_type.to_string(),
                quantity: process.quantity,
                command: process.command.clone(),
            })
            .collect(),
        gap_ms: record.gap_ms,
        last_lines: record.last_lines.clone(),
    }
}

/// What is known of the driver, for the wire.
pub(crate) fn link(link: &Link) -> GetDriverResponse {
    match link {
        Link::Up(up) => driver(up),
        Link::Down { why, .. } => GetDriverResponse {
            message: why.clone(),
            ..GetDriverResponse::default()
        },
    }
}

/// What a driver says of itself.
fn driver(up: &Up) -> GetDriverResponse {
    let info = &up.info;
    let capabilities = info
        .capabilities
        .iter()
        .map(|number| {
            Capability::try_from(*number).map_or_else(
                |_| number.to_string(),
                |known| known.as_str_name().replace("CAPABILITY_", ""),
            )
        })
        .collect();
    let durability = match info.durability() {
        Durability::Unspecified => "unspecified".to_owned(),
        known => known.as_str_name().replace("DURABILITY_", ""),
    };
    let fitness = up.fitness();
    GetDriverResponse {
        name: info.name.clone(),
        version: info.version.clone(),
        instance_id: info.instance_id.clone(),
        capabilities,
        durability,
        ready: fitness.is_ok(),
        message: fitness.err().unwrap_or_else(|| info.message.clone()),
        connected: !up.is_gone(),
        socket: up.socket.display().to_string(),
        pid: up
            .pid()
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or(0),
        child: up.child,
    }
}
