//! An API that fails, denies, lies or is away, while dynos run and while they do not.

use hsup_tests::fake::storage::{Authority, FakeStorage, Flaw};
use serde_json::{Value, json};

use super::*;

#[test]
fn an_api_that_goes_away_takes_nothing_down() {
    for fault in [Fault::Gone, Fault::status(503), Fault::Cut, Fault::Flood] {
        let shop = Shop::deployed();
        let hsup = shop.start(&[]);
        let before = hsup.wait_up(&["web.1"]);
        shop.heroku.fail("", fault.clone());
        hsup.wait_for_line("what runs goes on");
        shop.wait_looks(&hsup);
        assert_eq!(hsup.wait_up(&["web.1"]), before, "{fault:?}");
        let log = hsup.log();
        assert_eq!(log.matches("what runs goes on").count(), 1, "{log}");
        shop.heroku.heal();
        hsup.wait_for_line("Heroku's API answers again");
        shop.heroku.set_config(&[("NAME", "two")]);
        hsup.wait_releases(&["v3 current", "v2 superseded"]);
        hsup.interrupt();
    }
}

#[test]
fn an_api_that_hangs_takes_nothing_down() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    let before = hsup.wait_up(&["web.1"]);
    shop.heroku.fail("", Fault::Hang);
    hsup.wait_for("a question without an answer", || {
        (shop.heroku.count("/releases -") > 0).then_some(())
    });
    shop.app.ctl(&["scale", "worker=1"]);
    assert_eq!(hsup.wait_up(&["web.1", "worker.1"])[0], before[0]);
    hsup.interrupt();
}

#[test]
fn a_denial_is_told_once_while_dynos_run() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    let before = hsup.wait_up(&["web.1"]);
    shop.heroku.change_token("another");
    hsup.wait_for_line("HTTP 401: unauthorized: Invalid credentials provided.");
    shop.wait_looks(&hsup);
    let log = hsup.log();
    assert_eq!(log.matches("HTTP 401").count(), 1, "{log}");
    assert_eq!(hsup.wait_up(&["web.1"]), before);
    shop.heroku.change_token(TOKEN);
    hsup.wait_for_line("Heroku's API answers again");
    shop.heroku.set_config(&[("NAME", "two")]);
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    hsup.interrupt();
}

#[test]
fn requests_that_are_used_up_come_back() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    let before = hsup.wait_up(&["web.1"]);
    shop.heroku.leave(0);
    hsup.wait_for_line("HTTP 429: rate_limit");
    shop.wait_looks(&hsup);
    let log = hsup.log();
    assert_eq!(log.matches("HTTP 429").count(), 1, "{log}");
    shop.heroku.leave(60);
    hsup.wait_for_line("Heroku's API answers again");
    assert_eq!(hsup.wait_up(&["web.1"]), before);
    hsup.interrupt();
}

#[test]
fn an_older_release_is_taken_for_the_newest_only_when_that_does_not_pass() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    hsup.wait_up(&["web.1"]);
    shop.heroku.set_config(&[("NAME", "two")]);
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    let looks = || shop.heroku.count("/releases ");
    let before = looks();
    shop.heroku.amend(3, |release| release.current = false);
    shop.heroku.amend(2, |release| release.current = true);
    hsup.wait_releases(&["v2 current", "v3 superseded", "v2 superseded"]);
    assert!(looks() - before > 6, "it was believed at once");
    hsup.interrupt();
}

#[test]
fn a_release_that_is_fetched_in_part_is_fetched_whole() {
    for (part, fault) in [
        ("config-vars", Fault::status(503)),
        ("config-vars", Fault::Cut),
        ("/slugs/", Fault::Gone),
        ("/formation", Fault::Answer(200, "[{\"type\":".to_owned())),
    ] {
        let shop = Shop::deployed();
        let hsup = shop.start(&[]);
        let before = hsup.wait_up(&["web.1"]);
        shop.heroku.fail(part, fault);
        shop.heroku
            .deploy(&[("web", &web("")), ("clock", "exec sleep 1000")]);
        shop.wait_looks(&hsup);
        assert_eq!(hsup.wait_up(&["web.1"]), before);
        hsup.wait_releases(&["v2 current"]);
        if part != "/formation" {
            shop.heroku.scale("web", 2);
            assert_eq!(hsup.wait_up(&["web.1", "web.2"])[0], before[0]);
        }
        shop.heroku.heal();
        hsup.wait_releases(&["v3 current", "v2 superseded"]);
        hsup.interrupt();
    }
}

