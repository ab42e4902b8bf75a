//! `GET /metrics`: how hsup stands, for Prometheus (text exposition format 0.0.4).
//!
//! Pure: from what the supervisor and the drains answer to text. Names end in `_total` where
//! they count and only grow; those of a dyno begin anew with the dyno's next release, and those
//! of a drain with the drain, as counters of a process do with the process.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use hsup_proto::control::{Dyno, DynoState, GetStatusResponse, Release, ReleaseState};

use crate::{lifecycle::words, logs::DrainStatus};

/// What the body is.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// States that are shown even when no dyno is in them: a query needs its zero.
const STATES: [DynoState; 6] = [
    DynoState::Starting,
    DynoState::Up,
    DynoState::Crashed,
    DynoState::Stopping,
    DynoState::Down,
    DynoState::Complete,
];

/// The whole text.
pub(super) fn render(
    status: &GetStatusResponse,
    releases: &[Release],
    drains: &[DrainStatus],
) -> String {
    let mut page = Page::default();
    page.supervisor(status);
    page.dynos(status);
    page.releases(status, releases);
    page.drains(drains);
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn supervisor(&mut self, status: &GetStatusResponse) {
        self.family("hsup_info", "gauge", "This hsup, its app and its driver.");
        let labels = [
            ("app", &*status.app),
            ("driver", &status.driver),
            ("version", &status.hsup_version),
        ];
        self.sample("hsup_info", &labels, 1);
        self.family(
            "hsup_start_time_seconds",
            "gauge",
            "When hsup began, since 1970.",
        );
        let at = Thousandths(status.started_at_unix_ms);
        self.sample("hsup_start_time_seconds", &[], at);
        self.family(
            "hsup_driver_ready",
            "gauge",
            "Whether the driver can run dynos.",
        );
        self.sample("hsup_driver_ready", &[], u8::from(status.driver_ready));
    }

    fn dynos(&mut self, status: &GetStatusResponse) {
        self.family("hsup_formation", "gauge", "Dynos wanted, by process type.");
        for process in &status.formation {
            let labels = [("type", &*process.process_type)];
            self.sample("hsup_formation", &labels, process.quantity);
        }
        let mut by_type: BTreeMap<&str, BTreeMap<i32, u32>> = BTreeMap::new();
        for dyno in &status.dynos {
            let states = by_type.entry(&dyno.process_type).or_default();
            *states.entry(dyno.state).or_default() += 1;
        }
        self.family("hsup_dynos", "gauge", "Dynos, by process type and state.");
        for (process_type, states) in &by_type {
            for state in STATES {
                let labels = [("type", *process_type), ("state", words::heroku(state))];
                let count = states.get(&state.into()).copied().unwrap_or_default();
                self.sample("hsup_dynos", &labels, count);
            }
        }
        self.of_dynos(
            (
                "hsup_dyno_restarts_total",
                "counter",
                "Restarts of the dyno in its release.",
            ),
            &status.dynos,
            |dyno| Some(dyno.restarts),
        );
        self.of_dynos(
            (
                "hsup_dyno_memory_bytes",
                "gauge",
                "Memory in use, where the driver measures it.",
            ),
            &status.dynos,
            |dyno| dyno.memory_bytes,
        );
        self.of_dynos(
            (
                "hsup_dyno_processes",
                "gauge",
                "Processes, where the driver counts them.",
            ),
            &status.dynos,
            |dyno| dyno.pids,
        );
    }

    fn of_dynos<T: fmt::Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        dynos: &[Dyno],
        value: impl Fn(&Dyno) -> Option<T>,
    ) {
        self.family(name, kind, help);
        // Of two with the same name, in a rollout, the one that comes: a series may not be there twice.
        let goes = |dyno: &Dyno| dyno.state == i32::from(DynoState::Stopping);
        let mut of_name: BTreeMap<&str, &Dyno> = BTreeMap::new();
        for dyno in dynos {
            let known = of_name.entry(&dyno.name).or_insert(dyno);
            if (!goes(dyno), dyno.release) > (!goes(known), known.release) {
                *known = dyno;
            }
        }
        for dyno in of_name.into_values() {
            if let Some(value) = value(dyno) {
                let labels = [("dyno", &*dyno.name), ("type", &dyno.process_type)];
                self.sample(name, &labels, value);
            }
        }
    }

    fn releases(&mut self, status: &GetStatusResponse, releases: &[Release]) {
        self.family(
            "hsup_release_version",
            "gauge",
            "The version of the current release.",
        );
        if let Some(release) = &status.release {
            self.sample("hsup_release_version", &[], release.version);
        }
        let mut states: BTreeMap<i32, u32> = BTreeMap::new();
        for release in releases {
            *states.entry(release.state).or_default() += 1;
        }
        self.family(
            "hsup_releases",
            "gauge",
            "Releases that hsup remembers, by state.",
        );
        for (state, count) in states {
            let state = ReleaseState::try_from(state).unwrap_or_default();
            let name = state.as_str_name().trim_start_matches("RELEASE_STATE_");
            let name = name.to_ascii_lowercase();
            self.sample("hsup_releases", &[("state", &name)], count);
        }
    }

    fn drains(&mut self, drains: &[DrainStatus]) {
        type Value = fn(&DrainStatus) -> u64;
        let families: [(&str, &str, &str, Value); 7] = [
            (
                "hsup_drain_lines_read_total",
                "counter",
                "Lines that the drain was to get.",
                |drain| drain.counts.read,
            ),
            (
                "hsup_drain_lines_sent_total",
                "counter",
                "Lines that it has taken.",
                |drain| drain.counts.sent,
            ),
            (
                "hsup_drain_lines_dropped_total",
                "counter",
                "Lines that had no room.",
                |drain| drain.counts.dropped,
            ),
            (
                "hsup_drain_lines_lost_total",
                "counter",
                "Lines it could not be given.",
                |drain| drain.counts.lost,
            ),
            (
                "hsup_drain_queue_lines",
                "gauge",
                "Lines that wait for it.",
                |drain| drain.counts.queued,
            ),
            (
                "hsup_drain_sending_lines",
                "gauge",
                "Lines that are on their way to it.",
                |drain| drain.counts.sending,
            ),
            (
                "hsup_drain_queue_bytes",
                "gauge",
                "What waits for it, in bytes.",
                |drain| drain.counts.queued_bytes,
            ),
        ];
        for (name, kind, help, value) in families {
            self.family(name, kind, help);
            for drain in drains {
                let number = drain.number.to_string();
                let labels = [("drain", &*number), ("target", &drain.target)];
                self.sample(name, &labels, value(drain));
            }
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.text.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            self.write(format_args!("{before}{label}=\"{}\"", Escaped(text)));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.write(format_args!(" {value}\n"));
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("memory takes everything");
    }
}

