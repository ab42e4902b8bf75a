//! Which unix sockets somebody listens at, without a connection to any: systemd would start the
//! app whose socket that is. Pure.

use std::path::Path;

/// The flag of a socket that takes connections, `__SO_ACCEPTCON` to the kernel.
const LISTENS: u32 = 0x1_0000;

/// What `/proc/net/unix` says.
#[derive(Debug)]
pub(super) struct Listeners<'a> {
    table: &'a str,
}

impl<'a> Listeners<'a> {
    pub(super) const fn new(table: &'a str) -> Self {
        Self { table }
    }

    /// Whether somebody of this network namespace listens at `path`.
    pub(super) fn are_at(&self, path: &Path) -> bool {
        let is_it = |(flags, place): (u32, &str)| flags & LISTENS != 0 && Path::new(place) == path;
        self.table.lines().filter_map(entry).any(is_it)
    }
}

/// `Num: RefCount Protocol Flags Type St Inode Path`: the flags, and the path, which may have
/// blanks in it.
fn entry(line: &str) -> Option<(u32, &str)> {
    let mut rest = line;
    let mut next = || {
        let (field, others) = rest.trim_start().split_once(' ')?;
        rest = others;
        Some(field)
    };
    let flags = u32::from_str_radix(next().and(next()).and(next()).and(next())?, 16).ok()?;
    next().and(next()).and(next())?;
    Some((flags, rest))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const TABLE: &str = "\
Num       RefCount Protocol Flags    Type St Inode Path
00000000b0d35c1f: 00000002 00000000 00010000 0001 01    27 /run/hsup/shop.sock
00000000b0d35c20: 00000003 00000000 00000000 0001 03 63428 /run/hsup/connected.sock
00000000b0d35c21: 00000002 00000000 00010000 0001 01 63429 /tmp/a b.sock
00000000b0d35c22: 00000002 00000000 00010000 0001 01 63430
";

    #[test_case("/run/hsup/shop.sock" => true)]
    #[test_case("/run/hsup/connected.sock" => false; "a connection is no listener")]
    #[test_case("/tmp/a b.sock" => true; "a path with a blank")]
    #[test_case("/tmp/a" => false)]
    #[test_case("" => false; "a socket without a name")]
    fn listeners(path: &str) -> bool {
        Listeners::new(TABLE).are_at(Path::new(path))
    }
}
