//! How releases, and what comes of one that is handed in, are shown.

use std::fmt;

use hsup_proto::control::{
    ApplyReleaseResponse, PlanReleaseResponse, Process, Release, ReleaseState,
    plan_release_response::{Change, Kind},
};
use serde::{Serialize, Serializer};

use crate::look::{Cell, Colour, Look, Report, one_line, rfc3339, table};

/// A release as `-o json` prints it; the names of the fields do not change.
#[derive(Clone, Debug, Serialize)]
pub struct ReleaseReport {
    pub id: u64,
    pub version: u64,
    #[serde(serialize_with = "as_word")]
    pub state: ReleaseState,
    pub reason: Option<String>,
    pub source: String,
    pub at: Option<String>,
    pub stack: Option<String>,
    pub slug: Option<String>,
    pub image: Option<String>,
    pub config_names: Vec<String>,
    pub processes: Vec<ProcessReport>,
    pub gap_ms: i64,
    pub last_lines: Vec<String>,
    #[serde(skip)]
    pub at_ms: i64,
}

/// What a release says of a process type.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessReport {
    pub process_type: String,
    pub quantity: u32,
    pub command: String,
}

/// All releases that hsup remembers, newest first.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct ReleasesReport {
    pub releases: Vec<ReleaseReport>,
}

/// What came of a release that was handed in.
#[derive(Debug)]
pub struct ApplyReport(pub(super) ApplyReleaseResponse);

/// What a release would change.
#[derive(Debug)]
pub struct PlanReport(pub(super) PlanReleaseResponse);

/// `rolling out`, with a space, for people and programs alike.
pub(in crate::ctl) const fn state_word(state: ReleaseState) -> &'static str {
    match state {
        ReleaseState::Building => "building",
        ReleaseState::Releasing => "releasing",
        ReleaseState::RollingOut => "rolling out",
        ReleaseState::Current => "current",
        ReleaseState::Rejected => "rejected",
        ReleaseState::Superseded => "superseded",
        ReleaseState::Unspecified => "unknown",
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn as_word<S: Serializer>(state: &ReleaseState, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state_word(*state))
}

impl From<Release> for ReleaseReport {
    fn from(release: Release) -> Self {
        let given = |text: String| (!text.is_empty()).then_some(text);
        Self {
            state: release.state(),
            id: release.id,
            version: release.version,
            reason: given(release.reason),
            source: release.source,
            at: rfc3339(release.at_unix_ms),
            stack: given(release.stack),
            slug: given(release.slug),
            image: given(release.image),
            config_names: release.config_names,
            processes: release.processes.into_iter().map(Into::into).collect(),
            gap_ms: release.gap_ms,
            last_lines: release.last_lines,
            at_ms: release.at_unix_ms,
        }
    }
}

impl From<Process> for ProcessReport {
    fn from(process: Process) -> Self {
        Self {
            process_type: process.process_type,
            quantity: process.quantity,
            command: process.command,
        }
    }
}

impl ReleaseReport {
    /// Why it was rejected, for how long dynos were missing, and what the dyno said last.
    fn write_rejection(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = &self.reason {
            writeln!(f, "    {reason}")?;
        }
        if self.gap_ms > 0 {
            let gap = gap(self.gap_ms);
            writeln!(f, "    fewer dynos than wanted ran for {gap}")?;
        }
        for line in &self.last_lines {
            writeln!(f, "    | {line}")?;
        }
        Ok(())
    }
}

/// The colour of a release's state.
const fn colour(state: ReleaseState) -> Option<Colour> {
    match state {
        ReleaseState::Current => Some(Colour::Green),
        ReleaseState::Rejected => Some(Colour::Red),
        _ => None,
    }
}

/// `35ms`, `1.2s`
fn gap(ms: i64) -> String {
    if ms < 1000 {
        format!("{ms}ms")
    } else {
        format!("{}.{}s", ms / 1000, ms % 1000 / 100)
    }
}

impl Report for ReleaseReport {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let word = state_word(self.state);
        let state = match colour(self.state) {
            Some(colour) => look.paint(colour, word),
            None => word.to_owned(),
        };
        writeln!(f, "v{} {state}", self.version)?;
        let mut field = |name: &str, value: &str| writeln!(f, "{name:>11}: {value}");
        field("When", &look.time_ago(self.at_ms))?;
        field("Source", &self.source)?;
        let given = [
            ("Slug", &self.slug),
            ("Image", &self.image),
            ("Stack", &self.stack),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                field(name, value)?;
            }
        }
        if !self.config_names.is_empty() {
            field("Config vars", &self.config_names.join(", "))?;
        }
        for process in &self.processes {
            let command = one_line(&process.command);
            let what = match process.process_type.as_str() {
                "release" => format!("release (once): {command}"),
                name => format!("{name} ({}): {command}", process.quantity),
            };
            field("Runs", &what)?;
        }
        if self.state == ReleaseState::Rejected {
            self.write_rejection(f)?;
        }
        Ok(())
    }
}

