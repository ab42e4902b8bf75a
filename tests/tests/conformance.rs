//! The simple driver keeps every rule of the driver protocol.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{env, path::PathBuf, process::Command};

use hsup_proto::driver::Capability;
use hsup_tests::conformance::{Case, Config, Need, run};

/// The simple driver's binary: from `HSUP_BIN_DIR` where that is set, else built now.
#[expect(
    clippy::disallowed_methods,
    reason = "cargo builds the driver under test: it is neither a dyno nor a driver"
)]
fn simple_driver() -> PathBuf {
    const NAME: &str = "hsup-driver-simple";
    if let Some(dir) = env::var_os("HSUP_BIN_DIR") {
        return PathBuf::from(dir).join(NAME);
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", NAME])
        .status()
        .unwrap();
    assert!(built.success(), "cargo build --package {NAME}: {built}");
    // This test is in target/PROFILE/deps.
    let own = env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join(NAME)
}

/// What the simple driver offers.
const OFFERED: [Capability; 4] = [
    Capability::StdioFifo,
    Capability::Signal,
    Capability::Stats,
    Capability::Attach,
];

/// Whether a case is about what the simple driver offers, or does not.
fn is_meant(case: &Case) -> bool {
    // It runs as the user who calls it, and its dynos end with it.
    let of_others = |need: &Need| matches!(need, Need::Outlives | Need::Exact | Need::Peer);
    case.is_about(&OFFERED) && !case.needs.iter().any(of_others)
}

#[test]
fn the_simple_driver_passes_every_case() {
    let driver = simple_driver();
    let quoted = driver.display().to_string().replace('\'', r"'\''");
    let report = run(&Config::exec(format!("'{quoted}'"))).unwrap();
    report.assert_passed(is_meant);
    assert_eq!(
        report.summary().split(" — ").next(),
        Some("core · durability NONE · stdio_fifo · signal · stats · attach")
    );
}
