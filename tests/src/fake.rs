//! Servers that hsup talks to, as strict as the real ones, on real sockets.

pub mod logplex;
pub mod syslog;
