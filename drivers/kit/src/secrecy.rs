//! What a process that knows config vars and tokens owes them, besides not telling them.

use nix::sys::prctl::set_dumpable;

/// Keeps this process's memory from everybody but root: a crash leaves no core dump, neither as a
/// file nor for a program that collects them, and nobody of the same user reads its environment
/// or memory or traces it. Dynos of the simple driver are of the same user.
///
/// What is executed afterwards is not kept so: a dyno leaves its core dumps as it always did. A
/// limit on their size (`RLIMIT_CORE`) would be inherited, and does not count where a program
/// collects them.
pub fn keep() {
    // The kernel refuses only what is neither 0 nor 1.
    let _ = set_dumpable(false);
}
