//! What the Platform API answers (its schema of February 2026, `version=3`), as far as it takes
//! to run an app. What is null or missing is empty, and what is not known is skipped.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::release::Slug as SlugUrl;

/// Null is as good as missing.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Another thing, by its id, and its name where it has one.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Reference {
    #[serde(deserialize_with = "or_default")]
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
}

/// `GET /apps/{app}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct App {
    #[serde(deserialize_with = "or_default")]
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) stack: Reference,
    #[serde(deserialize_with = "or_default")]
    pub(super) web_url: String,
}

/// One of `GET /apps/{app}/releases`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Release {
    #[serde(deserialize_with = "or_default")]
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) version: u64,
    #[serde(deserialize_with = "or_default")]
    pub(super) status: String,
    pub(super) current: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    pub(super) description: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) created_at: String,
    pub(super) slug: Option<Reference>,
    /// Of Fir, where the plain schema has `artifacts`.
    pub(super) oci_image: Option<Reference>,
    #[serde(deserialize_with = "or_default")]
    pub(super) artifacts: Vec<Artifact>,
}

/// One of a release's artifacts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Artifact {
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub(super) kind: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) id: String,
}

/// What a release runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs<'a> {
    /// A slug of this id.
    Slug(&'a str),
    /// An OCI image of this id.
    Image(&'a str),
    /// Neither: nothing was deployed, or images of another kind.
    Nothing,
}

impl Release {
    /// Whether it is the one that runs on Heroku. A release whose release phase has not ended
    /// well never is; which of those that have, `current` says.
    pub(super) fn is_deployed(&self) -> bool {
        !self.id.is_empty() && self.status == "succeeded" && self.current != Some(false)
    }

    /// What it runs.
    pub(super) fn runs(&self) -> Runs<'_> {
        let named = |reference: &'_ Option<Reference>| {
            let id = reference.as_ref().map(|reference| reference.id.len());
            id.is_some_and(|length| length > 0)
        };
        if named(&self.slug) {
            return Runs::Slug(self.slug.as_ref().map_or("", |slug| &slug.id));
        }
        if named(&self.oci_image) {
            return Runs::Image(self.oci_image.as_ref().map_or("", |image| &image.id));
        }
        match self
            .artifacts
            .iter()
            .find(|artifact| !artifact.id.is_empty())
        {
            Some(artifact) if artifact.kind == "slug" => Runs::Slug(&artifact.id),
            Some(artifact) => Runs::Image(&artifact.id),
            None => Runs::Nothing,
        }
    }
}

/// `GET /apps/{app}/slugs/{id}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Slug {
    #[serde(deserialize_with = "or_default")]
    pub(super) id: String,
    pub(super) blob: Option<Blob>,
    pub(super) checksum: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) commit: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) commit_description: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) process_types: BTreeMap<String, Option<String>>,
    pub(super) size: Option<u64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) stack: Reference,
    pub(super) deleted_at: Option<String>,
}

/// Where a slug is right now. The URL is a secret, which its type does not show.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Blob {
    /// A slug that was deleted has none.
    pub(super) url: Option<SlugUrl>,
}

/// `GET /apps/{app}/oci-images/{id}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OciImage {
    #[serde(deserialize_with = "or_default")]
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) digest: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) image_repo: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) commit: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) commit_description: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) process_types: BTreeMap<String, ImageProcess>,
    #[serde(deserialize_with = "or_default")]
    pub(super) stack: Reference,
    pub(super) deleted_at: Option<String>,
}

/// A process of an image.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ImageProcess {
    #[serde(deserialize_with = "or_default")]
    pub(super) command: String,
}

/// The schema says that an image is an object; Heroku's CLI reads an array.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) fn first(self) -> Option<T> {
        match self {
            Self::One(one) => Some(one),
            Self::Many(many) => many.into_iter().next(),
        }
    }
}

/// One of `GET /apps/{app}/formation`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Formation {
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub(super) process_type: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) command: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) quantity: i64,
}

/// `GET /apps/{app}/releases/{id}/config-vars`. Secret.
pub(super) type ConfigVars = BTreeMap<String, Option<String>>;

/// What comes with a status that is no success.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    #[serde(deserialize_with = "or_default")]
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) message: String,
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test]
    fn nulls_and_unknown_fields_do_no_harm() {
        let release: Release = serde_json::from_str(
            r#"{"id":"r","version":7,"status":"succeeded","current":null,"description":null,
                "slug":null,"oci_image":null,"artifacts":null,"user":{"email":"me"},"new":[1]}"#,
        )
        .unwrap();
        assert!(release.is_deployed());
        assert_eq!(release.runs(), Runs::Nothing);
        let formation: Formation = serde_json::from_str(
            r#"{"type":"web","command":null,"quantity":null,"size":"Standard-1X","dyno_size":{}}"#,
        )
        .unwrap();
        assert_eq!((formation.command.as_str(), formation.quantity), ("", 0));
        let slug: Slug = serde_json::from_str(
            r#"{"id":"s","blob":{"method":"GET","url":"https://u:hunter2@s/x?sig=hunter2"},
                "checksum":null,"size":null,"process_types":{"web":null},"stack":null}"#,
        )
        .unwrap();
        assert!(!format!("{slug:?}").contains("hunter2"));
        for blob in [r#"{"url":null}"#, r#"{"method":"GET"}"#, "null"] {
            let slug = format!(r#"{{"blob":{blob},"deleted_at":"2026-02-03T18:00:42Z"}}"#);
            let slug: Slug = serde_json::from_str(&slug).unwrap();
            assert!(slug.blob.is_none_or(|blob| blob.url.is_none()));
        }
        serde_json::from_str::<App>("{}").unwrap();
    }

    #[test_case("succeeded", Some(true) => true)]
    #[test_case("succeeded", Some(false) => false; "rolled back from")]
    #[test_case("succeeded", None => true; "an API that does not say")]
    #[test_case("pending", Some(true) => false)]
    #[test_case("failed", Some(false) => false)]
    #[test_case("expired", None => false)]
    fn deployed(status: &str, current: Option<bool>) -> bool {
        let (id, status) = ("r".to_owned(), status.to_owned());
        Release {
            id,
            status,
            current,
            ..Release::default()
        }
        .is_deployed()
    }

    #[test_case(r#"{"slug":{"id":"s"},"artifacts":[{"type":"slug","id":"s"}]}"# => "Slug(\"s\")")]
    #[test_case(r#"{"slug":null,"artifacts":[{"type":"slug","id":"s"}]}"# => "Slug(\"s\")")]
    #[test_case(r#"{"slug":null,"oci_image":{"id":"i"}}"# => "Image(\"i\")")]
    #[test_case(r#"{"artifacts":[{"type":"oci-image","id":"i"}]}"# => "Image(\"i\")")]
    #[test_case(r#"{"slug":{"id":null},"artifacts":[]}"# => "Nothing")]
    fn what_runs(release: &str) -> String {
        let release: Release = serde_json::from_str(release).unwrap();
        format!("{:?}", release.runs())
    }

    #[test_case(r#"{"id":"i"}"#)]
    #[test_case(r#"[{"id":"i"}]"#)]
    fn an_image_is_an_object_or_an_array(text: &str) {
        let image: OneOrMany<OciImage> = serde_json::from_str(text).unwrap();
        assert_eq!(image.first().unwrap().id, "i");
    }
}
