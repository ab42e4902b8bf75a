//! A release: what an app is at one moment, and what it takes to get from one to the next.
//!
//! [`Release::change_from`] decides how much a new release disturbs: a change of
//! quantities restarts nobody, a change of config replaces dynos but builds nothing.
//! Config vars, the slug's URL and the log target are secrets; their types here show
//! neither in `Debug` nor in `Display`, and only `Serialize` keeps them whole, for the
//! history on disk (0600).

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::name::ProcessType;

mod metadata;

pub use metadata::AppMetadata;

/// One release of an app, from whatever source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The app's name; empty when the source does not say.
    pub app: String,
    /// The number that the source gives it. It is the release's name: another number
    /// is another release even when nothing else differs.
    pub version: u64,
    /// The environment that the app is configured with.
    pub config: ConfigVars,
    /// The app's archive or directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<Slug>,
    /// `SHA256:<hex>` of the compressed slug.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug_checksum: Option<String>,
    /// The base image to run on, such as `heroku-24`; empty: the driver's choice.
    #[serde(default)]
    pub stack: String,
    /// An OCI image instead of a slug.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What each dyno may use.
    #[serde(default)]
    pub limits: Limits,
    /// Where to ship the log lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_target: Option<LogTarget>,
    /// The process types, in the order in which the source names them.
    pub processes: Vec<Process>,
    /// What Heroku knows of it, if it comes from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<AppMetadata>>,
}

/// A process type of a release: what to run, and how many by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its name.
    #[serde(rename = "type")]
    pub process_type: ProcessType,
    /// The shell line.
    pub command: String,
    /// How many dynos the source wants.
    pub quantity: u32,
}

impl Process {
    /// A process type; the quantity of `release`, which is no long-running type, is 0.
    pub fn new(process_type: ProcessType, command: impl Into<String>, quantity: u32) -> Self {
        let quantity = if process_type.is_release() {
            0
        } else {
            quantity
        };
        Self {
            process_type,
            command: command.into(),
            quantity,
        }
    }
}

/// What one dyno may use; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processor time, in thousandths of one processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
}

/// What a release changes, seen from the one that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseChange {
    /// They are the same.
    Nothing,
    /// No running dyno is touched: other quantities, process types that came or went,
    /// another order of them, another log target.
    QuantitiesOnly,
    /// Every dyno is replaced.
    Replace {
        /// Whether the driver must build first. A build of what it already has costs
        /// nothing, so in doubt this is true.
        builds: bool,
    },
}

impl Release {
    /// The process type `name`, if the release has it.
    pub fn process(&self, name: &str) -> Option<&Process> {
        self.processes
            .iter()
            .find(|process| process.process_type.as_str() == name)
    }

    /// How many dynos of that type it wants, if it has the type.
    pub fn quantity_of(&self, process_type: &ProcessType) -> Option<u32> {
        let process = self.process(process_type.as_str());
        process.map(|process| process.quantity)
    }

    /// Gives the process types that it has these quantities.
    pub fn scale(&mut self, quantities: &[(ProcessType, u32)]) {
        for process in &mut self.processes {
            let of_type = |(name, _): &&(ProcessType, u32)| *name == process.process_type;
            if let Some((name, quantity)) = quantities.iter().find(of_type) {
                *process = Process::new(name.clone(), process.command.clone(), *quantity);
            }
        }
    }

    /// How many dynos of each type it wants.
    pub fn quantities(&self) -> Vec<(ProcessType, u32)> {
        let of = |process: &Process| (process.process_type.clone(), process.quantity);
        self.processes.iter().map(of).collect()
    }

    /// What changes when this release follows `old`.
    pub fn change_from(&self, old: &Self) -> ReleaseChange {
        if self == old {
            return ReleaseChange::Nothing;
        }
        let commands_differ = self.processes.iter().any(|process| {
            old.process(process.process_type.as_str())
                .is_some_and(|before| before.command != process.command)
        });
        let is_another = commands_differ
            || self.version != old.version
            || self.config != old.config
            || self.limits != old.limits;
        let builds = self.builds_after(old) || is_another && self.may_hold_other_code();
        if builds || is_another {
            ReleaseChange::Replace { builds }
        } else {
            ReleaseChange::QuantitiesOnly
        }
    }

