//! What tests hsup from outside: the conformance suite for drivers, and what black-box tests share.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

pub mod conformance;
pub mod deadline;
pub mod fake;
pub mod peer;
pub mod ports;
pub mod processes;
pub mod programs;
pub mod random;
pub mod unread;

/// The binary that cargo built for a test (`env!("CARGO_BIN_EXE_…")`), or its copy in
/// `HSUP_BIN_DIR`, where the test is run by somebody who may not go where cargo builds.
pub fn binary(built: &str) -> PathBuf {
    let built = Path::new(built);
    match (env::var_os("HSUP_BIN_DIR"), built.file_name()) {
        (Some(copies), Some(name)) => Path::new(&copies).join(name),
        _ => built.to_owned(),
    }
}

/// The folder of the built binaries: `HSUP_BIN_DIR`, or where cargo builds them now, once for each
/// test program.
#[expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
pub fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = env::var_os("HSUP_BIN_DIR") {
            return folder.into();
        }
        #[expect(clippy::disallowed_methods, reason = "cargo is no dyno")]
        let built = Command::new(env!("CARGO"))
            // With a test program, dependencies have what tests ask of them, and nothing is built a
            // second time without that.
            .args(["build", "--quiet", "--workspace", "--bins", "--test", "it"])
            .status()
            .unwrap();
        assert!(built.success(), "the binaries could not be built");
        // The test program is target/PROFILE/deps/NAME-….
        let own = env::current_exe().unwrap();
        own.ancestors().nth(2).unwrap().to_owned()
    })
}
