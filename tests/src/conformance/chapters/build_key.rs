//! What a Build depends on, and what not: the same release is not built again, another one is.

use std::io;

use hsup_proto::driver::{BuildRequest, Release};

use super::{
    super::{
        case::{Case, Need, NotPassed, case, check, check_eq},
        context::Context,
        requests::code,
        session::Slug,
    },
    build::{BUILD, build},
};

pub(crate) const CASES: &[Case] = &[
    case!(
        BUILD,
        "neither version nor config are in its key",
        "§8 Build: neither version nor config are in the key",
        version_and_config,
        &[Need::Build]
    ),
    case!(
        BUILD,
        "the query of the slug's URL is not in its key",
        "§8 Build: the URL without its query: a fresh presigned URL builds nothing",
        query,
        &[Need::OwnSlug]
    ),
    case!(
        BUILD,
        "another slug is another artifact",
        "§8 Build: key = …, slug_checksum (without one: the URL without its query)",
        another_slug,
        &[Need::OwnSlug]
    ),
    case!(
        BUILD,
        "an image is not taken for the slug",
        "§8 Build: key = app, stack, options, image, …",
        image,
        &[Need::OwnSlug]
    ),
    case!(
        BUILD,
        "a dyno of another slug finds that slug",
        "§8 Build: key; §6 StartRequest: artifact",
        slugs_apart,
        &[Need::OwnSlug, Need::Output]
    ),
    case!(
        BUILD,
        "a slug that has changed is built again",
        "§8 Build: for a file its path, size and mtime",
        changed,
        &[Need::OwnSlug, Need::Output]
    ),
];

/// The Build of this run with another release.
fn with(cx: &Context, change: impl FnOnce(&mut Release)) -> BuildRequest {
    let mut request = cx.session.build_request();
    if let Some(release) = &mut request.release {
        change(release);
    }
    request
}

/// The same of the next release, which has this slug: of one release a driver need not keep two.
fn with_slug(cx: &Context, slug: &Slug) -> BuildRequest {
    with(cx, |release| {
        release.version += 1;
        release.slug_url = slug.url();
    })
}

fn slug() -> Result<Slug, NotPassed> {
    Slug::make().map_err(|error| NotPassed::hindered("a slug", &error))
}

fn write(slug: &Slug, text: &str) -> Result<(), NotPassed> {
    slug.write(FILE, text).map_err(|error| unwritten(&error))
}

fn unwritten(error: &io::Error) -> NotPassed {
    NotPassed::hindered("a file of a slug", error)
}

/// A file in the slug that says which it is.
const FILE: &str = "hsup-check";
/// A directory in a slug, and another file in that.
const INNER: &str = "hsup-check.d";
const INNER_FILE: &str = "hsup-check.d/file";

async fn version_and_config(cx: &Context) -> Result<(), NotPassed> {
    let first = build(cx, cx.session.build_request()).await?;
    let request = with(cx, |release| {
        release.version += 1;
        let var = ("CONFORMANCE".to_owned(), "another".to_owned());
        release.config.extend([var]);
    });
    let second = build(cx, request).await?;
    check_eq("Build of the next version", &second, &first)?;
    Ok(())
}

async fn query(cx: &Context) -> Result<(), NotPassed> {
    let first = build(cx, cx.session.build_request()).await?;
    for query in ["?X-Amz-Date=1&X-Amz-Signature=a", "?X-Amz-Date=2"] {
        let request = with(cx, |release| release.slug_url.push_str(query));
        let again = build(cx, request).await?;
        check_eq("Build with another query", &again, &first)?;
    }
    Ok(())
}

/// Builds what differs from the slug of this run, which must give another artifact.
async fn differs(cx: &Context, what: &str, request: BuildRequest) -> Result<String, NotPassed> {
    let first = build(cx, cx.session.build_request()).await?;
    let other = build(cx, request).await?;
    let on = format!("Build of {what}");
    check(other != first, on, "another artifact", &other)?;
    Ok(other)
}

async fn another_slug(cx: &Context) -> Result<(), NotPassed> {
    let slug = slug()?;
    differs(cx, "another slug", with_slug(cx, &slug)).await?;
    Ok(())
}

async fn image(cx: &Context) -> Result<(), NotPassed> {
    let request = with(cx, |release| {
        release.slug_url.clear();
        // There is no such image, and a driver that runs images may say so.
        "hsup-check.invalid/no/such:image".clone_into(&mut release.image);
    });
    // There is something that it could be taken for.
    build(cx, cx.session.build_request()).await?;
    if cx.control().build(request.clone()).await.result.is_ok() {
        differs(cx, "an image", request).await?;
    }
    Ok(())
}

/// What a dyno of `slug` finds in a file of the slug; skips the case when it cannot look.
async fn found(cx: &Context, slug: &Slug, file: &str) -> Result<String, NotPassed> {
    let artifact = build(cx, with_slug(cx, slug)).await?;
    let script = format!("[ -e {file} ] || exit 77; read -r l <{file}; echo \"$l\"");
    let mut request = cx.request(&script).await?;
    request.artifact = artifact;
    let mut dyno = cx.with_stdio(request, true)?;
    cx.launch(&mut dyno).await?;
    let status = cx.exit(dyno.id()).await?;
    if status.how == Some(code(77)) {
        let reason = "a dyno does not begin in the directory of its slug".to_owned();
        return Err(NotPassed::Skipped(reason));
    }
    Ok(dyno.stdout.line().await?)
}

async fn slugs_apart(cx: &Context) -> Result<(), NotPassed> {
    let (first, second) = (slug()?, slug()?);
    write(&first, "the first\n")?;
    write(&second, "the second\n")?;
    for (slug, text) in [(&first, "the first"), (&second, "the second")] {
        check_eq(FILE, &found(cx, slug, FILE).await?.as_str(), &text)?;
    }
    Ok(())
}

async fn changed(cx: &Context) -> Result<(), NotPassed> {
    let slug = slug()?;
    let made = slug.make_dir(INNER);
    let made = made.and_then(|()| slug.write(INNER_FILE, "before\n"));
    made.map_err(|error| unwritten(&error))?;
    for text in ["before", "and after"] {
        write(&slug, &format!("{text}\n"))?;
        check_eq(FILE, &found(cx, &slug, FILE).await?.as_str(), &text)?;
    }
    // The size and the time of no directory change with it.
    let edited = slug.edit(INNER_FILE, "and after\n");
    edited.map_err(|error| unwritten(&error))?;
    let text = found(cx, &slug, INNER_FILE).await?;
    check_eq(INNER_FILE, &text.as_str(), &"and after")?;
    Ok(())
}
