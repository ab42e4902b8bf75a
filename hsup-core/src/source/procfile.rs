//! The text of a Procfile.
//!
//! There is no formal specification. What is taken is `TYPE: COMMAND`, one a line, with
//! the process types of the Platform API (upper case and `_` are kept as they are),
//! comment lines and blank lines. The colon is asked for, although Heroku's own loose
//! rule can do without: otherwise any line of prose would be a process type, and a typing
//! error would start it. A `#` behind the command belongs to the command. Of two entries
//! of one type the last wins, as in Heroku's parser, and it is said.

use thiserror::Error;

use crate::{
    name::{ParseProcessTypeError, ProcessType},
    release::Process,
};

/// The process types of a Procfile, in first-seen order, one dyno of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Procfile {
    /// The process types. There is at least one.
    pub processes: Vec<Process>,
    /// What is odd about it but does no harm.
    pub warnings: Vec<String>,
}

/// The text is not a Procfile. The caller says of which file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseProcfileError {
    /// A line has no colon.
    #[error(
        "line {line}: `{text}` has no colon: write `TYPE: COMMAND`, such as `web: bin/server`, or put `#` before a comment"
    )]
    NoColon {
        /// Which line, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// What is left of the colon is not a process type.
    #[error("line {line}: `{text}` does not start with a process type")]
    ProcessType {
        /// Which line, from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is wrong with it.
        source: ParseProcessTypeError,
    },
    /// Nothing follows the colon.
    #[error(
        "line {line}: `{text}` has no command: write what to run after the colon, or delete the line"
    )]
    NoCommand {
        /// Which line, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A command holds a character that no command can hold.
    #[error("line {line}: the command of `{process_type}` contains a NUL character")]
    Nul {
        /// Which line, from 1.
        line: usize,
        /// Whose command it is.
        process_type: ProcessType,
    },
    /// A line is not text.
    #[error("line {line} is not UTF-8 text")]
    NotUtf8 {
        /// Which line, from 1.
        line: usize,
    },
    /// There is nothing to run.
    #[error("it names no process: write a line such as `web: bin/server`")]
    Empty,
    /// There is nothing to keep running.
    #[error(
        "it names no process but `release`, which is run once per release and gets no dyno: write a line such as `web: bin/server`"
    )]
    OnlyRelease,
}

/// Reads a Procfile's text.
///
/// # Errors
/// When a line is none of a process, a comment and blank, or there is no process.
pub fn parse(text: &[u8]) -> Result<Procfile, ParseProcfileError> {
    let text = super::utf8(text).map_err(|line| ParseProcfileError::NotUtf8 { line })?;
    let mut processes: Vec<Process> = Vec::new();
    let mut warnings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some((process_type, command)) = entry(number, line)? else {
            continue;
        };
        let process = Process::new(process_type, command, 1);
        match processes
            .iter_mut()
            .find(|before| before.process_type == process.process_type)
        {
            Some(before) => {
                warnings.push(format!(
                    "line {number}: another `{}`: this one counts",
                    process.process_type
                ));
                *before = process;
            }
            None => processes.push(process),
        }
    }
    if processes.is_empty() {
        return Err(ParseProcfileError::Empty);
    }
    if processes
        .iter()
        .all(|process| process.process_type.is_release())
    {
        return Err(ParseProcfileError::OnlyRelease);
    }
    Ok(Procfile {
        processes,
        warnings,
    })
}

