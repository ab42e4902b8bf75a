//! One line of a script: which calls it is about, when, and what goes wrong with them.
//!
//! ```text
//! [once | N times] [skip N] [P%] CALL[@PREFIX] FAULT
//! ```

use std::{str::FromStr, time::Duration};

use tonic::Code;

/// The calls of the protocol, as scripts name them; `any` is all of them.
const CALLS: [&str; 12] = [
    "info", "build", "start", "stop", "wait", "ip", "list", "remove", "signal", "stats", "attach",
    "any",
];

/// What goes wrong with a call, before or after it is passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) what: What,
    pub(crate) moment: Moment,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// There is no answer, ever.
    Hang,
    /// It takes so much longer.
    Delay(Duration),
    /// It fails.
    Refuse(Code, String),
    /// The driver dies.
    Die,
    /// The caller is killed.
    Kill,
    /// The caller's connection is closed.
    Cut,
    /// The driver gets it a second time, as from a caller that tries again.
    Twice,
}

/// Whether the call has done its work by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
}

/// A rule of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// How often it may happen.
    most: Option<usize>,
    /// How many such calls go well first.
    skip: usize,
    /// Of a hundred calls, how many it happens to.
    percent: u32,
    call: String,
    /// What the dyno id, artifact or version begins with.
    prefix: String,
    pub(crate) fault: Fault,
    /// The fault as it stands in the script.
    pub(crate) words: String,
}

/// A call that was made before, with what went wrong with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made<'a> {
    call: &'a str,
    about: &'a str,
    fault: &'a str,
}

impl<'a> Made<'a> {
    /// A line of the list of calls: `start web-1-…: die`.
    pub(crate) fn read(line: &'a str) -> Option<Self> {
        let (made, fault) = line.split_once(": ")?;
        let (call, about) = made.split_once(' ')?;
        Some(Self { call, about, fault })
    }
}

impl Rule {
    /// Whether it is about such a call.
    pub(crate) fn is_about(&self, call: &str, about: &str) -> bool {
        (self.call == call || self.call == "any") && about.starts_with(&self.prefix)
    }

    /// Whether it counts, so that whoever asks has to know what was before.
    pub(crate) const fn counts(&self) -> bool {
        self.most.is_some() || self.skip > 0
    }

    /// Whether it is its turn, after the calls that were made before.
    pub(crate) fn is_due<'a>(&self, before: impl Iterator<Item = Made<'a>>) -> bool {
        let (mut such, mut happened) = (0, 0);
        for made in before.filter(|made| self.is_about(made.call, made.about)) {
            such += 1;
            happened += usize::from(made.fault == self.words);
        }
        such >= self.skip && self.most.is_none_or(|most| happened < most)
    }

    /// Whether chance wants it: `drawn` is below a hundred.
    pub(crate) const fn is_wanted(&self, drawn: u32) -> bool {
        drawn < self.percent
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let (mut most, mut skip, mut percent, mut rest) = (None, 0, 100, line);
        loop {
            let (word, after) = first_word(rest);
            let (second, after_second) = first_word(after);
            rest = if word == "once" {
                most = Some(1);
                after
            } else if second == "times" {
                most = Some(number(word)?);
                after_second
            } else if word == "skip" {
                skip = number(second)?;
                after_second
            } else if let Some(word) = word.strip_suffix('%') {
                percent = number(word)?;
                after
            } else {
                break;
            };
        }
        let (calls, words) = first_word(rest);
        let (call, prefix) = calls.split_once('@').unwrap_or((calls, ""));
        if !CALLS.contains(&call) {
            return Err(format!("`{call}` is no call"));
        }
        let fault: Fault = words.parse()?;
        if fault.what == What::Twice && ["attach", "build", "any"].contains(&call) {
            return Err(format!("`{call}` cannot be had twice"));
        }
        Ok(Self {
            most,
            skip,
            percent,
            call: call.to_owned(),
            prefix: prefix.to_owned(),
            fault,
            words: words.to_owned(),
        })
    }
}

