//! A short run of `hsup-chaos`. Long ones are made by hand: docs/reliability.md.

use std::{fs, process::Command};

use hsup_tests::{binaries, deadline::poll};

use crate::app::{App, page};

/// Runs so many steps of a seed. How long that takes is the machine's affair: each of its waits
/// has an end of its own.
fn survives(driver: &str, seed: u32, steps: u32) {
    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    let mut chaos = Command::new(binaries().join("hsup-chaos"));
    chaos.args(["--driver", driver]);
    chaos.args(["--seed", &seed.to_string(), "--steps", &steps.to_string()]);
    let output = chaos.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

#[test]
fn a_driver_whose_dynos_die_with_it_and_all_around_it_may_fail() {
    survives("simple", 1, 75);
}

#[test]
fn a_driver_whose_dynos_outlive_it_and_all_around_it_may_fail() {
    survives("durable", 1, 75);
}

#[test]
fn the_clock_of_a_machine_is_set_for_nobody_who_takes_it_for_another() {
    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    let mut chaos = Command::new(binaries().join("hsup-chaos"));
    let output = chaos.args(["--steps", "0", "--clock", "no-such-machine"]);
    let output = output.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    let why = "Error: this machine is not `no-such-machine`, and its clock is everybody's";
    assert_eq!(said.lines().next(), Some(why));
}

#[test]
fn a_dyno_that_has_a_twin_is_noticed() {
    let app = App::empty();
    fs::create_dir_all(app.path("tally/locks")).unwrap();
    let begin = |id: &str, port: u16| {
        let mut tally = app.command("test-tally");
        tally.arg("numbered").arg(app.path("tally"));
        tally.env("HEROKU_DYNO_ID", id).env("DYNO", "web.1");
        tally.env("PORT", port.to_string());
        tally.spawn().unwrap()
    };
    let twins = || fs::read_to_string(app.path("tally/twins")).unwrap_or_default();
    let mut first = begin("web-1-a", app.port);
    // It holds its locks by then.
    poll(|| page(app.port)).unwrap();
    let mut second = begin("web-1-b", app.port + 1);
    let expected = format!("web.1 {}\n", second.id());
    poll(|| (twins() == expected).then_some(())).unwrap();
    for dyno in [&mut first, &mut second] {
        dyno.kill().unwrap();
        dyno.wait().unwrap();
    }
    let mut third = begin("web-1-a", app.port);
    poll(|| page(app.port)).unwrap();
    assert_eq!(twins(), expected);
    third.kill().unwrap();
    third.wait().unwrap();
}
