//! Links the programs at fixed addresses, where the C library is glibc, and tells them of which
//! commit they are.
//!
//! A position-independent program relocates itself whenever it starts: a quarter of a
//! millisecond and 150 KiB of pages that no two processes share, and `hsup run` starts two.
//! Neither program runs with more privileges than its user, who gives up address
//! randomisation of the program itself; libraries, heap and stack keep theirs.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// How much of a commit's name is shown.
const SHOWN: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    let version = env!("CARGO_PKG_VERSION");
    let version = match commit() {
        Some(commit) => format!("{version} ({commit})"),
        None => version.to_owned(),
    };
    println!("cargo::rustc-env=HSUP_VERSION={version}");
}

/// The commit that `HSUP_COMMIT` names, for whoever builds from an archive, or that of the
/// checkout. Without either there is none to tell.
fn commit() -> Option<String> {
    println!("cargo::rerun-if-env-changed=HSUP_COMMIT");
    if let Ok(given) = env::var("HSUP_COMMIT") {
        return Some(given).filter(|given| !given.is_empty());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    // The sources may be unpacked within a checkout of something else, whose commit is not ours.
    let checkout = root.join(".git");
    if !checkout.exists() {
        return None;
    }
    let Some((mut commit, log)) = head(root) else {
        println!("cargo::warning=git does not tell the commit, and `hsup --version` will not");
        // What is not there has always changed: git is asked again by the next build.
        println!("cargo::rerun-if-changed=no-git");
        return None;
    };
    // Each commit and each checkout is one more line of it.
    let changes = if log.exists() { log } else { checkout };
    println!("cargo::rerun-if-changed={}", changes.display());
    commit.truncate(SHOWN);
    Some(commit)
}

/// The commit that is checked out, and the file that has a line for each time that one was.
fn head(root: &Path) -> Option<(String, PathBuf)> {
    let log = git(root, &["rev-parse", "--git-path", "logs/HEAD"])?;
    Some((git(root, &["rev-parse", "HEAD"])?, root.join(log)))
}

#[expect(clippy::disallowed_methods, reason = "git is no dyno")]
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
