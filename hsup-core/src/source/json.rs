//! A JSON text that is read value by value, each with its place in the text.
//!
//! What serde says of a wrong type shows the value, and knows a line only for syntax
//! errors. The values here may be secrets, and a person must find the one that is wrong:
//! so every error has a line, a column and the path of keys, and shows a value only
//! where the caller asked for a number.
//!
//! `null` is read as Go's `encoding/json` does, which the original hsup used: as if the
//! key were absent.

use std::{
    fmt::{self, Write as _},
    ops::RangeInclusive,
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::Position;

/// How long a path of keys may get in an error, about: a text may be nested without end.
const PATH_MAX: usize = 200;

/// One value of a JSON text.
#[derive(Clone, Debug)]
pub(super) struct Json<'a> {
    text: &'a str,
    raw: &'a str,
    path: String,
}

/// The text is not JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) position: Position,
    /// The keys that it is below; empty at the top.
    pub(super) path: String,
    pub(super) problem: String,
    /// Whether it is a beginning of something that is.
    pub(super) truncated: bool,
}

/// What is open at some point of a text that need not be JSON beyond it.
enum Open {
    Object {
        key: Option<String>,
        awaits_key: bool,
    },
    List {
        index: usize,
    },
}

/// The path of keys to a place in a text that is wrong from there on.
fn path_at(text: &str, line: usize, column: usize) -> String {
    // serde_json counts lines from 1 and bytes in them from 0.
    let before = text.split_inclusive('\n').take(line.saturating_sub(1));
    let offset = before.map(str::len).sum::<usize>() + column;
    let bytes = &text.as_bytes()[..offset.min(text.len())];
    let mut open = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match (byte, open.last_mut()) {
            (b'{', _) => open.push(Open::Object {
                key: None,
                awaits_key: true,
            }),
            (b'[', _) => open.push(Open::List { index: 0 }),
            (b'}' | b']', _) => {
                open.pop();
            }
            (b',', Some(Open::List { index })) => *index += 1,
            (b',', Some(Open::Object { key, awaits_key })) => (*key, *awaits_key) = (None, true),
            (b':', Some(Open::Object { awaits_key, .. })) => *awaits_key = false,
            (b'"', frame) => {
                let begin = at;
                while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let end = at.min(bytes.len());
                at += 1;
                if let Some(Open::Object {
                    key,
                    awaits_key: true,
                }) = frame
                {
                    *key = Some(String::from_utf8_lossy(&bytes[begin..end]).into_owned());
                }
            }
            _ => {}
        }
    }
    let mut path = String::new();
    for frame in open {
        match frame {
            Open::List { index } => push_index(&mut path, index),
            Open::Object { key: Some(key), .. } => push_key(&mut path, &key),
            Open::Object { key: None, .. } => {}
        }
        if path.len() > PATH_MAX {
            path.push('…');
            break;
        }
    }
    path
}

/// Adds a key to a path. Of a key with a `=` only the name before it is shown: somebody may
/// have written `NAME=value` where the name belongs.
fn push_key(path: &mut String, key: &str) {
    if is_plain(key) {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        return;
    }
    let mut shown = super::excerpt(key);
    if let Some(end) = shown.find('=') {
        shown.truncate(end + 1);
        shown.push('…');
    }
    write!(path, "[{shown:?}]").expect("writing to a String cannot fail");
}

fn push_index(path: &mut String, index: usize) {
    write!(path, "[{index}]").expect("writing to a String cannot fail");
}

/// A value is not what is expected at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ValueError {
    pub(super) position: Position,
    pub(super) path: String,
    pub(super) problem: String,
}

impl<'a> Json<'a> {
    /// Checks the syntax of all of `text`.
    pub(super) fn parse(text: &'a str) -> Result<Self, SyntaxError> {
        match serde_json::from_str::<&RawValue>(text) {
            Ok(raw) => Ok(Self {
                text,
                raw: raw.get(),
                path: String::new(),
            }),
            Err(error) => {
                let shown = error.to_string();
                // The position is told apart from the problem.
                let problem = shown.split(" at line ").next().unwrap_or_default();
                Err(SyntaxError {
                    position: Position {
                        line: error.line(),
                        column: error.column(),
                    },
                    path: path_at(text, error.line(), error.column()),
                    problem: problem.to_owned(),
                    truncated: error.is_eof(),
                })
            }
        }
    }

