//! What an app is called in file names.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _, path::Path};

use sha2::{Digest as _, Sha256};

/// The longest key, in bytes.
const KEY_MAX: usize = 100;
/// `~` and the first 16 hexadecimal digits of the SHA-256 of the whole key.
pub(super) const HASH_LEN: usize = 17;

/// What names an app in file names: its name, or its directory.
///
/// Two apps never share a key: `/` becomes `+`, which an app's name never holds
/// unescaped, and all but ASCII letters, digits, `.`, `_` and `-` is escaped as `%XX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppKey(String);

impl AppKey {
    /// The key of an app that has a name.
    pub fn app(name: &str) -> Self {
        let mut key = String::new();
        for byte in name.bytes() {
            push_escaped(&mut key, byte);
        }
        Self::shortened(key)
    }

    /// The key of an app that is a directory. The path must be canonical.
    pub fn directory(path: &Path) -> Self {
        let mut key = String::new();
        for &byte in path.as_os_str().as_bytes() {
            if byte == b'/' {
                key.push('+');
            } else {
                push_escaped(&mut key, byte);
            }
        }
        Self::shortened(key)
    }

    /// The key as a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn shortened(key: String) -> Self {
        Self(shorten(key, KEY_MAX))
    }
}

/// A key must not be `.`, `..` or hidden, so a leading dot is escaped too.
fn push_escaped(key: &mut String, byte: u8) {
    let plain = byte.is_ascii_alphanumeric()
        || matches!(byte, b'_' | b'-')
        || (byte == b'.' && !key.is_empty());
    if plain {
        key.push(char::from(byte));
    } else {
        write!(key, "%{byte:02X}").expect("writing to a string cannot fail");
    }
}

/// Keeps a name within `max` bytes: its beginning, `~`, and a hash of the whole.
pub(super) fn shorten(name: String, max: usize) -> String {
    if name.len() <= max {
        return name;
    }
    let digest = Sha256::digest(name.as_bytes());
    let mut short = name;
    let whole = std::mem::take(&mut short);
    short.push_str(&whole[..max.saturating_sub(HASH_LEN)]);
    short.push('~');
    for byte in digest.iter().take(8) {
        write!(short, "{byte:02x}").expect("writing to a string cannot fail");
    }
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    #[test_case("shop" => "shop")]
    #[test_case("my-shop_2.eu" => "my-shop_2.eu")]
    #[test_case(".." => "%2E."; "never a way up")]
    #[test_case("a/b" => "a%2Fb")]
    #[test_case("a+b" => "a%2Bb")]
    #[test_case("" => "")]
    fn key_of_an_app(name: &str) -> String {
        AppKey::app(name).0
    }

    #[test_case("/home/me/shop" => "+home+me+shop")]
    #[test_case("/home/me/my-shop" => "+home+me+my-shop")]
    #[test_case("/a b" => "+a%20b")]
    #[test_case("/" => "+")]
    fn key_of_a_directory(path: &str) -> String {
        AppKey::directory(Path::new(path)).0
    }

    proptest! {
        #[test]
        fn two_apps_never_share_a_key(a in "[-a+/.%~]{0,6}", b in "[-a+/.%~]{0,6}") {
            prop_assert_eq!(a == b, AppKey::app(&a) == AppKey::app(&b));
            let dir = |text: &str| AppKey::directory(Path::new(&format!("/{text}")));
            prop_assert_eq!(a == b, dir(&a) == dir(&b));
            prop_assert_ne!(AppKey::app(&a), dir(&b));
        }

        #[test]
        fn a_key_is_a_short_file_name(name in ".{0,300}") {
            for key in [AppKey::app(&name), AppKey::directory(Path::new(&name))] {
                prop_assert!(key.0.len() <= KEY_MAX);
                prop_assert!(!key.0.contains(['/', '\0', '\n']) && !key.0.starts_with('.'));
            }
        }

        #[test]
        fn long_names_that_begin_alike_keep_their_own_keys(a in "x{120}[a-z]{8}", b in "x{120}[a-z]{8}") {
            prop_assert_eq!(a == b, AppKey::app(&a) == AppKey::app(&b));
        }
    }
}
