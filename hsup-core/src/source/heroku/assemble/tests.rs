use serde_json::{Value, from_value, json};
use test_case::test_case;

use super::*;

fn parts() -> Parts {
    let value = |value: Value| value;
    Parts {
        app: from_value(value(
            json!({"id": "app-id", "name": "shop", "stack": {"name": "heroku-26"},
                "web_url": "https://shop-0123.herokuapp.com/"}),
        ))
        .unwrap(),
        release: from_value(value(json!({
            "id": "release-id", "version": 7, "status": "succeeded", "current": true,
            "description": "Deploy 2c3a0b2", "created_at": "2026-02-03T18:00:42Z",
            "slug": {"id": "slug-id"},
        })))
        .unwrap(),
        config: from_value(value(json!({"SECRET": "hunter2", "GONE": null}))).unwrap(),
        formation: from_value(value(json!([
            {"type": "worker", "command": "old worker", "quantity": 0},
            {"type": "web", "command": "old web", "quantity": 2, "size": "standard-1X"},
            {"type": "release", "command": "bin/migrate", "quantity": 1},
        ])))
        .unwrap(),
        content: Content::Slug(slug(&json!({}))),
    }
}

fn slug(with: &Value) -> model::Slug {
    let mut slug = json!({
        "id": "slug-id", "commit": "2c3a0b2", "stack": {"name": "heroku-24"}, "size": 1,
        "blob": {"method": "GET", "url": "https://s3.example/slug?sig=hunter2"},
        "process_types": {"web": "bin/web", "console": "bin/console"},
    });
    let fields = slug.as_object_mut().unwrap();
    fields.extend(with.as_object().unwrap().clone());
    from_value(slug).unwrap()
}

fn image() -> model::OciImage {
    from_value(json!({
        "id": "image-id", "digest": "sha256:ab", "image_repo": "c0ffee/builds",
        "process_types": {"web": {"command": "/cnb/process/web"}}, "stack": {"name": "cnb"},
    }))
    .unwrap()
}

#[test]
fn a_release_is_what_its_slug_and_its_formation_say() {
    let (release, warnings) = assemble("shop", parts()).unwrap();
    let processes = release.processes.iter();
    let processes: Vec<_> = processes
        .map(|process| {
            format!(
                "{}={} {}",
                process.process_type, process.quantity, process.command
            )
        })
        .collect();
    assert_eq!(
        processes,
        [
            "worker=0 old worker",
            "web=2 bin/web",
            "release=0 bin/migrate",
            "console=0 bin/console"
        ]
    );
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("`release` is the command"));
    assert_eq!((release.version, release.app.as_str()), (7, "shop"));
    assert_eq!(
        release.stack, "heroku-24",
        "the slug's, not the app's next one"
    );
    assert_eq!(
        release.config.iter().collect::<Vec<_>>(),
        [("SECRET", "hunter2")]
    );
    let named = release.slug.as_ref().unwrap();
    assert_eq!(named.expose(), "heroku://shop/slugs/slug-id");
    assert_eq!(slug_id(named), Some("slug-id"));
    let metadata = release.metadata.as_ref().unwrap();
    assert_eq!(metadata.slug_commit, "2c3a0b2");
    assert_eq!(metadata.app_default_domain, "shop-0123.herokuapp.com");
    assert_eq!(metadata.release_description, "Deploy 2c3a0b2");
    let shown = format!("{release:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let kept = serde_json::to_string(&release).unwrap();
    assert!(!kept.contains("s3.example"), "{kept}");
}

#[test_case("https://shop-0123.herokuapp.com/" => "shop-0123.herokuapp.com")]
#[test_case("" => ""; "none")]
#[test_case("shop" => ""; "no url")]
fn an_app_has_a_domain(web_url: &str) -> String {
    host(web_url)
}

#[test]
fn an_image_is_named_by_its_digest() {
    let content = Content::Image(image());
    let release = assemble("shop", Parts { content, ..parts() }).unwrap().0;
    let expected = "registry.heroku.com/c0ffee/builds@sha256:ab";
    assert_eq!(release.image.as_deref(), Some(expected));
    assert_eq!(
        (release.slug.as_ref(), release.stack.as_str()),
        (None, "cnb")
    );
    assert_eq!(release.process("web").unwrap().command, "/cnb/process/web");
    let image_repo = "quay.example/shop/builds".to_owned();
    let content = Content::Image(model::OciImage {
        image_repo,
        ..image()
    });
    let release = assemble("shop", Parts { content, ..parts() }).unwrap().0;
    assert_eq!(
        release.image.as_deref(),
        Some("quay.example/shop/builds@sha256:ab")
    );
}

#[test_case(|parts| parts.content = Content::Nothing => "v7 (Deploy 2c3a0b2) has no slug"; "no slug")]
#[test_case(|parts| parts.content = Content::Slug(slug(&json!({"size": 0}))) => "the slug of v7 is empty"; "no bytes")]
#[test_case(|parts| parts.content = Content::Slug(slug(&json!({"deleted_at": "2026"}))) => "the slug of v7 was deleted"; "deleted")]
#[test_case(|parts| parts.content = Content::Slug(slug(&json!({"blob": {"url": null}, "deleted_at": "2026"}))) => "the slug of v7 was deleted"; "deleted and without a URL")]
#[test_case(|parts| parts.content = Content::Slug(slug(&json!({"checksum": "md5:1"}))) => "the slug of v7 has a checksum"; "another checksum")]
#[test_case(|parts| parts.content = Content::Image(model::OciImage::default()) => "the OCI image of v7 has no"; "an empty image")]
#[test_case(|parts| parts.formation[0].quantity = -1 => "the process type `worker` of v7 is wrong"; "less than none")]
#[test_case(|parts| parts.formation[0].quantity = 1 << 40 => "the process type `worker` of v7 is wrong"; "too many")]
#[test_case(|parts| (parts.formation[0].command, parts.formation[0].quantity) = (" ".into(), 1) => "the process type `worker` of v7 has no command"; "no command")]
#[test_case(|parts| (parts.formation[0].process_type, parts.formation[0].quantity) = ("../x".into(), 1) => "the process type `../x` of v7 is wrong"; "no type")]
fn refused(spoil: fn(&mut Parts)) -> String {
    let mut parts = parts();
    spoil(&mut parts);
    let error = assemble("shop", parts).unwrap_err().to_string();
    let length = |end: &str| error.find(end).map_or(error.len(), |at| at);
    let end = [":", ", and", " that is", " on Heroku", " repository"];
    let end = end.into_iter().map(length).min().unwrap_or_default();
    error[..end].to_owned()
}

#[test]
fn what_should_not_run_may_be_odd() {
    let mut parts = parts();
    parts.formation[0].command = String::new();
    parts.formation[2].process_type = "a b".into();
    parts.formation[2].quantity = 0;
    parts.config.insert("PORT".into(), Some("hunter2".into()));
    parts.config.insert("A=B".into(), Some("hunter2".into()));
    let (release, warnings) = assemble("shop", parts).unwrap();
    assert!(release.process("worker").is_none());
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(!warnings.concat().contains("hunter2"), "{warnings:?}");
    assert_eq!(release.config.names().collect::<Vec<_>>(), ["SECRET"]);
}
