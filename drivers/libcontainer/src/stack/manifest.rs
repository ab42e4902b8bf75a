//! The list of stacks, `manifest.yml`: read, and the one to use chosen, without any I/O.
//!
//! Two shapes. The original's is a list:
//! ```yaml
//! - name: cedar-14
//!   version: "1.10"
//!   url: https://example.com/cedar-14.img.gz
//!   md5: 9e107d9d372bb6826bd81d3542a419d6
//!   primary: true
//! ```
//! where every image is a file system, mostly gzipped ext4. Version 2 says more of each:
//! ```yaml
//! version: 2
//! stacks:
//! - name: heroku-24
//!   version: "v123"
//!   arch: amd64            # amd64 | arm64; none: any
//!   primary: true
//!   format: rootfs-tar     # rootfs-tar | ext4 | squashfs | directory
//!   url: https://example.com/heroku-24.tar.zst
//!   sha256: 3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b
//!   size: 123456789
//!   uid: 1000
//! ```
//!
//! What is decided here:
//! - A file's checksum is that of the file as it is fetched, compressed or not. Over http and
//!   https, version 2 must have a `sha256`. The original's list may have an `md5`, which is weak,
//!   or nothing, which is weaker: the original never looked at it. Both are used, with a warning.
//! - Of the versions of a name, those for another machine or in a format that is not known here
//!   are passed over; of the rest those that are `primary` go before all others (the original
//!   had the field, and did nothing with it); and of these the newest is used.
//! - A field that is not known is a warning: the list may be newer than the driver.

use std::{collections::BTreeSet, fmt};

use hsup_driver_kit::{file_url, hex};
use serde_yaml_ng::{Mapping, Value};
use thiserror::Error;

use super::name::{NameError, StackName, Version};

/// The list of stacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) entries: Vec<Entry>,
    /// What is off in it, but does not stop its use.
    pub(super) warnings: Vec<Warning>,
}

/// Something is off in the list, or with one stack in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Warning {
    pub(super) stack: Option<StackName>,
    pub(super) text: String,
}

/// One version of a stack.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: StackName,
    pub(super) version: Version,
    pub(super) arch: Option<String>,
    pub(super) primary: bool,
    pub(super) format: Format,
    /// Its query may be a secret: it is shown without.
    pub(super) url: String,
    pub(super) checksum: Option<Checksum>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
}

/// What is at the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A root file system on this machine, used where it is.
    Directory,
    /// A root file system in a tar archive, plain, gz or zst.
    RootfsTar,
    /// A file system image, plain, gz or zst. Which one it is, itself says.
    Image,
    /// One that this driver does not read.
    Other(String),
}

/// What the bytes of a file must add up to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    Sha256([u8; 32]),
    Md5([u8; 16]),
}

/// A list is not one, or an entry lacks what is needed.
#[derive(Debug, Error)]
pub enum ManifestError {
    #[error("{origin} is not YAML")]
    Syntax {
        origin: String,
        source: serde_yaml_ng::Error,
    },
    #[error(
        "{origin} is no list of stacks: it must be a list of entries, or hold `version: 2` and \
         `stacks:` with such a list"
    )]
    Shape { origin: String },
    #[error("{origin} has version {version}; this driver reads version 2, and lists without one")]
    Version { origin: String, version: String },
    #[error("{origin}, entry {entry}: field `{field}` {problem}")]
    Field {
        origin: String,
        entry: String,
        field: &'static str,
        problem: String,
    },
}

/// No entry of a list can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotChosen {
    /// The list does not have the name. These it has.
    Unknown(Vec<StackName>),
    /// The reason for each version.
    PassedOver(Vec<String>),
}

const FIELDS: [&str; 11] = [
    "name", "version", "url", "md5", "sha256", "primary", "arch", "format", "size", "uid", "ref",
];

