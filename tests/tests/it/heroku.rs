//! An app on Heroku, followed by way of its API: what is deployed runs, and what goes wrong there
//! stops nothing here.

use std::{fs, path::Path, process::Output};

use hsup_tests::{
    deadline,
    fake::platform::{APP_ID, Fault, Platform, SIGNATURE, TOKEN},
};
use nix::sys::signal::Signal;

use crate::app::{App, Running, binaries, page};

mod faults;
mod scaling;
mod slugs;
mod trouble;

const APP: &str = "shop";

/// A folder to run in, and the app on Heroku.
pub(crate) struct Shop {
    pub(crate) app: App,
    pub(crate) heroku: Platform,
}

impl Shop {
    /// An app to which nothing was deployed yet.
    fn new() -> Self {
        let shop = Self {
            app: App::empty(),
            heroku: Platform::start(APP),
        };
        let port = shop.app.port.to_string();
        shop.heroku.set_config(&[("PORT", &port)]);
        shop
    }

    /// The same with a `web`, which runs.
    pub(crate) fn deployed() -> Self {
        let shop = Self::new();
        shop.deploy("");
        shop
    }

    /// Deploys a `web` with these arguments beside others that do not run by themselves.
    fn deploy(&self, arguments: &str) -> u64 {
        self.heroku.deploy(&[
            ("web", &web(arguments)),
            ("worker", "exec sleep 1000"),
            ("release", "echo released"),
        ])
    }

    /// `hsup WORD -a shop`, with a token, asking all the time.
    fn command(&self, word: &str) -> std::process::Command {
        let mut command = self.app.command("hsup");
        command
            .env("HEROKU_HOST", self.heroku.url())
            .env("HEROKU_API_KEY", TOKEN)
            .args([word, "-a", APP, "--poll-every", "20ms"]);
        command
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running<'_> {
        let mut command = self.command("start");
        let defaults = [
            ["--grace", "2s"],
            ["--linger", "60s"],
            ["--boot-timeout", "5s"],
        ];
        let unsaid = |default: &&[&str; 2]| !arguments.contains(&default[0]);
        command.args(defaults.iter().filter(unsaid).flatten());
        command.args(arguments);
        self.app.running(command)
    }

    /// `hsup WORD` to its end.
    fn run(&self, word: &str, arguments: &[&str]) -> Output {
        deadline::output(self.command(word).args(arguments))
    }

    /// Waits until hsup has looked a few times more.
    fn wait_looks(&self, hsup: &Running<'_>) {
        let looks = || self.heroku.count("/releases ");
        let before = looks();
        hsup.wait_for("a few looks", || (looks() >= before + 3).then_some(()));
    }
}

fn web(arguments: &str) -> String {
    let dyno = binaries().join("test-dyno");
    format!("exec {} serve {arguments}", dyno.display())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_is_deployed_runs_and_what_follows_replaces_it() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    let first = hsup.wait_up(&["web.1"]);
    assert!(page(shop.app.port).unwrap().contains("hello"));
    hsup.wait_for_line("Release v2 is current");
    // What ran on Heroku says nothing of what the release needs here.
    let said = hsup.log();
    assert_eq!(said.matches("running its release command").count(), 1);
    assert!(said.contains("release.1 | released"), "{said}");

    shop.heroku.set_config(&[("NAME", "two")]);
    hsup.wait_for_line("Release v3 is current");
    let second = hsup.wait_up(&["web.1"]);
    assert_ne!(first, second);
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    let releases = hsup.releases();
    assert_eq!(releases[0]["source"], "Heroku");
    assert_eq!(releases[0]["stack"], "heroku-24");
    hsup.interrupt();
}

