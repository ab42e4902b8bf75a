//! For how long a registry keeps the releases of an app.
//!
//! A registry removes by digest, and with a digest every tag that leads to it: a release whose
//! slug is an older one's shares its image with that.
//! <https://distribution.github.io/distribution/spec/api/#deleting-an-image>
//!
//! Drivers of one user have an app's images in common, and numbers of releases of their own. One
//! that has services may start any of its newest releases again. One that has none, as that
//! of a single `hsup run`, needs nothing that is old, and its dynos run where the image is: of all
//! of these together each release has one image.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
};

use bollard::{Docker, errors::Error as EngineError, query_parameters::ListServicesOptions};
use thiserror::Error;

use super::repository::{Repository, RepositoryError};
use crate::config;

/// How much of what a driver is called stands in a tag.
const DRIVER: usize = 8;
/// What is collected.
pub(super) struct Collection<'a> {
    pub(super) engine: &'a Docker,
    pub(super) repository: &'a Repository<'a>,
    pub(super) needs: Needs<'a>,
    /// The digest that the tag led to before: another image of a release of that number.
    pub(super) replaced: Option<String>,
}

/// What is needed whether it is used or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs<'a> {
    /// How many releases are kept.
    pub(super) keep: usize,
    /// What the driver is called.
    pub(super) driver: &'a str,
    /// The digest of the image that was just pushed.
    pub(super) current: &'a str,
}

/// What an image is called in a registry: the release, and which driver's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    release: u64,
    /// The beginning of what that is called.
    driver: String,
}

impl Tag {
    pub(super) fn new(release: u64, driver: &str) -> Self {
        let driver = driver.chars().take(DRIVER).collect();
        Self { release, driver }
    }

    fn parse(text: &str) -> Option<Self> {
        let (release, driver) = text.strip_prefix('v')?.split_once('-')?;
        let release = release.parse().ok()?;
        Some(Self::new(release, driver)).filter(|tag| tag.to_string() == text)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}-{}", self.release, self.driver)
    }
}

