//! The names of what a dyno's network leaves in sight on the host.
//!
//! Two work directories, or two blocks of addresses, never share a name: what is one's own is
//! known by it. Everything follows from the name of the `nf_tables` table.

use std::{net::Ipv4Addr, os::unix::ffi::OsStrExt as _, path::Path};

use sha2::{Digest as _, Sha256};

use crate::lease::{Span, Subnet};

const TABLE: &str = "hsup-";
const KEY: usize = 8;

/// The group of every dyno's link on this host, of whatever work directory: "hsup" in ASCII.
pub(super) const GROUP: u32 = u32::from_be_bytes(*b"hsup");

/// The names for the dynos of one work directory and one pool of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    table: String,
}

impl Names {
    pub(super) fn new(work_dir: &Path, pool: Span) -> Self {
        let mut hash = Sha256::new();
        hash.update(work_dir.as_os_str().as_bytes());
        hash.update([0]);
        hash.update(pool.first.network().octets());
        hash.update(pool.last.network().octets());
        let hash = hash.finalize();
        let key = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let table = format!("{TABLE}{key:08x}");
        Self { table }
    }

    /// The names that belong to a table; nothing if it is not one of ours.
    pub(super) fn of_table(table: &str) -> Option<Self> {
        let key = table.strip_prefix(TABLE)?;
        let ours = key.len() == KEY && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        ours.then(|| Self {
            table: table.to_owned(),
        })
    }

    /// Of `nf_tables`, in the family `inet`.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// How the name of each interface begins. There is room for half of the key.
    pub(super) fn prefix(&self) -> String {
        format!("hs{}-", &self.table[TABLE.len()..][..KEY / 2])
    }

    /// The host's end of the dyno's link: 15 characters, as many as a name may have.
    pub(super) fn interface(&self, subnet: Subnet) -> String {
        format!("{}{:08x}", self.prefix(), u32::from(subnet.network()))
    }

    /// The subnet that an interface of this name is for.
    pub(super) fn subnet_of(&self, interface: &str) -> Option<Subnet> {
        let network = interface.strip_prefix(&self.prefix())?;
        let network = u32::from_str_radix(network, 16).ok()?;
        Subnet::at(Ipv4Addr::from(network)).filter(|subnet| self.interface(*subnet) == interface)
    }

    /// What the link says of itself: whose it is, with the whole key.
    pub(super) fn alias(&self, subnet: Subnet) -> String {
        format!("{} {subnet}", self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: &str, last: &str) -> Span {
        Span {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        }
    }

    #[test]
    fn names_differ_by_work_directory_and_by_pool_and_fit() {
        let pool = span("172.16.0.28/30", "172.16.125.28/30");
        let names = Names::new(Path::new("/var/lib/hsup"), pool);
        let others = [
            Names::new(Path::new("/var/lib/hsup2"), pool),
            Names::new(
                Path::new("/var/lib/hsup"),
                span("172.16.0.28/30", "172.16.0.28/30"),
            ),
        ];
        for other in others {
            assert_ne!(names.table(), other.table());
            assert_ne!(names.interface(pool.first), other.interface(pool.first));
        }
        let interface = names.interface(pool.first);
        assert_eq!(interface.len(), 15);
        assert!(interface.starts_with("hs") && interface.ends_with("-ac10001c"));
        assert_eq!(names.subnet_of(&interface), Some(pool.first));
        for strange in ["eth0", "hs0000-ac10001c", &interface[..14], &names.prefix()] {
            assert_eq!(names.subnet_of(strange), None, "{strange}");
        }
    }

    #[test]
    fn names_are_known_by_the_table_again() {
        let pool = span("10.0.0.0/30", "10.0.0.0/30");
        let names = Names::new(Path::new("/w"), pool);
        assert_eq!(Names::of_table(names.table()), Some(names));
        for strange in [
            "filter",
            "hsup-",
            "hsup-1234567",
            "hsup-123456789",
            "hsup-1234567g",
        ] {
            assert_eq!(Names::of_table(strange), None);
        }
    }
}
