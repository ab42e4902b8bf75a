//! Making a release startable: the driver's Build.

use std::{path::Path, time::Duration};

use hsup_proto::driver::{self, BuildRequest, BuildResponse, build_response::Event};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{Code, Status, Streaming};

use crate::{
    driver::{DriverOptions, Link, Pause, Up, Verdict, ready, said, verdict},
    errors::chain,
    locate::{LocateSlugError, SlugLocator},
    release::{Release, Slug, SlugPathError},
    state::Artifact,
};

mod heard;
mod steps;

use self::{heard::Heard, steps::Steps};

/// A driver that builds says something at least this often (docs/driver-rules.md §9).
const SILENCE: Duration = Duration::from_secs(30);
/// And gets ahead within this: a large slug over a slow line takes its time.
const AHEAD_WITHIN: Duration = Duration::from_mins(15);
/// How many drivers may be lost over one build: a release that takes its driver down every
/// time takes the dynos of the good one with it.
const LOSSES: u32 = 3;
/// How many fresh URLs a slug gets whose URLs are refused.
const STALE: u32 = 2;

/// The release could not be made startable.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The driver refused or failed.
    #[error("the driver could not build it: {0}")]
    Driver(String),
    /// The driver has no room for it: a full disk, say.
    #[error("the driver has no room to build it: {0}")]
    NoRoom(String),
    /// The driver fell silent.
    #[error("the driver has built for {0:.0?} without a word")]
    Silent(Duration),
    /// It got no further.
    #[error("the driver has built for {0:.0?} and got no further")]
    Stuck(Duration),
    /// The stream ended before the artifact.
    #[error("the driver ended the build without an artifact")]
    NoArtifact,
    /// The driver went away, again and again.
    #[error("the driver was lost {0} times while it built it")]
    Lost(u32),
    /// Nobody can say where its slug is.
    #[error(transparent)]
    Locate(#[from] LocateSlugError),
}

/// What there is to say while a driver builds.
#[derive(Debug)]
pub enum Saying {
    /// A piece of the driver's log; of a build that is tried again, what it has not said before.
    Log(Vec<u8>),
    /// How far a step is that takes long, now and then.
    Progress(String),
    /// It cannot be built yet; why. Said once.
    NotYet(String),
}

/// What to build.
#[derive(Debug)]
pub struct Order<'a> {
    request: BuildRequest,
    options: &'a DriverOptions,
    slug: Option<&'a Slug>,
    locator: Option<&'a dyn SlugLocator>,
    insists: bool,
}

impl<'a> Order<'a> {
    /// The order of `release` by these `options`, whose slug `locator` may have to find. Whether
    /// it `insists`: whether to ask for that again and again, where there is nothing better to do.
    ///
    /// # Errors
    /// When the slug is a path that cannot be told to a driver.
    pub fn of(
        release: &'a Release,
        options: &'a DriverOptions,
        base: &Path,
        locator: Option<&'a dyn SlugLocator>,
        insists: bool,
    ) -> Result<Self, SlugPathError> {
        Ok(Self {
            request: request(release, options, base)?,
            options,
            slug: release.slug.as_ref(),
            locator,
            insists,
        })
    }

    /// The request, with the URL that the slug has right now.
    async fn request(&self) -> Result<BuildRequest, LocateSlugError> {
        let mut request = self.request.clone();
        if let (Some(locator), Some(slug)) = (self.locator, self.slug)
            && slug.is_remote()
            && let Some(release) = &mut request.release
        {
            let located = locator.locate(slug).await?;
            located.expose().clone_into(&mut release.slug_url);
        }
        Ok(request)
    }
}

/// The Build request of `release`. Config vars are no part of it: they build nothing.
fn request(
    release: &Release,
    options: &DriverOptions,
    base: &Path,
) -> Result<BuildRequest, SlugPathError> {
    let slug_url = match &release.slug {
        Some(slug) => slug.url(base)?,
        None => String::new(),
    };
    Ok(BuildRequest {
        release: Some(driver::Release {
            app: release.app.clone(),
            version: release.version,
            stack: release.stack.clone(),
            slug_url,
            slug_checksum: release.slug_checksum.clone().unwrap_or_default(),
            image: release.image.clone().unwrap_or_default(),
            config: std::collections::BTreeMap::new(),
        }),
        options: options.to_wire(),
    })
}

