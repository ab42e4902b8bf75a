//! Managers that are lost: the leader, the driver's own, and more than the others can spare.

use super::{
    app::{App, WEB, WORKER},
    cluster::{Cluster, name},
};

const PROCESSES: [(&str, &str, usize); 2] = [("web", WEB, 3), ("worker", WORKER, 3)];

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn another_leader_finds_all_dynos() {
    let mut cluster = Cluster::start(3);
    let watch = cluster.watch();
    let mut app = App::start(&cluster, 1);
    app.release(1, &PROCESSES);
    let before = app.wait_up(1, 6);
    assert_eq!(cluster.leader(1), Some(name(0)));
    let on_leader = cluster.running(0);
    // Its dynos run on, and are replaced.
    cluster.wait_for("a look at it", || watch.has_seen(0).then_some(()));
    watch.is_cut_off(0);
    cluster.kill(0);
    cluster.wait_for("another leader", || {
        cluster.leader(1).filter(|leader| *leader != name(0))
    });
    cluster.wait_state(1, 0, "down");
    let after = app.wait_for("others in place of the leader's dynos", || {
        let up = app.up(1);
        let is_new = |name: &String| up.get(name).is_some_and(|id| *id != before[name]);
        (up.len() == 6 && on_leader.iter().all(|dyno| is_new(&dyno.name))).then_some(up)
    });
    let kept = before.iter().filter(|(name, id)| after[*name] == **id);
    assert_eq!(kept.count(), 6 - on_leader.len());
    // A driver that begins now finds the same.
    app.replace_driver();
    app.wait_for("a driver that is ready", || {
        app.is_driver_ready().then_some(())
    });
    assert_eq!(app.wait_up(1, 6), after);
    cluster.start_again(0);
    cluster.wait_state(1, 0, "ready");
    assert_eq!(app.wait_up(1, 6), after);
    watch.no_twins();
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn a_manager_that_is_back_finds_all_dynos() {
    let mut cluster = Cluster::start(1);
    let watch = cluster.watch();
    let app = App::start(&cluster, 0);
    app.release(1, &PROCESSES);
    let before = app.wait_up(1, 6);
    let lost = cluster.running(0);
    cluster.kill(0);
    app.wait_for("a driver that is not ready", || {
        (!app.is_driver_ready()).then_some(())
    });
    cluster.start_again(0);
    app.wait_for("a driver that is ready", || {
        app.is_driver_ready().then_some(())
    });
    let after = app.wait_for("others in place of the manager's dynos", || {
        let up = app.up(1);
        let is_new = |name: &String| up.get(name).is_some_and(|id| *id != before[name]);
        (up.len() == 6 && lost.iter().all(|dyno| is_new(&dyno.name))).then_some(up)
    });
    // What ran on the others runs on.
    let kept = before.iter().filter(|(name, id)| after[*name] == **id);
    assert_eq!(kept.count(), 6 - lost.len());
    watch.no_twins();
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn without_a_quorum_dynos_go_on() {
    let cluster = Cluster::start(3);
    let watch = cluster.watch();
    let app = App::start(&cluster, 2);
    app.release(1, &PROCESSES);
    let before = app.wait_up(1, 6);
    let own = cluster.running(2);
    // The machines stay, and their dynos with them.
    for number in [0, 1] {
        watch.is_cut_off(number);
        cluster.network.cut(number);
    }
    app.wait_for("a driver that is not ready", || {
        (!app.is_driver_ready()).then_some(())
    });
    assert_eq!(cluster.running(2), own);
    assert_eq!(cluster.spread(), [2, 2, 2]);
    for number in [0, 1] {
        cluster.network.mend(number);
    }
    app.wait_for("a driver that is ready", || {
        app.is_driver_ready().then_some(())
    });
    // Whether the new leader has called a machine down meanwhile is for it to say.
    let after = app.wait_up(1, 6);
    for dyno in &own {
        assert_eq!(after[&dyno.name], before[&dyno.name]);
    }
    cluster.wait_for("six dynos and no more", || {
        (cluster.spread().iter().sum::<usize>() == 6).then_some(())
    });
    app.ctl_says(&["scale", "worker=4"]);
    app.wait_up(1, 7);
    watch.no_twins();
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn what_a_leader_without_a_quorum_took_in_has_no_twin() {
    let cluster = Cluster::start(3);
    let watch = cluster.watch();
    let app = App::start(&cluster, 0);
    app.release(1, &PROCESSES);
    app.wait_up(1, 6);
    assert_eq!(cluster.leader(0), Some(name(0)));
    for number in [1, 2] {
        watch.is_cut_off(number);
        cluster.network.cut(number);
    }
    // It does not know yet that it leads nobody, and writes down what it cannot answer for.
    app.ctl_says(&["scale", "worker=9"]);
    app.wait_for("a driver that is not ready", || {
        (!app.is_driver_ready()).then_some(())
    });
    // Most of them are not wanted any more when it can.
    app.ctl_says(&["scale", "worker=4"]);
    // With one of the others it leads again, for that one knows less.
    cluster.network.mend(1);
    cluster.wait_for("the leader of before", || {
        (cluster.leader(0)? == name(0)).then_some(())
    });
    cluster.network.mend(2);
    cluster.wait_state(0, 2, "ready");
    app.wait_up(1, 7);
    cluster.wait_for("a service for each dyno and no more", || {
        (cluster.services(0)?.lines().count() == 7).then_some(())
    });
    cluster.wait_for("seven dynos and no more", || {
        (cluster.spread().iter().sum::<usize>() == 7).then_some(())
    });
    watch.no_twins();
    app.interrupt();
}
