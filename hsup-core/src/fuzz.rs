//! What this crate reads from others, as functions that `fuzz/` feeds. Each panics when a text
//! is read to something that it cannot be, and not only where reading panics itself.
//!
//! Those of private modules are beside them (`fuzz.rs` in their folders).

use std::collections::BTreeSet;

use crate::{
    formation::{FormationChange, MAX_QUANTITY, QuantityChange},
    logs::DrainTarget,
    name::{DynoId, DynoName, ProcessType, Selector, check_app_name},
    release::{LogTarget, Process},
    source::{control_file, dotenv, procfile},
};

pub use crate::{
    control::fuzz::{control_grpc, control_http},
    logs::fuzz::{log_frames, log_lines},
    source::heroku::fuzz::heroku_api,
    state::fuzz::{history, journal},
};

/// What a target is called, and itself.
pub type Target = (&'static str, fn(&[u8]));

/// Each target, and what it is called.
pub const TARGETS: &[Target] = &[
    ("control_file", control_file),
    ("control_grpc", control_grpc),
    ("control_http", control_http),
    ("dotenv", dotenv),
    ("drain_url", drain_url),
    ("heroku_api", heroku_api),
    ("history", history),
    ("journal", journal),
    ("log_frames", log_frames),
    ("log_lines", log_lines),
    ("names", names),
    ("procfile", procfile),
];

/// A Procfile: what is read of it reads the same when it is written down.
pub fn procfile(text: &[u8]) {
    let Ok(read) = procfile::parse(text) else {
        return;
    };
    check_processes(&read.processes);
    let lines = read.processes.iter();
    let lines = lines.map(|it| format!("{}: {}\n", it.process_type, it.command));
    let again = procfile::parse(lines.collect::<String>().as_bytes());
    let again = again.expect("what was written");
    assert_eq!(again.processes, read.processes);
    assert!(again.warnings.is_empty());
}

/// A `.env` file: no variable is one that no process can have, and all read the same when they
/// are written down.
pub fn dotenv(text: &[u8]) {
    let Ok(read) = dotenv::parse(text) else {
        return;
    };
    let mut written = String::new();
    for (name, value) in &read.config {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
        let value = value.replace('\\', r"\\").replace('"', "\\\"");
        let value = value.replace('\n', r"\n");
        written.extend(["export ", name, "=\"", &*value, "\" # quoted\n"]);
    }
    let again = dotenv::parse(written.as_bytes()).expect("what was written");
    assert_eq!(again.config, read.config);
}

/// A control file, as `new`, `loaded` and what `hsupctl apply` sends: a release of it can be
/// run, shows no config var, and reads the same when it is written down.
pub fn control_file(text: &[u8]) {
    let Ok(read) = control_file::parse(text) else {
        return;
    };
    let release = &read.release;
    let mut blank = release.clone();
    let names = release.config.names();
    blank.config = names.map(|name| (name, "")).collect();
    assert_eq!(format!("{release:?}"), format!("{blank:?}"));
    check_processes(&release.processes);
    assert!(release.app.is_empty() || check_app_name(&release.app).is_ok());
    for (name, _) in &release.config {
        assert!(!name.is_empty() && !name.contains(['=', '\0']));
    }
    let written = control_file::text(release);
    let again = control_file::parse(written.expose().as_bytes()).expect("what was written");
    assert_eq!(again.release, *release);
    // One key without the other is kept, and warned of again.
    assert!(again.warnings.iter().all(|it| read.warnings.contains(it)));
    assert_eq!(control_file::text(&again.release), written);
}

/// Names of process types, dynos and apps, and what a person points at with them.
pub fn names(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let is_plain = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/')
    };
    if let Ok(name) = text.parse::<DynoName>() {
        // One dyno has one name.
        assert_eq!(name.to_string(), text);
        assert!(is_plain(text));
        let id = DynoId::mint(&name, text.len() as u64);
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
    }
    if let Ok(selector) = text.parse::<Selector>() {
        assert_eq!(selector.to_string(), text);
    }
    if let Ok(id) = text.parse::<DynoId>() {
        assert!(is_plain(id.as_str()) && id.as_str().len() <= 63);
    }
    if check_app_name(text).is_ok() {
        assert!(is_plain(text) && !text.starts_with('.'));
    }
    if let Ok(change) = FormationChange::parse(text, &[]) {
        let most = match change.quantity {
            QuantityChange::To(quantity) => quantity,
            QuantityChange::By(by) => by.unsigned_abs(),
        };
        assert!(most <= MAX_QUANTITY);
        let again = FormationChange::parse(&change.to_string(), &[]);
        assert_eq!(again, Ok(change));
    }
}

/// A drain's URL: nothing that is said of one has its password or its query.
pub fn drain_url(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let without = said_of(text);
    let Some((scheme, rest)) = text.split_once("://") else {
        return;
    };
    let mark = if rest.contains('?') { '&' } else { '?' };
    let said = said_of(&format!("{scheme}://user:{SECRET}@{rest}{mark}{SECRET}"));
    // Its host may be called so.
    assert!(without.contains(SECRET) || !said.contains(SECRET), "{said}");
}

/// Everything that is said of a drain's URL, wherever it comes from.
fn said_of(url: &str) -> String {
    let mut said = match DrainTarget::parse(url) {
        Ok(target) => format!("{target} {target:?}"),
        Err(error) => error.to_string(),
    };
    if let Ok(target) = LogTarget::new(url) {
        said.extend([" ", &format!("{target:?}")]);
        // A release has no say in what is written to this machine's files.
        if let Ok(target) = DrainTarget::of_release(&target) {
            assert_eq!(target.file(), None);
        }
    }
    said
}

/// What is put where a URL has its secrets.
const SECRET: &str = "hunter2";

/// Whether these can be the process types of a release that is not Heroku's.
fn check_processes(processes: &[Process]) {
    let types: BTreeSet<&ProcessType> = processes.iter().map(|it| &it.process_type).collect();
    assert_eq!(types.len(), processes.len());
    assert!(processes.iter().any(|it| !it.process_type.is_release()));
    for process in processes {
        assert!(!process.command.trim().is_empty());
        assert!(!process.command.contains('\0'));
        assert!(process.quantity <= MAX_QUANTITY);
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
