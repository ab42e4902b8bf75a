//! Machines that are drained, killed, switched off or cut off, and come back.

use serde_json::Value;

use super::{
    app::{App, WEB, WORKER},
    cluster::Cluster,
};

/// A dozen, of which each machine has four.
const PROCESSES: [(&str, &str, usize); 2] = [("web", WEB, 6), ("worker", WORKER, 6)];

fn begin(managers: usize) -> (Cluster, App) {
    let cluster = Cluster::start(managers);
    let app = App::start(&cluster, 0);
    app.release(1, &PROCESSES);
    app.wait_up(1, 12);
    assert_eq!(cluster.spread(), [4, 4, 4]);
    (cluster, app)
}

/// Waits until the machine has no dynos, and the others have all.
fn wait_elsewhere(cluster: &Cluster, app: &App, number: usize) {
    let mut expected = [6; 3];
    expected[number] = 0;
    app.wait_for("the dynos elsewhere", || {
        (cluster.spread() == expected).then_some(())
    });
    app.wait_up(1, 12);
}

/// How many dynos of the app are others than `before`: each of them was told as lost, and once.
fn lost(app: &App, before: &[Value]) -> usize {
    let after = app.dynos();
    let moved = after.iter().filter_map(|dyno| {
        let old = before.iter().find(|old| old["name"] == dyno["name"])?;
        (old["dyno_id"] != dyno["dyno_id"]).then_some((old, dyno))
    });
    let told = moved.inspect(|(old, dyno)| {
        assert!(dyno["last_exit"]["lost"].is_string(), "{dyno}");
        let restarts = |dyno: &Value| dyno["restarts"].as_u64().unwrap();
        assert_eq!(restarts(dyno), restarts(old) + 1, "{dyno}");
    });
    told.count()
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn the_dynos_of_a_drained_machine_go_on_elsewhere() {
    let (cluster, app) = begin(1);
    let watch = cluster.watch();
    let before = app.dynos();
    let stayed = [cluster.running(0), cluster.running(2)];
    cluster.make(0, 1, "drain");
    wait_elsewhere(&cluster, &app, 1);
    // The others are where they were.
    for (number, dynos) in [0, 2].into_iter().zip(&stayed) {
        let now = cluster.running(number);
        assert!(dynos.iter().all(|dyno| now.contains(dyno)), "{now:?}");
    }
    assert_eq!(lost(&app, &before), 4);
    // What is there again gets the next ones.
    cluster.make(0, 1, "active");
    app.ctl_says(&["scale", "worker=10"]);
    app.wait_up(1, 16);
    assert_eq!(cluster.spread(), [6, 4, 6]);
    watch.no_twins();
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn a_killed_engine_comes_back_without_its_dynos() {
    let (mut cluster, app) = begin(1);
    let watch = cluster.watch();
    cluster.wait_for("a look at it", || watch.has_seen(1).then_some(()));
    let before = app.dynos();
    // Its dynos run on, and are replaced.
    watch.is_cut_off(1);
    cluster.kill(1);
    cluster.wait_state(0, 1, "down");
    wait_elsewhere(&cluster, &app, 1);
    assert_eq!(lost(&app, &before), 4);
    let held = app.up(1);
    cluster.start_again(1);
    cluster.wait_state(0, 1, "ready");
    // Whatever ran there was ended before the engine answered, and nothing is begun again.
    assert_eq!(cluster.running(1), []);
    app.ctl_says(&["scale", "worker=7"]);
    let after = app.wait_up(1, 13);
    assert!(held.iter().all(|(name, id)| after[name] == *id));
    assert_eq!(cluster.spread(), [6, 1, 6]);
    watch.no_twins();
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn a_machine_that_was_switched_off_comes_back_without_its_dynos() {
    let (mut cluster, app) = begin(1);
    let watch = cluster.watch();
    let before = app.dynos();
    cluster.switch_off(2);
    cluster.wait_state(0, 2, "down");
    wait_elsewhere(&cluster, &app, 2);
    assert_eq!(lost(&app, &before), 4);
    let held = app.up(1);
    cluster.switch_on(2);
    cluster.wait_state(0, 2, "ready");
    assert_eq!(cluster.running(2), []);
    assert_eq!(app.wait_up(1, 12), held);
    watch.no_twins();
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn an_engine_that_is_back_at_once_has_lost_its_dynos() {
    let (mut cluster, app) = begin(1);
    let watch = cluster.watch();
    let before = app.up(1);
    let lost = cluster.running(1);
    // Before anybody calls it down.
    cluster.kill(1);
    cluster.start_again(1);
    let after = app.wait_for("others in place of the lost dynos", || {
        let up = app.up(1);
        let is_new = |name: &String| up.get(name).is_some_and(|id| *id != before[name]);
        (up.len() == 12 && lost.iter().all(|dyno| is_new(&dyno.name))).then_some(up)
    });
    let kept = before.iter().filter(|(name, id)| after[*name] == **id);
    assert_eq!(kept.count(), 8);
    watch.no_twins();
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn what_was_cut_off_ends_when_it_is_back() {
    let (cluster, app) = begin(1);
    let watch = cluster.watch();
    let there = cluster.running(1);
    // What nobody saw before is not known to have been there.
    cluster.wait_for("a look at it", || watch.has_seen(1).then_some(()));
    watch.is_cut_off(1);
    let before = app.dynos();
    cluster.network.cut(1);
    cluster.wait_state(0, 1, "down");
    app.wait_for("others in place of the dynos that are cut off", || {
        let [first, _, last] = cluster.spread();
        (first == 6 && last == 6).then_some(())
    });
    let held = app.wait_up(1, 12);
    assert_eq!(lost(&app, &before), 4);
    // Nobody can tell them to end.
    assert_eq!(cluster.running(1), there);
    cluster.network.mend(1);
    cluster.wait_for("no twin of what runs elsewhere", || {
        (cluster.running(1) == []).then_some(())
    });
    cluster.wait_state(0, 1, "ready");
    assert_eq!(app.wait_up(1, 12), held);
    watch.no_twins();
    app.interrupt();
}
