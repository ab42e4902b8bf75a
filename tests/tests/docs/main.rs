//! Every command that the README and the pages of `docs` show is run as it stands there, and what
//! it prints is what the page says; or the page says, in a comment before the block, why not.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod compare;
mod links;
mod page;
mod schema;
mod section;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    thread,
};

use serde_json::Value;

use crate::{
    page::{Block, Plan},
    section::Outcome,
};

/// The page that nobody writes by hand.
const WRITTEN: &str = "docs/commands.md";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The pages, by their path from the repository's top.
fn pages() -> BTreeMap<String, String> {
    let top = repository();
    let names = [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "docs",
    ];
    let mut left: Vec<_> = names.iter().map(|name| top.join(name)).collect();
    let mut pages = BTreeMap::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|kind| kind == "md") {
            let name = path.strip_prefix(&top).unwrap().display().to_string();
            pages.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
    pages
}

/// The blocks of a page that are run, by section.
fn sections(page: &str, text: &str) -> Vec<Vec<Block>> {
    let blocks = page::blocks(text).unwrap_or_else(|error| panic!("{page}:{error}"));
    let run = blocks.into_iter().filter(|block| block.plan == Plan::Run);
    let mut sections: Vec<Vec<Block>> = Vec::new();
    for block in run {
        match sections.last_mut() {
            Some(last) if last[0].section == block.section => last.push(block),
            _ => sections.push(vec![block]),
        }
    }
    sections
}

/// A page with what its commands print now.
fn written(text: &str, outcomes: &[Outcome]) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    // From its end, so that the numbers of the lines before stay what they are.
    for Outcome { step, printed, .. } in outcomes.iter().rev() {
        let after = step.line - 1 + step.command.lines().count();
        let shown = step.prints.as_deref().unwrap_or_default().lines().count();
        lines.splice(after..after + shown, printed.lines());
    }
    lines.join("\n") + "\n"
}

#[test]
#[ignore = "needs root: pages have a network, processes and a /tmp of their own"]
fn the_commands_of_the_pages_do_what_the_pages_say() {
    let mut pages = pages();
    // For whoever writes one.
    let only = env::var("HSUP_PAGE").ok();
    if let Some(only) = &only {
        pages.retain(|page, _| page == only);
    }
    // Side by side, for each waits more than it works.
    let outcomes = thread::scope(|scope| {
        let mut begun = Vec::new();
        for (page, text) in &pages {
            let sections = sections(page, text).into_iter();
            let run = |blocks| scope.spawn(move || section::run(page, blocks));
            begun.push((page, sections.map(run).collect::<Vec<_>>()));
        }
        let ended = begun.into_iter().map(|(page, sections)| {
            let ended = sections.into_iter().map(|section| section.join().unwrap());
            (page, ended.collect::<Vec<_>>())
        });
        ended.collect::<BTreeMap<_, _>>()
    });
    let run: usize = outcomes.values().map(Vec::len).sum();
    let least = if only.is_some() { 0 } else { 9 };
    assert!(run > least, "the pages were not found: {run}");

    let mut faults = Vec::new();
    for (page, sections) in outcomes {
        let mut known = Vec::new();
        for section in sections {
            match section {
                Ok(outcomes) => known.extend(outcomes),
                Err(fault) => faults.push(fault),
            }
        }
        if page == WRITTEN && env::var_os("HSUP_PAGES").is_some_and(|what| what == "write") {
            let mut file = File::create(repository().join(page)).unwrap();
            let text = written(&pages[page], &known);
            file.write_all(text.as_bytes()).unwrap();
        } else {
            faults.extend(known.iter().filter_map(|outcome| outcome.fault(page)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn the_contents_list_every_page_once() {
    let contents = fs::read_to_string(repository().join("docs/SUMMARY.md")).unwrap();
    let mut listed: Vec<String> = contents
        .lines()
        .filter_map(|line| Some(line.split_once("](")?.1.trim_end_matches(')')))
        .map(|link| format!("docs/{link}"))
        .collect();
    listed.sort();
    let pages = pages().into_keys();
    let expected: Vec<_> = pages
        .filter(|page| page.starts_with("docs/") && page != "docs/SUMMARY.md")
        .collect();
    assert_eq!(listed, expected);
}

#[test]
fn every_link_leads_somewhere() {
    let top = repository();
    let mut faults = Vec::new();
    let mut seen = 0;
    for (page, text) in pages() {
        for (line, link) in links::links(&text) {
            seen += 1;
            if let Some(fault) = links::fault(&top, &page, &text, link) {
                faults.push(format!("{page}:{line}: {link}: {fault}"));
            }
        }
    }
    assert!(seen > 99, "the links were not found: {seen}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_page_of_logs_has_every_line_that_hsup_writes() {
    let top = repository();
    let mut left = vec![top.join("hsup-core/src"), top.join("cli/src/ctl/logs.rs")];
    let (mut all, mut lines) = (BTreeSet::new(), BTreeSet::new());
    while let Some(path) = left.pop() {
        let name = path.file_stem().unwrap();
        // `hsup run` has no log.
        if ["tests", "fake", "fuzz", "run"]
            .iter()
            .any(|other| name == *other)
        {
            continue;
        }
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        } else {
            let said = words::of_source(&fs::read_to_string(&path).unwrap());
            all.extend(said.all);
            lines.extend(said.lines);
        }
    }
    let page = words::of_page(&fs::read_to_string(top.join("docs/logs.md")).unwrap());
    assert!(page.len() > 50, "the lines were not found: {page:?}");
    let missing: Vec<_> = lines.difference(&page).collect();
    assert!(missing.is_empty(), "docs/logs.md has no {missing:#?}");
    let unknown: Vec<_> = page.difference(&all).collect();
    assert!(unknown.is_empty(), "hsup does not say {unknown:#?}");
}

#[test]
fn every_control_file_that_is_shown_is_one_by_the_schema() {
    let top = repository();
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let schema = read(&top.join("docs/schemas/control.json"));
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let mut texts: Vec<(String, String)> = Vec::new();
    for example in fs::read_dir(top.join("examples/control-directory")).unwrap() {
        let path = example.unwrap().path();
        texts.push((path.display().to_string(), read(&path)));
    }
    for (page, text) in pages() {
        // What a page has `cat` write, and what it has written in a block of its own.
        let files = text
            .split("<<'END'\n")
            .skip(1)
            .map(|text| text.split("\nEND").next());
        let blocks = text
            .split("```json\n")
            .skip(1)
            .map(|text| text.split("\n```").next());
        let shown = files.chain(blocks).flatten();
        let shown = shown.filter(|text| text.contains("\"Processes\": ["));
        texts.extend(shown.map(|text| (page.clone(), text.to_owned())));
    }
    assert!(texts.len() > 5, "the files were not found: {texts:?}");
    for (place, text) in texts {
        let file: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{place}: {error}: {text}"));
        let faults = schema::faults(&schema, &file, &place);
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

#[test]
fn a_page_is_written_anew_with_what_is_printed() {
    let page = "```console\n$ a\nold\n$ b\n```\nend\n";
    let blocks = page::blocks(page).unwrap();
    let steps = blocks.into_iter().flat_map(|block| block.steps);
    let outcomes: Vec<_> = steps
        .map(|step| Outcome::printing(step, "1\n2\n"))
        .collect();
    let expected = "```console\n$ a\n1\n2\n$ b\n1\n2\n```\nend\n";
    assert_eq!(written(page, &outcomes), expected);
}
