//! Credentials for registries: those that `docker login` has left.
//!
//! The engine keeps none: whoever has it pull an image sends them along. They are read for each
//! pull, told to nobody else, and belong to the user of this driver.

use std::{collections::HashMap, io, path::Path, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

use crate::docker_files::{self, FileError};

/// What Docker Hub is called in the files, and what it is called in names of images.
const HUB: &str = "https://index.docker.io/v1/";
const HUB_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// How long a helper may take: it may ask somebody.
const PATIENCE: Duration = Duration::from_secs(30);
/// As a helper says that it has none.
const NONE: &str = "credentials not found";
/// The user of a helper's answer that holds a token.
const TOKEN: &str = "<token>";

/// Why there are none although there should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`auth` of `{0}` is not what Docker writes")]
    Auth(String),
    #[error("failed to run `docker-credential-{helper}`")]
    Run { helper: String, source: io::Error },
    #[error("`docker-credential-{helper}` {what}")]
    Helper { helper: String, what: String },
}

/// `config.json`, as far as it is about registries.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    auths: HashMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// The user and the password, with a colon between.
    #[serde(rename = "auth")]
    pair: String,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Those for the registry of an image, if there are any in this folder or with a helper.
pub(super) async fn find(
    folder: &Path,
    reference: &str,
) -> Result<Option<DockerCredentials>, CredentialsError> {
    let path = folder.join(docker_files::CONFIG);
    let read = tokio::fs::read(&path).await;
    let config: Config = match docker_files::parse(path, read) {
        Err(error) if error.is_missing() => return Ok(None),
        config => config?,
    };
    let registry = registry(reference);
    let helper = config.cred_helpers.get(registry);
    match helper.or(config.creds_store.as_ref()) {
        Some(helper) => ask(helper, registry).await,
        None => in_file(&config, registry),
    }
}

/// The registry that an image comes from, as the files call it.
pub(super) fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if HUB_NAMES.contains(&first) => HUB,
        // A word is a user of Docker Hub.
        Some((first, _)) if first == "localhost" || first.contains(['.', ':']) => first,
        _ => HUB,
    }
}

pub(super) fn in_file(
    config: &Config,
    registry: &str,
) -> Result<Option<DockerCredentials>, CredentialsError> {
    let host = |name: &str| {
        let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default().to_owned()
    };
    let mut others = config.auths.iter();
    let other = || others.find(|(name, _)| host(name) == host(registry));
    let Some((name, auth)) = config.auths.get_key_value(registry).or_else(other) else {
        return Ok(None);
    };
    let mut credentials = DockerCredentials {
        serveraddress: Some(registry.to_owned()),
        identitytoken: auth.identity_token.clone(),
        registrytoken: auth.registry_token.clone(),
        ..DockerCredentials::default()
    };
    if !auth.pair.is_empty() {
        let text = STANDARD.decode(&auth.pair).ok();
        let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
        let (user, password) = text
            .as_deref()
            .and_then(|text| text.split_once(':'))
            .ok_or_else(|| CredentialsError::Auth(name.clone()))?;
        credentials.username = Some(user.to_owned());
        credentials.password = Some(password.trim_end_matches('\0').to_owned());
    }
    Ok(Some(credentials))
}

/// Asks the program that keeps them.
async fn ask(helper: &str, registry: &str) -> Result<Option<DockerCredentials>, CredentialsError> {
    let failed = |what: String| CredentialsError::Helper {
        helper: helper.to_owned(),
        what,
    };
    let run = |source| CredentialsError::Run {
        helper: helper.to_owned(),
        source,
    };
    if helper.contains('/') {
        return Err(failed("is no name of a program".to_owned()));
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a program of this machine, and no dyno"
    )]
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read says why in its answer.
        drop(stdin.write_all(registry.as_bytes()).await);
    }
    let output = match timeout(PATIENCE, child.wait_with_output()).await {
        Ok(output) => output.map_err(run)?,
        Err(_) => {
            return Err(failed(format!(
                "did not answer within {} s",
                PATIENCE.as_secs()
            )));
        }
    };
    if !output.status.success() {
        // It is a message then, and no secret.
        let said = String::from_utf8_lossy(&output.stdout);
        return match said.trim() {
            said if said.contains(NONE) => Ok(None),
            said => Err(failed(format!("ended with {}: {said}", output.status))),
        };
    }
    // What is wrong with it is not told: a secret may stand there.
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("answered what no helper answers".to_owned()))?;
    let mut credentials = DockerCredentials {
        serveraddress: Some(registry.to_owned()),
        ..DockerCredentials::default()
    };
    if answer.username == TOKEN {
        credentials.identitytoken = Some(answer.secret);
    } else {
        credentials.username = Some(answer.username);
        credentials.password = Some(answer.secret);
    }
    Ok(Some(credentials))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("debian", HUB)]
    #[test_case("heroku/heroku:24", HUB)]
    #[test_case("docker.io/heroku/heroku", HUB)]
    #[test_case("ghcr.io/a/b:1", "ghcr.io")]
    #[test_case("localhost:5000/a", "localhost:5000")]
    #[test_case("localhost/a", "localhost")]
    fn images_come_from(reference: &str, expected: &str) {
        assert_eq!(registry(reference), expected);
    }

    fn given(config: &str, registry: &str) -> Option<(String, String)> {
        let config: Config = serde_json::from_str(config).unwrap();
        let found = in_file(&config, registry).unwrap()?;
        Some((found.username?, found.password?))
    }

    #[test_case("ghcr.io", "ghcr.io"; "as it is")]
    #[test_case("https://ghcr.io/v2/", "ghcr.io"; "as a url")]
    #[test_case("index.docker.io", HUB; "the hub")]
    fn a_login_is_found(name: &str, registry: &str) {
        let config = format!(r#"{{"auths": {{"{name}": {{"auth": "bWU6aHVzaDpodXNo"}}}}}}"#);
        let expected = ("me".to_owned(), "hush:hush".to_owned());
        assert_eq!(given(&config, registry), Some(expected));
        assert_eq!(given(&config, "quay.io"), None);
    }

    #[test]
    fn what_docker_did_not_write_is_named_and_not_shown() {
        let config = r#"{"auths": {"ghcr.io": {"auth": "hush"}}}"#;
        let config: Config = serde_json::from_str(config).unwrap();
        let error = in_file(&config, "ghcr.io").unwrap_err().to_string();
        assert!(
            error.contains("`ghcr.io`") && !error.contains("hush"),
            "{error}"
        );
    }
}
