//! What to test, and with which odd settings.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How the suite reaches the driver.
#[derive(Clone, Debug)]
pub enum Target {
    /// A driver that runs already, at this socket.
    Socket(PathBuf),
    /// A command line that starts the driver, which finds its socket in `HSUP_DRIVER_SOCKET`.
    ///
    /// It is given to `/bin/sh` as `exec COMMAND`, so that the process started is the driver.
    Exec(String),
}

/// The settings of one run of the suite.
#[derive(Clone, Debug)]
pub struct Config {
    /// The driver.
    pub target: Target,
    /// Start dynos from this artifact instead of building one.
    pub artifact: Option<String>,
    /// Words put before the argv of every dyno, for drivers whose dynos need a launcher.
    pub argv_prefix: Vec<String>,
    /// Options of every Build.
    pub build_options: BTreeMap<String, String>,
    /// The slug to build; a fresh, almost empty directory unless given.
    pub slug_url: Option<String>,
    /// The stack to build on.
    pub stack: String,
    /// Act as this user, too: for a driver that runs as root, and serves that user.
    pub as_peer: Option<u32>,
    /// Run only cases whose `chapter: name` contains one of these; all of them when empty.
    pub focus: Vec<String>,
    /// Leave out cases whose `chapter: name` contains one of these.
    pub skip: Vec<String>,
    /// How often to run the selection.
    pub repeat: u32,
    /// How long one case may take.
    pub deadline: Duration,
    /// How many dynos are started at once where there are to be many.
    pub storm: usize,
}

impl Config {
    /// Tests the driver that serves `socket`.
    pub fn socket(socket: impl Into<PathBuf>) -> Self {
        Self::new(Target::Socket(socket.into()))
    }

    /// Starts `command` and tests the driver that it is.
    pub fn exec(command: impl Into<String>) -> Self {
        Self::new(Target::Exec(command.into()))
    }

    fn new(target: Target) -> Self {
        Self {
            target,
            artifact: None,
            argv_prefix: Vec::new(),
            build_options: BTreeMap::new(),
            slug_url: None,
            stack: String::new(),
            as_peer: None,
            focus: Vec::new(),
            skip: Vec::new(),
            repeat: 1,
            deadline: Duration::from_mins(1),
            storm: 300,
        }
    }

    /// Whether the case called `title` (`chapter: name`) is to be run.
    pub fn selects(&self, title: &str) -> bool {
        let title = title.to_lowercase();
        let has = |part: &String| title.contains(&part.to_lowercase());
        (self.focus.is_empty() || self.focus.iter().any(has)) && !self.skip.iter().any(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn focus_and_skip_select_by_part_of_the_title() {
        let mut config = Config::socket("/tmp/x.sock");
        assert!(config.selects("stop: an unknown dyno"));
        config.focus = vec!["STOP:".to_owned()];
        assert!(config.selects("stop: an unknown dyno"));
        assert!(!config.selects("wait: an unknown dyno"));
        config.skip = vec!["unknown".to_owned()];
        assert!(!config.selects("stop: an unknown dyno"));
    }
}
