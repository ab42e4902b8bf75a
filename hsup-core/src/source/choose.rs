//! Which source hsup uses, decided from everything that could name one.
//!
//! The order: `--control-dir` or `-C/--directory`; `-a/--app` with a token for Heroku's API;
//! then `HSUP_CONTROL_DIR`; then a Procfile in the current directory. `--app` contradicts the
//! other flags, and never falls back to whatever lies in the current directory, for that would
//! be somebody else's app under the wrong name. Beside the variable, which may have been set
//! for other commands, and without a token it has no effect, and whoever chose it is told.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use super::{
    directory::PROCFILE,
    heroku::{Access, HerokuApp},
};
use crate::name::{AppNameError, check_app_name};

/// All that could name a source.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// `-a/--app`.
    pub app: Option<&'a str>,
    /// The token that there is for Heroku's API, if there is one.
    pub access: Option<&'a Access>,
    /// `--poll-every`.
    pub poll_every: Duration,
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
    /// An app on Heroku.
    Heroku(HerokuApp),
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
        "-a {app} asks for an app on Heroku, and {flag} names another source: give one of them"
    )]
    AppAndFlag {
        /// The app that was asked for.
        app: String,
        /// The other flag.
        flag: &'static str,
    },
    /// No app can be called so.
    #[error("-a names no app")]
    AppName(#[from] AppNameError),
    /// Nobody may ask Heroku for it.
    #[error(
        "-a {app} asks for an app on Heroku, and there is no token to ask with: set HEROKU_API_KEY \
         (`heroku authorizations:create` makes one), or have one in ~/.netrc (`heroku login`)"
    )]
    NoToken {
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
    /// Nothing names a source, and where a Procfile would lie is gone.
    #[error(
        "there is no app to run: looked for --control-dir and -C/--directory (not given), \
         HSUP_CONTROL_DIR (not set), and a {PROCFILE} in the current directory, which is gone: \
         `cd` to one that is there, or name the app's with -C"
    )]
    NoCurrentDir,
}

impl ChooseSourceError {
    /// Whether the command line will not do.
    pub const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::TwoFlags | Self::AppAndFlag { .. } | Self::AppName(_)
        )
    }
}

