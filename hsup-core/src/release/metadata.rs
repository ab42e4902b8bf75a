//! What the Platform API knows of a release beside what it takes to run it.

use serde::{Deserialize, Serialize};

/// Who the app and the release are on Heroku: what becomes of a dyno's `HEROKU_…` variables.
/// Nothing in it is secret. What the API does not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppMetadata {
    /// The app's UUID, which lasts when it is renamed.
    pub app_id: String,
    /// The app's name.
    pub app_name: String,
    /// The domain that Heroku gives it: `shop-0123456789ab.herokuapp.com`.
    pub app_default_domain: String,
    /// The release's UUID.
    pub release_id: String,
    /// The release's number, without the `v`.
    pub release_version: u64,
    /// When it was created, as the API writes it: `2015-04-02T18:00:42Z`.
    pub release_created_at: String,
    /// What it changed: `Deploy 2c3a0b2`.
    pub release_description: String,
    /// The slug's UUID, or the OCI image's.
    pub slug_id: String,
    /// The commit that the slug was built of.
    pub slug_commit: String,
    /// What the slug's commit is said to be.
    pub slug_description: String,
}
