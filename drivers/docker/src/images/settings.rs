//! What an operator can say about images.

use std::path::{Path, PathBuf};

use bollard::auth::DockerCredentials;
use hsup_driver_kit::errors;
use hsup_slug::{Limits, Program};
use nix::unistd::geteuid;

use super::{credentials, workshops::Workshops};
use crate::docker_files;

/// As in the original hsup: when set, an image is built once for each release.
pub(crate) const CACHE_VARIABLE: &str = "DOCKER_IMAGE_CACHE";
/// How many releases of an app are kept as images.
pub(crate) const KEEP_VARIABLE: &str = "DOCKER_KEEP_IMAGES";
const KEEP: usize = 3;

/// When an image that is there already is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Never.
    Off,
    /// When it has the same slug on the same stack.
    SameSlug,
    /// Also when it is of the same release, and nobody knows whether its slug is the same.
    SameRelease,
}

impl Cache {
    fn parse(text: Option<&str>) -> Self {
        match text.unwrap_or_default().trim() {
            "" => Self::SameSlug,
            "0" | "off" | "no" | "false" => Self::Off,
            _ => Self::SameRelease,
        }
    }
}

/// How images are built and kept.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) cache: Cache,
    /// How many releases of an app are kept.
    pub(crate) keep: usize,
    /// What is executed for the processes that fetch and check slugs.
    pub(crate) program: Program,
    /// The folder with what `docker login` has left.
    pub(crate) logins: Option<PathBuf>,
    /// What a slug may at most be.
    pub(crate) limits: Limits,
    /// In which they are made.
    pub(crate) workshops: Workshops,
}

/// A variable has a value that it cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{KEEP_VARIABLE} is `{0}`: it must be a number of releases, at least 1")]
pub(crate) struct SettingsError(String);

impl Settings {
    /// As the environment says, for the driver that is called `home` among others.
    pub(crate) fn new(
        home: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let keep = match variable(KEEP_VARIABLE).as_deref() {
            None | Some("") => KEEP,
            Some(text) => match text.parse() {
                Ok(number @ 1..) => number,
                Ok(0) | Err(_) => return Err(SettingsError(text.to_owned())),
            },
        };
        Ok(Self {
            logins: docker_files::folder(&variable),
            cache: Cache::parse(variable(CACHE_VARIABLE).as_deref()),
            keep,
            program: Program::default(),
            limits: Limits::default(),
            workshops: Workshops::new(home),
        })
    }
}

impl Settings {
    /// The logins that a Build of this user may use: they are the driver's own user's.
    pub(super) fn logins_for(&self, uid: u32) -> Option<&Path> {
        let is_ours = uid == 0 || uid == geteuid().as_raw();
        self.logins.as_deref().filter(|_| is_ours)
    }
}

impl Settings {
    /// What a registry is shown for this user's images, if there is anything.
    pub(crate) async fn login(&self, uid: u32, reference: &str) -> Option<DockerCredentials> {
        let folder = self.logins_for(uid)?;
        match credentials::find(folder, reference).await {
            Ok(found) => found,
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(error, "asking a registry without credentials");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(None, Cache::SameSlug)]
    #[test_case(Some(""), Cache::SameSlug; "empty")]
    #[test_case(Some("1"), Cache::SameRelease)]
    #[test_case(Some("true"), Cache::SameRelease; "a word")]
    #[test_case(Some("0"), Cache::Off)]
    #[test_case(Some("off"), Cache::Off; "off")]
    #[test_case(Some("no"), Cache::Off; "no")]
    #[test_case(Some("false"), Cache::Off; "false")]
    fn caches(text: Option<&str>, cache: Cache) {
        let variable = |name: &str| {
            text.filter(|_| name == "DOCKER_IMAGE_CACHE")
                .map(str::to_owned)
        };
        assert_eq!(Settings::new("home", variable).unwrap().cache, cache);
    }

    #[test_case(None, Some(3))]
    #[test_case(Some("1"), Some(1); "one")]
    #[test_case(Some("0"), None; "none")]
    #[test_case(Some("few"), None; "a word")]
    fn kept(text: Option<&str>, keep: Option<usize>) {
        let variable = |name: &str| text.filter(|_| name == KEEP_VARIABLE).map(str::to_owned);
        let settings = Settings::new("home", variable);
        assert_eq!(settings.ok().map(|settings| settings.keep), keep);
    }

    #[test]
    fn logins_are_those_of_the_drivers_user() {
        let of = |name: &str, value: &str| {
            let set = |asked: &str| (asked == name).then(|| value.to_owned());
            Settings::new("home", set).unwrap()
        };
        let own = geteuid().as_raw();
        let home = of("HOME", "/home/me");
        assert_eq!(home.logins_for(own), Some(Path::new("/home/me/.docker")));
        assert_eq!(home.logins_for(own + 1), None);
        let config = of("DOCKER_CONFIG", "/etc/logins");
        assert_eq!(config.logins_for(0), Some(Path::new("/etc/logins")));
        assert_eq!(of("HOME", "").logins_for(0), None);
    }
}