    /// Whether what the driver built for `old` will not do for this release.
    ///
    /// The version is no part of it, nor is the query of the slug's URL, which is only a
    /// fresh signature.
    fn builds_after(&self, old: &Self) -> bool {
        let same_slug = match (&self.slug_checksum, &old.slug_checksum) {
            (Some(new), Some(old_checksum)) => {
                new == old_checksum && self.slug.is_some() == old.slug.is_some()
            }
            (None, None) => match (&self.slug, &old.slug) {
                (Some(new), Some(old_slug)) => new.without_query() == old_slug.without_query(),
                (None, None) => true,
                _ => false,
            },
            _ => false,
        };
        !same_slug || self.app != old.app || self.stack != old.stack || self.image != old.image
    }

    /// Whether its slug is on this machine and has no checksum. Somebody who releases that anew
    /// may well have changed what is there, be it a directory, whose releases all have one
    /// number: the driver, which looks at sizes and times, knows better.
    fn may_hold_other_code(&self) -> bool {
        let slug = self.slug.as_ref();
        self.slug_checksum.is_none() && slug.is_some_and(|slug| !slug.is_remote())
    }
}

/// `SHA256:<64 hexadecimal digits>` as it is kept, in lower case; `None` of any other text.
pub fn slug_checksum(text: &str) -> Option<String> {
    let (algorithm, digits) = text.split_once(':')?;
    let is_sha256 = algorithm.eq_ignore_ascii_case("SHA256")
        && digits.len() == 64
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_sha256.then(|| format!("SHA256:{}", digits.to_ascii_lowercase()))
}

/// The environment that an app is configured with: names and secret values.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfigVars(BTreeMap<String, String>);

impl ConfigVars {
    /// The value of `name`. Secret.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets `name`; returns the value that it had.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) -> Option<String> {
        self.0.insert(name.into(), value.into())
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Names and values, sorted by name. The values are secret.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.into_iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for ConfigVars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for ConfigVars {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(vars: T) -> Self {
        vars.into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect::<BTreeMap<_, _>>()
            .into()
    }
}

impl From<BTreeMap<String, String>> for ConfigVars {
    fn from(vars: BTreeMap<String, String>) -> Self {
        Self(vars)
    }
}

impl<'a> IntoIterator for &'a ConfigVars {
    type Item = (&'a str, &'a str);
    type IntoIter = std::iter::Map<
        btree_map::Iter<'a, String, String>,
        fn((&'a String, &'a String)) -> (&'a str, &'a str),
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(name, value)| (name, value))
    }
}

/// Where an app's archive or directory is: a URL or a path.
///
/// A presigned URL's query is as good as the slug itself, so `Debug` and `Display`
/// leave it out, with the fragment and the user information.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slug(String);

/// A slug on this machine has a path that the driver protocol cannot carry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the path `{}` of the slug is not UTF-8", .path.display())]
pub struct SlugPathError {
    path: PathBuf,
}

impl Slug {
    /// A slug at a URL or a path.
    pub fn new(location: impl Into<String>) -> Self {
        Self(location.into())
    }

    /// The whole text. Secret where it is a URL.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it must be fetched over a network.
    pub fn is_remote(&self) -> bool {
        self.0.contains("://") && !self.0.starts_with("file://")
    }

    /// The URL for the driver: a URL as it is, a path as `file://`, relative to `base`.
    ///
    /// Of a path's bytes only those that would end a URL's path are escaped. Secret.
    ///
    /// # Errors
    /// When `base` is not UTF-8.
    pub fn url(&self, base: &Path) -> Result<String, SlugPathError> {
        if self.0.contains("://") {
            return Ok(self.0.clone());
        }
        file_url(&base.join(&self.0))
    }

    fn without_query(&self) -> &str {
        if self.0.contains("://") {
            self.0.split(['?', '#']).next().unwrap_or_default()
        } else {
            &self.0
        }
    }
}

