//! The formation, which is the app's: it counts for what runs, whatever becomes of its releases.

use super::*;

#[test]
fn scaling_touches_no_dyno_that_stays_and_makes_no_release() {
    let shop = Shop::deployed();
    // It runs once, whatever its quantity.
    shop.heroku.scale("release", 1);
    let hsup = shop.start(&[]);
    let before = hsup.wait_up(&["web.1"]);
    shop.heroku.scale("web", 2);
    shop.heroku.scale("worker", 1);
    let scaled = hsup.wait_up(&["web.1", "web.2", "worker.1"]);
    assert_eq!(before[0], scaled[0]);
    hsup.wait_releases(&["v2 current"]);
    hsup.wait_for_line("Scaled to web@2 worker@1 release@0 by Heroku");

    // What hsupctl says lasts until Heroku says something else.
    shop.app.ctl(&["scale", "web=1"]);
    hsup.wait_up(&["web.1", "worker.1"]);
    shop.wait_looks(&hsup);
    hsup.wait_up(&["web.1", "worker.1"]);
    shop.heroku.scale("web", 3);
    let again = hsup.wait_up(&["web.1", "web.2", "web.3", "worker.1"]);
    assert_eq!(before[0], again[0]);
    hsup.interrupt();
}

#[test]
fn a_formation_of_several_pages_counts_whole() {
    let shop = Shop::deployed();
    shop.heroku.is_paged(1);
    shop.heroku.scale("worker", 1);
    let hsup = shop.start(&[]);
    hsup.wait_up(&["web.1", "worker.1"]);
    // The first page is as it was.
    shop.heroku.scale("worker", 2);
    hsup.wait_up(&["web.1", "worker.1", "worker.2"]);
    shop.wait_looks(&hsup);
    hsup.wait_up(&["web.1", "worker.1", "worker.2"]);

    // A part of it is no formation: nothing is scaled by that.
    let types: Vec<_> = (0..21).map(|number| format!("type{number}")).collect();
    let more = types.iter().map(|name| (name.as_str(), "exec sleep 9"));
    let more: Vec<_> = more.collect();
    shop.heroku.deploy(&more);
    hsup.wait_for_line("it has more than 20 pages");
    hsup.wait_up(&["web.1", "worker.1", "worker.2"]);
    hsup.interrupt();
}

#[test]
fn what_survived_is_scaled_though_what_is_deployed_cannot_be_run() {
    let shop = Shop::deployed();
    let first = shop.start(&[]);
    let before = first.wait_up(&["web.1"]);
    first.wait_releases(&["v2 current"]);
    first.kill();
    shop.heroku.release(|release| release.slug = None);
    shop.heroku.scale("web", 2);
    let second = shop.start(&[]);
    second.wait_for_line("has no slug");
    let scaled = second.wait_up(&["web.1", "web.2"]);
    assert_eq!(before[0], scaled[0]);
    second.kill();

    // Nor can this one, as only the driver knows.
    shop.heroku.deploy_image(&[("web", "/cnb/process/web")]);
    shop.heroku.scale("web", 3);
    let third = shop.start(&[]);
    third.wait_releases(&["v4 rejected", "v2 current"]);
    assert_eq!(third.wait_up(&["web.1", "web.2", "web.3"])[..2], scaled);
    third.interrupt();
}

#[test]
fn what_cannot_be_scaled_is_told_once_and_holds_up_nothing() {
    let shop = Shop::deployed();
    shop.heroku
        .deploy(&[("web", &web("")), ("cron", " "), ("tick", "exec sleep 9")]);
    let hsup = shop.start(&[]);
    hsup.wait_up(&["web.1"]);
    shop.heroku.scale("cron", 1);
    shop.heroku.scale("tick", 20_000);
    shop.heroku.scale("web", 2);
    hsup.wait_up(&["web.1", "web.2"]);
    shop.wait_looks(&hsup);
    let said = hsup.log();
    for warning in [
        "Heroku wants 1 dyno of `cron`, for which it has no command",
        "Heroku wants 20000 dynos of `tick`, which stays as it was",
    ] {
        assert_eq!(said.matches(warning).count(), 1, "{said}");
    }
    hsup.wait_releases(&["v3 current"]);
    hsup.interrupt();
}

#[test]
fn what_runs_is_scaled_while_heroku_cannot_say_what_is_deployed() {
    let shop = Shop::deployed();
    let hsup = shop.start(&[]);
    hsup.wait_up(&["web.1"]);
    shop.heroku.fail("/releases", Fault::status(503));
    shop.heroku.scale("web", 2);
    hsup.wait_up(&["web.1", "web.2"]);
    hsup.interrupt();
}
