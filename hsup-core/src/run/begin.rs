//! From nothing to a dyno that runs: the driver, the build, the Start.

use std::sync::Arc;

use hsup_proto::driver::{Bind, StartRequest};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use super::{RunCommandError, progress::Progress, release::Loaded, signals::Signals};
use crate::{
    build::{self, Order},
    driver::{DriverLink, DriverOptions, Link, STOP_BEYOND_GRACE, Up, demands, ready},
    dyno::Starting,
    exit::{Ending, ExitStatus},
    lifecycle::{Kind, Stop},
    name::DynoId,
    time::{now_unix_ms, reached},
};

/// Waits for the driver and has it build, by these `options`, for a dyno that is shown `binds`;
/// answers the driver and the artifact.
pub(super) async fn prepare(
    link: &DriverLink,
    loaded: &Loaded,
    options: &DriverOptions,
    binds: &[Bind],
    tell: fn(&str),
) -> Result<(Arc<Up>, String), RunCommandError> {
    let up = first_up(link, tell).await?;
    demands::check_binds(&up.info, binds)?;
    let base = std::env::current_dir().unwrap_or_default();
    let locator = loaded.locator.as_deref();
    let order = Order::of(&loaded.release, options, &base, locator, true)
        .map_err(|error| RunCommandError::Driver(error.to_string()))?;
    let mut state = link.watch();
    let built = build::build(&mut state, order, |saying| match saying {
        build::Saying::Log(_) => {}
        build::Saying::Progress(line) => tell(&line),
        build::Saying::NotYet(why) => tell(&format!("The release cannot be built yet: {why}")),
    });
    let artifact = built.await?.artifact;
    Ok((ready(&mut state).await, artifact))
}

/// Waits until the driver has answered for the first time that it can run dynos.
async fn first_up(link: &DriverLink, tell: fn(&str)) -> Result<Arc<Up>, RunCommandError> {
    let mut state = link.watch();
    let mut told = None;
    loop {
        match &*state.borrow_and_update() {
            Link::Up(up) if up.info.ready => return Ok(Arc::clone(up)),
            Link::Up(up) => {
                let why = &up.info.message;
                if told.as_ref() != Some(why) {
                    tell(&format!("The {} driver is not ready: {why}", up.info.name));
                    told = Some(why.clone());
                }
            }
            Link::Down {
                why,
                hopeless: true,
                ..
            } => return Err(RunCommandError::Driver(why.clone())),
            Link::Down { why, .. } if !link.is_child() && why != crate::driver::NOT_YET => {
                return Err(RunCommandError::Driver(why.clone()));
            }
            Link::Down { .. } => {}
        }
        if state.changed().await.is_err() {
            return Err(RunCommandError::Driver(
                "the link to the driver ended".to_owned(),
            ));
        }
    }
}

/// What a Start came to.
pub(super) enum Begun {
    /// It runs, on this driver.
    Running(Arc<Up>),
    /// A signal came first, and nothing runs; hsup's own code.
    Signalled(u8),
}

/// Starts it, unless a signal comes first.
pub(super) async fn start(
    link: &DriverLink,
    request: StartRequest,
    loaded: &Loaded,
    options: &DriverOptions,
    signals: &mut Signals,
    progress: &Progress,
    tell: fn(&str),
) -> Result<Begun, RunCommandError> {
    let dyno_id: DynoId = request
        .dyno_id
        .parse()
        .map_err(|error| RunCommandError::Start(format!("{error}")))?;
    let starting = Starting {
        dyno_id: &dyno_id,
        kind: Kind::OneShot,
        release: &loaded.release,
        repeats: None,
        options,
        locator: loaded.locator.as_deref(),
        artifact: request.artifact.as_str().into(),
        request: &|_, artifact| {
            Ok(StartRequest {
                artifact: artifact.to_owned(),
                ..request.clone()
            })
        },
        turns: &Semaphore::new(1),
        within: None,
        // Somebody waits.
        waits_for_room: false,
        tell: &tell,
    };
    let state = link.watch();
    let (unwanted, mut is_unwanted) = watch::channel(None);
    let mut signalled = None;
    // The driver's end is the end of what it may have begun, if it does not take it back
    // itself: it has the time of one Stop for that, and none when somebody is in a hurry.
    let mut overdue = None;
    let result = {
        let mut started = std::pin::pin!(starting.start(&state, &mut is_unwanted));
        loop {
            tokio::select! {
                result = &mut started => break result,
                wish = signals.next() => {
                    progress.stopping();
                    if signalled.replace(wish.code()).is_some() {
                        return Ok(Begun::Signalled(wish.code()));
                    }
                    overdue = Some(Instant::now() + STOP_BEYOND_GRACE);
                    unwanted.send_replace(Some(Stop::Immediately));
                }
                () = reached(overdue) => {
                    break Err(ExitStatus::lost("the driver did not stop it in time", now_unix_ms()));
                }
            }
        }
    };
    match (result, signalled) {
        (Ok(up), None) => Ok(Begun::Running(up)),
        (Ok(_), Some(code)) => {
            let undo = starting.undo(state, &mut is_unwanted);
            let undo = async {
                tokio::select! {
                    () = undo => {}
                    () = reached(overdue) => {}
                }
            };
            let again = signals.unless(undo).await.err();
            Ok(Begun::Signalled(again.unwrap_or(code)))
        }
        (Err(_), Some(code)) => Ok(Begun::Signalled(code)),
        (Err(status), None) => Err(match status.how {
            Ending::Lost(why) => RunCommandError::Lost(why),
            Ending::NotStarted(why) => RunCommandError::Start(why),
            Ending::Code(_) | Ending::Signal(_) => RunCommandError::Start(status.to_string()),
        }),
    }
}
