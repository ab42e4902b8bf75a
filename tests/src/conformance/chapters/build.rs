//! Build: a release becomes an artifact, once.

use hsup_proto::driver::{BuildRequest, build_response::Event};
use tokio::task::JoinSet;
use tonic::Code;

use super::super::{
    case::{Case, Failure, Need, NotPassed, case, check_eq},
    context::{Context, code, remove_artifact},
};

const BUILD: &str = "build";

pub(crate) const CASES: &[Case] = &[
    case!(
        BUILD,
        "the last message is the artifact, and there is one",
        "§6 BuildResponse: log chunks and progress, then exactly one artifact, then OK",
        one_artifact,
        &[Need::Build]
    ),
    case!(
        BUILD,
        "the same release twice gives the same artifact",
        "§8 Build: repeat → same artifact, no rebuild",
        twice,
        &[Need::Build]
    ),
    case!(
        BUILD,
        "ten at once give the same artifact",
        "§8 Build: same Build in flight → join it",
        at_once,
        &[Need::Build]
    ),
    case!(
        BUILD,
        "neither version nor config are in its key",
        "§8 Build: neither version nor config are in the key",
        key,
        &[Need::Build]
    ),
    case!(
        BUILD,
        "a caller that hangs up spoils nothing",
        "§8 all: cancellation never rolls work back",
        hang_up,
        &[Need::Build]
    ),
    case!(
        BUILD,
        "an unknown option is INVALID_ARGUMENT",
        "§9: unknown option key → INVALID_ARGUMENT",
        unknown_option
    ),
    case!(
        BUILD,
        "no release is INVALID_ARGUMENT",
        "§9: missing field → INVALID_ARGUMENT",
        no_release
    ),
    case!(
        BUILD,
        "an artifact in use is not removed",
        "§8 Remove: artifact in use → FAILED_PRECONDITION",
        in_use
    ),
    case!(
        BUILD,
        "an unknown artifact is removed already",
        "§8 Remove: artifact unknown → OK",
        unknown_artifact
    ),
    case!(
        BUILD,
        "a removed artifact can be built again",
        "§6 Remove: every create has a negation; §8 Build",
        again,
        &[Need::Build]
    ),
];

async fn build(cx: &Context, request: BuildRequest) -> Result<String, Failure> {
    let built = cx.control().build(request).await.ok()?;
    let artifacts = built.events.iter().filter_map(|event| match event {
        Event::Artifact(artifact) => Some(artifact),
        Event::Log(_) | Event::Progress(_) => None,
    });
    let artifacts: Vec<_> = artifacts.collect();
    let last = matches!(built.events.last(), Some(Event::Artifact(_)));
    match artifacts[..] {
        [artifact] if last && !artifact.is_empty() => Ok(artifact.clone()),
        _ => Err(Failure {
            on: "Build".to_owned(),
            expected: "one artifact that is not empty, as the last message".to_owned(),
            observed: format!("{:?}", built.events),
        }),
    }
}

async fn one_artifact(cx: &Context) -> Result<(), NotPassed> {
    build(cx, cx.session.build_request()).await?;
    Ok(())
}

async fn twice(cx: &Context) -> Result<(), NotPassed> {
    let first = build(cx, cx.session.build_request()).await?;
    let second = build(cx, cx.session.build_request()).await?;
    check_eq("the second Build", &second, &first)?;
    Ok(())
}

async fn at_once(cx: &Context) -> Result<(), NotPassed> {
    let mut builds = JoinSet::new();
    for _ in 0..10 {
        builds.spawn(cx.control().build(cx.session.build_request()));
    }
    let first = build(cx, cx.session.build_request()).await?;
    for answer in builds.join_all().await {
        let events = answer.ok()?.events;
        let artifact = Event::Artifact(first.clone());
        check_eq("a Build of ten at once", &events.last(), &Some(&artifact))?;
    }
    Ok(())
}

async fn key(cx: &Context) -> Result<(), NotPassed> {
    let first = build(cx, cx.session.build_request()).await?;
    let mut request = cx.session.build_request();
    if let Some(release) = &mut request.release {
        release.version += 1;
        let var = ("CONFORMANCE".to_owned(), "another".to_owned());
        release.config.extend([var]);
    }
    let second = build(cx, request).await?;
    check_eq("Build of the next version", &second, &first)?;
    Ok(())
}

async fn hang_up(cx: &Context) -> Result<(), NotPassed> {
    let mut client = cx.control().client();
    let begun = client.build(cx.session.build_request()).await;
    drop(begun);
    let artifact = build(cx, cx.session.build_request()).await?;
    let mut request = cx.request("exit 4").await?;
    request.artifact = artifact;
    let mut dyno = cx.with_fifos(request, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(4)).await?;
    Ok(())
}

async fn unknown_option(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.session.build_request();
    let option = ("no-such-option-of-any-driver".to_owned(), "1".to_owned());
    request.options.extend([option]);
    // The refusal may come before the stream or as its end.
    let answer = cx.control().build(request).await;
    answer.refused(&[Code::InvalidArgument])?;
    Ok(())
}

async fn no_release(cx: &Context) -> Result<(), NotPassed> {
    let request = BuildRequest {
        release: None,
        options: cx.config().build_options.clone(),
    };
    let answer = cx.control().build(request).await;
    answer.refused(&[Code::InvalidArgument])?;
    Ok(())
}

async fn in_use(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start(HOLD).await?;
    let artifact = dyno.request.artifact.clone();
    let answer = cx.control().remove(remove_artifact(&artifact)).await;
    answer.refused(&[Code::FailedPrecondition])?;
    cx.check_runs(dyno.id()).await?;
    Ok(())
}

/// Runs until its stdin ends or it is stopped.
const HOLD: &str = "read _";

async fn unknown_artifact(cx: &Context) -> Result<(), NotPassed> {
    let unknown = format!("no-such-artifact-{}", cx.fresh_id());
    for _ in 0..2 {
        cx.control().remove(remove_artifact(&unknown)).await.ok()?;
    }
    Ok(())
}

async fn again(cx: &Context) -> Result<(), NotPassed> {
    // An app of its own, so that the artifact of the other cases stays.
    let mut request = cx.session.build_request();
    if let Some(release) = &mut request.release {
        "conformance-removed".clone_into(&mut release.app);
    }
    let artifact = build(cx, request.clone()).await?;
    for _ in 0..2 {
        let removed = cx.control().remove(remove_artifact(&artifact)).await;
        removed.ok()?;
    }
    let mut start = cx.request("exit 3").await?;
    start.artifact = build(cx, request).await?;
    let mut dyno = cx.with_fifos(start, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(3)).await?;
    // A driver whose artifact names the slug alone has removed that of the other cases.
    build(cx, cx.session.build_request()).await?;
    Ok(())
}
