//! What may come into the build: the lists of `deny.toml`, checked with nothing but cargo.
//!
//! `cargo deny check licenses bans sources` says the same and more, where somebody has it.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};
use serde_json::Value;

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `deny.toml` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Policy {
    /// Licences that force nothing on hsup.
    allowed: BTreeSet<String>,
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
    for target in TARGETS {
        let packages = packages(target)?;
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
fn packages(target: &str) -> anyhow::Result<Vec<Package>> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", target])
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

/// Reads the two lists out of `deny.toml`; their order and their layout are free, but each
/// entry is on one line.
fn policy(text: &str) -> Policy {
    let mut policy = Policy::default();
    let mut section = "";
    let mut list = "";
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let bare = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(name) = bare.filter(|_| list.is_empty()) {
            section = name;
            continue;
        }
        if let Some((name, rest)) = line.split_once('=')
            && rest.trim_start().starts_with('[')
        {
            list = name.trim();
        }
        let mut quoted = line.split('"').skip(1).step_by(2);
        match (section, list) {
            ("licenses", "allow") => policy.allowed.extend(quoted.map(str::to_owned)),
            ("bans", "deny") => policy.banned.extend(quoted.next().map(str::to_owned)),
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
        match &package.licence {
            Some(licence) if self.allows(licence) => {}
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

    /// Whether an SPDX expression can be met with allowed licences alone. `/` is an old way to
    /// write OR.
    fn allows(&self, expression: &str) -> bool {
        let spaced = expression
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace('/', " OR ");
        let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
        self.any(&mut words) == Some(true) && words.is_empty()
    }

    /// `A OR B`, of which AND binds its sides together first.
    fn any(&self, words: &mut Vec<&str>) -> Option<bool> {
        let mut met = self.every(words)?;
        while words.last() == Some(&"OR") {
            words.pop();
            met |= self.every(words)?;
        }
        Some(met)
    }

    fn every(&self, words: &mut Vec<&str>) -> Option<bool> {
        let mut met = self.one(words)?;
        while words.last() == Some(&"AND") {
            words.pop();
            met &= self.one(words)?;
        }
        Some(met)
    }

    fn one(&self, words: &mut Vec<&str>) -> Option<bool> {
        let word = words.pop()?;
        if word == "(" {
            let met = self.any(words)?;
            return (words.pop() == Some(")")).then_some(met);
        }
        if words.last() != Some(&"WITH") {
            return Some(self.allowed.contains(word));
        }
        words.pop();
        let licence = format!("{word} WITH {}", words.pop()?);
        Some(self.allowed.contains(&licence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists() -> Policy {
        policy(
            "# [licenses]\n[graph]\ntargets = [\"x\"]\n[licenses]\nallow = [\n  \"MIT\",\n  \
             \"Apache-2.0 WITH LLVM-exception\", # why\n]\n[licenses.private]\nignore = true\n\
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
            assert!(policy.allows(met), "{met}");
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
            assert!(!policy.allows(unmet), "{unmet}");
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
}
