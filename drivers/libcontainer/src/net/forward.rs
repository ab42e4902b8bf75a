//! Other firewalls of the host, which may drop what dynos send however our table decides.
//!
//! Docker is the usual one: it makes `iptables -P FORWARD DROP`, and leaves the chain
//! `DOCKER-USER` to those who know better. Two rules there let the packets of dynos through.
//! They say no more than that: our own table still keeps out who was not asked, and keeps
//! dynos apart, since a packet has to pass every table. They are known again by their
//! comment, and go with the table.
//!
//! Whatever else drops what nobody accepts is its administrator's to open; we name the
//! command. In both cases the rules are about all our interfaces, by how their names begin.

use std::io;

use super::{
    names::Names,
    nft::{self, Accepts, BaseChain, Batch, Family, Hook, Rule},
};

/// The chains that `iptables` works with, where it is built on `nf_tables`.
pub(super) const FILTER: &str = "filter";
pub(super) const FORWARD: &str = "FORWARD";
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// Whether packets of dynos get through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// They do, as far as can be seen.
    Open,
    /// They will, with two rules in `DOCKER-USER`.
    Docker,
    /// They will not, unless somebody runs this.
    Closed { by: String, command: String },
}

/// Looks at what other tables do with forwarded packets.
pub(super) fn way(names: &Names) -> io::Result<Way> {
    let mut docker = false;
    for chain in nft::base_chains()? {
        if !is_a_gate(&chain, names)? || is_open(&chain.name, &chain, names)? {
            continue;
        }
        let is_iptables = (chain.family, chain.table.as_str(), chain.name.as_str())
            == (Family::Ip, FILTER, FORWARD);
        if !is_iptables || !nft::has_chain(Family::Ip, FILTER, DOCKER_USER)? {
            return Ok(closed(&chain, names, is_iptables));
        }
        docker |= !is_open(DOCKER_USER, &chain, names)?;
    }
    Ok(if docker { Way::Docker } else { Way::Open })
}

/// Puts the rules into `DOCKER-USER`. Two drivers that do so at once make each of them twice,
/// which does no harm.
pub(super) fn open_docker(names: &Names) -> io::Result<()> {
    let chain = (Family::Ip, FILTER, DOCKER_USER);
    let prefix = names.prefix();
    let mut batch = Batch::new();
    batch.insert(chain, names.table(), |it| {
        it.goes_to(&prefix).count().accept();
    });
    batch.insert(chain, names.table(), |it| {
        it.comes_from(&prefix).count().accept();
    });
    batch.commit()
}

/// Removes the rules from `DOCKER-USER`, if there are any.
pub(super) fn close_docker(names: &Names) -> io::Result<()> {
    if !nft::has_chain(Family::Ip, FILTER, DOCKER_USER)? {
        return Ok(());
    }
    // One by one: another process may do the same.
    for rule in nft::rules(Family::Ip, FILTER, DOCKER_USER)? {
        if rule.comment.as_deref() != Some(names.table()) {
            continue;
        }
        let mut batch = Batch::new();
        batch.delete_rule((Family::Ip, FILTER, DOCKER_USER), rule.handle);
        match batch.commit() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// Whether this chain drops forwarded packets that none of its rules accepts.
fn is_a_gate(chain: &BaseChain, names: &Names) -> io::Result<bool> {
    if chain.hook != Hook::Forward as u32 || chain.table == names.table() {
        return Ok(false);
    }
    // As good as a policy, and what firewalld does: a last rule that is for everything.
    let rules = || nft::rules(chain.family, &chain.table, &chain.name);
    Ok(chain.drops || rules()?.last().is_some_and(Rule::drops_all))
}

/// Whether a chain of this table has rules that let dynos through both ways.
fn is_open(name: &str, of: &BaseChain, names: &Names) -> io::Result<bool> {
    let rules = nft::rules(of.family, &of.table, name)?;
    let prefix = names.prefix();
    let accepts = |what| rules.iter().any(|rule| rule.accepts(what, &prefix));
    Ok(accepts(Accepts::From) && accepts(Accepts::To))
}

fn closed(chain: &BaseChain, names: &Names, is_iptables: bool) -> Way {
    let prefix = names.prefix();
    let (by, command) = if is_iptables {
        let rule = |way| format!("iptables -I {FORWARD} {way} {prefix}+ -j ACCEPT");
        let by = format!("the chain {FORWARD} of iptables");
        (by, format!("{} && {}", rule("-i"), rule("-o")))
    } else {
        let (family, table, name) = (chain.family.name(), &chain.table, &chain.name);
        let rule =
            |way| format!("nft insert rule {family} {table} {name} {way} '\"{prefix}*\"' accept");
        let by = format!("the chain {name} of the table {family} {table}");
        (by, format!("{} && {}", rule("iifname"), rule("oifname")))
    };
    Way::Closed { by, command }
}
