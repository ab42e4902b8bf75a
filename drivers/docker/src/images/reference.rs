//! Which image a stack is, and what may be the name of an image at all.

/// The stack of a release that names none, on an engine that has none of Heroku's: the one that
/// Heroku recommends.
pub(super) const NEWEST_STACK: &str = "heroku-26";
/// Whose tags are the stacks from heroku-16 on.
pub(super) const HEROKU: &str = "heroku/heroku";
/// Longer than the name of any image.
const LONGEST: usize = 512;

/// There is no image of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReferenceError {
    #[error("`{0}` is no name of a stack or an image")]
    Malformed(String),
    #[error("the stack `{0}` is of apps that are images: the release has to name its image")]
    Images(String),
}

/// The image that is a stack: `heroku/cedar:14` for cedar-14, `heroku/heroku:24` for heroku-24;
/// any other stack is the name of an image itself.
pub(super) fn of_stack(stack: &str) -> Result<String, ReferenceError> {
    let numbered = |prefix| {
        let digits: &str = stack.strip_prefix(prefix)?;
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some(digits)
    };
    if let Some(number) = numbered("heroku-") {
        return Ok(format!("{HEROKU}:{number}"));
    }
    if let Some(number) = numbered("cedar-") {
        return Ok(format!("heroku/cedar:{number}"));
    }
    match stack {
        "container" | "cnb" => Err(ReferenceError::Images(stack.to_owned())),
        _ => checked(stack),
    }
}

/// A name that cannot be anything else on its way to the engine, where it is part of a path.
pub(super) fn checked(reference: &str) -> Result<String, ReferenceError> {
    let fits = |component: &str| {
        component.starts_with(|first: char| first.is_ascii_alphanumeric())
            && component
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-:@".contains(&byte))
    };
    if reference.len() <= LONGEST && reference.split('/').all(fits) {
        return Ok(reference.to_owned());
    }
    let shown: String = reference.chars().take(100).collect();
    Err(ReferenceError::Malformed(shown.escape_debug().to_string()))
}

/// Whether a text is the name of a repository.
pub(crate) fn is_reference(text: &str) -> bool {
    !text.contains('@') && checked(text).is_ok()
}

/// A repository without what the engine itself leaves out: Docker Hub, and its library.
pub(super) fn familiar(repository: &str) -> &str {
    let hub = ["docker.io/", "index.docker.io/"];
    let rest = hub.iter().find_map(|hub| repository.strip_prefix(hub));
    let rest = rest.unwrap_or(repository);
    rest.strip_prefix("library/").unwrap_or(rest)
}

/// What is asked for to pull an image: its repository and its tag. Without a tag the engine
/// would pull all that there are; a digest stands for itself.
pub(super) fn to_pull(reference: &str) -> (&str, Option<&str>) {
    if reference.contains('@') {
        return (reference, None);
    }
    match reference.rsplit_once(':') {
        // A colon before the last slash is a port's.
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (reference, Some("latest")),
    }
}

/// The stack of a release that names none: the newest of Heroku's that the engine has, by the
/// tags of its images.
pub(super) fn newest<'a>(tags: impl IntoIterator<Item = &'a str>) -> String {
    let numbers = tags.into_iter().filter_map(|tag| {
        let number = tag.strip_prefix(HEROKU)?.strip_prefix(':')?;
        number.parse::<u32>().ok()
    });
    match numbers.max() {
        Some(number) => format!("heroku-{number}"),
        None => NEWEST_STACK.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("cedar-14", "heroku/cedar:14")]
    #[test_case("heroku-24", "heroku/heroku:24")]
    #[test_case("heroku-16", "heroku/heroku:16")]
    #[test_case("heroku-24-build", "heroku-24-build"; "an image")]
    #[test_case("my/stack:1", "my/stack:1")]
    #[test_case("localhost:5000/a/b@sha256:0123", "localhost:5000/a/b@sha256:0123")]
    fn stacks(stack: &str, image: &str) {
        assert_eq!(of_stack(stack).unwrap(), image);
    }

    #[test_case("")]
    #[test_case("a//b")]
    #[test_case("/a")]
    #[test_case("a/../../containers")]
    #[test_case("a?force=1")]
    #[test_case("a b")]
    #[test_case("-a")]
    #[test_case("a\n")]
    #[test_case("cnb"; "a stack of images")]
    fn no_stack(stack: &str) {
        assert!(of_stack(stack).is_err());
    }

    #[test_case("debian", ("debian", Some("latest")))]
    #[test_case("debian:12", ("debian", Some("12")))]
    #[test_case("host:5000/debian", ("host:5000/debian", Some("latest")))]
    #[test_case("debian@sha256:0123", ("debian@sha256:0123", None))]
    fn pulled(reference: &str, expected: (&str, Option<&str>)) {
        assert_eq!(to_pull(reference), expected);
    }

    #[test_case("nginx", "nginx")]
    #[test_case("library/nginx", "nginx"; "the library's")]
    #[test_case("docker.io/library/nginx", "nginx"; "the whole name")]
    #[test_case("docker.io/me/nginx", "me/nginx"; "somebody's")]
    #[test_case("host:5000/library/nginx", "host:5000/library/nginx"; "another registry's")]
    fn a_name_is_shown_as_the_engine_shows_it(repository: &str, expected: &str) {
        assert_eq!(familiar(repository), expected);
    }

    #[test]
    fn a_release_without_a_stack_has_the_newest() {
        let tags = [
            "heroku/heroku:9",
            "heroku/heroku:24",
            "heroku/heroku:26-build",
            "a/b:99",
        ];
        assert_eq!(newest(tags), "heroku-24");
        assert_eq!(newest(["a/b:99"]), NEWEST_STACK);
    }
}
