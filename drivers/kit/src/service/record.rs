//! What a driver keeps of a dyno to find it again: the answers to List, and to a repeated Start.
//!
//! The service makes a [`Record`], the runtime keeps its bytes beside the dyno, and hands them
//! back after a restart. Nothing secret is in it: of the environment there is a hash only. The
//! bytes are a message of protocol buffers, so that a later driver reads what an earlier one
//! wrote; the hash comes last in it, so that a record that was cut is none.

use std::time::Duration;

use hsup_proto::driver::StartRequest;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{
    check,
    table::{Key, Spec},
};

/// Raised when the meaning of what is there changes.
const FORMAT: u32 = 1;

/// What the service wants to know again of a dyno after the driver was restarted. Opaque to a
/// runtime, which keeps it as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    kept: Kept,
    hash: [u8; 32],
}

/// As it is written.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Kept {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint32, tag = "2")]
    uid: u32,
    #[prost(string, tag = "3")]
    dyno_id: String,
    #[prost(string, tag = "4")]
    supervisor_id: String,
    #[prost(string, tag = "5")]
    artifact: String,
    #[prost(string, tag = "6")]
    app: String,
    #[prost(uint64, tag = "7")]
    release: u64,
    #[prost(string, tag = "8")]
    process_type: String,
    #[prost(uint32, tag = "9")]
    process_number: u32,
    #[prost(uint32, tag = "10")]
    linger_ms: u32,
    #[prost(int64, tag = "11")]
    started_at_unix_ms: i64,
    #[prost(bytes = "vec", tag = "15")]
    hash: Vec<u8>,
}

/// Bytes are no record of a dyno.
#[derive(Debug, Error)]
pub enum RecordError {
    /// They are something else.
    #[error("these bytes are not the record of a dyno")]
    NotOne(#[source] prost::DecodeError),
    /// Another version of the kit wrote them.
    #[error("the record of the dyno has format {0}, and this driver knows {FORMAT}")]
    Format(u32),
    /// Part of it is missing.
    #[error("the record of the dyno is cut short or damaged")]
    Damaged,
}

impl Record {
    /// What is to be kept of a Start of the user `uid` that is accepted now.
    pub(super) fn new(uid: u32, request: &StartRequest, started_at_unix_ms: i64) -> Self {
        Self {
            kept: Kept {
                format: FORMAT,
                uid,
                dyno_id: request.dyno_id.clone(),
                supervisor_id: request.supervisor_id.clone(),
                artifact: request.artifact.clone(),
                app: request.app.clone(),
                release: request.release,
                process_type: request.process_type.clone(),
                process_number: request.process_number,
                linger_ms: request.linger_ms,
                started_at_unix_ms,
                hash: Vec::new(),
            },
            // Maps are sorted in these types, so equal requests have equal bytes.
            hash: Sha256::digest(request.encode_to_vec()).into(),
        }
    }

    /// The bytes to keep.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut kept = self.kept.clone();
        kept.hash = self.hash.to_vec();
        kept.encode_to_vec()
    }

    /// The record that was kept.
    ///
    /// # Errors
    ///
    /// When these are not bytes that [`to_bytes`](Self::to_bytes) gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut kept = Kept::decode(bytes).map_err(RecordError::NotOne)?;
        if kept.format != FORMAT {
            return Err(RecordError::Format(kept.format));
        }
        let hash = std::mem::take(&mut kept.hash);
        let hash = hash.try_into().map_err(|_| RecordError::Damaged)?;
        let names = [&kept.dyno_id, &kept.supervisor_id];
        if names.iter().any(|name| check::id("id", name).is_err()) {
            return Err(RecordError::Damaged);
        }
        Ok(Self { kept, hash })
    }

    /// Whose dyno it is.
    pub const fn uid(&self) -> u32 {
        self.kept.uid
    }

    /// What its owner calls it.
    pub fn dyno_id(&self) -> &str {
        &self.kept.dyno_id
    }

    /// What it runs.
    pub fn artifact(&self) -> &str {
        &self.kept.artifact
    }

    /// The app it belongs to.
    pub fn app(&self) -> &str {
        &self.kept.app
    }

    /// When its start was accepted.
    pub const fn started_at_unix_ms(&self) -> i64 {
        self.kept.started_at_unix_ms
    }

    /// How long it may run on without its supervisor; zero: for ever.
    pub const fn linger(&self) -> Duration {
        Duration::from_millis(self.kept.linger_ms as u64)
    }

    pub(super) fn key(&self) -> Key {
        Key::new(self.kept.uid, &self.kept.dyno_id)
    }

    pub(super) fn spec(&self) -> Spec {
        let Kept {
            supervisor_id,
            artifact,
            app,
            release,
            process_type,
            process_number,
            linger_ms,
            ..
        } = &self.kept;
        Spec {
            hash: self.hash,
            supervisor_id: supervisor_id.as_str().into(),
            artifact: artifact.as_str().into(),
            app: app.as_str().into(),
            release: *release,
            process_type: process_type.as_str().into(),
            process_number: *process_number,
            linger: Duration::from_millis((*linger_ms).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> StartRequest {
        let mut request = StartRequest {
            dyno_id: "web-1".into(),
            supervisor_id: "s".into(),
            artifact: "a".into(),
            app: "app".into(),
            release: 7,
            process_type: "web".into(),
            process_number: 1,
            linger_ms: 1500,
            argv: vec!["run".into(), "hunter2".into()],
            ..Default::default()
        };
        request.env.insert("TOKEN".into(), "hunter2".into());
        request
    }

    #[test]
    fn a_record_is_the_same_again() {
        let record = Record::new(1000, &request(), 12);
        let again = Record::from_bytes(&record.to_bytes()).unwrap();
        assert_eq!(again, record);
        assert_eq!(again.key(), Key::new(1000, "web-1"));
        assert_eq!(again.spec().linger, Duration::from_millis(1500));
        let mut other = request();
        other.env.insert("TOKEN".into(), "hunter3".into());
        let other = Record::new(1000, &other, 12);
        assert_ne!(other.spec().hash, again.spec().hash);
    }

    #[test]
    fn nothing_secret_is_in_it() {
        let bytes = Record::new(1000, &request(), 12).to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("hunter2") && !text.contains("TOKEN"));
    }

    #[test]
    fn what_is_not_one_is_told() {
        let bytes = Record::new(1000, &request(), 12).to_bytes();
        for end in 0..bytes.len() {
            Record::from_bytes(&bytes[..end]).unwrap_err();
        }
        let later = Kept {
            format: 2,
            ..Kept::default()
        };
        let error = Record::from_bytes(&later.encode_to_vec()).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // It must not panic.
            let _ = Record::from_bytes(&bytes).is_ok();
        }
    }
}
