//! A syslog receiver over TLS (RFC 5425), and how what it gets is read.

use std::{io, path::Path};

use super::{
    logplex::{Dialect, Message, message_of},
    stream::{Break, FakeStream},
};

/// See the module.
#[derive(Debug)]
pub struct FakeSyslog(FakeStream);

impl FakeSyslog {
    /// Writes the certificate that a client must trust to `certificate`. Each of the first
    /// connections breaks in its way.
    ///
    /// # Errors
    /// When it cannot be made or written, or there is no port.
    pub fn start(certificate: &Path, breaks: impl IntoIterator<Item = Break>) -> io::Result<Self> {
        Ok(Self(FakeStream::over_tls(certificate, breaks)?))
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!(
            "syslog+tls://localhost:{}?hostname=box",
            self.0.address().port()
        )
    }

    /// The whole messages so far; `None` when what came is none.
    pub fn messages(&self) -> Option<Vec<Message>> {
        let connections = self.0.connections();
        let messages = connections.iter().map(|read| whole_messages(read));
        Some(messages.collect::<Option<Vec<_>>>()?.concat())
    }
}

/// The whole messages of a stream, each behind its count of bytes; `None` when one is none.
pub fn whole_messages(mut rest: &[u8]) -> Option<Vec<Message>> {
    let mut messages = Vec::new();
    loop {
        let Some(blank) = rest.iter().position(|byte| *byte == b' ') else {
            return Some(messages);
        };
        let length: usize = str::from_utf8(&rest[..blank]).ok()?.parse().ok()?;
        let Some(message) = rest.get(blank + 1..blank + 1 + length) else {
            return Some(messages);
        };
        messages.push(message_of(Dialect::Logplex, message)?);
        rest = &rest[blank + 1 + length..];
    }
}
