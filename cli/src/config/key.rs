//! All that can be configured: the options that every command has, as clap knows them.

use std::{
    any::TypeId,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Command};
use hsup_core::driver::DriverOption;

use crate::hsup::args::SecretUrl;

/// Options that say where configuration is, and so cannot be in it.
const NOT_KEYS: [&str; 1] = ["config"];

/// Options of which the one that is said closer to the command line counts alone: each names
/// another of the same.
pub(super) const RIVALS: [&[&str]; 2] = [SOURCES, &["driver", "driver-socket"]];

/// Those that say which app is meant.
pub(crate) const SOURCES: &[&str] = &["app", "directory", "control-dir"];

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// As in a file; with `--` before it the option.
    pub(crate) name: String,
    pub(crate) variable: String,
    pub(crate) kind: Kind,
    pub(crate) is_path: IsPath,
    /// Its values are shown to nobody.
    pub(crate) secret: bool,
    pub(crate) default: Option<String>,
    pub(crate) help: String,
    /// How clap calls it.
    pub(super) id: String,
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Switch,
    Value,
    List,
    /// A list of `KEY=VALUE`, which a file may have as a table.
    Pairs,
}

/// Whether the values of an option are paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IsPath {
    Never,
    Always,
    /// One with a slash: a driver by its path, and not by its name.
    WithSlash,
}

impl IsPath {
    pub(crate) fn of(option: &Arg) -> Self {
        if option.get_value_parser().type_id() == TypeId::of::<PathBuf>() {
            Self::Always
        } else if option.get_id() == "driver" {
            Self::WithSlash
        } else {
            Self::Never
        }
    }

    /// Whether it is so of this value.
    pub(crate) fn holds(self, value: &OsStr) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::WithSlash => value.as_encoded_bytes().contains(&b'/'),
        }
    }
}

impl Key {
    /// The value that a file in `folder` means: a relative path is one from there, wherever hsup
    /// is started.
    pub(super) fn in_folder(&self, folder: &Path, value: String) -> String {
        let is_path = !value.is_empty() && self.is_path.holds(value.as_ref());
        // A folder that is no text cannot be in front of one: it is as it was written.
        let placed = is_path.then(|| folder.join(&value).into_os_string().into_string());
        placed.and_then(Result::ok).unwrap_or(value)
    }
}

/// The keys, in the order of the help.
pub(crate) fn keys(command: &Command) -> Vec<Key> {
    command.get_arguments().filter_map(key).collect()
}

fn key(option: &Arg) -> Option<Key> {
    let name = option.get_long()?;
    let parsed = option.get_value_parser().type_id();
    let kind = match option.get_action() {
        ArgAction::SetTrue => Kind::Switch,
        ArgAction::Set => Kind::Value,
        ArgAction::Append if parsed == TypeId::of::<DriverOption>() => Kind::Pairs,
        ArgAction::Append => Kind::List,
        // Help and version.
        _ => return None,
    };
    if !option.is_global_set() || NOT_KEYS.contains(&name) {
        return None;
    }
    let defaults = option.get_default_values().first();
    let default = defaults.map(|value| value.to_string_lossy().into_owned());
    Some(Key {
        variable: variable(name),
        is_path: IsPath::of(option),
        secret: parsed == TypeId::of::<SecretUrl>(),
        default: default.filter(|_| kind != Kind::Switch),
        help: option
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default(),
        id: option.get_id().to_string(),
        name: name.to_owned(),
        kind,
    })
}

fn variable(name: &str) -> String {
    match name {
        // Heroku's own name for it.
        "logplex-url" => "LOGPLEX_URL".to_owned(),
        name => format!("HSUP_{}", name.replace('-', "_").to_uppercase()),
    }
}

/// The key that somebody may have meant.
pub(super) fn nearest<'a>(keys: &'a [Key], wrong: &str) -> Option<&'a str> {
    const ALIKE: f64 = 0.75;
    let wrong = wrong.replace('_', "-").to_lowercase();
    let scored = keys
        .iter()
        .map(|key| (strsim::jaro_winkler(&key.name, &wrong), key));
    let best = scored.max_by(|one, other| one.0.total_cmp(&other.0));
    best.filter(|(score, _)| *score >= ALIKE)
        .map(|(_, key)| key.name.as_str())
}

#[cfg(test)]
pub(super) mod tests {
    use clap::CommandFactory as _;
    use test_case::test_case;

    use super::*;
    use crate::hsup::args::Cli;

    pub(in crate::config) fn all() -> Vec<Key> {
        keys(&Cli::command())
    }

    fn of(name: &str) -> Key {
        let mut all = all().into_iter();
        all.find(|key| key.name == name).unwrap()
    }

    #[test]
    fn they_are_the_options() {
        let grace = of("grace");
        assert_eq!(grace.variable, "HSUP_GRACE");
        assert_eq!((grace.kind, grace.secret), (Kind::Value, false));
        assert_eq!(grace.default.as_deref(), Some("30s"));
        assert_eq!(of("oneshot").kind, Kind::Switch);
        assert_eq!(of("bind").kind, Kind::List);
        assert_eq!(of("driver-option").kind, Kind::Pairs);
        let secrets: Vec<_> = all().into_iter().filter(|key| key.secret).collect();
        let secrets: Vec<_> = secrets.iter().map(|key| &*key.variable).collect();
        assert_eq!(secrets, ["LOGPLEX_URL", "HSUP_LOG_TO"]);
        for rival in RIVALS.concat() {
            of(rival);
        }
        let no_key = |name: &str| all().iter().all(|key| key.name != name);
        assert!(["config", "help", "version"].into_iter().all(no_key));
    }

    #[test]
    fn a_path_in_a_file_is_one_from_there() {
        let all = all()
            .into_iter()
            .filter(|key| key.is_path == IsPath::Always);
        let paths: Vec<_> = all.map(|key| key.name).collect();
        let expected = [
            "directory",
            "control-dir",
            "driver-socket",
            "control-socket",
            "state-dir",
        ];
        assert_eq!(paths, expected);
        for (key, value, expected) in [
            ("state-dir", "st", "/srv/shop/st"),
            ("state-dir", "../st", "/srv/shop/../st"),
            ("state-dir", "/st", "/st"),
            ("state-dir", "", ""),
            ("driver", "docker", "docker"),
            ("driver", "./jail", "/srv/shop/./jail"),
            ("grace", "5s", "5s"),
            ("log-to", "file:///x", "file:///x"),
        ] {
            let placed = of(key).in_folder(Path::new("/srv/shop"), value.to_owned());
            assert_eq!(placed, expected, "{key}");
        }
    }

    #[test_case("log_to", Some("log-to"))]
    #[test_case("bootTimeout", Some("boot-timeout"))]
    #[test_case("grac", Some("grace"))]
    #[test_case("qqqq", None)]
    fn a_word_is_near(wrong: &str, expected: Option<&str>) {
        assert_eq!(nearest(&all(), wrong), expected);
    }
}
