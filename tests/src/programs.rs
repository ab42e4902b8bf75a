//! Programs that a test makes, for others to execute.
//!
//! A process of its own writes them. What a test has open for writing, a process that another test
//! spawns has too until its `exec`, and a program that anybody has open for writing cannot be
//! executed: whoever was told to execute it would say so, and not try again.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    ffi::OsStr,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::deadline;

/// Makes a program of this text.
pub fn script(path: &Path, text: &str) {
    install("/dev/stdin".as_ref(), path, text);
}

/// Makes a copy of a program.
pub fn copy(from: &Path, to: &Path) {
    install(from.as_os_str(), to, "");
}

#[expect(clippy::disallowed_methods, reason = "neither a dyno nor a driver")]
fn install(from: &OsStr, to: &Path, input: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(from).arg(to);
    let mut child = deadline::spawn(install.stdin(Stdio::piped()));
    // Of a copy nobody reads it.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let status = deadline::end(&mut child);
    assert!(status.success(), "{} was not made", to.display());
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "neither a dyno nor a driver")]
    fn code(program: &Path) -> Option<i32> {
        Command::new(program).status().unwrap().code()
    }

    #[test]
    fn what_was_made_can_be_executed_while_others_spawn() {
        let folder = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            for name in ["one", "two", "three", "four"] {
                let path = folder.path().join(name);
                scope.spawn(move || {
                    for round in 0..20 {
                        script(&path, &format!("#!/bin/sh\nexit {round}\n"));
                        assert_eq!(code(&path), Some(round));
                    }
                });
            }
        });
        let copied = folder.path().join("true");
        copy("/bin/true".as_ref(), &copied);
        assert_eq!(code(&copied), Some(0));
    }
}
