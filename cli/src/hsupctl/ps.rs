//! `hsupctl ps`: the dynos, as `heroku ps` shows them, as a table, or as JSON.

use std::{collections::BTreeSet, fmt};

use hsup_proto::control::{Dyno, GetStatusRequest, GetStatusResponse};
use serde::Serialize;

use super::{
    connect::Client,
    error::{CtlError, NOT_ALL_UP, OK},
    view::{self, DynoView},
};
use crate::{
    moment::{Moment, short},
    style::{Colour, Style, printable},
};

/// How `ps` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table with one row for each dyno
    Wide,
    /// A JSON array
    Json,
    /// One JSON object on each line
    Jsonl,
}

/// Lists dynos and their states
///
/// Ends with 0 when every dyno that is wanted is up, 3 when some are not, and 4 when there is
/// no such dyno or no hsup.
#[derive(Clone, Debug, clap::Args)]
pub struct PsArgs {
    /// Only these process types or dynos, such as `web` or `web.1`
    #[arg(value_name = "TYPE")]
    select: Vec<String>,

    /// How to print them, instead of as `heroku ps` does
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,

    /// Print names only
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
}

/// What `hsupctl ps` found.
#[derive(Clone, Debug)]
pub struct PsReport {
    app: String,
    dynos: Vec<Dyno>,
    /// The command of each process type, in the formation's order.
    groups: Vec<(String, String)>,
    all_up: bool,
    shape: Shape,
    moment: Moment,
    style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Heroku,
    Names,
    As(Format),
}

impl PsArgs {
    /// Asks for the dynos.
    ///
    /// # Errors
    /// When there is no such dyno, or hsup does not answer.
    pub async fn run(
        self,
        client: &mut Client,
        moment: Moment,
        style: Style,
    ) -> Result<PsReport, CtlError> {
        let shape = match (self.quiet, self.output) {
            (true, _) => Shape::Names,
            (false, Some(format)) => Shape::As(format),
            (false, None) => Shape::Heroku,
        };
        let request = GetStatusRequest {
            select: self.select.clone(),
            stats: matches!(shape, Shape::As(_)),
            last_lines: 0,
        };
        let status = client.get_status(request).await?.into_inner();
        if status.dynos.is_empty() && !self.select.is_empty() {
            return Err(CtlError::NoDynos {
                what: format!("{} dynos", self.select.join(" or ")),
                app: status.app,
            });
        }
        Ok(PsReport::new(status, shape, moment, style))
    }
}

impl PsReport {
    fn new(status: GetStatusResponse, shape: Shape, moment: Moment, style: Style) -> Self {
        let mut groups: Vec<(String, String)> = status
            .formation
            .into_iter()
            .map(|process| (process.process_type, process.command))
            .collect();
        let known: BTreeSet<String> = groups.iter().map(|(name, _)| name.clone()).collect();
        for dyno in &status.dynos {
            if !known.contains(&dyno.process_type)
                && groups.iter().all(|(name, _)| *name != dyno.process_type)
            {
                groups.push((dyno.process_type.clone(), dyno.command.clone()));
            }
        }
        let mut dynos = status.dynos;
        let place = |dyno: &Dyno| {
            groups
                .iter()
                .position(|(name, _)| *name == dyno.process_type)
        };
        dynos.sort_by_key(|dyno| (place(dyno), dyno.number));
        Self {
            app: status.app,
            dynos,
            groups,
            all_up: status.all_up,
            shape,
            moment,
            style,
        }
    }

    /// 0 when all wanted dynos are up, else 3.
    pub const fn code(&self) -> u8 {
        if self.all_up { OK } else { NOT_ALL_UP }
    }

    fn heroku(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dynos.is_empty() {
            return writeln!(f, "No dynos on {}", self.app);
        }
        for (process_type, command) in &self.groups {
            let mut members = self
                .dynos
                .iter()
                .filter(|dyno| dyno.process_type == *process_type)
                .peekable();
            if members.peek().is_none() {
                continue;
            }
            let one_off = process_type == "run";
            let command = if one_off {
                "one-off processes".to_owned()
            } else {
                printable(command)
            };
            let head = format!("{process_type}: {command}");
            let count = members.clone().count();
            writeln!(
                f,
                "=== {} ({count})\n",
                self.style.paint(Colour::Bold, &head)
            )?;
            for dyno in members {
                self.heroku_line(f, dyno, one_off)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn heroku_line(&self, f: &mut fmt::Formatter<'_>, dyno: &Dyno, one_off: bool) -> fmt::Result {
        let state = self
            .style
            .paint(view::state_colour(dyno), view::state(dyno));
        write!(f, "{}: {state}", dyno.name)?;
        if dyno.since_unix_ms != 0 {
            let ago = self.moment.ago(dyno.since_unix_ms);
            let ago = match ago.as_str() {
                "" => ago,
                ago => self.style.paint(Colour::Grey, ago),
            };
            write!(f, " {}{ago}", self.moment.slashed(dyno.since_unix_ms))?;
        }
        if let Some(note) = view::crash_note(dyno, &self.moment) {
            write!(f, ": {note}")?;
        } else if one_off {
            write!(f, ": {}", printable(&dyno.command))?;
        }
        writeln!(f)
    }

    fn wide(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEAD: [&str; 10] = [
            "NAME",
            "STATE",
            "READY",
            "RELEASE",
            "AGE",
            "RESTARTS",
            "LAST-EXIT",
            "CPU",
            "MEM",
            "PORT",
        ];
        let rows: Vec<[String; 10]> = self.dynos.iter().map(|dyno| self.row(dyno)).collect();
        let widths: [usize; 10] = std::array::from_fn(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([HEAD[column].len()]).max().unwrap_or(0)
        });
        let line = |cells: [&str; 10], colour: Option<Colour>| {
            let mut line = String::new();
            for (column, cell) in cells.into_iter().enumerate() {
                let cell = format!("{cell:<0$}", widths[column]);
                line.push_str(&match colour {
                    Some(colour) if column == 1 => self.style.paint(colour, &cell),
                    _ => cell,
                });
                line.push_str("   ");
            }
            line.trim_end().to_owned()
        };
        writeln!(f, "{}", line(HEAD, None))?;
        for (row, dyno) in rows.iter().zip(&self.dynos) {
            let cells = row.each_ref().map(String::as_str);
            writeln!(f, "{}", line(cells, Some(view::state_colour(dyno))))?;
        }
        Ok(())
    }

    fn row(&self, dyno: &Dyno) -> [String; 10] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let age = (dyno.since_unix_ms != 0).then(|| short(self.moment.since(dyno.since_unix_ms)));
        [
            dyno.name.clone(),
            view::state(dyno).to_owned(),
            if dyno.ready { "yes" } else { "no" }.to_owned(),
            format!("v{}", dyno.release),
            or_dash(age),
            dyno.restarts.to_string(),
            or_dash(dyno.last_exit.as_ref().map(view::short_ending)),
            or_dash(dyno.cpu_ns.map(view::cpu)),
            or_dash(dyno.memory_bytes.map(view::bytes)),
            or_dash((dyno.port != 0).then(|| dyno.port.to_string())),
        ]
    }

    fn json(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let views: Vec<DynoView> = self.dynos.iter().map(Into::into).collect();
        let text = serde_json::to_string_pretty(&views).map_err(|_| fmt::Error)?;
        writeln!(f, "{text}")
    }

    fn jsonl(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for dyno in &self.dynos {
            let text = serde_json::to_string(&DynoView::from(dyno)).map_err(|_| fmt::Error)?;
            writeln!(f, "{text}")?;
        }
        Ok(())
    }
}

impl Serialize for PsReport {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.dynos.iter().map(DynoView::from))
    }
}

