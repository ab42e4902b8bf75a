//! The built driver, over a real socket.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

mod descriptors;
mod durable;
mod escapes;
mod fixture;
mod life;
mod process;
mod stop;
mod terminal;
mod users;
