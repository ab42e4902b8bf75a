//! `docs/driver-rules.md` has every rule of the driver protocol and the cases that ask for it: is
//! it complete, and does each case cite the section in which it stands?

use std::{collections::BTreeSet, fs, path::Path};

use hsup_tests::conformance::{Case, cases};

/// A rule of the page: the sections that it stands under, itself, and what is said of it.
#[derive(Debug, PartialEq, Eq)]
struct Rule<'a> {
    sections: Vec<&'a str>,
    text: String,
    cases: Vec<&'a str>,
    has_reason: bool,
}

fn rules(page: &str) -> Vec<Rule<'_>> {
    let mut sections = Vec::new();
    let mut rules: Vec<Rule<'_>> = Vec::new();
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            sections = match title.split_once(": ") {
                Some((numbers, _)) => numbers.split(", ").collect(),
                // One that has no number is named in backticks.
                None => title.split('`').skip(1).take(1).collect(),
            };
        } else if let Some(text) = line.strip_prefix("- ") {
            rules.push(Rule {
                sections: sections.clone(),
                text: text.to_owned(),
                cases: Vec::new(),
                has_reason: false,
            });
        } else if let Some(rule) = rules.last_mut() {
            let case = line
                .strip_prefix("  - `")
                .and_then(|it| it.strip_suffix('`'));
            rule.cases.extend(case);
            rule.has_reason |= line.starts_with("  - No case: ");
        }
    }
    rules
}

#[test]
fn every_rule_has_a_case_or_a_reason_and_every_case_a_rule() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/driver-rules.md");
    let page = fs::read_to_string(path).unwrap();
    let rules = rules(&page);
    assert!(rules.len() > 80, "{} rules", rules.len());
    let mut named = BTreeSet::new();
    for rule in &rules {
        let has_cases = !rule.cases.is_empty();
        assert!(has_cases != rule.has_reason, "neither, or both: {rule:?}");
        for title in &rule.cases {
            let mut all = cases().into_iter();
            let case = all.find(|case| case.title() == *title);
            let case = case.unwrap_or_else(|| panic!("no case `{title}`"));
            let cited = rule.sections.iter().any(|of| case.rule.contains(of));
            assert!(
                cited,
                "`{title}` cites {}, and stands at {rule:?}",
                case.rule
            );
            named.insert(*title);
        }
    }
    let titles = cases().into_iter().map(Case::title);
    let unnamed: Vec<_> = titles.filter(|it| !named.contains(it.as_str())).collect();
    assert!(unnamed.is_empty(), "at no rule: {unnamed:?}");
}

#[test]
fn a_rule_is_read_with_what_stands_below_it() {
    let page = "\
# Rules
## §0, §13: Elsewhere
- One, which goes on
  in a second line.
  - `stop: a`
  - `stop: b`
- Two.
  - No case: it takes
    too long.
## A terminal (`architecture`)
- Three.
";
    let rule = |sections: &[&'static str], text: &str, cases: &[&'static str], has_reason| Rule {
        sections: sections.to_vec(),
        text: text.to_owned(),
        cases: cases.to_vec(),
        has_reason,
    };
    let expected = [
        rule(
            &["§0", "§13"],
            "One, which goes on",
            &["stop: a", "stop: b"],
            false,
        ),
        rule(&["§0", "§13"], "Two.", &[], true),
        rule(&["architecture"], "Three.", &[], false),
    ];
    assert_eq!(rules(page), expected);
}
