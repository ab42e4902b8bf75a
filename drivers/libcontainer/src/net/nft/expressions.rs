//! What a rule is made of, and the attributes that all of netlink is made of.

use std::net::Ipv4Addr;

use super::{Accepts, attribute, be32, text};

const NESTED: u16 = 0x8000;
const ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// The one register that the rules use, for a value that is compared at once.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

const META_OIFGROUP: u32 = 22;
const META_IIFGROUP: u32 = 21;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const TRANSLATED_DESTINATION: u32 = 1 << 5;
const FIB_INTERFACE: u32 = 1;
const FIB_TYPE: u32 = 3;
const BY_SOURCE: u32 = 1;
const BY_DESTINATION: u32 = 2;
const AT_THE_INCOMING_INTERFACE: u32 = 8;
const ONLY_WHETHER: u32 = 32;
const UNICAST: u32 = 1;
const LOCAL: u32 = 2;
/// Of an IPv4 header.
const SOURCE_AT: u32 = 12;
const DESTINATION_AT: u32 = 16;
const NETWORK_HEADER: u32 = 1;
/// Of TCP and of UDP.
const DESTINATION_PORT_AT: u32 = 2;
const TRANSPORT_HEADER: u32 = 2;
const ANY_PROTOCOL: u32 = 2;
const ADMINISTRATIVELY_PROHIBITED: u8 = 3;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// How a value is compared.
#[derive(Debug, Clone, Copy)]
enum Compare {
    Equal = 0,
    Not = 1,
}

/// The attributes of a message.
#[derive(Debug, Default)]
pub(in crate::net) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        content(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }
}

/// The expressions of a rule: conditions from left to right, then what is done.
#[derive(Debug)]
pub(in crate::net) struct Expressions<'a>(&'a mut Attributes);

impl<'a> Expressions<'a> {
    pub(super) fn of(list: &'a mut Attributes) -> Self {
        Self(list)
    }

    /// `iifname "PREFIX*"`.
    pub(in crate::net) fn comes_from(&mut self, prefix: &str) -> &mut Self {
        self.meta(META_IIFNAME)
            .compare(Compare::Equal, prefix.as_bytes())
    }

    /// `iifname != "PREFIX*"`.
    pub(in crate::net) fn comes_not_from(&mut self, prefix: &str) -> &mut Self {
        self.meta(META_IIFNAME)
            .compare(Compare::Not, prefix.as_bytes())
    }

    /// `oifname "PREFIX*"`.
    pub(in crate::net) fn goes_to(&mut self, prefix: &str) -> &mut Self {
        self.meta(META_OIFNAME)
            .compare(Compare::Equal, prefix.as_bytes())
    }

    /// `iifgroup GROUP`.
    pub(in crate::net) fn comes_from_group(&mut self, group: u32) -> &mut Self {
        self.meta(META_IIFGROUP)
            .compare(Compare::Equal, &group.to_ne_bytes())
    }

    /// `oifgroup GROUP`.
    pub(in crate::net) fn goes_to_group(&mut self, group: u32) -> &mut Self {
        self.meta(META_OIFGROUP)
            .compare(Compare::Equal, &group.to_ne_bytes())
    }

    /// `oifgroup != GROUP`.
    pub(in crate::net) fn goes_not_to_group(&mut self, group: u32) -> &mut Self {
        self.meta(META_OIFGROUP)
            .compare(Compare::Not, &group.to_ne_bytes())
    }

    /// `meta nfproto ipv4`.
    pub(in crate::net) fn is_ipv4(&mut self) -> &mut Self {
        self.meta(META_NFPROTO).compare(Compare::Equal, &[2])
    }

    /// `meta nfproto != ipv4`.
    pub(in crate::net) fn is_not_ipv4(&mut self) -> &mut Self {
        self.meta(META_NFPROTO).compare(Compare::Not, &[2])
    }

    /// `ct state established,related`.
    pub(in crate::net) fn is_known(&mut self) -> &mut Self {
        self.conntrack(CT_STATE, ESTABLISHED_OR_RELATED)
    }

    /// `ct status dnat`.
    pub(in crate::net) fn is_redirected(&mut self) -> &mut Self {
        self.conntrack(CT_STATUS, TRANSLATED_DESTINATION)
    }

