//! Builds in a real engine: that of `DOCKER_HOST`. They need no network.

mod claims;
mod fixture;
mod kept;
mod pulled;

use std::{fs, io::Write as _};

use hsup_driver_kit::{Status, proto::Release};

use self::fixture::{Case, Content, Server, docker, slug};
use super::{labels, settings::Cache};
use crate::artifact::Kind;

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn a_slug_becomes_an_image() {
    let case = Case::new("becomes", &[]);
    let content = slug(&[
        ("./app/Procfile", 0o644, "web: true\n"),
        ("app/bin/web", 0o4711, "x"),
    ]);
    let release = case.release(1, &content);
    let artifact = case.build(&release).await.unwrap();
    assert_eq!(
        artifact.kind,
        Kind::Slug {
            uid: 1_000,
            gid: 1_000
        }
    );
    assert_eq!(
        case.run(
            &artifact,
            &[
                "/bin/stat",
                "-c",
                "%u:%g %a %n",
                "/app",
                "Procfile",
                "bin/web",
                "/etc/heroku/dyno"
            ]
        ),
        "1000:1000 755 /app\n1000:1000 644 Procfile\n1000:1000 711 bin/web\n\
         1000:1000 644 /etc/heroku/dyno"
    );
    assert_eq!(
        case.run(&artifact, &["/bin/stat", "-c", "%u:%g %a", "/.hsup/init"]),
        "0:0 755"
    );
    assert_eq!(
        case.run(&artifact, &["/bin/sh", "-c", "echo $HOME; pwd; id"]),
        "/app\n/app\nuid=1000(dyno) gid=1000(dyno) groups=1000(dyno)"
    );
    // It is its entrypoint, and starts what it is told to.
    let id = &artifact.image;
    let said = docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        id,
        "hsup-init",
        "2",
        "-1",
        "0",
        "0",
        "--",
        "/bin/cat",
        "Procfile",
    ]);
    assert_eq!(said, "web: true");
    let look = |format: &str| docker(&["image", "inspect", "--format", format, id]);
    let count: usize = look("{{len .RootFS.Layers}}").parse().unwrap();
    assert_eq!(count, 2, "the stack's and one more");
    assert_eq!(look("{{json .Config.Cmd}}"), "null");
    for (label, value) in [
        (labels::APP, case.app.clone()),
        (labels::RELEASE, "1".to_owned()),
        (
            labels::CHECKSUM,
            release.slug_checksum["SHA256:".len()..].to_owned(),
        ),
        (
            labels::STACK,
            docker(&["image", "inspect", "--format", "{{.Id}}", &case.stack]),
        ),
    ] {
        assert_eq!(
            look(&format!("{{{{index .Config.Labels \"{label}\"}}}}")),
            value
        );
    }
    case.assert_no_workshop();
    assert!(case.said().iter().any(|line| line == "making the image"));
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn the_same_slug_is_neither_fetched_nor_made_again() {
    let case = Case::new("again", &[]);
    let content = slug(&[("app/a", 0o644, "a")]);
    let server = Server::new(content.clone(), usize::MAX);
    let mut release = case.release(1, &content);
    release.slug_url = server.url();
    let artifact = case.build(&release).await.unwrap();
    assert_eq!(server.requests(), 1);
    for version in [1, 2] {
        release.version = version;
        assert_eq!(case.build(&release).await.unwrap(), artifact);
    }
    assert_eq!(server.requests(), 1);
    let history = docker(&["history", "--no-trunc", &artifact.image]);
    let inspected = docker(&["image", "inspect", &artifact.image]);
    for text in [history, inspected, case.said().join("\n")] {
        assert!(
            !text.contains("SECRET") && !text.contains("signature"),
            "{text}"
        );
    }

    // Without a checksum nobody knows, unless the operator says that a release is enough.
    release.slug_checksum.clear();
    case.build(&release).await.unwrap();
    assert_eq!(server.requests(), 2);
    let mut settings = case.settings();
    settings.cache = Cache::SameRelease;
    case.build_with(&settings, &release).await.unwrap();
    assert_eq!(server.requests(), 2);
    settings.cache = Cache::Off;
    case.build_with(&settings, &release).await.unwrap();
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn another_users_slug_has_to_be_shown() {
    let case = Case::new("shown", &[]);
    let content = slug(&[("app/a", 0o644, "a")]);
    let server = Server::new(content.clone(), usize::MAX);
    let mut release = case.release(1, &content);
    release.slug_url = server.url();
    case.build(&release).await.unwrap();
    let other = (fixture::me().0 + 1, fixture::me().1);
    super::build_release(
        &case.engine,
        &case.settings(),
        other,
        &release,
        &case.listener,
    )
    .await
    .unwrap();
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn another_slug_than_the_release_says_is_none() {
    let case = Case::new("checksum", &[]);
    let content = slug(&[("app/a", 0o644, "a")]);
    let mut release = case.release(1, &content);
    let actual = release.slug_checksum.clone();
    release.slug_checksum = format!("SHA256:{}", "0".repeat(64));
    let status = Status::from(case.build(&release).await.unwrap_err());
    assert_eq!(
        status.message(),
        format!(
            "Checksum does match expected value. Expected: {} Actual: {actual}",
            release.slug_checksum
        )
    );
    assert_eq!(format!("{:?}", status.code()), "FailedPrecondition");
    case.assert_nothing_made();
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn slugs_that_mean_harm_are_named() {
    let case = Case::new("harm", &[]);
    for (content, reason) in [
        (
            slug(&[("app/a", 0o644, "a"), ("/app/b", 0o644, "b")]),
            "entry `/app/b` has an absolute path",
        ),
        (
            slug(&[("app/../../b", 0o644, "b")]),
            "entry `app/../../b` leads out of the slug",
        ),
        (
            fixture::archive(&[
                Content::Link("app/etc", "/etc"),
                Content::File("app/etc/passwd", 0o644, "root::0:0::/:/bin/sh"),
            ]),
            "entry `app/etc/passwd` would be written through a symbolic link",
        ),
        (
            fixture::archive(&[Content::Device("app/sda")]),
            "entry `app/sda` is a device",
        ),
        (b"no archive".to_vec(), "it is no gzip archive"),
    ] {
        let status = Status::from(case.build(&case.release(1, &content)).await.unwrap_err());
        assert!(status.message().contains(reason), "{status}");
        assert_eq!(format!("{:?}", status.code()), "FailedPrecondition");
        case.assert_nothing_made();
    }
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn a_directory_is_a_slug() {
    let case = Case::new("directory", &[]);
    let app = case.folder.path().join("source");
    fs::create_dir(&app).unwrap();
    let write = |text: &str| {
        fs::File::create(app.join("Procfile"))
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    };
    write("web: one");
    let mut release = Release {
        app: case.app.clone(),
        version: 1,
        stack: case.stack.clone(),
        slug_url: format!("file://{}/", app.display()),
        ..Release::default()
    };
    let first = case.build(&release).await.unwrap();
    assert_eq!(case.run(&first, &["/bin/cat", "/app/Procfile"]), "web: one");
    assert_eq!(case.build(&release).await.unwrap(), first);
    write("web: two");
    let second = case.build(&release).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(
        case.run(&second, &["/bin/cat", "/app/Procfile"]),
        "web: two"
    );
    release.slug_checksum = format!("SHA256:{}", "0".repeat(64));
    let error = case.build(&release).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is a directory, which has no checksum")
    );
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn the_user_of_a_stack_is_the_dynos() {
    let case = Case::new("user", &["USER heroku", "ENV HOME=/home/heroku KEPT=1"]);
    let content = slug(&[("app/a", 0o644, "a")]);
    let artifact = case.build(&case.release(1, &content)).await.unwrap();
    assert_eq!(
        artifact.kind,
        Kind::Slug {
            uid: 1_234,
            gid: 1_235
        }
    );
    assert_eq!(
        case.run(
            &artifact,
            &[
                "/bin/sh",
                "-c",
                "id -u; id -g; echo $HOME $KEPT; > /app/new; stat -c %u:%g a"
            ]
        ),
        "1234\n1235\n/app 1\n1234:1235"
    );
    let passwd = case.run(&artifact, &["/bin/cat", "/etc/passwd"]);
    assert!(!passwd.contains("dyno"), "{passwd}");
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn a_stack_whose_app_is_a_volume_is_none() {
    let case = Case::new("volume", &["VOLUME /app"]);
    let content = slug(&[("app/a", 0o644, "a")]);
    let status = Status::from(case.build(&case.release(1, &content)).await.unwrap_err());
    assert!(
        status.message().contains("has a volume at `/app`"),
        "{status}"
    );
    case.assert_nothing_made();
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn a_download_that_is_cut_goes_on() {
    let case = Case::new("cut", &[]);
    let noise = fixture::noise(2_000_000);
    let content = fixture::archive(&[Content::File("app/noise", 0o644, &noise)]);
    let server = Server::new(content.clone(), 700_000);
    let mut release = case.release(1, &content);
    release.slug_url = server.url();
    let artifact = case.build(&release).await.unwrap();
    assert_eq!(server.requests(), 2);
    assert_eq!(
        case.run(&artifact, &["/bin/stat", "-c", "%s", "noise"]),
        noise.len().to_string()
    );
    let total = content.len() as u64;
    let heard = case.listener.progress.lock().unwrap();
    assert!(heard.contains(&("download slug".to_owned(), total, total)));
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn a_big_slug_is_never_in_memory() {
    let case = Case::new("big", &[]);
    let content = fixture::zeros("app/zeros", 224);
    let artifact = case.build(&case.release(1, &content)).await.unwrap();
    let size = case.run(&artifact, &["/bin/stat", "-c", "%s", "zeros"]);
    assert_eq!(size, (224_u64 << 20).to_string());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.unwrap().trim().trim_end_matches(" kB");
    // With all that other tests hold.
    assert!(peak.parse::<u64>().unwrap() < 128 << 10, "{peak} kB");
}
