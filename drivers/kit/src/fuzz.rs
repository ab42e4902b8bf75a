//! What this crate reads from others, as functions that `fuzz/` feeds.

pub use crate::service::fuzz::{driver_calls, dyno_record};
use crate::{file_url, hex, signal::Signal, stat::Stat};

/// What a target is called, and itself.
pub type Target = (&'static str, fn(&[u8]));

/// Each target, and what it is called.
pub const TARGETS: &[Target] = &[
    ("driver_calls", driver_calls),
    ("dyno_record", dyno_record),
    ("kit_texts", kit_texts),
];

/// The small texts: a `file://` URL, a signal's name, a line of `/proc/PID/stat`, hexadecimal
/// digits, in the order of lines.
pub fn kit_texts(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.splitn(4, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (url, signal, stat, digits) = (next(), next(), next(), next());
    if let Some(path) = file_url::path(url) {
        assert!(path.is_absolute());
        assert!(!path.as_os_str().as_encoded_bytes().contains(&0));
    }
    if let Ok(signal) = signal.parse::<Signal>() {
        assert_eq!(signal.to_string().parse(), Ok(signal));
    }
    if let Some(found) = Stat::parse(stat) {
        // Whatever a process calls itself, its own fields are those at the end.
        let (name, fields) = stat.rsplit_once(") ").expect("the end of a name");
        let named = format!("1 (1 (x) Z 1 1 1 {name}) {fields}");
        assert_eq!(Stat::parse(&named), Some(found));
    }
    if let Some(bytes) = hex::decode(digits) {
        assert_eq!(hex::encode(&bytes), digits.to_ascii_lowercase());
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
