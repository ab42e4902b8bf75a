//! Which layer counts. Pure.

use std::{collections::HashMap, ffi::OsString, fmt};

use super::{
    error::{ConfigError, Place},
    file::Entry,
    key::{Key, Kind, RIVALS},
};

/// What is said of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    Switch(bool),
    /// One, or with a list any number.
    Values(Vec<String>),
}

/// Who said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag,
    Variable(String),
    File(Place),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File(place) => place.fmt(f),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A key with what counts for it.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) key: Key,
    /// None: nobody says anything, and there is no default.
    pub(crate) given: Option<Given>,
    pub(crate) origin: Origin,
}

impl Setting {
    /// Where a variable or a file says it: the variable, or the place and the key.
    pub(crate) fn place(&self) -> Option<String> {
        match &self.origin {
            Origin::Variable(name) => Some(name.clone()),
            Origin::File(place) => Some(format!("{place}: {}", self.key.name)),
            Origin::Flag | Origin::Default => None,
        }
    }

    /// As one would type it.
    pub(crate) fn words(&self) -> Vec<String> {
        let name = &self.key.name;
        match &self.given {
            None | Some(Given::Switch(false)) => Vec::new(),
            Some(Given::Switch(true)) => vec![format!("--{name}")],
            Some(Given::Values(values)) => {
                let word = |value| format!("--{name}={value}");
                values.iter().map(word).collect()
            }
        }
    }
}

/// What the command line says, by the names of the keys.
pub(super) type Flags = HashMap<String, Given>;

/// Decides for each key. Of the `files` the last counts.
pub(super) fn merge(
    keys: &[Key],
    flags: &Flags,
    variable: impl Fn(&str) -> Option<OsString>,
    files: &[Vec<Entry>],
) -> Result<Vec<Setting>, ConfigError> {
    let mut ranks = HashMap::new();
    let mut settings = Vec::new();
    for key in keys {
        let Said {
            given,
            origin,
            rank,
        } = said(key, flags, &variable, files)?;
        let setting = Setting {
            key: key.clone(),
            given,
            origin,
        };
        // What is weighed later outdoes nobody here.
        if let Some(rank) = rank.filter(|_| !is_weighed_later(&setting)) {
            ranks.insert(key.name.clone(), rank);
        }
        settings.push(setting);
    }
    for setting in &mut settings {
        if is_outdone(&setting.key.name, &ranks) {
            setting.given = None;
            setting.origin = Origin::Default;
        }
    }
    Ok(settings)
}

/// What is said of a key, who says it, and how near to the command line that is.
struct Said {
    given: Option<Given>,
    origin: Origin,
    /// None: nobody says anything.
    rank: Option<usize>,
}

fn said(
    key: &Key,
    flags: &Flags,
    variable: impl Fn(&str) -> Option<OsString>,
    files: &[Vec<Entry>],
) -> Result<Said, ConfigError> {
    let said = |given, origin, rank| {
        Ok(Said {
            given: Some(given),
            origin,
            rank: Some(rank),
        })
    };
    if let Some(given) = flags.get(&key.name) {
        return said(given.clone(), Origin::Flag, files.len() + 1);
    }
    if let Some(value) = variable(&key.variable).filter(|value| !value.is_empty()) {
        let given = of_variable(key, value)?;
        let origin = Origin::Variable(key.variable.clone());
        return said(given, origin, files.len());
    }
    for (rank, entries) in files.iter().enumerate().rev() {
        if let Some(entry) = entries.iter().find(|entry| entry.key == key.name) {
            let origin = Origin::File(entry.place.clone());
            return said(entry.given.clone(), origin, rank);
        }
    }
    Ok(Said {
        given: match key.kind {
            Kind::Switch => Some(Given::Switch(false)),
            Kind::Value | Kind::List | Kind::Pairs => {
                let default = key.default.clone();
                default.map(|value| Given::Values(vec![value]))
            }
        },
        origin: Origin::Default,
        rank: None,
    })
}

/// The variable may have been set for other commands, so who chooses the source goes by it
/// only where there is no other.
fn is_weighed_later(setting: &Setting) -> bool {
    setting.key.name == "control-dir" && matches!(setting.origin, Origin::Variable(_))
}

/// Whether it is weighed later, and there is another source then.
pub(super) fn is_passed_over(setting: &Setting, all: &[Setting]) -> bool {
    let is_rival = |other: &&Setting| {
        let both = [setting, *other].map(|one| one.key.name.as_str());
        both[0] != both[1]
            && RIVALS
                .iter()
                .any(|rivals| both.iter().all(|name| rivals.contains(name)))
    };
    is_weighed_later(setting)
        && all
            .iter()
            .filter(is_rival)
            .any(|rival| rival.origin != Origin::Default)
}

