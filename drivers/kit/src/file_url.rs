//! The `file://` URLs of slugs: an absolute path, with `%XX` where a byte would end it.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// The absolute path that a `file://` URL names, without its query; `None` for another URL,
/// or one that names a host or escapes badly.
pub fn path(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("file://")?;
    let escaped = rest.split(['?', '#']).next()?;
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut left = escaped.bytes();
    while let Some(byte) = left.next() {
        bytes.push(if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            u8::try_from(digit(left.next())? * 16 + digit(left.next())?).ok()?
        } else {
            byte
        });
    }
    let path = PathBuf::from(OsString::from_vec(bytes));
    (path.is_absolute() && !has_nul(&path)).then_some(path)
}

/// Whether the URL names a directory, which is its own slug: it ends in a slash.
pub fn is_directory(url: &str) -> bool {
    url.starts_with("file://")
        && url
            .split(['?', '#'])
            .next()
            .is_some_and(|url| url.ends_with('/'))
}

fn has_nul(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("file:///srv/app/", Some("/srv/app/"))]
    #[test_case("file:///srv/my app/100%25%3F.tgz?X=1", Some("/srv/my app/100%?.tgz"))]
    #[test_case("file://host/srv", None)]
    #[test_case("file://", None)]
    #[test_case("file:///a%", None)]
    #[test_case("file:///a%0", None)]
    #[test_case("file:///a%zz", None)]
    #[test_case("file:///a%00b", None)]
    #[test_case("https://host/srv", None)]
    fn paths(url: &str, expected: Option<&str>) {
        assert_eq!(path(url), expected.map(PathBuf::from));
    }

    #[test]
    fn a_directory_ends_in_a_slash() {
        assert!(is_directory("file:///srv/app/"));
        assert!(!is_directory("file:///srv/app"));
        assert!(!is_directory("https://host/srv/"));
    }
}
