//! What packets of dynos may do, as rules of one `nf_tables` table for all of them.
//!
//! The rules know dynos by the beginning of their interfaces' names, so they are the same
//! whatever dynos there are. Dynos of other work directories are known by the links' group.
//!
//! - `prerouting` looks at what comes from a dyno, before a redirection by anybody else: no
//!   IPv6, no address but its own, of this host only the dyno's gateway, and nothing but name
//!   servers where a cloud tells its machines their secrets. Answers to what the host asked pass.
//! - `forward` keeps dynos apart, and lets nobody in who was not asked, but for what the host
//!   redirects to a dyno on purpose.
//! - `postrouting` gives what leaves the host the host's own address.
//!
//! An accept here is no more than that: any other table may still drop the packet. See
//! [`super::forward`].

use std::{io, net::Ipv4Addr};

use sha2::{Digest as _, Sha256};

use super::{
    names::{GROUP, Names},
    nft::{self, Batch, Family, Hook},
    settings::{Allow, Block},
};
use crate::lease::Span;

/// Goes up with every change of the rules, so that a new driver replaces an old one's.
const VERSION: &str = "2";
/// After connections are known (-200), before destinations are changed (-100).
const BEFORE_REDIRECTION: i32 = -150;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;
/// Where a cloud answers its machines, and tells them their own credentials (169.254.169.254).
/// (<https://www.rfc-editor.org/rfc/rfc3927>)
const LINK_LOCAL: (Ipv4Addr, Ipv4Addr) = (
    Ipv4Addr::new(169, 254, 0, 0),
    Ipv4Addr::new(169, 254, 255, 255),
);
/// Some clouds have their name servers there, too.
const DNS: u16 = 53;

/// The table of one work directory and one pool of addresses.
#[derive(Debug)]
pub(super) struct Table {
    names: Names,
    first: Ipv4Addr,
    last: Ipv4Addr,
    allow: Allow,
    /// An empty chain whose name tells with which rules the table was made.
    mark: String,
}

impl Table {
    pub(super) fn new(names: Names, pool: Span, allow: Allow) -> Self {
        let hash = Sha256::digest(format!("{VERSION} {allow:?}"));
        let mark = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        Self {
            names,
            first: pool.first.network(),
            last: pool.last.broadcast(),
            allow,
            mark: format!("rules-{mark:08x}"),
        }
    }

    /// Whether the table is there, with these rules.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        nft::has_chain(Family::Inet, self.names.table(), &self.mark)
    }

    /// Makes the table, in place of one with other rules. Doing so twice, or at the same time
    /// as another process, does no harm.
    pub(super) fn make(&self) -> io::Result<()> {
        let table = self.names.table();
        let mut batch = Batch::new();
        // So that there is one to delete, whether or not there was.
        batch.add_table(Family::Inet, table);
        batch.delete_table(Family::Inet, table);
        self.add(&mut batch, table);
        batch.commit()
    }

    /// Makes a table like it and removes it, all at once, so that it is never in force: can
    /// this kernel do it? The kernel loads its modules for it, if need be.
    pub(super) fn try_out(&self) -> io::Result<()> {
        let table = format!("{}-trial", self.names.table());
        let mut batch = Batch::new();
        self.add(&mut batch, &table);
        batch.delete_table(Family::Inet, &table);
        batch.commit()
    }

    fn add(&self, batch: &mut Batch, table: &str) {
        let prefix = self.names.prefix();
        batch.add_table(Family::Inet, table);
        batch.add_chain(Family::Inet, table, &self.mark);
        self.add_prerouting(batch, table, &prefix);
        self.add_forward(batch, table, &prefix);

        let chain = (Family::Inet, table, "postrouting");
        batch.add_base_chain(chain, "nat", Hook::Postrouting, SOURCE_NAT);
        batch.append(chain, |it| {
            it.is_ipv4()
                .has_source(self.first, self.last)
                .goes_not_to_group(GROUP)
                .masquerade();
        });
    }

    fn add_prerouting(&self, batch: &mut Batch, table: &str, prefix: &str) {
        let chain = (Family::Inet, table, "prerouting");
        batch.add_base_chain(chain, "filter", Hook::Prerouting, BEFORE_REDIRECTION);
        batch.append(chain, |it| it.comes_not_from(prefix).accept());
        batch.append(chain, |it| it.is_not_ipv4().discard());
        batch.append(chain, |it| it.has_foreign_source().discard());
        batch.append(chain, |it| it.is_known().accept());
        batch.append(chain, |it| it.is_for_its_gateway().accept());
        if self.allow.host {
            batch.append(chain, |it| it.is_for_this_host().accept());
        }
        for block in &self.allow.blocks {
            batch.append(chain, |it| {
                it.is_ipv4()
                    .has_destination(block.first(), block.last())
                    .is_for_this_host()
                    .accept();
            });
        }
        let (first, last) = LINK_LOCAL;
        let is_there = |block: &&Block| first <= block.first() && block.last() <= last;
        for block in self.allow.blocks.iter().filter(is_there) {
            batch.append(chain, |it| {
                it.is_ipv4()
                    .has_destination(block.first(), block.last())
                    .accept();
            });
        }
        batch.append(chain, |it| {
            it.is_ipv4()
                .has_destination(first, last)
                .is_for_port(DNS)
                .accept();
        });
        batch.append(chain, |it| {
            it.is_ipv4().has_destination(first, last).refuse();
        });
        batch.append(chain, |it| it.is_not_for_another_host().refuse());
    }

    fn add_forward(&self, batch: &mut Batch, table: &str, prefix: &str) {
        let chain = (Family::Inet, table, "forward");
        batch.add_base_chain(chain, "filter", Hook::Forward, FILTER);
        if !self.allow.dynos {
            batch.append(chain, |it| {
                it.comes_from(prefix).goes_to_group(GROUP).refuse();
            });
        }
        batch.append(chain, |it| it.goes_to(prefix).is_known().accept());
        batch.append(chain, |it| it.goes_to(prefix).is_redirected().accept());
        if self.allow.dynos {
            batch.append(chain, |it| {
                it.goes_to(prefix).comes_from_group(GROUP).accept();
            });
        }
        if !self.allow.inbound {
            batch.append(chain, |it| it.goes_to(prefix).refuse());
        }
    }
}

/// Removes the table, if it is there.
pub(super) fn remove(names: &Names) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.add_table(Family::Inet, names.table());
    batch.delete_table(Family::Inet, names.table());
    batch.commit()
}
