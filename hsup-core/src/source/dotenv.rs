//! The text of a `.env` file, as foreman reads it.
//!
//! One `NAME=VALUE` a line, with an optional `export`, blank lines and comment lines.
//! Single quotes keep everything; in double quotes `\n` is a line feed and `\` before any
//! other character is that character. Nothing is expanded: it is not a shell. Unlike
//! foreman, which skips a line it does not understand, this says so, and spaces around an
//! unquoted value are dropped. No error shows a value: they are secrets.

use thiserror::Error;

use crate::release::ConfigVars;

/// The config vars of a `.env` file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DotEnv {
    /// Names and values.
    pub config: ConfigVars,
    /// What is odd about it but does no harm.
    pub warnings: Vec<String>,
}

/// The text is not a `.env` file. The caller says of which file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseDotEnvError {
    /// A line has no `=`. It may be a part of a value, so it is not shown.
    #[error(
        "line {line} has no `=`: write `NAME=VALUE`, with \\n in double quotes for a line break in a value, or put `#` before a comment"
    )]
    NoEquals {
        /// Which line, from 1.
        line: usize,
    },
    /// What is left of the `=` is not a name.
    #[error(
        "line {line}: what is before the `=` is not a name: expected letters, digits and `_`, and no space before the `=`"
    )]
    Name {
        /// Which line, from 1.
        line: usize,
    },
    /// A quoted value does not end.
    #[error(
        "line {line}: the value of `{name}` has no closing quote: write \\n in double quotes for a line break"
    )]
    Unclosed {
        /// Which line, from 1.
        line: usize,
        /// Whose value it is.
        name: String,
    },
    /// Something follows a quoted value.
    #[error("line {line}: something follows the closing quote of the value of `{name}`")]
    AfterQuote {
        /// Which line, from 1.
        line: usize,
        /// Whose value it is.
        name: String,
    },
    /// A value holds a character that no variable can hold.
    #[error("line {line}: the value of `{name}` contains a NUL character")]
    Nul {
        /// Which line, from 1.
        line: usize,
        /// Whose value it is.
        name: String,
    },
    /// A line is not text.
    #[error("line {line} is not UTF-8 text")]
    NotUtf8 {
        /// Which line, from 1.
        line: usize,
    },
}

/// Reads the text of a `.env` file.
///
/// # Errors
/// When a line is none of a variable, a comment and blank.
pub fn parse(text: &[u8]) -> Result<DotEnv, ParseDotEnvError> {
    let text = super::utf8(text).map_err(|line| ParseDotEnvError::NotUtf8 { line })?;
    let mut dot_env = DotEnv::default();
    for (line, written) in (1..).zip(text.lines()) {
        let written = written.trim();
        if written.is_empty() || written.starts_with('#') {
            continue;
        }
        let (name, value) = written
            .split_once('=')
            .ok_or(ParseDotEnvError::NoEquals { line })?;
        let name = match name.split_once(char::is_whitespace) {
            Some(("export", name)) => name.trim_start(),
            _ => name,
        };
        let name_fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(name_fits) {
            return Err(ParseDotEnvError::Name { line });
        }
        let value = unquote(line, name, value.trim_start())?;
        if value.contains('\0') {
            return Err(ParseDotEnvError::Nul {
                line,
                name: name.to_owned(),
            });
        }
        if dot_env.config.insert(name, value).is_some() {
            dot_env
                .warnings
                .push(format!("line {line}: another `{name}`: this one counts"));
        }
    }
    Ok(dot_env)
}

