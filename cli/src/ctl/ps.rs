//! `hsupctl ps`: the dynos, as `heroku ps` lists them, as a table, or as JSON.

use std::{fmt, net::IpAddr};

use hsup_core::lifecycle::words;
use hsup_proto::control::{DynoState, GetStatusRequest, GetStatusResponse};
use serde::Serialize;

use super::{
    Outcome,
    args::{PsArgs, PsOutput},
    connect::Supervisor,
    dyno::{self, DynoReport, ExitReport},
    error::{CtlError, EXIT_UNKNOWN},
    promptly, to_json, to_json_lines,
};
use crate::look::{Cell, Colour, GAP, Look, Report, bytes, cpu, fitting, one_line, table, widths};

/// Some wanted dyno is not up: as LSB's "not running".
pub const EXIT_NOT_UP: u8 = 3;

/// The dynos that were asked for.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct PsReport {
    pub dynos: Vec<DynoReport>,
}

/// The same, one row for each.
#[derive(Debug)]
pub struct Wide<'a>(&'a PsReport);

pub async fn run(
    mut supervisor: Supervisor,
    args: PsArgs,
    look: &Look,
) -> Result<Outcome, CtlError> {
    match ask(&mut supervisor, &args, args.names.clone()).await {
        Err(CtlError::NotFound(_)) => {
            let (answer, unknown) = without_unknown(&mut supervisor, &args).await?;
            outcome(answer, &unknown, &args, look)
        }
        answer => outcome(answer?, &[], &args, look),
    }
}

async fn ask(
    supervisor: &mut Supervisor,
    args: &PsArgs,
    select: Vec<String>,
) -> Result<GetStatusResponse, CtlError> {
    let request = GetStatusRequest {
        select,
        stats: args.output.is_some(),
        last_lines: 0,
    };
    let answer = promptly(supervisor.client.get_status(request)).await;
    answer.map_err(CtlError::about_names)
}

/// hsup refuses a request for one unknown name among others. Finds out which names those
/// are, and asks for the rest.
async fn without_unknown(
    supervisor: &mut Supervisor,
    args: &PsArgs,
) -> Result<(GetStatusResponse, Vec<String>), CtlError> {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for name in &args.names {
        match ask(supervisor, args, vec![name.clone()]).await {
            Ok(_) => known.push(name.clone()),
            Err(CtlError::NotFound(_)) => unknown.push(name.clone()),
            Err(error) => return Err(error),
        }
    }
    let none_is_known = known.is_empty();
    let mut answer = ask(supervisor, args, known).await?;
    if none_is_known {
        // Only the app's name was wanted.
        answer.dynos.clear();
    }
    Ok((answer, unknown))
}

fn outcome(
    answer: GetStatusResponse,
    unknown: &[String],
    args: &PsArgs,
    look: &Look,
) -> Result<Outcome, CtlError> {
    let code = match (unknown, answer.all_up) {
        ([], true) => 0,
        ([], false) => EXIT_NOT_UP,
        _ => EXIT_UNKNOWN,
    };
    let mut outcome = Outcome::new(String::new(), code);
    outcome.complaint = driver_trouble(&answer);
    let report = PsReport {
        dynos: answer.dynos.into_iter().map(Into::into).collect(),
    };
    let missing = if report.dynos.is_empty() {
        no_dynos(&args.names, &answer.app)
    } else if unknown.is_empty() {
        String::new()
    } else {
        no_dynos(unknown, &answer.app)
    };
    // What programs read stays readable by them: an empty array.
    let for_programs = match args.output {
        _ if args.quiet => Some(names(&report)),
        Some(PsOutput::Json) => Some(to_json(&report)?),
        Some(PsOutput::Jsonl) => Some(to_json_lines(&report.dynos)?),
        Some(PsOutput::Wide) | None => None,
    };
    if let Some(text) = for_programs {
        outcome.text = text;
        if !unknown.is_empty() {
            outcome.complaint.push_str(&missing);
        }
        return Ok(outcome);
    }
    if !report.dynos.is_empty() {
        outcome.text = match args.output {
            Some(_) => Wide(&report).show(look).to_string(),
            None => report.show(look).to_string(),
        };
    }
    outcome.text.push_str(&missing);
    Ok(outcome)
}

/// Without its driver hsup knows of no dyno how it is now.
fn driver_trouble(answer: &GetStatusResponse) -> String {
    match (answer.driver.as_str(), answer.driver_message.as_str()) {
        _ if answer.driver_ready => String::new(),
        ("", "") => String::new(),
        ("", why) => format!("The driver is gone: {why}\n"),
        (name, "") => format!("The {name} driver is not ready\n"),
        (name, why) => format!("The {name} driver is not ready: {why}\n"),
    }
}

