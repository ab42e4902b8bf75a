//! PID 1 of a dyno.

fn main() {}
