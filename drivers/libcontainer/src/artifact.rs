//! The name of what a Build made: a version of a stack, and a slug.
//!
//! `STACK@VERSION` or `STACK@VERSION:SLUG`. It says all that a Start needs, so nothing has to be
//! remembered of a Build; what it names is looked up with the caller's rights.

use std::{fmt, str::FromStr};

use hsup_slug::SlugId;

/// What a dyno is started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    pub(crate) stack: String,
    pub(crate) version: String,
    /// None of a release without a slug.
    pub(crate) slug: Option<SlugId>,
}

/// A text is not the name of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAnArtifact;

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.stack, self.version)?;
        match &self.slug {
            Some(slug) => write!(f, ":{slug}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Artifact {
    type Err = NotAnArtifact;

    fn from_str(text: &str) -> Result<Self, NotAnArtifact> {
        let (stack, slug) = match text.split_once(':') {
            Some((stack, slug)) => (stack, Some(slug.parse().map_err(|_| NotAnArtifact)?)),
            None => (text, None),
        };
        let (stack, version) = stack.split_once('@').ok_or(NotAnArtifact)?;
        let artifact = Self {
            stack: stack.to_owned(),
            version: version.to_owned(),
            slug,
        };
        // What is in use is known by its name: one artifact has one.
        (artifact.to_string() == text)
            .then_some(artifact)
            .ok_or(NotAnArtifact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let slug = "a5".repeat(32);
        for text in ["heroku-24@v10", &format!("heroku-24@v10:{slug}")] {
            let artifact: Artifact = text.parse().unwrap();
            assert_eq!(artifact.to_string(), text);
        }
        let other = format!("heroku-24@v10:SHA256:{}", slug.to_uppercase());
        for text in ["", "heroku-24", "heroku-24@v10:x", "heroku-24@v10:", &other] {
            assert_eq!(text.parse::<Artifact>(), Err(NotAnArtifact), "{text}");
        }
    }
}
