//! The thread that reads every dyno's output.
//!
//! One plain thread with one epoll, because that costs a sixth of what a task and
//! an async reader for each stream cost. In a round it reads each stream that has
//! something once (so a flood gets one buffer's worth, as everybody else), keeps
//! the lines in the rings, hands them to the subscribers, and has what the round
//! gathered written to the terminal.
//!
//! Standard output and error may block for hours, and so each has a thread of its own
//! ([`super::outlet`]). This one waits for standard output alone, where that holds, and then
//! no lock is held: everything that others ask of the logs goes through [`Shared`], and only
//! the dynos' output waits.

mod sink;

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc, thread};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout},
    unistd::read,
};
use tokio::sync::oneshot;
use tracing::{error, warn};

use self::sink::Sink;
use super::{
    SYSTEM,
    line::Stream,
    pace::{PAUSE, Pace, Rest},
    ring::{Run, push_sparingly},
    shared::{Command, Dyno, Shared, now_unix_us},
    terminal::{STUCK, Terminal},
};
use crate::name::DynoId;

/// What one `read` takes: as much as a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// A longer line is passed on in pieces of this size, each a line of its own.
pub(super) const LINE_BYTES: usize = 64 * 1024;
/// What the unfinished lines of all streams may hold together; beyond it they are passed on unfinished.
const UNFINISHED_BYTES: usize = 16 * 1024 * 1024;
/// What the last look into a pipe takes at most: nothing a dead dyno wrote can be
/// more, and a process that got away cannot keep hsup there with a flood.
const DRAIN_BYTES: usize = 1024 * 1024;
/// How many streams are read in one round.
const EVENTS: usize = 256;
/// The wake-up's token; streams count from 0.
const WAKE: u64 = u64::MAX;

/// One output of one dyno.
#[derive(Debug)]
struct Reader {
    fd: OwnedFd,
    name: Arc<str>,
    run: Run,
    stream: Stream,
    /// The beginning of a line that has no end yet.
    unfinished: Vec<u8>,
    /// Everybody has closed the other end.
    at_end: bool,
}

/// What one look into a pipe found.
enum Found {
    Bytes(usize),
    Nothing,
    End,
}

/// What the thread owns.
#[derive(Debug)]
pub(super) struct Router {
    shared: Arc<Shared>,
    epoll: Epoll,
    readers: Vec<Option<Reader>>,
    free: Vec<u32>,
    by_dyno: HashMap<DynoId, [u32; 2]>,
    terminal: Option<Terminal>,
    buffer: Box<[u8]>,
    /// The bytes of all unfinished lines.
    unfinished: usize,
}

/// Whether the thread goes on.
enum Next {
    GoOn,
    /// These want to know when everything is written.
    End(Vec<oneshot::Sender<()>>),
}

