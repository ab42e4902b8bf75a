//! From arguments, variables and files to the options that hsup goes by.

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf, absolute},
};

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, parser::ValueSource};
use hsup_core::{
    files::{Links, ReadFileError, open_regular, read_limited, read_regular},
    paths::directory_in,
    source::{Place as AppPlace, heroku::Access},
};
use nix::unistd::geteuid;

use super::{
    error::ConfigError,
    file::{Entry, Whose, parse},
    key::{Key, Kind, keys},
    merge::{Flags, Given, Origin, Setting, agree, merge},
};
use crate::hsup::args::{Cli, Command};

const FILE: &str = "hsup.toml";
const FOLDER: &str = "hsup.d";
const MAX_SIZE: u64 = 1 << 20;
/// The variable of `--config`.
const CONFIG: &str = "HSUP_CONFIG";

/// Where configuration lies when nobody says.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// `/etc/hsup`
    pub(crate) etc: PathBuf,
    /// The user's own.
    pub(crate) user: Option<PathBuf>,
    /// Where an app may be that nobody names; none where that directory has been removed, which
    /// concerns only those who look there.
    pub(crate) current_dir: Option<PathBuf>,
}

impl Places {
    /// Those of this process.
    pub(crate) fn from_env() -> Self {
        let home = || directory_in("HOME").map(|home| home.join(".config"));
        Self {
            etc: "/etc/hsup".into(),
            user: directory_in("XDG_CONFIG_HOME")
                .or_else(home)
                .map(|dir| dir.join("hsup")),
            current_dir: env::current_dir().ok(),
        }
    }
}

/// What hsup goes by.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) cli: Cli,
    /// Each key with who says it.
    pub(crate) settings: Vec<Setting>,
    /// The files that were looked for, the last one of which counts.
    pub(crate) files: Vec<(PathBuf, Reading)>,
    /// The control directory that a variable or a file names: who chooses the source weighs
    /// it against other signs.
    pub(crate) control_dir: Option<PathBuf>,
    /// The file that an option or a variable names.
    pub(crate) config: Option<PathBuf>,
}

/// What came of reading a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Read,
    Missing,
    /// It is not for this user, and says nothing.
    Forbidden,
}

/// The arguments or the configuration will not do.
#[derive(Debug)]
pub(crate) enum ResolveError {
    /// Also help and version, which are no errors.
    Usage(clap::Error),
    Config(ConfigError),
}

impl From<clap::Error> for ResolveError {
    fn from(error: clap::Error) -> Self {
        Self::Usage(error)
    }
}

impl From<ConfigError> for ResolveError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl Resolved {
    /// Who says what counts for this key.
    pub(crate) fn origin(&self, key: &str) -> &Origin {
        let of_it = |setting: &&Setting| setting.key.name == key;
        let setting = self.settings.iter().find(of_it);
        setting.map_or(&Origin::Default, |setting| &setting.origin)
    }
}

/// Reads everything, and has clap take it as if it had been typed.
pub(crate) fn resolve(
    arguments: &[OsString],
    variable: impl Fn(&str) -> Option<OsString>,
    places: &Places,
) -> Result<Resolved, ResolveError> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    // What is written the same whatever is configured.
    if matches!(
        cli.command,
        Command::Schema { .. } | Command::Completions { .. }
    ) {
        return Ok(Resolved {
            cli,
            settings: Vec::new(),
            files: Vec::new(),
            control_dir: None,
            config: None,
        });
    }
    let keys = keys(&command);
    let flags = flags(&keys, &matches);
    let named = cli.options.config.clone().or_else(|| {
        let path = variable(CONFIG).filter(|path| !path.is_empty());
        path.map(PathBuf::from)
    });
    let mut reader = Reader::new(&keys);
    match named.clone() {
        Some(path) => reader.read_named(path)?,
        None => reader.read_usual(places)?,
    }
    let first = merge(&keys, &flags, &variable, &reader.entries)?;
    // What is wrong with a token is told by who asks Heroku with it.
    let has_token = || !matches!(Access::find(&variable), Ok(None));
    // What is wrong with a folder is told by who looks for the app in it.
    let folder = app_folder(&cli, &first, places, has_token);
    if let Some(folder) = folder.filter(|folder| folder.is_dir()) {
        reader.read_apps(folder.join(FILE))?;
    }
    let settings = merge(&keys, &flags, &variable, &reader.entries)?;
    agree(&settings)?;

    let words = words(&settings, &cli.command)?;
    let cli = if words.is_empty() {
        cli
    } else {
        let (program, typed) = arguments.split_at(arguments.len().min(1));
        let words = words.into_iter().map(OsString::from);
        let all = program
            .iter()
            .cloned()
            .chain(words)
            .chain(typed.iter().cloned());
        Cli::from_arg_matches(&Cli::command().try_get_matches_from(all)?)?
    };
    Ok(Resolved {
        control_dir: unflagged(&settings, "control-dir"),
        config: named,
        cli,
        settings,
        files: reader.files,
    })
}

