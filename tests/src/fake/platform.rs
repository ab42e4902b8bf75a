//! Heroku's Platform API (v3), as far as somebody who runs an app needs it.
//!
//! It keeps the real one's rules: 406 without the `Accept` of version 3, 401 without the token,
//! 404 of another app, 429 when no requests are left, `ETag` and 304, `Range`, 206 and
//! `Next-Range`; config vars belong to a release; a slug's URL is signed anew each time, and
//! refused with 403 once it has expired. A test drives it: it deploys, sets config vars, scales,
//! and has requests fail.

mod faults;
mod http;
mod rules;

use std::{
    collections::BTreeMap,
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

pub use faults::Fault;
use faults::Faults;

/// The fake. Dropped, it answers nobody any more.
#[derive(Debug)]
pub struct Platform {
    url: String,
    shared: Arc<Shared>,
}

/// What its threads share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    faults: Faults,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// The account and its only app.
#[derive(Debug)]
pub(super) struct State {
    /// Where its slugs are fetched.
    url: String,
    token: String,
    app: String,
    stack: String,
    /// The newest last.
    releases: Vec<Release>,
    slugs: BTreeMap<String, Slug>,
    images: BTreeMap<String, Image>,
    formation: Vec<Process>,
    /// How many process types a page of it has if nobody says.
    page: usize,
    /// How many requests are left.
    remaining: u32,
    /// How many URLs were signed, and how many of them are good no more.
    signed: u32,
    expired: u32,
    /// Every request that came, `METHOD PATH STATUS`.
    requests: Vec<String>,
    over: bool,
}

/// A release.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its number.
    pub version: u64,
    /// `succeeded`, `pending`, `failed` or `expired`.
    pub status: String,
    /// Whether it is the one that runs.
    pub current: bool,
    /// What it changed.
    pub description: String,
    /// Its config vars.
    pub config: BTreeMap<String, String>,
    /// The id of its slug.
    pub slug: Option<String>,
    /// The id of its image.
    pub image: Option<String>,
}

/// A slug.
#[derive(Clone, Debug)]
pub struct Slug {
    /// What its process types run.
    pub process_types: BTreeMap<String, String>,
    /// How many bytes Heroku says that it has.
    pub size: u64,
    /// Of its bytes.
    pub checksum: Option<String>,
    /// What its URL gives.
    pub bytes: Vec<u8>,
}

/// An OCI image.
#[derive(Clone, Debug)]
pub struct Image {
    /// What its process types run.
    pub process_types: BTreeMap<String, String>,
}

/// A process type of the formation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its name.
    pub process_type: String,
    /// What it runs.
    pub command: String,
    /// How many dynos it has.
    pub quantity: i64,
}

/// The app's id, which is as good as its name.
pub const APP_ID: &str = "01234567-89ab-cdef-0123-456789abcdef";
/// A token as Heroku makes them.
pub const TOKEN: &str = "HRKU-hunter2-0123-4567";
/// Every URL of a slug ends with this and a number.
pub const SIGNATURE: &str = "X-Amz-Signature=hunter2";

