//! Blocking netlink: one request, and all that the kernel answers to it.
//!
//! Blocking, since the kernel answers in microseconds, since a dyno's network is made in a
//! thread of its own anyway (which enters the new namespace), and since it is taken down by
//! a process that has no async runtime.

use std::io;

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    sys::{self, protocols::NETLINK_ROUTE},
};

/// The kernel sends at most half of this at once.
const BUFFER: usize = 64 * 1024;

/// A socket to one part of the kernel, in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Socket {
    inner: sys::Socket,
    buffer: Vec<u8>,
}

impl Socket {
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut inner = sys::Socket::new(protocol)?;
        inner.bind_auto()?;
        Ok(Self {
            inner,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.inner.send(bytes, 0).map(drop)
    }

    /// The next part of the answer: whole messages.
    pub(super) fn receive(&mut self) -> io::Result<&[u8]> {
        self.buffer.clear();
        let length = self.inner.recv(&mut self.buffer, 0)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&self.buffer)
    }
}

/// Links, addresses and routes of one network namespace.
#[derive(Debug)]
pub(super) struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl Rtnl {
    /// For the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::open(NETLINK_ROUTE)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Has something done, or asks for one thing.
    pub(super) fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags)
    }

    /// Asks for all there is of a kind.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes)?;

        let mut answers = Vec::new();
        loop {
            let mut rest = self.socket.receive()?;
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(1)..).unwrap_or_default();
                // Of a request that failed half-way before: not ours.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }
}
