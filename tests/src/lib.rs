//! What tests hsup from outside: the conformance suite for drivers.

pub mod conformance;
