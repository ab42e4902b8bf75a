//! What the driver says on the command line: numbers of descriptors, mostly.

use std::{
    ffi::{CString, OsString},
    fmt, io,
    os::{fd::RawFd, unix::ffi::OsStringExt as _},
    str::FromStr,
};

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Init(Init),
    Wait(Wait),
}

/// What `hsup-init` is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Init {
    /// Where the command's status goes, besides this process's own.
    pub(crate) status: Status,
    pub(crate) terminal: Option<Terminal>,
    /// Variables that whoever started this process has added to the dyno's environment.
    pub(crate) unset: Vec<CString>,
    /// What is written to files that are there, before the command can look.
    pub(crate) texts: Vec<Text>,
    pub(crate) command: Vec<CString>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Descriptor(RawFd),
    /// A file that is there.
    File(CString),
}

/// A file, and what it is to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) path: OsString,
    pub(crate) content: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// The socket that the terminal's master goes to. None: standard input is the terminal.
    pub(crate) socket: Option<RawFd>,
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// What `hsup-wait` is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// PID 1 of the dyno, a child of this process.
    pub(crate) init: i32,
    /// Where `hsup-init` writes the command's status.
    pub(crate) status: RawFd,
    /// Closed when the exit status is written.
    pub(crate) life: RawFd,
    /// The dyno's directory, where the exit status is written.
    pub(crate) directory: RawFd,
    /// Reading ends of what the dyno writes to, standard output and error, unless it has a terminal.
    pub(crate) outputs: Vec<RawFd>,
    /// The files that count how often the dyno was out of memory.
    pub(crate) oom: Vec<RawFd>,
    /// The program that frees what the dyno held.
    pub(crate) sweep: RawFd,
    pub(crate) sweep_arguments: Vec<CString>,
}

/// A command line that makes no sense.
#[derive(Debug)]
pub(crate) enum ArgumentError {
    NoRole,
    Missing(&'static str),
    NotANumber { what: &'static str, found: CString },
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRole => f.write_str("started neither as hsup-init nor as hsup-wait"),
            Self::Missing(what) => write!(f, "the argument {what} is missing"),
            Self::NotANumber { what, found } => {
                let found = found.to_string_lossy();
                write!(
                    f,
                    "the argument {what} is `{found}`, not a number that it can be"
                )
            }
        }
    }
}

impl std::error::Error for ArgumentError {}

impl From<ArgumentError> for io::Error {
    fn from(error: ArgumentError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Reads a whole command line, the program's name included.
pub(crate) fn parse(all: &[CString]) -> Result<Role, ArgumentError> {
    let (name, rest) = all.split_first().ok_or(ArgumentError::NoRole)?;
    let first = rest.split_first();
    for (name, rest) in first.into_iter().chain([(name, rest)]) {
        match name.as_bytes().rsplit(|byte| *byte == b'/').next() {
            Some(b"hsup-init") => return Rest(rest).init(),
            Some(b"hsup-wait") => return Rest(rest).wait(),
            _ => {}
        }
    }
    Err(ArgumentError::NoRole)
}

/// What of the command line is not read yet.
struct Rest<'a>(&'a [CString]);

impl<'a> Rest<'a> {
    fn init(mut self) -> Result<Role, ArgumentError> {
        let status = match self.0.first() {
            Some(path) if path.as_bytes().starts_with(b"/") => {
                Status::File(self.word("STATUS")?.clone())
            }
            _ => Status::Descriptor(self.number("STATUS")?),
        };
        let tty: RawFd = self.number("TTY_FD")?;
        let (rows, columns) = (self.number("ROWS")?, self.number("COLUMNS")?);
        let (mut unset, mut texts) = (Vec::new(), Vec::new());
        while self.0.first().is_some_and(|word| word.as_bytes() != b"--") {
            let word = self.word("UNSET")?;
            match text(word.as_bytes()) {
                Some(text) => texts.push(text),
                None => unset.push(word.clone()),
            }
        }
        self.dashes()?;
        if self.0.is_empty() {
            return Err(ArgumentError::Missing("COMMAND"));
        }
        Ok(Role::Init(Init {
            status,
            terminal: (tty >= 0).then_some(Terminal {
                socket: (tty > 0).then_some(tty),
                rows,
                columns,
            }),
            unset,
            texts,
            command: self.0.to_vec(),
        }))
    }

    fn wait(mut self) -> Result<Role, ArgumentError> {
        let init = self.number("INIT_PID")?;
        let status = self.number("STATUS_FD")?;
        let life = self.number("LIFE_FD")?;
        let directory = self.number("DIR_FD")?;
        let outputs = [self.number("STDOUT_FD")?, self.number("STDERR_FD")?];
        let mut oom = Vec::new();
        while self.0.first().is_some_and(|word| word.as_bytes() != b"--") {
            oom.push(self.number("OOM_FD")?);
        }
        self.dashes()?;
        let sweep = self.number("SWEEP_FD")?;
        if self.0.is_empty() {
            return Err(ArgumentError::Missing("SWEEP"));
        }
        Ok(Role::Wait(Wait {
            init,
            status,
            life,
            directory,
            outputs: outputs.into_iter().filter(|fd| *fd >= 0).collect(),
            oom,
            sweep,
            sweep_arguments: self.0.to_vec(),
        }))
    }

