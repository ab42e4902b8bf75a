//! Whether to colour what is printed, and how.
//!
//! Colour is for terminals. `NO_COLOR` (<https://no-color.org>) turns it off and
//! `FORCE_COLOR` on, whatever the output is; an empty variable says nothing.

use std::{env, ffi::OsStr, io::IsTerminal};

/// The colours that hsup prints in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Red,
    Green,
    Yellow,
    Magenta,
    Cyan,
    /// For what matters less: times, mostly.
    Grey,
    Bold,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Magenta => "35",
            Self::Cyan => "36",
            Self::Grey => "90",
            Self::Bold => "1",
        }
    }
}

/// How text is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    Plain,
    Coloured,
}

impl Style {
    /// The style for `output`, as the environment wants it.
    pub fn of(output: &impl IsTerminal) -> Self {
        let set = |name| env::var_os(name);
        Self::decide(
            set("NO_COLOR").as_deref(),
            set("FORCE_COLOR").as_deref(),
            set("TERM").as_deref(),
            output.is_terminal(),
        )
    }

    fn decide(
        no_color: Option<&OsStr>,
        force_color: Option<&OsStr>,
        term: Option<&OsStr>,
        terminal: bool,
    ) -> Self {
        let given = |value: Option<&OsStr>| value.is_some_and(|value| !value.is_empty());
        let forced = given(force_color) && force_color != Some(OsStr::new("0"));
        let able = terminal && term != Some(OsStr::new("dumb"));
        if !given(no_color) && (forced || able) {
            Self::Coloured
        } else {
            Self::Plain
        }
    }

    /// The text in a colour, where there are colours.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\x1b[{}m{text}\x1b[0m", colour.code()),
        }
    }
}

/// A text from elsewhere that is safe to print in a line: without escape sequences, and
/// every other control character but the tab replaced.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\x1b' && rest.peek() == Some(&'[') {
            // A control sequence ends with its first byte from @ to ~ (ECMA-48, 5.4).
            rest.next();
            for c in rest.by_ref() {
                if ('@'..='~').contains(&c) {
                    break;
                }
            }
        } else if c.is_control() && c != '\t' {
            shown.push('\u{fffd}');
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(None, None, None, true => Style::Coloured; "a terminal")]
    #[test_case(None, None, None, false => Style::Plain; "a pipe")]
    #[test_case(None, None, Some("dumb"), true => Style::Plain; "a terminal without colours")]
    #[test_case(Some("1"), None, None, true => Style::Plain; "no colour")]
    #[test_case(Some(""), None, None, true => Style::Coloured; "an empty variable")]
    #[test_case(None, Some("1"), None, false => Style::Coloured; "forced")]
    #[test_case(None, Some("0"), None, false => Style::Plain; "forced off")]
    #[test_case(Some("1"), Some("1"), None, true => Style::Plain; "both")]
    fn colour(no: Option<&str>, force: Option<&str>, term: Option<&str>, terminal: bool) -> Style {
        Style::decide(
            no.map(OsStr::new),
            force.map(OsStr::new),
            term.map(OsStr::new),
            terminal,
        )
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[31mred\x1b[0m\tb"), "ared\tb");
        assert_eq!(
            printable("bell\x07 title\x1b]0;x"),
            "bell\u{fffd} title\u{fffd}]0;x"
        );
        assert_eq!(printable("cut \x1b[3"), "cut ");
    }
}
