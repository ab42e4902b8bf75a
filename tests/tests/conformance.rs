//! The simple driver keeps every rule of the driver protocol.

use hsup_proto::driver::Capability;
use hsup_tests::{
    binaries,
    conformance::{Case, Config, Need, run},
};

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
    let driver = binaries().join("hsup-driver-simple");
    let quoted = driver.display().to_string().replace('\'', r"'\''");
    let report = run(&Config::exec(format!("'{quoted}'"))).unwrap();
    report.assert_passed(is_meant);
    assert_eq!(
        report.summary().split(" — ").next(),
        Some("core · durability NONE · stdio_fifo · signal · stats · attach")
    );
}
