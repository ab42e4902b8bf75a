//! `hsupctl status`: one screen, as systemctl's, for the app or for each dyno asked for.

use std::fmt;

use hsup_core::lifecycle::words;
use hsup_proto::control::{DynoState, GetStatusRequest, GetStatusResponse};

use super::{
    Outcome,
    connect::Supervisor,
    dyno::{self, DynoReport},
    error::CtlError,
    promptly,
    ps::{EXIT_NOT_UP, no_dynos},
};
use crate::look::{Colour, Look, Report, bytes, cpu, one_line};

/// Of how many dynos the app's screen tells what is wrong with them.
const PROBLEMS_SHOWN: usize = 8;
/// How many last lines a dyno's screen shows.
const LAST_LINES: u32 = 10;
/// Of how many dynos that crashed the app's screen shows last lines, and how many of each: all
/// of it is to be one screen.
const CRASHES_SHOWN: usize = 3;
const CRASH_LINES: usize = 5;

/// The app's screen.
#[derive(Debug)]
pub struct AppReport {
    answer: GetStatusResponse,
    dynos: Vec<DynoReport>,
}

/// A dyno's screen.
#[derive(Debug)]
pub struct DynoScreen<'a> {
    dyno: &'a DynoReport,
    driver: String,
}

pub async fn run(
    mut supervisor: Supervisor,
    select: Vec<String>,
    look: &Look,
) -> Result<Outcome, CtlError> {
    let of_dynos = !select.is_empty();
    let request = GetStatusRequest {
        select: select.clone(),
        stats: true,
        last_lines: if of_dynos { LAST_LINES } else { 0 },
    };
    let asked = promptly(supervisor.client.get_status(request)).await;
    let mut answer = asked.map_err(CtlError::about_names)?;
    let all_up = answer.all_up;
    let code = |is_active: bool| {
        if all_up && is_active { 0 } else { EXIT_NOT_UP }
    };
    if of_dynos && answer.dynos.is_empty() {
        // Process types that hsup knows and of which none is wanted.
        let text = no_dynos(&select, &answer.app);
        return Ok(Outcome::new(text, code(true)));
    }
    let mut dynos: Vec<_> = std::mem::take(&mut answer.dynos)
        .into_iter()
        .map(DynoReport::from)
        .collect();
    let (text, is_active) = if of_dynos {
        let driver = driver(&answer, look);
        let screens = dynos.iter().map(|dyno| DynoScreen {
            dyno,
            driver: driver.clone(),
        });
        let screens: Vec<_> = screens.map(|s| s.show(look).to_string()).collect();
        // Whoever asks for a dyno asks whether it runs, not whether it is meant to.
        (screens.join("\n"), !dynos.iter().any(DynoReport::is_down))
    } else {
        add_crash_lines(&mut supervisor, &mut dynos).await;
        let report = AppReport { answer, dynos };
        (report.show(look).to_string(), report.is_active())
    };
    Ok(Outcome::new(text, code(is_active)))
}

/// Asks for what the first dynos that crashed wrote last. They are asked for by name: to have
/// lines of all dynos, of which most are well, would cost hsup more than it is worth.
async fn add_crash_lines(supervisor: &mut Supervisor, dynos: &mut [DynoReport]) {
    let crashed = dynos.iter().filter(|dyno| dyno.state == DynoState::Crashed);
    let select: Vec<_> = crashed
        .take(CRASHES_SHOWN)
        .map(|dyno| dyno.name.clone())
        .collect();
    if select.is_empty() {
        return;
    }
    let request = GetStatusRequest {
        select,
        last_lines: LAST_LINES,
        ..GetStatusRequest::default()
    };
    // One of them may be gone by now; the rest of the screen is true without their lines.
    let Ok(answer) = promptly(supervisor.client.get_status(request)).await else {
        return;
    };
    for mut asked in answer.dynos {
        if let Some(dyno) = dynos.iter_mut().find(|dyno| dyno.name == asked.name) {
            let surplus = asked.crash_lines.len().saturating_sub(CRASH_LINES);
            dyno.crash_lines = asked.crash_lines.split_off(surplus);
        }
    }
}

