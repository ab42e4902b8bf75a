//! Build: a release becomes an artifact, once.

use hsup_proto::driver::{BuildRequest, GetInfoRequest, build_response::Event};
use tokio::task::JoinSet;
use tonic::Code;

use super::super::{
    case::{Case, Failure, Need, NotPassed, case, check_eq},
    context::Context,
    requests::{ONE_SECOND, code, remove_artifact},
    session::Slug,
};

pub(super) const BUILD: &str = "build";

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
        "GetInfo and List answer within 1 s while ten Builds are under way",
        "§8 GetInfo, List: within 1 s whatever else is in flight",
        not_in_the_way,
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
        "a malformed slug_checksum is INVALID_ARGUMENT",
        "§6 Release: slug_checksum: SHA256:<hex>, may be empty; §9: malformed field",
        bad_checksum
    ),
    case!(
        BUILD,
        "a slug directory that is not there is refused",
        "§6 BuildResponse: exactly one artifact, then OK: of nothing there is none; §9",
        no_slug
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
        &[Need::OwnSlug]
    ),
];

pub(super) async fn build(cx: &Context, request: BuildRequest) -> Result<String, Failure> {
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

async fn not_in_the_way(cx: &Context) -> Result<(), NotPassed> {
    let mut builds = JoinSet::new();
    for n in 0..10 {
        // Apps of their own, or all of them would be one Build that was done before.
        let mut request = cx.session.build_request();
        if let Some(release) = &mut request.release {
            release.app = format!("conformance-{n}");
        }
        builds.spawn(cx.control().build(request));
    }
    loop {
        let info = cx.control().get_info(GetInfoRequest::default()).await;
        info.within(ONE_SECOND)?.ok()?;
        cx.control().list(cx.own()).await.within(ONE_SECOND)?.ok()?;
        // The first round is made in any case, while they begin.
        while let Some(done) = builds.try_join_next() {
            if let Ok(answer) = done {
                answer.ok()?;
            }
        }
        if builds.is_empty() {
            return Ok(());
        }
    }
}

async fn hang_up(cx: &Context) -> Result<(), NotPassed> {
    let mut client = cx.control().client();
    let begun = client.build(cx.session.build_request()).await;
    drop(begun);
    let artifact = build(cx, cx.session.build_request()).await?;
    let mut request = cx.request("exit 4").await?;
    request.artifact = artifact;
    let mut dyno = cx.with_stdio(request, true)?;
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

async fn bad_checksum(cx: &Context) -> Result<(), NotPassed> {
    let hex = "0123456789abcdef".repeat(4);
    let bad = [
        hex.clone(),
        "SHA256:".to_owned(),
        format!("SHA256:{}", &hex[1..]),
        format!("SHA256:g{}", &hex[1..]),
        format!("MD5:{}", &hex[..32]),
    ];
    for checksum in bad {
        let mut request = cx.session.build_request();
        if let Some(release) = &mut request.release {
            release.slug_checksum.clone_from(&checksum);
        }
        let mut answer = cx.control().build(request).await;
        answer.call = format!("{} with slug_checksum {checksum:?}", answer.call);
        answer.refused(&[Code::InvalidArgument])?;
    }
    Ok(())
}

async fn no_slug(cx: &Context) -> Result<(), NotPassed> {
    let slug = Slug::make().map_err(|error| NotPassed::hindered("a slug", &error))?;
    let mut request = cx.session.build_request();
    if let Some(release) = &mut request.release {
        release.slug_url = format!("{}no-such-slug/", slug.url());
    }
    let answer = cx.control().build(request).await;
    // Whose fault it is the protocol does not say; a bug of the driver's it is not.
    answer.refused(&[
        Code::InvalidArgument,
        Code::NotFound,
        Code::FailedPrecondition,
        Code::PermissionDenied,
    ])?;
    Ok(())
}

async fn in_use(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.hang().await?;
    let artifact = dyno.request.artifact.clone();
    let answer = cx.control().remove(remove_artifact(&artifact)).await;
    answer.refused(&[Code::FailedPrecondition])?;
    cx.check_runs(dyno.id()).await?;
    Ok(())
}

async fn unknown_artifact(cx: &Context) -> Result<(), NotPassed> {
    let unknown = format!("no-such-artifact-{}", cx.fresh_id());
    for _ in 0..2 {
        cx.control().remove(remove_artifact(&unknown)).await.ok()?;
    }
    Ok(())
}

async fn again(cx: &Context) -> Result<(), NotPassed> {
    // A slug and a release of its own, so that the artifact of the other cases stays.
    let slug = Slug::make().map_err(|error| NotPassed::hindered("a slug", &error))?;
    let mut request = cx.session.build_request();
    if let Some(release) = &mut request.release {
        release.version += 1;
        release.slug_url = slug.url();
    }
    let artifact = build(cx, request.clone()).await?;
    for _ in 0..2 {
        let removed = cx.control().remove(remove_artifact(&artifact)).await;
        removed.ok()?;
    }
    let mut start = cx.request("exit 3").await?;
    start.artifact = build(cx, request).await?;
    let mut dyno = cx.with_stdio(start, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(3)).await?;
    Ok(())
}
