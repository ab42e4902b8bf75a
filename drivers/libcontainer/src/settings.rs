//! What an operator may set: options of the command line, and the original's variables.
//!
//! Everything here comes from whoever started the driver, who is root; no call can change it.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use hsup_driver_kit::program::Given;
use thiserror::Error;

pub(crate) const WORK_DIR: &str = "--work-dir";
pub(crate) const RUN_DIR: &str = "--run-dir";
pub(crate) const STACKS_MANIFEST: &str = "--stacks-manifest";
pub(crate) const ALLOW_BIND: &str = "--allow-bind";
pub(crate) const KEEP_SLUGS: &str = "--keep-slugs";
pub(crate) const TMP_SIZE: &str = "--tmp-size";
pub(crate) const CGROUP_PARENT: &str = "--cgroup-parent";

/// The same, for a driver that hsup starts, which has no command line of its own.
pub(crate) const WORK_DIR_VARIABLE: &str = "LIBCONTAINER_WORK_DIR";
const RUN_DIR_VARIABLE: &str = "LIBCONTAINER_RUN_DIR";
const STACKS_MANIFEST_VARIABLE: &str = "LIBCONTAINER_STACKS_MANIFEST";
const ALLOW_BIND_VARIABLE: &str = "LIBCONTAINER_ALLOW_BIND";
const KEEP_SLUGS_VARIABLE: &str = "LIBCONTAINER_KEEP_SLUGS";
const TMP_SIZE_VARIABLE: &str = "LIBCONTAINER_DYNO_TMP_SIZE";
const CGROUP_PARENT_VARIABLE: &str = "LIBCONTAINER_CGROUP_PARENT";

/// The original's.
pub(crate) const DEFAULT_WORK_DIR: &str = "/var/lib/hsup";
const DEFAULT_KEEP_SLUGS: usize = 5;
const DEFAULT_TMP_SIZE: u64 = 512 << 20;
const DEFAULT_CGROUP_PARENT: &str = "/hsup";

/// A setting is not what it should be.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SettingsError {
    #[error("{name} is `{value}`, which is not {wanted}")]
    Malformed {
        name: &'static str,
        value: String,
        wanted: &'static str,
    },
}

/// What was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) work_dir: PathBuf,
    pub(crate) run_dir: Option<PathBuf>,
    pub(crate) stacks_manifest: Option<String>,
    /// Below which folders of the host a dyno may see something.
    pub(crate) bind_prefixes: Vec<PathBuf>,
    /// How many slugs are kept of each app.
    pub(crate) keep_slugs: usize,
    /// How large a dyno's `/tmp` and `/var/tmp` may become, each, in bytes.
    pub(crate) tmp_size: u64,
    /// The cgroup below which each dyno has its own.
    pub(crate) cgroup_parent: String,
}