fn unquote(line: usize, name: &str, written: &str) -> Result<String, ParseDotEnvError> {
    let unclosed = || ParseDotEnvError::Unclosed {
        line,
        name: name.to_owned(),
    };
    let (value, rest) = if let Some(inner) = written.strip_prefix('\'') {
        let (value, rest) = inner.split_once('\'').ok_or_else(unclosed)?;
        (value.to_owned(), rest)
    } else if let Some(inner) = written.strip_prefix('"') {
        let mut value = String::new();
        let mut chars = inner.chars();
        loop {
            match chars.next().ok_or_else(unclosed)? {
                '"' => break,
                '\\' => match chars.next().ok_or_else(unclosed)? {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                other => value.push(other),
            }
        }
        (value, chars.as_str())
    } else {
        return Ok(written.to_owned());
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with('#') {
        Ok(value)
    } else {
        Err(ParseDotEnvError::AfterQuote {
            line,
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    #[test_case("A=b", "b"; "plain")]
    #[test_case("A=", ""; "empty")]
    #[test_case("export A=b", "b"; "export")]
    #[test_case("export\tA=", ""; "export nothing")]
    #[test_case("  A=b  \r", "b"; "spaces around")]
    #[test_case("A=b c=d # e", "b c=d # e"; "no trailing comments")]
    #[test_case("A=$HOME`x`", "$HOME`x`"; "nothing is expanded")]
    #[test_case(r"A=a\nb", r"a\nb"; "no escapes without quotes")]
    #[test_case("A='b\\n \"$c\" '", "b\\n \"$c\" "; "single quotes keep everything")]
    #[test_case(r#"A="b\nc\"d\\n\$" # e"#, "b\nc\"d\\n$"; "double quotes")]
    #[test_case("A=a'b'c", "a'b'c"; "quotes inside")]
    #[test_case("A=1\nA=2", "2"; "the last counts")]
    fn a_value(text: &str, value: &str) {
        let dot_env = parse(text.as_bytes()).unwrap();
        assert_eq!(dot_env.config.iter().collect::<Vec<_>>(), [("A", value)]);
    }

    #[test]
    fn comments_and_blank_lines_are_no_variables() {
        let dot_env = parse(b"\xef\xbb\xbf# A=1\n\n   # B=2\nC=3").unwrap();
        assert_eq!(dot_env.config.names().collect::<Vec<_>>(), ["C"]);
    }

    #[test]
    fn two_values_for_one_name_are_told() {
        assert_eq!(
            parse(b"A=1\nA=2").unwrap().warnings,
            ["line 2: another `A`: this one counts"]
        );
    }

    #[test_case(b"A=1\nhunter2", "line 2 has no `=`"; "no equals sign")]
    #[test_case(b"hunter2 =1", "line 1: what is before the `=` is not a name"; "space before it")]
    #[test_case(b"=hunter2", "line 1: what is before the `=` is not a name"; "no name")]
    #[test_case(b"hunter-2=", "line 1: what is before the `=` is not a name"; "dash")]
    #[test_case(b"A=\"hunter2", "line 1: the value of `A` has no closing quote"; "open double quote")]
    #[test_case(b"A=\"hunter2\\", "line 1: the value of `A` has no closing quote"; "ends in an escape")]
    #[test_case(b"A='hunter2", "line 1: the value of `A` has no closing quote"; "open single quote")]
    #[test_case(b"A=\"hunter2\"x", "line 1: something follows the closing quote of the value of `A`"; "text after it")]
    #[test_case(b"A=hunter2\0", "line 1: the value of `A` contains a NUL character"; "nul")]
    #[test_case(b"A=hunter2\nB=\xff", "line 2 is not UTF-8 text"; "not text")]
    fn a_bad_line_is_refused_and_not_shown(text: &[u8], message: &str) {
        let error = parse(text).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.starts_with(message), "{shown}");
        assert!(!shown.contains("hunter"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>) {
            let _unused = parse(&text).is_ok();
        }

        #[test]
        fn any_value_can_be_quoted(value in "[^\0\r]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let dot_env = parse(format!("A=\"{quoted}\"").as_bytes()).unwrap();
            prop_assert_eq!(dot_env.config.get("A"), Some(value.as_str()));
        }
    }
}
