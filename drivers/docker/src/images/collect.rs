//! For how long a registry keeps the releases of an app.
//!
//! A registry removes by digest, and with a digest every tag that leads to it: a release whose
//! slug is an older one's shares its image with that.
//! <https://distribution.github.io/distribution/spec/api/#deleting-an-image>

use std::collections::{BTreeMap, HashSet};

use bollard::{
    Docker, auth::DockerCredentials, models::RegistryServiceConfig,
    query_parameters::ListServicesOptions,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header::ACCEPT};
use serde::Deserialize;
use thiserror::Error;

/// What a manifest may be, so that its digest is that of the one that the engine pushed.
const MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
const DIGEST: &str = "docker-content-digest";
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
    /// How many releases are kept.
    pub(super) keep: usize,
    /// The release that is needed.
    pub(super) current: u64,
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
        engine,
        registry,
        keep,
        current,
        ..
    } = *collection;
    let name = format!("{registry}/{}", collection.path);
    let repository = Repository::open(engine, &name, collection.login.as_ref()).await?;
    let mut releases = BTreeMap::new();
    for tag in repository.tags().await? {
        let number = tag.strip_prefix('v').and_then(|number| number.parse().ok());
        if let Some(release) = number
            && let Some(digest) = repository.digest(&tag).await?
        {
            releases.insert(release, digest);
        }
    }
    let surplus = surplus(&releases, keep, current, &used(engine).await?);
    for digest in &surplus {
        repository.remove(digest).await?;
    }
    Ok(surplus.len())
}

/// The digests that nobody needs: of none of the `keep` newest releases, nor of the `current` one,
/// nor used by a service.
fn surplus(
    releases: &BTreeMap<u64, String>,
    keep: usize,
    current: u64,
    used: &HashSet<String>,
) -> Vec<String> {
    let newest = releases.values().rev().take(keep);
    let needed: HashSet<_> = newest.chain(releases.get(&current)).chain(used).collect();
    let old: HashSet<_> = releases
        .values()
        .filter(|one| !needed.contains(one))
        .collect();
    let mut old: Vec<_> = old.into_iter().cloned().collect();
    old.sort();
    old
}

/// The digests of the images of all services.
async fn used(engine: &Docker) -> Result<HashSet<String>, CollectError> {
    let services = engine.list_services(None::<ListServicesOptions>).await?;
    let image = |service: bollard::models::Service| {
        let container = service.spec?.task_template?.container_spec?;
        let image = container.image?;
        image.split_once('@').map(|(_, digest)| digest.to_owned())
    };
    Ok(services.into_iter().filter_map(image).collect())
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

/// Whether a registry says that it has no such image, `REPOSITORY@DIGEST`.
pub(super) async fn is_gone(
    engine: &Docker,
    image: &str,
    login: Option<&DockerCredentials>,
) -> Result<bool, CollectError> {
    let Some((name, digest)) = image.split_once('@') else {
        return Ok(false);
    };
    let repository = Repository::open(engine, name, login).await?;
    Ok(repository.digest(digest).await?.is_none())
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

    async fn tags(&self) -> Result<Vec<String>, CollectError> {
        let answer = self.ask(Method::GET, "/tags/list?n=1000").send().await?;
        let Some(answer) = found(answer)? else {
            return Ok(Vec::new());
        };
        let body = answer.bytes().await?;
        // What is no list has no tags.
        let tags = serde_json::from_slice::<Tags>(&body).ok();
        Ok(tags.and_then(|tags| tags.tags).unwrap_or_default())
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

    #[test]
    fn an_image_goes_when_no_release_needs_it() {
        let releases: BTreeMap<u64, String> = [(1, "a"), (2, "b"), (3, "a"), (10, "c"), (11, "d")]
            .map(|(release, digest)| (release, digest.to_owned()))
            .into();
        let none = HashSet::new();
        // v1 has the image of v3.
        assert_eq!(surplus(&releases, 3, 11, &none), ["b"]);
        assert_eq!(surplus(&releases, 2, 11, &none), ["a", "b"]);
        let used = HashSet::from(["a".to_owned()]);
        assert_eq!(surplus(&releases, 1, 11, &used), ["b", "c"]);
        // A rollback.
        assert_eq!(surplus(&releases, 1, 2, &none), ["a", "c"]);
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
