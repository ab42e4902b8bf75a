//! Gives the targets of a crate what is kept of each: seeds, and what once broke it. Each crate
//! that has targets takes this file into its tests, so that no nightly compiler is needed for it.

use std::{
    env, fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use super::TARGETS;

/// Gives each target the files in the folder of its name.
#[test]
fn what_is_kept_breaks_nothing() {
    for (name, target) in TARGETS {
        let folder = seeds().join(name);
        let files = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("failed to list `{}`: {error}", folder.display()));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            // What went wrong has been printed; this says with which file.
            let result = catch_unwind(|| target(&bytes));
            assert!(result.is_ok(), "`{}` breaks `{name}`", path.display());
            count += 1;
        }
        assert!(count > 0, "`{}` is empty", folder.display());
    }
}

/// `fuzz/seeds`, or a copy for somebody who may not read that.
fn seeds() -> PathBuf {
    env::var_os("HSUP_FUZZ_SEEDS").map_or_else(in_sources, PathBuf::from)
}

fn in_sources() -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut found = crates.map(|folder| folder.join("fuzz/seeds"));
    found.find(|folder| folder.is_dir()).expect("fuzz/seeds")
}
