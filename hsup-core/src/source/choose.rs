//! Which source hsup uses, decided from everything that could name one.
//!
//! Flags come first; then a token with `--app`; then `HSUP_CONTROL_DIR`; then a Procfile
//! in the current directory. `--app` asks for an app on Heroku: it contradicts the other
//! flags, and never falls back to whatever lies in the current directory, for that would be
//! somebody else's app under the wrong name. Beside the variable alone, which may have been
//! set for other commands, it has no effect, and whoever chose it is told.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::directory::PROCFILE;

/// All that could name a source.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// `-a/--app`.
    pub app: Option<&'a str>,
    /// Whether `HEROKU_API_KEY` or `HEROKU_ACCESS_TOKEN` is set and not empty.
    pub has_token: bool,
    /// `--control-dir`.
    pub control_dir: Option<&'a Path>,
    /// `-C/--directory`.
    pub directory: Option<&'a Path>,
    /// `HSUP_CONTROL_DIR`; empty is as good as not set.
    pub env_control_dir: Option<&'a Path>,
}

/// Which source to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// A control directory, which may not be there yet.
    ControlDir(PathBuf),
    /// A directory with a Procfile.
    Directory(PathBuf),
}

/// What a directory is to somebody who looks for an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has a Procfile.
    App,
    /// It has none.
    NoProcfile,
    /// It is not there, or no directory.
    NoDirectory,
}

impl Place {
    /// Looks at a directory.
    pub fn of(directory: &Path) -> Self {
        if directory.join(PROCFILE).exists() {
            Self::App
        } else if directory.is_dir() {
            Self::NoProcfile
        } else {
            Self::NoDirectory
        }
    }
}

/// No source can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChooseSourceError {
    /// Two flags name two sources.
    #[error("--control-dir and -C/--directory name two different sources: give one of them")]
    TwoFlags,
    /// `-a` and another flag name two sources.
    #[error(
        "-a {app} asks for an app on Heroku, and {flag} names another source: leave -a out, for the \
         Heroku source is not built yet"
    )]
    AppAndFlag {
        /// The app that was asked for.
        app: String,
        /// The other flag.
        flag: &'static str,
    },
    /// The source is not built yet.
    #[error(
        "-a {app} asks for an app on Heroku, and the Heroku source is not built yet: \
         give --control-dir DIR, or -C DIR for a directory with a Procfile"
    )]
    HerokuNotBuilt {
        /// The app that was asked for.
        app: String,
    },
    /// `-C` names no directory.
    #[error("there is no directory `{}`, which -C/--directory names", .directory.display())]
    NoDirectory {
        /// What it names.
        directory: PathBuf,
    },
    /// `-C` names a directory without an app.
    #[error("there is no {PROCFILE} in `{}`, which -C/--directory names", .directory.display())]
    NoProcfile {
        /// The directory.
        directory: PathBuf,
    },
    /// Nothing names a source.
    #[error(
        "there is no app to run: looked for --control-dir and -C/--directory (not given), \
         HSUP_CONTROL_DIR (not set), and a {PROCFILE} in `{}` (none there)",
        .current_dir.display()
    )]
    NothingFound {
        /// The current directory.
        current_dir: PathBuf,
    },
}

impl ChooseSourceError {
    /// Whether the command line contradicts itself.
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::TwoFlags | Self::AppAndFlag { .. })
    }
}

