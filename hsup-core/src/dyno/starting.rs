//! Starting a dyno: one Start, made until its answer is final or nobody wants the dyno any more.
//!
//! An error, or no answer at all, does not tell that nothing runs. So what the driver may have
//! begun is stopped before the attempt counts as over: whatever is started in its place can
//! then not be its twin.

use std::{sync::Arc, time::Duration};

use hsup_proto::driver::StartRequest;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout_at},
};
use tonic::Status;
use tracing::debug;

use crate::{
    build::{self, Order},
    driver::{DriverOptions, Link, Pause, Up, Verdict, ready, said, up_again, verdict},
    errors::chain,
    exit::ExitStatus,
    lifecycle::{Kind, Stop},
    locate::SlugLocator,
    name::DynoId,
    release::Release,
    time::now_unix_ms,
};

/// How long a Start may take.
const START_WITHIN: Duration = Duration::from_mins(1);
/// How many drivers may be lost over one Start that has a deadline.
const LOSSES: u32 = 3;
/// After this it is said that it takes long.
const SLOW_AFTER: Duration = Duration::from_secs(10);

/// A dyno that is to be started.
pub(crate) struct Starting<'a> {
    pub(crate) dyno_id: &'a DynoId,
    pub(crate) kind: Kind,
    /// What the artifact is of, should the driver have lost it.
    pub(crate) release: &'a Release,
    /// The version of the release that it repeats, as long as that is on trial: what ran then is
    /// to run again, and nothing else.
    pub(crate) repeats: Option<u64>,
    /// And what else the driver made it of.
    pub(crate) options: &'a DriverOptions,
    /// Who knows where its slug is then.
    pub(crate) locator: Option<&'a dyn SlugLocator>,
    pub(crate) artifact: Arc<str>,
    /// Makes the request for a driver and an artifact. Asked for every call anew: a request
    /// holds the whole environment, which many dynos that wait for their turn would hold many
    /// times.
    pub(crate) request: &'a (dyn Fn(&Up, &str) -> Result<StartRequest, String> + Sync),
    /// How many Starts may be in flight.
    pub(crate) turns: &'a Semaphore,
    /// How long the driver may take from the first call; `None`: for ever.
    pub(crate) within: Option<Duration>,
    /// Whether it waits for a driver that has no room, as for one that cannot start it yet.
    pub(crate) waits_for_room: bool,
    /// Says why it takes so long.
    pub(crate) tell: &'a (dyn Fn(&str) + Sync),
}

