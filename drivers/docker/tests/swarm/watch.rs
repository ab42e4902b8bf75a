//! Who has twins: what the engines say of what runs, all the time, and the kernel while one is away.
//!
//! One look at several engines is no moment: a dyno may end here after it was looked at and begin
//! there before it is. So each container is known to have run from the answer that first had it to
//! the question whose answer last had it, and two are twins when these times have a moment in common.
//! What an engine that was killed leaves runs on.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(50);
/// How long an engine may take that has much to do.
const ANSWER: Duration = Duration::from_secs(30);
/// Of running containers with a dyno, `{"label":["hsup.dyno_id"],"status":["running"]}`.
const QUESTION: &str = "GET /containers/json?filters=%7B%22label%22%3A%5B%22hsup.dyno_id%22%5D%2C\
                        %22status%22%3A%5B%22running%22%5D%7D HTTP/1.0\r\nHost: docker\r\n\r\n";

/// A dyno, as a container's labels tell of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dyno {
    /// `web.1`
    pub(crate) name: String,
    pub(crate) release: String,
    pub(crate) id: String,
    container: String,
}

impl Dyno {
    /// What tells its container from another dyno's, as `LABEL=VALUE`.
    pub(crate) fn labels(&self) -> [String; 4] {
        let (process_type, number) = self.name.split_once('.').unwrap();
        [
            format!("hsup.process_type={process_type}"),
            format!("hsup.process_number={number}"),
            format!("hsup.release={}", self.release),
            format!("hsup.dyno_id={}", self.id),
        ]
    }
}

/// The running dynos of an engine, if it answers.
pub(crate) fn running(socket: &Path) -> Option<Vec<Dyno>> {
    let mut dynos = ask(socket).ok().and_then(|answer| parse(&answer))?;
    dynos.sort();
    Some(dynos)
}

fn ask(socket: &Path) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(QUESTION.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<Vec<Dyno>> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = answer.split_at(end);
    if !head.starts_with(b"HTTP/1.0 200") {
        return None;
    }
    let containers: Vec<Value> = serde_json::from_slice(body.trim_ascii_start()).ok()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let dynos = containers.iter().map(|container| {
        let label = |name: &str| text(&container["Labels"][format!("hsup.{name}")]);
        Dyno {
            name: format!("{}.{}", label("process_type"), label("process_number")),
            release: label("release"),
            id: label("dyno_id"),
            container: text(&container["Id"]),
        }
    });
    Some(dynos.collect())
}

/// Whether a container of this engine has a process, as the kernel says: its group is in one that is
/// called as the engine's folder.
fn has_process(socket: &Path, container: &str) -> bool {
    let group = socket.parent().and_then(Path::file_name).unwrap();
    // The former is that of a machine with the newer kind of groups alone.
    let processes = ["", "pids"].map(|hierarchy| {
        let group = Path::new("/sys/fs/cgroup").join(hierarchy).join(group);
        fs::read_to_string(group.join(container).join("cgroup.procs"))
    });
    processes.into_iter().flatten().any(|all| !all.is_empty())
}

/// A container, and when it ran for certain.
#[derive(Clone, Debug)]
struct Sighting {
    engine: usize,
    dyno: Dyno,
    first: Instant,
    last: Instant,
    /// Since when nobody but its engine could know of it.
    unknown: Option<Instant>,
}

impl Sighting {
    /// Whether both ran at some moment, by what was known of them, or at all.
    fn overlaps(&self, other: &Self, until: impl Fn(&Self) -> Instant) -> bool {
        self.first.max(other.first) <= until(self).min(until(other))
    }

    fn is_twin_of(&self, other: &Self) -> bool {
        if self.dyno.id == other.dyno.id {
            return self.overlaps(other, |sighting| sighting.last);
        }
        // Each release has its own while one takes the other's place.
        self.dyno.name == other.dyno.name
            && self.dyno.release == other.dyno.release
            && self.overlaps(other, |sighting| {
                sighting
                    .unknown
                    .map_or(sighting.last, |since| since.min(sighting.last))
            })
    }
}

/// All that was seen.
#[derive(Debug, Default)]
struct Sightings(Vec<Sighting>);

impl Sightings {
    fn look(&mut self, engine: usize, asked: Instant, answered: Instant, found: Vec<Dyno>) {
        for dyno in found {
            let known = self
                .0
                .iter_mut()
                .find(|known| known.dyno.container == dyno.container);
            match known {
                Some(known) => known.last = asked,
                None => self.0.push(Sighting {
                    engine,
                    dyno,
                    first: answered,
                    last: asked,
                    unknown: None,
                }),
            }
        }
    }

    /// The engine does not answer: what has been seen there runs if it has processes.
    fn look_past(&mut self, engine: usize, asked: Instant, runs: impl Fn(&str) -> bool) {
        let there = self.0.iter_mut().filter(|known| known.engine == engine);
        for known in there.filter(|known| runs(&known.dyno.container)) {
            known.last = asked;
        }
    }

    fn is_cut_off(&mut self, engine: usize, since: Instant) {
        let there = self
            .0
            .iter_mut()
            .filter(|sighting| sighting.engine == engine);
        for sighting in there {
            sighting.unknown.get_or_insert(since);
        }
    }

    fn twins(&self) -> Vec<[&Sighting; 2]> {
        let mut twins = Vec::new();
        for (number, one) in self.0.iter().enumerate() {
            let others = self.0[number + 1..].iter();
            twins.extend(
                others
                    .filter(|other| one.is_twin_of(other))
                    .map(|other| [one, other]),
            );
        }
        twins
    }
}

