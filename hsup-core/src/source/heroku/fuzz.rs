//! Whether what the Platform API says makes a release that can be run, or none.

use std::time::Duration;

use reqwest::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};

use super::{
    assemble::{Content, Parts, assemble, slug_id},
    error::Trouble,
    model, netrc,
    pace::{Pace, Went},
    quantities::Quantities,
};
use crate::{formation::MAX_QUANTITY, ports, retry_after::retry_after, source::Update};

/// Answers of the API, one a line: the app, a release, the formation, config vars, a slug or an
/// image, and headers. What is missing is empty.
pub fn heroku_api(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let [app, release, formation, config, content] = [(); 5].map(|()| next());
    pace(next(), next());
    if let Ok(text) = str::from_utf8(data) {
        let password = netrc::password(text, "api.heroku.com");
        assert!(password.is_none_or(|it| !it.is_empty() && text.contains(it)));
    }
    let app: model::App = serde_json::from_slice(app).unwrap_or_default();
    let release: model::Release = serde_json::from_slice(release).unwrap_or_default();
    let formation: Vec<model::Formation> = serde_json::from_slice(formation).unwrap_or_default();
    let config: model::ConfigVars = serde_json::from_slice(config).unwrap_or_default();
    quantities(&formation);
    let content = match release.runs() {
        model::Runs::Slug(id) => {
            assert!(!id.is_empty());
            Content::Slug(serde_json::from_slice(content).unwrap_or_default())
        }
        model::Runs::Image(id) => {
            assert!(!id.is_empty());
            let image = serde_json::from_slice::<model::OneOrMany<model::OciImage>>(content);
            let image = image.ok().and_then(model::OneOrMany::first);
            image.map_or(Content::Nothing, Content::Image)
        }
        model::Runs::Nothing => Content::Nothing,
    };
    let slug = match &content {
        Content::Slug(slug) => Some(slug.id.clone()),
        _ => None,
    };
    let parts = Parts {
        app,
        release,
        config,
        formation,
        content,
    };
    let Ok((release, _)) = assemble("shop", parts) else {
        return;
    };
    assert!(release.slug.is_some() != release.image.is_some());
    assert_eq!(release.slug.as_ref().and_then(slug_id), slug.as_deref());
    for process in &release.processes {
        assert!(!process.command.trim().is_empty() && !process.command.contains('\0'));
        assert!(process.quantity <= MAX_QUANTITY);
    }
    for (name, value) in &release.config {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
        assert!(name != "PORT" || ports::parse(value).is_some());
    }
}

/// What was told once is no news, and no quantity is one that none can have.
fn quantities(formation: &[model::Formation]) {
    let mut quantities = Quantities::default();
    for update in quantities.news(formation) {
        if let Update::Scaled(scaled) = update {
            assert!(scaled.iter().all(|(_, quantity)| *quantity <= MAX_QUANTITY));
        }
    }
    let mut types: Vec<_> = formation.iter().map(|it| &it.process_type).collect();
    types.sort();
    types.dedup();
    if types.len() == formation.len() {
        assert_eq!(quantities.news(formation), Vec::new());
    }
}

/// No answer has it ask at once, or never again.
fn pace(retry: &[u8], date: &[u8]) {
    let mut headers = HeaderMap::new();
    for (name, value) in [(RETRY_AFTER, retry), (DATE, date)] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(name, value);
        }
    }
    let retry_after = retry_after(&headers);
    let remaining = str::from_utf8(date).ok().and_then(|it| it.parse().ok());
    let mut pace = Pace::new(Duration::from_secs(10));
    for went in [
        Went::Badly(Trouble::Passing { retry_after }),
        Went::Badly(Trouble::Limited { retry_after }),
        Went::Well { remaining },
        Went::Badly(Trouble::Denied),
    ] {
        let delay = pace.after(went, u64::MAX).delay;
        assert!((5..=3600).contains(&delay.as_secs()), "{delay:?}");
    }
}
