//! Dynos in containers.
