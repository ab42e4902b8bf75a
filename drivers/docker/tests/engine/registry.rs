//! Images that a registry gives only to whom it knows.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Stdio},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::sleep;
use tonic::Code;

use super::{
    fixture::{Driver, Engine, PAUSE, end, output, write},
    swarm::{service, swarm},
};

const ADDRESS: &str = "127.0.0.1:5000";
const IMAGE: &str = "127.0.0.1:5000/shop/private:1";
/// In base64 it has digits that are others in URLs.
const PASSWORD: &str = "hush~?>hush~";
const HTPASSWD: &str = "me:$2y$05$H1a3.hXtmxfsvKYYibnIj.Bly95cUhGFPovh/c5PwlM8MSVaZue9q\n";

/// A registry in the network of an engine. It ends with the test.
struct Registry {
    folder: TempDir,
    child: Child,
}

impl Registry {
    /// Starts one that has an image, and knows one user.
    async fn start(engine: &Engine) -> Self {
        let folder = TempDir::with_prefix("hsup").unwrap();
        let at = |name: &str| folder.path().join(name);
        write(&at("htpasswd"), HTPASSWD);
        let config = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '{ADDRESS}'}}\n\
             auth: {{htpasswd: {{realm: tests, path: {}}}}}\n",
            at("data").display(),
            at("htpasswd").display()
        );
        write(&at("config.yml"), &config);
        let log = File::create(at("log")).unwrap();
        let child = engine
            .inside("docker-registry")
            .arg("serve")
            .arg(at("config.yml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = Self { folder, child };
        registry.log_in(engine).await;
        output(&mut engine.docker(&["tag", engine.image_id(), IMAGE]));
        output(registry.docker(engine).args(["push", "--quiet", IMAGE]));
        output(&mut engine.docker(&["rmi", IMAGE]));
        registry
    }

    /// A driver of somebody who is known.
    fn driver(&self, engine: &Engine) -> Driver {
        let config = self.logins().to_str().unwrap().to_owned();
        Driver::reaching(&engine.host(), vec![("DOCKER_CONFIG", config)])
    }

    /// Has it forget all images, as a disk that was lost.
    fn forget(&self) {
        fs::remove_dir_all(self.folder.path().join("data/docker")).unwrap();
    }

    /// The `docker` of somebody who is known.
    fn docker(&self, engine: &Engine) -> std::process::Command {
        let mut docker = engine.docker(&["--config"]);
        docker.arg(self.logins());
        docker
    }

    fn logins(&self) -> std::path::PathBuf {
        self.folder.path().join("logins")
    }

    /// As soon as it serves.
    async fn log_in(&self, engine: &Engine) {
        let login = || {
            let mut docker = self.docker(engine);
            docker.args(["login", "--username", "me", "--password-stdin", ADDRESS]);
            docker.stdin(Stdio::piped());
            docker.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = docker.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(PASSWORD.as_bytes()).unwrap();
            drop(stdin);
            child.wait().unwrap().success()
        };
        let logging_in = async {
            while !login() {
                sleep(PAUSE).await;
            }
        };
        let log = || fs::read_to_string(self.folder.path().join("log")).unwrap();
        let in_time = tokio::time::timeout(super::fixture::PATIENCE, logging_in).await;
        assert!(in_time.is_ok(), "the registry does not serve: {}", log());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        end(&mut self.child, Signal::SIGTERM);
    }
}

#[tokio::test]
#[ignore = "needs root, dockerd and docker-registry"]
async fn a_private_image_is_pulled_with_a_login() {
    let engine = Engine::start().await;
    let registry = Registry::start(&engine).await;
    let with = |config: &Path| {
        let config = config.to_str().unwrap().to_owned();
        Driver::reaching(&engine.host(), vec![("DOCKER_CONFIG", config)])
    };
    let nobody = TempDir::with_prefix("hsup").unwrap();
    let refused = with(nobody.path()).build(IMAGE).await;
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("docker login"), "{refused}");
    let driver = with(&registry.logins());
    let artifact = driver.build(IMAGE).await.unwrap();
    assert_eq!(artifact, engine.artifact);
}

