//! What the API answers, and the rules that it has for being asked.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::{Value, json};

use super::{
    APP_ID, Image, Release, SIGNATURE, Slug, State,
    http::{Answer, Request},
};

/// How many items a page has if nobody says.
pub(super) const PAGE: usize = 200;

/// Answers a request.
pub(super) fn answer(state: &mut State, request: &Request) -> Answer {
    if let Some(id) = request.path.strip_prefix("/blobs/") {
        return blob(state, id, &request.query);
    }
    let accept = request.header("accept").unwrap_or_default();
    let is_v3 = accept.contains("application/vnd.heroku+json") && accept.contains("version=3");
    if !is_v3 {
        return failure(
            406,
            "not_acceptable",
            "Please specify a version of the API.",
        );
    }
    if request.header("authorization") != Some(format!("Bearer {}", state.token).as_str()) {
        return failure(401, "unauthorized", "Invalid credentials provided.");
    }
    if request.header("user-agent").is_none() {
        return failure(400, "bad_request", "Requests need a User-Agent.");
    }
    if state.remaining == 0 {
        let mut answer = failure(
            429,
            "rate_limit",
            "Your account reached the API rate limit.",
        );
        answer.headers.push(("Retry-After", "0".to_owned()));
        answer.headers.push(remaining(0));
        return answer;
    }
    state.remaining -= 1;
    let mut answer = match resource(state, request) {
        Ok(answer) => answer,
        Err(answer) => answer,
    };
    answer.headers.push(remaining(state.remaining));
    if matches!(answer.status, 200 | 206) {
        let mut hash = DefaultHasher::new();
        (&answer.body, request.header("range")).hash(&mut hash);
        let etag = format!("\"{:016x}\"", hash.finish());
        if request.header("if-none-match") == Some(etag.as_str()) {
            (answer.status, answer.body) = (304, Vec::new());
        }
        answer.headers.push(("ETag", etag));
    }
    answer
}

fn remaining(requests: u32) -> (&'static str, String) {
    ("RateLimit-Remaining", requests.to_string())
}

fn failure(status: u16, id: &str, message: &str) -> Answer {
    let body = json!({"id": id, "message": message});
    Answer {
        status,
        body: body.to_string().into_bytes(),
        ..Answer::default()
    }
}

fn found(value: &Value) -> Answer {
    Answer {
        status: 200,
        headers: vec![("Content-Type", "application/json;charset=utf-8".to_owned())],
        body: value.to_string().into_bytes(),
    }
}

fn resource(state: &mut State, request: &Request) -> Result<Answer, Answer> {
    let path: Vec<_> = request.path.trim_start_matches('/').split('/').collect();
    let missing = |what: &str| failure(404, "not_found", &format!("Couldn't find that {what}."));
    let ["apps", app, rest @ ..] = &path[..] else {
        return Err(missing("page"));
    };
    if *app != state.app && *app != APP_ID {
        return Err(missing("app"));
    }
    match rest {
        [] => Ok(found(&app_json(state))),
        ["releases"] => releases(state, request.header("range")),
        ["releases", id, "config-vars"] => {
            let mut releases = state.releases.iter();
            let release = releases.find(|release| release_id(release.version) == *id);
            let release = release.ok_or_else(|| missing("release"))?;
            Ok(found(&json!(release.config)))
        }
        ["formation"] => formation(state, request.header("range")),
        ["slugs", id] => {
            let slug = state.slugs.get(*id).ok_or_else(|| missing("slug"))?;
            state.signed += 1;
            let url = format!("{}/blobs/{id}?{SIGNATURE}-{}", state.url, state.signed);
            Ok(found(&slug_json(id, slug, &url, &state.stack)))
        }
        ["oci-images", id] => {
            let image = state.images.get(*id).ok_or_else(|| missing("image"))?;
            Ok(found(&json!([image_json(id, image)])))
        }
        _ => Err(missing("page")),
    }
}

/// Which page of a list is wanted.
struct Page<'a> {
    /// The item before its first one.
    after: Option<&'a str>,
    max: usize,
    is_descending: bool,
}

impl<'a> Page<'a> {
    /// What `range` says of a list that is in the order of `field`.
    fn of(range: Option<&'a str>, field: &str, max: usize) -> Result<Self, Answer> {
        let bad = || {
            failure(
                416,
                "requested_range_not_satisfiable",
                "Check the Range header.",
            )
        };
        let Some(range) = range else {
            return Ok(Self {
                after: None,
                max,
                is_descending: false,
            });
        };
        let rest = range.trim().strip_prefix(field).ok_or_else(bad)?;
        let (interval, options) = rest.split_once(';').unwrap_or((rest, ""));
        let options: Vec<_> = options.split(',').map(str::trim).collect();
        let mut all = options.iter();
        let wanted = all.find_map(|option| option.strip_prefix("max="));
        let after = interval.trim().strip_suffix("..").ok_or_else(bad)?;
        Ok(Self {
            after: match after.strip_prefix(']') {
                None if after.is_empty() => None,
                Some(after) => Some(after),
                None => return Err(bad()),
            },
            max: wanted.map_or(Ok(max), str::parse).map_err(|_| bad())?,
            is_descending: options.contains(&"order=desc"),
        })
    }

