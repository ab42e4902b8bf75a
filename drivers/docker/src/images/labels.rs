//! What is written on an image that was made of a slug, and what it is found by.

use std::collections::{BTreeMap, HashMap, HashSet};

use bollard::models::ImageInspect;

use super::reference;

pub(super) const APP: &str = "io.hsup.app";
pub(super) const RELEASE: &str = "io.hsup.release";
pub(super) const CHECKSUM: &str = "io.hsup.checksum";
/// The id of the stack's image.
pub(super) const STACK: &str = "io.hsup.stack";
/// Whose Build made it: another user would have to show that it has the slug.
pub(super) const UID: &str = "io.hsup.uid";
/// The init that is in it: that of another version of the driver may not do.
pub(super) const INIT: &str = "io.hsup.init";
/// What it is: [`SLUG`] on an image, [`WORKSHOP`] on a container that one is made in.
pub(super) const ROLE: &str = "io.hsup.role";
pub(super) const SLUG: &str = "slug";
pub(super) const WORKSHOP: &str = "workshop";
/// Whose workshop it is, and which of those.
pub(super) const DRIVER: &str = "io.hsup.driver";
pub(super) const NAME: &str = "io.hsup.workshop";

/// The checksum of a release without a slug.
const NO_SLUG: &str = "none";

/// What an image is made for and of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) app: String,
    pub(super) release: u64,
    pub(super) stack: String,
    pub(super) uid: u32,
    pub(super) init: String,
}

impl Origin {
    /// What is written on the image; `checksum` is that of the slug that is in it.
    pub(super) fn labels(&self, checksum: Option<&str>) -> HashMap<String, String> {
        let mut labels = self.common();
        labels.insert(RELEASE.to_owned(), self.release.to_string());
        labels.insert(CHECKSUM.to_owned(), checksum.unwrap_or(NO_SLUG).to_owned());
        labels
    }

    /// What an image with this slug has on it, whichever release it was made for: a change of
    /// config makes a release too.
    pub(super) fn same_slug(&self, checksum: Option<&str>) -> Vec<String> {
        let mut labels = self.common();
        labels.insert(CHECKSUM.to_owned(), checksum.unwrap_or(NO_SLUG).to_owned());
        filter(labels)
    }

    /// What an image of this release has on it, whatever its slug was.
    pub(super) fn same_release(&self) -> Vec<String> {
        let mut labels = self.common();
        labels.insert(RELEASE.to_owned(), self.release.to_string());
        filter(labels)
    }

    /// What all images of this app have on them.
    pub(super) fn same_app(&self) -> Vec<String> {
        let own = [APP, UID, ROLE];
        let labels = self.common();
        filter(
            labels
                .into_iter()
                .filter(|(key, _)| own.contains(&&key[..])),
        )
    }