#[test]
fn only_what_has_succeeded_is_deployed() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    let before = hsup.wait_up(&["web.1"]);
    let pending = shop.heroku.release(|release| {
        "pending".clone_into(&mut release.status);
        release.current = false;
    });
    for _ in 0..12 {
        shop.heroku.release(|release| {
            "failed".clone_into(&mut release.status);
            release.current = false;
        });
    }
    shop.wait_looks(&hsup);
    assert_eq!(hsup.wait_up(&["web.1"]), before);
    hsup.wait_releases(&["v2 current"]);
    // The one that runs is on the second page.
    assert!(shop.heroku.count("/releases 206") > 0);

    // A rollout in Heroku's sense: the release phase has ended well.
    shop.heroku.amend(2, |release| release.current = false);
    shop.heroku.amend(pending, |release| {
        "succeeded".clone_into(&mut release.status);
        release.current = true;
    });
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    hsup.interrupt();
}

#[test]
fn what_has_not_changed_is_not_fetched_again() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    hsup.wait_up(&["web.1"]);
    shop.wait_looks(&hsup);
    let fetched = |what: &str| shop.heroku.count(&format!("{what} 200"));
    let before = (fetched("config-vars"), fetched("/formation"));
    shop.wait_looks(&hsup);
    assert_eq!((fetched("config-vars"), fetched("/formation")), before);
    assert!(shop.heroku.count("/releases 304") > 0);
    assert!(shop.heroku.count("/formation 304") > 0);
    hsup.interrupt();
}

#[test]
fn a_bad_release_never_takes_the_good_one_down_and_is_not_tried_again() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    hsup.wait_up(&["web.1"]);
    shop.heroku
        .deploy(&[("web", "exit 3"), ("worker", "exec sleep 1000")]);
    hsup.wait_releases(&["v3 rejected", "v2 current"]);
    hsup.wait_up(&["web.1"]);
    // The formation is the app's, whichever release runs.
    shop.heroku.scale("web", 2);
    let good = hsup.wait_up(&["web.1", "web.2"]);
    hsup.wait_releases(&["v3 rejected", "v2 current"]);
    hsup.kill();

    shop.heroku.scale("web", 3);
    let hsup = shop.start(&[]);
    hsup.wait_for_line("Release v3 was rejected");
    assert_eq!(hsup.wait_up(&["web.1", "web.2", "web.3"])[..2], good);
    hsup.wait_releases(&["v3 rejected", "v2 current"]);
    shop.deploy("");
    hsup.wait_for_line("Release v4 is current");
    hsup.interrupt();
}

#[test]
fn a_release_that_cannot_be_run_is_refused_with_its_reason() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    let before = hsup.wait_up(&["web.1"]);
    let refused = |reason: &str| {
        hsup.wait_for_line(&format!("Release rejected, v2 keeps running: {reason}"));
        shop.wait_looks(&hsup);
        assert_eq!(hsup.log().matches(reason).count(), 1, "{}", hsup.log());
        assert_eq!(hsup.wait_up(&["web.1"]), before);
    };
    let slug = shop.heroku.release(|release| release.slug = None);
    assert_eq!(slug, 3);
    refused("v3 (Deploy 2c3a0b2) has no slug");
    shop.heroku.amend_slug(|slug| slug.size = 0);
    shop.heroku
        .release(|release| release.slug = Some("5100-0001".to_owned()));
    refused("the slug of v4 is empty");
    let deleted = r#"{"blob":{"url":null},"deleted_at":"2026-02-03T18:00:42Z"}"#;
    shop.heroku
        .fail("/slugs/", Fault::Answer(200, deleted.to_owned()));
    shop.heroku.release(|_| {});
    refused("the slug of v5 was deleted on Heroku");
    shop.heroku.heal();
    shop.heroku.deploy(&[("web", " ")]);
    refused("the process type `web` of v6 has no command, and should run");
    // The same release, with nothing of it to run.
    shop.heroku.scale("web", 0);
    hsup.wait_for_line("Release v6 is current");
    shop.deploy("");
    shop.heroku.scale("web", 1);
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_rollback_takes_no_number_that_heroku_gives_to_another_release() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    hsup.wait_up(&["web.1"]);
    shop.heroku.set_config(&[("NAME", "two")]);
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    // Quantities are the app's, whatever v2 had.
    shop.heroku.scale("worker", 2);
    hsup.wait_up(&["web.1", "worker.1", "worker.2"]);
    let back = shop.app.ctl(&["rollback"]);
    let said = text(&back.stdout) + &text(&back.stderr);
    assert!(
        said.contains("Release v2 (rollback to v2)... done"),
        "{said}"
    );
    assert!(
        said.contains("a rollback lasts until the next release on Heroku"),
        "{said}"
    );
    hsup.wait_releases(&["v2 current", "v3 superseded", "v2 superseded"]);
    hsup.wait_up(&["web.1", "worker.1", "worker.2"]);
    assert!(page(shop.app.port).unwrap().contains("release v2"));
    hsup.kill();

    // What is still deployed is what was left.
    let hsup = shop.start(&[]);
    hsup.wait_for_line("Release v3 was here before v2, which is gone on with");
    shop.heroku.set_config(&[("NAME", "four")]);
    hsup.wait_releases(&[
        "v4 current",
        "v2 superseded",
        "v3 superseded",
        "v2 superseded",
    ]);
    hsup.interrupt();
}

