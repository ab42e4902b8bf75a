//! What tests hsup from outside: the conformance suite for drivers, and what black-box tests share.

use std::{
    env,
    path::{Path, PathBuf},
};

pub mod conformance;
pub mod deadline;
pub mod peer;

/// The binary that cargo built for a test (`env!("CARGO_BIN_EXE_…")`), or its copy in
/// `HSUP_BIN_DIR`, where the test is run by somebody who may not go where cargo builds.
pub fn binary(built: &str) -> PathBuf {
    let built = Path::new(built);
    match (env::var_os("HSUP_BIN_DIR"), built.file_name()) {
        (Some(copies), Some(name)) => Path::new(&copies).join(name),
        _ => built.to_owned(),
    }
}
