//! A release takes another one's place, machine by machine.

use super::{
    app::{App, WEB, WORKER},
    cluster::Cluster,
};

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn a_release_is_rolled_out_over_all_machines() {
    let cluster = Cluster::start(1);
    let watch = cluster.watch();
    let app = App::start(&cluster, 0);
    app.release(1, &[("web", WEB, 6), ("worker", WORKER, 3)]);
    let old = app.wait_up(1, 9);
    app.release(2, &[("web", WEB, 6), ("worker", WORKER, 3)]);
    let new = app.wait_up(2, 9);
    assert!(
        new.values()
            .all(|id| !old.values().any(|other| other == id))
    );
    cluster.wait_for("the new dynos alone, on all machines", || {
        let spread = cluster.spread();
        (spread.iter().sum::<usize>() == 9 && !spread.contains(&0)).then_some(())
    });
    // One that never comes up leaves the good one where it is.
    app.release(3, &[("web", "exit 3", 6), ("worker", WORKER, 3)]);
    app.wait_for("v3 rejected", || {
        let releases = app.ctl_says(&["releases"]);
        releases
            .lines()
            .any(|line| line.starts_with("v3") && line.contains("rejected"))
            .then_some(())
    });
    assert_eq!(app.wait_up(2, 9).len(), 9);
    watch.no_twins();
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn old_releases_leave_the_registry() {
    let cluster = Cluster::start(1);
    let app = App::start(&cluster, 0);
    for version in 1..=5 {
        app.change_slug(&version.to_string());
        app.release(version, &[("worker", WORKER, 1)]);
        app.wait_up(version, 1);
    }
    let tags = cluster.registry.tags();
    let releases: Vec<_> = tags.iter().map(|tag| &tag[..3]).collect();
    assert_eq!(releases, ["v3-", "v4-", "v5-"]);
    app.interrupt();
}
