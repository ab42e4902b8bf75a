use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, process::Command};

use test_case::test_case;

use super::*;

#[test_case("heroku/heroku:24", "heroku-24")]
#[test_case("heroku/cedar:14", "cedar-14")]
#[test_case("docker.io/heroku/heroku:24-build@sha256:0123", "heroku-24-build")]
#[test_case("localhost:5000/team/My_App:V1.0", "my_app-v1.0")]
#[test_case("localhost:5000/debian", "debian")]
#[test_case("debian:latest", "debian")]
fn the_name_of_a_stack_is_the_images(reference: &str, expected: &str) {
    assert_eq!(derived(reference).unwrap().as_str(), expected);
}

#[test]
fn an_image_whose_name_gives_none_is_refused() {
    assert!(derived("").is_err());
    assert!(derived("a/:x").is_err());
}

#[test]
fn the_version_is_the_beginning_of_the_id() {
    let found = |id| version(id).map(|version| version.to_string());
    let id = "sha256:5f3a0c9d1e2b77aa";
    assert_eq!(found(id).as_deref(), Some("5f3a0c9d1e2b"));
    assert_eq!(found("sha256:5f3a"), None);
    assert_eq!(found("sha256:../../../etc/passwd"), None);
    assert_eq!(found(""), None);
}

/// An image in the engine, which goes with the test.
struct Image(&'static str);

fn docker(args: &[&str]) -> String {
    #[expect(clippy::disallowed_methods, reason = "a tool, not a dyno")]
    let output = Command::new("docker").args(args).output();
    let output = output
        .unwrap_or_else(|error| panic!("docker is needed, from the package docker.io: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Image {
    fn make(reference: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.tar");
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        for (path, mode, data) in [
            ("bin/su", 0o4755, "su"),
            ("etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\n"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(mode);
            header.set_uid(123);
            builder
                .append_data(&mut header, path, data.as_bytes())
                .unwrap();
        }
        builder.into_inner().unwrap().flush().unwrap();
        docker(&["import", path.to_str().unwrap(), reference]);
        Self(reference)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["rmi", "--force", self.0]);
    }
}

/// The containers of an image.
fn containers(image: &Image) -> String {
    let filter = format!("ancestor={}", image.0);
    docker(&["ps", "--all", "--quiet", "--filter", &filter])
}

fn quiet(_: Event<'_>) {}

#[tokio::test]
#[ignore = "needs root and a Docker engine: of DOCKER_HOST, or at /var/run/docker.sock"]
async fn an_image_becomes_a_stack() {
    let image = Image::make("hsup-test/import:7");
    let work = tempfile::tempdir().unwrap();
    let stacks = Stacks::open(work.path(), None).unwrap();
    let until = CancellationToken::new();
    let first = stacks.import(image.0, None, &quiet, &until).await.unwrap();
    assert!(!first.was_here);
    assert_eq!(first.stack.name.as_str(), "import-7");
    let id = docker(&["inspect", "--format", "{{.Id}}", image.0]);
    assert!(id.contains(first.stack.version.as_str()), "{id}");
    let root = first.stack.image.path();
    assert!(root.ends_with(format!("import-7-{}", first.stack.version)));
    let su = fs::metadata(root.join("bin/su")).unwrap();
    assert_eq!(su.permissions().mode() & 0o7777, 0o755);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&su), 123);
    assert!(!root.join(".dockerenv").exists());
    assert_eq!(containers(&image), "");
    // It is what the name means now, whatever else there is.
    fs::create_dir(work.path().join("stacks/import-7-zzz")).unwrap();
    let stack = stacks.resolve("import-7", &quiet).await.unwrap();
    assert_eq!(stack, first.stack);
    let again = stacks.import(image.0, None, &quiet, &until).await.unwrap();
    assert!(again.was_here);
    let named = stacks.import(image.0, Some("mine"), &quiet, &until).await;
    assert_eq!(named.unwrap().stack.name.as_str(), "mine");
}

#[tokio::test]
#[ignore = "needs root and a Docker engine: of DOCKER_HOST, or at /var/run/docker.sock"]
async fn what_cannot_be_imported_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    let stacks = Stacks::open(work.path(), None).unwrap();
    let until = CancellationToken::new();
    // No registry is at that port.
    let reference = "localhost:1/hsup/nowhere:1";
    let error = stacks
        .import(reference, None, &quiet, &until)
        .await
        .unwrap_err();
    let error = hsup_driver_kit::errors::chain(&error);
    let expected = format!(
        "failed to import `{reference}` from the Docker engine: the engine does not have the \
         image, and failed to pull it: "
    );
    assert!(error.starts_with(&expected), "{error}");

    let image = Image::make("hsup-test/called-off:7");
    until.cancel();
    let error = stacks
        .import(image.0, None, &quiet, &until)
        .await
        .unwrap_err();
    assert!(hsup_driver_kit::errors::chain(&error).ends_with("it was called off"));

    let until = CancellationToken::new();
    let version = version(&docker(&["inspect", "--format", "{{.Id}}", image.0])).unwrap();
    let stack = work.path().join(format!("stacks/called-off-7-{version}"));
    // A file in its place: the export is there, the rename fails, the container must go.
    fs::File::create(&stack).unwrap();
    let error = stacks
        .import(image.0, None, &quiet, &until)
        .await
        .unwrap_err();
    assert!(matches!(error, StackError::Install { .. }), "{error:?}");
    assert_eq!(containers(&image), "");
    let left = fs::read_dir(work.path().join("stacks/.fetch")).unwrap();
    assert_eq!(left.count(), 0);
}