impl Starting<'_> {
    /// Starts it, unless somebody says through `unwanted` how to stop it: then the attempt is
    /// given up. Answers the driver that runs it; `Err` is how the attempt ended.
    pub(crate) async fn start(
        &self,
        link: &watch::Receiver<Link>,
        unwanted: &mut watch::Receiver<Option<Stop>>,
    ) -> Result<Arc<Up>, ExitStatus> {
        let (mut asked, mut refused) = (None, None);
        let result = tokio::select! {
            // An answer that is there counts: a process runs, and is stopped as such.
            biased;
            result = self.ask(link.clone(), &mut asked, &mut refused) => Some(result),
            () = said_so(unwanted) => None,
        };
        let result = result.unwrap_or_else(|| {
            let stopped = "it was stopped before it ran";
            Err(not_started(match refused {
                Some(why) => format!("{stopped}: {why}"),
                None => stopped.to_owned(),
            }))
        });
        if result.is_err() && asked.is_some() {
            Box::pin(self.undo(link.clone(), unwanted)).await;
        }
        result
    }

    /// Ends whatever a Start may have begun; waits for the driver to come back if it is away.
    pub(crate) async fn undo(
        &self,
        mut link: watch::Receiver<Link>,
        unwanted: &mut watch::Receiver<Option<Stop>>,
    ) {
        let (mut pause, mut told) = (Pause::new(), false);
        loop {
            let how = unwanted.borrow_and_update().unwrap_or(Stop::Immediately);
            let stopping = async {
                match up_again(&mut link).await {
                    Ok(up) => up.stop(self.dyno_id.as_str(), how).await,
                    // Whatever there was has ended with the driver.
                    Err(_) => Ok(()),
                }
            };
            let status = tokio::select! {
                stopped = stopping => match stopped {
                    Ok(()) => return,
                    Err(status) => status,
                },
                // Somebody wants it to end sooner.
                Ok(()) = unwanted.changed() => continue,
            };
            self.tell_once(&mut told, || {
                format!("It could not be stopped, trying again: {}", said(&status))
            });
            pause.wait().await;
        }
    }

    /// Asks until there is an answer. `asked` is the instance that may have begun, `refused` what
    /// a driver said last of why it cannot.
    async fn ask(
        &self,
        mut link: watch::Receiver<Link>,
        asked: &mut Option<String>,
        refused: &mut Option<String>,
    ) -> Result<Arc<Up>, ExitStatus> {
        let mut artifact = Arc::clone(&self.artifact);
        let (mut pause, mut rebuilt) = (Pause::new(), false);
        // A first try that took long must not hide why there is a second one.
        let (mut told, mut told_slow) = (false, false);
        let (mut deadline, mut losses) = (None, 0);
        loop {
            if self.kind == Kind::OneShot && asked.is_some() {
                // Without a driver there is nothing to wait for either.
                let gone = up_again(&mut link).await.err();
                gone.map_or(Ok(()), |why| Err(ExitStatus::lost(why, now_unix_ms())))?;
            }
            let up = ready(&mut link).await;
            let instance = &up.info.instance_id;
            let elsewhere = asked.as_ref().is_some_and(|asked| asked != instance);
            if self.kind == Kind::OneShot && elsewhere {
                return Err(ExitStatus::lost(
                    "the driver restarted while it was being started; a one-off is never started twice",
                    now_unix_ms(),
                ));
            }
            let answer = self.call(&up, &artifact, asked, &mut deadline, &mut told_slow);
            let Err(status) = answer.await? else {
                return Ok(up);
            };
            debug!(id = %self.dyno_id, code = ?status.code(), message = status.message(), "start failed");
            *refused = (!up.is_gone()).then(|| said(&status));
            // What is said once it has answered says more.
            told_slow |= !up.is_gone();
            match verdict(&status, up.is_gone()) {
                Verdict::Again if up.is_gone() => {
                    // Another driver has all the time there is, but for one that takes down
                    // every driver it is started on.
                    deadline = None;
                    losses += 1;
                    if self.within.is_some() && losses == LOSSES {
                        return Err(not_started(format!(
                            "the driver was lost {losses} times while it was being started"
                        )));
                    }
                }
                Verdict::Again => {
                    self.tell_once(&mut told, || {
                        format!("The driver cannot start it yet: {}", said(&status))
                    });
                }
                // Nothing runs, and that says nothing of what was to run.
                Verdict::NoRoom(why) if self.waits_for_room => {
                    // Another driver may be asked, too: this one has begun nothing.
                    *asked = None;
                    self.tell_once(&mut told, || {
                        format!("The driver has no room to start it yet: {why}")
                    });
                }
                Verdict::Rebuild if !rebuilt => {
                    rebuilt = true;
                    if let Some(version) = self.repeats
                        && cannot_be_known(self.release)
                    {
                        return Err(not_started(lost(version)));
                    }
                    (self.tell)(&format!(
                        "The driver no longer has what it built of v{}: building it again",
                        self.release.version
                    ));
                    // Rare, and large: a thousand Starts at once must not all have room for it.
                    let built = Box::pin(self.build_again(&mut link));
                    artifact = built.await.map_err(not_started)?;
                    continue;
                }
                Verdict::Rebuild | Verdict::NoRoom(_) | Verdict::Failed(_) => {
                    return Err(not_started(said(&status)));
                }
            }
            if !within(deadline, pause.wait()).await {
                let allowed = self.within.unwrap_or_default().as_secs_f64();
                return Err(not_started(format!(
                    "the driver could not start it within {allowed} seconds: {}",
                    said(&status)
                )));
            }
        }
    }

    fn tell_once(&self, told: &mut bool, text: impl FnOnce() -> String) {
        if !std::mem::replace(told, true) {
            (self.tell)(&text());
        }
    }

    /// Makes the call when it is its turn; says once when there is no answer for long.
    async fn call(
        &self,
        up: &Up,
        artifact: &str,
        asked: &mut Option<String>,
        deadline: &mut Option<Instant>,
        told: &mut bool,
    ) -> Result<Result<(), Status>, ExitStatus> {
        let _turn = self.turns.acquire().await;
        let request = (self.request)(up, artifact).map_err(not_started)?;
        *asked = Some(up.info.instance_id.clone());
        let begun = Instant::now();
        if deadline.is_none() {
            *deadline = self.within.map(|within| begun + within);
        }
        let left = deadline.map_or(START_WITHIN, |deadline| deadline - begun);
        let mut client = up.client();
        let mut call = std::pin::pin!(up.call(START_WITHIN.min(left), client.start(request)));
        loop {
            tokio::select! {
                answer = &mut call => return Ok(answer.map(|_| ())),
                () = sleep(SLOW_AFTER), if !*told => self.tell_once(told, || {
                    format!("The driver has been starting it for {:.0?}", begun.elapsed())
                }),
            }
        }
    }

    /// Has the driver make the artifact that it has lost.
    async fn build_again(&self, link: &mut watch::Receiver<Link>) -> Result<Arc<str>, String> {
        let base = std::env::current_dir().unwrap_or_default();
        // A dyno has a backoff of its own.
        let order = Order::of(self.release, self.options, &base, self.locator, false);
        let order = order.map_err(|error| chain(&error))?;
        let built = build::build(link, order, |_| {}).await;
        Ok(built.map_err(|error| chain(&error))?.artifact.into())
    }
}

