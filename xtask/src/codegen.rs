//! Generates `hsup-proto`'s Rust code and its descriptor set from `proto/`.
//!
//! The output is checked in, so that building hsup needs neither `protoc` nor a
//! build script. It lives here and not in the proto crate: a test inside the
//! crate it generates cannot run while the generated code is broken. The test
//! below fails when the checked-in code is stale.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use prost::Message as _;
use protox::prost_reflect::prost_types::FileDescriptorSet;

const PROTOS: &[&str] = &[
    "hsup/control/v1/control.proto",
    "hsup/driver/v1/driver.proto",
];

/// Messages that carry config vars or a person's keystrokes: hsup-proto writes their `Debug`
/// by hand.
const SECRET: &[&str] = &[
    "hsup.driver.v1.Release",
    "hsup.driver.v1.StartRequest",
    "hsup.driver.v1.AttachRequest",
    "hsup.control.v1.ApplyReleaseRequest",
    "hsup.control.v1.PlanReleaseRequest",
];

pub(crate) fn run() -> anyhow::Result<()> {
    generate(&checked_in())
}

/// The protos as they are.
pub(crate) fn descriptors() -> anyhow::Result<FileDescriptorSet> {
    protox::compile(PROTOS, [root().join("proto")]).context("failed to compile the protos")
}

fn generate(out_dir: &Path) -> anyhow::Result<()> {
    let descriptors = descriptors()?;
    // What is not made any more must not stay.
    if out_dir.exists() {
        fs::remove_dir_all(out_dir).context("failed to clear the folder of generated code")?;
    }
    fs::create_dir_all(out_dir).context("failed to make the folder of generated code")?;
    #[expect(
        clippy::disallowed_methods,
        reason = "nothing reads it while it is written"
    )]
    fs::write(out_dir.join("descriptor.bin"), descriptors.encode_to_vec())
        .context("failed to write the descriptor set")?;
    tonic_prost_build::configure()
        .out_dir(out_dir)
        .include_file("mod.rs")
        .generate_default_stubs(true)
        .btree_map(".")
        .skip_debug(SECRET)
        .compile_fds(descriptors)
        .context("failed to generate Rust code")
}

fn checked_in() -> PathBuf {
    root().join("src/generated")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto")
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        ffi::OsString,
    };

    use super::*;

    #[test]
    fn generated_code_is_current() {
        let fresh = tempfile::tempdir().unwrap();
        generate(fresh.path()).unwrap();

        let (want, have) = (files(fresh.path()), files(&checked_in()));
        let names: BTreeSet<_> = want.keys().chain(have.keys()).collect();
        for name in names {
            assert!(
                want.get(name) == have.get(name),
                "{} is stale: run `cargo xtask codegen`",
                name.display()
            );
        }
    }

    fn files(dir: &Path) -> BTreeMap<OsString, Vec<u8>> {
        let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
        entries
            .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
            .collect()
    }
}
