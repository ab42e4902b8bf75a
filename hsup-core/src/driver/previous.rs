//! Which driver an earlier life of this hsup used: it may still serve, with dynos of ours.
//!
//! It is noted beside the driver's socket, which is found without any note: its path follows
//! from the supervisor's id. What is noted is who should be there, and which process to end.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::DriverSpec;
use crate::{
    files::{Links, read_regular, write_atomic},
    paths::Paths,
};

/// A note is no longer than this.
const NOTE_MAX: u64 = 64 * 1024;

/// A driver of an earlier life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// Which one, if that is known.
    pub driver: Option<DriverSpec>,
    /// Where it listened.
    pub socket: PathBuf,
    /// Its process, if hsup started it and that is known.
    pub pid: Option<i32>,
}

impl Previous {
    /// Whether it may be the driver that `spec` asks for.
    pub fn may_be(&self, spec: &DriverSpec) -> bool {
        self.driver.as_ref().is_none_or(|driver| driver == spec)
    }
}

/// What is noted.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    driver: DriverSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
}

/// Where it is noted.
#[derive(Clone, Debug)]
pub struct DriverNote {
    path: PathBuf,
    child_socket: PathBuf,
}

impl DriverNote {
    /// The note in a supervisor's own folder.
    pub fn in_dir(run_dir: &Path) -> Self {
        Self {
            path: run_dir.join("driver.json"),
            child_socket: Paths::driver_socket(run_dir),
        }
    }

    /// The driver that an earlier life used and did not end.
    pub fn read(&self) -> Option<Previous> {
        let noted = match self.noted() {
            Ok(noted) => noted,
            Err(error) => {
                debug!(%error, "no note of a driver");
                None
            }
        };
        match noted {
            Some(Noted { driver, pid }) => Some(Previous {
                socket: match &driver {
                    DriverSpec::Child(_) => self.child_socket.clone(),
                    DriverSpec::Socket(path) => path.clone(),
                },
                driver: Some(driver),
                pid,
            }),
            None => self.child_socket.exists().then(|| Previous {
                driver: None,
                socket: self.child_socket.clone(),
                pid: None,
            }),
        }
    }

    fn noted(&self) -> io::Result<Option<Noted>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let text = read_regular(&self.path, Links::Refuse, NOTE_MAX).map_err(io::Error::other)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Notes which driver is used now. No note is better than a wrong one.
    pub(super) fn write(&self, driver: &DriverSpec, pid: Option<i32>) {
        let noted = Noted {
            driver: driver.clone(),
            pid,
        };
        let text = serde_json::to_vec(&noted).map_err(io::Error::from);
        if let Err(error) = text.and_then(|text| write_atomic(&self.path, &text)) {
            warn!(%error, path = %self.path.display(), "driver not noted");
            self.remove();
        }
    }

    /// There is no driver to be found again.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(%error, "note of the driver not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(name: &str) -> DriverSpec {
        DriverSpec::Child(name.to_owned())
    }

    #[test]
    fn what_was_noted_is_read_and_a_damaged_note_leaves_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let note = DriverNote::in_dir(dir.path());
        let socket = Paths::driver_socket(dir.path());
        assert_eq!(note.read(), None);

        note.write(&child("simple"), Some(7));
        let previous = note.read().unwrap();
        assert_eq!((&previous.socket, previous.pid), (&socket, Some(7)));
        assert!(previous.may_be(&child("simple")) && !previous.may_be(&child("docker")));

        let elsewhere = DriverSpec::Socket("/run/d.sock".into());
        note.write(&elsewhere, None);
        let previous = note.read().unwrap();
        assert_eq!(previous.socket, Path::new("/run/d.sock"));
        assert!(previous.may_be(&elsewhere) && !previous.may_be(&child("simple")));

        write_atomic(&note.path, b"{\"driver\":7").unwrap();
        assert_eq!(note.read(), None, "there is no socket");
        write_atomic(&socket, b"").unwrap();
        let previous = note.read().unwrap();
        assert_eq!((previous.driver.as_ref(), previous.pid), (None, None));
        assert!(previous.may_be(&child("docker")));
        note.remove();
        assert_eq!(note.read(), Some(previous));
    }
}
