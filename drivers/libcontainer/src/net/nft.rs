//! The messages of `nf_tables`, as far as they are needed here.
//!
//! By netlink, without the `nft` program: a host may have none, and a rule takes half a
//! millisecond this way. What the rules are for is decided in [`super::rules`] and
//! [`super::forward`].

mod expressions;

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;

pub(super) use self::expressions::{Attributes, Expressions};
use super::netlink::Socket;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// A netlink header, and the netfilter one after it.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
/// The kind of user data that `nft` and `iptables` show as the comment of a rule.
const USERDATA_COMMENT: u8 = 0;

/// The protocols whose packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Inet,
    Ip,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ip]
            .into_iter()
            .find(|family| family.number() == number)
    }

    /// As `nft` writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
        }
    }
}

/// Where packets come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Postrouting = 4,
}

/// A chain that packets come to, as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseChain {
    pub(super) family: Family,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) hook: u32,
    pub(super) drops: bool,
}

/// A rule, as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) handle: u64,
    pub(super) expressions: Vec<u8>,
    pub(super) comment: Option<String>,
}

/// What a rule may accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepts {
    From,
    To,
}

impl Rule {
    /// Whether the rule accepts all that comes from, or goes to, interfaces whose names begin
    /// like this.
    pub(super) fn accepts(&self, what: Accepts, prefix: &str) -> bool {
        expressions::accepts(&self.expressions, what, prefix)
    }

    /// Whether no packet gets past the rule.
    pub(super) fn drops_all(&self) -> bool {
        expressions::drops_all(&self.expressions)
    }
}

