//! What cannot be, and what is said of it.

use serde_json::json;

use super::{
    app::{App, WEB, WORKER},
    cluster::Cluster,
};

/// Waits until this release is rejected; what is said of it.
fn rejected(app: &App, version: u32) -> String {
    app.wait_for(&format!("v{version} rejected"), || {
        // hsup may not know of it yet.
        let shown = app.ctl(&["releases", &format!("v{version}")]).stdout;
        let shown = String::from_utf8(shown).unwrap();
        shown.contains("rejected").then_some(shown)
    })
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn a_release_that_no_machine_has_room_for_is_rejected() {
    let cluster = Cluster::start(1);
    let app = App::start(&cluster, 0);
    app.release(1, &[("worker", WORKER, 3)]);
    let good = app.wait_up(1, 3);
    // A tebibyte.
    let limits = json!({"Limits": {"MemoryBytes": 1_u64 << 40}});
    app.release_with(2, &[("worker", WORKER, 3)], &limits);
    let said = rejected(&app, 2);
    assert!(said.contains("insufficient resources on 3 nodes"), "{said}");
    assert_eq!(app.wait_up(1, 3), good);
    cluster.wait_for("the services of the good release alone", || {
        (cluster.services(0)?.lines().count() == 3).then_some(())
    });
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn an_image_that_is_gone_from_the_registry_is_built_again() {
    let cluster = Cluster::start(1);
    let app = App::start(&cluster, 0);
    app.release(1, &[("worker", WORKER, 1)]);
    app.wait_up(1, 1);
    cluster.registry.forget();
    // Two of them on machines that do not have it.
    app.ctl_says(&["scale", "worker=3"]);
    app.wait_up(1, 3);
    assert_eq!(cluster.spread(), [1, 1, 1]);
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn a_release_waits_for_its_registry_and_dynos_go_on() {
    let mut cluster = Cluster::start(1);
    let app = App::start(&cluster, 0);
    app.release(1, &[("web", WEB, 3)]);
    let good = app.wait_up(1, 3);
    cluster.registry.stop();
    app.change_slug("v2");
    app.release(2, &[("web", WEB, 3)]);
    app.wait_line("It cannot be built yet: failed to push the image");
    assert_eq!(app.wait_up(1, 3), good);
    cluster.registry.start_again(&cluster.network);
    app.wait_up(2, 3);
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn an_engine_that_is_no_manager_runs_nothing() {
    let cluster = Cluster::start(1);
    let app = App::start(&cluster, 1);
    app.release(1, &[("worker", WORKER, 1)]);
    app.wait_line("the engine is no manager of a Swarm");
    assert_eq!(cluster.services(0).as_deref(), Some(""));
    assert_eq!(cluster.spread(), [0; 3]);
    app.interrupt();
}
