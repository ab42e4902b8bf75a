//! The root file system that all of them run on.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::super::app;

/// Makes one of this machine's busybox and bash, with a program of ours that stamps.
pub(super) fn make(root: &Path) -> Result<()> {
    for folder in ["bin", "etc", "usr/bin"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let busybox = busybox.iter().find(|path| path.exists());
    let busybox = busybox.context("no busybox: install busybox-static")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for name in said(busybox, &["--list"])?.lines() {
        if !["busybox", "bash"].contains(&name) {
            symlink("busybox", root.join("bin").join(name))?;
        }
    }
    add(root, Path::new("/bin/bash"), "bash")?;
    add(root, &app::binary("xtask"), "xtask")
}

/// A program and the libraries that it is linked with.
fn add(root: &Path, program: &Path, name: &str) -> Result<()> {
    fs::copy(program, root.join("bin").join(name))
        .with_context(|| format!("failed to copy {}", program.display()))?;
    let program = program.to_str().context("a path that is not UTF-8")?;
    let libraries = said(Path::new("ldd"), &[program])?;
    for library in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library without a folder")?)?;
        fs::copy(library, to)?;
    }
    Ok(())
}

fn said(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = app::command(program).args(arguments).output();
    let output = output.with_context(|| format!("failed to run {}", program.display()))?;
    ensure!(output.status.success(), "{} failed", program.display());
    Ok(String::from_utf8(output.stdout)?)
}
