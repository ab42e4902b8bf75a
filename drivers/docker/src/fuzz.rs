//! What this crate reads from others, as functions that `fuzz/` feeds.

pub use crate::images::fuzz::{docker_config, docker_images};
use crate::{
    artifact::Artifact,
    context::Host,
    frames::{self, Cursor, Reader},
};

/// What a target is called, and itself.
pub type Target = (&'static str, fn(&[u8]));

/// Each target, and what it is called.
pub const TARGETS: &[Target] = &[
    ("docker_config", docker_config),
    ("docker_host", docker_host),
    ("docker_images", docker_images),
    ("docker_logs", docker_logs),
];

/// `DOCKER_HOST`, or the name of an artifact: what a host is read to is read again from what is
/// shown of it, and no part of it can be an option of ssh.
pub fn docker_host(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    if let Ok(artifact) = text.parse::<Artifact>() {
        assert_eq!(artifact.to_string(), text);
    }
    let Ok(host) = Host::parse(text, None) else {
        return;
    };
    if let Host::Ssh(ssh) = &host {
        assert!(!ssh.host.is_empty() && !ssh.host.starts_with('-'));
        assert!(ssh.user.as_ref().is_none_or(|user| !user.starts_with('-')));
    }
}

/// The engine's log of an output, a frame a line, where the driver ends after some bytes and
/// another one goes on: what was passed on is what there is to pass on, once.
pub fn docker_logs(data: &[u8]) {
    let Some((stop, log)) = data.split_first() else {
        return;
    };
    let mut frames: Vec<(i64, &[u8])> = log
        .split_inclusive(|byte| *byte == b'\n')
        .filter_map(frames::parse)
        .collect();
    // Times do not go back within an output.
    frames.sort_by_key(|(at, _)| *at);
    let whole = passed_on(&mut Reader::new(Cursor::default()), &frames, usize::MAX);
    let stop = usize::from(*stop);
    let mut first = Reader::new(Cursor::default());
    let mut parts = passed_on(&mut first, &frames, stop);
    let kept = Cursor::from_bytes(first.cursor().to_bytes());
    assert_eq!(kept, first.cursor());
    parts.extend(passed_on(&mut Reader::new(kept), &frames, usize::MAX));
    assert_eq!(parts, whole);
}

/// Passes on what is left of the frames, up to so many bytes.
fn passed_on(reader: &mut Reader, frames: &[(i64, &[u8])], mut most: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, data) in frames {
        let Some(rest) = reader.rest(*at, data) else {
            continue;
        };
        for part in [rest.before, rest.data] {
            let part = &part[..part.len().min(most)];
            out.extend_from_slice(part);
            reader.wrote(part.len());
            most -= part.len();
        }
        if most == 0 {
            return out;
        }
        reader.finished(data);
    }
    out
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
