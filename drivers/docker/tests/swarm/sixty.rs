//! Sixty dynos on three machines, through all that a machine may go through.

use super::{
    app::{App, WEB, WORKER},
    cluster::Cluster,
};

const QUANTITY: usize = 60;

#[test]
#[ignore = "needs root, dockerd, docker-registry, and minutes"]
fn sixty_dynos_outlive_a_drain_and_a_kill() {
    let mut cluster = Cluster::start(1);
    let watch = cluster.watch();
    let app = App::start(&cluster, 0);
    app.release(1, &[("web", WEB, 30), ("worker", WORKER, 30)]);
    app.wait_up(1, QUANTITY);
    assert_eq!(cluster.spread(), [20, 20, 20]);

    cluster.make(0, 1, "drain");
    app.wait_for("all dynos on two machines", || {
        (cluster.spread() == [30, 0, 30]).then_some(())
    });
    app.wait_up(1, QUANTITY);
    watch.no_twins();

    cluster.make(0, 1, "active");
    // Its dynos run on, and are replaced.
    watch.is_cut_off(2);
    cluster.kill(2);
    cluster.wait_state(0, 2, "down");
    app.wait_for("all dynos on two other machines", || {
        (cluster.spread() == [30, 30, 0]).then_some(())
    });
    let held = app.wait_up(1, QUANTITY);
    watch.no_twins();

    cluster.start_again(2);
    cluster.wait_state(0, 2, "ready");
    assert_eq!(cluster.running(2), []);
    assert_eq!(app.wait_up(1, QUANTITY), held);
    assert_eq!(cluster.spread(), [30, 30, 0]);
    watch.no_twins();
    app.interrupt();
    assert_eq!(cluster.services(0).as_deref(), Some(""));
}