/// Changes that are made all at once, or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            sequence: 0,
        };
        batch.boundary(BATCH_BEGIN);
        batch
    }

    /// Makes a table, unless it is there.
    pub(super) fn add_table(&mut self, family: Family, table: &str) {
        self.change(NEW_TABLE, CREATE, family, |it| it.text(TABLE_NAME, table));
    }

    pub(super) fn delete_table(&mut self, family: Family, table: &str) {
        self.change(DELETE_TABLE, 0, family, |it| it.text(TABLE_NAME, table));
    }

    /// A chain that no packet comes to by itself.
    pub(super) fn add_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.change(NEW_CHAIN, CREATE, family, |it| {
            it.text(CHAIN_TABLE, table);
            it.text(CHAIN_NAME, chain);
        });
    }

    /// A chain at a hook, which accepts what none of its rules decides.
    pub(super) fn add_base_chain(
        &mut self,
        (family, table, chain): (Family, &str, &str),
        kind: &str,
        hook: Hook,
        priority: i32,
    ) {
        self.change(NEW_CHAIN, CREATE, family, |it| {
            it.text(CHAIN_TABLE, table);
            it.text(CHAIN_NAME, chain);
            it.nested(CHAIN_HOOK, |hooked| {
                hooked.be32(HOOK_NUMBER, hook as u32);
                hooked.be32(HOOK_PRIORITY, priority.cast_unsigned());
            });
            it.be32(CHAIN_POLICY, 1);
            it.text(CHAIN_TYPE, kind);
        });
    }

    /// A rule after all others of its chain.
    pub(super) fn append(
        &mut self,
        (family, table, chain): (Family, &str, &str),
        rule: impl FnOnce(&mut Expressions<'_>),
    ) {
        self.change(NEW_RULE, CREATE | APPEND, family, |it| {
            it.text(RULE_TABLE, table);
            it.text(RULE_CHAIN, chain);
            it.nested(RULE_EXPRESSIONS, |list| rule(&mut Expressions::of(list)));
        });
    }

    /// A rule before all others of its chain, with a comment by which it is known again.
    pub(super) fn insert(
        &mut self,
        (family, table, chain): (Family, &str, &str),
        comment: &str,
        rule: impl FnOnce(&mut Expressions<'_>),
    ) {
        self.change(NEW_RULE, CREATE, family, |it| {
            it.text(RULE_TABLE, table);
            it.text(RULE_CHAIN, chain);
            it.nested(RULE_EXPRESSIONS, |list| rule(&mut Expressions::of(list)));
            let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
            let mut userdata = vec![USERDATA_COMMENT, length];
            userdata.extend(comment.bytes().take(usize::from(length) - 1));
            userdata.push(0);
            it.bytes(RULE_USERDATA, &userdata);
        });
    }

    pub(super) fn delete_rule(
        &mut self,
        (family, table, chain): (Family, &str, &str),
        handle: u64,
    ) {
        self.change(DELETE_RULE, 0, family, |it| {
            it.text(RULE_TABLE, table);
            it.text(RULE_CHAIN, chain);
            it.bytes(RULE_HANDLE, &handle.to_be_bytes());
        });
    }

    /// Makes the changes.
    pub(super) fn commit(mut self) -> io::Result<()> {
        let mut outstanding = self.sequence - 1;
        self.boundary(BATCH_END);
        let mut socket = Socket::open(NETLINK_NETFILTER)?;
        socket.send(&self.bytes)?;
        while outstanding > 0 {
            let answer = socket.receive()?;
            for message in Messages(answer) {
                if message.kind == ERROR {
                    error_of(message.body)?;
                    outstanding = outstanding.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    fn boundary(&mut self, kind: u16) {
        self.sequence += 1;
        message(
            &mut self.bytes,
            kind,
            REQUEST,
            self.sequence,
            (0, SUBSYSTEM),
            |_| (),
        );
    }

    fn change(
        &mut self,
        operation: u16,
        flags: u16,
        family: Family,
        content: impl FnOnce(&mut Attributes),
    ) {
        self.sequence += 1;
        let kind = SUBSYSTEM << 8 | operation;
        let flags = REQUEST | ACK | flags;
        message(
            &mut self.bytes,
            kind,
            flags,
            self.sequence,
            (family.number(), 0),
            content,
        );
    }
}

/// Whether there is this chain.
pub(super) fn has_chain(family: Family, table: &str, chain: &str) -> io::Result<bool> {
    let asked = query(GET_CHAIN, ACK, family.number(), |it| {
        it.text(CHAIN_TABLE, table);
        it.text(CHAIN_NAME, chain);
    });
    match asked {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Every chain at a hook of IPv4 packets.
pub(super) fn base_chains() -> io::Result<Vec<BaseChain>> {
    let answers = query(GET_CHAIN, DUMP, 0, |_| ())?;
    Ok(answers.iter().filter_map(|body| base_chain(body)).collect())
}

/// Every rule of a chain, in their order.
pub(super) fn rules(family: Family, table: &str, chain: &str) -> io::Result<Vec<Rule>> {
    let answers = query(GET_RULE, DUMP, family.number(), |it| {
        it.text(RULE_TABLE, table);
        it.text(RULE_CHAIN, chain);
    })?;
    // Older kernels do not look at the names.
    let is_meant = |body: &&Vec<u8>| {
        let attributes = body.get(4..).unwrap_or_default();
        text(attributes, RULE_TABLE).as_deref() == Some(table)
            && text(attributes, RULE_CHAIN).as_deref() == Some(chain)
    };
    Ok(answers
        .iter()
        .filter(is_meant)
        .filter_map(|body| rule(body))
        .collect())
}

/// Asks for things; every answer without its netlink header.
fn query(
    operation: u16,
    flags: u16,
    family: u8,
    content: impl FnOnce(&mut Attributes),
) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    let kind = SUBSYSTEM << 8 | operation;
    message(&mut bytes, kind, REQUEST | flags, 1, (family, 0), content);
    let mut socket = Socket::open(NETLINK_NETFILTER)?;
    socket.send(&bytes)?;
    let mut answers = Vec::new();
    loop {
        for message in Messages(socket.receive()?) {
            match message.kind {
                DONE => return Ok(answers),
                ERROR => return error_of(message.body).map(|()| answers),
                _ => answers.push(message.body.to_vec()),
            }
        }
    }
}

fn message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    content: impl FnOnce(&mut Attributes),
) {
    let mut attributes = Attributes::default();
    content(&mut attributes);
    let content = attributes.into_bytes();
    let length = u32::try_from(HEADERS + content.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(content);
}

struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

/// The messages of one answer.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (header, _) = self.0.split_first_chunk::<HEADER>()?;
        let [a, b, c, d, low, high, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([low, high]),
            body,
        })
    }
}

fn error_of(body: &[u8]) -> io::Result<()> {
    let code = body
        .first_chunk()
        .map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(-code))
}

fn base_chain(body: &[u8]) -> Option<BaseChain> {
    let family = Family::from_number(*body.first()?)?;
    let attributes = body.get(4..)?;
    let hook = attribute(attributes, CHAIN_HOOK)?;
    Some(BaseChain {
        family,
        table: text(attributes, CHAIN_TABLE)?,
        name: text(attributes, CHAIN_NAME)?,
        hook: be32(attribute(hook, HOOK_NUMBER)?)?,
        drops: attribute(attributes, CHAIN_POLICY).and_then(be32) == Some(0),
    })
}

fn rule(body: &[u8]) -> Option<Rule> {
    let attributes = body.get(4..)?;
    let comment = attribute(attributes, RULE_USERDATA).and_then(|userdata| {
        let (&[USERDATA_COMMENT, length], rest) = userdata.split_first_chunk::<2>()? else {
            return None;
        };
        let text = rest.get(..usize::from(length).saturating_sub(1))?;
        String::from_utf8(text.to_vec()).ok()
    });
    Some(Rule {
        handle: u64::from_be_bytes(attribute(attributes, RULE_HANDLE)?.try_into().ok()?),
        expressions: attribute(attributes, RULE_EXPRESSIONS)
            .unwrap_or_default()
            .to_vec(),
        comment,
    })
}

/// The value of an attribute.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        // The upper two bits say how the value is written.
        if u16::from_ne_bytes([c, d]) & 0x3fff == wanted {
            return bytes.get(4..length);
        }
        bytes = bytes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn text(attributes: &[u8], wanted: u16) -> Option<String> {
    let value = attribute(attributes, wanted)?;
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8(value.to_vec()).ok()
}

fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
impl Batch {
    /// As other firewalls do: a chain at the forward hook that drops what it does not accept.
    pub(super) fn add_gate(&mut self, (family, table, chain): (Family, &str, &str)) {
        self.add_table(family, table);
        self.add_base_chain((family, table, chain), "filter", Hook::Forward, 0);
        self.change(NEW_CHAIN, 0, family, |it| {
            it.text(CHAIN_TABLE, table);
            it.text(CHAIN_NAME, chain);
            it.be32(CHAIN_POLICY, 0);
        });
    }
}
