//! The libcontainer driver keeps every rule of the driver protocol, those for a driver of root
//! too: for root, and for a user that it serves.

use std::ffi::OsStr;

use hsup_proto::driver::Capability;
use hsup_tests::conformance::{Config, run};

use crate::host::{Host, OPERATOR};

/// What the driver offers.
const OFFERED: [Capability; 7] = [
    Capability::StdioFifo,
    Capability::Signal,
    Capability::Stats,
    Capability::Attach,
    Capability::OwnNetwork,
    Capability::Binds,
    Capability::Limits,
];

/// Needs what a stack of this test has not: something that listens on a port.
const LEFT_OUT: &str = "what listens on PORT in a dyno is reached there";

#[test]
#[ignore = "needs root: it makes containers"]
fn the_libcontainer_driver_passes_every_case() {
    let host = Host::new();
    let mut driver = host.driver_command();
    // Hundreds of dynos at once.
    let last = host.first_uid() + 998;
    driver
        .env("LIBCONTAINER_DYNO_SUBNET", host.wide_subnet())
        .env("LIBCONTAINER_DYNO_UID_MAX", last.to_string());
    let quoted = |text: &OsStr| format!("'{}'", text.to_str().unwrap());
    let mut words = vec!["env".to_owned()];
    for (name, value) in driver.get_envs() {
        words.push(format!(
            "{}={}",
            name.to_str().unwrap(),
            quoted(value.unwrap())
        ));
    }
    words.push(quoted(driver.get_program()));
    words.push(format!("--allow-bind /tmp --allow-uid {OPERATOR}"));
    let mut config = Config::exec(words.join(" "));
    config.as_peer = Some(OPERATOR);
    let report = run(&config).unwrap();
    report.assert_passed(|case| case.name != LEFT_OUT && case.is_about(&OFFERED));
    host.is_clean();
}