#[test]
fn a_release_that_is_not_whole_holds_up_nothing_and_may_be_whole_later() {
    for part in ["/slugs/5100-0002", "000000000003/config-vars"] {
        let shop = Shop::deployed();
        let hsup = shop.start(&[]);
        let before = hsup.wait_up(&["web.1"]);
        shop.heroku.fail(part, Fault::status(404));
        shop.deploy("");
        hsup.wait_for_line(
            "Release rejected, v2 keeps running: v3 is not whole on Heroku: failed to get",
        );
        hsup.wait_for_line("; it is asked for again from time to time");
        shop.heroku.scale("web", 2);
        assert_eq!(hsup.wait_up(&["web.1", "web.2"])[0], before[0]);
        shop.wait_looks(&hsup);
        let log = hsup.log();
        assert_eq!(log.matches("not whole").count(), 1, "{log}");
        shop.heroku.heal();
        hsup.wait_releases(&["v3 current", "v2 superseded"]);

        shop.heroku.fail("/slugs/5100-0003", Fault::status(410));
        shop.deploy("");
        hsup.wait_for_line("v4 is not whole on Heroku");
        shop.deploy("");
        hsup.wait_releases(&["v5 current", "v3 superseded", "v2 superseded"]);
        hsup.interrupt();
    }
}

#[test]
fn answers_of_one_release_that_cannot_be_read_slow_nothing_down() {
    for (part, fault) in [
        (
            "/slugs/5100-0002",
            Fault::Answer(200, "{\"blob\":".to_owned()),
        ),
        ("/slugs/5100-0002", Fault::status(503)),
        ("000000000003/config-vars", Fault::Flood),
    ] {
        let shop = Shop::deployed();
        let hsup = shop.start(&[]);
        let before = hsup.wait_up(&["web.1"]);
        shop.heroku.fail(part, fault);
        shop.deploy("");
        hsup.wait_for_line("v3 cannot be read on Heroku for now: failed to");
        hsup.wait_for_line("; it is asked for again from time to time; what runs goes on");
        for web in [2, 1, 2] {
            shop.wait_looks(&hsup);
            shop.heroku.scale("web", i64::try_from(web).unwrap());
            let names = &["web.1", "web.2"][..web];
            assert_eq!(hsup.wait_up(names)[0], before[0]);
        }
        // Looks of which one after another fails are fewer and fewer, and told.
        let log = hsup.log();
        assert_eq!(log.matches("cannot be read").count(), 1, "{log}");
        assert!(!log.contains("answers again"), "{log}");
        shop.deploy("");
        hsup.wait_releases(&["v4 current", "v2 superseded"]);
        hsup.interrupt();
    }
}

#[test]
fn a_redirect_is_not_followed_elsewhere() {
    let shop = Shop::deployed();
    let elsewhere = Platform::start(APP);
    shop.heroku
        .fail("", Fault::Redirect(format!("{}/steal", elsewhere.url())));
    is_sent_on(&shop);
    assert!(elsewhere.requests().is_empty());
    // And round in circles, not for ever.
    shop.heroku.heal();
    shop.heroku
        .fail("", Fault::Redirect("/apps/shop/releases".to_owned()));
    is_sent_on(&shop);
}

