//! What may come into the build: the lists of `deny.toml`, checked with nothing but cargo.
//!
//! `cargo deny check licenses bans sources` says the same and more, where somebody has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];
/// The workspace, and what is built beside it.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "fuzz/Cargo.toml"];
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `deny.toml` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Policy {
    /// Licences that force nothing on hsup.
    allowed: BTreeSet<String>,
    /// More licences, each of one crate alone.
    exceptions: BTreeMap<String, BTreeSet<String>>,
    /// The licences of crates that only have a file with its text.
    clarified: BTreeMap<String, String>,
    /// Crates that the build must do without.
    banned: BTreeSet<String>,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deny.toml");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    let policy = policy(&text);
    ensure!(
        !policy.allowed.is_empty() && !policy.banned.is_empty(),
        "`{}` allows no licence, or bans no crate",
        path.display()
    );
    let mut problems = BTreeSet::new();
    let targets = TARGETS.into_iter();
    let builds = targets.flat_map(|target| MANIFESTS.map(|manifest| (target, manifest)));
    for (target, manifest) in builds {
        let packages = packages(target, &path.with_file_name(manifest))?;
        problems.extend(packages.iter().flat_map(|package| policy.problems(package)));
    }
    let problems: Vec<_> = problems.into_iter().collect();
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// A package of the build.
#[derive(Debug)]
struct Package {
    name: String,
    licence: Option<String>,
    /// None within the workspace.
    source: Option<String>,
}

#[expect(clippy::disallowed_methods, reason = "cargo is no dyno")]
fn packages(target: &str, manifest: &Path) -> anyhow::Result<Vec<Package>> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", target])
        .arg("--manifest-path")
        .arg(manifest)
        .output()
        .context("failed to run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .context("failed to read what cargo metadata printed")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .map(|package| {
            Ok(Package {
                name: text(&package["name"]).context("a package without a name")?,
                licence: text(&package["license"]),
                source: text(&package["source"]),
            })
        })
        .collect()
}

/// Reads the lists out of `deny.toml`; their order and their layout are free, but each entry is
/// on one line, and of a crate its name comes first.
fn policy(text: &str) -> Policy {
    let mut policy = Policy::default();
    let mut section = "";
    let mut list = "";
    let mut named = String::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let bare = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(name) = bare.filter(|_| list.is_empty()) {
            section = name;
            named.clear();
            continue;
        }
        if let Some((name, rest)) = line.split_once('=')
            && rest.trim_start().starts_with('[')
        {
            list = name.trim();
        }
        let mut quoted = line.split('"').skip(1).step_by(2).map(str::to_owned);
        let key = line.split('=').next().unwrap_or_default().trim();
        match (section, list, key) {
            ("licenses", "allow", _) => policy.allowed.extend(quoted),
            ("bans", "deny", _) => policy.banned.extend(quoted.next()),
            ("[licenses.exceptions]" | "[licenses.clarify]", _, "crate") => {
                named = quoted.next().unwrap_or_default();
            }
            ("[licenses.exceptions]", "allow", _) => {
                let allowed = policy.exceptions.entry(named.clone()).or_default();
                allowed.extend(quoted);
            }
            ("[licenses.clarify]", _, "expression") => {
                let licence = quoted.next().map(|licence| (named.clone(), licence));
                policy.clarified.extend(licence);
            }
            _ => {}
        }
        if line.ends_with(']') {
            list = "";
        }
    }
    policy
}

impl Policy {
    /// What is wrong with a package, if it is not ours.
    fn problems(&self, package: &Package) -> Vec<String> {
        let Some(source) = &package.source else {
            return Vec::new();
        };
        let name = &package.name;
        let mut problems = Vec::new();
        match package.licence.as_ref().or(self.clarified.get(name)) {
            Some(licence) if self.allows(name, licence) => {}
            Some(licence) => problems.push(format!("{name}: the licence {licence}")),
            None => problems.push(format!("{name}: no licence")),
        }
        if self.banned.contains(name) {
            problems.push(format!("{name}: banned"));
        }
        if source != CRATES_IO {
            problems.push(format!("{name}: from {source}"));
        }
        problems
    }

    /// Whether a crate's SPDX expression can be met with licences that it may have. `/` is an
    /// old way to write OR.
    fn allows(&self, name: &str, expression: &str) -> bool {
        let spaced = expression
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace('/', " OR ");
        let words = spaced.split_whitespace().rev().collect();
        let mut expression = Expression {
            words,
            allowed: [Some(&self.allowed), self.exceptions.get(name)],
        };
        expression.any() == Some(true) && expression.words.is_empty()
    }
}

