//! The name of what a Build made: an image in the engine, and how a command is run in it.
//!
//! `slug:UID:GID:sha256:HEX`, `image:sha256:HEX` or `cnb:sha256:HEX`, with a `REPOSITORY@` before
//! the digest of an image that is in a registry. It says all that a Start
//! needs, so nothing has to be remembered of a Build.

use std::{fmt, str::FromStr};

use crate::images::is_reference;

/// What a dyno runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// The image, by its id: `sha256:` and 64 hexadecimal digits; or, in a registry, by its
    /// repository, an `@` and its digest, which looks the same.
    pub(crate) image: String,
    pub(crate) kind: Kind,
}

/// How a command is run in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A slug on a stack: `hsup-init` is at `/.hsup/init`, and the app in `/app` is this user's.
    Slug { uid: u32, gid: u32 },
    /// An image of its own, whose entrypoint is respected.
    Plain,
    /// An image that buildpacks made: `/cnb/process/TYPE`, and a launcher for everything else.
    Cnb,
}

/// A text is not the name of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAnArtifact;

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Slug { uid, gid } => write!(f, "slug:{uid}:{gid}:{}", self.image),
            Kind::Plain => write!(f, "image:{}", self.image),
            Kind::Cnb => write!(f, "cnb:{}", self.image),
        }
    }
}

impl FromStr for Artifact {
    type Err = NotAnArtifact;

    fn from_str(text: &str) -> Result<Self, NotAnArtifact> {
        let (kind, image) = match text.split_once(':').ok_or(NotAnArtifact)? {
            ("image", image) => (Kind::Plain, image),
            ("cnb", image) => (Kind::Cnb, image),
            ("slug", rest) => {
                let mut parts = rest.splitn(3, ':');
                let mut part = || parts.next().ok_or(NotAnArtifact);
                let (uid, gid, image) = (number(part()?)?, number(part()?)?, part()?);
                (Kind::Slug { uid, gid }, image)
            }
            _ => return Err(NotAnArtifact),
        };
        let (repository, digest) = match image.split_once('@') {
            Some((repository, digest)) => (Some(repository), digest),
            None => (None, image),
        };
        if repository.is_some_and(|name| !is_reference(name)) {
            return Err(NotAnArtifact);
        }
        let digits = digest.strip_prefix("sha256:").ok_or(NotAnArtifact)?;
        let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 64 || !digits.bytes().all(is_hex) {
            return Err(NotAnArtifact);
        }
        let image = image.to_owned();
        Ok(Self { image, kind })
    }
}

/// A number as it is written: one artifact has one name.
fn number(text: &str) -> Result<u32, NotAnArtifact> {
    let number: u32 = text.parse().map_err(|_| NotAnArtifact)?;
    (number.to_string() == text)
        .then_some(number)
        .ok_or(NotAnArtifact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let digest = format!("sha256:{}", "a5".repeat(32));
        for kind in ["slug:1000:1001", "image", "cnb"] {
            for repository in ["", "10.0.0.1:5000/hsup/shop@"] {
                let image = format!("{repository}{digest}");
                let text = format!("{kind}:{image}");
                let artifact: Artifact = text.parse().unwrap();
                assert_eq!(artifact.to_string(), text);
                assert_eq!(artifact.image, image);
            }
        }
    }

    #[test]
    fn anything_else_is_none() {
        let digits = "a5".repeat(32);
        for text in [
            "",
            "image",
            "image:debian",
            &format!("image:sha256:{digits}0"),
            &format!("image:sha256:{}", digits.to_uppercase()),
            &format!("dir:sha256:{digits}"),
            &format!("slug:1000:sha256:{digits}"),
            &format!("slug:+1:1:sha256:{digits}"),
            &format!("image:@sha256:{digits}"),
            &format!("image:a/../b@sha256:{digits}"),
            &format!("image:a@b@sha256:{digits}"),
            &format!("slug:-1:1:sha256:{digits}"),
        ] {
            assert_eq!(text.parse::<Artifact>(), Err(NotAnArtifact), "{text}");
        }
    }
}