#[tokio::test]
#[ignore = "needs root, dockerd and docker-registry"]
async fn a_helper_is_asked_for_a_login() {
    let engine = Engine::start().await;
    let _registry = Registry::start(&engine).await;
    let folder = TempDir::with_prefix("hsup").unwrap();
    let helper = folder.path().join("docker-credential-tests");
    let script = format!(
        "#!/bin/sh\nread -r asked\n[ \"$1 $asked\" = 'get {ADDRESS}' ] || exit 1\n\
         echo '{{\"ServerURL\": \"{ADDRESS}\", \"Username\": \"me\", \"Secret\": \"{PASSWORD}\"}}'\n"
    );
    write(&helper, &script);
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!("{{\"credHelpers\": {{\"{ADDRESS}\": \"tests\"}}}}");
    write(&folder.path().join("config.json"), &config);
    let folder = folder.path().to_str().unwrap();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    let env = vec![("DOCKER_CONFIG", folder.to_owned()), ("PATH", path)];
    let driver = Driver::reaching(&engine.host(), env);
    let artifact = driver.build(IMAGE).await.unwrap();
    assert_eq!(artifact, engine.artifact);
}

#[tokio::test]
#[ignore = "needs root, dockerd and docker-registry"]
async fn an_app_has_one_repository_whatever_driver_builds_it() {
    let engine = swarm().await;
    let registry = Registry::start(&engine).await;
    let slug = TempDir::with_prefix("hsup").unwrap();
    let mut built = Vec::new();
    for _ in 0..2 {
        let driver = registry.driver(&engine);
        built.push(driver.build_for_swarm(slug.path(), ADDRESS).await.unwrap());
    }
    // The image is one, too.
    assert_eq!(built[0], built[1]);
}

/// The registry is where the driver is not: the engine alone reaches it.
#[tokio::test]
#[ignore = "needs root, dockerd and docker-registry"]
async fn an_image_that_its_registry_has_lost_is_to_be_built_again() {
    let engine = swarm().await;
    let registry = Registry::start(&engine).await;
    let driver = registry.driver(&engine);
    let slug = TempDir::with_prefix("hsup").unwrap();
    let artifact = driver.build_for_swarm(slug.path(), ADDRESS).await.unwrap();
    registry.forget();
    let slugs = ["images", "--quiet", "--filter", "label=io.hsup.role=slug"];
    for image in output(&mut engine.docker(&slugs)).lines() {
        // By all of its names it is listed as often.
        drop(engine.docker(&["rmi", "--force", image]).output());
    }
    let mut dyno = service(&engine, "d-lost", "exec sleep 1000");
    dyno.request.artifact = artifact;
    let mut client = driver.client().await;
    let refused = client.start(dyno.request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
}

/// The configuration of Debian's package, and what the page has done to it.
const PACKAGES: &str = "/etc/docker/registry/config.yml";
const PAGE: &str = include_str!("../../../../docs/swarm.md");

/// Whether an image can be pushed to a registry with this configuration, once it answers.
async fn takes_an_image(engine: &Engine, config: &Path, folder: &Path) -> bool {
    let log = File::create(folder.join("log")).unwrap();
    let mut child = engine
        .inside("docker-registry")
        .arg("serve")
        .arg(config)
        .env("REGISTRY_HTTP_ADDR", ADDRESS)
        .env("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", folder)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let url = format!("http://{ADDRESS}/v2/");
    let answering = async {
        let mut curl = engine.inside("curl");
        curl.args(["--silent", "--output", "/dev/null", &url]);
        while !curl.status().unwrap().success() {
            assert!(child.try_wait().unwrap().is_none(), "it does not serve");
            sleep(PAUSE).await;
        }
    };
    let in_time = tokio::time::timeout(super::fixture::PATIENCE, answering).await;
    output(&mut engine.docker(&["tag", engine.image_id(), IMAGE]));
    let pushed = engine.docker(&["push", "--quiet", IMAGE]).output().unwrap();
    end(&mut child, Signal::SIGTERM);
    in_time.is_ok() && pushed.status.success()
}

#[tokio::test]
#[ignore = "needs root, dockerd, curl, and docker-registry as Debian has it"]
async fn debians_registry_takes_images_after_what_the_page_says() {
    let engine = Engine::start().await;
    let folder = TempDir::with_prefix("hsup").unwrap();
    let config = folder.path().join("config.yml");
    write(&config, &fs::read_to_string(PACKAGES).unwrap());
    assert!(!takes_an_image(&engine, &config, folder.path()).await);
    let step = PAGE.lines().find(|line| line.starts_with("# sed -i"));
    let step = step.unwrap().trim_start_matches("# ");
    let here = step.replace(PACKAGES, config.to_str().unwrap());
    output(super::fixture::command("sh").args(["-c", &here]));
    assert!(takes_an_image(&engine, &config, folder.path()).await);
}