impl Manifest {
    /// Reads a list; `origin` is the file or URL that it is from, for the errors.
    pub(super) fn parse(text: &str, origin: &str) -> Result<Self, ManifestError> {
        let shape = || ManifestError::Shape {
            origin: origin.to_owned(),
        };
        let value: Value =
            serde_yaml_ng::from_str(text).map_err(|source| ManifestError::Syntax {
                origin: origin.to_owned(),
                source,
            })?;
        let mut manifest = Self::default();
        let (entries, is_legacy) = match &value {
            Value::Sequence(entries) => (entries, true),
            Value::Mapping(map) => {
                let version = map.get("version").ok_or_else(shape)?;
                if version.as_u64() != Some(2) {
                    return Err(ManifestError::Version {
                        origin: origin.to_owned(),
                        version: scalar(version).unwrap_or_else(|| "of another kind".to_owned()),
                    });
                }
                let known = ["version", "stacks"];
                manifest.warn_of_unknown(origin, None, "", map, &known);
                let stacks = map.get("stacks").and_then(Value::as_sequence);
                (stacks.ok_or_else(shape)?, false)
            }
            _ => return Err(shape()),
        };
        for (at, entry) in entries.iter().enumerate() {
            let map = entry.as_mapping().ok_or_else(shape)?;
            let named = map.get("name").and_then(scalar).unwrap_or_default();
            let label = format!("{} (`{}`)", at + 1, named.escape_debug());
            let fields = Fields {
                origin,
                label: &label,
                map,
            };
            let entry = fields.entry(is_legacy)?;
            let of = format!(", entry {label}");
            manifest.warn_of_unknown(origin, Some(&entry.name), &of, map, &FIELDS);
            if is_remote(&entry.url) {
                let weak = match entry.checksum {
                    Some(Checksum::Sha256(_)) => None,
                    Some(Checksum::Md5(_)) => {
                        Some("has only an md5, which does not keep a forger out")
                    }
                    None if matches!(entry.format, Format::Other(_)) => None,
                    None => Some("has no checksum: what is fetched is used unverified"),
                };
                if let Some(weak) = weak {
                    manifest.warnings.push(Warning {
                        stack: Some(entry.name.clone()),
                        text: format!("{origin}, entry {label}: {weak}; add `sha256`"),
                    });
                }
            }
            manifest.entries.push(entry);
        }
        Ok(manifest)
    }

    fn warn_of_unknown(
        &mut self,
        origin: &str,
        stack: Option<&StackName>,
        label: &str,
        map: &Mapping,
        known: &[&str],
    ) {
        for key in map.keys() {
            let key = scalar(key).unwrap_or_default();
            if !known.contains(&key.as_str()) {
                let key = key.escape_debug();
                self.warnings.push(Warning {
                    stack: stack.cloned(),
                    text: format!("{origin}{label}: field `{key}` is not known, and ignored"),
                });
            }
        }
    }

    /// What whoever uses a stack is to know of the list.
    pub(super) fn warnings_of<'a>(
        &'a self,
        name: &StackName,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let concerns = |warning: &&Warning| match &warning.stack {
            None => true,
            Some(stack) => stack == name,
        };
        let warnings: Vec<_> = self.warnings.iter().filter(concerns).collect();
        warnings.into_iter().map(|warning| warning.text.as_str())
    }

    /// The version of a stack to use on a machine of `arch`.
    pub(super) fn choose(&self, name: &StackName, arch: &str) -> Result<&Entry, NotChosen> {
        let mut passed_over = Vec::new();
        let mut usable: Vec<&Entry> = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.name == *name) {
            match entry.why_not(arch) {
                None => usable.push(entry),
                Some(reason) => passed_over.push(format!("version {}: {reason}", entry.version)),
            }
        }
        let newest = usable
            .into_iter()
            .max_by(|a, b| (a.primary, &a.version).cmp(&(b.primary, &b.version)));
        newest.ok_or_else(|| {
            if passed_over.is_empty() {
                let names: BTreeSet<_> = self.entries.iter().map(|entry| &entry.name).collect();
                NotChosen::Unknown(names.into_iter().cloned().collect())
            } else {
                NotChosen::PassedOver(passed_over)
            }
        })
    }

    /// The names of its stacks, whether they can be used here or not.
    pub(super) fn names(&self) -> Vec<StackName> {
        self.entries
            .iter()
            .map(|entry| entry.name.clone())
            .collect()
    }

    /// An entry that can be used here, by name and version.
    pub(super) fn entry(&self, name: &StackName, version: &Version, arch: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| {
            entry.name == *name && entry.version == *version && entry.why_not(arch).is_none()
        })
    }
}

impl Entry {
    /// Why it is not for this machine or driver.
    fn why_not(&self, arch: &str) -> Option<String> {
        if let Format::Other(format) = &self.format {
            let format = format.escape_debug();
            return Some(format!("format `{format}` is not read by this driver"));
        }
        match &self.arch {
            Some(other) if other != arch => Some(format!("it is for {}", other.escape_debug())),
            _ => None,
        }
    }
}

/// The fields of an entry, and what it is called in an error.
struct Fields<'a> {
    origin: &'a str,
    label: &'a str,
    map: &'a Mapping,
}

