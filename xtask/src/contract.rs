//! Is every field and capability of the driver protocol used, on both sides?
//!
//! A field that one side forgets is lost without a word: that is how drivers of Nomad lost
//! capabilities that they declared. Whoever adds one must use it, or say here why not. Which
//! code uses what is read from the text of the sources, by these signs: a field in a literal
//! or pattern of its message, `.field` in a file that names the message or the call, and
//! `::Variant` for a member of a oneof or an enum.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use protox::prost_reflect::prost_types::{MessageOptions, field_descriptor_proto::Type};

const PROTO: &str = "hsup/driver/v1/driver.proto";

/// What one side does not use, and why not.
type Unused = &'static [(&'static str, &'static str)];

const SUPERVISOR: &[&str] = &["hsup-core/src", "cli/src", "drivers/kit/src/client.rs"];
const UNUSED_BY_SUPERVISOR: Unused = &[
    ("CAPABILITY_LOGS", LOGS),
    ("LogsRequest.after_cursor", LOGS),
    ("LogsResponse.data", LOGS),
    ("LogsResponse.cursor", LOGS),
    (
        "CAPABILITY_SIGNAL",
        "no command of hsup sends a signal that is not a Stop's",
    ),
    (
        "Dyno.process_number",
        "the journal has it, by the dyno's id",
    ),
    (
        "StatsResponse.memory_peak_bytes",
        "ps shows what is taken up now",
    ),
];
const LOGS: &str = "output is read from FIFOs; a driver without is refused when it is connected";

/// The driver's side: the kit, and for what no driver here offers the suite's naive one.
const DRIVER: &[&str] = &[
    "drivers/kit/src/service",
    "drivers/simple/src",
    "tests/src/bin/naive-driver",
];
const UNUSED_BY_DRIVER: Unused = &[
    (
        "GetInfoRequest.supervisor_version",
        "for the log of a driver that wants it",
    ),
    (
        "Release.config",
        "no part of a Build's key, and of use to a Build that runs code",
    ),
];

#[test]
fn every_field_and_capability_is_used_by_the_supervisor() {
    check(SUPERVISOR, UNUSED_BY_SUPERVISOR);
}

#[test]
fn every_field_and_capability_is_used_by_a_driver() {
    check(DRIVER, UNUSED_BY_DRIVER);
}

fn check(folders: &[&str], unused: Unused) {
    let sources: Vec<_> = folders.iter().flat_map(|folder| sources(folder)).collect();
    let found: BTreeSet<_> = names()
        .into_iter()
        .filter(|name| !sources.iter().any(|source| name.is_used_in(source)))
        .map(|name| name.shown)
        .collect();
    let said: BTreeSet<_> = unused.iter().map(|(name, _)| (*name).to_owned()).collect();
    let lost: Vec<_> = found.difference(&said).collect();
    assert!(lost.is_empty(), "used nowhere in {folders:?}: {lost:?}");
    let stale: Vec<_> = said.difference(&found).collect();
    assert!(
        stale.is_empty(),
        "said to be unused in {folders:?}, and used: {stale:?}"
    );
}

/// Something of the protocol that code must use.
struct Name {
    /// As people know it: `StopRequest.grace_ms`, `CAPABILITY_LOGS`.
    shown: String,
    /// As Rust has it.
    rust: String,
    kind: Kind,
}

