//! `hsupctl events`: the state of everything first, then a line for each change.

use std::{collections::HashMap, io::Write};

use hsup_core::{lifecycle::words, time::now_unix_ms};
use hsup_proto::control::{
    DynoState, EventsRequest, EventsResponse, GetStatusResponse, Process, events_response::Event,
};
use serde::Serialize;

use super::{
    Outcome,
    args::Output,
    connect::Supervisor,
    dyno::{DynoReport, ExitReport},
    error::CtlError,
    promptly,
    releases::{ProcessReport, ReleaseReport, state_word},
};
use crate::look::{Look, one_line, rfc3339};

/// One line of `events`; the names of the fields are those of `-o json`.
#[derive(Clone, Debug, Serialize)]
pub struct EventReport {
    pub at: Option<String>,
    #[serde(flatten)]
    pub what: What,
    #[serde(skip)]
    at_ms: i64,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    Snapshot {
        app: String,
        release: Option<Box<ReleaseReport>>,
        formation: Vec<ProcessReport>,
        dynos: Vec<DynoReport>,
        driver: String,
        driver_ready: bool,
        driver_message: String,
        hsup_version: String,
        all_up: bool,
    },
    Dyno {
        dyno: Box<DynoReport>,
    },
    Gone {
        name: String,
        dyno_id: String,
        exit: Option<ExitReport>,
    },
    Release {
        release: Box<ReleaseReport>,
    },
    Formation {
        formation: Vec<ProcessReport>,
    },
    Driver {
        name: String,
        connected: bool,
        ready: bool,
        message: String,
    },
    /// From a newer hsup.
    Unknown,
}

pub async fn run(
    mut supervisor: Supervisor,
    output: Output,
    look: &Look,
    out: &mut impl Write,
) -> Result<Outcome, CtlError> {
    let mut stream = promptly(supervisor.client.events(EventsRequest {})).await?;
    let mut told = Told::default();
    while let Some(event) = stream.message().await? {
        let report = EventReport::from(event);
        let text = match output {
            Output::Json => {
                let mut line = serde_json::to_string(&report).map_err(CtlError::Json)?;
                line.push('\n');
                line
            }
            Output::Text => {
                // A countdown is counted from now.
                let look = Look {
                    now_ms: now_unix_ms(),
                    ..look.clone()
                };
                told.news(&report, &look)
            }
        };
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(CtlError::Write)?;
    }
    // hsup has shut down: had it been killed, the stream would have broken off.
    Ok(Outcome::done(String::new()))
}

impl From<EventsResponse> for EventReport {
    fn from(response: EventsResponse) -> Self {
        let processes =
            |all: Vec<Process>| -> Vec<_> { all.into_iter().map(ProcessReport::from).collect() };
        let what = match response.event {
            Some(Event::Snapshot(status)) => snapshot(status),
            Some(Event::Dyno(dyno)) => What::Dyno {
                dyno: Box::new(dyno.into()),
            },
            Some(Event::Gone(gone)) => What::Gone {
                name: gone.name,
                dyno_id: gone.dyno_id,
                exit: gone.status.map(Into::into),
            },
            Some(Event::Release(release)) => What::Release {
                release: Box::new(release.into()),
            },
            Some(Event::Formation(formation)) => What::Formation {
                formation: processes(formation.processes),
            },
            Some(Event::Driver(driver)) => What::Driver {
                name: driver.name,
                connected: driver.connected,
                ready: driver.ready,
                message: driver.message,
            },
            None => What::Unknown,
        };
        Self {
            at: rfc3339(response.at_unix_ms),
            what,
            at_ms: response.at_unix_ms,
        }
    }
}

fn snapshot(status: GetStatusResponse) -> What {
    What::Snapshot {
        app: status.app,
        release: status.release.map(|release| Box::new(release.into())),
        formation: status.formation.into_iter().map(Into::into).collect(),
        dynos: status.dynos.into_iter().map(Into::into).collect(),
        driver: status.driver,
        driver_ready: status.driver_ready,
        driver_message: status.driver_message,
        hsup_version: status.hsup_version,
        all_up: status.all_up,
    }
}

/// What was last said of each thing: a dyno changes in more than a line shows, and the same
/// line again is no news.
#[derive(Debug, Default)]
struct Told(HashMap<String, String>);

impl Told {
    /// The lines of `report` that say something new.
    fn news(&mut self, report: &EventReport, look: &Look) -> String {
        let time = look.time(report.at_ms);
        let mut text = String::new();
        for (thing, line) in report.lines(look) {
            let before = self.0.insert(thing, line.clone());
            if before.as_ref() != Some(&line) {
                text.extend([&time, " ", &line, "\n"]);
            }
        }
        text
    }
}

impl EventReport {
    /// One line for a change, for a snapshot one for each thing there is; each with the thing
    /// that it is about.
    fn lines(&self, look: &Look) -> Vec<(String, String)> {
        match &self.what {
            What::Snapshot {
                release,
                formation,
                dynos,
                driver,
                driver_ready,
                driver_message,
                ..
            } => {
                let mut lines: Vec<_> = release
                    .iter()
                    .map(|release| release_line(release))
                    .collect();
                if !formation.is_empty() {
                    lines.push(formation_line(formation));
                }
                lines.push(driver_line(driver, true, *driver_ready, driver_message));
                lines.extend(dynos.iter().map(|dyno| dyno_line(dyno, look)));
                lines
            }
            What::Dyno { dyno } => vec![dyno_line(dyno, look)],
            What::Gone { name, exit, .. } => {
                let how = exit.as_ref().map(ExitReport::sentence);
                let line = format!("{name} gone{}", because(how.as_deref()));
                vec![(name.clone(), line)]
            }
            What::Release { release } => vec![release_line(release)],
            What::Formation { formation } => vec![formation_line(formation)],
            What::Driver {
                name,
                connected,
                ready,
                message,
            } => vec![driver_line(name, *connected, *ready, message)],
            What::Unknown => Vec::new(),
        }
    }
}

