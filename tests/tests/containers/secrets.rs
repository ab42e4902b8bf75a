//! What a dyno is told is nobody else's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hsup_proto::driver::StartRequest;

use crate::{caller::Caller, host::Host};

const SECRET: &str = "hunter2-of-the-database";

/// The files below a folder that have the secret in them; links lead elsewhere.
fn telling(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(telling(&path));
        } else if kind.is_file() && tells(&path) {
            found.push(path);
        }
    }
    found
}

/// Whether a file has the secret in it. It may be gone.
fn tells(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    let mut parts = bytes.windows(SECRET.len());
    parts.any(|part| part == SECRET.as_bytes())
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_a_dyno_is_told_is_in_no_log_in_no_file_and_in_no_argument() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let secret = |request: &mut StartRequest| {
        let told = ("DATABASE_URL".to_owned(), SECRET.to_owned());
        request.env.extend([told]);
    };
    let line = "echo ${#DATABASE_URL}; read _";
    let mut dyno = caller.try_start("a", line, secret).unwrap();
    dyno.wait_for(&format!("{}\n", SECRET.len()));
    // One that cannot be made, whose error tells of what it was to be.
    let refused = caller.try_start("b", line, |request| {
        secret(request);
        request.env.insert("LONG".to_owned(), "x".repeat(200_000));
    });
    let refused = refused.err().unwrap();
    assert!(!refused.message().contains(SECRET), "{refused}");
    let log = driver.log();
    assert!(!log.contains(SECRET), "{log}");
    for folder in [host.path("work"), host.run_dir()] {
        assert_eq!(telling(&folder), [""; 0].map(PathBuf::from));
    }
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut arguments = processes.map(|process| process.path().join("cmdline"));
    assert!(!arguments.any(|file| tells(&file)));
    dyno.end();
    driver.end();
    host.is_clean();
}