    fn common(&self) -> HashMap<String, String> {
        [
            (ROLE, SLUG),
            (APP, &self.app),
            (STACK, &self.stack),
            (UID, &self.uid.to_string()),
            (INIT, &self.init),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    /// What people see it by.
    pub(super) fn name(&self) -> (String, String) {
        name(&self.app, self.release)
    }
}

/// What the image of a release is called: `hsup/APP` and `vN`.
pub(super) fn name(app: &str, release: u64) -> (String, String) {
    let fitting = |character: char| match character.to_ascii_lowercase() {
        fits @ ('a'..='z' | '0'..='9') => fits,
        _ => '-',
    };
    let app: String = app.chars().take(100).map(fitting).collect();
    // A dash must be between others, and alone.
    let words: Vec<_> = app.split('-').filter(|word| !word.is_empty()).collect();
    let app = match words.as_slice() {
        [] => "app".to_owned(),
        words => words.join("-"),
    };
    (format!("hsup/{app}"), format!("v{release}"))
}

fn filter(labels: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let mut filter: Vec<_> = labels
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    filter.sort();
    filter
}

/// The names that an image has from being pushed: its own ones with a registry before them. Tags
/// first, since what is left after them goes by its digest.
pub(super) fn names_in_registries(image: &ImageInspect) -> Vec<String> {
    let tags = image.repo_tags.iter().flatten();
    let digests = image.repo_digests.iter().flatten();
    let repository = |name: &str| match name.split_once('@') {
        Some((repository, _)) => repository.to_owned(),
        None => name
            .rsplit_once(':')
            .map_or(name, |(name, _)| name)
            .to_owned(),
    };
    let own = tags.clone().map(|tag| repository(tag));
    let own: HashSet<String> = own.filter(|name| name.starts_with("hsup/")).collect();
    let is_pushed = |name: &&String| {
        let name = repository(name);
        // Behind its own name stands whose app it is.
        let (name, _) = name.rsplit_once('-').unwrap_or_default();
        own.iter().any(|own| name.ends_with(&format!("/{own}")))
    };
    tags.chain(digests).filter(is_pushed).cloned().collect()
}

/// The release that a name of an image says, if it is one of this app.
fn release_in(app: &str, name: &str) -> Option<u64> {
    // Podman puts a registry before each name that has none, or Docker Hub.
    let name = reference::familiar(name);
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    let (repository, tag) = name.rsplit_once(':')?;
    let number = tag.strip_prefix('v')?.parse().ok()?;
    (self::name(app, number) == (repository.to_owned(), tag.to_owned())).then_some(number)
}

/// The newest release that an image is of, by its names: it was made for its first.
pub(super) fn newest_release(app: &str, names: &[String]) -> Option<u64> {
    let releases = names.iter().filter_map(|name| release_in(app, name));
    releases.max()
}

/// Whether an image has the name of a release.
pub(super) fn has_release(image: &ImageInspect, app: &str, release: u64) -> bool {
    let names = image.repo_tags.iter().flatten();
    let mut releases = names.filter_map(|name| release_in(app, name));
    releases.any(|found| found == release)
}

fn label<'a>(image: &'a ImageInspect, name: &str) -> Option<&'a str> {
    let labels = image.config.as_ref()?.labels.as_ref()?;
    labels.get(name).map(String::as_str)
}

/// Whether an image was made of a slug.
pub(super) fn is_of_slug(image: &ImageInspect) -> bool {
    label(image, ROLE) == Some(SLUG)
}

/// Whether an image was made of a slug of this app.
pub(super) fn is_of_app(image: &ImageInspect, app: &str) -> bool {
    is_of_slug(image) && label(image, APP) == Some(app)
}

/// Whether an image was made of a slug of another user than this one.
pub(crate) fn is_anothers(image: &ImageInspect, uid: u32) -> bool {
    is_of_slug(image) && label(image, UID) != Some(uid.to_string().as_str())
}

/// The names `hsup/APP:vN` that an image has, the newest release's last.
pub(super) fn names_of_releases(image: &ImageInspect) -> Vec<String> {
    let app = label(image, APP);
    let names = image.repo_tags.iter().flatten();
    let releases = names.filter_map(|name| Some((release_in(app?, name)?, name.clone())));
    let sorted: BTreeMap<_, _> = releases.collect();
    sorted.into_values().collect()
}

/// An image of an app, as far as it matters for how long it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) id: String,
    /// The newest one that it is of.
    pub(super) release: u64,
    /// Whether it has that one's name: another may have got it later.
    pub(super) is_named: bool,
    pub(super) created: i64,
}