fn dyno_line(dyno: &DynoReport, look: &Look) -> (String, String) {
    let state = look.paint(dyno.colour(), words::heroku(dyno.state));
    let ready = if dyno.state == DynoState::Up && dyno.process_type == "web" && !dyno.ready {
        ", not ready"
    } else {
        ""
    };
    let trouble = dyno.trouble(look);
    let because = because(trouble.as_deref());
    let line = format!("{} {state}{ready}{because}", dyno.name);
    (dyno.name.clone(), line)
}

fn release_line(release: &ReleaseReport) -> (String, String) {
    let because = because(release.reason.as_deref());
    let (version, state) = (release.version, state_word(release.state));
    let line = format!("release v{version} {state}{because}");
    (format!("release {}", release.id), line)
}

/// `: why`, where there is something to say.
fn because(why: Option<&str>) -> String {
    match why {
        None | Some("") => String::new(),
        Some(why) => format!(": {}", one_line(why)),
    }
}

fn formation_line(formation: &[ProcessReport]) -> (String, String) {
    let words: Vec<_> = formation
        .iter()
        .map(|process| format!("{}={}", process.process_type, process.quantity))
        .collect();
    let line = format!("formation {}", words.join(" "));
    ("formation".to_owned(), line)
}

fn driver_line(name: &str, connected: bool, ready: bool, message: &str) -> (String, String) {
    let state = match (connected, ready) {
        (true, true) => "ready",
        (true, false) => "not ready",
        (false, _) => "not connected",
    };
    let name = if name.is_empty() {
        ""
    } else {
        &format!(" {name}")
    };
    let line = format!("driver{name} {state}{}", because(Some(message)));
    ("driver".to_owned(), line)
}

#[cfg(test)]
mod tests {
    use hsup_proto::control::{events_response::Gone, exit_status::How};

    use super::*;
    use crate::{
        ctl::dyno::tests::{crashed, exit, web},
        look::tests::{NOW, plain},
    };

    fn report(event: Event) -> EventReport {
        EventReport::from(EventsResponse {
            at_unix_ms: NOW,
            event: Some(event),
        })
    }

    #[test]
    fn a_snapshot_is_a_line_for_each_thing() {
        let status = GetStatusResponse {
            app: "shop".to_owned(),
            formation: vec![Process {
                process_type: "web".to_owned(),
                quantity: 2,
                command: String::new(),
            }],
            dynos: vec![web(1), crashed()],
            driver: "simple".to_owned(),
            driver_ready: true,
            ..GetStatusResponse::default()
        };
        let report = report(Event::Snapshot(status));
        assert_eq!(
            Told::default().news(&report, &plain()),
            "2026/11/23 19:42:10 +0000 formation web=2\n\
             2026/11/23 19:42:10 +0000 driver simple ready\n\
             2026/11/23 19:42:10 +0000 web.1 up\n\
             2026/11/23 19:42:10 +0000 web.2 crashed: \
             exited with code 1, starting again in 12s (4th crash)\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["event"], "snapshot");
        assert_eq!(json["dynos"][1]["name"], "web.2");
    }

    #[test]
    fn a_change_is_a_line() {
        let dyno = hsup_proto::control::Dyno {
            state: DynoState::Stopping.into(),
            ..web(1)
        };
        let dyno = report(Event::Dyno(dyno));
        assert_eq!(
            Told::default().news(&dyno, &plain()),
            "2026/11/23 19:42:10 +0000 web.1 stopping\n"
        );
        let gone = report(Event::Gone(Gone {
            name: "web.1".to_owned(),
            dyno_id: "a".to_owned(),
            status: Some(exit(How::Code(0))),
        }));
        assert_eq!(
            Told::default().news(&gone, &plain()),
            "2026/11/23 19:42:10 +0000 web.1 gone: exited with code 0\n"
        );
        let json = serde_json::to_value(&gone).unwrap();
        assert_eq!(json["event"], "gone");
        assert_eq!(json["exit"]["code"], 0);
    }

    #[test]
    fn a_line_that_was_said_is_not_said_again() {
        let mut told = Told::default();
        let mut news = |dyno: &hsup_proto::control::Dyno| {
            told.news(&report(Event::Dyno(dyno.clone())), &plain())
        };
        let starting = hsup_proto::control::Dyno {
            state: DynoState::Starting.into(),
            dyno_id: String::new(),
            ..web(1)
        };
        let line = "2026/11/23 19:42:10 +0000 web.1 starting\n";
        assert_eq!(news(&starting), line);
        let with_id = hsup_proto::control::Dyno {
            dyno_id: "web.1.a1".to_owned(),
            ..starting.clone()
        };
        assert_eq!(news(&with_id), "");
        assert!(news(&web(1)).ends_with(" web.1 up\n"));
        assert_eq!(news(&starting), line);
    }
}
