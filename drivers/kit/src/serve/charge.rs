//! What the requests of a stranger hold in memory, charged to its user.
//!
//! Decided here: what counts. A message counts with the length that it announces, for the library
//! makes room for all of it then, however slowly it comes. Of the messages of a stream the longest
//! one counts: those before are gone when the next one is read, but their room is kept. What is
//! charged is given back when nobody holds it any more: the body, the call, or what the call has
//! set going and goes on without its caller.

use std::{
    error::Error,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use nix::unistd::Uid;
use tonic::Status;

use super::{
    calls::MAX_MESSAGE,
    quota::{Pass, Quota},
};

/// What each call may hold without being charged: nearly every request is shorter.
const FREE: usize = 16 << 10;
/// The flag and the length before each message.
const HEADER: usize = 5;

/// What one call holds, as long as one of its clones is there.
#[derive(Clone, Debug)]
pub(crate) struct Charge(Arc<Charging>);

#[derive(Debug)]
struct Charging {
    pass: Mutex<Pass>,
    most: usize,
}

impl Charge {
    /// Nothing yet.
    pub(super) fn new(bytes: &Quota, uid: Uid) -> Self {
        Self(Arc::new(Charging {
            pass: Mutex::new(bytes.none(uid)),
            most: bytes.most(),
        }))
    }

    /// The call has a message of `length` bytes.
    fn message(&self, length: usize) -> Result<(), Status> {
        let mut pass = self.0.pass.lock().unwrap_or_else(PoisonError::into_inner);
        if pass.grow(length.saturating_sub(FREE)) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "a message of {length} bytes is too much now: the requests of this user that are \
             under way may hold {} bytes in all, and {FREE} of each are free",
            self.0.most
        )))
    }

    /// Holds it for what goes on with the call's request.
    pub(crate) async fn hold<T>(self, work: impl Future<Output = T>) -> T {
        let done = work.await;
        drop(self);
        done
    }
}

/// A request's body, which is charged.
#[derive(Debug)]
pub(super) struct Charged<B> {
    body: B,
    messages: Messages,
    charge: Charge,
}

impl<B> Charged<B> {
    pub(super) fn new(body: B, charge: Charge) -> Self {
        Self {
            body,
            messages: Messages::default(),
            charge,
        }
    }
}

impl<B> Body for Charged<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(frame) => frame.map_err(Into::into),
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(frame.and_then(|frame| {
            if let Some(bytes) = frame.data_ref() {
                this.charge.message(this.messages.longest(bytes))?;
            }
            Ok(frame)
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where the messages of a body begin: each is a flag, its length, and so many bytes.
#[derive(Debug, Default)]
struct Messages {
    header: [u8; HEADER],
    /// How much of the header is there.
    read: usize,
    /// How much of the message is to come.
    left: usize,
    longest: usize,
}

impl Messages {
    /// Reads on, and gives the length of the longest message that has begun.
    fn longest(&mut self, mut bytes: &[u8]) -> usize {
        loop {
            let (of_message, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= of_message.len();
            let (of_header, rest) = rest.split_at((HEADER - self.read).min(rest.len()));
            if of_header.is_empty() {
                return self.longest;
            }
            self.header[self.read..][..of_header.len()].copy_from_slice(of_header);
            self.read += of_header.len();
            bytes = rest;
            if self.read == HEADER {
                let [_flag, length @ ..] = self.header;
                self.read = 0;
                self.left = u32::from_be_bytes(length) as usize;
                // The library refuses a longer one before it makes room for it.
                if self.left <= MAX_MESSAGE {
                    self.longest = self.longest.max(self.left);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(HEADER + length, 0xff);
        bytes
    }

    #[test]
    fn the_longest_message_is_found_however_the_bytes_are_cut() {
        let bytes = [0, 3, 700, 0, 699].map(message).concat();
        for cut in 1..=bytes.len() {
            let mut messages = Messages::default();
            let longest = bytes.chunks(cut).map(|bytes| messages.longest(bytes));
            assert_eq!(longest.last(), Some(700), "in pieces of {cut}");
        }
    }

    #[test]
    fn a_message_counts_from_its_header_on_and_not_if_it_is_refused_anyway() {
        let mut messages = Messages::default();
        let bytes = message(MAX_MESSAGE);
        assert_eq!(messages.longest(&bytes[..HEADER - 1]), 0);
        assert_eq!(messages.longest(&bytes[HEADER - 1..HEADER]), MAX_MESSAGE);
        let mut messages = Messages::default();
        assert_eq!(messages.longest(&message(MAX_MESSAGE + 1)[..HEADER]), 0);
    }

    #[test]
    fn a_call_is_charged_until_nobody_holds_it() {
        let bytes = Quota::new(10);
        let charge = || Charge::new(&bytes, Uid::from_raw(4711));
        let (one, other) = (charge(), charge());
        one.message(FREE + 10).unwrap();
        one.message(FREE + 5).unwrap();
        other.message(FREE).unwrap();
        let refused = other.message(FREE + 1).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("hold 10 bytes"), "{refused}");
        let goes_on = one.clone();
        drop(one);
        other.message(FREE + 1).unwrap_err();
        drop(goes_on);
        other.message(FREE + 10).unwrap();
    }
}
