//! The simple driver keeps every rule of the driver protocol.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{env, path::PathBuf, process::Command};

use hsup_proto::driver::Capability;
use hsup_tests::conformance::{CaseResult, Config, Need, Verdict, cases, run};

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
fn is_meant(result: &CaseResult) -> bool {
    let all = cases();
    let case = all
        .iter()
        .find(|case| (case.chapter, case.name) == (result.chapter, result.name));
    case.unwrap().needs.iter().all(|need| match need {
        Need::Has(capability) => OFFERED.contains(capability),
        Need::Lacks(capability) => !OFFERED.contains(capability),
        // It runs as the user who calls it, and its dynos end with it.
        Need::Outlives | Need::Exact | Need::Peer => false,
        _ => true,
    })
}

#[test]
fn the_simple_driver_passes_every_case() {
    let driver = simple_driver();
    let quoted = driver.display().to_string().replace('\'', r"'\''");
    let report = run(&Config::exec(format!("'{quoted}'"))).unwrap();
    let failures: Vec<_> = report
        .failures()
        .map(|(result, failure)| {
            let (chapter, name, rule) = (result.chapter, result.name, result.rule);
            format!("{chapter}: {name}\n  {rule}\n  {failure}\n")
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.concat());
    let not_run: Vec<_> = report
        .results
        .iter()
        .filter(|result| is_meant(result) && result.verdict != Verdict::Passed)
        .collect();
    assert!(not_run.is_empty(), "{not_run:?}");
    assert_eq!(
        report.summary().split(" — ").next(),
        Some("core · durability NONE · stdio_fifo · signal · stats · attach")
    );
}
