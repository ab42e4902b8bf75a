//! What the driver knows, and what its calls have in common.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hsup_proto::driver::{Capability, StartRequest};
use nix::sys::signal::Signal;
use tokio::{sync::RwLock, time::Instant};
use tonic::Status;

use crate::{
    Args, Extra, Fault,
    builds::Builds,
    dyno::{self, Dyno},
    log::say,
    tree::Family,
};

/// The longest name of an app or a process type.
const MAX_NAME: usize = 128;

/// The driver. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Driver(pub(crate) Arc<Shared>);

/// What all of its calls know.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) args: Args,
    pub(crate) dynos: Mutex<BTreeMap<String, Arc<Dyno>>>,
    pub(crate) removed: Mutex<BTreeSet<String>>,
    pub(crate) builds: Mutex<Builds>,
    pub(crate) family: Arc<Family>,
    pub(crate) serial: AtomicU32,
    /// Held while something goes on that List or `GetInfo` wait for, if they are wrong.
    pub(crate) busy: RwLock<()>,
    /// Whoever may start a dyno.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn no_such_dyno() -> Status {
    Status::not_found("no such dyno")
}

pub(crate) fn invalid<T>(message: &str) -> Result<T, Status> {
    Err(Status::invalid_argument(message))
}

impl Driver {
    pub(crate) fn new(args: Args) -> Self {
        Self(Arc::new(Shared {
            args,
            dynos: Mutex::default(),
            removed: Mutex::default(),
            builds: Mutex::default(),
            family: Arc::default(),
            serial: AtomicU32::new(1),
            busy: RwLock::default(),
            turn: tokio::sync::Mutex::default(),
        }))
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.0.args.fault == Some(fault)
    }