impl Router {
    pub(super) fn new(shared: Arc<Shared>, terminal: Option<Terminal>) -> nix::Result<Self> {
        let epoll = Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&shared.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self {
            shared,
            epoll,
            readers: Vec::new(),
            free: Vec::new(),
            by_dyno: HashMap::new(),
            terminal,
            buffer: vec![0; LINE_BYTES + READ_BYTES].into(),
            unfinished: 0,
        })
    }

    /// The thread's life.
    pub(super) fn run(mut self) {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        let mut pace = Pace::default();
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    // Only a bug gets here; the dynos' output would otherwise be read in a busy loop.
                    error!(%errno, "log router cannot wait");
                    self.end();
                    return self.close_terminal(Vec::new());
                }
            };
            pace.begin(now_unix_us());
            let mut woken = false;
            for event in &events[..ready] {
                match usize::try_from(event.data()) {
                    Ok(token) if event.data() != WAKE => pace.read(self.read_once(token)),
                    _ => woken = true,
                }
            }
            if woken && let Next::End(done) = self.serve() {
                return self.close_terminal(done);
            }
            self.flush();
            if pace.end(now_unix_us()) == Rest::Short {
                thread::sleep(PAUSE);
                pace.rested(now_unix_us());
            }
        }
    }

    /// Carries out what the handles asked for.
    fn serve(&mut self) -> Next {
        let _: nix::Result<u64> = self.shared.wake.read();
        let commands = std::mem::take(&mut self.shared.lock().commands);
        let mut next = Next::GoOn;
        for command in commands {
            match command {
                Command::Add(dyno) => self.add(dyno),
                Command::Finish { dyno_id, done } => {
                    self.finish(&dyno_id);
                    // Nobody waits any more: that is theirs to decide.
                    let _: Result<(), ()> = done.send(());
                }
                Command::Widen(len) => {
                    if let Some(terminal) = &mut self.terminal {
                        terminal.widen(len);
                    }
                }
                Command::LetGo => self.let_go(),
                Command::End { done } => {
                    self.end();
                    match &mut next {
                        Next::GoOn => next = Next::End(done.into_iter().collect()),
                        Next::End(all) => all.extend(done),
                    }
                }
            }
        }
        self.show_notes();
        next
    }

    fn show_notes(&mut self) {
        let (notes, text) = self.shared.take_own();
        let Some(terminal) = &mut self.terminal else {
            return;
        };
        for note in notes.into_notes(now_unix_us()) {
            terminal.note(&note.name, note.at_unix_us, &note.lines);
        }
        if let Some(text) = text {
            terminal.text(&text);
        }
    }

    /// Has the terminal show what has gathered.
    fn flush(&self) {
        if let Some(terminal) = &self.terminal
            && terminal.flush()
        {
            self.shared.note(SYSTEM, STUCK);
        }
    }

    /// The same for the last time; each of `done` is dropped when everything is shown.
    fn close_terminal(&self, done: Vec<oneshot::Sender<()>>) {
        self.flush();
        // Dropped, they say that there is nothing to wait for.
        if let Some(terminal) = &self.terminal {
            terminal.close(done);
        }
    }

    fn add(&mut self, dyno: Dyno) {
        if let Some(terminal) = &mut self.terminal {
            terminal.widen(dyno.name.len());
        }
        let Dyno {
            id,
            name,
            run,
            stdout,
            stderr,
        } = dyno;
        let slots = [(stdout, Stream::Stdout), (stderr, Stream::Stderr)].map(|(fd, stream)| {
            self.add_reader(Reader {
                fd,
                name: Arc::clone(&name),
                run,
                stream,
                unfinished: Vec::new(),
                at_end: false,
            })
        });
        self.by_dyno.insert(id, slots);
    }

    fn add_reader(&mut self, reader: Reader) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            push_sparingly(&mut self.readers, None);
            u32::try_from(self.readers.len() - 1).expect("descriptors are fewer")
        });
        let event = EpollEvent::new(EpollFlags::EPOLLIN, slot.into());
        let watched =
            make_non_blocking(&reader.fd).and_then(|()| self.epoll.add(&reader.fd, event));
        if let Err(errno) = watched {
            error!(dyno = &*reader.name, stream = reader.stream.as_str(), %errno, "cannot watch a dyno's output");
        }
        self.readers[slot as usize] = Some(reader);
        slot
    }

    /// Reads what one stream has, up to one buffer; answers how much that was.
    fn read_once(&mut self, slot: usize) -> usize {
        let Some(mut reader) = self.readers.get_mut(slot).and_then(Option::take) else {
            return 0;
        };
        let count = match self.read_into(&mut reader, READ_BYTES) {
            Found::Bytes(count) => count,
            Found::Nothing => 0,
            Found::End => {
                self.close(&mut reader);
                0
            }
        };
        self.readers[slot] = Some(reader);
        count
    }

    /// The other end is closed for good: an epoll that goes on watching would never sleep again.
    fn close(&mut self, reader: &mut Reader) {
        self.end_line(reader);
        reader.at_end = true;
        let _: nix::Result<()> = self.epoll.delete(&reader.fd);
    }

    /// Reads the rest of what a dyno wrote, and lets go of it.
    fn finish(&mut self, dyno_id: &DynoId) {
        let Some(slots) = self.by_dyno.remove(dyno_id) else {
            return;
        };
        let mut run = None;
        for slot in slots {
            let Some(mut reader) = self.readers[slot as usize].take() else {
                continue;
            };
            let mut drained = 0;
            while !reader.at_end
                && drained < DRAIN_BYTES
                && let Found::Bytes(count) = self.read_into(&mut reader, READ_BYTES)
            {
                drained += count;
            }
            self.close(&mut reader);
            self.free.push(slot);
            run = Some(reader.run);
        }
        if let Some(run) = run {
            self.shared.lock().rings.end(run);
        }
    }

    /// Lets go of all dynos, which go on writing for somebody else: of what they have written no
    /// more is read than it takes to have whole lines.
    fn let_go(&mut self) {
        for slot in self
            .by_dyno
            .drain()
            .flat_map(|(_, slots)| slots)
            .collect::<Vec<_>>()
        {
            let Some(mut reader) = self.readers[slot as usize].take() else {
                continue;
            };
            let mut taken = 0;
            while !reader.unfinished.is_empty()
                && taken < DRAIN_BYTES
                && let Found::Bytes(count) = self.read_into(&mut reader, 1)
            {
                taken += count;
            }
            self.close(&mut reader);
            self.free.push(slot);
        }
    }

    /// Everything that is there is read and kept, then nothing more will come.
    fn end(&mut self) {
        let dynos: Vec<DynoId> = self.by_dyno.keys().cloned().collect();
        for dyno_id in dynos {
            self.finish(&dyno_id);
        }
        self.show_notes();
        let (commands, subscribers, drains) = {
            let mut state = self.shared.lock();
            state.ended = true;
            (
                std::mem::take(&mut state.commands),
                std::mem::take(&mut state.subscribers),
                std::mem::take(&mut state.drains),
            )
        };
        // Whoever waits for one of these sees its sender go.
        drop(commands);
        for queue in subscribers {
            queue.end();
        }
        for queue in drains {
            queue.end();
        }
    }

    /// Reads `most` bytes at most.
    fn read_into(&mut self, reader: &mut Reader, most: usize) -> Found {
        let carried = reader.unfinished.len();
        let room = &mut self.buffer[carried..carried + most];
        let count = loop {
            match read(&reader.fd, room) {
                Ok(0) => return Found::End,
                Ok(count) => break count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Found::Nothing,
                Err(errno) => {
                    warn!(dyno = &*reader.name, stream = reader.stream.as_str(), %errno, "cannot read a dyno's output");
                    return Found::End;
                }
            }
        };
        self.buffer[..carried].copy_from_slice(&reader.unfinished);
        let at_unix_us = now_unix_us();
        let mut sink = Sink {
            shared: &self.shared,
            terminal: self.terminal.as_mut(),
            at_unix_us,
        };
        let mut data = &self.buffer[..carried + count];
        while let Some(piece) = first_piece(data) {
            sink.take_unterminated(reader, &data[..piece]);
            data = &data[piece..];
        }
        let whole = memchr::memrchr(b'\n', data).map_or(0, |at| at + 1);
        if whole > 0 {
            sink.take(reader, &data[..whole]);
        }
        let rest = &data[whole..];
        self.unfinished = self.unfinished - carried + rest.len();
        let mut begun = rest;
        if self.unfinished > UNFINISHED_BYTES {
            let piece;
            (piece, begun) = rest.split_at(whole_characters(rest));
            // Of a character that lacks bytes alone there is nothing to give away.
            if !piece.is_empty() {
                sink.take_unterminated(reader, piece);
                self.unfinished -= piece.len();
            }
        }
        // Most streams end their lines; no room is kept for the next one that does not.
        reader.unfinished = begun.to_vec();
        Found::Bytes(count)
    }

    /// Ends a line that the dyno did not end.
    fn end_line(&mut self, reader: &mut Reader) {
        let rest = std::mem::take(&mut reader.unfinished);
        self.unfinished -= rest.len();
        let mut sink = Sink {
            shared: &self.shared,
            terminal: self.terminal.as_mut(),
            at_unix_us: now_unix_us(),
        };
        if !rest.is_empty() {
            sink.take_unterminated(reader, &rest);
        }
    }
}

