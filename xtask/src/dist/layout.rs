//! What is in the package, and where: Debian's places.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, ensure};

use super::{
    archive::{self, Size},
    licences, manual,
};

/// A file of the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Below the root.
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) content: Content,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    File(Vec<u8>),
    /// To what it leads.
    Link(String),
    Folder,
}

impl Entry {
    pub(super) fn file(path: impl Into<String>, mode: u32, bytes: Vec<u8>) -> Self {
        Self {
            path: path.into(),
            mode,
            content: Content::File(bytes),
        }
    }

    pub(super) fn link(path: impl Into<String>, to: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            mode: 0o777,
            content: Content::Link(to.into()),
        }
    }

    pub(super) fn folder(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            mode: 0o755,
            content: Content::Folder,
        }
    }
}

const UNITS: [&str; 4] = [
    "hsup@.service",
    "hsup@.socket",
    "hsup-driver-libcontainer.service",
    "hsup-driver-libcontainer.socket",
];
const DOC: &str = "usr/share/doc/hsup";
/// What stands at the top of the sources and is for readers.
const TEXTS: [&str; 4] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "README.md",
    "SECURITY.md",
];

/// And folders of them, and of what they name, each without those in it.
const FOLDERS: [&str; 12] = [
    "docs",
    "docs/howto",
    "docs/pictures",
    "docs/schemas",
    "examples/control-directory",
    "examples/drivers/node",
    "examples/drivers/python",
    "examples/drivers/rust",
    "examples/drivers/rust/src",
    "examples/hello",
    "proto/proto/hsup/control/v1",
    "proto/proto/hsup/driver/v1",
];

/// All of it, folders before what is in them; `helps` are those of programs whose pages are made
/// of that.
pub(super) fn entries(
    root: &Path,
    programs: &[(&str, Vec<u8>)],
    helps: &[(&str, String)],
) -> anyhow::Result<Vec<Entry>> {
    let mut files = Vec::new();
    for (name, bytes) in programs {
        files.push(Entry::file(format!("usr/bin/{name}"), 0o755, bytes.clone()));
    }
    // hsup acts as it, under its name.
    files.push(Entry::link("usr/bin/hsup-driver-simple", "hsup"));
    let read = |path: &str| super::read(&root.join(path));
    for unit in UNITS {
        let text = read(&format!("packaging/{unit}"))?;
        files.push(Entry::file(
            format!("usr/lib/systemd/system/{unit}"),
            0o644,
            text,
        ));
    }
    files.push(Entry::file(
        "etc/default/hsup-driver-libcontainer",
        0o644,
        read("packaging/hsup-driver-libcontainer.default")?,
    ));
    files.push(Entry::file(
        "etc/hsup/hsup.toml",
        0o644,
        read("packaging/hsup.toml")?,
    ));
    files.push(Entry::folder("etc/hsup/hsup.d"));
    // The variables of apps have secrets in them.
    files.push(Entry {
        mode: 0o700,
        ..Entry::folder("etc/hsup/apps")
    });
    let example = read("packaging/app.env.example")?;
    files.push(Entry::file(
        format!("{DOC}/examples/app.env"),
        0o644,
        example,
    ));
    for text in TEXTS {
        files.push(Entry::file(format!("{DOC}/{text}"), 0o644, read(text)?));
    }
    for folder in FOLDERS {
        files.extend(copied(&root.join(folder), &format!("{DOC}/{folder}"))?);
    }
    files.push(Entry::file(
        format!("{DOC}/copyright"),
        0o644,
        licences::own(root)?,
    ));
    let others = archive::gzip(licences::of_others()?.as_bytes(), Size::Small)?;
    files.push(Entry::file(
        format!("{DOC}/LICENSES-OF-OTHERS.gz"),
        0o644,
        others,
    ));
    files.extend(manual::completions());
    files.extend(manual::pages(helps)?);
    with_folders(files)
}

/// The files of a folder, without those in folders of its own.
fn copied(folder: &Path, to: &str) -> anyhow::Result<Vec<Entry>> {
    use std::os::unix::fs::PermissionsExt as _;
    let what = || format!("failed to read `{}`", folder.display());
    let mut copied = Vec::new();
    for found in folder.read_dir().with_context(what)? {
        let found = found.with_context(what)?;
        let metadata = found.metadata().with_context(what)?;
        let name = found.file_name();
        let name = name.to_str().with_context(what)?;
        if metadata.is_file() && !name.starts_with('.') {
            // What else the mode says is of whoever has the sources.
            let is_program = metadata.permissions().mode() & 0o100 != 0;
            let mode = if is_program { 0o755 } else { 0o644 };
            copied.push(Entry::file(
                format!("{to}/{name}"),
                mode,
                super::read(&found.path())?,
            ));
        }
    }
    Ok(copied)
}

