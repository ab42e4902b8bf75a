//! Builds `hsup-init` for a driver that carries it within itself, and tells where it is
//! (`HSUP_INIT`): the build script of those drivers, not of this package.
//!
//! A stack image has no library that it could rely on, so it is static; and because flags for
//! that must not reach build scripts, it has a build of its own: a cargo within cargo, for an
//! explicit target, in a target folder of its own, hence without a lock that the outer one holds.
//! Nothing that is meant for the outer build gets in: no flags, no wrapper, no profile.

#![expect(clippy::print_stdout, reason = "so a build script speaks to cargo")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const NAME: &str = "hsup-init";
/// Static, and at a fixed address: nothing is relocated, so all pages are shared between dynos.
const FLAGS: [&str; 2] = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];
/// What the workspace's release profile does not say already.
const PROFILE: [&str; 2] = [
    "profile.release.opt-level=\"s\"",
    "profile.release.panic=\"abort\"",
];
/// What of the outer cargo's environment the inner one must have: where its home is, with how
/// many others it shares the processors, and the compiler.
const KEPT: [&str; 3] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "RUSTC"];
/// The program header of a file that asks for a loader.
const PT_INTERP: u32 = 3;

fn main() {
    let package = variable("CARGO_MANIFEST_DIR").join("../init");
    let manifest = package.join("Cargo.toml");
    for input in ["Cargo.toml", "src"] {
        println!("cargo::rerun-if-changed={}", package.join(input).display());
    }
    // This file, of which a driver's package knows nothing but its path.
    println!("cargo::rerun-if-changed=../init/embed.rs");
    // The release profile, and the version of the one dependency.
    println!("cargo::rerun-if-changed=../../Cargo.toml");
    println!("cargo::rerun-if-changed=../../Cargo.lock");

    let target = env::var("TARGET").expect("cargo sets TARGET");
    let folder = variable("OUT_DIR").join("init");
    build(&manifest, &target, &folder);
    let program = folder.join(&target).join("release").join(NAME);
    check(&program);
    println!("cargo::rustc-env=HSUP_INIT={}", program.display());
}

fn variable(name: &str) -> PathBuf {
    env::var_os(name)
        .unwrap_or_else(|| panic!("cargo sets {name}"))
        .into()
}

#[expect(clippy::disallowed_methods, reason = "cargo is no dyno")]
fn build(manifest: &Path, target: &str, folder: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| is_outer(name, target)) {
            cargo.env_remove(name);
        }
    }
    // Goes before all other ways in which flags may be given.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    cargo
        .args(["build", "--release", "--locked", "--offline", "--quiet"])
        .arg("--manifest-path")
        .arg(manifest)
        .args(["--bin", NAME, "--target", target])
        .arg("--target-dir")
        .arg(folder);
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("failed to start cargo for {NAME}: {error}"));
    assert!(
        status.success(),
        "failed to build {NAME}, which needs the target {target} and a static C library \
         (of glibc: Debian's libc6-dev has it, Fedora's glibc-static): {status}"
    );
}

/// Whether a variable is about the outer build, and not about this machine.
fn is_outer(name: &str, target: &str) -> bool {
    let about_target = format!(
        "CARGO_TARGET_{}_",
        target.to_uppercase().replace(['-', '.'], "_")
    );
    let about_machine = KEPT.contains(&name)
        || ["LINKER", "RUNNER"]
            .iter()
            .any(|what| name.strip_prefix(&about_target) == Some(what))
        || [
            "CARGO_HTTP_",
            "CARGO_NET_",
            "CARGO_REGISTRIES_",
            "CARGO_REGISTRY_",
            "CARGO_SOURCE_",
        ]
        .iter()
        .any(|family| name.starts_with(family));
    let about_build = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "CLIPPY_", "DEP_"]
        .iter()
        .any(|family| name.starts_with(family))
        || matches!(
            name,
            "OPT_LEVEL" | "DEBUG" | "PROFILE" | "NUM_JOBS" | "OUT_DIR" | "TARGET" | "HOST"
        );
    about_build && !about_machine
}

/// A program that asks for a loader would end at once in every stack without that one.
fn check(program: &Path) {
    let bytes = fs::read(program)
        .unwrap_or_else(|error| panic!("failed to read `{}`: {error}", program.display()));
    let headers = program_headers(&bytes)
        .unwrap_or_else(|| panic!("`{}` is no 64-bit ELF program", program.display()));
    assert!(
        !headers.contains(&PT_INTERP),
        "`{}` is not static: it asks for a loader",
        program.display()
    );
}

/// The kinds of the program headers of an ELF file of 64 bits, of either byte order.
fn program_headers(elf: &[u8]) -> Option<Vec<u32>> {
    let (class, order) = (*elf.get(4)?, *elf.get(5)?);
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at + length)?.iter();
        let add = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
        Some(match order {
            1 => bytes.rev().fold(0, add),
            _ => bytes.fold(0, add),
        })
    };
    if !elf.starts_with(b"\x7fELF") || class != 2 {
        return None;
    }
    let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    (0..count)
        .map(|index| u32::try_from(number(start + index * size, 4)?).ok())
        .collect()
}