    pub(crate) fn offers(&self, extra: Extra) -> bool {
        self.0.args.with.contains(&extra)
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Dyno>> {
        lock(&self.0.dynos).get(id).cloned()
    }

    pub(crate) fn dynos(&self) -> Vec<Arc<Dyno>> {
        lock(&self.0.dynos).values().cloned().collect()
    }

    /// A dyno that runs, for the calls that need one.
    pub(crate) fn running(&self, id: &str) -> Result<Arc<Dyno>, Status> {
        let dyno = self.find(id).ok_or_else(no_such_dyno)?;
        if dyno.status().is_some() {
            return Err(Status::failed_precondition("the dyno has exited"));
        }
        Ok(dyno)
    }

    /// Stops every dyno, for good.
    pub(crate) async fn stop_all(&self) {
        for dyno in self.dynos() {
            begin_stop(&dyno, Signal::SIGTERM, Duration::from_secs(2), false);
        }
        for dyno in self.dynos() {
            dyno.exited().await;
        }
    }

    /// Stops the dynos whose supervisor has been away for longer than they may.
    pub(crate) async fn stop_lingering(&self, away: Duration) {
        for dyno in self.dynos() {
            let linger = Duration::from_millis(dyno.request.linger_ms.into());
            if linger > Duration::ZERO && away >= linger && !self.has(Fault::IgnoresLinger) {
                begin_stop(&dyno, Signal::SIGTERM, Duration::from_secs(2), false);
                dyno.exited().await;
            }
        }
    }

    pub(crate) fn capabilities(&self) -> Vec<i32> {
        let output = if self.offers(Extra::Logs) {
            Capability::Logs
        } else {
            Capability::StdioFifo
        };
        let extras = self.0.args.with.iter().filter_map(|extra| match extra {
            Extra::Logs => None,
            Extra::Signal => Some(Capability::Signal),
            Extra::Stats => Some(Capability::Stats),
            Extra::Attach => Some(Capability::Attach),
            Extra::OwnNetwork => Some(Capability::OwnNetwork),
            Extra::Binds => Some(Capability::Binds),
            Extra::Limits => Some(Capability::Limits),
        });
        let lie = self
            .has(Fault::DeclaresSignal)
            .then_some(Capability::Signal);
        let all = [output].into_iter().chain(extras).chain(lie);
        let later = self.has(Fault::DeclaresUnknown).then_some(1000);
        all.map(i32::from).chain(later).collect()
    }

    fn check(&self, request: &StartRequest) -> Result<(), Status> {
        if !is_id(&request.dyno_id) {
            return invalid("dyno_id is none");
        }
        if request.supervisor_id.is_empty() && !self.has(Fault::TakesNoSupervisor) {
            return invalid("supervisor_id is missing");
        }
        let longest = request.app.len().max(request.process_type.len());
        if longest > MAX_NAME && !self.has(Fault::TakesEndlessNames) {
            return invalid("a name is too long for List");
        }
        if request.argv.is_empty() {
            return invalid("argv is empty");
        }
        let words = request.argv.iter().chain(request.env.keys());
        if words.chain(request.env.values()).any(|w| w.contains('\0')) {
            return invalid("argv or env holds a NUL byte");
        }
        let is_none = |name: &String| name.is_empty() || name.contains('=');
        if request.env.keys().any(is_none) && !self.has(Fault::TakesAnyName) {
            return invalid("a name in env is none");
        }
        if !request.options.is_empty() {
            return invalid("there are no options");
        }
        let refused = (request.tty && !self.offers(Extra::Attach))
            || (request.limits.is_some() && !self.offers(Extra::Limits))
            || (!request.binds.is_empty() && !self.offers(Extra::Binds));
        if refused && !self.has(Fault::TakesAnything) {
            return invalid("that is not offered");
        }
        Ok(())
    }

    /// Starts what was not started yet.
    pub(crate) fn start(&self, mut request: StartRequest) -> Result<(), Status> {
        if self.has(Fault::CutsAtNul) {
            cut_at_nul(&mut request);
        }
        self.check(&request)?;
        let id = request.dyno_id.clone();
        if let Some(dyno) = self.find(&id) {
            let exited = dyno.status().is_some();
            if dyno.request != request && !self.has(Fault::OtherRequestOk) {
                return Err(Status::already_exists("another dyno has this id"));
            }
            if !(exited && self.has(Fault::StartRestarts)) {
                return Ok(());
            }
        }
        let removed = lock(&self.0.removed).contains(&id);
        if removed && !self.has(Fault::ForgetsRemoved) {
            return Err(Status::already_exists("a removed dyno had this id"));
        }
        if self.has(Fault::PrintsEnv) {
            say(&format!("starting with {:?}", request.env));
        }
        if self.has(Fault::TakesAnything) {
            request.tty = false;
        }
        let dyno = self.spawn(request)?;
        lock(&self.0.dynos).insert(id, dyno);
        Ok(())
    }

    pub(crate) fn spawn(&self, request: StartRequest) -> Result<Arc<Dyno>, Status> {
        let builds = lock(&self.0.builds);
        let Some(cwd) = builds.directory(&request.artifact) else {
            let told = match self.0.args.fault {
                Some(Fault::TellsEnv) => format!("{:?}", request.env),
                _ => request.artifact,
            };
            return Err(Status::not_found(format!("artifact `{told}` is not known")));
        };
        let serial = self.0.serial.fetch_add(1, Ordering::Relaxed);
        let spawned = dyno::spawn(request, cwd, serial, &self.0.args, &self.0.family);
        spawned.map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// As C takes it.
fn cut_at_nul(request: &mut StartRequest) {
    let cut = |text: &str| text.split('\0').next().unwrap_or_default().to_owned();
    request.argv = request.argv.iter().map(|word| cut(word)).collect();
    let env = request.env.iter();
    request.env = env.map(|(name, value)| (cut(name), cut(value))).collect();
}

/// `[a-z0-9][a-z0-9-]{0,62}`.
fn is_id(text: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(word)
        && bytes.iter().all(|byte| word(byte) || *byte == b'-')
        && bytes.len() <= 63
}

/// Signals a dyno and sets its deadline; says whether it had none. Unless `again`, a deadline
/// that it has stays.
pub(crate) fn begin_stop(dyno: &Arc<Dyno>, signal: Signal, grace: Duration, again: bool) -> bool {
    let wanted = Instant::now() + grace;
    let mut first = false;
    dyno.deadline.send_modify(|deadline| {
        first = deadline.is_none();
        if first || again {
            *deadline = Some(deadline.map_or(wanted, |deadline| deadline.min(wanted)));
        }
    });
    if grace > Duration::ZERO {
        dyno.signal(signal);
    }
    if first {
        let dyno = Arc::clone(dyno);
        tokio::spawn(async move { dyno.enforce().await });
    }
    first
}