/// What stands on the command line.
fn flags(keys: &[Key], matches: &ArgMatches) -> Flags {
    let mut flags = Flags::new();
    let mut level = Some(matches);
    while let Some(matches) = level {
        for key in keys {
            if matches.value_source(&key.id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let given = match key.kind {
                Kind::Switch => Given::Switch(matches.get_flag(&key.id)),
                Kind::Value | Kind::List | Kind::Pairs => {
                    let values = matches.get_raw(&key.id).into_iter().flatten();
                    Given::Values(values.map(|v| v.to_string_lossy().into_owned()).collect())
                }
            };
            flags.insert(key.name.clone(), given);
        }
        level = matches.subcommand().map(|(_, matches)| matches);
    }
    flags
}

/// What a variable or a file says of a key with one value.
fn unflagged(settings: &[Setting], key: &str) -> Option<PathBuf> {
    let setting = settings.iter().find(|setting| setting.key.name == key)?;
    match (&setting.origin, &setting.given) {
        (Origin::Variable(_) | Origin::File(_), Some(Given::Values(values))) => {
            values.first().map(PathBuf::from)
        }
        _ => None,
    }
}

/// Where the app's own file is: with its Procfile or its releases. An app on Heroku has none; one
/// that is named where there is no token is that of the control directory.
fn app_folder(
    cli: &Cli,
    settings: &[Setting],
    places: &Places,
    has_token: impl FnOnce() -> bool,
) -> Option<PathBuf> {
    let options = &cli.options;
    if let Some(folder) = options
        .directory
        .clone()
        .or_else(|| options.control_dir.clone())
    {
        return Some(folder);
    }
    let named = |key| unflagged(settings, key);
    if options.app.is_some() || named("app").is_some() {
        return named("control-dir").filter(|_| !has_token());
    }
    if let Some(folder) = named("directory").or_else(|| named("control-dir")) {
        return Some(folder);
    }
    let here = places.current_dir.clone();
    here.filter(|here| AppPlace::of(here) == AppPlace::App)
}

/// The settings that were not typed, as one would type them, each found to be right.
fn words(settings: &[Setting], command: &Command) -> Result<Vec<String>, ConfigError> {
    let mut words = Vec::new();
    for setting in settings {
        let key = &setting.key;
        let Some(from) = setting.place() else {
            continue;
        };
        let own = setting.words();
        for word in &own {
            check(word).map_err(|problem| ConfigError::Value {
                from: from.clone(),
                problem,
            })?;
        }
        // The first is weighed by who chooses the source. The second is the socket of the one
        // hsup that starts the app, and `run` has none unless it is told to.
        let is_taken = match key.name.as_str() {
            "control-dir" => false,
            "control-socket" => matches!(command, Command::Start { .. }),
            _ => true,
        };
        if is_taken {
            words.extend(own);
        }
    }
    Ok(words)
}

/// Asks clap, whose words say best what is wrong.
fn check(word: &str) -> Result<(), String> {
    let Err(error) = Cli::command().try_get_matches_from(["hsup", word, "check"]) else {
        return Ok(());
    };
    if let Some(why) = std::error::Error::source(&error) {
        return Err(why.to_string());
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    Err(line.strip_prefix("error: ").unwrap_or(line).to_owned())
}

/// Reads files, the last of which counts.
struct Reader<'a> {
    keys: &'a [Key],
    entries: Vec<Vec<Entry>>,
    files: Vec<(PathBuf, Reading)>,
}

impl<'a> Reader<'a> {
    const fn new(keys: &'a [Key]) -> Self {
        Self {
            keys,
            entries: Vec::new(),
            files: Vec::new(),
        }
    }

    /// A file that somebody names must be there.
    fn read_named(&mut self, path: PathBuf) -> Result<(), ConfigError> {
        let text = read_regular(&path, Links::Follow, MAX_SIZE).map_err(ConfigError::Read)?;
        self.take(path, text, Whose::Operators)
    }

    fn read_usual(&mut self, places: &Places) -> Result<(), ConfigError> {
        self.read_if_there(places.etc.join(FILE))?;
        let path = places.etc.join(FOLDER);
        match folder(&path)? {
            Some(files) => {
                for file in files {
                    self.read_if_there(file)?;
                }
            }
            // How many files would count nobody can tell.
            None => self.files.push((path, Reading::Forbidden)),
        }
        if let Some(user) = &places.user {
            self.read_if_there(user.join(FILE))?;
        }
        Ok(())
    }

    /// The file that lies with the app. Whoever can put one there says which program is the
    /// driver, so a stranger's does not count. An app in `/etc/hsup` has the machine's file, and
    /// none of its own.
    fn read_apps(&mut self, path: PathBuf) -> Result<(), ConfigError> {
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let own = real(&path);
        if self.files.iter().any(|(seen, _)| real(seen) == own) {
            return Ok(());
        }
        let (file, metadata) = match open_regular(&path, Links::Follow) {
            Ok(opened) => opened,
            Err(error) if error.is_not_found() => {
                self.files.push((path, Reading::Missing));
                return Ok(());
            }
            Err(error) => return Err(ConfigError::Read(error)),
        };
        // Of the very file that is read: what has the name may be another one by now.
        let uid = metadata.uid();
        if ![0, geteuid().as_raw()].contains(&uid) {
            return Err(ConfigError::Stranger { uid, path });
        }
        let text = read_limited(file, &path, MAX_SIZE).map_err(ConfigError::Read)?;
        self.take(path, text, Whose::Apps)
    }

    fn read_if_there(&mut self, path: PathBuf) -> Result<(), ConfigError> {
        match read_regular(&path, Links::Follow, MAX_SIZE) {
            Ok(text) => self.take(path, text, Whose::Operators),
            Err(error) if error.is_not_found() => {
                self.files.push((path, Reading::Missing));
                Ok(())
            }
            Err(error) if is_forbidden(&error) => {
                self.files.push((path, Reading::Forbidden));
                Ok(())
            }
            Err(error) => Err(ConfigError::Read(error)),
        }
    }

    fn take(&mut self, path: PathBuf, text: Vec<u8>, whose: Whose) -> Result<(), ConfigError> {
        let Ok(text) = String::from_utf8(text) else {
            return Err(ConfigError::NotUtf8 { path });
        };
        // Where there is no current directory, what is relative to it leads nowhere anyway.
        let place = absolute(&path).unwrap_or_else(|_| path.clone());
        let folder = place.parent().unwrap_or(&place);
        let mut entries = parse(&path, &text, self.keys, whose)?;
        for entry in &mut entries {
            entry.settle(folder, self.keys);
        }
        self.entries.push(entries);
        self.files.push((path, Reading::Read));
        Ok(())
    }
}

fn is_forbidden(error: &ReadFileError) -> bool {
    let source = std::error::Error::source(error);
    source
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// The files of a folder of configuration, in their order; none where the folder is not for this
/// user, and no files where there is none.
fn folder(path: &Path) -> Result<Option<Vec<PathBuf>>, ConfigError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Vec::new())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(source) => {
            let path = path.to_owned();
            return Err(ConfigError::List { path, source });
        }
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            // Editors keep what is not saved yet in hidden ones.
            name.ends_with(b".toml") && !name.starts_with(b".")
        })
        .collect();
    files.sort();
    Ok(Some(files))
}

#[cfg(test)]
mod tests;
