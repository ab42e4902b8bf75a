//! Links the programs at fixed addresses, where the C library is glibc.
//!
//! A position-independent program relocates itself whenever it starts: a quarter of a
//! millisecond and 150 KiB of pages that no two processes share, and `hsup run` starts two.
//! Neither program runs with more privileges than its user, who gives up address
//! randomisation of the program itself; libraries, heap and stack keep theirs.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