fn driver(answer: &GetStatusResponse, look: &Look) -> String {
    let name = match answer.driver.as_str() {
        "" => "none",
        name => name,
    };
    match (answer.driver_ready, answer.driver_message.as_str()) {
        (true, "") => name.to_owned(),
        (true, message) => format!("{name} ({message})"),
        (false, "") => look.paint(Colour::Red, format!("{name} (not ready)")),
        (false, why) => look.paint(Colour::Red, format!("{name} (not ready: {why})")),
    }
}

fn dot(dyno: &DynoReport) -> &'static str {
    match dyno.state {
        DynoState::Up | DynoState::Starting | DynoState::Stopping => "●",
        DynoState::Crashed => "×",
        DynoState::Down | DynoState::Complete | DynoState::Unspecified => "○",
    }
}

fn field(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{name:>11}: {value}")
}

/// Indented; a colour that a line leaves on ends with it.
fn lines(f: &mut fmt::Formatter<'_>, lines: &[String], indent: usize, look: &Look) -> fmt::Result {
    for line in lines {
        let line = line.trim_end_matches('\r');
        let reset = if look.colour && line.contains('\x1b') {
            "\x1b[0m"
        } else {
            ""
        };
        writeln!(f, "{:indent$}{line}{reset}", "")?;
    }
    Ok(())
}

impl Report for DynoScreen<'_> {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let dyno = self.dyno;
        let dot = look.paint(dyno.colour(), dot(dyno));
        writeln!(f, "{dot} {} - {}", dyno.name, one_line(&dyno.command))?;
        let mut state = look.paint(dyno.colour(), words::heroku(dyno.state));
        if dyno.since_ms != 0 {
            let (time, age) = (look.time(dyno.since_ms), look.age(dyno.since_ms));
            state.extend([" since ", &time, "; ", &age, " ago"]);
        }
        field(f, "State", state)?;
        if let Some(trouble) = dyno.trouble(look) {
            field(f, "Trouble", one_line(&trouble))?;
        } else if dyno.state == DynoState::Up && !dyno.ready {
            field(f, "Trouble", "not ready yet")?;
        }
        field(f, "Release", format_args!("v{}", dyno.release))?;
        if let Some(port) = dyno.port {
            match &dyno.ip {
                Some(ip) => field(f, "Port", dyno::address(ip, port))?,
                None => field(f, "Port", port)?,
            }
        }
        if let Some(node) = &dyno.node {
            field(f, "Node", one_line(node))?;
        }
        if let Some(pid) = dyno.pid {
            field(f, "Main PID", pid)?;
        }
        field(f, "Restarts", dyno.restarts)?;
        if let Some(exit) = &dyno.last_exit {
            let at = look.time(exit.at_ms);
            field(f, "Last exit", format_args!("{at} {}", exit.systemd()))?;
        }
        if let Some(memory) = dyno.memory_bytes {
            field(f, "Memory", bytes(memory))?;
        }
        if let Some(ns) = dyno.cpu_ns {
            field(f, "CPU", cpu(ns))?;
        }
        if let Some(pids) = dyno.pids {
            field(f, "Tasks", pids)?;
        }
        field(f, "Driver", &self.driver)?;
        if !dyno.last_lines.is_empty() {
            writeln!(f)?;
            lines(f, &dyno.last_lines, 4, look)?;
        }
        let Some(crash) = &dyno.crash else {
            return Ok(());
        };
        if dyno.crash_lines.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\nThe last crash: {} {}; its last lines:",
            look.time(crash.at_ms),
            crash.systemd()
        )?;
        lines(f, &dyno.crash_lines, 4, look)
    }
}

impl AppReport {
    /// Whether there is a dyno that is meant to run.
    fn is_active(&self) -> bool {
        !self.dynos.iter().all(DynoReport::is_down)
    }
}

