//! Whether a dyno's folder is below the one that the command line names.

use std::os::unix::ffi::OsStrExt as _;

use super::*;

/// Words of `hsup-shim`, with NUL bytes between.
pub fn shim_arguments(data: &[u8]) {
    let words = data.split(|byte| *byte == 0);
    let words: Vec<OsString> = words
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    let Ok(Said::Run(wanted)) = Wanted::parse(words.clone()) else {
        return;
    };
    let command: Vec<&[u8]> = wanted.command.iter().map(CString::as_bytes).collect();
    let last: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    assert!(last.ends_with(&command) && !command.is_empty());
    let state = wanted.folder.parent().expect("a folder below another");
    let given = |word: &OsString| Path::new(word) == state || word.is_empty();
    assert!(words.iter().any(given), "{}", wanted.folder.display());
}