enum Kind {
    /// A plain field of the message, and the words of which a file has one that knows it.
    Field {
        message: String,
        known_by: BTreeSet<String>,
        /// An enum's field, which is read with a method of its name.
        is_enum: bool,
    },
    /// A member of a oneof, whatever the code calls that, or of an enum.
    Variant(Option<&'static str>),
}

impl Name {
    fn is_used_in(&self, tokens: &[String]) -> bool {
        let at = |index: Option<usize>| index.and_then(|index| tokens.get(index));
        let mut places = (0..tokens.len()).filter(|place| tokens[*place] == self.rust);
        match &self.kind {
            Kind::Variant(of) => places.any(|place| {
                let before = |back| at(place.checked_sub(back)).map_or("", String::as_str);
                let named = of.is_none_or(|of| before(3) == of);
                before(1) == ":" && before(2) == ":" && named
            }),
            Kind::Field {
                message,
                known_by,
                is_enum,
            } => {
                let known = tokens.iter().any(|token| known_by.contains(token));
                let read = |place: usize| {
                    let is_call = at(place.checked_add(1)).is_some_and(|t| t == "(");
                    at(place.checked_sub(1)).is_some_and(|t| t == ".") && (*is_enum || !is_call)
                };
                (known && places.any(read)) || in_literal(tokens, message, &self.rust)
            }
        }
    }
}

/// Whether `field` is named in a literal or pattern of `message`.
fn in_literal(tokens: &[String], message: &str, field: &str) -> bool {
    let begins = |index: &usize| tokens[*index] == message && tokens[*index + 1] == "{";
    (0..tokens.len().saturating_sub(1))
        .filter(begins)
        .any(|index| {
            let mut depth = 0;
            for place in index + 1..tokens.len() {
                match tokens[place].as_str() {
                    "{" => depth += 1,
                    "}" if depth == 1 => return false,
                    "}" => depth -= 1,
                    word if depth == 1 && word == field => {
                        if matches!(tokens[place - 1].as_str(), "{" | ",") {
                            return true;
                        }
                    }
                    _ => {}
                }
            }
            false
        })
}

/// The fields of all messages, and the capabilities.
fn names() -> Vec<Name> {
    let files = protox::compile([PROTO], [root().join("proto/proto")]);
    let mut files = files.unwrap().file.into_iter();
    let file = files.find(|file| file.name() == PROTO).unwrap();
    let mut known_by: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for method in file.service.iter().flat_map(|service| &service.method) {
        for message in [method.input_type(), method.output_type()] {
            let words = known_by.entry(message.to_owned()).or_default();
            // What a call gets is kept under its name: `up.info`.
            let call = snake(method.name());
            words.insert(call.trim_start_matches("get_").to_owned());
            words.insert(call);
        }
    }
    // A message within another is known where that one is.
    let mut messages = Vec::new();
    let mut left: Vec<_> = file
        .message_type
        .iter()
        .map(|message| (".hsup.driver.v1".to_owned(), message))
        .collect();
    while let Some((scope, message)) = left.pop() {
        let full = format!("{scope}.{}", message.name());
        let options = message.options.as_ref();
        let is_map = options.is_some_and(MessageOptions::map_entry);
        left.extend(
            message
                .nested_type
                .iter()
                .map(|nested| (full.clone(), nested)),
        );
        if !is_map {
            messages.push((full, message));
        }
    }
    for (full, message) in &messages {
        let words = known_by.entry(full.clone()).or_default();
        words.insert(upper_camel(message.name()));
    }
    for _ in 0..messages.len() {
        for (full, message) in &messages {
            let words = known_by[full].clone();
            for field in &message.field {
                if let Some(inner) = known_by.get_mut(field.type_name()) {
                    inner.extend(words.iter().cloned());
                }
            }
        }
    }
    let mut names = Vec::new();
    for (full, message) in &messages {
        for field in &message.field {
            let in_oneof = field.oneof_index.is_some() && !field.proto3_optional();
            let kind = if in_oneof {
                Kind::Variant(None)
            } else {
                Kind::Field {
                    message: upper_camel(message.name()),
                    known_by: known_by[full].clone(),
                    is_enum: field.r#type() == Type::Enum,
                }
            };
            names.push(Name {
                shown: format!("{}.{}", message.name(), field.name()),
                rust: if in_oneof {
                    upper_camel(field.name())
                } else {
                    field.name().to_owned()
                },
                kind,
            });
        }
    }
    let capabilities = file
        .enum_type
        .iter()
        .find(|it| it.name() == "Capability")
        .unwrap();
    names.extend(
        capabilities
            .value
            .iter()
            .filter(|value| value.number() != 0)
            .map(|value| {
                let short = value
                    .name()
                    .trim_start_matches("CAPABILITY_")
                    .to_lowercase();
                Name {
                    shown: value.name().to_owned(),
                    rust: upper_camel(&short),
                    kind: Kind::Variant(Some("Capability")),
                }
            }),
    );
    names
}

/// The words and signs of each source in `folder`, or of the one that it is, without comments
/// and without what is for tests only.
fn sources(folder: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut left = vec![root().join(folder)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|end| end == "rs") && !is_test(&path) {
            found.push(tokens(&fs::read_to_string(path).unwrap()));
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

fn is_test(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    matches!(name, Some("tests.rs" | "fake.rs"))
}

fn tokens(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut tokens: Vec<String> = Vec::new();
    let mut in_word = false;
    for line in code.lines() {
        for character in line.split("//").next().unwrap().chars() {
            let is_word = character.is_alphanumeric() || character == '_';
            match tokens.last_mut() {
                Some(word) if is_word && in_word => word.push(character),
                _ if character.is_whitespace() => {}
                _ => tokens.push(character.to_string()),
            }
            in_word = is_word;
        }
        in_word = false;
    }
    tokens
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A message's or a member's name as prost has it: `IPInfoRequest` is `IpInfoRequest`.
fn upper_camel(name: &str) -> String {
    snake(name)
        .split('_')
        .map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_uppercase() + rest
        })
        .collect()
}

/// A call's name as tonic has it: `IPInfo` is `ip_info`.
fn snake(name: &str) -> String {
    let characters: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (index, character) in characters.iter().enumerate() {
        let next = characters.get(index + 1);
        let before = index.checked_sub(1).map(|index| characters[index]);
        let begins = character.is_uppercase()
            && (before.is_some_and(char::is_lowercase) || next.is_some_and(|c| c.is_lowercase()));
        if begins && index > 0 {
            out.push('_');
        }
        out.extend(character.to_lowercase());
    }
    out
}

#[test]
fn names_are_those_of_the_generated_code() {
    assert_eq!(upper_camel("IPInfoRequest"), "IpInfoRequest");
    assert_eq!(upper_camel("stdin_eof"), "StdinEof");
    assert_eq!(snake("GetInfo"), "get_info");
    assert_eq!(snake("IPInfo"), "ip_info");
}

#[test]
fn a_use_is_seen_and_a_word_alone_is_none() {
    let field = |rust: &str| Name {
        shown: String::new(),
        rust: rust.to_owned(),
        kind: Kind::Field {
            message: "StopRequest".to_owned(),
            known_by: ["stop".to_owned()].into(),
            is_enum: false,
        },
    };
    let source = tokens(
        "// grace_ms: 3\nlet it = StopRequest { dyno_id: id(), force, ..f { signal } };\n\
         stop(it.shown, it.called());\n#[cfg(test)]\nmod tests { let x = it.late; }",
    );
    let used = |name: &str| field(name).is_used_in(&source);
    assert!(used("dyno_id") && used("force") && used("shown"));
    assert!(
        !used("called") && !used("grace_ms") && !used("signal") && !used("late") && !used("it")
    );
}