    /// `fib saddr . iif oif missing`: an answer would not go where this came from.
    pub(in crate::net) fn has_foreign_source(&mut self) -> &mut Self {
        let flags = BY_SOURCE | AT_THE_INCOMING_INTERFACE | ONLY_WHETHER;
        self.fib(FIB_INTERFACE, flags)
            .compare(Compare::Equal, &[0; 4])
    }

    /// `fib daddr . iif type local`: to an address of the interface that this came by.
    pub(in crate::net) fn is_for_its_gateway(&mut self) -> &mut Self {
        self.fib(FIB_TYPE, BY_DESTINATION | AT_THE_INCOMING_INTERFACE)
            .compare(Compare::Equal, &LOCAL.to_ne_bytes())
    }

    /// `fib daddr type local`: to any address of this host.
    pub(in crate::net) fn is_for_this_host(&mut self) -> &mut Self {
        self.fib(FIB_TYPE, BY_DESTINATION)
            .compare(Compare::Equal, &LOCAL.to_ne_bytes())
    }

    /// `fib daddr type != unicast`: to this host, to many, or to all.
    pub(in crate::net) fn is_not_for_another_host(&mut self) -> &mut Self {
        self.fib(FIB_TYPE, BY_DESTINATION)
            .compare(Compare::Not, &UNICAST.to_ne_bytes())
    }

    /// `ip saddr FIRST-LAST`.
    pub(in crate::net) fn has_source(&mut self, first: Ipv4Addr, last: Ipv4Addr) -> &mut Self {
        self.address(SOURCE_AT).range(first, last)
    }

    /// `ip daddr FIRST-LAST`.
    pub(in crate::net) fn has_destination(&mut self, first: Ipv4Addr, last: Ipv4Addr) -> &mut Self {
        self.address(DESTINATION_AT).range(first, last)
    }

    /// To this port, of TCP or of UDP.
    pub(in crate::net) fn is_for_port(&mut self, port: u16) -> &mut Self {
        self.payload(TRANSPORT_HEADER, DESTINATION_PORT_AT, 2)
            .compare(Compare::Equal, &port.to_be_bytes())
    }

    /// `counter`.
    pub(in crate::net) fn count(&mut self) -> &mut Self {
        self.expression("counter", |_| ())
    }

    /// `accept`: other tables may still think otherwise.
    pub(in crate::net) fn accept(&mut self) {
        self.verdict(ACCEPT);
    }

    /// `drop`.
    pub(in crate::net) fn discard(&mut self) {
        self.verdict(DROP);
    }

    /// `reject with icmpx admin-prohibited`: the sender learns of it at once.
    pub(in crate::net) fn refuse(&mut self) {
        self.expression("reject", |it| {
            it.be32(1, ANY_PROTOCOL);
            it.bytes(2, &[ADMINISTRATIVELY_PROHIBITED]);
        });
    }

    /// `masquerade`.
    pub(in crate::net) fn masquerade(&mut self) {
        self.expression("masq", |_| ());
    }

    fn meta(&mut self, key: u32) -> &mut Self {
        self.expression("meta", |it| {
            it.be32(2, key);
            it.be32(1, REGISTER);
        })
    }

    fn fib(&mut self, result: u32, flags: u32) -> &mut Self {
        self.expression("fib", |it| {
            it.be32(1, REGISTER);
            it.be32(2, result);
            it.be32(3, flags);
        })
    }

    /// That any of `bits` is set.
    fn conntrack(&mut self, key: u32, bits: u32) -> &mut Self {
        self.expression("ct", |it| {
            it.be32(2, key);
            it.be32(1, REGISTER);
        })
        .expression("bitwise", |it| {
            it.be32(1, REGISTER);
            it.be32(2, REGISTER);
            it.be32(3, 4);
            it.nested(4, |mask| mask.bytes(VALUE, &bits.to_ne_bytes()));
            it.nested(5, |xor| xor.bytes(VALUE, &[0; 4]));
        })
        .compare(Compare::Not, &[0; 4])
    }

    fn address(&mut self, at: u32) -> &mut Self {
        self.payload(NETWORK_HEADER, at, 4)
    }

