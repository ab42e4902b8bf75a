//! All targets in one program: `HSUP_FUZZ_TARGET` says which one libFuzzer's inputs are for. To
//! link each by itself would take longer than to compile what they share.
#![no_main]

use std::{env, sync::LazyLock};

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = env::var("HSUP_FUZZ_TARGET").expect("HSUP_FUZZ_TARGET names a folder of fuzz/seeds");
    let all = [
        hsup_core::fuzz::TARGETS,
        hsup_driver_docker::fuzz::TARGETS,
        hsup_driver_kit::fuzz::TARGETS,
        hsup_driver_libcontainer::fuzz::TARGETS,
        hsup_init::fuzz::TARGETS,
        hsup_slug::fuzz::TARGETS,
    ];
    let found = all.concat().into_iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no target is called `{name}`")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
