//! What goes wrong, and when: a file that is read anew at every call, so that a test can
//! change its mind.
//!
//! A line is `[once] CALL FAULT`. The first one that fits a call is carried out; one that
//! begins with `once` fits no more when it has happened, in this process or in one before it.
//! The lines `is not-ready WHY`, `is instance ID` and `is own-network` change what the driver
//! says of itself; `is fetching` has it fetch the slugs of its builds.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use tonic::{Code, Status};

/// What goes wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is never answered, and nothing is done.
    Hang,
    /// It begins so much later.
    Delay(Duration),
    /// It fails, and nothing is done.
    Refuse(Code, String),
    /// It fails, and everything is done.
    RefuseAfter(Code, String),
    /// The driver dies, and nothing is done.
    Die,
    /// The driver dies when everything is done.
    DieAfter,
}

/// What the driver says of itself that is not so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pretence {
    /// It is not ready, and why.
    pub(crate) not_ready: Option<String>,
    /// It is another instance.
    pub(crate) instance: Option<String>,
    /// Every dyno has a network of its own.
    pub(crate) own_network: bool,
    /// It fetches slugs.
    pub(crate) fetching: bool,
}

/// The script, and the list of calls beside it.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    path: PathBuf,
}

impl Script {
    /// The script at `path`; without one nothing goes wrong.
    pub(crate) const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Notes a call, and answers what goes wrong with it.
    pub(crate) fn call(&self, call: &str, about: &str) -> io::Result<Option<Fault>> {
        let text = self.text()?;
        let happened = read(&self.calls())?;
        for line in text.lines() {
            let (once, line) = match line.strip_prefix("once ") {
                Some(rest) => (true, rest),
                None => (false, line),
            };
            let Some(fault) = line
                .strip_prefix(call)
                .and_then(|rest| rest.strip_prefix(' '))
            else {
                continue;
            };
            let spent = || {
                happened
                    .lines()
                    .filter_map(|line| line.split_once(": "))
                    .any(|(of, done)| of.split(' ').next() == Some(call) && done == fault)
            };
            if once && spent() {
                continue;
            }
            self.note(call, about, fault)?;
            return fault.parse().map(Some).map_err(io::Error::other);
        }
        self.note(call, about, "-")?;
        Ok(None)
    }

    /// What the lines `is …` have it say of itself.
    pub(crate) fn pretence(&self) -> io::Result<Pretence> {
        let mut pretence = Pretence::default();
        for line in self.text()?.lines() {
            match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["is", "not-ready", why] => pretence.not_ready = Some(why.to_owned()),
                ["is", "instance", id] => pretence.instance = Some(id.to_owned()),
                ["is", "own-network"] => pretence.own_network = true,
                ["is", "fetching"] => pretence.fetching = true,
                _ => {}
            }
        }
        Ok(pretence)
    }

    fn text(&self) -> io::Result<String> {
        read(&self.path)
    }

    fn calls(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".calls");
        path.into()
    }

    fn note(&self, call: &str, about: &str, fault: &str) -> io::Result<()> {
        let mut file: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.calls())?;
        file.write_all(format!("{call} {about}: {fault}\n").as_bytes())
    }
}

/// The text of a file; one that is not there is empty.
fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result,
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        Ok(match word {
            "hang" => Self::Hang,
            "die" => Self::Die,
            "die-after" => Self::DieAfter,
            "delay" => Self::Delay(Duration::from_millis(
                rest.parse().map_err(|_| format!("no time in `{text}`"))?,
            )),
            _ => match word.strip_suffix("-after") {
                Some(word) => Self::RefuseAfter(code(word)?, rest.to_owned()),
                None => Self::Refuse(code(word)?, rest.to_owned()),
            },
        })
    }
}

fn code(word: &str) -> Result<Code, String> {
    Ok(match word {
        "unknown" => Code::Unknown,
        "invalid-argument" => Code::InvalidArgument,
        "not-found" => Code::NotFound,
        "already-exists" => Code::AlreadyExists,
        "permission-denied" => Code::PermissionDenied,
        "resource-exhausted" => Code::ResourceExhausted,
        "failed-precondition" => Code::FailedPrecondition,
        "aborted" => Code::Aborted,
        "internal" => Code::Internal,
        "unavailable" => Code::Unavailable,
        other => return Err(format!("no fault `{other}`")),
    })
}

/// An error of the script's own: the test must see it, so it looks like no planted one.
pub(crate) fn broken(error: &io::Error) -> Status {
    Status::data_loss(format!("test-driver: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, Script) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults");
        File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        (dir, Script::at(path))
    }

    #[test]
    fn the_first_line_that_fits_counts_and_once_is_once() {
        let (_dir, script) =
            script("once start unknown-after oh no\nstart unavailable\nwait delay 5\n");
        let first = script.call("start", "web-1").unwrap();
        let expected = Fault::RefuseAfter(Code::Unknown, "oh no".to_owned());
        assert_eq!(first, Some(expected));
        let second = script.call("start", "web-2").unwrap();
        assert_eq!(
            second,
            Some(Fault::Refuse(Code::Unavailable, String::new()))
        );
        let wait = script.call("wait", "web-2").unwrap();
        assert_eq!(wait, Some(Fault::Delay(Duration::from_millis(5))));
        assert_eq!(script.call("stop", "web-2").unwrap(), None);
        let calls = read(&script.calls()).unwrap();
        assert_eq!(
            calls,
            "start web-1: unknown-after oh no\nstart web-2: unavailable\n\
             wait web-2: delay 5\nstop web-2: -\n"
        );
    }

    #[test]
    fn a_word_that_is_no_fault_is_told() {
        let (_dir, script) = script("start explode\n");
        let error = script.call("start", "web-1").unwrap_err();
        assert_eq!(error.to_string(), "no fault `explode`");
    }

    #[test]
    fn a_driver_may_pretend() {
        let (_dir, script) = script("is not-ready warming up\nis instance b\n");
        let expected = Pretence {
            not_ready: Some("warming up".to_owned()),
            instance: Some("b".to_owned()),
            own_network: false,
            fetching: false,
        };
        assert_eq!(script.pretence().unwrap(), expected);
    }
}