/// Decides which source to use. `look` says what a directory is.
///
/// # Errors
/// When two flags disagree, the source that is asked for is not built yet, or there is none.
pub fn choose(
    choice: &Choice<'_>,
    current_dir: &Path,
    look: impl Fn(&Path) -> Place,
) -> Result<SourceSpec, ChooseSourceError> {
    let alone = |flag| match choice.app {
        Some(app) => Err(ChooseSourceError::AppAndFlag {
            app: app.to_owned(),
            flag,
        }),
        None => Ok(()),
    };
    match (choice.control_dir, choice.directory) {
        (Some(_), Some(_)) => return Err(ChooseSourceError::TwoFlags),
        (Some(control_dir), None) => {
            alone("--control-dir")?;
            return Ok(SourceSpec::ControlDir(control_dir.to_owned()));
        }
        (None, Some(directory)) => {
            alone("-C/--directory")?;
            let directory = directory.to_owned();
            return match look(&directory) {
                Place::App => Ok(SourceSpec::Directory(directory)),
                Place::NoProcfile => Err(ChooseSourceError::NoProcfile { directory }),
                Place::NoDirectory => Err(ChooseSourceError::NoDirectory { directory }),
            };
        }
        (None, None) => {}
    }
    let control_dir = choice
        .env_control_dir
        .filter(|path| !path.as_os_str().is_empty());
    match (choice.app, control_dir) {
        (Some(app), _) if choice.has_token => Err(ChooseSourceError::HerokuNotBuilt {
            app: app.to_owned(),
        }),
        (_, Some(control_dir)) => Ok(SourceSpec::ControlDir(control_dir.to_owned())),
        (Some(app), None) => Err(ChooseSourceError::HerokuNotBuilt {
            app: app.to_owned(),
        }),
        (None, None) if look(current_dir) == Place::App => {
            Ok(SourceSpec::Directory(current_dir.to_owned()))
        }
        (None, None) => Err(ChooseSourceError::NothingFound {
            current_dir: current_dir.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn none() -> Choice<'static> {
        Choice::default()
    }

    fn control() -> SourceSpec {
        SourceSpec::ControlDir("here".into())
    }

    fn directory(path: &str) -> SourceSpec {
        SourceSpec::Directory(path.into())
    }

    #[test_case(none(), Ok(directory("cwd")); "a Procfile in the current directory")]
    #[test_case(Choice { has_token: true, ..none() }, Ok(directory("cwd")); "a token alone says nothing")]
    #[test_case(Choice { env_control_dir: Some(Path::new("here")), ..none() }, Ok(control()); "the variable before it")]
    #[test_case(Choice { env_control_dir: Some(Path::new("")), ..none() }, Ok(directory("cwd")); "an empty variable")]
    #[test_case(Choice { env_control_dir: Some(Path::new("here")), app: Some("shop"), ..none() }, Ok(control()); "the variable with a name")]
    #[test_case(Choice { env_control_dir: Some(Path::new("here")), app: Some("shop"), has_token: true, ..none() }, Err("-a shop asks for"); "a token with a name before it")]
    #[test_case(Choice { control_dir: Some(Path::new("here")), has_token: true, ..none() }, Ok(control()); "the flag before that")]
    #[test_case(Choice { directory: Some(Path::new("here")), env_control_dir: Some(Path::new("there")), has_token: true, ..none() }, Ok(directory("here")); "the directory flag too")]
    #[test_case(Choice { control_dir: Some(Path::new("here")), app: Some("shop"), has_token: true, ..none() }, Err("-a shop asks for an app on Heroku, and --control-dir names another source: "); "a name beside the flag")]
    #[test_case(Choice { directory: Some(Path::new("here")), app: Some("shop"), ..none() }, Err("-a shop asks for an app on Heroku, and -C/--directory names another source: "); "a name beside the directory flag")]
    #[test_case(Choice { directory: Some(Path::new("nowhere")), ..none() }, Err("there is no directory `nowhere`"); "a directory that is not there")]
    #[test_case(Choice { app: Some("shop"), ..none() }, Err("-a shop asks for"); "a name alone")]
    #[test_case(Choice { control_dir: Some(Path::new("here")), directory: Some(Path::new("here")), ..none() }, Err("--control-dir and -C/--directory"); "both flags")]
    #[test_case(Choice { directory: Some(Path::new("bare")), ..none() }, Err("there is no Procfile in `bare`"); "a directory without an app")]
    fn chosen(choice: Choice<'_>, expected: Result<SourceSpec, &str>) {
        let look = |path: &Path| match path.to_str() {
            Some("bare") => Place::NoProcfile,
            Some("nowhere") => Place::NoDirectory,
            _ => Place::App,
        };
        let chosen = choose(&choice, Path::new("cwd"), look);
        match (chosen, expected) {
            (Ok(chosen), Ok(expected)) => assert_eq!(chosen, expected),
            (Err(error), Err(start)) => assert!(error.to_string().starts_with(start), "{error}"),
            (chosen, expected) => panic!("{chosen:?} is not {expected:?}"),
        }
    }

    #[test]
    fn nothing_found_lists_where_it_looked() {
        let error = choose(&none(), Path::new("/srv/bare"), |_| Place::NoProcfile).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no app to run: looked for --control-dir and -C/--directory (not given), \
             HSUP_CONTROL_DIR (not set), and a Procfile in `/srv/bare` (none there)"
        );
    }
}