/// Whether nothing tells if the release's slug is still what it was.
const fn cannot_be_known(release: &Release) -> bool {
    release.slug.is_some() && release.slug_checksum.is_none()
}

/// Why there is no way back to the release of this version.
fn lost(version: u64) -> String {
    format!(
        "the driver no longer has what it built of v{version}, and nothing tells whether its slug, \
         which has no checksum, is still the same: release it anew; for the next time, have the \
         driver keep more (--keep-slugs, or DOCKER_KEEP_IMAGES)"
    )
}

fn not_started(why: impl Into<String>) -> ExitStatus {
    ExitStatus::not_started(why, now_unix_ms())
}

/// Does something, unless the deadline passes first; whether it did.
async fn within(deadline: Option<Instant>, what: impl Future<Output = ()>) -> bool {
    let Some(deadline) = deadline else {
        what.await;
        return true;
    };
    timeout_at(deadline, what).await.is_ok()
}

/// Resolves when somebody has said how to stop it.
async fn said_so(unwanted: &mut watch::Receiver<Option<Stop>>) {
    if unwanted.wait_for(Option::is_some).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hsup_proto::driver::{
        BuildRequest, BuildResponse, StartResponse, StopRequest, StopResponse,
        build_response::Event, dyno_driver_server::DynoDriver,
    };
    use tokio::time::timeout;
    use tonic::{Request, Response, codegen::BoxStream};

    use super::*;
    use crate::{driver::fake, release::Slug};

    /// A driver that never answers a Start, and notes what it is asked.
    #[derive(Clone, Default)]
    struct Mute(Arc<Mutex<Vec<String>>>);

    impl Mute {
        fn note(&self, call: String) {
            self.0.lock().unwrap().push(call);
        }
    }

    #[tonic::async_trait]
    impl DynoDriver for Mute {
        async fn start(
            &self,
            request: Request<StartRequest>,
        ) -> Result<Response<StartResponse>, Status> {
            self.note(format!("start {}", request.get_ref().dyno_id));
            std::future::pending().await
        }

        async fn stop(
            &self,
            request: Request<StopRequest>,
        ) -> Result<Response<StopResponse>, Status> {
            let StopRequest { dyno_id, force, .. } = request.into_inner();
            self.note(format!("stop {dyno_id} force={force}"));
            Ok(Response::new(StopResponse {}))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_without_an_answer_is_told_made_again_and_given_up_with_a_stop() {
        let driver = Mute::default();
        let link = fake::link(driver.clone()).await;
        let dyno_id: DynoId = "web-1-abc".parse().unwrap();
        let told = Mutex::new(Vec::new());
        let starting = Starting {
            dyno_id: &dyno_id,
            kind: Kind::Kept,
            release: &Release::default(),
            repeats: None,
            options: &DriverOptions::default(),
            locator: None,
            artifact: "a".into(),
            request: &|_, artifact| {
                Ok(StartRequest {
                    dyno_id: dyno_id.to_string(),
                    artifact: artifact.to_owned(),
                    ..StartRequest::default()
                })
            },
            turns: &Semaphore::new(1),
            within: None,
            waits_for_room: false,
            tell: &|text| told.lock().unwrap().push(text.to_owned()),
        };
        let (unwanted, mut is_unwanted) = watch::channel(None);
        let mut started = Box::pin(starting.start(&link, &mut is_unwanted));
        let waited = timeout(Duration::from_secs(90), &mut started).await;
        assert!(waited.is_err(), "nothing has answered");
        let told = || told.lock().unwrap().clone();
        let expected = [
            "The driver has been starting it for 10s",
            "The driver cannot start it yet: no answer within 60s (DeadlineExceeded)",
        ];
        assert_eq!(told(), expected);
        unwanted.send_replace(Some(Stop::Gracefully {
            grace: Duration::from_secs(3),
        }));
        let status = started.await.unwrap_err();
        let why = "it was stopped before it ran: no answer within 60s (DeadlineExceeded)";
        assert_eq!(status.how, not_started(why).how);
        let calls = driver.0.lock().unwrap().clone();
        let expected = [
            "start web-1-abc",
            "start web-1-abc",
            "stop web-1-abc force=false",
        ];
        assert_eq!(calls, expected);
    }

    /// A driver that has lost all that it built, and builds it again as `new`.
    #[derive(Clone, Default)]
    struct Forgetful(Mute);

    #[tonic::async_trait]
    impl DynoDriver for Forgetful {
        async fn build(
            &self,
            _: Request<BuildRequest>,
        ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
            self.0.note("build".to_owned());
            let event = Some(Event::Artifact("new".to_owned()));
            let answer = tokio_stream::once(Ok(BuildResponse { event }));
            Ok(Response::new(Box::pin(answer)))
        }

        async fn start(
            &self,
            request: Request<StartRequest>,
        ) -> Result<Response<StartResponse>, Status> {
            let StartRequest { artifact, .. } = request.into_inner();
            self.0.note(format!("start {artifact}"));
            if artifact == "new" {
                return Ok(Response::new(StartResponse::default()));
            }
            Err(Status::not_found("artifact `old` is not known"))
        }

        async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
            Ok(Response::new(StopResponse {}))
        }
    }

    /// What is asked of a driver that has lost what it built of this release, what is told, and
    /// why it is not started.
    async fn after_a_loss(
        release: Release,
        repeats: Option<u64>,
    ) -> (Vec<String>, Vec<String>, Option<String>) {
        let driver = Forgetful::default();
        let link = fake::link(driver.clone()).await;
        let told = Mutex::new(Vec::new());
        let starting = Starting {
            dyno_id: &"web-1-abc".parse().unwrap(),
            kind: Kind::Kept,
            release: &release,
            repeats,
            options: &DriverOptions::default(),
            locator: None,
            artifact: "old".into(),
            request: &|_, artifact| {
                Ok(StartRequest {
                    artifact: artifact.to_owned(),
                    ..StartRequest::default()
                })
            },
            turns: &Semaphore::new(1),
            within: None,
            waits_for_room: false,
            tell: &|text| told.lock().unwrap().push(text.to_owned()),
        };
        let (_unwanted, mut is_unwanted) = watch::channel(None);
        let started = starting.start(&link, &mut is_unwanted).await;
        let calls = driver.0.0.lock().unwrap().clone();
        let why = started.err().map(|status| status.to_string());
        (calls, told.into_inner().unwrap(), why)
    }

    #[tokio::test]
    async fn what_the_driver_has_lost_is_built_again_with_a_word() {
        let directory = Release {
            version: 5,
            slug: Some(Slug::new("file:///srv/shop/")),
            ..Release::default()
        };
        let verified = Release {
            slug_checksum: Some("SHA256:00".to_owned()),
            ..directory.clone()
        };
        let image = Release {
            slug: None,
            image: Some("shop:2".to_owned()),
            ..directory.clone()
        };
        for (release, repeats) in [
            (directory, None),
            (verified, None),
            (image.clone(), None),
            (image, Some(3)),
        ] {
            let (calls, told, why) = after_a_loss(release, repeats).await;
            assert_eq!(calls, ["start old", "build", "start new"]);
            let expected = ["The driver no longer has what it built of v5: building it again"];
            assert_eq!(told, expected);
            assert_eq!(why, None);
        }
    }

    #[tokio::test]
    async fn a_rollback_to_what_nobody_can_know_any_more_is_refused() {
        let mut release = Release {
            version: 5,
            slug: Some(Slug::new("https://store/slug.tgz")),
            ..Release::default()
        };
        let (calls, told, why) = after_a_loss(release.clone(), Some(3)).await;
        assert_eq!(calls, ["start old"], "it is not built");
        assert_eq!(told, Vec::<String>::new());
        let why = why.unwrap();
        let expected = "the driver no longer has what it built of v3, and nothing tells whether \
                        its slug, which has no checksum, is still the same: release it anew";
        assert!(why.contains(expected), "{why}");
        release.slug_checksum = Some("SHA256:00".to_owned());
        let (calls, ..) = after_a_loss(release, Some(3)).await;
        assert_eq!(calls, ["start old", "build", "start new"]);
    }
}
