//! Whether what is kept of a stream is its lines, however it comes.

use std::io::{PipeWriter, Write as _};

use nix::sys::eventfd::EventFd;

use super::*;
use crate::logs::ring::Rings;

/// More than a stream of a target's makes.
const KEPT: usize = 16 << 20;
/// As much as a pipe takes without waiting.
const WRITTEN: usize = 32 << 10;

/// A router that reads one dyno, and what the dyno writes to.
pub(super) fn wired(rings: Rings) -> (Router, Arc<Shared>, DynoId, (PipeWriter, PipeWriter)) {
    let event = EventFd::new().expect("an event");
    let shared = Arc::new(Shared::new(rings, event, None));
    let mut router = Router::new(Arc::clone(&shared), None).expect("a router");
    let (out, stdout) = std::io::pipe().expect("a pipe");
    let (err, stderr) = std::io::pipe().expect("a pipe");
    let id: DynoId = "web-1".parse().expect("an id");
    let (run, name) = shared.lock().rings.begin("web.1", &id);
    router.add(Dyno {
        id: id.clone(),
        name,
        run,
        stdout: out.into(),
        stderr: err.into(),
    });
    (router, shared, id, (stdout, stderr))
}

/// What a dyno writes. Bytes below 0x80 are its text; 0x80 is where the router reads, and others
/// are a thousand letters and more: a line must be long to be cut.
pub fn log_lines(data: &[u8]) {
    let (mut router, shared, id, (mut stdout, stderr)) = wired(Rings::new(KEPT, KEPT));
    let mut all = Vec::new();
    let mut unread = Vec::new();
    for byte in data.iter().take(64).chain(&[READ]) {
        match *byte {
            READ => {
                for part in unread.chunks(WRITTEN) {
                    stdout.write_all(part).expect("the pipe was emptied");
                    router.read_once(0);
                }
                all.append(&mut unread);
            }
            letters if letters > READ => {
                let count = 1000 * usize::from(letters - READ) + usize::from(letters);
                unread.resize(unread.len() + count, letters);
            }
            byte => unread.push(byte),
        }
    }
    drop((stdout, stderr));
    router.finish(&id);
    assert_eq!(router.unfinished, 0);

    let tail = shared.lock().rings.tail_of(&id, usize::MAX);
    assert_eq!(tail.left_out, 0);
    let mut kept = tail.chunks.into_iter().flat_map(|mut chunk| {
        let lines = std::iter::from_fn(move || chunk.pop());
        lines.map(|line| line.text)
    });
    let text = all.strip_suffix(b"\n").unwrap_or(&all);
    let lines = text.split(|byte| *byte == b'\n');
    for mut line in lines.filter(|_| !all.is_empty()) {
        while line.len() > LINE_BYTES {
            let piece;
            (piece, line) = line.split_at(whole_characters(&line[..LINE_BYTES]));
            assert_eq!(kept.next().as_deref(), Some(piece));
        }
        assert_eq!(kept.next().as_deref(), Some(line));
    }
    assert_eq!(kept.next(), None);
}

const READ: u8 = 0x80;
