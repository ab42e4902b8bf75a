//! The simple driver keeps every rule of the driver protocol.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{env, path::PathBuf, process::Command};

use hsup_tests::conformance::{Config, Verdict, run};

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
    // It offers everything but these, so that nothing else may be skipped.
    let unoffered = [
        "wait: a dyno that needs more memory than its limit is OOM killed",
        "driver process: an exit while the driver is down is told by the next one",
    ];
    let skipped: Vec<_> = report
        .results
        .iter()
        .filter(|result| matches!(result.verdict, Verdict::Skipped(_)))
        .map(|result| format!("{}: {}", result.chapter, result.name))
        .filter(|title| !unoffered.contains(&title.as_str()))
        .collect();
    assert_eq!(skipped, Vec::<String>::new(), "{}", report.summary());
}