/// A label's value as the format wants it.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

/// Milliseconds as seconds.
struct Thousandths(i64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0.rem_euclid(1000))
    }
}

#[cfg(test)]
mod tests {
    use hsup_proto::control::Process;

    use super::*;
    use crate::logs::Counts;

    #[test]
    fn the_page_is_what_a_scraper_reads() {
        let dyno = |name: &str, state: DynoState, restarts| Dyno {
            name: name.into(),
            process_type: name.split('.').next().unwrap().into(),
            state: state.into(),
            restarts,
            memory_bytes: (restarts > 0).then_some(4096),
            ..Default::default()
        };
        let release = |version, state: ReleaseState| Release {
            version,
            state: state.into(),
            ..Default::default()
        };
        let status = GetStatusResponse {
            app: "a\"b\\c\nd".into(),
            driver: "simple".into(),
            driver_ready: true,
            hsup_version: "0.2.0".into(),
            started_at_unix_ms: 1_795_867_200_042,
            release: Some(release(7, ReleaseState::Current)),
            formation: vec![Process {
                process_type: "web".into(),
                quantity: 2,
                ..Default::default()
            }],
            dynos: vec![
                dyno("web.1", DynoState::Up, 3),
                dyno("web.2", DynoState::Crashed, 0),
                // What it takes the place of.
                dyno("web.1", DynoState::Stopping, 9),
            ],
            ..Default::default()
        };
        let releases = [
            release(7, ReleaseState::Current),
            release(6, ReleaseState::Superseded),
            release(5, ReleaseState::Superseded),
        ];
        let drains = [DrainStatus {
            number: 3,
            target: "logplex+https://logs.example".into(),
            counts: Counts {
                read: 15,
                sent: 4,
                dropped: 3,
                lost: 2,
                queued: 1,
                sending: 5,
                queued_bytes: 99,
            },
        }];
        let text = render(&status, &releases, &drains);
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let drain = "{drain=\"3\",target=\"logplex+https://logs.example\"}";
        let expected = [
            r#"hsup_info{app="a\"b\\c\nd",driver="simple",version="0.2.0"} 1"#.to_owned(),
            "hsup_start_time_seconds 1795867200.042".to_owned(),
            "hsup_driver_ready 1".to_owned(),
            r#"hsup_formation{type="web"} 2"#.to_owned(),
            r#"hsup_dynos{type="web",state="starting"} 0"#.to_owned(),
            r#"hsup_dynos{type="web",state="up"} 1"#.to_owned(),
            r#"hsup_dynos{type="web",state="crashed"} 1"#.to_owned(),
            r#"hsup_dynos{type="web",state="stopping"} 1"#.to_owned(),
            r#"hsup_dynos{type="web",state="down"} 0"#.to_owned(),
            r#"hsup_dynos{type="web",state="complete"} 0"#.to_owned(),
            r#"hsup_dyno_restarts_total{dyno="web.1",type="web"} 3"#.to_owned(),
            r#"hsup_dyno_restarts_total{dyno="web.2",type="web"} 0"#.to_owned(),
            r#"hsup_dyno_memory_bytes{dyno="web.1",type="web"} 4096"#.to_owned(),
            "hsup_release_version 7".to_owned(),
            r#"hsup_releases{state="current"} 1"#.to_owned(),
            r#"hsup_releases{state="superseded"} 2"#.to_owned(),
            format!("hsup_drain_lines_read_total{drain} 15"),
            format!("hsup_drain_lines_sent_total{drain} 4"),
            format!("hsup_drain_lines_dropped_total{drain} 3"),
            format!("hsup_drain_lines_lost_total{drain} 2"),
            format!("hsup_drain_queue_lines{drain} 1"),
            format!("hsup_drain_sending_lines{drain} 5"),
            format!("hsup_drain_queue_bytes{drain} 99"),
        ];
        assert_eq!(samples, expected);
        // Every sample stands below the type of its own family.
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(family), "{line} below {family}");
            }
        }
    }
}
