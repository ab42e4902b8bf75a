//! The command lines of hsup: arguments in, text out.
//!
//! What a command finds is a report, a plain struct with `Display` and `Serialize`;
//! the binaries only print it, so that everything here can be tested as text.

pub mod ctl;
mod duration;
pub mod hsup;
pub mod look;