/// Looks at all engines until it is dropped.
pub(crate) struct Watch {
    sightings: Arc<Mutex<Sightings>>,
    is_over: Arc<AtomicBool>,
    watchers: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Begins to look at the engines that are reached there.
    pub(crate) fn begin(sockets: Vec<PathBuf>) -> Self {
        let sightings: Arc<Mutex<Sightings>> = Arc::default();
        let is_over: Arc<AtomicBool> = Arc::default();
        let watchers = sockets.into_iter().enumerate().map(|(engine, socket)| {
            let (sightings, is_over) = (Arc::clone(&sightings), Arc::clone(&is_over));
            spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let found = running(&socket);
                    let mut sightings = locked(&sightings);
                    if let Some(found) = found {
                        sightings.look(engine, asked, Instant::now(), found);
                    } else {
                        // What it has said may be older than this.
                        let asked = Instant::now();
                        let runs = |container: &str| has_process(&socket, container);
                        sightings.look_past(engine, asked, runs);
                    }
                    drop(sightings);
                    sleep(PAUSE);
                }
            })
        });
        Self {
            watchers: watchers.collect(),
            sightings,
            is_over,
        }
    }

    /// Whether anything was seen to run there.
    pub(crate) fn has_seen(&self, engine: usize) -> bool {
        let sightings = locked(&self.sightings);
        sightings.0.iter().any(|sighting| sighting.engine == engine)
    }

    /// From now on nobody can know what runs there now, and others may take its place.
    pub(crate) fn is_cut_off(&self, engine: usize) {
        locked(&self.sightings).is_cut_off(engine, Instant::now());
    }

    pub(crate) fn has_twins(&self) -> bool {
        !locked(&self.sightings).twins().is_empty()
    }

    /// Fails if any dyno had a twin.
    pub(crate) fn no_twins(&self) {
        let sightings = locked(&self.sightings);
        let twins = sightings.twins();
        assert!(twins.is_empty(), "there are twins: {twins:#?}");
        assert!(!sightings.0.is_empty(), "nothing was seen");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for watcher in self.watchers.drain(..) {
            drop(watcher.join());
        }
    }
}

fn locked(sightings: &Mutex<Sightings>) -> MutexGuard<'_, Sightings> {
    sightings.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn dyno(name: &str, release: &str, id: &str, container: &str) -> Dyno {
        Dyno {
            name: name.to_owned(),
            release: release.to_owned(),
            id: id.to_owned(),
            container: container.to_owned(),
        }
    }

    /// What is known after looks at an engine that began and ended then.
    fn seen(looks: &[(usize, [u64; 2], &[Dyno])]) -> Sightings {
        let begin = Instant::now();
        let mut sightings = Sightings::default();
        for (engine, [asked, answered], found) in looks {
            let at = |second: &u64| begin + Duration::from_secs(*second);
            sightings.look(*engine, at(asked), at(answered), found.to_vec());
        }
        sightings
    }

    #[test]
    fn two_of_a_name_at_one_moment_are_twins() {
        let (old, new) = (dyno("web.1", "1", "a", "c1"), dyno("web.1", "1", "b", "c2"));
        let looks: &[(usize, [u64; 2], &[Dyno])] = &[
            (0, [0, 1], &[old.clone()]),
            (1, [2, 3], &[new.clone()]),
            (0, [4, 5], &[old.clone()]),
            (1, [6, 7], &[new.clone()]),
        ];
        assert_eq!(seen(looks).twins().len(), 1);
        // The first may have ended before the second began.
        assert!(seen(&looks[..2]).twins().is_empty());
        assert!(seen(&[looks[0], (1, [0, 1], &[new])]).twins().is_empty());
        // A release takes the other's place.
        let next = dyno("web.1", "2", "b", "c2");
        let looks = [
            looks[0],
            (1, [2, 3], &[next.clone()]),
            looks[2],
            (1, [6, 7], &[next]),
        ];
        assert!(seen(&looks).twins().is_empty());
    }

    #[test]
    fn what_a_killed_engine_leaves_is_a_twin() {
        let (old, new) = (dyno("web.1", "1", "a", "c1"), dyno("web.1", "1", "b", "c2"));
        let looks: &[(usize, [u64; 2], &[Dyno])] =
            &[(0, [0, 1], &[old]), (1, [2, 3], from_ref(&new))];
        let mut sightings = seen(looks);
        let later = sightings.0[0].first + Duration::from_secs(9);
        sightings.look(1, later, later, vec![new]);
        sightings.look_past(0, later, |_| false);
        assert!(sightings.twins().is_empty());
        sightings.look_past(0, later, |container| container == "c1");
        assert_eq!(sightings.twins().len(), 1);
    }

    #[test]
    fn what_is_cut_off_is_unknown_but_begins_nothing() {
        let (old, new) = (dyno("web.1", "1", "a", "c1"), dyno("web.1", "1", "b", "c2"));
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        let mut sightings = Sightings::default();
        sightings.look(0, at(0), at(1), vec![old.clone()]);
        sightings.look(0, at(2), at(2), vec![old.clone()]);
        sightings.is_cut_off(0, at(3));
        sightings.look(1, at(4), at(5), vec![new.clone()]);
        sightings.look(0, at(6), at(6), vec![old]);
        sightings.look(1, at(9), at(9), vec![new]);
        assert!(sightings.twins().is_empty());
        let again = dyno("web.1", "1", "a", "c3");
        sightings.look(0, at(7), at(7), vec![again.clone()]);
        sightings.look(0, at(8), at(8), vec![again]);
        assert_eq!(sightings.twins().len(), 1);
    }
}