impl Fields<'_> {
    fn wrong(&self, field: &'static str, problem: impl Into<String>) -> ManifestError {
        ManifestError::Field {
            origin: self.origin.to_owned(),
            entry: self.label.to_owned(),
            field,
            problem: problem.into(),
        }
    }

    /// A field's text. Whole numbers are text, other numbers are not what was written.
    fn text(&self, field: &'static str) -> Result<Option<String>, ManifestError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) if number.is_f64() => {
                let problem = format!("is read as the number {number}: put it in quotes");
                Err(self.wrong(field, problem))
            }
            Some(value) => match scalar(value) {
                Some(text) => Ok(Some(text)),
                None => Err(self.wrong(field, "must be text")),
            },
        }
    }

    fn needed(&self, field: &'static str) -> Result<String, ManifestError> {
        self.text(field)?
            .ok_or_else(|| self.wrong(field, "is missing"))
    }

    fn number(&self, field: &'static str) -> Result<Option<u64>, ManifestError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(field, "must be a whole number")),
            },
        }
    }

    fn hex<const N: usize>(&self, field: &'static str) -> Result<Option<[u8; N]>, ManifestError> {
        let Some(text) = self.text(field)? else {
            return Ok(None);
        };
        match from_hex(&text) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(self.wrong(field, format!("must be {} hexadecimal digits", 2 * N))),
        }
    }

    fn entry(&self, is_legacy: bool) -> Result<Entry, ManifestError> {
        let name = self.needed("name")?.parse();
        let name =
            name.map_err(|error: NameError| self.wrong("name", format!("is wrong: {error}")))?;
        let version = self.needed("version")?.parse();
        let version = version
            .map_err(|error: NameError| self.wrong("version", format!("is wrong: {error}")))?;
        let primary = match self.map.get("primary") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(primary)) => *primary,
            Some(_) => return Err(self.wrong("primary", "must be `true` or `false`")),
        };
        let format = match self.text("format")?.as_deref() {
            Some("directory") => Format::Directory,
            Some("rootfs-tar") => Format::RootfsTar,
            Some("ext4" | "squashfs") => Format::Image,
            Some(other) => Format::Other(other.to_owned()),
            None if is_legacy => Format::Image,
            None => return Err(self.wrong("format", "is missing")),
        };
        let url = match (self.text("url")?, &format) {
            (Some(url), _) => url,
            (None, Format::Other(_)) => String::new(),
            (None, _) => return Err(self.wrong("url", "is missing")),
        };
        let sha256 = self.hex("sha256")?.map(Checksum::Sha256);
        let md5 = self.hex("md5")?.map(Checksum::Md5);
        match &format {
            Format::Other(_) => {}
            _ if is_remote(&url) && format == Format::Directory => {
                let problem = "must be a `file://` URL for a directory, which is used where it is";
                return Err(self.wrong("url", problem));
            }
            _ if is_remote(&url) && !is_legacy && sha256.is_none() => {
                let problem = "is missing, and needed for what is fetched over http";
                return Err(self.wrong("sha256", problem));
            }
            _ if !is_remote(&url) && file_url::path(&url).is_none() => {
                let problem = "must be an `https://`, `http://` or `file:///` URL";
                return Err(self.wrong("url", problem));
            }
            _ => {}
        }
        let uid = self.number("uid")?.map(u32::try_from).transpose();
        Ok(Entry {
            name,
            version,
            arch: self
                .text("arch")?
                .map(|arch| canonical_arch(&arch).to_owned()),
            primary,
            format,
            url,
            checksum: sha256.or(if is_legacy { md5 } else { None }),
            size: self.number("size")?,
            uid: uid.map_err(|_| self.wrong("uid", "is not the number of a user"))?,
        })
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

pub(super) fn is_remote(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// A machine's name as the lists have it.
fn canonical_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        arch => arch,
    }
}

/// This machine, as the lists name it.
pub(super) fn this_arch() -> &'static str {
    canonical_arch(std::env::consts::ARCH)
}

/// A URL as it may be shown: without a query, a fragment, a user or a password.
pub(super) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    hex::decode(text)?.try_into().ok()
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(bytes) => write!(f, "sha256 {}", hex::encode(bytes)),
            Self::Md5(bytes) => write!(f, "md5 {}", hex::encode(bytes)),
        }
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("arch", &self.arch)
            .field("primary", &self.primary)
            .field("format", &self.format)
            .field("url", &shown(&self.url))
            .field("checksum", &self.checksum)
            .field("size", &self.size)
            .field("uid", &self.uid)
            .finish()
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
