//! Where the pages lead to. A page of the book leads nowhere outside of it: what is not in `docs`
//! is not in the book, and the same link has to work there and in the repository.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// The links and pictures of a page, each with its line, from 1.
pub(crate) fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line;
        while let Some(at) = rest.find("](") {
            let target = &rest[at + 2..];
            let end = target.find(')').unwrap_or(target.len());
            links.push((number, &target[..end]));
            rest = &target[end..];
        }
    }
    links
}

/// What is wrong with a link.
pub(crate) fn fault(top: &Path, page: &str, text: &str, link: &str) -> Option<String> {
    if link.starts_with("https://") {
        return None;
    }
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    if path.is_empty() {
        return no_heading(text, heading);
    }
    let target = plain(&Path::new(page).parent()?.join(path));
    if page.starts_with("docs/") && !target.starts_with("docs") {
        return Some("it leads out of the book".to_owned());
    }
    let found = top.join(&target);
    // The repository shows what is in a folder, the book does not.
    let is_shown = found.is_file() || (found.is_dir() && !page.starts_with("docs/"));
    if !is_shown {
        return Some("there is no such file".to_owned());
    }
    if heading.is_empty() {
        return None;
    }
    no_heading(&fs::read_to_string(found).ok()?, heading)
}

fn no_heading(text: &str, heading: &str) -> Option<String> {
    let mut titles = prose(text).filter_map(|(_, line)| line.strip_prefix('#'));
    let is_there = titles.any(|title| anchor(title.trim_start_matches('#').trim()) == heading);
    (!is_there).then(|| "there is no such heading".to_owned())
}

/// The name by which GitHub and mdBook know a heading.
fn anchor(title: &str) -> String {
    title
        .to_lowercase()
        .chars()
        .filter_map(|char| match char {
            ' ' => Some('-'),
            '-' | '_' => Some(char),
            char => char.is_alphanumeric().then_some(char),
        })
        .collect()
}

/// The lines that are no code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// A path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use super::*;

    #[test]
    fn links_are_found_in_prose_alone() {
        let page = "[a](b.md) and ![c](d.svg)\n```\n[e](f)\n```\n[g](#h)\n";
        assert_eq!(links(page), [(1, "b.md"), (1, "d.svg"), (5, "#h")]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        fs::create_dir_all(top.join("docs/howto")).unwrap();
        for (name, text) in [
            ("README.md", ""),
            ("docs/a.md", "# A `word`, and: more\n"),
            ("docs/howto/b.md", ""),
        ] {
            let mut file = File::create(top.join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        for (page, link, is_fault) in [
            ("docs/howto/b.md", "../a.md", false),
            ("docs/howto/b.md", "../a.md#a-word-and-more", false),
            ("docs/howto/b.md", "../a.md#b", true),
            ("docs/howto/b.md", "a.md", true),
            ("docs/howto/b.md", "../../README.md", true),
            ("docs/a.md", "#there", false),
            ("docs/a.md", "#nowhere", true),
            ("docs/a.md", "howto", true),
            ("docs/a.md", "https://example.com/x", false),
            ("README.md", "docs/a.md", false),
            ("README.md", "docs/howto", false),
        ] {
            let fault = fault(top, page, "## There\n", link);
            assert_eq!(fault.is_some(), is_fault, "{page} {link}: {fault:?}");
        }
    }
}
