//! What a `start` has alone, as long as it lives: its app, and its places.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use hsup_driver_kit::listen::handed::Handed;

use super::{StartError, StartOptions};
use crate::{
    control::{self, Again, ControlListener},
    environment::Base,
    errors::chain,
    files,
    name::ProcessType,
    paths::{AppKey, Paths, PathsError},
    source::{ControlDir, Directory, Heroku, Source, SourceSpec, directory},
    state::{Damage, History, Journal, Memory, OpenStateError, StateDir, SupervisorId},
    supervisor,
};

/// What nobody else may have meanwhile. Dropped, it is let go in this order: the lock of the
/// state directory last, for who waits for that begins where this one was.
pub(super) struct Claim {
    pub(super) folders: Folders,
    pub(super) listener: ControlListener,
    /// Makes another one, and the folders, when somebody has removed them.
    pub(super) again: Again,
    pub(super) state: StateDir,
}

/// What was found there.
pub(super) struct Found {
    pub(super) source: Source,
    /// The app's name.
    pub(super) app: String,
    /// What its dynos' environment is built on.
    pub(super) host_base: Base,
    pub(super) paths: Paths,
    pub(super) journal: Journal,
    pub(super) history: History,
    pub(super) memory: Memory,
    /// What could not be read of these.
    pub(super) damages: Vec<Damage>,
}

/// Opens the source, and takes the state directory, the control socket and the folders.
///
/// # Errors
/// When one of them cannot be had, or the command line is seen to be wrong.
pub(super) fn claim(options: &StartOptions) -> Result<(Claim, Found), StartError> {
    let (mut source, key, app, host_base) = open_source(&options.source)?;
    check_types_named(options.explicit.as_ref(), &source)?;
    let paths = Paths::from_env();
    let state = match &options.state_dir {
        Some(path) => StateDir::open(path)?,
        // This place is the app's, so whoever has it runs the app.
        None => StateDir::open(&paths.state_dir(&key)?).map_err(|error| match error {
            OpenStateError::InUse { owner: pid, .. } => StartError::AlreadyRuns { pid },
            other => other.into(),
        })?,
    };
    if let Source::ControlDir(control) = &mut source {
        control.claim()?;
    }
    let (journal, torn) = state.journal()?;
    let (history, torn_history) = state.history()?;
    let (memory, torn_memory) = state.memory()?;
    let handed = Handed::find(|name| std::env::var_os(name), std::process::id());
    let (listener, is_elsewhere) = match (&options.control_socket, handed) {
        (Some(path), _) => (ControlListener::bind(path)?, true),
        (None, Some(handed)) => (ControlListener::inherit(&handed)?, true),
        (None, None) => (ControlListener::bind(&paths.control_socket(&key)?)?, false),
    };
    let folders = Folders::make(&paths, state.supervisor_id())?;
    control::lead_to(&folders.run, listener.path().filter(|_| is_elsewhere));
    let again = {
        let (named, paths) = (options.control_socket.clone(), paths.clone());
        let id = state.supervisor_id().clone();
        move || {
            // Where they cannot be made dynos tell, or whoever is started next.
            drop(paths.io_dir(&id));
            let path = match &named {
                Some(path) => path.clone(),
                None => paths.control_socket(&key).map_err(|error| chain(&error))?,
            };
            let listener = ControlListener::bind(&path).map_err(|error| chain(&error))?;
            if let (Some(_), Ok(run)) = (&named, paths.run_dir(&id)) {
                control::lead_to(&run, listener.path());
            }
            Ok(listener)
        }
    };
    let claim = Claim {
        folders,
        listener,
        again: Box::new(again),
        state,
    };
    let found = Found {
        source,
        app,
        host_base,
        paths,
        journal,
        history,
        memory,
        damages: torn
            .into_iter()
            .chain(torn_history)
            .chain(torn_memory)
            .collect(),
    };
    Ok((claim, found))
}

/// Opens the source; answers it, the app's key and name, and what its dynos' environment is
/// built on.
fn open_source(spec: &SourceSpec) -> Result<(Source, AppKey, String, Base), StartError> {
    Ok(match spec {
        SourceSpec::Directory(path) => {
            let directory = Directory::open(path)?;
            let key = AppKey::directory(directory.path());
            let app = directory::app_name(directory.path());
            (Source::Directory(directory), key, app, Base::Inherited)
        }
        SourceSpec::ControlDir(path) => {
            let control = ControlDir::open(path)?;
            let key = AppKey::directory(control.path());
            let app = directory::app_name(control.path());
            (Source::ControlDir(Box::new(control)), key, app, Base::Login)
        }
        SourceSpec::Heroku(app) => {
            let key = AppKey::app(&app.name);
            let source = Source::Heroku(Heroku::open(app)?);
            (source, key, app.name.clone(), Base::Login)
        }
    })
}

/// Refuses process types that can be seen not to be there before anything is held or touched:
/// they are wrong whether or not another hsup has the app.
fn check_types_named(
    explicit: Option<&BTreeMap<ProcessType, u32>>,
    source: &Source,
) -> Result<(), StartError> {
    // Which types a control directory has, its history may say.
    if let (Some(explicit), Source::Directory(directory)) = (explicit, source)
        && let Some(release) = directory.release()
    {
        supervisor::check_types(explicit, release)?;
    }
    Ok(())
}

/// What this run has in the runtime directory. Dropped, it goes, but for what is left in it
/// and belongs to somebody.
#[derive(Debug)]
pub(super) struct Folders {
    pub(super) run: PathBuf,
    pub(super) io: PathBuf,
    /// Who follows the link is to wait for the next hsup.
    pub(super) keeps_link: bool,
}

impl Folders {
    fn make(paths: &Paths, id: &SupervisorId) -> Result<Self, PathsError> {
        let run = paths.run_dir(id)?;
        // Nobody else has this id: whoever had it before has gone.
        files::clear_temporaries(&run);
        Ok(Self {
            run,
            io: paths.io_dir(id)?,
            keeps_link: false,
        })
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        if !self.keeps_link {
            control::lead_to(&self.run, None);
        }
        remove_if_empty(&self.io);
        remove_if_empty(&self.run);
    }
}

/// What is left in it belongs to somebody: then it stays.
fn remove_if_empty(path: &Path) {
    if let Err(error) = fs::remove_dir(path) {
        tracing::debug!(%error, path = %path.display(), "folder not removed");
    }
}