#[test]
fn quantities_change_in_every_release_that_may_become_good() {
    let shop = Shop::deployed();
    shop.app.faults("");
    let driver = binaries().join("hsup-driver-fault");
    let hsup = shop.start(&["-d", driver.to_str().unwrap(), "--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1"]);
    let go = "until [ -e ../go ]; do sleep 0.1; done; ";
    shop.heroku.deploy(&[("web", &(go.to_owned() + &web("")))]);
    hsup.wait_releases(&["v3 rolling out", "v2 current"]);
    hsup.wait_dyno_of(3);
    shop.app.faults("build unavailable not yet\n");
    shop.deploy("");
    hsup.wait_releases(&["v4 building", "v3 rolling out", "v2 current"]);
    shop.heroku.scale("web", 2);
    hsup.wait_for_line("Scaled to web@2");
    // The newest one comes to nothing, and the one before it is the good one.
    shop.app.faults("build invalid-argument no such thing\n");
    hsup.wait_for_line("Release v4 rejected, the rollout of v3 goes on: ");
    shop.app.write("go", "");
    hsup.wait_releases(&["v4 rejected", "v3 current", "v2 superseded"]);
    hsup.wait_up(&["web.1", "web.2"]);
    hsup.interrupt();
}

#[test]
fn an_image_needs_a_driver_that_runs_images() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    let before = hsup.wait_up(&["web.1"]);
    shop.heroku.deploy_image(&[("web", "/cnb/process/web")]);
    hsup.wait_for_line("the simple driver runs no images; the docker driver does");
    hsup.wait_releases(&["v3 rejected", "v2 current"]);
    let image = hsup.releases()[0]["image"].as_str().unwrap().to_owned();
    assert!(image.starts_with("registry.heroku.com/c0ffee/builds@sha256:abab"));
    assert_eq!(hsup.wait_up(&["web.1"]), before);
    hsup.interrupt();
}

#[test]
fn one_command_a_build_and_a_check_see_what_is_deployed() {
    let shop = Shop::deployed();
    shop.heroku.set_config(&[("NAME", "of the app")]);
    let ran = shop.run("run", &["echo \"$NAME\"; exit 7"]);
    assert_eq!(ran.status.code(), Some(7), "{}", text(&ran.stderr));
    assert_eq!(text(&ran.stdout), "of the app\n");
    let built = shop.run("build", &[]);
    assert_eq!(built.status.code(), Some(0), "{}", text(&built.stderr));
    let checked = shop.run("check", &[]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let shown = text(&checked.stdout);
    assert!(shown.starts_with("web        1  exec"), "{shown}");
    assert!(
        shown.contains("\nworker     0  exec sleep 1000\nrelease    0  echo"),
        "{shown}"
    );

    shop.heroku.fail("", Fault::status(403));
    for word in ["check", "build", "run"] {
        let words: &[&str] = if word == "run" { &["true"] } else { &[] };
        let refused = shop.run(word, words);
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        assert!(
            said.contains("HTTP 403: forbidden: You do not have access"),
            "{said}"
        );
        assert!(said.contains("(request req-"), "{said}");
    }
}

#[test]
fn a_token_may_be_in_netrc_or_in_the_originals_variable() {
    let shop = Shop::deployed();
    let mut command = shop.command("check");
    command.env_remove("HEROKU_API_KEY");
    let refused = deadline::output(&mut command);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(
        said.contains("there is no token to ask with: set HEROKU_API_KEY"),
        "{said}"
    );

    let mut command = shop.command("check");
    command
        .env_remove("HEROKU_API_KEY")
        .env("HEROKU_ACCESS_TOKEN", TOKEN);
    assert_eq!(deadline::output(&mut command).status.code(), Some(0));

    let machine = shop.heroku.url().replace("http://", "");
    let machine = machine.split(':').next().unwrap();
    let netrc = format!("machine {machine}\n  login me@example.com\n  password {TOKEN}\n");
    shop.app.write(".netrc", &netrc);
    let mut command = shop.command("check");
    command.env_remove("HEROKU_API_KEY");
    let found = deadline::output(&mut command);
    assert_eq!(found.status.code(), Some(0), "{}", text(&found.stderr));
}

#[test]
fn an_app_on_this_machine_is_asked_by_way_of_no_proxy() {
    let shop = Shop::deployed();
    let proxy = Platform::start(APP);
    let mut command = shop.command("check");
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env(name, proxy.url());
    }
    let checked = deadline::output(&mut command);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert!(proxy.requests().is_empty(), "{:?}", proxy.requests());
}

