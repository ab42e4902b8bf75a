//! A supervisor put together from what was chosen and what was found; nothing of it runs yet but
//! its logs and its link to the driver.

use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::{
    StartError, StartOptions,
    claim::{Claim, Found},
    system,
};
use crate::{
    driver::{DriverLink, DriverNote, LinkSettings, Lives},
    dyno::{Built, FdBudget, Ledger, Shared, Tasks, clear_io},
    exit::ExitStatus,
    lifecycle::Kind,
    logs::{LogSettings, Logs, SYSTEM},
    paths::Paths,
    ports::HostPorts,
    source::Source,
    state::{Journal, Record},
    supervisor::{Settings, Supervisor, SupervisorHandle},
    time::now_unix_ms,
};

/// The supervisor, the handle to drive it with, and what its dynos share.
pub(super) struct Assembled {
    pub(super) supervisor: Supervisor,
    pub(super) handle: SupervisorHandle,
    pub(super) shared: Arc<Shared>,
}

/// Puts it together.
///
/// # Errors
/// What the system refuses.
pub(super) fn assemble(
    options: StartOptions,
    found: Found,
    claim: &Claim,
) -> Result<Assembled, StartError> {
    let (folders, supervisor_id) = (&claim.folders, claim.state.supervisor_id());
    let Found {
        source,
        app,
        host_base,
        paths,
        mut journal,
        history,
        memory,
        damages,
    } = found;
    let note = DriverNote::in_dir(&folders.run);
    let previous = note.read();

    let logs = Logs::start(LogSettings {
        terminal: Some(options.terminal),
        drains: options.drains,
        ..LogSettings::default()
    })
    .map_err(system("start the log router"))?;
    for damage in damages {
        logs.note(SYSTEM, damage.to_string());
    }
    if previous
        .as_ref()
        .is_some_and(|previous| !previous.may_be(&options.driver))
    {
        let text = "Another driver is used than before: the dynos of that one are stopped first";
        logs.note(SYSTEM, text);
        give_up(&mut journal);
    }
    let survivors: Vec<_> = journal.live().cloned().collect();
    // Those of dynos that ended between two lives, and of such as nobody remembers.
    clear_io(&folders.io, |id| {
        survivors.iter().any(|dyno| dyno.dyno_id.as_str() == id)
    });
    let link = DriverLink::start(LinkSettings {
        spec: options.driver,
        own_program: options.own_program,
        socket: Paths::driver_socket(&folders.run),
        lives: Some(Lives {
            previous,
            note,
            supervisor_id: supervisor_id.as_str().to_owned(),
            grace: options.policy.grace,
        }),
    })
    .map_err(system("receive signals"))?;
    let mut ports = HostPorts::new();
    ports.learn(&memory.get().types_seen);
    let shared = Arc::new(Shared {
        supervisor_id: supervisor_id.clone(),
        link: link.watch(),
        logs,
        ledger: Ledger::new(journal),
        tasks: Tasks::default(),
        ports: Mutex::new(ports),
        paths,
        io_root: folders.io.clone(),
        fds: FdBudget::of_this_process().map_err(system("read the open-file limit"))?,
        starts: Semaphore::new(0),
        host_base,
        host_vars: std::env::vars_os().collect(),
        binds: options.binds,
        driver_options: options.driver_options,
        built: Built::default(),
        locator: match &source {
            Source::Heroku(heroku) => Some(heroku.locator()),
            Source::Directory(_) | Source::ControlDir(_) => None,
        },
        policy: options.policy,
    });
    let (supervisor, handle) = Supervisor::new(Settings {
        app,
        source,
        explicit: options.explicit,
        start_number: options.start_number,
        kind: if options.one_shot {
            Kind::OneShot
        } else {
            Kind::Kept
        },
        rollouts: options.rollouts,
        release_timeout: options.release_timeout,
        cycle_every: options.cycle_every,
        base: std::env::current_dir().unwrap_or_default(),
        shared: Arc::clone(&shared),
        link,
        history,
        memory,
        survivors,
    });
    Ok(Assembled {
        supervisor,
        handle,
        shared,
    })
}

/// Strikes out the dynos of an earlier life: their driver is not used any more.
fn give_up(journal: &mut Journal) {
    let ends: Vec<_> = journal
        .live()
        .map(|dyno| Record::End {
            dyno_id: dyno.dyno_id.clone(),
            status: ExitStatus::lost("it ran on another driver", now_unix_ms()),
        })
        .collect();
    if let Err(error) = journal.append(&ends) {
        // They are looked for, and not found.
        tracing::warn!(error = crate::errors::chain(&error), "ends not journalled");
    }
}