/// Decides which source to use. The current directory counts where nothing else names one, and is
/// none where it has been removed. `look` says what a directory is.
///
/// # Errors
/// When two flags disagree, an app on Heroku is asked for without a token, or there is no app.
pub fn choose(
    choice: &Choice<'_>,
    current_dir: Option<&Path>,
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
    if let Some(app) = choice.app {
        check_app_name(app)?;
        if let Some(access) = choice.access {
            return Ok(SourceSpec::Heroku(HerokuApp {
                name: app.to_owned(),
                access: access.clone(),
                poll_every: choice.poll_every,
            }));
        }
    }
    match (choice.app, control_dir) {
        (_, Some(control_dir)) => Ok(SourceSpec::ControlDir(control_dir.to_owned())),
        (Some(app), None) => Err(ChooseSourceError::NoToken {
            app: app.to_owned(),
        }),
        (None, None) => {
            let current_dir = current_dir
                .ok_or(ChooseSourceError::NoCurrentDir)?
                .to_owned();
            match look(&current_dir) {
                Place::App => Ok(SourceSpec::Directory(current_dir)),
                Place::NoProcfile | Place::NoDirectory => {
                    Err(ChooseSourceError::NothingFound { current_dir })
                }
            }
        }
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

    /// Access for whoever has a token.
    fn access() -> &'static Access {
        Box::leak(Box::new(Access::new("heroku.com", "t")))
    }

    fn heroku() -> SourceSpec {
        SourceSpec::Heroku(HerokuApp {
            name: "shop".to_owned(),
            access: Access::new("heroku.com", "t"),
            poll_every: Duration::ZERO,
        })
    }

    fn directory(path: &str) -> SourceSpec {
        SourceSpec::Directory(path.into())
    }

    #[test_case(none(), Ok(directory("cwd")); "a Procfile in the current directory")]
    #[test_case(Choice { access: Some(access()), ..none() }, Ok(directory("cwd")); "a token alone says nothing")]
    #[test_case(Choice { env_control_dir: Some(Path::new("here")), ..none() }, Ok(control()); "the variable before it")]
    #[test_case(Choice { env_control_dir: Some(Path::new("")), ..none() }, Ok(directory("cwd")); "an empty variable")]
    #[test_case(Choice { env_control_dir: Some(Path::new("here")), app: Some("shop"), ..none() }, Ok(control()); "the variable with a name")]
    #[test_case(Choice { env_control_dir: Some(Path::new("here")), app: Some("shop"), access: Some(access()), ..none() }, Ok(heroku()); "a token with a name before it")]
    #[test_case(Choice { control_dir: Some(Path::new("here")), access: Some(access()), ..none() }, Ok(control()); "the flag before that")]
    #[test_case(Choice { directory: Some(Path::new("here")), env_control_dir: Some(Path::new("there")), access: Some(access()), ..none() }, Ok(directory("here")); "the directory flag too")]
    #[test_case(Choice { control_dir: Some(Path::new("here")), app: Some("shop"), access: Some(access()), ..none() }, Err("-a shop asks for an app on Heroku, and --control-dir names another source: "); "a name beside the flag")]
    #[test_case(Choice { directory: Some(Path::new("here")), app: Some("shop"), ..none() }, Err("-a shop asks for an app on Heroku, and -C/--directory names another source: "); "a name beside the directory flag")]
    #[test_case(Choice { directory: Some(Path::new("nowhere")), ..none() }, Err("there is no directory `nowhere`"); "a directory that is not there")]
    #[test_case(Choice { app: Some("shop"), ..none() }, Err("-a shop asks for an app on Heroku, and there is no token"); "a name alone")]
    #[test_case(Choice { app: Some("shop"), access: Some(access()), ..none() }, Ok(heroku()); "a name with a token")]
    #[test_case(Choice { app: Some("../shop"), access: Some(access()), ..none() }, Err("-a names no app"); "no name")]
    #[test_case(Choice { control_dir: Some(Path::new("here")), directory: Some(Path::new("here")), ..none() }, Err("--control-dir and -C/--directory"); "both flags")]
    #[test_case(Choice { directory: Some(Path::new("bare")), ..none() }, Err("there is no Procfile in `bare`"); "a directory without an app")]
    fn chosen(choice: Choice<'_>, expected: Result<SourceSpec, &str>) {
        let look = |path: &Path| match path.to_str() {
            Some("bare") => Place::NoProcfile,
            Some("nowhere") => Place::NoDirectory,
            _ => Place::App,
        };
        let chosen = choose(&choice, Some(Path::new("cwd")), look);
        match (chosen, expected) {
            (Ok(chosen), Ok(expected)) => assert_eq!(chosen, expected),
            (Err(error), Err(start)) => assert!(error.to_string().starts_with(start), "{error}"),
            (chosen, expected) => panic!("{chosen:?} is not {expected:?}"),
        }
    }

    #[test]
    fn nothing_found_lists_where_it_looked() {
        let here = Some(Path::new("/srv/bare"));
        let error = choose(&none(), here, |_| Place::NoProcfile).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no app to run: looked for --control-dir and -C/--directory (not given), \
             HSUP_CONTROL_DIR (not set), and a Procfile in `/srv/bare` (none there)"
        );
    }

    #[test]
    fn a_current_directory_that_is_gone_matters_where_nothing_else_names_a_source() {
        let named = Choice {
            directory: Some(Path::new("/srv/shop")),
            ..none()
        };
        let chosen = choose(&named, None, |_| Place::App);
        assert_eq!(chosen, Ok(directory("/srv/shop")));
        let error = choose(&none(), None, |_| Place::App).unwrap_err();
        assert_eq!(error, ChooseSourceError::NoCurrentDir);
    }
}