fn is_sent_on(shop: &Shop) {
    let refused = shop.run("check", &[]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    let expected = "it sends on to another place, or for ever";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_clock_that_has_jumped_between_two_lives_ends_nothing() {
    let shop = Shop::deployed();
    let mut hsup = shop.start(&[]);
    let before = hsup.wait_up(&["web.1"]);
    hsup.wait_releases(&["v2 current"]);
    let journal = "state/hsup/shop/journal";
    for started_unix_ms in [1_i64, 9_999_999_999_999] {
        hsup.kill();
        let text = fs::read_to_string(shop.app.path(journal)).unwrap();
        let moved = text.lines().map(|line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            if let Some(at) = record.pointer_mut("/start/at_unix_ms") {
                *at = started_unix_ms.into();
            }
            format!("{record}\n")
        });
        shop.app.write(journal, &moved.collect::<String>());
        hsup = shop.start(&[]);
        hsup.wait_for_line("Taking over 1 dyno");
        shop.wait_looks(&hsup);
        assert_eq!(hsup.wait_up(&["web.1"]), before);
    }
    shop.heroku.set_config(&[("NAME", "two")]);
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    hsup.interrupt();
}

#[test]
fn a_start_that_heroku_denies_ends_with_the_reason() {
    let shop = Shop::deployed();
    let mut hsup = shop.app.running({
        let mut command = shop.command("start");
        command.env("HEROKU_API_KEY", "another");
        command
    });
    assert_eq!(hsup.end().code(), Some(1));
    assert!(hsup.log().contains("HTTP 401"), "{}", hsup.log());
    hsup.nothing_is_left();
    let unknown = shop.run("start", &["nosuch"]);
    assert_eq!(unknown.status.code(), Some(1));
    let said = text(&unknown.stderr);
    assert!(
        said.contains("no process type `nosuch`: there is web, worker, release"),
        "{said}"
    );
    let mut command = shop.app.command("hsup");
    command
        .env("HEROKU_HOST", shop.heroku.url())
        .env("HEROKU_API_KEY", TOKEN)
        .args(["start", "-a", "nosuch"]);
    let refused = deadline::output(&mut command);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(
        said.contains("failed to get the releases of nosuch"),
        "{said}"
    );
    assert!(said.contains("there is none of that name"), "{said}");
}

#[test]
fn a_start_waits_for_an_api_that_is_away_and_for_a_first_release() {
    let shop = Shop::new();
    shop.heroku.fail("", Fault::Gone);
    let hsup = shop.start(&[]);
    hsup.wait_for_line("No release yet (failed to get the releases of shop");
    shop.heroku.heal();
    hsup.wait_for_line("Heroku's API answers again");
    hsup.wait_for_line("v1 (Set config vars) has no slug");
    shop.deploy("");
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn without_the_api_the_last_good_release_is_started_again() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
    for fault in [Fault::Gone, Fault::status(401)] {
        shop.heroku.fail("", fault);
        let hsup = shop.start(&[]);
        hsup.wait_for_line("running v2, the last good one");
        hsup.wait_up(&["web.1"]);
        shop.heroku.heal();
        hsup.wait_for_line("Heroku's API answers again");
        hsup.wait_releases(&["v2 current"]);
        hsup.interrupt();
    }
    // One that hangs says nothing at all, and is not waited for to its end.
    shop.heroku.fail("", Fault::Hang);
    let hsup = shop.start(&[]);
    hsup.wait_for_line("has not answered for 5s: running v2, the last good one");
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
    shop.heroku.heal();
    // A release that came meanwhile.
    shop.heroku.set_config(&[("NAME", "two")]);
    let hsup = shop.start(&[]);
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    hsup.interrupt();
}

#[test]
fn a_first_release_that_cannot_be_taken_in_ends_nothing_that_survived() {
    let shop = Shop::deployed();
    shop.heroku.scale("worker", 1);
    let types = ["web=1", "worker=1"];
    let first = shop.start(&types);
    first.wait_up(&["web.1", "worker.1"]);
    first.wait_releases(&["v2 current"]);
    first.kill();
    // Without a type that the command line names.
    shop.heroku.deploy(&[("web", &web(""))]);
    let second = shop.start(&types);
    second.wait_for_line(
        "Release v3 cannot be taken in, trying again, running v2, the last good one: no process \
         type `worker`: there is web",
    );
    // Once hsup has begun, it is a release as any other.
    second.wait_releases(&["v3 current", "v2 superseded"]);
    second.wait_up(&["web.1"]);
    let said = second.log();
    assert!(said.contains("Taking over 2 dynos"), "{said}");
    assert!(!said.contains("SIGKILL"), "{said}");
    second.interrupt();
}

#[test]
fn the_api_is_asked_only_where_its_certificate_verifies() {
    let app = App::empty();
    let trusted = app.path("ca.pem");
    let authority = Authority::new(&trusted).unwrap();
    let run = |flaw, trust: bool| {
        let api = FakeStorage::start(&authority, flaw).unwrap();
        let answer = |path: &str, answer: Value| api.put(path, answer.to_string().into());
        let web = json!({"type": "web", "command": "exec true", "quantity": 1});
        let release = json!({"id": "r1", "version": 1, "status": "succeeded", "current": true,
            "slug": {"id": "5100"}});
        answer("apps/shop", json!({"id": APP_ID, "name": APP}));
        answer("apps/shop/formation", json!([web]));
        answer("apps/shop/releases", json!([release]));
        answer(
            "apps/shop/releases/r1/config-vars",
            json!({"NAME": "of the app"}),
        );
        let url = api.put("slug.tgz", b"a slug".to_vec());
        let slug = json!({"process_types": {"web": "exec true"}, "blob": {"url": url}});
        answer("apps/shop/slugs/5100", slug);
        let mut command = app.command("hsup");
        command
            .env("HEROKU_HOST", format!("https://{}", api.host()))
            .env("HEROKU_API_KEY", TOKEN)
            .args(["run", "-a", APP, "echo \"$NAME\""]);
        if trust {
            command.env("SSL_CERT_FILE", &trusted);
        }
        let ran = command.output().unwrap();
        (ran.status.code(), text(&ran.stdout), text(&ran.stderr))
    };
    let (code, said, error) = run(Flaw::None, true);
    assert_eq!((code, said.as_str()), (Some(0), "of the app\n"), "{error}");
    for (flaw, trust) in [(Flaw::None, false), (Flaw::Name, true), (Flaw::Age, true)] {
        let (code, _, error) = run(flaw, trust);
        assert_eq!(code, Some(1), "{flaw:?}: {error}");
        let place = "which this machine does not trust: ";
        assert!(error.contains(place), "{flaw:?}: {error}");
        assert!(
            error.contains("SSL_CERT_FILE names whom it trusts"),
            "{flaw:?}: {error}"
        );
        assert!(!error.contains(TOKEN), "{flaw:?}: {error}");
    }
}