    /// Of a page after which more follow: how to ask for the next one.
    fn is_not_all(&self, answer: &mut Answer, field: &str, last: &str) {
        answer.status = 206;
        let order = if self.is_descending {
            ", order=desc"
        } else {
            ""
        };
        let next = format!("{field} ]{last}..; max={}{order}", self.max);
        answer.headers.push(("Next-Range", next));
    }
}

/// Releases in the order of their versions, newest first where the range says so, a page of them.
fn releases(state: &State, range: Option<&str>) -> Result<Answer, Answer> {
    let wanted = Page::of(range, "version", PAGE)?;
    let after = wanted.after.map(|version| version.parse().unwrap_or(0));
    let mut all: Vec<&Release> = state.releases.iter().collect();
    if wanted.is_descending {
        all.reverse();
    }
    let all = all.into_iter().filter(|release| match after {
        Some(after) if wanted.is_descending => release.version < after,
        Some(after) => release.version > after,
        None => true,
    });
    let all: Vec<_> = all.collect();
    let page = &all[..all.len().min(wanted.max)];
    let shown = page.iter().map(|release| release_json(state, release));
    let mut answer = found(&shown.collect());
    if page.len() < all.len()
        && let Some(last) = page.last()
    {
        wanted.is_not_all(&mut answer, "version", &last.version.to_string());
    }
    Ok(answer)
}

/// A slug itself, for whoever has a URL that is good.
fn blob(state: &State, id: &str, query: &str) -> Answer {
    let signature = query.strip_prefix(SIGNATURE);
    let number = signature.and_then(|rest| rest.strip_prefix('-')?.parse::<u32>().ok());
    let is_good = number.is_some_and(|number| number > state.expired && number <= state.signed);
    match state.slugs.get(id).filter(|_| is_good) {
        Some(slug) => Answer {
            status: 200,
            body: slug.bytes.clone(),
            ..Answer::default()
        },
        None => failure(403, "AccessDenied", "Request has expired"),
    }
}

fn release_id(version: u64) -> String {
    format!("4e1ea5e0-0000-0000-0000-{version:012}")
}

fn app_json(state: &State) -> Value {
    json!({
        "id": APP_ID,
        "name": state.app,
        "stack": {"id": "57ac", "name": state.stack},
        "build_stack": {"id": "57ac", "name": state.stack},
        "generation": {"id": "6e", "name": "cedar"},
        "maintenance": false,
        "owner": {"id": "0e", "email": "me@example.com"},
        "space": null,
        "web_url": format!("https://{}-0123456789ab.herokuapp.com/", state.app),
    })
}

fn release_json(state: &State, release: &Release) -> Value {
    let reference = |id: &String| json!({"id": id});
    json!({
        "id": release_id(release.version),
        "version": release.version,
        "status": release.status,
        "current": release.current,
        "description": release.description,
        "created_at": "2026-02-03T18:00:42Z",
        "updated_at": "2026-02-03T18:00:42Z",
        "app": {"id": APP_ID, "name": state.app},
        "user": {"id": "0e", "email": "me@example.com"},
        "addon_plan_names": [],
        "slug": release.slug.as_ref().map(reference),
        "oci_image": release.image.as_ref().map(reference),
        "output_stream_url": null,
        "eligible_for_rollback": true,
    })
}

/// The process types, a page of them.
fn formation(state: &State, range: Option<&str>) -> Result<Answer, Answer> {
    let id = |process: &super::Process| format!("f0-{}", process.process_type);
    let shown = |process: &super::Process| {
        json!({
            "id": id(process),
            "app": {"id": APP_ID, "name": state.app},
            "type": process.process_type,
            "command": process.command,
            "quantity": process.quantity,
            "size": "Standard-1X",
            "dyno_size": {"id": "51", "name": "standard-1x"},
        })
    };
    let wanted = Page::of(range, "id", state.page)?;
    let all = &state.formation;
    let before = wanted
        .after
        .map(|after| all.iter().position(|process| id(process) == after));
    let all = &all[before.flatten().map_or(0, |before| before + 1)..];
    let page = &all[..all.len().min(wanted.max)];
    let mut answer = found(&page.iter().map(shown).collect());
    if page.len() < all.len()
        && let Some(last) = page.last()
    {
        wanted.is_not_all(&mut answer, "id", &id(last));
    }
    Ok(answer)
}

fn slug_json(id: &str, slug: &Slug, url: &str, stack: &str) -> Value {
    json!({
        "id": id,
        "blob": {"method": "GET", "url": url},
        "checksum": slug.checksum,
        "commit": "2c3a0b24069af49b3de35b8e8c26765c1dba9ff0",
        "commit_description": null,
        "buildpack_provided_description": "Ruby",
        "process_types": slug.process_types,
        "size": slug.size,
        "stack": {"id": "57ac", "name": stack},
        "deleted_at": null,
    })
}

fn image_json(id: &str, image: &Image) -> Value {
    let types = image.process_types.iter().map(|(name, command)| {
        let process = json!({
            "name": name,
            "command": command,
            "display_cmd": command,
            "working_dir": "/workspace",
            "default": name == "web",
        });
        (name.clone(), process)
    });
    json!({
        "id": id,
        "digest": format!("sha256:{}", "ab".repeat(32)),
        "image_repo": "c0ffee/builds",
        "commit": "2c3a0b24069af49b3de35b8e8c26765c1dba9ff0",
        "stack": {"id": "c4b", "name": "cnb"},
        "architecture": "amd64",
        "process_types": types.collect::<serde_json::Map<_, _>>(),
        "deleted_at": null,
    })
}