impl Platform {
    /// An app of this name on the stack `heroku-24`, to which nothing was deployed.
    pub fn start(app: &str) -> Self {
        Self::listen(app, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same, at an address of the caller's choice.
    pub fn listen(app: &str, listener: TcpListener) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                url: url.clone(),
                token: TOKEN.to_owned(),
                app: app.to_owned(),
                stack: "heroku-24".to_owned(),
                releases: Vec::new(),
                slugs: BTreeMap::new(),
                images: BTreeMap::new(),
                formation: Vec::new(),
                page: rules::PAGE,
                remaining: 4500,
                signed: 0,
                expired: 0,
                requests: Vec::new(),
                over: false,
            }),
            faults: Faults::default(),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || http::serve(&listener, &serving));
        Self { url, shared }
    }

    /// It is asked by way of this URL, and so are its slugs.
    pub fn is_behind(&self, url: &str) {
        url.clone_into(&mut self.shared.state().url);
    }

    /// Where it is, for `HEROKU_HOST`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Deploys a slug whose process types run this; each that is new gets no dyno, but `web` one.
    /// Config vars stay as they are. Answers the release's version.
    pub fn deploy(&self, processes: &[(&str, &str)]) -> u64 {
        self.deploy_slug(processes, b"a slug".to_vec(), None)
    }

    /// The same, of a slug with these bytes.
    pub fn deploy_slug(
        &self,
        processes: &[(&str, &str)],
        bytes: Vec<u8>,
        checksum: Option<String>,
    ) -> u64 {
        let slug = Slug {
            process_types: owned(processes),
            size: bytes.len() as u64,
            checksum,
            bytes,
        };
        let mut state = self.shared.state();
        let id = format!("5100-{:04}", state.slugs.len() + 1);
        state.slugs.insert(id.clone(), slug);
        state.reform(processes);
        state.release(|release| {
            (release.slug, release.image) = (Some(id.clone()), None);
            "Deploy 2c3a0b2".clone_into(&mut release.description);
        })
    }

    /// Deploys an OCI image.
    pub fn deploy_image(&self, processes: &[(&str, &str)]) -> u64 {
        let mut state = self.shared.state();
        let id = format!("0c10-{:04}", state.images.len() + 1);
        let process_types = owned(processes);
        state.images.insert(id.clone(), Image { process_types });
        state.reform(processes);
        state.release(|release| (release.slug, release.image) = (None, Some(id.clone())))
    }

    /// Sets config vars, which makes a release of the same slug.
    pub fn set_config(&self, vars: &[(&str, &str)]) -> u64 {
        self.shared.state().release(|release| {
            release.config.extend(owned(vars));
            "Set config vars".clone_into(&mut release.description);
        })
    }

    /// Makes a release of the newest one, changed as `change` says.
    pub fn release(&self, change: impl Fn(&mut Release)) -> u64 {
        self.shared.state().release(change)
    }

    /// Changes a release that there is.
    pub fn amend(&self, version: u64, change: impl FnOnce(&mut Release)) {
        let mut state = self.shared.state();
        let mut releases = state.releases.iter_mut();
        change(releases.find(|release| release.version == version).unwrap());
    }

    /// Changes the slug that was deployed last.
    pub fn amend_slug(&self, change: impl FnOnce(&mut Slug)) {
        let mut state = self.shared.state();
        change(state.slugs.values_mut().next_back().unwrap());
    }

    /// The app is on another stack from now on.
    pub fn is_on(&self, stack: &str) {
        stack.clone_into(&mut self.shared.state().stack);
    }

    /// Scales a process type, which makes no release.
    pub fn scale(&self, process_type: &str, quantity: i64) {
        let mut state = self.shared.state();
        let mut formation = state.formation.iter_mut();
        let process = formation.find(|process| process.process_type == process_type);
        process.unwrap().quantity = quantity;
    }

    /// A page of the formation has so many process types from now on.
    pub fn is_paged(&self, types: usize) {
        self.shared.state().page = types;
    }

    /// Every request whose path contains `path` fails so from now on, until [`Platform::heal`].
    pub fn fail(&self, path: &str, fault: Fault) {
        self.shared.faults.add(path, fault);
    }

    /// No request fails any more.
    pub fn heal(&self) {
        self.shared.faults.clear();
    }

    /// From now on another token is good.
    pub fn change_token(&self, token: &str) {
        token.clone_into(&mut self.shared.state().token);
    }

    /// So many requests are left.
    pub fn leave(&self, requests: u32) {
        self.shared.state().remaining = requests;
    }

    /// No URL that was signed so far is good any more.
    pub fn expire_urls(&self) {
        let mut state = self.shared.state();
        state.expired = state.signed;
    }

    /// The requests so far, `GET /apps/shop/releases 206`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }

    /// How many requests there were whose line contains `text`.
    pub fn count(&self, text: &str) -> usize {
        let state = self.shared.state();
        let requests = state.requests.iter();
        requests.filter(|line| line.contains(text)).count()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.faults.clear();
        // Wakes the thread that waits for somebody to connect.
        let address = self.url.trim_start_matches("http://");
        drop(TcpStream::connect(address));
    }
}

impl State {
    /// Makes a release that succeeds at once.
    fn release(&mut self, change: impl Fn(&mut Release)) -> u64 {
        let version = self.releases.last().map_or(0, |last| last.version) + 1;
        let mut release = match self.releases.last() {
            Some(last) => last.clone(),
            None => Release {
                version,
                status: String::new(),
                current: false,
                description: "Initial release".to_owned(),
                config: BTreeMap::new(),
                slug: None,
                image: None,
            },
        };
        release.version = version;
        "succeeded".clone_into(&mut release.status);
        release.current = true;
        change(&mut release);
        if release.current {
            for before in &mut self.releases {
                before.current = false;
            }
        }
        self.releases.push(release);
        version
    }

    /// The formation of an app that has these process types now.
    fn reform(&mut self, processes: &[(&str, &str)]) {
        let before = std::mem::take(&mut self.formation);
        let process = |&(name, command): &(&str, &str)| {
            let same = before.iter().find(|process| process.process_type == name);
            Process {
                process_type: name.to_owned(),
                command: command.to_owned(),
                quantity: same.map_or(i64::from(name == "web"), |process| process.quantity),
            }
        };
        self.formation = processes.iter().map(process).collect();
    }
}

fn owned(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests;
