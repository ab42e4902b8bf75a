//! Builds: equal ones are one, and each goes on whoever is listening.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    time::Duration,
};

use hsup_proto::driver::{BuildResponse, Release, build_response::Event};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{broadcast, mpsc},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, codegen::BoxStream};

use crate::{file_url, serve::Pass};

/// How long a build may say nothing before the service does: clients allow 30 s.
const SILENCE: Duration = Duration::from_secs(20);
/// How many events a listener may be behind before it misses some.
pub(super) const BACKLOG: usize = 256;
/// How many finished builds are remembered.
const REMEMBERED: usize = 1_000;

/// How many builds of one user are under way, who is neither root nor the driver's own: they go
/// on when their callers are gone. One that looks at its slug first is one of them already: each
/// may have a process.
pub(super) const MOST_AT_ONCE: usize = 16;

/// What a build depends on, hashed.
pub(super) type BuildKey = [u8; 32];

/// What listeners of a build are told; the result comes last.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Event(BuildResponse),
    Done(Result<String, Box<Status>>),
}

/// Builds in flight, and the artifacts of those that are done.
#[derive(Debug, Default)]
pub(super) struct Builds {
    flying: HashMap<BuildKey, Flying>,
    done: HashMap<BuildKey, Done>,
    order: VecDeque<BuildKey>,
}

#[derive(Debug)]
struct Flying {
    uid: u32,
    told: broadcast::Sender<Told>,
    _pass: Pass,
}

#[derive(Debug)]
struct Done {
    uid: u32,
    artifact: String,
}

/// What a Build means.
#[derive(Debug)]
pub(super) enum Build {
    Begin(broadcast::Sender<Told>, broadcast::Receiver<Told>),
    Join(broadcast::Receiver<Told>),
    Done(String),
    /// This user has as many under way as it may.
    TooMany,
}

impl Builds {
    /// A Build of `key` by `uid`; `pass` is for one that has to be made, and `exists` says whether
    /// an artifact of an earlier one still does.
    pub(super) fn build(
        &mut self,
        key: BuildKey,
        uid: u32,
        pass: impl FnOnce() -> Option<Pass>,
        exists: impl Fn(&str) -> bool,
    ) -> Build {
        if let Some(flying) = self.flying.get(&key) {
            return Build::Join(flying.told.subscribe());
        }
        if let Some(done) = self.done.get(&key)
            && exists(&done.artifact)
        {
            return Build::Done(done.artifact.clone());
        }
        let Some(pass) = pass() else {
            return Build::TooMany;
        };
        let (told, receiver) = broadcast::channel(BACKLOG);
        let flying = Flying {
            uid,
            told: told.clone(),
            _pass: pass,
        };
        self.flying.insert(key, flying);
        Build::Begin(told, receiver)
    }

    /// The build of `key` is over.
    pub(super) fn finished(&mut self, key: BuildKey, result: Result<String, Box<Status>>) {
        let Some(Flying { uid, told, _pass }) = self.flying.remove(&key) else {
            return;
        };
        if let Ok(artifact) = &result {
            let artifact = artifact.clone();
            if self.done.insert(key, Done { uid, artifact }).is_none() {
                self.order.push_back(key);
            }
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.done.remove(&oldest);
            }
        }
        // Whoever asked may be gone.
        drop(told.send(Told::Done(result)));
    }

    /// An artifact of `uid` was removed: the next Build makes it anew.
    pub(super) fn removed(&mut self, uid: u32, artifact: &str) {
        self.done
            .retain(|_, made| made.uid != uid || made.artifact != artifact);
        self.order.retain(|key| self.done.contains_key(key));
    }
}

/// The key of a build (docs/driver-rules.md §8): neither version nor config, nor the query of a
/// presigned URL, which is new each time. `changed` tells the state of a slug without a checksum.
pub(super) fn key(
    uid: u32,
    release: &Release,
    options: &BTreeMap<String, String>,
    changed: Option<&[u8]>,
) -> BuildKey {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(&uid.to_le_bytes());
    field(release.app.as_bytes());
    field(release.stack.as_bytes());
    field(release.image.as_bytes());
    let url = release
        .slug_url
        .split(['?', '#'])
        .next()
        .unwrap_or_default();
    if release.slug_checksum.is_empty() {
        field(url.as_bytes());
    } else {
        // The same slug from elsewhere is the same slug; a directory has no checksum.
        field(release.slug_checksum.to_ascii_lowercase().as_bytes());
    }
    if let Some(changed) = changed {
        field(changed);
    }
    for (name, value) in options {
        field(name.as_bytes());
        field(value.as_bytes());
    }
    hash.finalize().into()
}

/// The path of a `file://` slug that has no checksum to know it by.
pub(super) fn slug_file(release: &Release) -> Option<PathBuf> {
    if release.slug_checksum.is_empty() {
        file_url::path(&release.slug_url)
    } else {
        None
    }
}

