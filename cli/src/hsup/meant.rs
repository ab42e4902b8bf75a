//! Which app is meant, and which driver: decided once for all commands that go by it, so that
//! what one of them shows or writes is what `start` takes.

use std::{env, path::PathBuf};

use anyhow::Context as _;
use hsup_core::{
    driver::{DriverSpec, FindDriverError, find},
    source::{Choice, ChooseSourceError, Place, SourceSpec, choose, heroku::Access},
};
use thiserror::Error;

use super::args::Options;
use crate::config::{Origin, Resolved, Setting};

/// Without a word about it.
const DEFAULT_DRIVER: &str = "simple";

/// Two flags name two drivers.
#[derive(Debug, Error)]
#[error("-d/--driver and --driver-socket name two different drivers: give one of them")]
pub(super) struct TwoDrivers;

/// What says it beside the options.
#[derive(Debug)]
pub(super) struct Meant {
    /// One that no flag names.
    control_dir: Option<PathBuf>,
    /// None: it has been removed.
    current_dir: Option<PathBuf>,
    /// Who says so, of each that names an app.
    origins: [Origin; 3],
    /// The variable, or the place in a file, that names the driver.
    driver_from: Option<String>,
    /// Says what is odd about it.
    tell: fn(&str),
}

/// The app that a service is to run, by what its command says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnitsApp {
    pub(super) is: AppIs,
    /// A file says so, where the service finds it, too.
    pub(super) is_in_a_file: bool,
}

/// How an app is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AppIs {
    /// On Heroku; the token for it may be the service's alone.
    OnHeroku(String),
    ControlDir(PathBuf),
    Directory(PathBuf),
}

impl Meant {
    pub(super) fn by(resolved: &Resolved, current_dir: Option<PathBuf>, tell: fn(&str)) -> Self {
        let is_driver = |setting: &&Setting| setting.key.name == "driver";
        let driver = resolved.settings.iter().find(is_driver);
        Self {
            control_dir: resolved.control_dir.clone(),
            current_dir,
            origins: ["app", "control-dir", "directory"].map(|key| resolved.origin(key).clone()),
            driver_from: driver.and_then(Setting::place),
            tell,
        }
    }

    /// Where releases come from.
    pub(super) fn source(&self, options: &Options) -> anyhow::Result<SourceSpec> {
        // What is wrong with a token concerns those who need one.
        let access = match &options.app {
            Some(_) => Access::find(|name| env::var_os(name))?,
            None => None,
        };
        let choice = Choice {
            app: options.app.as_deref(),
            access: access.as_ref(),
            poll_every: options.poll_every,
            control_dir: options.control_dir.as_deref(),
            directory: options.directory.as_deref(),
            env_control_dir: self.control_dir.as_deref(),
        };
        let source = choose(&choice, self.current_dir.as_deref(), Place::of)?;
        if let (Some(app), SourceSpec::ControlDir(_)) = (choice.app, &source) {
            (self.tell)(&format!(
                "-a {app} has no effect: HSUP_CONTROL_DIR names the source, and there is no token \
                 to ask Heroku with"
            ));
        }
        Ok(source)
    }

    /// The same for those who can do without an app. Flags that contradict each other will not
    /// do for them either.
    pub(super) fn source_if_any(&self, options: &Options) -> anyhow::Result<Option<SourceSpec>> {
        match self.source(options) {
            Ok(source) => Ok(Some(source)),
            Err(error) if is_contradiction(&error) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The same for a service, which gets its token for Heroku elsewhere.
    pub(super) fn app_of_a_unit(&self, options: &Options) -> anyhow::Result<UnitsApp> {
        let is = match self.source(options) {
            Ok(SourceSpec::Heroku(app)) => AppIs::OnHeroku(app.name),
            Ok(SourceSpec::ControlDir(path)) => AppIs::ControlDir(path),
            Ok(SourceSpec::Directory(path)) => AppIs::Directory(path),
            Err(error) => match error.downcast::<ChooseSourceError>()? {
                ChooseSourceError::NoToken { app } => AppIs::OnHeroku(app),
                other => return Err(other.into()),
            },
        };
        let [app, control_dir, directory] = &self.origins;
        let origin = match &is {
            AppIs::OnHeroku(_) => app,
            AppIs::ControlDir(_) => control_dir,
            AppIs::Directory(_) => directory,
        };
        Ok(UnitsApp {
            is_in_a_file: matches!(origin, Origin::File(_)),
            is,
        })
    }

    /// The driver that is to run dynos; a program is there.
    pub(super) fn driver_to_start(&self, options: &Options) -> anyhow::Result<DriverSpec> {
        let named = named_driver(options)?;
        let driver = named.unwrap_or_else(|| DriverSpec::Child(DEFAULT_DRIVER.to_owned()));
        if let DriverSpec::Child(name) = &driver {
            let own_program = env::current_exe().context("failed to find hsup's own program")?;
            find(name, &own_program).map_err(|error| self.placed(error))?;
        }
        Ok(driver)
    }

    /// The original's driver that is gone: said for every command, also those that need no
    /// driver.
    pub(super) fn refuse_abspath(&self, options: &Options) -> anyhow::Result<()> {
        match options.driver.as_deref() {
            Some("abspath") => Err(self.placed(FindDriverError::Abspath)),
            _ => Ok(()),
        }
    }

    /// What is wrong with a driver that was not typed is told as of any other value.
    fn placed(&self, error: FindDriverError) -> anyhow::Error {
        let error = anyhow::Error::from(error);
        match &self.driver_from {
            Some(from) => error.context(from.clone()),
            None => error,
        }
    }
}

/// The driver that is named, if one is; whether there is such a one is not looked at.
pub(super) fn named_driver(options: &Options) -> Result<Option<DriverSpec>, TwoDrivers> {
    match (&options.driver, &options.driver_socket) {
        (Some(_), Some(_)) => Err(TwoDrivers),
        (None, Some(path)) => Ok(Some(DriverSpec::Socket(path.clone()))),
        (Some(name), None) => Ok(Some(DriverSpec::Child(name.clone()))),
        (None, None) => Ok(None),
    }
}

/// Whether the command line contradicts itself about the app.
fn is_contradiction(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ChooseSourceError::TwoFlags | ChooseSourceError::AppAndFlag { .. })
    )
}
