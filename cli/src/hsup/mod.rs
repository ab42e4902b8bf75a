//! The `hsup` command: its arguments, and how they become hsup-core's options.

pub mod args;
mod check;
mod commands;
mod drains;
mod export;
mod meant;

pub use commands::main;
