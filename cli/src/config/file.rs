//! A file of the configuration: TOML, one key for each option. Pure.

use std::path::Path;

use hsup_core::driver::DriverOption;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigError, Place},
    key::{Key, Kind, SOURCES, nearest},
    merge::Given,
};

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The machine's or the user's.
    Operators,
    /// One that lies with an app, and cannot say which app is meant.
    Apps,
}

/// What a file says of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) given: Given,
    pub(super) place: Place,
}

impl Entry {
    /// Has a path mean the same wherever hsup is started: the file is in `folder`.
    pub(super) fn settle(&mut self, folder: &Path, keys: &[Key]) {
        let key = keys.iter().find(|key| key.name == self.key);
        if let (Some(key), Given::Values(values)) = (key, &mut self.given) {
            for value in values {
                *value = key.in_folder(folder, std::mem::take(value));
            }
        }
    }
}

/// Reads it.
pub(super) fn parse(
    path: &Path,
    text: &str,
    keys: &[Key],
    whose: Whose,
) -> Result<Vec<Entry>, ConfigError> {
    let place = |at: usize| Place {
        path: path.to_owned(),
        line: text.get(..at).unwrap_or(text).matches('\n').count() + 1,
    };
    // Its own way to print itself shows the line, and what secret is in it.
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: place(error.span().map_or(0, |span| span.start)),
        problem: error.message().to_owned(),
    })?;
    let mut entries = Vec::new();
    for (name, value) in table.get_ref() {
        let place = place(name.span().start);
        let name = name.get_ref().as_ref();
        let Some(key) = keys.iter().find(|key| key.name == name) else {
            return Err(ConfigError::UnknownKey {
                place,
                key: name.to_owned(),
                nearest: nearest(keys, name).map(str::to_owned),
            });
        };
        if whose == Whose::Apps && SOURCES.contains(&name) {
            let key = name.to_owned();
            return Err(ConfigError::NotInAppsFile { place, key });
        }
        let wrong = |problem| ConfigError::Value {
            from: format!("{place}: {name}"),
            problem,
        };
        if let (Kind::Pairs, DeValue::Table(pairs)) = (key.kind, value.get_ref()) {
            // Joined with its value, `a=b` would be another key.
            let keys = pairs
                .iter()
                .map(|(key, _)| DriverOption::new(key.get_ref(), ""));
            keys.collect::<Result<Vec<_>, _>>()
                .map_err(|error| wrong(error.to_string()))?;
        }
        let given = given(key.kind, value, text).ok_or_else(|| {
            let found = value.get_ref().type_str();
            wrong(format!("expected {}, found {found}", expected(key.kind)))
        })?;
        entries.push(Entry {
            key: key.name.clone(),
            given,
            place,
        });
    }
    Ok(entries)
}

const fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Switch => "true or false",
        Kind::Value => "a string or a number",
        Kind::List => "a string or a list of strings",
        Kind::Pairs => "a table of strings, numbers, true and false, or a list of KEY=VALUE",
    }
}

fn given(kind: Kind, value: &Spanned<DeValue<'_>>, text: &str) -> Option<Given> {
    match (kind, value.get_ref()) {
        (Kind::Switch, DeValue::Boolean(on)) => Some(Given::Switch(*on)),
        (Kind::Pairs, DeValue::Table(pairs)) => {
            let pairs = pairs
                .iter()
                .map(|(key, value)| pair(key.get_ref(), value, text));
            Some(Given::Values(pairs.collect::<Option<_>>()?))
        }
        (Kind::List | Kind::Pairs, DeValue::Array(items)) => {
            let items = items.iter().map(|item| scalar(item, text));
            Some(Given::Values(items.collect::<Option<_>>()?))
        }
        (Kind::Value | Kind::List | Kind::Pairs, _) => {
            Some(Given::Values(vec![scalar(value, text)?]))
        }
        (Kind::Switch, _) => None,
    }
}

/// `KEY=VALUE`, as one would type it.
fn pair(key: &str, value: &Spanned<DeValue<'_>>, text: &str) -> Option<String> {
    let value = match value.get_ref() {
        DeValue::Boolean(is_so) => is_so.to_string(),
        _ => scalar(value, text)?,
    };
    Some(format!("{key}={value}"))
}