#[test]
fn an_app_that_is_asked_for_by_its_id_is_told_its_name() {
    let shop = Shop::deployed();
    let mut command = shop.app.command("hsup");
    command
        .env("HEROKU_HOST", shop.heroku.url())
        .env("HEROKU_API_KEY", TOKEN)
        .args(["start", "-a", APP_ID, "--poll-every", "20ms"]);
    let hsup = shop.app.running(command);
    hsup.wait_up(&["web.1"]);
    shop.heroku.set_config(&[("NAME", "two")]);
    hsup.wait_for_line("Release v3 is current");
    let said = hsup.log();
    let warning = format!("{APP_ID} is the app shop, and `-a shop` has another history");
    assert_eq!(said.matches(&warning).count(), 1, "{said}");
    hsup.interrupt();
}

#[test]
fn nothing_secret_is_shown_or_kept() {
    let shop = Shop::deployed();
    shop.app.faults("is fetching\n");
    let hsup = shop.start(&["-d", binaries().join("hsup-driver-fault").to_str().unwrap()]);
    hsup.wait_up(&["web.1"]);
    shop.heroku.fail("config-vars", Fault::status(401));
    shop.heroku.set_config(&[("NAME", "two")]);
    hsup.wait_for_line("HTTP 401");
    shop.heroku.heal();
    shop.heroku.deploy(&[("web", "exit 3")]);
    hsup.wait_for_line("Release v4 rejected");
    hsup.signal(Signal::SIGUSR1);
    hsup.wait_for_line("driver connected");
    let mut said = hsup.log();
    for question in [
        &["releases", "-o", "json"][..],
        &["ps", "-o", "json"],
        &["status", "web.1"],
        &["logs", "-n", "10000"],
        &["driver", "info"],
    ] {
        let shown = shop.app.ctl(question);
        said += &(text(&shown.stdout) + &text(&shown.stderr));
    }
    for pid in crate::app::processes_of(&shop.app) {
        let mut of_process = vec!["cmdline"];
        // hsup's own environment is where the token comes from.
        of_process.extend((pid != hsup.pid()).then_some("environ"));
        for name in of_process {
            said += &text(&fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default());
        }
    }
    said += &everything_in(&shop.app.path("state"));
    assert!(
        said.contains("heroku://shop/slugs/5100-0001"),
        "it is named"
    );
    for secret in [TOKEN, SIGNATURE, "hunter2"] {
        assert!(!said.contains(secret), "{secret} is in: {said}");
    }
    hsup.interrupt();
}

/// The text of every file below `folder`.
pub(crate) fn everything_in(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let texts = entries.map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            everything_in(&path)
        } else if path.is_file() {
            text(&fs::read(&path).unwrap_or_default())
        } else {
            // A FIFO of a dyno that lives on: to open it is to wait.
            String::new()
        }
    });
    texts.collect()
}
