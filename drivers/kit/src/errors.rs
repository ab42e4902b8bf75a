//! How an error reads as one line: the operation, then its causes.

use std::error::Error;

/// An error and its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{io, path::PathBuf};

    use super::*;
    use crate::fifo::FifoError;

    #[test]
    fn the_operation_comes_first() {
        let error = FifoError::Open {
            path: PathBuf::from("/io/stdout"),
            source: io::Error::other("gone"),
        };
        assert_eq!(chain(&error), format!("{error}: gone"));
    }
}