    /// Where it is, as keys: `Processes[0].Quantity`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn is_null(&self) -> bool {
        self.raw == "null"
    }

    /// That this value will not do.
    pub(super) fn error(&self, problem: impl Into<String>) -> ValueError {
        // `raw` is a part of `text`, so the difference is its offset.
        let offset = self.raw.as_ptr().addr() - self.text.as_ptr().addr();
        ValueError {
            position: Position::of(self.text, offset),
            path: self.path.clone(),
            problem: problem.into(),
        }
    }

    /// The members of an object in their order, duplicates included; none of `null`.
    pub(super) fn members(&self) -> Result<Vec<(String, Self)>, ValueError> {
        if self.is_null() {
            return Ok(Vec::new());
        }
        if !self.raw.starts_with('{') {
            return Err(self.wrong_type("an object"));
        }
        let Members(members) = serde_json::from_str(self.raw)
            .map_err(|_| self.error("a key has an invalid escape sequence"))?;
        let child = |(key, raw): (String, &'a RawValue)| {
            let mut path = self.path.clone();
            push_key(&mut path, &key);
            (
                key,
                Self {
                    text: self.text,
                    raw: raw.get(),
                    path,
                },
            )
        };
        Ok(members.into_iter().map(child).collect())
    }

    /// The items of a list; none of `null`.
    pub(super) fn items(&self) -> Result<Vec<Self>, ValueError> {
        if self.is_null() {
            return Ok(Vec::new());
        }
        if !self.raw.starts_with('[') {
            return Err(self.wrong_type("a list"));
        }
        let items: Vec<&RawValue> =
            serde_json::from_str(self.raw).map_err(|_| self.error("invalid list"))?;
        let child = |(index, raw): (usize, &'a RawValue)| {
            let mut path = self.path.clone();
            push_index(&mut path, index);
            Self {
                text: self.text,
                raw: raw.get(),
                path,
            }
        };
        Ok(items.into_iter().enumerate().map(child).collect())
    }

    /// A string without NUL characters, which nothing that hsup passes on can hold;
    /// empty of `null`.
    pub(super) fn string(&self) -> Result<String, ValueError> {
        if self.is_null() {
            return Ok(String::new());
        }
        if !self.raw.starts_with('"') {
            let hint = match self.kind() {
                "number" | "boolean" => "a string: put it in quotes",
                _ => "a string",
            };
            return Err(self.wrong_type(hint));
        }
        let string: String = serde_json::from_str(self.raw)
            .map_err(|_| self.error("invalid value: a string with an invalid escape sequence"))?;
        if string.contains('\0') {
            return Err(self.error("invalid value: a string with a NUL character"));
        }
        Ok(string)
    }

    /// A whole number in `range`; 0 of `null`. An error shows it.
    pub(super) fn integer(&self, range: &RangeInclusive<u64>) -> Result<u64, ValueError> {
        if self.is_null() {
            return Ok(0);
        }
        let expected = format!("{} to {}", range.start(), range.end());
        if self.kind() != "number" {
            return Err(self.wrong_type(&format!("a whole number from {expected}")));
        }
        if let Ok(number) = self.raw.parse()
            && range.contains(&number)
        {
            return Ok(number);
        }
        let kind = if self.raw.contains(['.', 'e', 'E']) {
            "number"
        } else {
            "integer"
        };
        Err(self.error(format!(
            "invalid value: {kind} {}, expected {expected}",
            super::excerpt(self.raw)
        )))
    }

    fn wrong_type(&self, expected: &str) -> ValueError {
        self.error(format!(
            "invalid type: {}, expected {expected}",
            self.kind()
        ))
    }

    fn kind(&self) -> &'static str {
        match self.raw.as_bytes().first() {
            Some(b'{') => "object",
            Some(b'[') => "list",
            Some(b'"') => "string",
            Some(b't' | b'f') => "boolean",
            Some(b'n') => "null",
            _ => "number",
        }
    }
}

fn is_plain(key: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&key.len()) && key.bytes().all(word)
}

/// An object's members as they stand, because a map would hide duplicates.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}
