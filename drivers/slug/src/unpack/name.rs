//! The names in an archive: which are inside the app, which are outside, and which nobody
//! honest would write.

/// `PATH_MAX` and `NAME_MAX` of Linux, without the NUL.
const LONGEST_PATH: usize = 4_095;
const LONGEST_NAME: usize = 255;
/// As much of a name as an error shows.
const SHOWN: usize = 200;

/// Where an entry is: the components of its name, from `app` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// `app/bin/web`; empty for what is outside.
    path: Vec<u8>,
}

impl Place {
    /// The place of an entry, or of the target of a hard link, with this name.
    pub(super) fn of(name: &[u8]) -> Result<Self, &'static str> {
        if name.starts_with(b"/") {
            return Err("has an absolute path");
        }
        if name.contains(&0) {
            return Err("has a NUL in its name");
        }
        if name.len() > LONGEST_PATH {
            return Err("has a name that is too long");
        }
        let mut path = Vec::with_capacity(name.len());
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err("leads out of the slug with `..`"),
                _ if component.len() > LONGEST_NAME => return Err("has a name that is too long"),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        if path != b"app" && !path.starts_with(b"app/") {
            path.clear();
        }
        Ok(Self { path })
    }

    pub(super) fn is_outside(&self) -> bool {
        self.path.is_empty()
    }

    /// `app` itself.
    pub(super) fn is_app(&self) -> bool {
        self.path == b"app"
    }

    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The directory it is in, and its name there; `.` and `app` for the app itself.
    pub(super) fn split(&self) -> (&[u8], &[u8]) {
        match self.path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&self.path[..at], &self.path[at + 1..]),
            None => (b".", &self.path),
        }
    }
}

/// A name for people: no control characters, and not too long.
pub(crate) fn escaped(name: &[u8]) -> String {
    let mut shown = String::new();
    for chunk in name[..name.len().min(SHOWN)].utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || character == '\u{202e}' {
                shown.extend(character.escape_default());
            } else {
                shown.push(character);
            }
        }
        for byte in chunk.invalid() {
            shown.push_str("\\x");
            shown.extend(
                [byte >> 4, byte & 15]
                    .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
            );
        }
    }
    if name.len() > SHOWN {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    #[test_case(b"./app/bin/web", b"app/bin/web")]
    #[test_case(b"app/", b"app")]
    #[test_case(b".//app/./a//b/", b"app/a/b")]
    #[test_case(b"application/a", b""; "another name")]
    #[test_case(b"./", b""; "the root")]
    #[test_case(b"etc/passwd", b""; "outside")]
    #[test_case(b"app/a..b/...", b"app/a..b/...")]
    fn places(name: &[u8], path: &[u8]) {
        assert_eq!(Place::of(name).unwrap().path(), path);
    }

    #[test_case(b"/app/a")]
    #[test_case(b"app/../a")]
    #[test_case(b"../app/a")]
    #[test_case(b"etc/.."; "outside too")]
    #[test_case(b"app/a\0b")]
    fn refused(name: &[u8]) {
        assert!(Place::of(name).is_err());
    }

    #[test]
    fn too_long() {
        let name = [b"app/".as_slice(), &[b'x'; 256]].concat();
        assert!(Place::of(&name).is_err());
        assert!(Place::of(&name[..259]).is_ok());
        assert!(Place::of(&b"app/aaaa".repeat(600)).is_err());
    }

    #[test]
    fn names_for_people() {
        assert_eq!(escaped(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(escaped("é\u{202e}".as_bytes()), "é\\u{202e}");
        assert_eq!(escaped(b"\xff"), "\\xff");
        assert_eq!(escaped(&[b'x'; 300]).chars().count(), 201);
    }

    proptest! {
        #[test]
        fn a_place_has_no_way_out(name in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), Just(b'p'), any::<u8>()], 0..40))
        {
            if let Ok(place) = Place::of(&name) && !place.is_outside() {
                for component in place.path().split(|byte| *byte == b'/') {
                    prop_assert!(!matches!(component, b"" | b"." | b".."));
                }
                prop_assert!(place.path().split(|byte| *byte == b'/').next() == Some(b"app"));
            }
        }
    }
}