impl Report for ReleasesReport {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        if self.releases.is_empty() {
            return writeln!(f, "No releases yet");
        }
        let header = ["VERSION", "STATE", "WHEN", "SOURCE"].map(Cell::from);
        let mut rows = vec![header.to_vec()];
        rows.extend(self.releases.iter().map(|release| {
            vec![
                format!("v{}", release.version).into(),
                match colour(release.state) {
                    Some(colour) => Cell::coloured(state_word(release.state), colour),
                    None => state_word(release.state).into(),
                },
                look.time_ago(release.at_ms).into(),
                release.source.clone().into(),
            ]
        }));
        let text = table(&rows, look);
        let mut lines = text.lines();
        if let Some(header) = lines.next() {
            writeln!(f, "{header}")?;
        }
        for (line, release) in lines.zip(&self.releases) {
            writeln!(f, "{line}")?;
            if release.state == ReleaseState::Rejected {
                release.write_rejection(f)?;
            }
        }
        Ok(())
    }
}

impl ApplyReport {
    pub(super) fn is_rejected(&self) -> bool {
        let release = self.0.release.as_ref();
        release.is_some_and(|release| release.state() == ReleaseState::Rejected)
    }
}

fn write_warnings(f: &mut fmt::Formatter<'_>, warnings: &[String], look: &Look) -> fmt::Result {
    for warning in warnings {
        writeln!(f, "{}: {warning}", look.paint(Colour::Yellow, "warning"))?;
    }
    Ok(())
}

impl Report for ApplyReport {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        write_warnings(f, &self.0.warnings, look)?;
        let Some(release) = &self.0.release else {
            return writeln!(f, "hsup took it in");
        };
        let version = release.version;
        if self.0.unchanged {
            return writeln!(f, "Nothing to do: v{version} runs already");
        }
        let is_rollback = release.source.starts_with("rollback ");
        let version = if is_rollback {
            format!("{version} ({})", release.source)
        } else {
            version.to_string()
        };
        match release.state() {
            ReleaseState::Current => writeln!(f, "Release v{version}... done, is current"),
            ReleaseState::Rejected => {
                let rejected = look.paint(Colour::Red, "rejected");
                writeln!(f, "Release v{version}... {rejected}")?;
                ReleaseReport::from(release.clone()).write_rejection(f)
            }
            state => writeln!(f, "Release v{version}... {}", state_word(state)),
        }
    }
}

impl Report for PlanReport {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let plan = &self.0;
        write_warnings(f, &plan.warnings, look)?;
        for change in &plan.changes {
            writeln!(f, "{}", change_line(change, look))?;
        }
        let acts = [
            ("Restarts", &plan.restarts),
            ("Starts", &plan.starts),
            ("Stops", &plan.stops),
        ];
        if plan.changes.is_empty() && acts.iter().all(|(_, dynos)| dynos.is_empty()) {
            return writeln!(f, "Nothing would change");
        }
        writeln!(f)?;
        for (verb, dynos) in acts {
            if !dynos.is_empty() {
                writeln!(f, "{verb} {}", dynos.join(", "))?;
            }
        }
        if acts.iter().all(|(_, dynos)| dynos.is_empty()) {
            writeln!(f, "Restarts no dyno")?;
        }
        if plan.builds {
            writeln!(f, "Has the driver build the release first")?;
        }
        Ok(())
    }
}

