//! The way to Heroku, on which a third of all requests goes wrong.

use hsup_tests::fake::faulty_proxy::FaultyProxy;

use super::*;

#[test]
fn what_is_deployed_arrives_whole_over_a_way_that_is_bad() {
    for seed in [1, 20_261_128] {
        let shop = Shop::new();
        let way = FaultyProxy::start(shop.heroku.url(), seed);
        shop.heroku.is_behind(&way.url());
        shop.app.faults("is fetching\n");
        let deploy = |name: &str, workers| {
            shop.heroku.set_config(&[("NAME", name)]);
            let line = "echo \"this is $NAME of $OF\"; exec sleep 1000";
            let version = shop.heroku.deploy(&[("web", &web("")), ("worker", line)]);
            shop.heroku.scale("worker", workers);
            version
        };
        shop.heroku.set_config(&[("OF", "three")]);
        deploy("one", 1);
        let mut command = shop.command("start");
        command
            .env("HEROKU_HOST", way.url())
            .args(["--grace", "2s", "--boot-timeout", "30s"])
            .arg("-d")
            .arg(binaries().join("hsup-driver-fault"));
        let hsup = shop.app.running(command);
        hsup.wait_up(&["web.1", "worker.1"]);
        hsup.wait_for_line("worker.1 | this is one of three");
        deploy("two", 2);
        hsup.wait_for_line("worker.2 | this is two of three");
        let last = deploy("three", 1);
        hsup.wait_for_line(&format!("Release v{last} is current"));
        hsup.wait_up(&["web.1", "worker.1"]);
        hsup.wait_for_line("worker.1 | this is three of three");
        hsup.wait_for("the worst", || way.has_done_its_worst().then_some(()));
        hsup.wait_for_line("what runs goes on");
        let said = hsup.log();
        let is_bad = |line: &str| line.contains("rejected") && !line.contains("overtaken");
        assert!(!said.lines().any(is_bad), "{said}");
        hsup.interrupt();
    }
}