/// Whether a rival of it is said nearer to the command line.
fn is_outdone(name: &str, ranks: &HashMap<String, usize>) -> bool {
    let Some(own) = ranks.get(name) else {
        return false;
    };
    RIVALS
        .iter()
        .filter(|rivals| rivals.contains(&name))
        .flat_map(|rivals| rivals.iter())
        .any(|rival| ranks.get(*rival).is_some_and(|rank| rank > own))
}

/// Finds that no variable, and no file, says two things of which one alone can count. The command
/// line's own contradictions are found where the others are, as wrong usage.
pub(super) fn agree(settings: &[Setting]) -> Result<(), ConfigError> {
    for rivals in RIVALS {
        let is_one = |setting: &&Setting| {
            rivals.contains(&setting.key.name.as_str()) && !is_weighed_later(setting)
        };
        let mut places = settings.iter().filter(is_one).filter_map(Setting::place);
        if let (Some(one), Some(other)) = (places.next(), places.next()) {
            return Err(ConfigError::Rivals { one, other });
        }
    }
    Ok(())
}

/// A variable's value: a list has blanks between its items.
fn of_variable(key: &Key, value: OsString) -> Result<Given, ConfigError> {
    let wrong = |problem| ConfigError::Value {
        from: key.variable.clone(),
        problem,
    };
    let text = value.into_string();
    let text = text.map_err(|_| wrong(format!("it is not UTF-8: use --{}", key.name)))?;
    Ok(match key.kind {
        Kind::Value => Given::Values(vec![text]),
        Kind::List | Kind::Pairs => {
            Given::Values(text.split_whitespace().map(str::to_owned).collect())
        }
        Kind::Switch => match text.to_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Given::Switch(true),
            "0" | "false" | "no" | "off" => Given::Switch(false),
            _ => return Err(wrong(format!("`{text}` is neither true nor false"))),
        },
    })
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::config::key::tests::all;

    fn values(text: &str) -> Given {
        Given::Values(vec![text.to_owned()])
    }

    fn entry(key: &str, given: Given, path: &str) -> Entry {
        Entry {
            key: key.to_owned(),
            given,
            place: Place {
                path: path.into(),
                line: 1,
            },
        }
    }

    fn merged(
        flags: &[(&str, Given)],
        variables: &[(&str, &str)],
        files: &[Vec<Entry>],
    ) -> Vec<Setting> {
        let flags = flags.iter().cloned();
        let flags = flags
            .map(|(name, given)| (name.to_owned(), given))
            .collect();
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name)?;
            Some(found.1.into())
        };
        merge(&all(), &flags, variable, files).unwrap()
    }

    /// What counts for `key`, and who says so.
    fn counts(
        key: &str,
        flags: &[(&str, Given)],
        variables: &[(&str, &str)],
        files: &[Vec<Entry>],
    ) -> (Option<Given>, String) {
        let settings = merged(flags, variables, files);
        let setting = settings.into_iter().find(|setting| setting.key.name == key);
        let setting = setting.unwrap();
        (setting.given, setting.origin.to_string())
    }

    #[test]
    fn the_nearest_to_the_command_line_counts() {
        let files = [
            vec![entry("grace", values("1s"), "a")],
            vec![entry("grace", values("2s"), "b")],
        ];
        let variable = [("HSUP_GRACE", "3s")];
        let flag = [("grace", values("4s"))];
        let is = |text: &str, origin: &str| (Some(values(text)), origin.to_owned());
        assert_eq!(counts("grace", &[], &[], &[]), is("30s", "default"));
        assert_eq!(counts("grace", &[], &[], &files[..1]), is("1s", "a:1"));
        assert_eq!(counts("grace", &[], &[], &files), is("2s", "b:1"));
        assert_eq!(
            counts("grace", &[], &variable, &files),
            is("3s", "HSUP_GRACE")
        );
        assert_eq!(counts("grace", &flag, &variable, &files), is("4s", "flag"));
        assert_eq!(
            counts("grace", &[], &[("HSUP_GRACE", "")], &files),
            is("2s", "b:1"),
            "an empty variable says nothing"
        );
    }

    #[test]
    fn a_variable_takes_back_what_a_file_switches_on() {
        let files = [vec![entry("cycle", Given::Switch(true), "a")]];
        let off = counts("cycle", &[], &[("HSUP_CYCLE", "off")], &files);
        assert_eq!(off, (Some(Given::Switch(false)), "HSUP_CYCLE".to_owned()));
    }

    #[test_case("driver", "driver-socket")]
    #[test_case("control-dir", "directory")]
    #[test_case("app", "control-dir")]
    fn a_rival_that_is_said_nearer_counts_alone(outdone: &str, by: &str) {
        let files = [
            vec![entry(outdone, values("x"), "a")],
            vec![entry(by, values("y"), "b")],
        ];
        assert_eq!(counts(outdone, &[], &[], &files[..1]).0, Some(values("x")));
        assert_eq!(counts(outdone, &[], &[], &files).0, None);
        assert_eq!(
            counts(outdone, &[(by, values("y"))], &[], &files[..1]).0,
            None
        );
        let both = [vec![files[0][0].clone(), files[1][0].clone()]];
        assert_eq!(counts(outdone, &[], &[], &both).0, Some(values("x")));
    }

    #[test]
    fn rivals_that_are_said_side_by_side_are_refused() {
        let disagreed = |variables: &[(&str, &str)], files: &[Vec<Entry>]| {
            let error = agree(&merged(&[], variables, files)).unwrap_err();
            error.to_string()
        };
        let drivers = [vec![
            entry("driver", values("docker"), "a"),
            entry("driver-socket", values("/s"), "b"),
        ]];
        let said = "contradict each other: only one of them can count";
        assert_eq!(
            disagreed(&[], &drivers),
            format!("a:1: driver and b:1: driver-socket {said}")
        );
        let apps = [("HSUP_APP", "shop"), ("HSUP_DIRECTORY", "/srv")];
        assert_eq!(
            disagreed(&apps, &[]),
            format!("HSUP_APP and HSUP_DIRECTORY {said}")
        );

        let nearer = [("HSUP_DRIVER", "docker")];
        let by_token = [("HSUP_APP", "shop"), ("HSUP_CONTROL_DIR", "/ctl")];
        for settings in [merged(&[], &nearer, &drivers), merged(&[], &by_token, &[])] {
            assert!(agree(&settings).is_ok());
        }
    }

    #[test]
    fn the_variable_of_the_control_directory_is_weighed_later() {
        let (flag, variable) = ([("app", values("shop"))], [("HSUP_CONTROL_DIR", "/ctl")]);
        let file = [vec![entry("app", values("shop"), "a")]];
        assert_eq!(counts("app", &[], &variable, &file).0, Some(values("shop")));
        assert_eq!(
            counts("control-dir", &flag, &variable, &[]).0,
            Some(values("/ctl"))
        );
        for (settings, is_passed) in [
            (merged(&flag, &variable, &[]), true),
            (merged(&[], &variable, &[]), false),
        ] {
            let control = settings.iter().find(|one| one.key.name == "control-dir");
            assert_eq!(is_passed_over(control.unwrap(), &settings), is_passed);
        }
    }

    #[test]
    fn a_list_in_a_variable_has_blanks_between() {
        let list = Given::Values(vec!["/a".to_owned(), "/b".to_owned()]);
        let (given, _) = counts("bind", &[], &[("HSUP_BIND", "/a  /b")], &[]);
        assert_eq!(given, Some(list));
        let pairs = Given::Values(vec!["a=1".to_owned(), "b=x,y".to_owned()]);
        let (given, _) = counts(
            "driver-option",
            &[],
            &[("HSUP_DRIVER_OPTION", "a=1 b=x,y")],
            &[],
        );
        assert_eq!(given, Some(pairs));
    }

    #[test]
    fn a_variable_that_is_no_text_is_refused_where_it_would_count() {
        use std::os::unix::ffi::OsStringExt as _;
        let variable =
            |name: &str| (name == "HSUP_GRACE").then(|| OsString::from_vec(vec![b'1', 0xff]));
        let error = merge(&all(), &Flags::new(), variable, &[]).unwrap_err();
        let expected = "HSUP_GRACE: it is not UTF-8: use --grace";
        assert_eq!(error.to_string(), expected);
        let flags = Flags::from([("grace".to_owned(), values("1s"))]);
        assert!(merge(&all(), &flags, variable, &[]).is_ok());
    }

    #[test]
    fn a_word_that_is_no_switch_is_refused() {
        let variable = |name: &str| (name == "HSUP_CYCLE").then(|| "maybe".into());
        let error = merge(&all(), &Flags::new(), variable, &[]).unwrap_err();
        let expected = "HSUP_CYCLE: `maybe` is neither true nor false";
        assert_eq!(error.to_string(), expected);
    }
}