/// The `file://` URL of an absolute path.
///
/// # Errors
/// When the path is not UTF-8.
pub fn file_url(path: &Path) -> Result<String, SlugPathError> {
    let text = path.to_str().ok_or_else(|| SlugPathError {
        path: path.to_owned(),
    })?;
    let escaped = text
        .replace('%', "%25")
        .replace('?', "%3F")
        .replace('#', "%23");
    Ok(format!("file://{escaped}"))
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.without_query().split_once("://") else {
            return f.write_str(&self.0);
        };
        let host_end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(host_end);
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        write!(f, "{scheme}://{host}{path}")
    }
}

impl fmt::Debug for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// The URL that log lines are shipped to. Its user information is a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogTarget(String);

/// The text is not a URL of a log target. It may hold a token, so it is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a log target: expected a URL such as `https://token:…@host/logs`")]
pub struct ParseLogTargetError;

impl LogTarget {
    /// The log target at `url`, which needs a scheme and a host.
    ///
    /// # Errors
    /// When it is something else.
    pub fn new(url: impl Into<String>) -> Result<Self, ParseLogTargetError> {
        let url = url.into();
        let target = Self(url);
        let (scheme, host) = target.scheme_and_host().ok_or(ParseLogTargetError)?;
        let clean = |text: &str| !text.chars().any(|c| c.is_whitespace() || c.is_control());
        let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if scheme_fits && !host.is_empty() && !host.starts_with(':') && clean(&target.0) {
            Ok(target)
        } else {
            Err(ParseLogTargetError)
        }
    }

    /// The whole URL. Secret.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn scheme_and_host(&self) -> Option<(&str, &str)> {
        let (scheme, rest) = self.0.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        Some((scheme, host))
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme_and_host() {
            Some((scheme, host)) => write!(f, "{scheme}://{host}"),
            None => f.write_str("…"),
        }
    }
}