    fn payload(&mut self, header: u32, at: u32, length: u32) -> &mut Self {
        self.expression("payload", |it| {
            it.be32(1, REGISTER);
            it.be32(2, header);
            it.be32(3, at);
            it.be32(4, length);
        })
    }

    /// A comparison with fewer bytes than the register has is one with how it begins.
    fn compare(&mut self, how: Compare, value: &[u8]) -> &mut Self {
        self.expression("cmp", |it| {
            it.be32(1, REGISTER);
            it.be32(2, how as u32);
            it.nested(3, |data| data.bytes(VALUE, value));
        })
    }

    fn range(&mut self, first: Ipv4Addr, last: Ipv4Addr) -> &mut Self {
        self.expression("range", |it| {
            it.be32(1, REGISTER);
            it.be32(2, Compare::Equal as u32);
            it.nested(3, |data| data.bytes(VALUE, &first.octets()));
            it.nested(4, |data| data.bytes(VALUE, &last.octets()));
        })
    }

    fn verdict(&mut self, code: u32) {
        self.expression("immediate", |it| {
            it.be32(1, VERDICT_REGISTER);
            it.nested(2, |data| {
                data.nested(VERDICT, |verdict| verdict.be32(1, code));
            });
        });
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attributes)) -> &mut Self {
        self.0.nested(ELEMENT, |element| {
            element.text(EXPRESSION_NAME, name);
            element.nested(EXPRESSION_DATA, data);
        });
        self
    }
}

/// Whether a rule, as the kernel tells it, accepts all that comes from, or goes to, interfaces
/// whose names begin like this: it may count, but has no other condition.
pub(super) fn accepts(rule: &[u8], what: Accepts, prefix: &str) -> bool {
    let wanted = match what {
        Accepts::From => META_IIFNAME,
        Accepts::To => META_OIFNAME,
    };
    let mut by_interface = false;
    let mut accepted = false;
    for expression in elements(rule) {
        let data = attribute(expression, EXPRESSION_DATA).unwrap_or_default();
        let is_so = match text(expression, EXPRESSION_NAME).as_deref() {
            Some("counter") => true,
            Some("meta") => attribute(data, 2).and_then(be32) == Some(wanted),
            Some("cmp") => {
                let equal = attribute(data, 2).and_then(be32) == Some(Compare::Equal as u32);
                let value = attribute(data, 3).and_then(|value| attribute(value, VALUE));
                by_interface = equal && value == Some(prefix.as_bytes());
                by_interface
            }
            Some("immediate") => {
                let verdict = attribute(data, 2).and_then(|value| attribute(value, VERDICT));
                let code = verdict
                    .and_then(|verdict| attribute(verdict, 1))
                    .and_then(be32);
                accepted = code == Some(ACCEPT);
                accepted
            }
            _ => false,
        };
        if !is_so {
            return false;
        }
    }
    by_interface && accepted
}

/// Whether a rule, as the kernel tells it, drops or rejects whatever comes to it.
pub(super) fn drops_all(rule: &[u8]) -> bool {
    let mut dropped = false;
    for expression in elements(rule) {
        let data = attribute(expression, EXPRESSION_DATA).unwrap_or_default();
        dropped = match text(expression, EXPRESSION_NAME).as_deref() {
            Some("counter" | "log") => dropped,
            Some("reject") => true,
            Some("immediate") => verdict_of(data) == Some(DROP),
            _ => return false,
        };
    }
    dropped
}

/// What an immediate expression has done with the packet.
fn verdict_of(immediate: &[u8]) -> Option<u32> {
    let data = attribute(immediate, 2)?;
    be32(attribute(attribute(data, VERDICT)?, 1)?)
}

/// The values of a list.
fn elements(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let [a, b, ..] = *list.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let element = list.get(4..length)?;
        list = list.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(element)
    })
}

#[cfg(test)]
impl Expressions<'_> {
    /// `jump CHAIN`.
    pub(in crate::net) fn jump(&mut self, chain: &str) {
        self.expression("immediate", |it| {
            it.be32(1, VERDICT_REGISTER);
            it.nested(2, |data| {
                data.nested(VERDICT, |verdict| {
                    verdict.be32(1, (-3i32).cast_unsigned());
                    verdict.text(2, chain);
                });
            });
        });
    }
}
