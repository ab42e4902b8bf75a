//! What hsup asks the API for, about one app.

use reqwest::header::HeaderValue;

use super::{
    access::Access,
    client::{Answer, Client, NewClientError, Question},
    error::ApiError,
    model::{App, ConfigVars, Formation, OciImage, OneOrMany, Release, Slug},
};

/// The newest releases, of which one is nearly always the deployed one.
const NEWEST: HeaderValue = HeaderValue::from_static("version ..; max=10, order=desc");
/// How many pages of releases are looked through for it.
const PAGES: usize = 30;
/// How many pages a formation may have. A page has 200 process types, unless Heroku thinks better.
const FORMATION_PAGES: usize = 20;

/// The API, as far as one app goes.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) client: Client,
    /// The app's name or id, as it was asked for.
    pub(super) app: String,
}

/// What is kept of an answer, to be asked whether it still is so.
#[derive(Clone, Debug)]
pub(super) struct Known<T> {
    pub(super) value: T,
    etag: Option<HeaderValue>,
}

impl Api {
    pub(super) fn new(app: &str, access: &Access) -> Result<Self, NewClientError> {
        Ok(Self {
            client: Client::new(access)?,
            app: app.to_owned(),
        })
    }

    /// Learns which release is deployed, if one is.
    pub(super) async fn deployed(
        &self,
        known: &mut Option<Known<Option<Release>>>,
    ) -> Result<(), ApiError> {
        let mut range = Some(NEWEST);
        let (mut etag, mut value) = (None, None);
        for page in 0..PAGES {
            let Some(of_page) = range.take() else { break };
            let known_tag = known.as_ref().and_then(|known| known.etag.as_ref());
            let question = Question {
                what: format!("the releases of {}", self.app),
                path: &["apps", &self.app, "releases"],
                range: Some(&of_page),
                etag: known_tag.filter(|_| page == 0),
            };
            let body = match self.client.ask(question).await? {
                Answer::Same => return Ok(()),
                Answer::New(body) => body,
            };
            let releases: Vec<Release> = body.json()?;
            // What a later page has may change, and leave the first one as it is.
            etag = body.etag.filter(|_| page == 0);
            range = body.next_range;
            value = releases.into_iter().find(Release::is_deployed);
            if value.is_some() {
                break;
            }
        }
        *known = Some(Known { value, etag });
        Ok(())
    }

    /// Learns the formation, all pages of it: a type that is on none would get no dynos.
    pub(super) async fn formation(
        &self,
        known: &mut Option<Known<Vec<Formation>>>,
    ) -> Result<(), ApiError> {
        let mut range = None;
        let mut value = Vec::new();
        let mut pages = 0;
        loop {
            let known_tag = known.as_ref().and_then(|known| known.etag.as_ref());
            let question = Question {
                what: format!("the formation of {}", self.app),
                path: &["apps", &self.app, "formation"],
                range: range.as_ref(),
                etag: known_tag.filter(|_| pages == 0),
            };
            let body = match self.client.ask(question).await? {
                Answer::Same => return Ok(()),
                Answer::New(body) => body,
            };
            value.extend(body.json::<Vec<Formation>>()?);
            pages += 1;
            if body.next_range.is_none() {
                // What a later page has may change, and leave the first one as it is.
                let etag = body.etag.filter(|_| pages == 1);
                *known = Some(Known { value, etag });
                return Ok(());
            }
            if pages == FORMATION_PAGES {
                return Err(body.malformed(format!("it has more than {FORMATION_PAGES} pages")));
            }
            range = body.next_range;
        }
    }

    /// The app.
    pub(super) async fn app(&self) -> Result<App, ApiError> {
        let what = format!("the app {}", self.app);
        self.client.get(what, &["apps", &self.app]).await
    }

    /// The config vars as they were in a release: those of now may be the next one's already.
    pub(super) async fn config_vars(&self, release: &Release) -> Result<ConfigVars, ApiError> {
        let what = format!("the config vars of {} v{}", self.app, release.version);
        let path = ["apps", &self.app, "releases", &release.id, "config-vars"];
        self.client.get(what, &path).await
    }

    /// A slug, with a URL that is good for some minutes.
    pub(super) async fn slug(&self, id: &str) -> Result<Slug, ApiError> {
        let what = format!("the slug of {}", self.app);
        let path = ["apps", &self.app, "slugs", id];
        self.client.get(what, &path).await
    }

    /// An OCI image.
    pub(super) async fn oci_image(&self, id: &str) -> Result<OciImage, ApiError> {
        let what = format!("the OCI image of {}", self.app);
        let path = ["apps", &self.app, "oci-images", id];
        let images: OneOrMany<OciImage> = self.client.get(what, &path).await?;
        Ok(images.first().unwrap_or_default())
    }
}