/// Has the driver build, as soon as it is ready to, and again where its error means that. The
/// slug is located right before each time.
///
/// # Errors
/// When it would not help to ask again.
pub async fn build(
    link: &mut watch::Receiver<Link>,
    order: Order<'_>,
    mut said_so: impl FnMut(Saying),
) -> Result<Artifact, BuildError> {
    let mut pause = Pause::new();
    let (mut told, mut losses, mut stale) = (false, 0, 0);
    let mut heard = Heard::default();
    loop {
        heard.begin();
        let up = ready(link).await;
        let request = match order.request().await {
            Ok(request) => request,
            Err(error) if error.may_pass && order.insists => {
                if !std::mem::replace(&mut told, true) {
                    said_so(Saying::NotYet(chain(&error)));
                }
                sleep(error.leave_alone).await;
                pause.wait().await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut say = |saying| match saying {
            Saying::Log(bytes) if !heard.is_new(&bytes) => {}
            saying => said_so(saying),
        };
        let work = once(&up, request, &mut say);
        let status = match up.while_there(work).await {
            Ok(artifact) => {
                return Ok(Artifact {
                    driver: up.info.name.clone(),
                    options: order.options.clone(),
                    artifact,
                });
            }
            Err(Failure::Call(status)) => status,
            Err(Failure::Build(error)) => return Err(error),
        };
        match verdict(&status, up.is_gone()) {
            Verdict::Again => {}
            Verdict::Failed(_) if is_stale(&status) && order.locator.is_some() && stale < STALE => {
                stale += 1;
                continue;
            }
            Verdict::NoRoom(why) => return Err(BuildError::NoRoom(why)),
            Verdict::Rebuild | Verdict::Failed(_) => return Err(BuildError::Driver(said(&status))),
        }
        if up.is_gone() {
            losses += 1;
            if losses == LOSSES {
                return Err(BuildError::Lost(losses));
            }
        }
        if !std::mem::replace(&mut told, true) {
            said_so(Saying::NotYet(said(&status)));
        }
        pause.wait().await;
    }
}

/// Whether the driver was refused the slug: its URL may have been good for a while only
/// (docs/drivers.md).
fn is_stale(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().starts_with("slug_url")
}

/// How one Build failed.
enum Failure {
    /// With an error of the call, which may pass.
    Call(Status),
    /// In a way that says it all.
    Build(BuildError),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

/// Makes the call, and follows it to its end.
async fn once(
    up: &Up,
    request: BuildRequest,
    said_so: &mut impl FnMut(Saying),
) -> Result<String, Failure> {
    let mut deadline = Instant::now() + AHEAD_WITHIN;
    // The answer may be as late as any of its messages.
    let silent = |_| Failure::Build(BuildError::Silent(SILENCE));
    let mut client = up.client();
    let answer = timeout(SILENCE, client.build(request)).await;
    let mut stream: Streaming<BuildResponse> = answer.map_err(silent)??.into_inner();
    let (mut artifact, mut steps, mut reached) = (None, Steps::default(), None);
    loop {
        let message = timeout_at(deadline, timeout(SILENCE, stream.message())).await;
        let message = message.map_err(|_| Failure::Build(BuildError::Stuck(AHEAD_WITHIN)))?;
        match message.map_err(silent)??.map(|message| message.event) {
            None => return artifact.ok_or(Failure::Build(BuildError::NoArtifact)),
            Some(Some(Event::Artifact(id))) => artifact = Some(id),
            Some(Some(Event::Log(bytes))) => said_so(Saying::Log(bytes)),
            Some(Some(Event::Progress(progress))) => {
                let at = (progress.step.clone(), progress.done);
                if reached.replace(at.clone()) != Some(at) {
                    deadline = Instant::now() + AHEAD_WITHIN;
                }
                if let Some(line) = steps.line(&progress, Instant::now()) {
                    said_so(Saying::Progress(line));
                }
            }
            Some(None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio_stream::StreamExt as _;
    use tonic::{Request, Response, codegen::BoxStream};

    use super::*;
    use crate::driver::fake;

    /// A driver whose Build answers nothing, not even that it has begun.
    struct Mute;

    #[tonic::async_trait]
    impl driver::dyno_driver_server::DynoDriver for Mute {
        async fn build(
            &self,
            _: Request<BuildRequest>,
        ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_that_never_answers_is_silent() {
        let mut link = fake::link(Mute).await;
        let begun = Instant::now();
        let (release, options) = (Release::default(), DriverOptions::default());
        let order = Order::of(&release, &options, Path::new("/"), None, true).unwrap();
        let error = build(&mut link, order, |_| {}).await.unwrap_err();
        assert!(matches!(error, BuildError::Silent(_)), "{error}");
        assert_eq!(begun.elapsed().as_secs(), SILENCE.as_secs());
    }

    /// A driver that takes three seconds for a slug.
    struct Slow;

    #[tonic::async_trait]
    impl driver::dyno_driver_server::DynoDriver for Slow {
        async fn build(
            &self,
            _: Request<BuildRequest>,
        ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
            let events = tokio_stream::iter(0..4).then(async |second| {
                sleep(Duration::from_secs(1)).await;
                let event = match second {
                    3 => Event::Artifact("made".to_owned()),
                    done => Event::Progress(driver::Progress {
                        step: "download slug".to_owned(),
                        done: done << 20,
                        total: 3 << 20,
                        unit: "bytes".to_owned(),
                    }),
                };
                Ok(BuildResponse { event: Some(event) })
            });
            Ok(Response::new(Box::pin(events)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_download_is_told() {
        let mut link = fake::link(Slow).await;
        let (release, options) = (Release::default(), DriverOptions::default());
        let order = Order::of(&release, &options, Path::new("/"), None, true).unwrap();
        let mut said = Vec::new();
        let built = build(&mut link, order, |saying| match saying {
            Saying::Progress(line) => said.push(line),
            other => panic!("{other:?}"),
        });
        assert_eq!(built.await.unwrap().artifact, "made");
        assert_eq!(said, ["download slug: 2.0 MB of 3.0 MB"]);
    }

    /// A driver whose engine is not there yet for the first tries, of which each says the same.
    #[derive(Default)]
    struct Failing {
        tries: AtomicUsize,
    }

    #[tonic::async_trait]
    impl driver::dyno_driver_server::DynoDriver for Failing {
        async fn build(
            &self,
            _: Request<BuildRequest>,
        ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
            let log = |line: &str| Event::Log(line.as_bytes().to_vec());
            let mut events = vec![log("pulling"), log("pulling")];
            let is_there = self.tries.fetch_add(1, Ordering::Relaxed) == 3;
            if is_there {
                events.extend([log("unpacking"), Event::Artifact("made".to_owned())]);
            }
            let events = events
                .into_iter()
                .map(|event| Ok(BuildResponse { event: Some(event) }));
            let end = (!is_there).then(|| Err(Status::unavailable("no network")));
            Ok(Response::new(Box::pin(tokio_stream::iter(
                events.chain(end),
            ))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_each_try_says_is_told_once() {
        let mut link = fake::link(Failing::default()).await;
        let (release, options) = (Release::default(), DriverOptions::default());
        let order = Order::of(&release, &options, Path::new("/"), None, true).unwrap();
        let mut said = Vec::new();
        let built = build(&mut link, order, |saying| said.push(format!("{saying:?}")));
        built.await.unwrap();
        let log = |line: &str| format!("{:?}", Saying::Log(line.as_bytes().to_vec()));
        let not_yet = format!(
            "{:?}",
            Saying::NotYet("no network (Unavailable)".to_owned())
        );
        assert_eq!(
            said,
            [log("pulling"), log("pulling"), not_yet, log("unpacking")]
        );
    }

    /// A driver that says something every twenty seconds, for half an hour, and may get ahead.
    struct Crawling {
        gets_ahead: bool,
    }

    #[tonic::async_trait]
    impl driver::dyno_driver_server::DynoDriver for Crawling {
        async fn build(
            &self,
            _: Request<BuildRequest>,
        ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
            let gets_ahead = self.gets_ahead;
            let events = tokio_stream::iter(0..90).then(move |count| async move {
                sleep(Duration::from_secs(20)).await;
                let event = match count {
                    89 => Event::Artifact("made".to_owned()),
                    _ => Event::Progress(driver::Progress {
                        step: "download slug".to_owned(),
                        done: if gets_ahead { count } else { 1 },
                        total: 90,
                        unit: "bytes".to_owned(),
                    }),
                };
                Ok(BuildResponse { event: Some(event) })
            });
            Ok(Response::new(Box::pin(events)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_takes_as_long_as_it_gets_ahead() {
        let (release, options) = (Release::default(), DriverOptions::default());
        for gets_ahead in [true, false] {
            let mut link = fake::link(Crawling { gets_ahead }).await;
            let order = Order::of(&release, &options, Path::new("/"), None, true).unwrap();
            match build(&mut link, order, |_| {}).await {
                Ok(built) => assert_eq!((built.artifact.as_str(), gets_ahead), ("made", true)),
                Err(error) => {
                    let is_stuck = matches!(error, BuildError::Stuck(_));
                    assert!(is_stuck && !gets_ahead, "{error}");
                }
            }
        }
    }
}
