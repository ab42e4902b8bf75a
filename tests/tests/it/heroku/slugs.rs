//! Slugs, whose URLs are good for a while only.

use super::*;

fn fetching(shop: &Shop) -> Running<'_> {
    let driver = binaries().join("hsup-driver-fault");
    shop.start(&["-d", driver.to_str().unwrap()])
}

#[test]
fn a_slug_is_located_right_before_it_is_fetched() {
    let shop = Shop::deployed();
    shop.app.faults("is fetching\nbuild unavailable not yet\n");
    let hsup = fetching(&shop);
    hsup.wait_for("a build", || {
        (!shop.app.calls("build").is_empty()).then_some(())
    });
    // What the source has seen is good no more, and what is good now is not what it has seen.
    shop.heroku.expire_urls();
    shop.app.faults("is fetching\n");
    hsup.wait_up(&["web.1"]);
    assert!(shop.heroku.count("GET /blobs/5100-0001 200") > 0);
    assert_eq!(shop.heroku.count("GET /blobs/5100-0001 403"), 0);
    hsup.interrupt();
}

#[test]
fn a_url_that_is_refused_is_replaced_by_a_fresh_one() {
    let shop = Shop::deployed();
    // The first answer comes when the URL of its build has been expired.
    shop.app
        .faults("is fetching\nonce build failed-precondition slug_url is refused: HTTP 403\n");
    let hsup = fetching(&shop);
    hsup.wait_up(&["web.1"]);
    assert_eq!(shop.app.calls("build").len(), 2);
    hsup.interrupt();
}

#[test]
fn a_slug_that_is_refused_again_and_again_is_no_release() {
    let shop = Shop::deployed();
    shop.app.faults("is fetching\n");
    let hsup = fetching(&shop);
    let before = hsup.wait_up(&["web.1"]);
    shop.heroku.fail("/blobs/", Fault::status(403));
    shop.deploy("");
    hsup.wait_releases(&["v3 rejected", "v2 current"]);
    hsup.wait_for_line("slug_url is refused: HTTP 403");
    let builds = shop.app.calls("build");
    assert_eq!(builds.iter().filter(|call| call.contains("v3")).count(), 3);
    assert_eq!(hsup.wait_up(&["web.1"]), before);
    hsup.interrupt();
}

#[test]
fn a_release_whose_slug_cannot_be_located_for_now_is_waited_for() {
    let shop = Shop::deployed();
    shop.app.faults("is fetching\n");
    let hsup = fetching(&shop);
    let before = hsup.wait_up(&["web.1"]);
    shop.app.faults("is fetching\nbuild unavailable not yet\n");
    shop.deploy("");
    let of_v3 = || {
        shop.app
            .calls("build")
            .iter()
            .any(|call| call.contains("v3"))
    };
    hsup.wait_for("its build", || of_v3().then_some(()));
    shop.heroku.fail("/slugs/", Fault::status(503));
    shop.app.faults("is fetching\n");
    let asked = || shop.heroku.count("/slugs/5100-0002 503");
    hsup.wait_for("being asked", || (asked() > 1).then_some(()));
    assert_eq!(hsup.wait_up(&["web.1"]), before);
    shop.heroku.heal();
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    hsup.interrupt();
}