/// A string, or a number as it stands there.
fn scalar(value: &Spanned<DeValue<'_>>, text: &str) -> Option<String> {
    match value.get_ref() {
        DeValue::String(string) => Some(string.clone().into_owned()),
        DeValue::Integer(_) | DeValue::Float(_) => Some(text.get(value.span())?.replace('_', "")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::config::key::tests::all;

    fn read(text: &str, whose: Whose) -> Result<Vec<Entry>, String> {
        parse(Path::new("/etc/x.toml"), text, &all(), whose).map_err(|error| error.to_string())
    }

    #[test]
    fn the_packages_file_says_nothing_and_what_it_offers_is_taken() {
        let text = include_str!("../../../packaging/hsup.toml");
        assert_eq!(read(text, Whose::Operators), Ok(Vec::new()));
        let is_offer = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
        let offers: Vec<_> = text.lines().filter(is_offer).collect();
        let entries = read(&offers.join("\n").replace('#', ""), Whose::Operators).unwrap();
        assert_eq!(entries.len(), offers.len());
        let defaults = all();
        for entry in entries {
            let key = defaults.iter().find(|key| key.name == entry.key).unwrap();
            if let (Given::Values(values), Some(default)) = (&entry.given, &key.default) {
                assert_eq!(values, std::slice::from_ref(default), "{}", entry.key);
            }
        }
    }

    #[test]
    fn each_kind_is_taken_as_people_write_it() {
        let text = "# mine\ngrace = 10\nboot-timeout = '2m'\n\noneshot = false\nbind = ['/a', '/b']\nlog-to = 'x'\nstart-number = 1_000\n";
        let mut entries = read(text, Whose::Operators).unwrap();
        entries.sort_by_key(|entry| entry.place.line);
        let read: Vec<_> = entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry.place.line, entry.given.clone()))
            .collect();
        let values =
            |values: &[&str]| Given::Values(values.iter().map(|&value| value.to_owned()).collect());
        assert_eq!(
            read,
            [
                ("grace", 2, values(&["10"])),
                ("boot-timeout", 3, values(&["2m"])),
                ("oneshot", 5, Given::Switch(false)),
                ("bind", 6, values(&["/a", "/b"])),
                ("log-to", 7, values(&["x"])),
                ("start-number", 8, values(&["1000"])),
            ]
        );
    }

    #[test_case("[driver-option]\nswarm = true\nreplicas = 1_0\nnetwork = 'shop net'" => vec![
        "network=shop net", "replicas=10", "swarm=true"]; "a table")]
    #[test_case("driver-option = { swarm = true }" => vec!["swarm=true"]; "a table in a line")]
    #[test_case("driver-option = ['swarm=true', 'a=b=c']" => vec!["a=b=c", "swarm=true"]; "a list")]
    #[test_case("driver-option = 'swarm=true'" => vec!["swarm=true"]; "one alone")]
    fn options_of_the_driver_are_a_table_or_a_list(text: &str) -> Vec<String> {
        match &read(text, Whose::Operators).unwrap()[..] {
            [
                Entry {
                    given: Given::Values(values),
                    ..
                },
            ] => {
                let mut values = values.clone();
                // A table has no order.
                values.sort();
                values
            }
            other => panic!("{other:?}"),
        }
    }

    #[test_case(
        "\ngrac = 1",
        "/etc/x.toml:2: unknown key `grac`: did you mean `grace`?"
    )]
    #[test_case("zzz = 1", "/etc/x.toml:1: unknown key `zzz`")]
    #[test_case(
        "[grace]",
        "/etc/x.toml:1: grace: expected a string or a number, found table"
    )]
    #[test_case(
        "oneshot = 'yes'",
        "/etc/x.toml:1: oneshot: expected true or false, found string"
    )]
    #[test_case(
        "bind = [true]",
        "/etc/x.toml:1: bind: expected a string or a list of strings, found array"
    )]
    #[test_case(
        "[driver-option]\na = ['b']",
        "/etc/x.toml:1: driver-option: expected a table of strings, numbers, true and false, or a list of KEY=VALUE, found table"
    )]
    #[test_case(
        "[driver-option]\n'a=b' = 1",
        "/etc/x.toml:1: driver-option: `a=b` is no key of a driver's option: a key has letters, digits, `_`, `.` and `-`, and begins with a letter or a digit"
    )]
    fn what_will_not_do_is_told_with_its_place(text: &str, expected: &str) {
        assert_eq!(read(text, Whose::Operators).unwrap_err(), expected);
    }

    #[test]
    fn a_file_that_is_broken_shows_nothing_of_itself() {
        let error = read("\nlog-to = 'https://t:s3cret@x", Whose::Operators).unwrap_err();
        assert!(error.starts_with("/etc/x.toml:2: "), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn an_apps_own_file_does_not_name_another_app() {
        let error = read("directory = '/srv'", Whose::Apps).unwrap_err();
        assert!(
            error.contains("`directory` says which app is meant"),
            "{error}"
        );
        assert!(read("grace = 1", Whose::Apps).is_ok());
    }
}
