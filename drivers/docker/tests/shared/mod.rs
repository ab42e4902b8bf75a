//! Engines of the tests' own, for all test programs of the driver.

mod engine;
mod namespaces;

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

pub(crate) use engine::Engine;
pub(crate) use namespaces::{Namespaces, signal};

#[expect(clippy::disallowed_methods, reason = "tools, and what is under test")]
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// What a command that must succeed prints.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