/// Old releases stay where they are.
#[derive(Debug, Error)]
pub(super) enum CollectError {
    #[error("failed to ask the engine which are in use")]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Removes the releases of an app that nobody needs from the registry. Gives how many went.
pub(super) async fn collect(collection: &Collection<'_>) -> Result<usize, CollectError> {
    let Collection {
        engine, repository, ..
    } = *collection;
    let mut images = Vec::new();
    for text in repository.tags().await? {
        if let Some(tag) = Tag::parse(&text)
            && let Some(digest) = repository.digest(&text).await?
        {
            images.push((tag, digest));
        }
    }
    let replaced = collection.replaced.as_deref();
    let surplus = surplus(
        &images,
        replaced,
        collection.needs,
        &services(engine).await?,
    );
    for digest in &surplus {
        repository.remove(digest).await?;
    }
    Ok(surplus.len())
}

/// What services are there.
#[derive(Debug, Default)]
struct Services {
    /// The digests of their images.
    images: HashSet<String>,
    /// What their drivers are called.
    drivers: HashSet<String>,
}

/// The digests that nobody needs, of those with a tag and the one that lost its own: neither the one
/// that was just pushed, nor used by a service, nor of one of the newest releases of this driver, of
/// any other one that has services, or, once each, of all that have none.
fn surplus(
    images: &[(Tag, String)],
    replaced: Option<&str>,
    needs: Needs<'_>,
    services: &Services,
) -> Vec<String> {
    let own = Tag::new(0, needs.driver).driver;
    let short = |driver: &String| Tag::new(0, driver).driver;
    let lasting: HashSet<_> = services.drivers.iter().map(short).chain([own]).collect();
    let mut needed: HashSet<&str> = services.images.iter().map(String::as_str).collect();
    needed.insert(needs.current);
    let mut releases: HashMap<Option<&str>, BTreeMap<u64, Vec<&str>>> = HashMap::new();
    for (tag, digest) in images {
        let driver = lasting.get(&tag.driver).map(String::as_str);
        let releases = releases.entry(driver).or_default();
        releases.entry(tag.release).or_default().push(digest);
    }
    for (driver, releases) in &releases {
        let each = if driver.is_some() { usize::MAX } else { 1 };
        let newest = releases.values().rev().take(needs.keep);
        needed.extend(newest.flat_map(|images| images.iter().take(each)));
    }
    let old = images.iter().map(|(_, digest)| digest.as_str());
    let old: BTreeSet<_> = old
        .chain(replaced)
        .filter(|digest| !needed.contains(digest))
        .collect();
    old.into_iter().map(str::to_owned).collect()
}

/// All services of the Swarm, whoever made them.
async fn services(engine: &Docker) -> Result<Services, EngineError> {
    let mut found = Services::default();
    for service in engine.list_services(None::<ListServicesOptions>).await? {
        let spec = service.spec.unwrap_or_default();
        let driver = spec
            .labels
            .and_then(|mut labels| labels.remove(config::DRIVER));
        found.drivers.extend(driver);
        let container = spec.task_template.and_then(|task| task.container_spec);
        let image = container.and_then(|container| container.image);
        let digest = image.as_deref().and_then(|image| image.split_once('@'));
        found
            .images
            .extend(digest.map(|(_, digest)| digest.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const OURS: &str = "0123456789abcdef";

    /// What goes of these tags, where so many are kept.
    fn goes(images: &[(&str, &str)], keep: usize, current: &str, services: &Services) -> String {
        let images = images.iter().map(|(tag, digest)| {
            let driver = if tag.contains('-') { "" } else { "-01234567" };
            let tag = Tag::parse(&format!("{tag}{driver}")).unwrap();
            (tag, (*digest).to_owned())
        });
        let needs = Needs {
            keep,
            driver: OURS,
            current,
        };
        let images: Vec<_> = images.collect();
        surplus(&images, None, needs, services).join(" ")
    }

    #[test]
    fn an_image_goes_when_no_release_needs_it() {
        let images = [
            ("v1", "a"),
            ("v2", "b"),
            ("v3", "a"),
            ("v10", "c"),
            ("v11", "d"),
        ];
        let none = Services::default();
        // v1 has the image of v3.
        assert_eq!(goes(&images, 3, "d", &none), "b");
        assert_eq!(goes(&images, 2, "d", &none), "a b");
        let used = Services {
            images: ["a".to_owned()].into(),
            ..Services::default()
        };
        assert_eq!(goes(&images, 1, "d", &used), "b c");
        // A rollback.
        assert_eq!(goes(&images, 1, "b", &none), "a c");
        // What was just pushed is not among them.
        assert_eq!(goes(&images[..2], 1, "x", &none), "a");
    }

    #[test]
    fn an_image_that_lost_its_tag_goes_unless_another_release_has_it() {
        let images = [(Tag::new(1, OURS), "b".to_owned())];
        let needs = Needs {
            keep: 3,
            driver: OURS,
            current: "b",
        };
        let goes =
            |replaced, services: &Services| surplus(&images, Some(replaced), needs, services);
        let none = Services::default();
        assert_eq!(goes("a", &none), ["a"]);
        assert_eq!(goes("b", &none), [""; 0], "the same was pushed again");
        let used = Services {
            images: ["a".to_owned()].into(),
            ..none
        };
        assert_eq!(goes("a", &used), [""; 0]);
    }

    #[test]
    fn a_driver_that_has_services_keeps_its_own_releases() {
        let images = [
            ("v60", "a"),
            ("v61", "b"),
            ("v1-aaaaaaaa", "c"),
            ("v2-aaaaaaaa", "d"),
            ("v3-aaaaaaaa", "e"),
        ];
        let services = Services {
            drivers: ["aaaaaaaa11111111".to_owned(), OURS.to_owned()].into(),
            ..Services::default()
        };
        assert_eq!(goes(&images, 2, "b", &services), "c");
        // One that has none is as the next one of its kind.
        let runs = [
            ("v60", "a"),
            ("v61", "b"),
            ("v59-aaaaaaaa", "c"),
            ("v60-bbbbbbbb", "d"),
            ("v61-cccccccc", "b"),
            ("v61-dddddddd", "e"),
        ];
        assert_eq!(goes(&runs, 2, "b", &Services::default()), "c e");
        assert_eq!(goes(&runs, 1, "b", &Services::default()), "a c d e");
    }

    #[test_case("v7-01234567", true)]
    #[test_case("v7", false; "no driver")]
    #[test_case("v07-01234567", false; "no number as it is written")]
    #[test_case("latest", false)]
    fn a_tag_says_whose_it_is(text: &str, expected: bool) {
        assert_eq!(Tag::parse(text), expected.then(|| Tag::new(7, OURS)));
    }
}
