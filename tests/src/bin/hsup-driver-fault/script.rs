//! What goes wrong, and when: rules that are read anew at every call, so that a file of them can
//! be changed while the driver runs.
//!
//! The first rule that fits a call is carried out (`rule.rs`). Lines that begin with `is` change
//! what the driver says of itself.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hsup_tests::random::Random;
use tonic::Status;

use crate::rule::{Fault, Made, Rule};

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

/// Where the rules are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In this file; while there is none nothing goes wrong.
    File(PathBuf),
    /// They are these.
    Text(String),
}

impl Source {
    /// What is meant by an argument: a file, unless it has a blank and no path begins so.
    pub(crate) fn of(argument: &str) -> Self {
        let is_path = argument.starts_with(['/', '.']) || !argument.contains(' ');
        if is_path {
            Self::File(argument.into())
        } else {
            Self::Text(argument.replace(';', "\n"))
        }
    }

    /// The list of calls, where nobody has named one: beside the file.
    pub(crate) fn calls(&self) -> Option<PathBuf> {
        let Self::File(path) = self else { return None };
        let mut path = path.clone().into_os_string();
        path.push(".calls");
        Some(path.into())
    }

    fn read(&self) -> io::Result<String> {
        match self {
            Self::File(path) => read(path),
            Self::Text(text) => Ok(text.clone()),
        }
    }
}

/// The calls so far, a line each: `start web-1-…: die`, or `-` when it went well.
#[derive(Debug)]
enum Calls {
    /// Of this process and of those before it.
    File(PathBuf),
    /// Of this process.
    Memory(Mutex<String>),
}

/// The script, and the list of calls.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    source: Source,
    calls: Arc<Calls>,
    random: Arc<Mutex<Random>>,
}

impl Script {
    /// The script from there, with the calls listed in a file, if there is one. The chances of
    /// two processes with the same seed differ by what is listed when they begin: otherwise one
    /// that dies of its first call would do so for ever.
    pub(crate) fn new(source: Source, calls: Option<PathBuf>, seed: u64) -> Self {
        let listed = calls.as_ref().and_then(|path| path.metadata().ok());
        let listed = listed.map_or(0, |file| file.len());
        Self {
            source,
            calls: Arc::new(calls.map_or_else(|| Calls::Memory(Mutex::default()), Calls::File)),
            random: Arc::new(Mutex::new(Random::new(seed ^ (listed << 32)))),
        }
    }

    /// Notes a call, and answers what goes wrong with it.
    pub(crate) fn call(&self, call: &str, about: &str) -> io::Result<Option<Fault>> {
        for rule in self.rules()?.0 {
            if rule.is_about(call, about) && self.is_due(&rule)? && self.is_wanted(&rule) {
                self.note(call, about, &rule.words)?;
                return Ok(Some(rule.fault));
            }
        }
        self.note(call, about, "-")?;
        Ok(None)
    }

    /// What the lines `is …` have it say of itself.
    pub(crate) fn pretence(&self) -> io::Result<Pretence> {
        Ok(self.rules()?.1)
    }

    /// All that the script says now.
    pub(crate) fn rules(&self) -> io::Result<(Vec<Rule>, Pretence)> {
        parse(&self.source.read()?).map_err(io::Error::other)
    }

    fn is_due(&self, rule: &Rule) -> io::Result<bool> {
        if !rule.counts() {
            return Ok(true);
        }
        let before = match &*self.calls {
            Calls::File(path) => read(path)?,
            Calls::Memory(calls) => lock(calls).clone(),
        };
        Ok(rule.is_due(before.lines().filter_map(Made::read)))
    }

    fn is_wanted(&self, rule: &Rule) -> bool {
        rule.is_wanted(lock(&self.random).below(100))
    }

    fn note(&self, call: &str, about: &str, fault: &str) -> io::Result<()> {
        let line = format!("{call} {about}: {fault}\n");
        match &*self.calls {
            Calls::File(path) => {
                let mut file = OpenOptions::new().create(true).append(true).open(path)?;
                file.write_all(line.as_bytes())
            }
            Calls::Memory(calls) => {
                lock(calls).push_str(&line);
                Ok(())
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parse(text: &str) -> Result<(Vec<Rule>, Pretence), String> {
    let (mut rules, mut pretence) = (Vec::new(), Pretence::default());
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["is", "not-ready", why] => pretence.not_ready = Some(why.to_owned()),
            ["is", "instance", id] => pretence.instance = Some(id.to_owned()),
            ["is", "own-network"] => pretence.own_network = true,
            ["is", "fetching"] => pretence.fetching = true,
            _ if line.is_empty() || line.starts_with('#') => {}
            _ => rules.push(
                line.parse()
                    .map_err(|why| format!("line {number}: {why}"))?,
            ),
        }
    }
    Ok((rules, pretence))
}

/// The text of a file; one that is not there is empty.
fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result,
    }
}

/// An error of the script's own: whoever made it must see it, so it looks like no planted one.
pub(crate) fn broken(error: &io::Error) -> Status {
    Status::data_loss(format!("hsup-driver-fault: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::rule::What;

    fn script(text: &str) -> (tempfile::TempDir, Script) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults");
        let mut file = File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let source = Source::File(path);
        let calls = source.calls();
        (dir, Script::new(source, calls, 0))
    }

    fn what(script: &Script, call: &str, about: &str) -> Option<What> {
        script.call(call, about).unwrap().map(|fault| fault.what)
    }

    #[test]
    fn the_first_line_that_fits_counts_and_once_is_once() {
        let (dir, script) =
            script("once start unknown-after oh no\n# not a rule\n\nstart die\nwait hang\n");
        assert!(matches!(
            what(&script, "start", "web-1"),
            Some(What::Refuse(..))
        ));
        assert_eq!(what(&script, "start", "web-2"), Some(What::Die));
        assert_eq!(what(&script, "wait", "web-2"), Some(What::Hang));
        assert_eq!(what(&script, "stop", "web-2"), None);
        let calls = read(&dir.path().join("faults.calls")).unwrap();
        assert_eq!(
            calls,
            "start web-1: unknown-after oh no\nstart web-2: die\nwait web-2: hang\nstop web-2: -\n"
        );
    }

    #[test]
    fn a_text_is_a_script_too() {
        let source = Source::of("once start die;wait hang");
        assert_eq!(source, Source::Text("once start die\nwait hang".to_owned()));
        assert_eq!(source.calls(), None);
        let script = Script::new(source, None, 0);
        assert_eq!(what(&script, "start", "web-1"), Some(What::Die));
        assert_eq!(what(&script, "start", "web-2"), None);
        let path = "/a folder/faults";
        assert_eq!(Source::of(path), Source::File(path.into()));
    }

    #[test]
    fn the_same_seed_has_the_same_chances() {
        let drawn = |seed| {
            let source = Source::of("50% start die");
            let script = Script::new(source, None, seed);
            let of = |_| what(&script, "start", "web-1").is_some();
            (0..64).map(of).collect::<Vec<_>>()
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert!(drawn(1).contains(&true) && drawn(1).contains(&false));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_told() {
        let (_dir, script) = script("wait hang\nstart explode\n");
        let error = script.call("stop", "web-1").unwrap_err();
        assert_eq!(error.to_string(), "line 2: `explode` is no fault");
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