impl Report for AppReport {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let answer = &self.answer;
        let some_up = self.dynos.iter().any(|dyno| dyno.state == DynoState::Up);
        let (dot, colour) = match (answer.all_up, some_up) {
            (true, _) if !self.is_active() => ("○", Colour::Grey),
            (true, _) => ("●", Colour::Green),
            (false, true) => ("●", Colour::Yellow),
            (false, false) => ("×", Colour::Red),
        };
        let app = match answer.app.as_str() {
            "" => "this app",
            app => app,
        };
        writeln!(f, "{} {app}", look.paint(colour, dot))?;
        match &answer.release {
            None => field(f, "Release", "none yet")?,
            Some(release) => {
                let since = look.time_ago(release.at_unix_ms);
                let (version, source) = (release.version, &release.source);
                field(
                    f,
                    "Release",
                    format_args!("v{version} from {source}, {since}"),
                )?;
            }
        }
        let formation: Vec<_> = answer
            .formation
            .iter()
            .map(|process| format!("{}={}", process.process_type, process.quantity))
            .collect();
        if !formation.is_empty() {
            field(f, "Formation", formation.join(" "))?;
        }
        field(f, "Dynos", counts(&self.dynos))?;
        field(f, "Driver", driver(answer, look))?;
        let (version, pid) = (&answer.hsup_version, answer.pid);
        let since = look.time_ago(answer.started_at_unix_ms);
        field(
            f,
            "hsup",
            format_args!("{version}, process {pid}, since {since}"),
        )?;
        let problems: Vec<_> = self
            .dynos
            .iter()
            .filter_map(|dyno| Some((dyno, dyno.trouble(look)?)))
            .collect();
        if !problems.is_empty() {
            writeln!(f)?;
        }
        for (dyno, trouble) in problems.iter().take(PROBLEMS_SHOWN) {
            writeln!(
                f,
                "    {} {}: {}",
                look.paint(Colour::Red, "×"),
                dyno.name,
                one_line(trouble)
            )?;
            lines(f, &dyno.crash_lines, 8, look)?;
        }
        match problems.len().saturating_sub(PROBLEMS_SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "    and {more} more: `hsupctl ps` shows all"),
        }
    }
}