/// The same in their order, and the folders that they are in.
fn with_folders(files: Vec<Entry>) -> anyhow::Result<Vec<Entry>> {
    let mut all = BTreeMap::new();
    for file in files {
        let mut folder = Path::new(&file.path);
        while let Some(above) = folder.parent().filter(|above| *above != Path::new("")) {
            let path = above.display().to_string();
            all.entry(path.clone())
                .or_insert_with(|| Entry::folder(path));
            folder = above;
        }
        let path = file.path.clone();
        ensure!(
            all.insert(path.clone(), file).is_none(),
            "`{path}` is there twice"
        );
    }
    Ok(all.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them() {
        let files = vec![
            Entry::file("usr/share/b", 0o644, Vec::new()),
            Entry::link("usr/a", "b"),
        ];
        let all = with_folders(files.clone()).unwrap();
        let paths: Vec<_> = all.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["usr", "usr/a", "usr/share", "usr/share/b"]);
        let twice = [files.clone(), files].concat();
        assert!(with_folders(twice).is_err());
    }

    /// What the units, the man pages and the Debian scripts name must be in the package.
    #[test]
    fn the_package_has_what_its_units_start() {
        let programs = super::super::PROGRAMS.map(|(_, name)| (name, b"#!/bin/sh\n".to_vec()));
        let helps = super::super::HELPS.map(|name| (name, "Runs.\n".to_owned()));
        let entries = entries(&super::super::root(), &programs, &helps).unwrap();
        let has = |path: &str| entries.iter().any(|entry| entry.path == path);
        for entry in &entries {
            let Content::File(bytes) = &entry.content else {
                continue;
            };
            let text = String::from_utf8_lossy(bytes);
            let is_unit = entry.path.starts_with("usr/lib/systemd/");
            for line in text.lines().filter(|_| is_unit) {
                if let Some(command) = line.strip_prefix("ExecStart=/") {
                    let program = command.split(' ').next().unwrap();
                    assert!(has(program), "{}: {program}", entry.path);
                }
                let pages = line.strip_prefix("Documentation=").unwrap_or_default();
                for page in pages
                    .split(' ')
                    .filter_map(|page| page.strip_prefix("man:"))
                {
                    let page = page.trim_end_matches("(1)");
                    let path = format!("usr/share/man/man1/{page}.1.gz");
                    assert!(has(&path), "{}: {path}", entry.path);
                }
                for path in pages
                    .split(' ')
                    .filter_map(|page| page.strip_prefix("file:///"))
                {
                    assert!(has(path), "{}: {path}", entry.path);
                }
            }
        }
        let is_page = |path: &str| Path::new(path).extension().is_some_and(|kind| kind == "md");
        let page = |entry: &Entry| match &entry.content {
            Content::File(bytes) if is_page(&entry.path) => {
                let text = String::from_utf8(bytes.clone()).unwrap();
                Some((entry.path.clone(), text))
            }
            _ => None,
        };
        let pages: Vec<_> = entries.iter().filter_map(page).collect();
        let mut seen = 0;
        for (page, text) in &pages {
            let leads = links(text).map(|link| beside(page, link));
            let named = named(text).map(|path| format!("{DOC}/{path}"));
            for path in leads.chain(named) {
                seen += 1;
                assert!(has(&path), "{page}: {path}");
            }
        }
        assert!(seen > 99, "the links were not found: {seen}");
        let conffiles = include_str!("../../../packaging/debian/conffiles");
        for path in conffiles.lines() {
            assert!(has(&path[1..]), "{path}");
        }
    }

    /// The files that a page leads to, pictures among them.
    fn links(text: &str) -> impl Iterator<Item = &str> {
        let mut is_code = false;
        let prose = text.lines().filter(move |line| {
            let is_fence = line.starts_with("```");
            is_code ^= is_fence;
            !is_code && !is_fence
        });
        let links = prose.flat_map(|line| line.split("](").skip(1));
        let paths = links.filter_map(|rest| rest.split([')', '#']).next());
        paths.filter(|path| !path.is_empty() && !path.starts_with("https:"))
    }

    /// The examples and the protocols that a page names, in its commands and beside them.
    fn named(text: &str) -> impl Iterator<Item = &str> {
        let is_path = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        let words = text.split(move |c| !is_path(c));
        let words = words.map(|word| word.trim_end_matches(['.', '/']));
        words.filter(|word| {
            ["examples/", "proto/proto/"]
                .iter()
                .any(|top| word.starts_with(top))
        })
    }

    /// Where a link of a page leads to.
    fn beside(page: &str, link: &str) -> String {
        let mut path: Vec<_> = page.split('/').collect();
        path.pop();
        for part in link.trim_end_matches('/').split('/') {
            match part {
                ".." => {
                    path.pop();
                }
                part => path.push(part),
            }
        }
        path.join("/")
    }
}
