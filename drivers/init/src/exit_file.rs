//! The file that says how a dyno ended, for a driver that may not run at that moment.
//!
//! Its room is taken when the dyno starts: a full file system must not lose an exit status.

use std::{ffi::CStr, fs::File, io, os::unix::fs::FileExt as _, time::SystemTime};

use crate::{outcome::Outcome, sys};

const NAME: &CStr = c"exit.json";
const DRAFT: &CStr = c"exit.json.new";
/// More than is ever written, and the least that a file takes.
const ROOM: [u8; 4096] = [b' '; 4096];

/// What there is to say.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) outcome: Outcome,
    pub(crate) oom_killed: bool,
    pub(crate) at_unix_ms: u64,
}

impl Exit {
    pub(crate) fn now(outcome: Outcome, oom_killed: bool) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            outcome,
            oom_killed,
            at_unix_ms: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn to_json(&self) -> String {
        let (kind, number) = match self.outcome {
            Outcome::Code(code) => ("code", code),
            Outcome::Signal(signal) => ("signal", signal),
        };
        format!(
            "{{\"{kind}\":{number},\"oom_killed\":{},\"exited_at_unix_ms\":{}}}\n",
            self.oom_killed, self.at_unix_ms
        )
    }
}

#[derive(Debug)]
pub(crate) struct ExitFile {
    directory: File,
    /// The room, unless there was none yet.
    draft: Option<File>,
}

impl ExitFile {
    pub(crate) fn reserve(directory: File) -> Self {
        let draft = Self::draft(&directory).ok();
        Self { directory, draft }
    }

    /// The folder that it is in.
    pub(crate) fn directory(&self) -> &File {
        &self.directory
    }

    /// Replaces the file by one that is complete.
    pub(crate) fn write(&mut self, exit: &Exit) -> io::Result<()> {
        let draft = match self.draft.take() {
            Some(draft) => draft,
            None => Self::draft(&self.directory)?,
        };
        let text = exit.to_json();
        draft.write_all_at(text.as_bytes(), 0)?;
        draft.set_len(u64::try_from(text.len()).unwrap_or_default())?;
        sys::rename_in(&self.directory, DRAFT, NAME)
    }

    fn draft(directory: &File) -> io::Result<File> {
        let draft = sys::create_in(directory, DRAFT)?;
        draft.write_all_at(&ROOM, 0)?;
        Ok(draft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_end_are_said() {
        let mut exit = Exit {
            outcome: Outcome::Code(7),
            oom_killed: false,
            at_unix_ms: 1_700_000_000_123,
        };
        assert_eq!(
            exit.to_json(),
            "{\"code\":7,\"oom_killed\":false,\"exited_at_unix_ms\":1700000000123}\n"
        );
        exit.outcome = Outcome::Signal(9);
        exit.oom_killed = true;
        assert_eq!(
            exit.to_json(),
            "{\"signal\":9,\"oom_killed\":true,\"exited_at_unix_ms\":1700000000123}\n"
        );
    }
}