/// One descriptor that blocks would stop the whole router.
fn make_non_blocking(fd: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// How much of the first line has to go on its own, when that is longer than a line may be.
///
/// `data` is an unfinished line of at most [`LINE_BYTES`] and one read's bytes behind it, so no
/// line behind the first one can be too long.
fn first_piece(data: &[u8]) -> Option<usize> {
    let start = data.get(..=LINE_BYTES)?;
    let is_too_long = memchr::memchr(b'\n', start).is_none();
    is_too_long.then(|| whole_characters(&start[..LINE_BYTES]))
}

/// How much of `text` there is before a character at its end that lacks bytes: all where none
/// is begun there.
fn whole_characters(text: &[u8]) -> usize {
    let last_three = text.len().saturating_sub(3)..text.len();
    let begins = |at: &usize| text[*at] & 0xc0 != 0x80;
    let Some(at) = last_three.rev().find(begins) else {
        return text.len();
    };
    let bytes = match text[at] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    if at + bytes > text.len() {
        at
    } else {
        text.len()
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use nix::sys::eventfd::EventFd;

    use super::*;
    use crate::logs::ring::Rings;

    #[test]
    fn only_a_line_that_is_too_long_is_cut() {
        let long = vec![b'x'; LINE_BYTES];
        assert_eq!(first_piece(&long), None);
        assert_eq!(first_piece(&[&long[..], b"\n"].concat()), None);
        assert_eq!(first_piece(&[&long[..], b"x\n"].concat()), Some(LINE_BYTES));
        assert_eq!(
            first_piece(&[b"short\n", &long[..], &long[..]].concat()),
            None
        );
    }

    #[test]
    fn a_line_is_cut_between_characters() {
        for character in ["x", "é", "€", "🦀"] {
            let line = character.repeat(LINE_BYTES / character.len() + 2);
            let piece = first_piece(line.as_bytes()).unwrap();
            assert!(line.is_char_boundary(piece), "{character}");
            assert!(piece > LINE_BYTES - character.len(), "{character}");
        }
        // What is no UTF-8 is cut where it is too long.
        for bytes in [b"\x80", b"\xff"] {
            let line = bytes.repeat(LINE_BYTES + 2);
            assert_eq!(first_piece(&line), Some(LINE_BYTES));
        }
    }

    #[test]
    fn a_stream_holds_a_line_without_an_end_and_else_nothing() {
        let (mut router, _shared, _, (stdout, _stderr)) = fuzz::wired(Rings::new(4096, 1 << 20));
        let held = |router: &Router| router.readers[0].as_ref().unwrap().unfinished.capacity();
        for (text, expected) in [(&b"one\ntw"[..], 2), (b"o", 3), (b"\n", 0)] {
            nix::unistd::write(&stdout, text).unwrap();
            router.read_once(0);
            assert_eq!(held(&router), expected);
        }
        assert!(size_of::<Option<Reader>>() <= 64);
        assert!(router.readers.capacity() <= 8);
    }

    #[test]
    fn with_too_much_unfinished_a_line_is_given_away_up_to_a_character() {
        let (mut router, shared, id, (stdout, _stderr)) = fuzz::wired(Rings::new(4096, 1 << 20));
        // As much as others have begun.
        router.unfinished = UNFINISHED_BYTES;
        for text in [&b"two\xe2"[..], b"\x82", b"\xac\n", b"a line\n"] {
            nix::unistd::write(&stdout, text).unwrap();
            router.read_once(0);
        }
        assert_eq!(router.unfinished, UNFINISHED_BYTES);
        let tail = shared.lock().rings.tail_of(&id, usize::MAX);
        let lines = tail.chunks.into_iter().flat_map(|mut chunk| {
            let lines = std::iter::from_fn(move || chunk.pop());
            lines.map(|line| String::from_utf8(line.text.to_vec()).unwrap())
        });
        assert_eq!(lines.collect::<Vec<_>>(), ["two", "€", "a line"]);
    }

    #[test]
    fn who_is_let_go_of_has_whole_lines_taken_and_the_rest_left() {
        let rings = Rings::new(4096, 1 << 20);
        let shared = Arc::new(Shared::new(rings, EventFd::new().unwrap(), None));
        let mut router = Router::new(Arc::clone(&shared), None).unwrap();
        let (out, mut stdout) = std::io::pipe().unwrap();
        let (err, mut stderr) = std::io::pipe().unwrap();
        let mut next = out.try_clone().unwrap();
        let id: DynoId = "web-1".parse().unwrap();
        let (run, name) = shared.lock().rings.begin("web.1", &id);
        router.add(Dyno {
            id: id.clone(),
            name,
            run,
            stdout: out.into(),
            stderr: err.into(),
        });
        stdout.write_all(b"one\ntw").unwrap();
        stderr.write_all(b"a prompt: ").unwrap();
        router.read_once(0);
        router.read_once(1);
        stdout.write_all(b"o\nthree\n").unwrap();
        router.let_go();
        let taken = shared.lock().rings.tail_of(&id, 10);
        let lines: Vec<_> = super::super::lines(taken.chunks)
            .into_iter()
            .map(|line| String::from_utf8_lossy(&line.text).into_owned())
            .collect();
        assert_eq!(lines, ["one", "two", "a prompt: "]);
        drop(stdout);
        let mut left = String::new();
        next.read_to_string(&mut left).unwrap();
        assert_eq!(left, "three\n");
        assert_eq!(router.unfinished, 0);
    }
}
