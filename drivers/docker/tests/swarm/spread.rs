//! Where dynos are placed, and where they are reached.

use std::collections::BTreeSet;

use super::{
    app::{App, WEB, WORKER},
    cluster::{Cluster, name},
};

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn dynos_are_spread_over_the_machines_and_reached_there() {
    let cluster = Cluster::start(1);
    let watch = cluster.watch();
    let app = App::start(&cluster, 0);
    app.release(1, &[("web", WEB, 3), ("worker", WORKER, 3)]);
    app.wait_up(1, 6);
    assert_eq!(cluster.spread(), [2, 2, 2]);
    for web in ["web.1", "web.2", "web.3"] {
        app.wait_for(&format!("the page of {web}"), || {
            app.page(web).then_some(())
        });
    }
    let shown = app.ctl_says(&["ps", "-o", "wide"]);
    let words: BTreeSet<_> = shown.split_whitespace().collect();
    for number in 0..3 {
        assert!(words.contains(&name(number)[..]), "{shown}");
    }
    app.ctl_says(&["scale", "web=6", "worker=0"]);
    app.wait_up(1, 6);
    assert_eq!(cluster.spread(), [2, 2, 2]);
    watch.no_twins();
    app.interrupt();
    assert_eq!(cluster.services(0).as_deref(), Some(""));
    cluster.wait_for("no container", || {
        (cluster.spread() == [0, 0, 0]).then_some(())
    });
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
fn dynos_find_each_other_over_the_network_of_their_app() {
    let cluster = Cluster::start(1);
    let app = App::start(&cluster, 0);
    // Each asks another one, whose address is its own in the app's network, on another machine.
    app.release(1, &[("web", WEB, 3)]);
    app.wait_up(1, 3);
    let address = |number: usize| {
        let container = cluster.says(number, &["ps", "--quiet", "--filter", "label=hsup.dyno_id"]);
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let found = cluster.says(number, &["inspect", "--format", format, &container]);
        let ip = found.split_whitespace().next().map(str::to_owned);
        (container, ip.expect("an address in a network"))
    };
    let (container, _) = address(0);
    for other in [1, 2] {
        let (_, ip) = address(other);
        let line = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {ip} 5000");
        let said = cluster.wait_for("a page over the app's network", || {
            cluster.try_says(0, &["exec", &container, "sh", "-c", &line])
        });
        assert!(said.contains("200 OK"), "{said}");
    }
    app.interrupt();
}

#[test]
#[ignore = "needs root, dockerd and docker-registry"]
#[should_panic(expected = "there are twins")]
fn twins_are_noticed() {
    let cluster = Cluster::start(1);
    let watch = cluster.watch();
    let app = App::start(&cluster, 0);
    app.release(1, &[("worker", WORKER, 3)]);
    app.wait_up(1, 3);
    // Another container with the labels of a dyno of the first machine.
    let dyno = cluster.running(0).pop().expect("one on each machine");
    let labels = dyno.labels().map(|label| format!("--label={label}"));
    // Of what there is on the second machine for the release.
    let image = cluster.says(1, &["images", "--all", "--quiet"]);
    let image = image.lines().next().expect("an image that was pulled");
    let mut run = vec!["run", "--detach"];
    run.extend(labels.iter().map(String::as_str));
    run.extend(["--entrypoint", "sleep", image, "1000"]);
    cluster.says(1, &run);
    cluster.wait_for("four dynos for three", || {
        (cluster.spread() == [1, 2, 1]).then_some(())
    });
    cluster.wait_for("a watch that has seen both", || {
        watch.has_twins().then_some(())
    });
    watch.no_twins();
}