/// The images of an app that nobody needs: neither that of one of the `keep` newest releases, nor `current`, nor used by a container.
pub(super) fn surplus(
    images: Vec<Kept>,
    keep: usize,
    current: &str,
    used: &HashSet<String>,
) -> Vec<String> {
    let mut releases: BTreeMap<u64, &Kept> = BTreeMap::new();
    for image in &images {
        let newest = releases.entry(image.release).or_insert(image);
        let order = |image: &Kept| (image.is_named, image.created);
        if order(newest) < order(image) {
            *newest = image;
        }
    }
    let newest = releases.values().rev().take(keep);
    let needed: HashSet<String> = newest.map(|image| image.id.clone()).collect();
    images
        .into_iter()
        .map(|image| image.id)
        .filter(|id| id != current && !needed.contains(id) && !used.contains(id))
        .collect()
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn origin(app: &str) -> Origin {
        Origin {
            app: app.to_owned(),
            release: 7,
            stack: "sha256:5a".to_owned(),
            uid: 1_000,
            init: "f00d".to_owned(),
        }
    }

    #[test]
    fn an_image_is_found_by_what_is_written_on_it() {
        let origin = origin("app");
        let written = filter(origin.labels(Some("ab")));
        for wanted in [
            origin.same_slug(Some("ab")),
            origin.same_release(),
            origin.same_app(),
        ] {
            assert!(
                wanted.iter().all(|label| written.contains(label)),
                "{wanted:?}"
            );
        }
        let release = "io.hsup.release=7".to_owned();
        assert!(!origin.same_slug(Some("ab")).contains(&release));
        assert!(
            origin
                .same_slug(None)
                .contains(&"io.hsup.checksum=none".to_owned())
        );
        assert_eq!(
            origin.same_app(),
            ["io.hsup.app=app", "io.hsup.role=slug", "io.hsup.uid=1000"]
        );
    }

    #[test_case("app", "hsup/app")]
    #[test_case("My_App.1", "hsup/my-app-1")]
    #[test_case("--a--", "hsup/a")]
    #[test_case("äö", "hsup/app")]
    #[test_case("", "hsup/app"; "none")]
    fn names(app: &str, repository: &str) {
        assert_eq!(origin(app).name(), (repository.to_owned(), "v7".to_owned()));
    }

    #[test]
    fn a_pushed_image_has_names_that_go_first() {
        let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        let digest = "10.0.0.1:5000/hsup/app-01234567@sha256:a5";
        let image = ImageInspect {
            repo_tags: names(&[
                "hsup/app:v7",
                "10.0.0.1:5000/hsup/app-01234567:v7",
                "mine:1",
            ]),
            repo_digests: names(&[digest]),
            ..ImageInspect::default()
        };
        let pushed = ["10.0.0.1:5000/hsup/app-01234567:v7", digest];
        assert_eq!(names_in_registries(&image), pushed);
        assert!(names_in_registries(&ImageInspect::default()).is_empty());
    }

    #[test]
    fn an_image_is_of_each_release_that_it_is_named_after() {
        let names = [
            "hsup/my-app:v4",
            "localhost/hsup/my-app:v10",
            "docker.io/hsup/my-app:v9",
            "10.0.0.1:5000/hsup/my-app-01234567:v30",
            "hsup/my-app:v05",
            "hsup/other:v40",
            "<none>:<none>",
        ]
        .map(str::to_owned);
        assert_eq!(newest_release("my.app", &names), Some(10));
        assert_eq!(newest_release("mine", &names), None);
        let image = ImageInspect {
            repo_tags: Some(names.to_vec()),
            config: Some(bollard::models::ImageConfig {
                labels: Some([(APP.to_owned(), "my.app".to_owned())].into()),
                ..bollard::models::ImageConfig::default()
            }),
            ..ImageInspect::default()
        };
        assert!(has_release(&image, "my.app", 9) && !has_release(&image, "my.app", 5));
        let releases = [0, 2, 1].map(|number| &names[number]);
        assert_eq!(
            names_of_releases(&image).iter().collect::<Vec<_>>(),
            releases
        );
    }

    #[test]
    fn the_newest_releases_and_what_is_used_are_kept() {
        let image = |id: &str, release, created| Kept {
            id: id.to_owned(),
            release,
            is_named: id != "3 old",
            created,
        };
        let images = vec![
            image("1", 1, 10),
            image("2", 2, 20),
            image("3 old", 3, 32),
            image("3", 3, 31),
            image("10", 10, 40),
            image("4", 4, 50),
        ];
        let used = HashSet::from(["1".to_owned()]);
        assert_eq!(
            surplus(images.clone(), 2, "none", &used),
            ["2", "3 old", "3"]
        );
        assert_eq!(surplus(images.clone(), 3, "2", &used), ["3 old"]);
        assert_eq!(surplus(images, 0, "10", &used), ["2", "3 old", "3", "4"]);
    }
}