/// The first word, and what is behind it.
fn first_word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

fn number<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("`{word}` is no number"))
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, rest) = first_word(text);
        let (name, moment) = match word.strip_suffix("-after") {
            Some(name) => (name, Moment::After),
            None => (word, Moment::Before),
        };
        let what = match name {
            "hang" => What::Hang,
            "delay" => What::Delay(Duration::from_millis(number(rest)?)),
            "die" => What::Die,
            "kill" => What::Kill,
            "cut" => What::Cut,
            "twice" if moment == Moment::Before => What::Twice,
            _ => What::Refuse(code(name)?, rest.to_owned()),
        };
        Ok(Self { what, moment })
    }
}

fn code(word: &str) -> Result<Code, String> {
    Ok(match word {
        "cancelled" => Code::Cancelled,
        "unknown" => Code::Unknown,
        "invalid-argument" => Code::InvalidArgument,
        "deadline-exceeded" => Code::DeadlineExceeded,
        "not-found" => Code::NotFound,
        "already-exists" => Code::AlreadyExists,
        "permission-denied" => Code::PermissionDenied,
        "resource-exhausted" => Code::ResourceExhausted,
        "failed-precondition" => Code::FailedPrecondition,
        "aborted" => Code::Aborted,
        "unimplemented" => Code::Unimplemented,
        "internal" => Code::Internal,
        "unavailable" => Code::Unavailable,
        "data-loss" => Code::DataLoss,
        "unauthenticated" => Code::Unauthenticated,
        other => return Err(format!("`{other}` is no fault")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(line: &str) -> Rule {
        line.parse().unwrap()
    }

    fn is_due(rule: &Rule, before: &[&str]) -> bool {
        rule.is_due(before.iter().filter_map(|line| Made::read(line)))
    }

    #[test]
    fn a_fault_happens_before_or_after_the_work() {
        let refused = rule("start unknown-after oh no").fault;
        let what = What::Refuse(Code::Unknown, "oh no".to_owned());
        assert_eq!(
            refused,
            Fault {
                what,
                moment: Moment::After
            }
        );
        let late = rule("wait delay 5").fault;
        let what = What::Delay(Duration::from_millis(5));
        assert_eq!(
            late,
            Fault {
                what,
                moment: Moment::Before
            }
        );
        assert_eq!(rule("any cut-after").fault.what, What::Cut);
    }

    #[test]
    fn a_rule_counts_the_calls_that_it_is_about() {
        let third = rule("once skip 2 start@web- die");
        assert!(third.is_about("start", "web-1-a") && !third.is_about("start", "worker-1-a"));
        let before = ["start web-1-a: -", "start worker-1-b: -", "stop web-1-a: -"];
        assert!(!is_due(&third, &before));
        let before = [&before[..], &["start web-1-c: -"]].concat();
        assert!(is_due(&third, &before));
        assert!(!is_due(
            &third,
            &[&before[..], &["start web-1-d: die"]].concat()
        ));
        let twice = rule("2 times start die");
        assert!(is_due(&twice, &["start web-1-d: die"]));
        assert!(!is_due(
            &twice,
            &["start web-1-d: die", "start web-1-e: die"]
        ));
    }

    #[test]
    fn chance_is_in_percent() {
        let rule = rule("30% any unavailable");
        assert!(rule.is_wanted(29) && !rule.is_wanted(30));
        assert!(!rule.counts());
    }

    #[test]
    fn what_cannot_be_understood_is_told() {
        for (line, why) in [
            ("start explode", "`explode` is no fault"),
            ("go hang", "`go` is no call"),
            ("wait delay", "`` is no number"),
            ("x% wait hang", "`x` is no number"),
            ("build twice", "`build` cannot be had twice"),
        ] {
            assert_eq!(line.parse::<Rule>().unwrap_err(), why);
        }
    }
}
