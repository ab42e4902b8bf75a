//! Which log drains are asked for, and by whom.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hsup_core::logs::{DrainTarget, ParseTargetError};
use thiserror::Error;

use super::args::Options;
use crate::config::{Origin, Resolved};

/// Drains that cannot be; wrong usage.
#[derive(Debug, Error)]
pub(super) enum DrainsError {
    #[error("{from} names no log drain")]
    Url {
        from: String,
        source: ParseTargetError,
    },
    #[error("{first} and {second} name one file, and would spoil each other's lines: `{}`", .path.display())]
    SameFile {
        first: String,
        second: String,
        path: PathBuf,
    },
}

/// Who says where lines go.
#[derive(Clone, Debug)]
pub(super) struct Said {
    logplex: Origin,
    others: Origin,
}

impl Said {
    pub(super) fn of(resolved: &Resolved) -> Self {
        Self {
            logplex: resolved.origin("logplex-url").clone(),
            others: resolved.origin("log-to").clone(),
        }
    }

    /// Whether the command line names a drain.
    pub(super) fn is_drain_typed(&self) -> bool {
        [&self.logplex, &self.others].contains(&&Origin::Flag)
    }

    fn logplex_url(&self) -> String {
        match &self.logplex {
            Origin::Flag | Origin::Default => "--logplex-url".to_owned(),
            Origin::Variable(name) => name.clone(),
            Origin::File(place) => format!("logplex-url ({place})"),
        }
    }

    /// The one with this `number` of so many.
    fn log_to(&self, number: usize, of: usize) -> String {
        match &self.others {
            Origin::Variable(name) => format!("URL {number} of {name}"),
            Origin::File(place) => format!("URL {number} of log-to ({place})"),
            Origin::Flag | Origin::Default if of == 1 => "--log-to".to_owned(),
            Origin::Flag | Origin::Default => format!("--log-to number {number}"),
        }
    }
}

/// The drains of `hsup start`; `tell` has what is odd about them.
pub(super) fn drains(
    options: &Options,
    said: &Said,
    tell: fn(&str),
) -> Result<Vec<DrainTarget>, DrainsError> {
    let mut drains = Vec::new();
    if let Some(url) = &options.logplex_url {
        let from = said.logplex_url();
        drains.push((named(DrainTarget::logplex(url.expose()), &from)?, from));
    }
    for (url, number) in options.log_to.iter().zip(1..) {
        let from = said.log_to(number, options.log_to.len());
        drains.push((named(DrainTarget::parse(url.expose()), &from)?, from));
    }
    check_files(&drains)?;
    for (target, from) in drains.iter().filter(|(target, _)| target.bares_its_token()) {
        tell(&format!(
            "Warning: {from}: the token for {target} goes over the network in plain text: use https"
        ));
    }
    Ok(drains.into_iter().map(|(target, _)| target).collect())
}

/// Refuses two drains to one file, by whatever name.
fn check_files(drains: &[(DrainTarget, String)]) -> Result<(), DrainsError> {
    let mut files: Vec<(PathBuf, &str)> = Vec::new();
    for (target, from) in drains {
        let Some(path) = target.file().map(resolved) else {
            continue;
        };
        if let Some((_, first)) = files.iter().find(|(known, _)| *known == path) {
            return Err(DrainsError::SameFile {
                first: (*first).to_owned(),
                second: from.clone(),
                path,
            });
        }
        files.push((path, from));
    }
    Ok(())
}

/// The path without symbolic links, also where there is no file yet.
fn resolved(path: &Path) -> PathBuf {
    let whole = fs::canonicalize(path);
    let of_folder = || {
        let folder = fs::canonicalize(path.parent()?).ok()?;
        Some(folder.join(path.file_name()?))
    };
    whole
        .ok()
        .or_else(of_folder)
        .unwrap_or_else(|| path.to_owned())
}

fn named(
    parsed: Result<DrainTarget, ParseTargetError>,
    from: &str,
) -> Result<DrainTarget, DrainsError> {
    parsed.map_err(|source| DrainsError::Url {
        from: from.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn one_file_by_two_names_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("logs")).unwrap();
        symlink("logs", folder.path().join("link")).unwrap();
        symlink("a.log", folder.path().join("logs/b.log")).unwrap();
        let check = |names: [&str; 2]| {
            let drains = names.map(|name| {
                let url = format!("{name}?keep=1");
                let url = url.replace("DIR", folder.path().to_str().unwrap());
                (DrainTarget::parse(&url).unwrap(), name.to_owned())
            });
            check_files(&drains).map_err(|error| error.to_string())
        };
        assert_eq!(
            check(["file://DIR/logs/a.log", "json://DIR/logs/c.log"]),
            Ok(())
        );
        for other in ["json://DIR/link/a.log", "file://DIR/logs/../logs/a.log"] {
            let refused = check(["file://DIR/logs/a.log", other]).unwrap_err();
            assert!(
                refused.contains(&format!("file://DIR/logs/a.log and {other} name one file")),
                "{refused}"
            );
        }
        // Once there is a file, links to it are it, too.
        fs::File::create(folder.path().join("logs/a.log")).unwrap();
        assert!(check(["file://DIR/logs/b.log", "json://DIR/link/a.log"]).is_err());
    }
}
