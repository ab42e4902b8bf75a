//! The hsup supervisor as a library: where releases come from, and what keeps their dynos running.

pub mod name;
pub mod release;
pub mod rollout;
