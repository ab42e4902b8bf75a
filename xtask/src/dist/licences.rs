//! Whose work is in the package, and under which licences.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::Value;

use super::{PROGRAMS, output};

/// hsup's own, as Debian wants it.
pub(super) fn own(root: &Path) -> anyhow::Result<Vec<u8>> {
    let text = |name: &str| {
        let bytes = super::read(&root.join(name))?;
        String::from_utf8(bytes).with_context(|| format!("{name} is no text"))
    };
    let (mit, apache) = (text("LICENSE-MIT")?, text("LICENSE-APACHE")?);
    let both = format!(
        "hsup may be used under the terms of the Apache License 2.0 or of the MIT licence, at your\n\
         choice. What it is built with is in LICENSES-OF-OTHERS.gz.\n\n{mit}\n\n{apache}"
    );
    Ok(both.into_bytes())
}

/// A crate of somebody else's.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Other {
    name: String,
    version: String,
    licence: String,
    /// Where its sources are.
    folder: PathBuf,
}

/// Every crate that is in a program, with its licence and the texts that come with it.
pub(super) fn of_others() -> anyhow::Result<String> {
    // Packages are made for the machine's own kind.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let what = [
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
    ];
    let metadata = output("cargo", &[&what[..], &[&target]].concat())?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("failed to read what cargo metadata printed")?;
    let mut crates = Vec::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for other in others(&metadata) {
        let who = format!("{} {}", other.name, other.version);
        for text in texts_in(&other.folder)? {
            texts.entry(text).or_default().insert(who.clone());
        }
        crates.push(format!("{who}: {}\n", other.licence));
    }
    let mut all = String::from("hsup is built with these crates:\n\n");
    all.extend(crates);
    for (text, whose) in texts {
        let whose: Vec<_> = whose.into_iter().collect();
        let line = "-".repeat(80);
        write!(
            all,
            "\n{line}\n{}:\n\n{}\n",
            whose.join(", "),
            text.trim_end()
        )
        .expect("writing to a string cannot fail");
    }
    Ok(all)
}

/// What the programs are made of, and is not ours: no tools of the build, no tests.
fn others(metadata: &Value) -> BTreeSet<Other> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata["packages"]);
    let nodes = list(&metadata["resolve"]["nodes"]);
    let nodes: BTreeMap<_, _> = nodes.iter().map(|node| (text(&node["id"]), node)).collect();
    let is_program = |package: &&Value| {
        let name = package["name"].as_str();
        package["source"].is_null() && PROGRAMS.iter().any(|(program, _)| name == Some(program))
    };
    let mut next: Vec<_> = packages
        .iter()
        .filter(is_program)
        .map(|p| text(&p["id"]))
        .collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = next.pop() {
        let Some(node) = nodes.get(&id).filter(|_| reached.insert(id.clone())) else {
            continue;
        };
        for dependency in list(&node["deps"]) {
            let is_linked = |kind: &Value| kind["kind"].is_null();
            if list(&dependency["dep_kinds"]).iter().any(is_linked) {
                next.push(text(&dependency["pkg"]));
            }
        }
    }
    let is_others =
        |package: &&Value| !package["source"].is_null() && reached.contains(&text(&package["id"]));
    let others = packages.iter().filter(is_others).map(|package| Other {
        name: text(&package["name"]),
        version: text(&package["version"]),
        licence: package["license"]
            .as_str()
            .unwrap_or("see its text")
            .to_owned(),
        folder: Path::new(&text(&package["manifest_path"])).with_file_name(""),
    });
    others.collect()
}

fn texts_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let what = || format!("failed to read `{}`", folder.display());
    let mut texts = Vec::new();
    for found in folder.read_dir().with_context(what)? {
        let path = found.with_context(what)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_uppercase();
        let is_licence = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"]
            .iter()
            .any(|word| name.starts_with(word));
        if is_licence && path.is_file() {
            texts.push(String::from_utf8_lossy(&super::read(&path)?).replace('\r', ""));
        }
    }
    texts.sort();
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_linked_is_named_with_a_text_and_a_tool_of_tests_is_not() {
        let all = of_others().unwrap();
        let names = |name: &str| {
            all.lines()
                .any(|line| line.starts_with(&format!("{name} ")))
        };
        for name in ["tokio", "libcontainer", "bollard", "clap"] {
            assert!(names(name), "{name}");
        }
        for name in ["hsup-core", "tempdir", "protox", "fuzz"] {
            assert!(!names(name), "{name}");
        }
        assert!(all.contains("Permission is hereby granted, free of charge"));
    }
}
