//! The name of what a Build made: an image of the engine, and how a command is run in it.
//!
//! `slug:UID:GID:ID`, `image:ID` or `cnb:ID`, where the id is the image's. It says all that a
//! Start needs, so nothing has to be remembered of a Build.

use std::{fmt, str::FromStr};

/// What a dyno runs on: an image in the engine, by its id, and how a command is run in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) image: String,
    pub(crate) kind: Kind,
}

/// How a command is run in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A slug on a stack: by `/.hsup/init`, in `/app`, as the dyno user.
    Slug { uid: u32, gid: u32 },
    /// An image of its own: by `/bin/sh -c`, its entrypoint respected.
    Plain,
    /// An image of Cloud Native Buildpacks: by `/cnb/process/TYPE`.
    Cnb,
}

/// A text is not the name of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAnArtifact;

/// Whether this is the id of an image.
pub(crate) fn is_image_id(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

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
        let (kind, rest) = text.split_once(':').ok_or(NotAnArtifact)?;
        let (kind, image) = match kind {
            "image" => (Kind::Plain, rest),
            "cnb" => (Kind::Cnb, rest),
            "slug" => {
                let mut parts = rest.splitn(3, ':');
                let mut number = || parts.next()?.parse().ok();
                let (uid, gid) = number().zip(number()).ok_or(NotAnArtifact)?;
                (Kind::Slug { uid, gid }, parts.next().ok_or(NotAnArtifact)?)
            }
            _ => return Err(NotAnArtifact),
        };
        let image = Some(image).filter(|image| is_image_id(image));
        Ok(Self {
            image: image.ok_or(NotAnArtifact)?.to_owned(),
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let id = format!("sha256:{}", "a5".repeat(32));
        for text in ["slug:1000:1001:", "image:", "cnb:"] {
            let text = format!("{text}{id}");
            let artifact: Artifact = text.parse().unwrap();
            assert_eq!(artifact.to_string(), text);
        }
        for text in [
            String::new(),
            id.clone(),
            format!("slug:{id}"),
            format!("slug:0:-1:{id}"),
            format!("slug:1:2:3:{id}"),
            format!("image:{}", &id[..70]),
            format!("image:sha256:{}", "A5".repeat(32)),
            format!("other:{id}"),
            "image:../../x".to_owned(),
        ] {
            assert_eq!(text.parse::<Artifact>(), Err(NotAnArtifact), "{text}");
        }
    }
}