impl Settings {
    /// From the command line, and from variables where that is silent.
    pub(crate) fn new(
        given: &Given,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, SettingsError> {
        let value = |option, variable| {
            let of_option = given.value(option).map(|value| (option, value.to_owned()));
            let named = |value: OsString| (variable, value);
            of_option.or_else(|| env(variable).filter(|value| !value.is_empty()).map(named))
        };
        let text = |option, variable| {
            value(option, variable)
                .map(|(name, value)| utf8(name, value))
                .transpose()
        };
        let mut bind_prefixes: Vec<_> = given.values(ALLOW_BIND).map(PathBuf::from).collect();
        if let Some(list) = env(ALLOW_BIND_VARIABLE) {
            bind_prefixes
                .extend(std::env::split_paths(&list).filter(|path| path != OsStr::new("")));
        }
        for prefix in &bind_prefixes {
            if !prefix.is_absolute() {
                return Err(SettingsError::Malformed {
                    name: ALLOW_BIND,
                    value: prefix.display().to_string(),
                    wanted: "an absolute path",
                });
            }
        }
        Ok(Self {
            work_dir: value(WORK_DIR, WORK_DIR_VARIABLE)
                .map_or_else(|| DEFAULT_WORK_DIR.into(), |(_, value)| value.into()),
            run_dir: value(RUN_DIR, RUN_DIR_VARIABLE).map(|(_, value)| value.into()),
            stacks_manifest: text(STACKS_MANIFEST, STACKS_MANIFEST_VARIABLE)?
                .map(|(_, value)| value),
            bind_prefixes,
            keep_slugs: text(KEEP_SLUGS, KEEP_SLUGS_VARIABLE)?
                .map_or(Ok(DEFAULT_KEEP_SLUGS), count)?,
            tmp_size: text(TMP_SIZE, TMP_SIZE_VARIABLE)?.map_or(Ok(DEFAULT_TMP_SIZE), size)?,
            cgroup_parent: text(CGROUP_PARENT, CGROUP_PARENT_VARIABLE)?
                .map_or_else(|| Ok(DEFAULT_CGROUP_PARENT.to_owned()), group)?,
        })
    }
}

type Named = (&'static str, String);

fn utf8(name: &'static str, value: OsString) -> Result<Named, SettingsError> {
    match value.into_string() {
        Ok(text) => Ok((name, text)),
        Err(value) => Err(SettingsError::Malformed {
            name,
            value: value.to_string_lossy().into_owned(),
            wanted: "UTF-8",
        }),
    }
}

fn count((name, value): Named) -> Result<usize, SettingsError> {
    match value.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(SettingsError::Malformed {
            name,
            value,
            wanted: "a number from 1 on",
        }),
    }
}

/// Bytes, or with `k`, `m` or `g` that many times 1024.
fn size((name, value): Named) -> Result<u64, SettingsError> {
    let lower = value.to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        _ => (lower.as_str(), 0),
    };
    let number = digits.parse::<u64>().ok();
    match number.and_then(|number| number.checked_mul(1 << shift)) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(SettingsError::Malformed {
            name,
            value,
            wanted: "a size as 512m or 2g",
        }),
    }
}

fn group((name, value): Named) -> Result<String, SettingsError> {
    let plain = value
        .strip_prefix('/')
        .is_some_and(|path| path.split('/').all(is_plain_name));
    if plain {
        return Ok(value);
    }
    Err(SettingsError::Malformed {
        name,
        value,
        wanted: "the path of a cgroup, as /hsup",
    })
}

fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn with(variable: &str, value: &str) -> Result<Settings, SettingsError> {
        Settings::new(&Given::default(), |name| {
            (name == variable).then(|| value.into())
        })
    }

    #[test]
    fn without_anything_it_is_as_the_original() {
        let settings = with("", "").unwrap();
        assert_eq!(settings.work_dir, PathBuf::from("/var/lib/hsup"));
        assert!(settings.bind_prefixes.is_empty());
        assert_eq!(settings.cgroup_parent, "/hsup");
    }

    #[test_case("512m" => Some(512 << 20))]
    #[test_case("2G" => Some(2 << 30))]
    #[test_case("4096" => Some(4096))]
    #[test_case("0" => None)]
    #[test_case("1t" => None)]
    #[test_case("m" => None)]
    #[test_case("99999999999g" => None)]
    fn sizes(text: &str) -> Option<u64> {
        with(TMP_SIZE_VARIABLE, text)
            .ok()
            .map(|settings| settings.tmp_size)
    }

    #[test_case("/hsup" => true)]
    #[test_case("/system.slice/hsup.service/dynos" => true)]
    #[test_case("hsup" => false)]
    #[test_case("/" => false)]
    #[test_case("/a/../b" => false)]
    #[test_case("/a b" => false)]
    fn cgroup_parents(text: &str) -> bool {
        with(CGROUP_PARENT_VARIABLE, text).is_ok()
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = with(KEEP_SLUGS_VARIABLE, "none").unwrap_err().to_string();
        assert_eq!(
            error,
            "LIBCONTAINER_KEEP_SLUGS is `none`, which is not a number from 1 on"
        );
        let error = with(ALLOW_BIND_VARIABLE, "srv").unwrap_err().to_string();
        assert!(error.contains("absolute"), "{error}");
    }
}