/// `3 up, 1 crashed`, in the order in which a state first occurs.
fn counts(dynos: &[DynoReport]) -> String {
    let mut counts: Vec<(DynoState, usize)> = Vec::new();
    for dyno in dynos {
        match counts.iter_mut().find(|(state, _)| *state == dyno.state) {
            Some((_, count)) => *count += 1,
            None => counts.push((dyno.state, 1)),
        }
    }
    if counts.is_empty() {
        return "none".to_owned();
    }
    let words: Vec<_> = counts
        .iter()
        .map(|(state, count)| format!("{count} {}", words::heroku(*state)))
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use hsup_proto::control::{Process, Release};

    use super::*;
    use crate::{
        ctl::dyno::tests::{crashed, web},
        look::tests::{NOW, plain},
    };

    fn screen(dyno: hsup_proto::control::Dyno) -> String {
        let screen = DynoScreen {
            dyno: &dyno.into(),
            driver: "simple".to_owned(),
        };
        screen.show(&plain()).to_string()
    }

    #[test]
    fn a_dyno_that_is_up() {
        let mut dyno = web(1);
        dyno.memory_bytes = Some(13_107_200);
        dyno.pid = Some(4711);
        dyno.last_lines = vec!["Listening on 5000".to_owned()];
        assert_eq!(
            screen(dyno),
            "● web.1 - python3 app.py\n\
             \x20     State: up since 2026/11/23 18:42:10 +0000; 1h ago\n\
             \x20   Release: v7\n\
             \x20      Port: 127.0.0.1:5000\n\
             \x20  Main PID: 4711\n\
             \x20  Restarts: 0\n\
             \x20    Memory: 12.5M\n\
             \x20    Driver: simple\n\
             \n\
             \x20   Listening on 5000\n"
        );
    }

    #[test]
    fn a_dyno_on_another_machine_has_its_node() {
        let mut dyno = web(1);
        dyno.node = "swarm-2".to_owned();
        let text = screen(dyno);
        assert!(
            text.contains("     Port: 127.0.0.1:5000\n       Node: swarm-2\n"),
            "{text}"
        );
    }

    #[test]
    fn an_ipv6_address_is_told_from_the_port() {
        let mut dyno = web(1);
        dyno.ip = "fd00::1".to_owned();
        let text = screen(dyno);
        assert!(text.contains("     Port: [fd00::1]:5000\n"), "{text}");
    }

    #[test]
    fn a_command_of_many_lines_has_one() {
        let mut dyno = web(1);
        dyno.command = "first\nsecond".to_owned();
        let text = screen(dyno);
        assert!(text.starts_with("● web.1 - first\\nsecond\n"), "{text}");
    }

    #[test]
    fn a_dyno_that_crashed_has_a_crash_report() {
        let mut dyno = crashed();
        dyno.crash_lines = vec!["Traceback".to_owned(), "KeyError: 'x'".to_owned()];
        assert_eq!(
            screen(dyno),
            "× web.2 - python3 app.py\n\
             \x20     State: crashed since 2026/11/23 19:42:07 +0000; 3s ago\n\
             \x20   Trouble: exited with code 1, starting again in 12s (4th crash)\n\
             \x20   Release: v7\n\
             \x20      Port: 127.0.0.1:5001\n\
             \x20  Restarts: 3\n\
             \x20 Last exit: 2026/11/23 19:42:07 +0000 (code=exited, status=1)\n\
             \x20    Driver: simple\n\
             \n\
             The last crash: 2026/11/23 19:42:07 +0000 (code=exited, status=1); its last lines:\n\
             \x20   Traceback\n\
             \x20   KeyError: 'x'\n"
        );
    }

    #[test]
    fn an_app_that_was_stopped_is_grey() {
        let look = Look {
            colour: true,
            ..plain()
        };
        let shown = |dynos: &[&hsup_proto::control::Dyno]| {
            let report = AppReport {
                dynos: dynos.iter().map(|&dyno| dyno.clone().into()).collect(),
                answer: GetStatusResponse {
                    app: "shop".to_owned(),
                    all_up: true,
                    ..GetStatusResponse::default()
                },
            };
            let text = report.show(&look).to_string();
            (text.lines().next().unwrap().to_owned(), report.is_active())
        };
        let stopped = hsup_proto::control::Dyno {
            state: DynoState::Down.into(),
            ready: false,
            ..web(2)
        };
        let grey = ("\x1b[90m○\x1b[0m shop".to_owned(), false);
        assert_eq!(shown(&[&stopped]), grey);
        assert_eq!(shown(&[]), grey, "nothing is wanted of it");
        let green = ("\x1b[32m●\x1b[0m shop".to_owned(), true);
        assert_eq!(shown(&[&web(1), &stopped]), green);
    }

    #[test]
    fn an_app_with_many_problems_has_one_screen() {
        let dynos = (1..=60).map(|number| hsup_proto::control::Dyno {
            name: format!("job.{number}"),
            ..crashed()
        });
        let report = AppReport {
            dynos: dynos.map(DynoReport::from).collect(),
            answer: GetStatusResponse::default(),
        };
        let text = report.show(&plain()).to_string();
        assert!(text.lines().count() < 24, "{text}");
        assert!(
            text.ends_with("    and 52 more: `hsupctl ps` shows all\n"),
            "{text}"
        );
    }

    #[test]
    fn an_app_with_a_problem() {
        let process = |name: &str, quantity| Process {
            process_type: name.to_owned(),
            quantity,
            command: String::new(),
        };
        let crashed = hsup_proto::control::Dyno {
            crash_lines: vec!["Traceback".to_owned(), "KeyError: 'x'".to_owned()],
            ..crashed()
        };
        let report = AppReport {
            dynos: vec![web(1).into(), crashed.into(), web(3).into()],
            answer: GetStatusResponse {
                app: "shop".to_owned(),
                release: Some(Release {
                    version: 7,
                    source: "Procfile".to_owned(),
                    at_unix_ms: NOW - 60_000,
                    ..Release::default()
                }),
                formation: vec![process("web", 3), process("worker", 0)],
                driver: "simple".to_owned(),
                driver_ready: false,
                driver_message: "out of disk".to_owned(),
                hsup_version: "0.2.0".to_owned(),
                started_at_unix_ms: NOW - 120_000,
                pid: 12,
                ..GetStatusResponse::default()
            },
        };
        assert_eq!(
            report.show(&plain()).to_string(),
            "● shop\n\
             \x20   Release: v7 from Procfile, 2026/11/23 19:41:10 +0000 (~ 1m ago)\n\
             \x20 Formation: web=3 worker=0\n\
             \x20     Dynos: 2 up, 1 crashed\n\
             \x20    Driver: simple (not ready: out of disk)\n\
             \x20      hsup: 0.2.0, process 12, since 2026/11/23 19:40:10 +0000 (~ 2m ago)\n\
             \n\
             \x20   × web.2: exited with code 1, starting again in 12s (4th crash)\n\
             \x20       Traceback\n\
             \x20       KeyError: 'x'\n"
        );
    }
}