impl fmt::Debug for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn release() -> Release {
        Release {
            app: "shop".into(),
            version: 7,
            config: [("DATABASE_URL", "hunter2")].into_iter().collect(),
            slug: Some(Slug::new(
                "https://user:hunter2@store/a/b.tgz?sig=hunter2#hunter2",
            )),
            slug_checksum: None,
            stack: "heroku-24".into(),
            image: None,
            limits: Limits::default(),
            log_target: Some(LogTarget::new("https://token:hunter2@logs.example/logs").unwrap()),
            processes: vec![
                Process::new("web".parse().unwrap(), "bin/web", 2),
                Process::new("worker".parse().unwrap(), "bin/worker", 1),
            ],
            metadata: None,
        }
    }

    #[test_case(|_| {} => ReleaseChange::Nothing; "nothing")]
    #[test_case(|r| r.processes[0].quantity = 9 => ReleaseChange::QuantitiesOnly; "a quantity")]
    #[test_case(|r| r.processes.reverse() => ReleaseChange::QuantitiesOnly; "their order")]
    #[test_case(|r| { r.processes.pop(); } => ReleaseChange::QuantitiesOnly; "a type that went")]
    #[test_case(
        |r| r.processes.push(Process::new("clock".parse().unwrap(), "bin/clock", 1))
            => ReleaseChange::QuantitiesOnly;
        "a type that came"
    )]
    #[test_case(|r| r.log_target = None => ReleaseChange::QuantitiesOnly; "the log target")]
    #[test_case(
        |r| r.slug = Some(Slug::new("https://store/a/b.tgz?sig=fresh"))
            => ReleaseChange::Replace { builds: true };
        "the user of the slug's URL"
    )]
    #[test_case(
        |r| r.slug = Some(Slug::new("https://user:hunter2@store/a/b.tgz?sig=fresh"))
            => ReleaseChange::QuantitiesOnly;
        "a fresh signature"
    )]
    #[test_case(
        |r| { r.config.insert("DATABASE_URL", "other"); } => ReleaseChange::Replace { builds: false };
        "config"
    )]
    #[test_case(|r| r.version = 8 => ReleaseChange::Replace { builds: false }; "the version")]
    #[test_case(
        |r| r.processes[1].command.push('2') => ReleaseChange::Replace { builds: false };
        "a command"
    )]
    #[test_case(
        |r| r.limits.pids = Some(9) => ReleaseChange::Replace { builds: false };
        "limits"
    )]
    #[test_case(
        |r| r.slug = Some(Slug::new("https://store/c.tgz")) => ReleaseChange::Replace { builds: true };
        "slug"
    )]
    #[test_case(
        |r| r.slug_checksum = Some("SHA256:00".into()) => ReleaseChange::Replace { builds: true };
        "a checksum"
    )]
    #[test_case(|r| r.slug = None => ReleaseChange::Replace { builds: true }; "no slug")]
    #[test_case(|r| r.stack.clear() => ReleaseChange::Replace { builds: true }; "stack")]
    #[test_case(
        |r| r.image = Some("shop:2".into()) => ReleaseChange::Replace { builds: true };
        "image"
    )]
    #[test_case(|r| r.app.push('2') => ReleaseChange::Replace { builds: true }; "app")]
    fn a_change_of(change: fn(&mut Release)) -> ReleaseChange {
        let mut new = release();
        change(&mut new);
        new.change_from(&release())
    }

    #[test]
    fn a_checksum_says_more_than_a_url() {
        let mut old = release();
        old.slug_checksum = Some("SHA256:00".into());
        let mut new = old.clone();
        new.slug = Some(Slug::new("https://mirror/b.tgz"));
        assert_eq!(new.change_from(&old), ReleaseChange::QuantitiesOnly);
    }

    #[test]
    fn a_local_slug_is_looked_at_again_by_each_release() {
        let mut old = release();
        old.slug = Some(Slug::new("file:///srv/shop/"));
        let mut new = old.clone();
        new.processes[0].quantity += 1;
        assert_eq!(new.change_from(&old), ReleaseChange::QuantitiesOnly);
        // Releases of a directory have one version.
        let changes: [fn(&mut Release); 3] = [
            |r| drop(r.config.insert("A", "b")),
            |r| r.processes[0].command.push('2'),
            |r| r.version += 1,
        ];
        for change in changes {
            let mut new = old.clone();
            change(&mut new);
            let builds = ReleaseChange::Replace { builds: true };
            assert_eq!(new.change_from(&old), builds);
        }
        new.version += 1;
        new.slug_checksum = Some("SHA256:00".into());
        old.slug_checksum = Some("SHA256:00".into());
        assert_eq!(
            new.change_from(&old),
            ReleaseChange::Replace { builds: false }
        );
    }

    #[test]
    fn secrets_show_neither_in_debug_nor_in_display() {
        let release = release();
        let shown = format!(
            "{release:?} {} {}",
            release.slug.as_ref().unwrap(),
            release.log_target.as_ref().unwrap()
        );
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(!shown.contains("token"), "{shown}");
        assert!(shown.contains("https://store/a/b.tgz"), "{shown}");
        assert!(shown.contains("DATABASE_URL"), "{shown}");
        assert!(shown.contains("https://logs.example"), "{shown}");
    }

    #[test]
    fn only_a_path_is_shown_whole() {
        for (slug, shown) in [
            ("file:///a/b.tgz?sig=hunter2", "file:///a/b.tgz"),
            ("a?b/c#d", "a?b/c#d"),
        ] {
            assert_eq!(Slug::new(slug).to_string(), shown);
        }
    }

    #[test]
    fn the_history_gets_all_of_it_back() {
        let json = serde_json::to_string(&release()).unwrap();
        assert_eq!(serde_json::from_str::<Release>(&json).unwrap(), release());
    }

    #[test]
    fn a_path_becomes_a_url() {
        let url = |location| Slug::new(location).url(Path::new("/srv/my app")).unwrap();
        assert_eq!(url("slug.tgz"), "file:///srv/my app/slug.tgz");
        assert_eq!(url("/a/100%?.tgz"), "file:///a/100%25%3F.tgz");
        assert_eq!(url("https://store/x?sig=1"), "https://store/x?sig=1");
        assert_eq!(url("file:///a"), "file:///a");
    }

    #[test]
    fn the_release_phase_is_no_long_running_type() {
        assert_eq!(Process::new("release".parse().unwrap(), "x", 3).quantity, 0);
    }

    #[test_case("")]
    #[test_case("logs.example")]
    #[test_case("https://")]
    #[test_case("https://token@/logs")]
    #[test_case("https://:443/")]
    #[test_case("ht tp://host/")]
    #[test_case("https://host/a b")]
    fn a_bad_log_target_is_refused(url: &str) {
        assert_eq!(LogTarget::new(url), Err(ParseLogTargetError));
    }
}
