//! What a release would change, for a person to read before it does.
//!
//! Values of config vars are compared and never shown. The slug and the log target show
//! without what is secret in them, so a change of only that reads the same on both sides.

use std::{collections::BTreeSet, fmt::Display};

use hsup_proto::control::{
    PlanReleaseResponse,
    plan_release_response::{Change, Kind},
};

use crate::{
    name::DynoName,
    release::{Limits, Release, ReleaseChange},
};

/// What `new` would change, seen from `old`, which runs now; `None`: nothing does.
///
/// `before` are the dynos that are wanted now, and `after` those that would be, with what
/// people scaled by hand in both.
pub fn plan(
    old: Option<&Release>,
    new: &Release,
    before: &BTreeSet<DynoName>,
    after: &BTreeSet<DynoName>,
    warnings: Vec<String>,
) -> PlanReleaseResponse {
    let change = match old {
        Some(old) => new.change_from(old),
        None => ReleaseChange::Replace { builds: true },
    };
    let (replaces, builds) = match change {
        ReleaseChange::Nothing | ReleaseChange::QuantitiesOnly => (false, false),
        ReleaseChange::Replace { builds } => (true, builds),
    };
    let names =
        |dynos: &mut dyn Iterator<Item = &DynoName>| dynos.map(ToString::to_string).collect();
    PlanReleaseResponse {
        changes: changes(old, new),
        restarts: if replaces {
            names(&mut before.intersection(after))
        } else {
            Vec::new()
        },
        starts: names(&mut after.difference(before)),
        stops: names(&mut before.difference(after)),
        builds,
        warnings,
    }
}

fn changes(old: Option<&Release>, new: &Release) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut note = |what, name: &str, from: Option<String>, to: Option<String>, is_same| {
        changes.extend(compare(what, name, from, to, is_same));
    };

    let from = old.map(|old| &old.app).filter(|app| !app.is_empty());
    let to = Some(&new.app).filter(|app| !app.is_empty());
    note("app", "", from.cloned(), to.cloned(), from == to);

    let from = old.map(|old| old.version);
    let is_same = from == Some(new.version);
    note(
        "version",
        "",
        from.map(show),
        Some(show(new.version)),
        is_same,
    );

    let from = old.map(|old| &old.stack).filter(|stack| !stack.is_empty());
    let to = Some(&new.stack).filter(|stack| !stack.is_empty());
    note("stack", "", from.cloned(), to.cloned(), from == to);

    let from = old.and_then(|old| old.slug.as_ref());
    let to = new.slug.as_ref();
    note("slug", "", from.map(show), to.map(show), from == to);

    let from = old.and_then(|old| old.slug_checksum.clone());
    let is_same = from == new.slug_checksum;
    note("slug", "checksum", from, new.slug_checksum.clone(), is_same);

    let from = old.and_then(|old| old.image.clone());
    let is_same = from == new.image;
    note("image", "", from, new.image.clone(), is_same);

    let from = old.and_then(|old| limits(&old.limits));
    let to = limits(&new.limits);
    let is_same = from == to;
    note("limits", "", from, to, is_same);

    let from = old.and_then(|old| old.log_target.as_ref());
    let to = new.log_target.as_ref();
    note("log target", "", from.map(show), to.map(show), from == to);

    let old_names = old.into_iter().flat_map(|old| old.config.names());
    let names: BTreeSet<&str> = old_names.chain(new.config.names()).collect();
    for name in names {
        let from = old.and_then(|old| old.config.get(name));
        let to = new.config.get(name);
        // That it is there is all that is told of it.
        let hidden = |value: Option<&str>| value.map(|_| String::new());
        note("config", name, hidden(from), hidden(to), from == to);
    }

    let gone = old
        .into_iter()
        .flat_map(|old| &old.processes)
        .filter(|process| new.process(process.process_type.as_str()).is_none());
    for process in new.processes.iter().chain(gone) {
        let name = process.process_type.as_str();
        let from = old.and_then(|old| old.process(name));
        let to = new.process(name);
        let command = |process: &crate::release::Process| process.command.clone();
        let is_same = from.map(command) == to.map(command);
        note("command", name, from.map(command), to.map(command), is_same);
        let quantity = |process: &crate::release::Process| show(process.quantity);
        let is_same = from.map(quantity) == to.map(quantity);
        note(
            "quantity",
            name,
            from.map(quantity),
            to.map(quantity),
            is_same,
        );
    }
    changes
}

fn compare(
    what: &str,
    name: &str,
    from: Option<String>,
    to: Option<String>,
    is_same: bool,
) -> Option<Change> {
    let kind = match (&from, &to) {
        _ if is_same => return None,
        (None, None) => return None,
        (None, Some(_)) => Kind::Added,
        (Some(_), Some(_)) => Kind::Changed,
        (Some(_), None) => Kind::Removed,
    };
    Some(Change {
        kind: kind.into(),
        what: what.to_owned(),
        name: name.to_owned(),
        from: from.unwrap_or_default(),
        to: to.unwrap_or_default(),
    })
}

