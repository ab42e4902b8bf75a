//! What goes wrong with requests, and with which.

use std::sync::{Condvar, Mutex};

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this status and this body.
    Answer(u16, String),
    /// It is never answered.
    Hang,
    /// Half of the answer comes.
    Cut,
    /// The answer is 10 GB, and most of it never comes to an end.
    Flood,
    /// It is sent on to this place.
    Redirect(String),
    /// Nobody is there: the connection is closed.
    Gone,
}

impl Fault {
    /// Heroku's answer of this status.
    pub fn status(status: u16) -> Self {
        let (id, message) = match status {
            401 => ("unauthorized", "Invalid credentials provided."),
            403 => ("forbidden", "You do not have access to the app."),
            404 => ("not_found", "Couldn't find that."),
            429 => ("rate_limit", "Your account reached the API rate limit."),
            503 => ("maintenance", "Heroku API is temporarily unavailable."),
            _ => ("error", "An error happened."),
        };
        let body = format!(r#"{{"id":"{id}","message":"{message}"}}"#);
        Self::Answer(status, body)
    }
}

/// The faults that there are.
#[derive(Debug, Default)]
pub(super) struct Faults {
    of: Mutex<Vec<(String, Fault)>>,
    cleared: Condvar,
}

impl Faults {
    pub(super) fn add(&self, path: &str, fault: Fault) {
        self.of.lock().unwrap().push((path.to_owned(), fault));
    }

    pub(super) fn clear(&self) {
        self.of.lock().unwrap().clear();
        self.cleared.notify_all();
    }

    /// What goes wrong with a request for `path`.
    pub(super) fn of(&self, path: &str) -> Option<Fault> {
        let faults = self.of.lock().unwrap();
        let mut faults = faults.iter();
        let fault = faults.find(|(part, _)| path.contains(part.as_str()));
        fault.map(|(_, fault)| fault.clone())
    }

    /// Waits until nothing goes wrong any more.
    pub(super) fn wait_until_cleared(&self) {
        let faults = self.of.lock().unwrap();
        drop(self.cleared.wait_while(faults, |faults| !faults.is_empty()));
    }
}