fn names(report: &PsReport) -> String {
    let mut text = String::new();
    for dyno in &report.dynos {
        text.extend([&dyno.name, "\n"]);
    }
    text
}

/// In Heroku's words.
pub(super) fn no_dynos(names: &[String], app: &str) -> String {
    let app = if app.is_empty() { "this app" } else { app };
    match names {
        [] => format!("No dynos on {app}\n"),
        names => format!("No {} dynos on {app}\n", names.join(" or ")),
    }
}

impl Report for PsReport {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let mut rest = self.dynos.as_slice();
        while let Some(first) = rest.first() {
            let same = |dyno: &&DynoReport| dyno.process_type == first.process_type;
            let count = rest.iter().take_while(same).count();
            let (group, others) = rest.split_at(count);
            write_group(f, look, group)?;
            rest = others;
        }
        Ok(())
    }
}

fn write_group(f: &mut fmt::Formatter<'_>, look: &Look, group: &[DynoReport]) -> fmt::Result {
    let first = &group[0];
    let (process_type, command) = (&first.process_type, one_line(&first.command));
    writeln!(f, "=== {process_type}: {command} ({})\n", group.len())?;
    for dyno in group {
        write!(
            f,
            "{}: {}",
            dyno.name,
            look.paint(dyno.colour(), words::heroku(dyno.state))
        )?;
        if dyno.since_ms != 0 {
            let time = look.time_ago(dyno.since_ms);
            write!(f, " {}", look.paint(Colour::Grey, time))?;
        }
        match dyno.trouble(look) {
            Some(trouble) => writeln!(f, ": {}", one_line(&trouble))?,
            None => writeln!(f)?,
        }
    }
    writeln!(f)
}

impl Report for Wide<'_> {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let header = COLUMNS.map(|(name, _)| Cell::from(name));
        let mut rows = vec![header.to_vec()];
        rows.extend(self.0.dynos.iter().map(|dyno| row(dyno, look)));
        let has_nodes = self.0.dynos.iter().any(|dyno| dyno.node.is_some());
        let shown = (0..COLUMNS.len()).filter(|column| has_nodes || *column != NODE);
        let mut kept: Vec<_> = shown.collect();
        if let Some(width) = look.width {
            kept = fitting(kept, &widths(&rows), GAP, |column| COLUMNS[column].1, width);
        }
        for row in &mut rows {
            let mut column = 0..;
            row.retain(|_| column.next().is_some_and(|column| kept.contains(&column)));
        }
        f.write_str(&table(&rows, look))
    }
}

/// The columns of [`Wide`], and when a terminal that is too narrow goes without them: the
/// highest number first, and never without 0. What is up and not ready gets no requests: no figure
/// says as much of a dyno.
const COLUMNS: [(&str, u8); 12] = [
    ("NAME", 0),
    ("STATE", 0),
    ("READY", 2),
    ("PID", 10),
    ("RELEASE", 9),
    ("AGE", 1),
    ("RESTARTS", 3),
    ("LAST-EXIT", 4),
    ("CPU", 6),
    ("MEM", 5),
    ("PORT", 8),
    ("NODE", 7),
];
/// The one that is there where a driver has several machines.
const NODE: usize = COLUMNS.len() - 1;

fn row(dyno: &DynoReport, look: &Look) -> Vec<Cell> {
    let or_dash = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "-".to_owned()));
    let state = match dyno.retry_at_ms.map(|at| look.seconds_until(at)) {
        Some(seconds) if dyno.state == DynoState::Crashed => {
            format!("crashed, again in {seconds}s")
        }
        _ => words::heroku(dyno.state).to_owned(),
    };
    vec![
        dyno.name.clone().into(),
        Cell::coloured(state, dyno.colour()),
        if dyno.ready { "yes" } else { "no" }.into(),
        or_dash(dyno.pid.map(|pid| pid.to_string())),
        format!("v{}", dyno.release).into(),
        or_dash((dyno.since_ms != 0).then(|| look.age(dyno.since_ms))),
        dyno.restarts.to_string().into(),
        or_dash(dyno.last_exit.as_ref().map(ExitReport::word)),
        or_dash(dyno.cpu_ns.map(cpu)),
        or_dash(dyno.memory_bytes.map(bytes)),
        or_dash(dyno.port.map(|port| address(dyno.ip.as_deref(), port))),
        or_dash(dyno.node.as_deref().map(one_line)),
    ]
}

