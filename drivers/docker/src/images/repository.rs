//! The images of an app in a registry, asked for without the engine: it has no calls for that.
//!
//! <https://distribution.github.io/distribution/spec/api/>

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bollard::{Docker, auth::DockerCredentials, models::RegistryServiceConfig};
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, LINK},
};
use serde::Deserialize;
use thiserror::Error;

/// What a manifest may be, so that its digest is that of the one that the engine pushed.
const MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
const DIGEST: &str = "docker-content-digest";
/// How many tags are asked for at a time.
const PAGE: usize = 1_000;
/// How long a registry may take for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A registry does not do what it is asked for.
#[derive(Debug, Error)]
pub(super) enum RepositoryError {
    #[error("failed to ask the engine how it speaks to the registry")]
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

/// The images of an app in a registry.
pub(super) struct Repository<'a> {
    client: Client,
    base: String,
    login: Option<&'a DockerCredentials>,
}

impl<'a> Repository<'a> {
    /// That of this name, `HOST/PATH`.
    pub(super) async fn open(
        engine: &Docker,
        name: &str,
        login: Option<&'a DockerCredentials>,
    ) -> Result<Self, RepositoryError> {
        let (host, path) = name.split_once('/').unwrap_or((name, ""));
        let config = engine.info().await?.registry_config.unwrap_or_default();
        let scheme = if is_insecure(&config, host) {
            "http"
        } else {
            "https"
        };
        Ok(Self {
            client: hsup_slug::web::client(|client| client.timeout(PATIENCE))?,
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
    pub(super) async fn tags(&self) -> Result<Vec<String>, RepositoryError> {
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

    pub(super) async fn digest(&self, tag: &str) -> Result<Option<String>, RepositoryError> {
        let request = self.ask(Method::HEAD, &format!("/manifests/{tag}"));
        let answer = found(request.header(ACCEPT, MANIFESTS).send().await?)?;
        let digest = answer
            .as_ref()
            .and_then(|answer| answer.headers().get(DIGEST));
        Ok(digest.and_then(|digest| Some(digest.to_str().ok()?.to_owned())))
    }

    pub(super) async fn remove(&self, digest: &str) -> Result<(), RepositoryError> {
        let request = self.ask(Method::DELETE, &format!("/manifests/{digest}"));
        let answer = request.send().await?;
        if answer.status() == StatusCode::METHOD_NOT_ALLOWED {
            return Err(RepositoryError::Unsupported);
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
fn found(answer: Response) -> Result<Option<Response>, RepositoryError> {
    match answer.status() {
        StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => Ok(Some(answer)),
        status => Err(RepositoryError::Refused(status)),
    }
}

#[derive(Deserialize)]
struct Tags {
    /// `null` where there is none.
    tags: Option<Vec<String>>,
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
fn holds(network: &str, ip: IpAddr) -> bool {
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

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

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
