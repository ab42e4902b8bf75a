//! How an error reads as one line: the operation, then its causes.

use std::{error::Error, fmt::Write as _};

/// The error and its causes, joined with colons.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        write!(text, ": {source}").expect("writing to a String cannot fail");
        cause = source.source();
    }
    text
}