/// `~ quantity web: 1 -> 3`
fn change_line(change: &Change, look: &Look) -> String {
    let mut text = change.what.clone();
    if !change.name.is_empty() {
        text.push(' ');
        text.push_str(&change.name);
    }
    let (from, to) = (one_line(&change.from), one_line(&change.to));
    let values = match (from.as_str(), to.as_str()) {
        ("", "") => String::new(),
        ("", to) => format!(": {to}"),
        (from, "") => format!(": {from}"),
        (from, to) => format!(": {from} -> {to}"),
    };
    text.push_str(&values);
    match change.kind() {
        Kind::Added => look.paint(Colour::Green, format_args!("+ {text}")),
        Kind::Removed => look.paint(Colour::Red, format_args!("- {text}")),
        Kind::Changed | Kind::Unspecified => look.paint(Colour::Yellow, format_args!("~ {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::tests::{NOW, plain};

    fn release(version: u64, state: ReleaseState) -> Release {
        Release {
            id: version,
            version,
            state: state.into(),
            source: "control directory".to_owned(),
            at_unix_ms: NOW - 60_000,
            ..Release::default()
        }
    }

    fn rejected() -> Release {
        Release {
            reason: "web.1 did not bind its port".to_owned(),
            gap_ms: 1_250,
            last_lines: vec!["KeyError".to_owned()],
            ..release(8, ReleaseState::Rejected)
        }
    }

    #[test]
    fn releases_are_a_table_and_a_rejected_one_says_why() {
        let report = ReleasesReport {
            releases: vec![rejected().into(), release(7, ReleaseState::Current).into()],
        };
        assert_eq!(
            report.show(&plain()).to_string(),
            "VERSION  STATE     WHEN                                  SOURCE\n\
             v8       rejected  2026/11/23 19:41:10 +0000 (~ 1m ago)  control directory\n\
             \x20   web.1 did not bind its port\n\
             \x20   fewer dynos than wanted ran for 1.2s\n\
             \x20   | KeyError\n\
             v7       current   2026/11/23 19:41:10 +0000 (~ 1m ago)  control directory\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json[0]["reason"], "web.1 did not bind its port");
    }

    #[test]
    fn one_release_is_shown_with_what_it_runs_and_no_secret() {
        let process = |process_type: &str, quantity, command: &str| Process {
            process_type: process_type.to_owned(),
            quantity,
            command: command.to_owned(),
        };
        let report = ReleaseReport::from(Release {
            source: "rollback to v3".to_owned(),
            slug: "https://store/a.tgz".to_owned(),
            config_names: vec!["A".to_owned(), "B".to_owned()],
            processes: vec![
                process("web", 2, "bin/web"),
                process("release", 0, "migrate"),
            ],
            ..rejected()
        });
        assert_eq!(
            report.show(&plain()).to_string(),
            "v8 rejected\n\
             \x20      When: 2026/11/23 19:41:10 +0000 (~ 1m ago)\n\
             \x20    Source: rollback to v3\n\
             \x20      Slug: https://store/a.tgz\n\
             Config vars: A, B\n\
             \x20      Runs: web (2): bin/web\n\
             \x20      Runs: release (once): migrate\n\
             \x20   web.1 did not bind its port\n\
             \x20   fewer dynos than wanted ran for 1.2s\n\
             \x20   | KeyError\n"
        );
    }

    #[test]
    fn a_rollback_says_to_which_release() {
        let report = ApplyReport(ApplyReleaseResponse {
            release: Some(Release {
                source: "rollback to v3".to_owned(),
                ..release(9, ReleaseState::Current)
            }),
            ..ApplyReleaseResponse::default()
        });
        assert_eq!(
            report.show(&plain()).to_string(),
            "Release v9 (rollback to v3)... done, is current\n"
        );
    }

    #[test]
    fn a_short_gap_is_not_none() {
        assert_eq!([35, 1_250].map(gap), ["35ms", "1.2s"]);
    }

    #[test]
    fn applying_says_what_came_of_it() {
        let report = |release, unchanged| {
            let warnings = vec!["unknown key `x`".to_owned()];
            let answer = ApplyReleaseResponse {
                release: Some(release),
                warnings,
                unchanged,
            };
            let report = ApplyReport(answer);
            (report.show(&plain()).to_string(), report.is_rejected())
        };
        let (text, is_rejected) = report(rejected(), false);
        assert_eq!(
            text,
            "warning: unknown key `x`\n\
             Release v8... rejected\n\
             \x20   web.1 did not bind its port\n\
             \x20   fewer dynos than wanted ran for 1.2s\n\
             \x20   | KeyError\n"
        );
        assert!(is_rejected);
        let (text, is_rejected) = report(release(7, ReleaseState::Current), false);
        assert_eq!(
            text,
            "warning: unknown key `x`\nRelease v7... done, is current\n"
        );
        assert!(!is_rejected);
        let (text, _) = report(release(7, ReleaseState::Current), true);
        assert!(text.ends_with("Nothing to do: v7 runs already\n"), "{text}");
    }

    #[test]
    fn a_plan_is_a_diff() {
        let change = |kind: Kind, what: &str, name: &str, from: &str, to: &str| Change {
            kind: kind.into(),
            what: what.to_owned(),
            name: name.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let plan = PlanReleaseResponse {
            changes: vec![
                change(Kind::Added, "config", "TOKEN", "", ""),
                change(Kind::Changed, "quantity", "web", "1", "3"),
                change(Kind::Removed, "command", "clock", "./tick\n./tock", ""),
            ],
            restarts: vec!["web.1".to_owned()],
            starts: vec!["web.2".to_owned(), "web.3".to_owned()],
            stops: vec!["clock.1".to_owned()],
            builds: true,
            warnings: Vec::new(),
        };
        assert_eq!(
            PlanReport(plan).show(&plain()).to_string(),
            "+ config TOKEN\n\
             ~ quantity web: 1 -> 3\n\
             - command clock: ./tick\\n./tock\n\
             \n\
             Restarts web.1\n\
             Starts web.2, web.3\n\
             Stops clock.1\n\
             Has the driver build the release first\n"
        );
        let nothing = PlanReport(PlanReleaseResponse::default());
        assert_eq!(nothing.show(&plain()).to_string(), "Nothing would change\n");
    }
}
