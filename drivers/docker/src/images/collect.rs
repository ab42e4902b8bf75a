//! For how long a registry keeps the releases of an app.
//!
//! A registry removes by digest, and with a digest every tag that leads to it: a release whose
//! slug is an older one's shares its image with that.
//! <https://distribution.github.io/distribution/spec/api/#deleting-an-image>
//!
//! Drivers of one user have an app's images in common, and numbers of releases of their own. One
//! that has services may start any of its newest releases again. One that has none, as that
//! of a single `hsup run`, needs nothing that is old.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
};

use bollard::{
    Docker, auth::DockerCredentials, models::RegistryServiceConfig,
    query_parameters::ListServicesOptions,
};
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, LINK},
};
use serde::Deserialize;
use thiserror::Error;

use crate::config;

/// How much of what a driver is called stands in a tag.
const DRIVER: usize = 8;
/// What a manifest may be, so that its digest is that of the one that the engine pushed.
const MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
const DIGEST: &str = "docker-content-digest";
/// How many tags are asked for at a time.
const PAGE: usize = 1_000;
/// How long a registry may take for one answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// What is collected.
#[derive(Debug)]
pub(super) struct Collection<'a> {
    pub(super) engine: &'a Docker,
    /// `HOST:PORT`, with a path or without.
    pub(super) registry: &'a str,
    /// Of the app in it.
    pub(super) path: &'a str,
    pub(super) login: Option<DockerCredentials>,
    pub(super) needs: Needs<'a>,
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
    Engine(#[from] bollard::errors::Error),
    #[error("failed to ask the registry, from where this driver runs")]
    Ask(#[from] reqwest::Error),
    #[error("the registry answers {0}")]
    Refused(StatusCode),
    #[error(
        "the registry removes nothing: set `storage.delete.enabled: true` in its configuration, \
         and run its garbage collector now and then"
    )]
    Unsupported,
}

#[derive(Deserialize)]
struct Tags {
    /// `null` where there is none.
    tags: Option<Vec<String>>,
}