/// One message with the artifact of a build that was done before.
pub(super) fn artifact(artifact: String) -> BoxStream<BuildResponse> {
    Box::pin(tokio_stream::once(Ok(BuildResponse {
        event: Some(Event::Artifact(artifact)),
    })))
}

/// A listener's stream: the events, a sign of life now and then, and the result.
pub(super) fn listen(told: broadcast::Receiver<Told>) -> BoxStream<BuildResponse> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(relay(told, sender));
    Box::pin(ReceiverStream::new(receiver))
}

async fn relay(
    mut told: broadcast::Receiver<Told>,
    listener: mpsc::Sender<Result<BuildResponse, Status>>,
) {
    loop {
        let event = match time::timeout(SILENCE, told.recv()).await {
            Err(_) => Ok(BuildResponse {
                event: Some(Event::Log(Vec::new())),
            }),
            Ok(Ok(Told::Event(event))) => Ok(event),
            Ok(Ok(Told::Done(result))) => {
                let last = match result {
                    Ok(artifact) => Ok(BuildResponse {
                        event: Some(Event::Artifact(artifact)),
                    }),
                    Err(status) => Err(*status),
                };
                drop(listener.send(last).await);
                return;
            }
            Ok(Err(broadcast::error::RecvError::Lagged(missed))) => Ok(BuildResponse {
                event: Some(Event::Log(
                    format!("[{missed} messages of the build were dropped]\n").into_bytes(),
                )),
            }),
            Ok(Err(broadcast::error::RecvError::Closed)) => {
                drop(
                    listener
                        .send(Err(Status::internal("the build ended without a result")))
                        .await,
                );
                return;
            }
        };
        if listener.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Uid;
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::serve::Quota;

    async fn next(stream: &mut BoxStream<BuildResponse>) -> Event {
        stream.next().await.unwrap().unwrap().event.unwrap()
    }

    fn begun(builds: &mut Builds, quota: &Quota, key: u8, uid: u32) -> bool {
        let pass = || quota.take(Uid::from_raw(uid));
        let build = builds.build([key; 32], uid, pass, |_| true);
        matches!(build, Build::Begin(..))
    }

    #[test]
    fn a_user_has_so_many_builds_under_way() {
        let (mut builds, quota) = (Builds::default(), Quota::new(2));
        assert!(begun(&mut builds, &quota, 1, 4711) && begun(&mut builds, &quota, 2, 4711));
        assert!(!begun(&mut builds, &quota, 3, 4711));
        assert!(begun(&mut builds, &quota, 4, 4712), "another user");
        builds.finished([1; 32], Ok("art".to_owned()));
        assert!(begun(&mut builds, &quota, 3, 4711));
    }

    #[test]
    fn who_removes_an_artifact_removes_their_own() {
        let (mut builds, quota) = (Builds::default(), Quota::new(2));
        for (key, uid) in [(1, 4711), (2, 4712)] {
            assert!(begun(&mut builds, &quota, key, uid));
            builds.finished([key; 32], Ok("art".to_owned()));
        }
        builds.removed(4711, "art");
        assert!(begun(&mut builds, &quota, 1, 4711), "it is made anew");
        assert!(!begun(&mut builds, &quota, 2, 4712), "the other's is there");
    }

    fn line(text: &str) -> Told {
        Told::Event(BuildResponse {
            event: Some(Event::Log(text.as_bytes().to_vec())),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_that_says_nothing_gives_a_sign_of_life() {
        let (build, told) = broadcast::channel(BACKLOG);
        let mut stream = listen(told);
        let begun = time::Instant::now();
        // Clients allow 30 s.
        for signs in 1..=3 {
            assert_eq!(next(&mut stream).await, Event::Log(Vec::new()));
            assert!(begun.elapsed() < signs * Duration::from_secs(30));
        }
        build.send(line("at last\n")).unwrap();
        assert_eq!(next(&mut stream).await, Event::Log(b"at last\n".to_vec()));
        build.send(Told::Done(Ok("art".to_owned()))).unwrap();
        assert_eq!(next(&mut stream).await, Event::Artifact("art".to_owned()));
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn who_does_not_read_is_told_how_much_was_dropped() {
        let (build, told) = broadcast::channel(BACKLOG);
        let mut stream = listen(told);
        let all = BACKLOG + 100;
        for number in 0..all {
            build.send(line(&format!("{number}\n"))).unwrap();
        }
        build.send(Told::Done(Ok("art".to_owned()))).unwrap();
        let mut read = 0;
        let mut dropped = 0;
        loop {
            match next(&mut stream).await {
                Event::Log(text) => match text.strip_prefix(b"[") {
                    Some(note) => {
                        let note = String::from_utf8_lossy(note);
                        let (count, rest) = note.split_once(' ').unwrap();
                        assert_eq!(rest, "messages of the build were dropped]\n");
                        dropped += count.parse::<usize>().unwrap();
                    }
                    None => read += 1,
                },
                Event::Artifact(artifact) => break assert_eq!(artifact, "art"),
                Event::Progress(_) => {}
            }
        }
        assert!(dropped > 0);
        assert_eq!(read + dropped, all);
    }
}
