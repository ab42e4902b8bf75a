//! What is kept, and for how long; and images that are not ours.

use std::collections::HashSet;

use hsup_driver_kit::{Status, proto::Release};

use super::fixture::{Case, docker, me, slug};
use crate::{
    artifact::{Artifact, Kind},
    images::{Claim, claim, find, remove},
};

async fn is_there(case: &Case, artifact: &Artifact) -> bool {
    let found = find::find(&case.engine, &artifact.image).await.unwrap();
    found.is_some()
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn the_newest_releases_and_those_in_use_are_kept() {
    let case = Case::new("kept", &[]);
    let mut made = Vec::new();
    let mut settings = case.settings();
    settings.keep = 2;
    for version in 1..=5 {
        let content = slug(&[("app/version", 0o644, &version.to_string())]);
        let artifact = case
            .build_with(&settings, &case.release(version, &content))
            .await
            .unwrap();
        if version == 1 {
            docker(&["create", "--name", &case.app, &artifact.image, "x"]);
        }
        made.push(artifact);
    }
    let mut there = Vec::new();
    for artifact in &made {
        there.push(is_there(&case, artifact).await);
    }
    assert_eq!(there, [true, false, false, true, true]);

    let status = Status::from(remove(&case.engine, me().0, &made[0]).await.unwrap_err());
    assert_eq!(
        format!("{:?}", status.code()),
        "FailedPrecondition",
        "{status}"
    );
    docker(&["rm", &case.app]);
    for _ in 0..2 {
        remove(&case.engine, me().0, &made[0]).await.unwrap();
        assert!(!is_there(&case, &made[0]).await);
    }
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn an_image_counts_as_its_newest_releases() {
    let case = Case::new("newest", &[]);
    let mut settings = case.settings();
    settings.keep = 3;
    let mut made = Vec::new();
    // The fourth is a rollback to the first.
    for (version, content) in (1..).zip(["a", "b", "c", "a", "d", "e"]) {
        let content = slug(&[("app/content", 0o644, content)]);
        let release = case.release(version, &content);
        made.push(case.build_with(&settings, &release).await.unwrap());
    }
    assert_eq!(made[3], made[0]);
    let mut there = Vec::new();
    for artifact in &made[1..] {
        there.push(is_there(&case, artifact).await);
    }
    assert_eq!(there, [false, false, true, true, true]);
    // It has two names.
    remove(&case.engine, me().0, &made[0]).await.unwrap();
    assert!(!is_there(&case, &made[0]).await);
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn an_image_counts_as_the_release_that_is_started_from_it() {
    let case = Case::new("started", &[]);
    let mut settings = case.settings();
    settings.keep = 3;
    let mut made: Vec<Artifact> = Vec::new();
    // The fourth is a rollback to the first, without a Build.
    for (version, content) in [(1, "a"), (2, "b"), (3, "c"), (5, "d"), (6, "e")] {
        if version == 5 {
            let release = (case.app.as_str(), 4);
            let claimed = claim(&case.engine, me().0, &made[0].image, release);
            assert_eq!(claimed.await.unwrap(), Claim::Good);
        }
        let content = slug(&[("app/content", 0o644, content)]);
        let release = case.release(version, &content);
        made.push(case.build_with(&settings, &release).await.unwrap());
    }
    let mut there = Vec::new();
    for artifact in &made {
        there.push(is_there(&case, artifact).await);
    }
    assert_eq!(there, [true, false, false, true, true]);
    // Another app's name is none for it.
    let claimed = claim(&case.engine, me().0, &made[0].image, ("other", 7));
    assert_eq!(claimed.await.unwrap(), Claim::Good);
    assert_eq!(docker(&["images", "--quiet", "hsup/other"]), "");
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn a_release_may_be_an_image() {
    let case = Case::new("plain", &[]);
    let cnb = Case::new("cnb", &["LABEL io.buildpacks.build.metadata={}"]);
    for (case, kind) in [(&case, Kind::Plain), (&cnb, Kind::Cnb)] {
        let release = Release {
            image: case.stack.clone(),
            ..Release::default()
        };
        let artifact = case.build(&release).await.unwrap();
        let image = docker(&["image", "inspect", "--format", "{{.Id}}", &case.stack]);
        assert_eq!(artifact, Artifact { image, kind });
        // It is the operator's.
        remove(&case.engine, me().0, &artifact).await.unwrap();
        assert!(is_there(case, &artifact).await);
    }
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn an_image_that_nobody_has_is_named() {
    let case = Case::new("nobody", &[]);
    // Nobody listens there; the other is a name that no engine takes.
    let images = [
        ("127.0.0.1:9/no/such:1", "Unavailable", "refused"),
        ("No/Such", "FailedPrecondition", "must be lowercase"),
    ];
    for (image, code, cause) in images {
        let release = Release {
            image: image.to_owned(),
            ..Release::default()
        };
        let status = Status::from(case.build(&release).await.unwrap_err());
        let message = status.message();
        assert_eq!(format!("{:?}", status.code()), code, "{message}");
        assert!(message.contains(&format!("`{image}`")), "{message}");
        assert!(message.contains(cause), "{message}");
    }
    assert_eq!(case.said()[0], "pulling the image 127.0.0.1:9/no/such:1");
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn a_release_without_a_slug_is_its_stack() {
    let case = Case::new("bare", &[]);
    let release = Release {
        app: case.app.clone(),
        stack: case.stack.clone(),
        ..Release::default()
    };
    let artifact = case.build(&release).await.unwrap();
    assert_eq!(
        case.run(&artifact, &["/bin/sh", "-c", "pwd; > mine; ls"]),
        "/app\nmine"
    );
    assert_eq!(case.build(&release).await.unwrap(), artifact);
    let made: HashSet<_> = case.images().into_iter().collect();
    assert_eq!(made.len(), 1);
}