impl fmt::Display for PsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape {
            Shape::Heroku => self.heroku(f),
            Shape::Names => self
                .dynos
                .iter()
                .try_for_each(|dyno| writeln!(f, "{}", dyno.name)),
            Shape::As(Format::Wide) => self.wide(f),
            Shape::As(Format::Json) => self.json(f),
            Shape::As(Format::Jsonl) => self.jsonl(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use hsup_proto::control::{DynoState, Process};

    use super::*;
    use crate::{
        hsupctl::view::tests::{crashed, up},
        moment::tests::moment,
    };

    fn report(shape: Shape, style: Style) -> PsReport {
        let mut one_off = up("run.1");
        one_off.command = "bash".to_owned();
        let mut down = up("worker.1");
        down.set_state(DynoState::Down);
        down.since_unix_ms = 0;
        let status = GetStatusResponse {
            app: "shop".to_owned(),
            formation: vec![
                Process {
                    process_type: "web".to_owned(),
                    quantity: 2,
                    command: "python3 app.py".to_owned(),
                },
                Process {
                    process_type: "worker".to_owned(),
                    quantity: 1,
                    command: "python3 worker.py".to_owned(),
                },
            ],
            dynos: vec![one_off, crashed("web.2"), up("web.1"), down],
            ..GetStatusResponse::default()
        };
        PsReport::new(status, shape, moment(), style)
    }

    #[test]
    fn heroku_looks_as_heroku_ps() {
        assert_eq!(
            report(Shape::Heroku, Style::Plain).to_string(),
            "\
=== web: python3 app.py (2)

web.1: up 2026/11/23 18:42:10 +0000 (~ 1h ago)
web.2: crashed 2026/11/23 19:42:07 +0000 (~ 3s ago): exited with code 1, restart in 12s (4th)

=== worker: python3 worker.py (1)

worker.1: down

=== run: one-off processes (1)

run.1: up 2026/11/23 18:42:10 +0000 (~ 1h ago): bash

"
        );
    }

    #[test]
    fn colours_are_herokus() {
        let text = report(Shape::Heroku, Style::Coloured).to_string();
        assert!(
            text.contains(
                "web.1: \x1b[32mup\x1b[0m 2026/11/23 18:42:10 +0000\x1b[90m (~ 1h ago)\x1b[0m\n"
            ),
            "{text:?}"
        );
    }

    #[test]
    fn a_table_has_a_row_for_each() {
        assert_eq!(
            report(Shape::As(Format::Wide), Style::Plain).to_string(),
            "\
NAME       STATE     READY   RELEASE   AGE   RESTARTS   LAST-EXIT   CPU   MEM   PORT
web.1      up        yes     v7        1h    0          -           -     -     5000
web.2      crashed   no      v7        3s    3          1           -     -     5000
worker.1   down      yes     v7        -     0          -           -     -     5000
run.1      up        yes     v7        1h    0          -           -     -     5000
"
        );
    }

    #[test]
    fn names_only() {
        let text = report(Shape::Names, Style::Plain).to_string();
        assert_eq!(text, "web.1\nweb.2\nworker.1\nrun.1\n");
    }

    #[test]
    fn json_keeps_the_exit_as_a_field_while_restarting() {
        let text = report(Shape::As(Format::Json), Style::Coloured).to_string();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value[1]["name"], "web.2");
        assert_eq!(value[1]["state"], "crashed");
        assert_eq!(value[1]["last_exit"]["code"], 1);
        assert_eq!(value[1]["retry_at"], "2026-11-23T19:42:21.500Z");
        assert_eq!(value[0]["last_exit"], serde_json::Value::Null);
        let lines = report(Shape::As(Format::Jsonl), Style::Plain).to_string();
        assert_eq!(lines.lines().count(), 4);
    }
}
