//! An app on Heroku in containers: its slug by way of the API, on the stack that it is built for.

use std::fs;

use hsup_tests::{
    fake::{
        faulty_proxy::FaultyProxy,
        platform::{Platform, SIGNATURE, TOKEN},
    },
    random::Random,
};

use crate::{
    host::Host,
    machine::said,
    running::Running,
    slugs::{checksum, slug},
};

/// An app on Heroku, and a host whose stack `test` is the app's.
fn shop() -> (Host, Platform) {
    let (host, heroku) = (Host::new(), Platform::start("shop"));
    // Not the app of this folder.
    fs::remove_file(host.path("app/Procfile")).unwrap();
    heroku.is_on("test");
    (host, heroku)
}

/// Deploys a slug with this text in its file `hello`, and one dyno of each of its types.
fn deploy(host: &Host, heroku: &Platform, name: &str, text: &str) -> u64 {
    let slug = slug(host, name, text);
    let processes = [
        ("web", "httpd -p $PORT; exec sleep 1000"),
        (
            "worker",
            "echo \"$(sha256sum <hello) of $HEROKU_RELEASE_VERSION\"; exec sleep 1000",
        ),
    ];
    let bytes = fs::read(&slug).unwrap();
    let version = heroku.deploy_slug(&processes, bytes, Some(checksum(&slug)));
    heroku.scale("worker", 1);
    version
}

/// `hsup start -a shop`, asking at this URL all the time.
fn start<'a>(host: &'a Host, url: &str) -> Running<'a> {
    Running::start(host, |command| {
        command
            .env("HEROKU_HOST", url)
            .env("HEROKU_API_KEY", TOKEN)
            .args(["-a", "shop", "--poll-every", "20ms"]);
    })
}

/// What the dynos of a release say whose file has this text.
fn said_of(host: &Host, text: &str, version: u64) -> String {
    host.write("text", text);
    let summed = said("sha256sum", &[host.path("text").to_str().unwrap()]);
    let sum = summed.split(' ').next().unwrap();
    format!("{sum}  - of v{version}")
}

#[test]
#[ignore = "needs root: it makes containers"]
fn an_app_on_heroku_runs_on_its_slug_and_follows() {
    let (host, heroku) = shop();
    deploy(&host, &heroku, "one", "first\n");
    let driver = host.driver();
    let hsup = start(&host, heroku.url());
    let before = hsup.wait_up(&["web.1", "worker.1"]);
    hsup.wait_for_line(&said_of(&host, "first\n", 1));
    deploy(&host, &heroku, "two", "second\n");
    hsup.wait_for_line(&said_of(&host, "second\n", 2));
    hsup.wait_for_line("Release v2 is current");
    let after = hsup.wait_up(&["web.1", "worker.1"]);
    assert!(before.iter().all(|id| !after.contains(id)));
    heroku.scale("worker", 2);
    hsup.wait_up(&["web.1", "worker.1", "worker.2"]);
    let log = hsup.log() + &driver.log();
    assert!(!log.contains(SIGNATURE) && !log.contains(TOKEN), "{log}");
    hsup.interrupt();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_slug_arrives_whole_over_a_way_that_is_bad() {
    let (host, heroku) = shop();
    let way = FaultyProxy::start(heroku.url(), 20_261_128);
    heroku.is_behind(&way.url());
    // Which no packing makes small.
    let mut random = Random::new(5);
    let mut text = || -> String {
        let mut letter = || char::from_digit(random.below(36), 36).unwrap();
        (0..300_000).map(|_| letter()).collect()
    };
    let driver = host.driver();
    let mut hsup = None;
    for (version, name) in [(1, "one"), (2, "two"), (3, "three")] {
        let text = text();
        assert_eq!(deploy(&host, &heroku, name, &text), version);
        let hsup = hsup.get_or_insert_with(|| start(&host, &way.url()));
        hsup.wait_for_line(&said_of(&host, &text, version));
        hsup.wait_for_line(&format!("Release v{version} is current"));
    }
    let hsup = hsup.unwrap();
    hsup.wait_for("the worst", || way.has_done_its_worst().then_some(()));
    assert!(!hsup.log().contains("rejected"), "{}", hsup.log());
    hsup.interrupt();
    driver.end();
    host.is_clean();
}
