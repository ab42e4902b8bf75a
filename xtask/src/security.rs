//! `SECURITY.md` says what the sources say: every test that it names is one, and every file with
//! unsafe code is in its list.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files of the workspace below a folder, with what is in them.
fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let is_ours = !["target", "node_modules"]
            .map(OsStr::new)
            .contains(&&*entry.file_name());
        if kind.is_dir() && is_ours {
            sources(&path, found);
        } else if path.extension() == Some(OsStr::new("rs")) {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

/// What stands between these in the lines of the table.
fn named(table: &str, sign: char) -> Vec<&str> {
    let cells = table.lines().filter_map(|line| line.rsplit('|').nth(1));
    cells
        .flat_map(|cell| cell.split(sign).skip(1).step_by(2))
        .collect()
}

fn section<'a>(text: &'a str, title: &str) -> &'a str {
    let begin = text.find(title).unwrap();
    let rest = &text[begin + title.len()..];
    rest.split("\n## ").next().unwrap()
}

#[test]
fn every_test_that_it_names_is_one() {
    let text = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let table = section(&text, "## Who can reach what");
    let mut all = Vec::new();
    sources(&root(), &mut all);
    let (tests, cases) = (named(table, '`'), named(table, '"'));
    assert!(tests.len() > 20 && cases.len() > 8, "{tests:?} {cases:?}");
    for test in tests {
        let begin = format!("fn {test}(");
        assert!(
            all.iter().any(|(_, text)| text.contains(&begin)),
            "no test `{test}`"
        );
    }
    for case in cases {
        let title = format!("\"{case}\",");
        assert!(
            all.iter().any(|(_, text)| text.contains(&title)),
            "no case \"{case}\""
        );
    }
}

#[test]
fn every_file_with_unsafe_code_is_listed() {
    let text = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let list = section(&text, "## Unsafe code");
    let listed: BTreeSet<&str> = list
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let mut all = Vec::new();
    sources(&root(), &mut all);
    let has_unsafe = |text: &str| {
        let words: String = text.split_whitespace().collect();
        words.contains("expect(unsafe_code,")
    };
    let found: BTreeSet<String> = all
        .iter()
        .filter(|(_, text)| has_unsafe(text))
        .filter_map(|(path, _)| {
            let path = path.strip_prefix(root()).ok()?.to_str()?.to_owned();
            // What runs for people; tests and chores do not.
            let is_product =
                path.contains("/src/") && !["tests", "xtask"].iter().any(|of| path.starts_with(of));
            is_product.then_some(path)
        })
        .collect();
    assert!(
        listed.iter().copied().eq(found.iter().map(String::as_str)),
        "{listed:?}\n{found:?}"
    );
}
