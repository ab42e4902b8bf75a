//! What this crate reads from others, as functions that `fuzz/` feeds.

pub use crate::unpack::fuzz::slug_archive;
use crate::{SlugId, fetch::host, web::ContentRange};

/// What a target is called, and itself.
pub type Target = (&'static str, fn(&[u8]));

/// Each target, and what it is called.
pub const TARGETS: &[Target] = &[("slug_archive", slug_archive), ("slug_texts", slug_texts)];

/// The small texts, in the order of lines: a slug's checksum, its URL, and where a storage says
/// that a part of it begins.
pub fn slug_texts(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.splitn(3, '\n');
    let mut next = || lines.next().unwrap_or_default();
    if let Ok(id) = next().parse::<SlugId>() {
        assert_eq!(id.to_string().parse::<SlugId>().ok(), Some(id));
    }
    let url = next();
    // What may be said of a URL has neither its user nor its query.
    if let Some(host) = host(url) {
        assert!(!host.is_empty() && !host.contains(['/', '?', '#', '@']));
    }
    let range = ContentRange::parse(next());
    let [first, total] =
        [range.first, range.total].map(|it| it.map_or("*".to_owned(), |it| it.to_string()));
    assert_eq!(
        ContentRange::parse(&format!("bytes {first}-/{total}")),
        range
    );
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
