//! What these programs are told on their command lines, as functions that `fuzz/` feeds.

use std::{ffi::CString, os::unix::ffi::OsStrExt as _};

use crate::arguments::{Role, Status, parse};
pub use crate::shim::fuzz::shim_arguments;

/// What a target is called, and itself.
pub type Target = (&'static str, fn(&[u8]));

/// Each target, and what it is called.
pub const TARGETS: &[Target] = &[
    ("init_arguments", init_arguments),
    ("shim_arguments", shim_arguments),
];

/// Words of `hsup-init` and `hsup-wait`, with NUL bytes between.
pub fn init_arguments(data: &[u8]) {
    let words = data.split(|byte| *byte == 0);
    let words: Vec<CString> = words.filter_map(|word| CString::new(word).ok()).collect();
    match parse(&words) {
        Ok(Role::Init(init)) => {
            assert!(words.ends_with(&init.command) && !init.command.is_empty());
            if let Status::File(path) = &init.status {
                assert!(path.as_bytes().starts_with(b"/"));
            }
            for text in &init.texts {
                assert!(text.path.as_bytes().starts_with(b"/"));
                assert!(!text.path.as_bytes().contains(&b'='));
            }
        }
        Ok(Role::Wait(wait)) => {
            assert!(words.ends_with(&wait.sweep_arguments) && !wait.sweep_arguments.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