/// An SPDX expression, read from its beginning.
struct Expression<'a> {
    /// Its last word first.
    words: Vec<&'a str>,
    /// Of everybody, and of the one crate.
    allowed: [Option<&'a BTreeSet<String>>; 2],
}

impl Expression<'_> {
    /// `A OR B`, of which AND binds its sides together first.
    fn any(&mut self) -> Option<bool> {
        let mut met = self.every()?;
        while self.words.last() == Some(&"OR") {
            self.words.pop();
            met |= self.every()?;
        }
        Some(met)
    }

    fn every(&mut self) -> Option<bool> {
        let mut met = self.one()?;
        while self.words.last() == Some(&"AND") {
            self.words.pop();
            met &= self.one()?;
        }
        Some(met)
    }

    fn one(&mut self) -> Option<bool> {
        let word = self.words.pop()?;
        if word == "(" {
            let met = self.any()?;
            return (self.words.pop() == Some(")")).then_some(met);
        }
        if self.words.last() != Some(&"WITH") {
            return Some(self.has(word));
        }
        self.words.pop();
        let licence = format!("{word} WITH {}", self.words.pop()?);
        Some(self.has(&licence))
    }

    fn has(&self, licence: &str) -> bool {
        let mut allowed = self.allowed.iter().flatten();
        allowed.any(|licences| licences.contains(licence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists() -> Policy {
        policy(
            "# [licenses]\n[graph]\ntargets = [\"x\"]\n[licenses]\nallow = [\n  \"MIT\",\n  \
             \"Apache-2.0 WITH LLVM-exception\", # why\n]\n[licenses.private]\nignore = true\n\
             # Why.\n[[licenses.exceptions]]\ncrate = \"shared\"\nallow = [\"MPL-2.0\"]\n\
             [[licenses.exceptions]]\ncrate = \"more\"\nallow = [\n  \"CC0-1.0\",\n]\n\
             [[licenses.clarify]]\ncrate = \"textual\"\nexpression = \"MIT\"\n\
             license-files = [{ path = \"LICENSE\", hash = 0xbd0eed23 }]\n\
             [bans]\nmultiple-versions = \"warn\"\ndeny = [\n    \
             { crate = \"cmake\", reason = \"the \\\"build\\\"\" },\n]\n",
        )
    }

    #[test]
    fn the_lists_are_read() {
        let expected = Policy {
            allowed: ["MIT", "Apache-2.0 WITH LLVM-exception"]
                .map(str::to_owned)
                .into(),
            exceptions: [("shared", "MPL-2.0"), ("more", "CC0-1.0")]
                .map(|(name, licence)| (name.to_owned(), [licence.to_owned()].into()))
                .into(),
            clarified: [("textual".to_owned(), "MIT".to_owned())].into(),
            banned: ["cmake".to_owned()].into(),
        };
        assert_eq!(lists(), expected);
    }

    #[test]
    fn an_expression_is_met_by_what_is_allowed() {
        let policy = lists();
        for met in [
            "MIT",
            "GPL-3.0 OR MIT",
            "GPL-3.0/MIT",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
            "(GPL-3.0 OR MIT) AND MIT",
        ] {
            assert!(policy.allows("any", met), "{met}");
        }
        for unmet in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT AND (GPL-3.0 OR LGPL-3.0)",
            "Apache-2.0",
            "MIT OR",
            "(MIT",
            "MIT MIT",
            "",
        ] {
            assert!(!policy.allows("any", unmet), "{unmet}");
        }
    }

    #[test]
    fn a_package_is_judged_by_licence_name_and_source() {
        let package = |name: &str, licence: &str, source: Option<&str>| Package {
            name: name.to_owned(),
            licence: Some(licence.to_owned()).filter(|text| !text.is_empty()),
            source: source.map(str::to_owned),
        };
        let judged = |package| lists().problems(&package).len();
        assert_eq!(judged(package("ours", "", None)), 0);
        assert_eq!(judged(package("good", "MIT", Some(CRATES_IO))), 0);
        assert_eq!(judged(package("cmake", "MIT", Some(CRATES_IO))), 1);
        assert_eq!(
            judged(package("cmake", "", Some("git+https://example.org"))),
            3
        );
    }

    #[test]
    fn an_exception_is_of_one_crate_alone() {
        let policy = lists();
        assert!(policy.allows("shared", "MPL-2.0 OR GPL-3.0"));
        assert!(!policy.allows("shared", "MPL-2.0 AND GPL-3.0"));
        assert!(!policy.allows("more", "MPL-2.0"));
        let unnamed = |name: &str| Package {
            name: name.to_owned(),
            licence: None,
            source: Some(CRATES_IO.to_owned()),
        };
        assert_eq!(policy.problems(&unnamed("textual")).len(), 0);
        assert_eq!(policy.problems(&unnamed("shared")).len(), 1);
    }
}