fn show(value: impl Display) -> String {
    value.to_string()
}

/// The limits that there are, in words.
fn limits(limits: &Limits) -> Option<String> {
    let memory = limits.memory_bytes.map(|n| format!("{n} bytes of memory"));
    let cpu = limits
        .cpu_millis
        .map(|n| format!("{n}/1000 of a processor"));
    let pids = limits.pids.map(|n| format!("{n} processes"));
    let all: Vec<String> = [memory, cpu, pids].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{release::Slug, source::control_file};

    fn release(text: &str) -> Release {
        control_file::parse(text.as_bytes()).unwrap().release
    }

    fn dynos(names: &[&str]) -> BTreeSet<DynoName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn lines(plan: &PlanReleaseResponse) -> Vec<String> {
        let line = |change: &Change| {
            let kind = match change.kind() {
                Kind::Added => '+',
                Kind::Changed => '~',
                Kind::Removed => '-',
                Kind::Unspecified => '?',
            };
            let text = format!(
                "{kind} {} {} {} {}",
                change.what, change.name, change.from, change.to
            );
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        plan.changes.iter().map(line).collect()
    }

    const OLD: &str = r#"{"Version": 1, "Slug": "https://s/a.tgz?sig=hunter2", "Stack": "heroku-24",
        "Env": {"A": "hunter2", "B": "hunter2", "C": "hunter2"},
        "Processes": [{"Type": "web", "Args": ["a"], "Quantity": 1},
                      {"Type": "clock", "Args": ["c"], "Quantity": 1}]}"#;

    #[test]
    fn every_change_is_told_and_no_secret() {
        let new = release(
            r#"{"Version": 2, "Slug": "https://s/b.tgz?sig=hunter2", "Image": "i",
                "Env": {"A": "hunter2", "B": "changed-hunter2", "D": "hunter2"},
                "Limits": {"Pids": 9, "MemoryBytes": 5}, "LogplexURL": "https://hunter2@logs/x",
                "Processes": [{"Type": "web", "Args": ["b"], "Quantity": 2},
                              {"Type": "worker", "Args": ["w"], "Quantity": 1}]}"#,
        );
        let old = release(OLD);
        let before = dynos(&["web.1", "clock.1"]);
        let after = dynos(&["web.1", "web.2", "worker.1"]);
        let plan = plan(Some(&old), &new, &before, &after, vec!["odd".into()]);
        assert_eq!(
            lines(&plan),
            [
                "~ version 1 2",
                "- stack heroku-24",
                "~ slug https://s/a.tgz https://s/b.tgz",
                "+ image i",
                "+ limits 5 bytes of memory, 9 processes",
                "+ log target https://logs",
                "~ config B",
                "- config C",
                "+ config D",
                "~ command web a b",
                "~ quantity web 1 2",
                "+ command worker w",
                "+ quantity worker 1",
                "- command clock c",
                "- quantity clock 1",
            ]
        );
        assert_eq!(plan.restarts, ["web.1"]);
        assert_eq!(plan.starts, ["web.2", "worker.1"]);
        assert_eq!(plan.stops, ["clock.1"]);
        assert!(plan.builds);
        assert_eq!(plan.warnings, ["odd"]);
        assert!(!format!("{plan:?}").contains("hunter2"), "{plan:?}");
    }

    #[test]
    fn quantities_alone_restart_nobody() {
        let old = release(OLD);
        let mut new = old.clone();
        new.processes[0].quantity = 2;
        let before = dynos(&["web.1", "clock.1"]);
        let after = dynos(&["web.1", "web.2", "clock.1"]);
        let plan = plan(Some(&old), &new, &before, &after, Vec::new());
        assert_eq!(lines(&plan), ["~ quantity web 1 2"]);
        assert!(plan.restarts.is_empty() && plan.stops.is_empty() && !plan.builds);
        assert_eq!(plan.starts, ["web.2"]);
    }

    #[test]
    fn the_same_again_changes_nothing() {
        let old = release(OLD);
        let dynos = dynos(&["web.1", "clock.1"]);
        let plan = plan(Some(&old), &old, &dynos, &dynos, Vec::new());
        assert_eq!(plan, PlanReleaseResponse::default());
    }

    #[test]
    fn a_secret_part_alone_is_a_change_that_reads_the_same() {
        let old = release(OLD);
        let mut new = old.clone();
        new.slug = Some(Slug::new("https://s/a.tgz?sig=other"));
        let none = BTreeSet::new();
        let plan = plan(Some(&old), &new, &none, &none, Vec::new());
        assert_eq!(lines(&plan), ["~ slug https://s/a.tgz https://s/a.tgz"]);
    }

    #[test]
    fn the_first_release_adds_everything() {
        let after = dynos(&["web.1", "clock.1"]);
        let plan = plan(None, &release(OLD), &BTreeSet::new(), &after, Vec::new());
        assert!(
            plan.changes
                .iter()
                .all(|change| change.kind() == Kind::Added)
        );
        assert_eq!(plan.starts, ["clock.1", "web.1"]);
        assert!(plan.builds && plan.restarts.is_empty());
    }
}