fn entry(number: usize, line: &str) -> Result<Option<(ProcessType, &str)>, ParseProcfileError> {
    let shown = || super::excerpt(line.trim());
    let line_text = line.trim();
    if line_text.is_empty() || line_text.starts_with('#') {
        return Ok(None);
    }
    let Some((process_type, command)) = line_text.split_once(':') else {
        return Err(ParseProcfileError::NoColon {
            line: number,
            text: shown(),
        });
    };
    let process_type: ProcessType =
        process_type
            .trim_end()
            .parse()
            .map_err(|source| ParseProcfileError::ProcessType {
                line: number,
                text: shown(),
                source,
            })?;
    let command = command.trim();
    if command.is_empty() {
        return Err(ParseProcfileError::NoCommand {
            line: number,
            text: shown(),
        });
    }
    if command.contains('\0') {
        return Err(ParseProcfileError::Nul {
            line: number,
            process_type,
        });
    }
    Ok(Some((process_type, command)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    fn read(text: &str) -> Vec<(String, String, u32)> {
        let processes = parse(text.as_bytes()).unwrap().processes;
        processes
            .into_iter()
            .map(|process| {
                (
                    process.process_type.to_string(),
                    process.command,
                    process.quantity,
                )
            })
            .collect()
    }

    #[test]
    fn types_keep_their_order_and_their_case() {
        let text = "# the app\n\nweb: bin/web -p $PORT # not a comment\r\n  Worker_2:   sh -c 'a: b'  \r\nclock:tick";
        let expected = [
            ("web", "bin/web -p $PORT # not a comment", 1),
            ("Worker_2", "sh -c 'a: b'", 1),
            ("clock", "tick", 1),
        ];
        assert_eq!(
            read(text),
            expected.map(|(name, command, n)| (name.to_owned(), command.to_owned(), n))
        );
    }

    #[test]
    fn the_release_phase_gets_no_dyno() {
        assert_eq!(read("release: migrate\nweb: x")[0].2, 0);
    }

    #[test]
    fn the_last_of_two_counts_and_it_is_said() {
        let procfile = parse(b"\xef\xbb\xbfweb: a\nworker: b\nweb: c\n").unwrap();
        assert_eq!(procfile.processes[0].command, "c");
        assert_eq!(procfile.processes.len(), 2);
        assert_eq!(
            procfile.warnings,
            ["line 3: another `web`: this one counts"]
        );
    }

    #[test_case(b"web: x\nbundle exec puma\n", "line 2: `bundle exec puma` has no colon: write `TYPE: COMMAND`, such as `web: bin/server`, or put `#` before a comment"; "no colon")]
    #[test_case(b"a/b: x", "line 1: `a/b: x` does not start with a process type"; "a slash")]
    #[test_case(b"..: x", "line 1: `..: x` does not start with a process type"; "dots")]
    #[test_case(b": x", "line 1: `: x` does not start with a process type"; "no type")]
    #[test_case(b"web:", "line 1: `web:` has no command: write what to run after the colon, or delete the line"; "no command")]
    #[test_case(b"web: a\0b", "line 1: the command of `web` contains a NUL character"; "nul")]
    #[test_case(b"web: x\n\xff\n", "line 2 is not UTF-8 text"; "not text")]
    #[test_case(b"", "it names no process: write a line such as `web: bin/server`"; "empty")]
    #[test_case(b"release: x\n", "it names no process but `release`, which is run once per release and gets no dyno: write a line such as `web: bin/server`"; "only the release phase")]
    #[test_case(b"# web: x\n\n", "it names no process: write a line such as `web: bin/server`"; "only comments")]
    fn a_bad_procfile_is_refused(text: &[u8], message: &str) {
        assert_eq!(parse(text).unwrap_err().to_string(), message);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>) {
            let _unused = parse(&text).is_ok();
        }

        #[test]
        fn what_is_written_is_read(
            entries in prop::collection::btree_map("[-_A-Za-z0-9]{1,12}", "[!-~]([ -~é]{0,20}[!-~])?", 1..6),
            line_end in prop::sample::select(&["\n", "\r\n"][..]),
        ) {
            let lines: Vec<String> = entries
                .iter()
                .map(|(name, command)| format!("{name}: {command}"))
                .collect();
            let text = lines.join(line_end);
            let processes = parse(text.as_bytes()).unwrap().processes;
            let read: Vec<_> = processes
                .iter()
                .map(|process| (process.process_type.as_str(), process.command.as_str()))
                .collect();
            let written: Vec<_> = entries.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            prop_assert_eq!(read, written);
        }
    }
}
