//! Gives the targets of a crate what is kept of each, seeds and what once broke it, and then the
//! same with changes. Each crate that has targets takes this file into its tests, so that no
//! nightly compiler is needed for it.

use std::{
    env, fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use super::TARGETS;

/// How many changed inputs each target is given, without `HSUP_FUZZ_RUNS`.
const RUNS: u64 = 200;
/// As libFuzzer is given no longer ones.
const LONGEST: usize = 4096;
/// Bytes that texts and messages end, escape and count with.
const SPECIAL: &[u8] = b"\0\n\r\"\\{}[]:,=%/.-0\x7f\x80\xc3\xff";

/// Gives each target the files in the folder of its name.
#[test]
fn what_is_kept_breaks_nothing() {
    for (name, target) in TARGETS {
        for (path, bytes) in kept(name) {
            // What went wrong has been printed; this says with which file.
            let result = catch_unwind(|| target(&bytes));
            assert!(result.is_ok(), "`{}` breaks `{name}`", path.display());
        }
    }
}

/// Gives each target changed copies of those files: the same ones each time, as a check of other
/// work must not fail by chance, and others with another `HSUP_FUZZ_SEED`.
#[test]
fn what_is_kept_and_changed_breaks_nothing() {
    let number = |name, otherwise| {
        env::var(name).map_or(otherwise, |text| {
            text.parse()
                .unwrap_or_else(|error| panic!("{name}={text}: {error}"))
        })
    };
    let (seed, runs) = (number("HSUP_FUZZ_SEED", 0), number("HSUP_FUZZ_RUNS", RUNS));
    for (name, target) in TARGETS {
        let inputs: Vec<_> = kept(name).map(|(_, bytes)| bytes).collect();
        let mut random = Random(seed);
        for run in 0..runs {
            let input = changed(&inputs, &mut random);
            let result = catch_unwind(|| target(&input));
            assert!(
                result.is_ok(),
                "`{name}` is broken by run {run} of HSUP_FUZZ_SEED={seed}: {}",
                input.escape_ascii()
            );
        }
    }
}

/// What is kept for a target.
fn kept(name: &str) -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
    let folder = seeds().join(name);
    let files = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("failed to list `{}`: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert!(!paths.is_empty(), "`{}` is empty", folder.display());
    // The same input for the same run on every machine.
    paths.sort_unstable();
    paths.into_iter().map(|path| {
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    })
}

/// One of the inputs with one to four changes.
fn changed(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let end = at + random.below((input.len() - at).min(32) + 1);
        match random.below(6) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => input.insert(at, SPECIAL[random.below(SPECIAL.len())]),
            3 => drop(input.splice(at..at, input[at..end].to_vec())),
            4 => {
                let other = &inputs[random.below(inputs.len())];
                let from = random.below(other.len() + 1);
                input.splice(at..end, other[from..].iter().copied());
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// `SplitMix64` (<https://prng.di.unimi.it/splitmix64.c>): what is random must be the same again.
struct Random(u64);

impl Random {
    /// A number below `end`; 0 where there is none.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(end.max(1)).unwrap_or(u64::MAX);
        usize::try_from((mixed ^ (mixed >> 31)) % bound).unwrap_or(0)
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