    fn word(&mut self, what: &'static str) -> Result<&'a CString, ArgumentError> {
        let (first, rest) = self.0.split_first().ok_or(ArgumentError::Missing(what))?;
        self.0 = rest;
        Ok(first)
    }

    fn number<N: FromStr>(&mut self, what: &'static str) -> Result<N, ArgumentError> {
        let word = self.word(what)?;
        let number = word.to_str().ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| ArgumentError::NotANumber {
            what,
            found: word.clone(),
        })
    }

    fn dashes(&mut self) -> Result<(), ArgumentError> {
        match self.word("--")?.as_bytes() {
            b"--" => Ok(()),
            _ => Err(ArgumentError::Missing("--")),
        }
    }
}

/// `PATH=TEXT`, with a path from the root: nothing that is the name of a variable.
fn text(word: &[u8]) -> Option<Text> {
    let equals = word.iter().position(|byte| *byte == b'=')?;
    let (path, content) = (&word[..equals], &word[equals + 1..]);
    path.starts_with(b"/").then(|| Text {
        path: OsString::from_vec(path.to_vec()),
        content: content.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<CString> {
        let words = line.split(' ').map(CString::new);
        words.collect::<Result<_, _>>().expect("no NUL in a test")
    }

    fn wrong(line: &str) -> String {
        parse(&words(line)).expect_err(line).to_string()
    }

    #[test]
    fn an_init_with_and_without_a_terminal() {
        let command = words("sh -c -- true");
        let expected = Role::Init(Init {
            status: Status::Descriptor(3),
            terminal: None,
            unset: Vec::new(),
            texts: Vec::new(),
            command: command.clone(),
        });
        let line = words("/x/hsup-init 3 -1 0 0 -- sh -c -- true");
        assert_eq!(parse(&line).expect("right"), expected);
        let expected = Role::Init(Init {
            status: Status::Descriptor(3),
            terminal: Some(Terminal {
                socket: Some(4),
                rows: 24,
                columns: 80,
            }),
            unset: Vec::new(),
            texts: Vec::new(),
            command,
        });
        let line = words("whatever hsup-init 3 4 24 80 -- sh -c -- true");
        assert_eq!(parse(&line).expect("right"), expected);
    }

    #[test]
    fn an_init_that_an_engine_has_started() {
        let expected = Role::Init(Init {
            status: Status::File(c"/.hsup/status".to_owned()),
            terminal: Some(Terminal {
                socket: None,
                rows: 50,
                columns: 132,
            }),
            unset: words("HOME TERM"),
            texts: vec![Text {
                path: "/etc/heroku/dyno".into(),
                content: b"{\"a\":\"b=c\"}".to_vec(),
            }],
            command: words("true"),
        });
        let line = "/.hsup/init hsup-init /.hsup/status 0 50 132 HOME /etc/heroku/dyno={\"a\":\"b=c\"} \
                    TERM -- true";
        assert_eq!(parse(&words(line)).expect("right"), expected);
    }

    #[test]
    fn the_first_argument_decides_before_the_name() {
        let expected = Role::Wait(Wait {
            init: 77,
            status: 3,
            life: 4,
            directory: 5,
            outputs: vec![6, 7],
            oom: vec![8, 9],
            sweep: 10,
            sweep_arguments: words("driver sweep DIR"),
        });
        let line = words("hsup-init hsup-wait 77 3 4 5 6 7 8 9 -- 10 driver sweep DIR");
        assert_eq!(parse(&line).expect("right"), expected);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(wrong("sh 3 -1 0 0 -- true").contains("neither"));
        assert!(wrong("hsup-init").contains("STATUS"));
        assert!(wrong("hsup-init x -1 0 0 -- true").contains("`x`"));
        assert!(wrong("hsup-init 3 -1 70000 0 -- true").contains("ROWS"));
        assert!(wrong("hsup-init 3 -1 0 0 true").contains("--"));
        assert!(wrong("hsup-init 3 -1 0 0 --").contains("COMMAND"));
        assert!(wrong("hsup-wait 77 3 4 5 6 -- 7 y").contains("STDERR_FD"));
        assert!(wrong("hsup-wait 77 3 4 5 -1 -1 -- 6").contains("SWEEP"));
        assert!(wrong("hsup-wait 77 3 4 5 -1 -1 6 x -- 6 y").contains("OOM_FD"));
    }
}