/// Where a dyno is reached: by its port, and by its address if that is not this host's own.
fn address(ip: Option<&str>, port: u32) -> String {
    let is_elsewhere = |ip: &&str| ip.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback());
    match ip.filter(is_elsewhere) {
        Some(ip) => dyno::address(ip, port),
        None => port.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use hsup_proto::control::Dyno;

    use super::*;
    use crate::{
        ctl::dyno::tests::{crashed, web},
        look::tests::plain,
    };

    fn worker() -> Dyno {
        Dyno {
            name: "worker.1".to_owned(),
            process_type: "worker".to_owned(),
            command: "./work".to_owned(),
            port: 0,
            cpu_ns: Some(2_100_000_000),
            memory_bytes: Some(13_107_200),
            pid: Some(4711),
            ..web(1)
        }
    }

    fn ps(output: Option<PsOutput>, quiet: bool) -> Outcome {
        let answer = GetStatusResponse {
            app: "shop".to_owned(),
            dynos: vec![web(1), crashed(), worker()],
            all_up: false,
            ..GetStatusResponse::default()
        };
        let args = PsArgs {
            names: Vec::new(),
            output,
            quiet,
        };
        outcome(answer, &[], &args, &plain()).unwrap()
    }

    #[test]
    fn dynos_are_grouped_as_heroku_groups_them() {
        let outcome = ps(None, false);
        assert_eq!(
            outcome.text,
            "=== web: python3 app.py (2)\n\
             \n\
             web.1: up 2026/11/23 18:42:10 +0000 (~ 1h ago)\n\
             web.2: crashed 2026/11/23 19:42:07 +0000 (~ 3s ago): \
             exited with code 1, starting again in 12s (4th crash)\n\
             \n\
             === worker: ./work (1)\n\
             \n\
             worker.1: up 2026/11/23 18:42:10 +0000 (~ 1h ago)\n\
             \n"
        );
        assert_eq!(outcome.code, 3);
    }

    #[test]
    fn an_address_that_is_not_this_hosts_is_told() {
        assert_eq!(address(None, 5000), "5000");
        assert_eq!(address(Some("127.0.0.1"), 5000), "5000");
        assert_eq!(address(Some("172.16.0.30"), 5000), "172.16.0.30:5000");
        assert_eq!(address(Some("fd00::1"), 5000), "[fd00::1]:5000");
    }

    #[test]
    fn a_command_of_many_lines_has_one_in_the_header() {
        let dyno = Dyno {
            command: "while true\ndo x; done".to_owned(),
            ..web(1)
        };
        let report = PsReport {
            dynos: vec![dyno.into()],
        };
        let text = report.show(&plain()).to_string();
        let header = "=== web: while true\\ndo x; done (1)\n";
        assert!(text.starts_with(header), "{text}");
    }

    #[test]
    fn colours_are_herokus() {
        let look = Look {
            colour: true,
            ..plain()
        };
        let report = PsReport {
            dynos: vec![web(1).into()],
        };
        let text = report.show(&look).to_string();
        let expected =
            "web.1: \x1b[32mup\x1b[0m \x1b[90m2026/11/23 18:42:10 +0000 (~ 1h ago)\x1b[0m";
        assert!(text.contains(expected), "{text:?}");
    }

    #[test]
    fn wide_is_a_table() {
        assert_eq!(
            ps(Some(PsOutput::Wide), false).text,
            "NAME      STATE                  READY  PID   RELEASE  AGE  RESTARTS  LAST-EXIT  CPU   MEM    PORT\n\
             web.1     up                     yes    -     v7       1h   0         -          -     -      5000\n\
             web.2     crashed, again in 12s  no     -     v7       3s   3         1          -     -      5001\n\
             worker.1  up                     yes    4711  v7       1h   0         -          2.1s  12.5M  -\n"
        );
    }

    #[test]
    fn nodes_are_shown_where_there_is_one() {
        let on = |dyno: Dyno, node: &str| Dyno {
            node: node.to_owned(),
            ..dyno
        };
        let dynos = [on(web(1), "swarm-2"), crashed(), on(worker(), "a\nb")];
        let report = PsReport {
            dynos: dynos.map(Into::into).to_vec(),
        };
        let text = Wide(&report).show(&plain()).to_string();
        let last = text.lines().map(|line| line.rsplit_once("  ").unwrap());
        let (rest, nodes): (Vec<_>, Vec<_>) = last.unzip();
        assert_eq!(nodes, ["NODE", "swarm-2", "-", "a\\nb"]);
        assert!(rest[0].ends_with("PORT"), "{text}");
        let narrow = Look {
            width: Some(60),
            ..plain()
        };
        let text = Wide(&report).show(&narrow).to_string();
        let header = text.lines().next().unwrap();
        assert!(!header.contains("NODE") && header.contains("AGE"), "{text}");
    }

    fn wide(look: &Look) -> String {
        let dynos = [web(1), crashed(), worker()];
        let report = PsReport {
            dynos: dynos.map(Into::into).to_vec(),
        };
        Wide(&report).show(look).to_string()
    }

    #[test]
    fn a_narrow_terminal_gets_the_columns_that_matter() {
        let at = |width| {
            let look = Look {
                width: Some(width),
                ..plain()
            };
            let text = wide(&look);
            let header = text.lines().next().unwrap().split_whitespace();
            let longest = text.lines().map(str::len).max().unwrap();
            (header.collect::<Vec<_>>().join(" "), longest <= width)
        };
        let full = "NAME STATE READY PID RELEASE AGE RESTARTS LAST-EXIT CPU MEM PORT";
        let some = "NAME STATE READY AGE RESTARTS LAST-EXIT CPU MEM";
        for (width, columns, fits) in [
            (200, full, true),
            (99, full, true),
            (80, some, true),
            (48, "NAME STATE READY AGE", true),
            (40, "NAME STATE AGE", true),
            (10, "NAME STATE", false),
        ] {
            assert_eq!(at(width), (columns.to_owned(), fits), "{width}");
        }
    }

    #[test]
    fn in_a_table_the_state_has_its_colour() {
        let look = Look {
            colour: true,
            ..plain()
        };
        let text = wide(&look);
        assert!(
            text.contains("web.1     \x1b[32mup\x1b[0m      "),
            "{text:?}"
        );
        assert!(
            text.contains("\x1b[31mcrashed, again in 12s\x1b[0m  no"),
            "{text:?}"
        );
    }

    #[test]
    fn quiet_is_the_names() {
        assert_eq!(ps(None, true).text, "web.1\nweb.2\nworker.1\n");
    }

    #[test]
    fn json_is_an_array_and_jsonl_an_object_a_line() {
        let text = ps(Some(PsOutput::Json), false).text;
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json[1]["state"], "crashed");
        assert_eq!(json[1]["last_exit"]["code"], 1);
        let text = ps(Some(PsOutput::Jsonl), false).text;
        let names: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["name"].clone())
            .collect();
        assert_eq!(names, ["web.1", "web.2", "worker.1"]);
    }

    fn asked(names: &[&str], output: Option<PsOutput>, dynos: &[Dyno]) -> Outcome {
        let answer = GetStatusResponse {
            app: "shop".to_owned(),
            dynos: dynos.to_vec(),
            all_up: true,
            ..GetStatusResponse::default()
        };
        let args = PsArgs {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            output,
            quiet: false,
        };
        // `idle` is a type of which none is wanted.
        let mut unknown = args.names.clone();
        unknown.retain(|name| name == "nosuch");
        outcome(answer, &unknown, &args, &plain()).unwrap()
    }

    #[test]
    fn nobody_is_said_in_herokus_words() {
        for (names, code, text) in [
            (&["nosuch"][..], 4, "No nosuch dynos on shop\n"),
            (&["idle"], 0, "No idle dynos on shop\n"),
            (&["idle", "nosuch"], 4, "No idle or nosuch dynos on shop\n"),
            (&[], 0, "No dynos on shop\n"),
        ] {
            for output in [None, Some(PsOutput::Wide)] {
                let outcome = asked(names, output, &[]);
                assert_eq!((outcome.text.as_str(), outcome.code), (text, code));
            }
        }
    }

    #[test]
    fn a_driver_that_is_not_ready_is_complained_of_beside_the_dynos() {
        let answer = |ready, driver: &str, message: &str| GetStatusResponse {
            driver_ready: ready,
            driver: driver.to_owned(),
            driver_message: message.to_owned(),
            dynos: vec![web(1)],
            ..GetStatusResponse::default()
        };
        for (answer, complaint) in [
            (answer(true, "simple", "as root"), ""),
            (
                answer(false, "simple", "it does not answer its health checks"),
                "The simple driver is not ready: it does not answer its health checks\n",
            ),
            (
                answer(false, "", "it ended"),
                "The driver is gone: it ended\n",
            ),
        ] {
            let args = PsArgs {
                names: Vec::new(),
                output: None,
                quiet: true,
            };
            let outcome = outcome(answer, &[], &args, &plain()).unwrap();
            assert_eq!(outcome.text, "web.1\n");
            assert_eq!(outcome.complaint, complaint);
        }
    }

    #[test]
    fn the_unknown_ones_are_named_and_the_rest_is_listed() {
        let outcome = asked(&["web", "nosuch"], None, &[web(1)]);
        let expected = "=== web: python3 app.py (1)\n\n\
            web.1: up 2026/11/23 18:42:10 +0000 (~ 1h ago)\n\n\
            No nosuch dynos on shop\n";
        assert_eq!((outcome.text.as_str(), outcome.code), (expected, 4));
        let outcome = asked(&["web", "nosuch"], Some(PsOutput::Json), &[web(1)]);
        let json: serde_json::Value = serde_json::from_str(&outcome.text).unwrap();
        assert_eq!(json[0]["name"], "web.1");
        assert_eq!(outcome.complaint, "No nosuch dynos on shop\n");
        assert_eq!(asked(&["idle"], Some(PsOutput::Json), &[]).text, "[]\n");
    }
}