/// Removes the releases of an app that nobody needs from the registry. Gives how many went.
pub(super) async fn collect(collection: &Collection<'_>) -> Result<usize, CollectError> {
    let Collection {
        engine, registry, ..
    } = *collection;
    let name = format!("{registry}/{}", collection.path);
    let repository = Repository::open(engine, &name, collection.login.as_ref()).await?;
    let mut images = Vec::new();
    for text in repository.tags().await? {
        if let Some(tag) = Tag::parse(&text)
            && let Some(digest) = repository.digest(&text).await?
        {
            images.push((tag, digest));
        }
    }
    let surplus = surplus(&images, collection.needs, &services(engine).await?);
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

/// The digests that nobody needs: neither the one that was just pushed, nor used by a service, nor of
/// one of the newest releases of this driver, of any other one that has services, or of all that
/// have none.
fn surplus(images: &[(Tag, String)], needs: Needs<'_>, services: &Services) -> Vec<String> {
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
    for releases in releases.values() {
        let newest = releases.values().rev().take(needs.keep);
        needed.extend(newest.flatten());
    }
    let old = images.iter().map(|(_, digest)| digest.as_str());
    let old: BTreeSet<_> = old.filter(|digest| !needed.contains(digest)).collect();
    old.into_iter().map(str::to_owned).collect()
}

/// All services of the Swarm, whoever made them.
async fn services(engine: &Docker) -> Result<Services, CollectError> {
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

/// Whether the engine speaks to a registry without TLS.
fn is_insecure(config: &RegistryServiceConfig, host: &str) -> bool {
    let indices = config.index_configs.as_ref();
    if let Some(index) = indices.and_then(|indices| indices.get(host)) {
        return index.secure == Some(false);
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let Ok(ip) = name.trim_matches(['[', ']']).parse() else {
        return name == "localhost";
    };
    let networks = config.insecure_registry_cidrs.iter().flatten();
    networks.into_iter().any(|network| holds(network, ip))
}

/// Whether an address is in a network, `ADDRESS/BITS`.
fn holds(network: &str, ip: std::net::IpAddr) -> bool {
    use std::net::IpAddr;
    let parsed = network
        .split_once('/')
        .and_then(|(base, bits)| Some((base.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?)));
    match (parsed, ip) {
        (Some((IpAddr::V4(base), bits @ 0..=32)), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            base.to_bits() & mask == ip.to_bits() & mask
        }
        (Some((IpAddr::V6(base), bits @ 0..=128)), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            base.to_bits() & mask == ip.to_bits() & mask
        }
        _ => false,
    }
}

/// The images of an app in a registry.
struct Repository<'a> {
    client: Client,
    base: String,
    login: Option<&'a DockerCredentials>,
}

impl<'a> Repository<'a> {
    /// That of this name, `HOST/PATH`.
    async fn open(
        engine: &Docker,
        name: &str,
        login: Option<&'a DockerCredentials>,
    ) -> Result<Self, CollectError> {
        let (host, path) = name.split_once('/').unwrap_or((name, ""));
        let config = engine.info().await?.registry_config.unwrap_or_default();
        let scheme = if is_insecure(&config, host) {
            "http"
        } else {
            "https"
        };
        Ok(Self {
            client: hsup_slug::web::client().timeout(PATIENCE).build()?,
            base: format!("{scheme}://{host}/v2/{path}"),
            login,
        })
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        let login = self
            .login
            .and_then(|login| login.username.as_ref().map(|user| (user, login)));
        match login {
            Some((user, login)) => request.basic_auth(user, login.password.as_ref()),
            None => request,
        }
    }

    /// All of them, of which a registry gives some at a time.
    async fn tags(&self) -> Result<Vec<String>, CollectError> {
        let mut all = BTreeSet::new();
        let mut query = format!("?n={PAGE}");
        loop {
            let page = self.ask(Method::GET, &format!("/tags/list{query}"));
            let Some(answer) = found(page.send().await?)? else {
                break;
            };
            let next = next(&answer);
            let body = answer.bytes().await?;
            // What is no list has no tags.
            let tags = serde_json::from_slice::<Tags>(&body).ok();
            let before = all.len();
            all.extend(tags.and_then(|tags| tags.tags).unwrap_or_default());
            match next {
                // One that leads nowhere new would lead there for ever.
                Some(next) if all.len() > before => query = next,
                _ => break,
            }
        }
        Ok(all.into_iter().collect())
    }

    async fn digest(&self, tag: &str) -> Result<Option<String>, CollectError> {
        let request = self.ask(Method::HEAD, &format!("/manifests/{tag}"));
        let answer = found(request.header(ACCEPT, MANIFESTS).send().await?)?;
        let digest = answer
            .as_ref()
            .and_then(|answer| answer.headers().get(DIGEST));
        Ok(digest.and_then(|digest| Some(digest.to_str().ok()?.to_owned())))
    }

    async fn remove(&self, digest: &str) -> Result<(), CollectError> {
        let request = self.ask(Method::DELETE, &format!("/manifests/{digest}"));
        let answer = request.send().await?;
        if answer.status() == StatusCode::METHOD_NOT_ALLOWED {
            return Err(CollectError::Unsupported);
        }
        found(answer).map(drop)
    }
}

/// What is to be asked for after this page: the query alone, for it is the same registry.
/// <https://distribution.github.io/distribution/spec/api/#pagination>
fn next(page: &Response) -> Option<String> {
    let link = page.headers().get(LINK)?.to_str().ok()?;
    let (url, relation) = link.strip_prefix('<')?.split_once('>')?;
    let is_next = relation.replace('"', "").contains("rel=next");
    let query = &url[url.find('?')?..];
    is_next.then(|| query.to_owned())
}

/// An answer that is one; `None` if there is no such thing.
fn found(answer: Response) -> Result<Option<Response>, CollectError> {
    match answer.status() {
        StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => Ok(Some(answer)),
        status => Err(CollectError::Refused(status)),
    }
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
        surplus(&images, needs, services).join(" ")
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
        assert_eq!(goes(&runs, 2, "b", &Services::default()), "c");
        assert_eq!(goes(&runs, 1, "b", &Services::default()), "a c d");
    }

    /// What a registry answers that has this to say of the next page.
    fn page(link: Option<&str>) -> Response {
        let answer = hyper::http::Response::builder();
        let answer = match link {
            Some(link) => answer.header(LINK, link),
            None => answer,
        };
        answer.body("").unwrap().into()
    }

    #[test_case(
        Some("</v2/hsup/a/tags/list?last=v9&n=2>; rel=\"next\""),
        Some("?last=v9&n=2")
    )]
    #[test_case(Some("<https://other/v2/hsup/a/tags/list?n=2>; rel=next"), Some("?n=2"); "a whole URL")]
    #[test_case(Some("</v2/hsup/a/tags/list?n=2>; rel=prev"), None; "the one before")]
    #[test_case(Some("</v2/hsup/a/tags/list>; rel=next"), None; "the same again")]
    #[test_case(None, None; "the last one")]
    fn a_page_leads_to_the_next_one(link: Option<&str>, expected: Option<&str>) {
        assert_eq!(next(&page(link)).as_deref(), expected);
    }

    #[test_case("v7-01234567", true)]
    #[test_case("v7", false; "no driver")]
    #[test_case("v07-01234567", false; "no number as it is written")]
    #[test_case("latest", false)]
    fn a_tag_says_whose_it_is(text: &str, expected: bool) {
        assert_eq!(Tag::parse(text), expected.then(|| Tag::new(7, OURS)));
    }

    #[test_case("10.0.0.1:5000", true; "a network that the engine was told")]
    #[test_case("10.1.0.1:5000", false; "another one")]
    #[test_case("127.0.0.1:5000", true; "this machine")]
    #[test_case("localhost:5000", true)]
    #[test_case("registry.example", false)]
    #[test_case("plain.example:5000", true; "a name that the engine was told")]
    #[test_case("[fd00::1]:5000", true)]
    fn an_engine_says_whether_it_uses_tls(host: &str, expected: bool) {
        let networks = ["127.0.0.0/8", "10.0.0.0/24", "fd00::/8", "nonsense"];
        let config: RegistryServiceConfig = serde_json::from_value(serde_json::json!({
            "InsecureRegistryCIDRs": networks,
            "IndexConfigs": {"plain.example:5000": {"Name": "plain.example:5000", "Secure": false}},
        }))
        .unwrap();
        assert_eq!(is_insecure(&config, host), expected);
    }
}
