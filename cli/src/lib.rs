//! The command lines of hsup: arguments in, text out.
//!
//! What a command finds is a report, a plain struct; how it looks is a pure function of that
//! ([`look::Report`]), so that everything here can be tested as text.

mod access;
pub mod config;
pub mod ctl;
pub mod doctor;
mod duration;
pub mod hsup;
pub mod look;
mod schema;
