//! `hsup-init` and `hsup-wait` as the driver uses them, in real pid namespaces.

mod command;
mod dyno;
mod ends;
mod signals;
mod terminal;
