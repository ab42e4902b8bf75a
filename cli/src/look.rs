//! How reports look: colours, times, ages and sizes. All that depends on the terminal, the
//! clock or the time zone is in a [`Look`], so that a report is a pure function of both.

use std::{
    env,
    fmt::{self, Display},
    io::{self, IsTerminal as _},
};

use hsup_core::time::now_unix_ms;
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use terminal_size::{Width, terminal_size_of};

/// What a report is rendered for.
#[derive(Clone, Debug)]
pub struct Look {
    pub colour: bool,
    /// How many columns a line may have; without one, any number.
    pub width: Option<usize>,
    pub zone: TimeZone,
    pub now_ms: i64,
}

/// A report for programs, which looks the same everywhere.
pub(crate) fn json<T: Serialize>(report: &T) -> serde_json::Result<String> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(text)
}

/// Terminal colours, as their SGR codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Red,
    Green,
    Yellow,
    Blue,
    Magenta,
    Cyan,
    Grey,
}

impl Colour {
    pub const fn code(self) -> &'static str {
        match self {
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Blue => "34",
            Self::Magenta => "35",
            Self::Cyan => "36",
            Self::Grey => "90",
        }
    }
}

/// Whether to colour standard output: `NO_COLOR` (<https://no-color.org>) before
/// `FORCE_COLOR`, then whether it goes to a terminal that has colours.
pub fn colour_wanted() -> bool {
    let var = |name| env::var(name).ok();
    let terminal = io::stdout().is_terminal() && var("TERM").is_some_and(|term| term != "dumb");
    decide(
        var("NO_COLOR").as_deref(),
        var("FORCE_COLOR").as_deref(),
        terminal,
    )
}

/// An empty variable counts as unset.
fn decide(no_color: Option<&str>, force: Option<&str>, terminal: bool) -> bool {
    let set = |value: Option<&str>| value.is_some_and(|value| !value.is_empty());
    if set(no_color) {
        return false;
    }
    if set(force) {
        return force != Some("0");
    }
    terminal
}

/// The width of the terminal, unless `COLUMNS` says another.
fn width(variable: Option<&str>, terminal: Option<usize>) -> Option<usize> {
    let said = variable.and_then(|columns| columns.parse().ok());
    said.filter(|columns| *columns > 0).or(terminal)
}

/// Something that can be shown to people.
pub trait Report {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result;

    fn show<'a>(&'a self, look: &'a Look) -> Shown<'a, Self>
    where
        Self: Sized,
    {
        Shown { report: self, look }
    }
}

/// A report with the look it is shown in.
#[derive(Debug)]
pub struct Shown<'a, R> {
    report: &'a R,
    look: &'a Look,
}

impl<R: Report> Display for Shown<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report.write(f, self.look)
    }
}

impl Look {
    /// For standard output as it is now.
    pub fn for_stdout() -> Self {
        Self {
            colour: colour_wanted(),
            width: width(
                env::var("COLUMNS").ok().as_deref(),
                terminal_size_of(io::stdout()).map(|(Width(columns), _)| columns.into()),
            ),
            zone: TimeZone::system(),
            now_ms: now_unix_ms(),
        }
    }

    pub fn paint(&self, colour: Colour, text: impl Display) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", colour.code())
        } else {
            text.to_string()
        }
    }

    /// `2026/11/23 18:42:10 +0000`, in the zone.
    pub fn time(&self, at_ms: i64) -> String {
        let at = Timestamp::from_millisecond(at_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        let zoned = at.to_zoned_datetime(self.zone.clone());
        zoned.strftime("%Y/%m/%d %H:%M:%S %z").to_string()
    }

    /// `2026/11/23 18:42:10 +0000 (~ 1h ago)`; without the age after 25 hours.
    pub fn time_ago(&self, at_ms: i64) -> String {
        let time = self.time(at_ms);
        match self.ago(at_ms) {
            Some(ago) => format!("{time} (~ {ago} ago)"),
            None => time,
        }
    }

    /// `12s`, `5m`, `3h`; none after 25 hours, as Heroku's command line has it.
    fn ago(&self, at_ms: i64) -> Option<String> {
        let seconds = self.seconds_since(at_ms);
        match seconds {
            0..60 => Some(format!("{seconds}s")),
            60..3_600 => Some(format!("{}m", seconds / 60)),
            3_600..90_000 => Some(format!("{}h", seconds / 3_600)),
            _ => None,
        }
    }

    /// `12s`, `5m`, `3h`, `4d`.
    pub fn age(&self, at_ms: i64) -> String {
        let seconds = self.seconds_since(at_ms);
        if seconds < 172_800 {
            span(seconds)
        } else {
            format!("{}d", seconds / 86_400)
        }
    }

    fn seconds_since(&self, at_ms: i64) -> u64 {
        u64::try_from(self.now_ms.saturating_sub(at_ms)).unwrap_or(0) / 1000
    }

    /// Whole seconds until then, rounded up: a countdown that ends in 0 has ended.
    pub fn seconds_until(&self, at_ms: i64) -> u64 {
        u64::try_from(at_ms.saturating_sub(self.now_ms))
            .unwrap_or(0)
            .div_ceil(1000)
    }
}

/// `12s`, `5m`, `3h`.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3_600),
    }
}

/// `2026-11-23T19:42:45.249Z`, for programs.
pub fn rfc3339(at_ms: i64) -> Option<String> {
    (at_ms != 0).then(|| {
        let at = Timestamp::from_millisecond(at_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        format!("{at:.3}")
    })
}

/// `512B`, `1.5K`, `12.5M`, as systemctl writes them.
pub fn bytes(count: u64) -> String {
    let mut tenths = u128::from(count) * 10;
    for unit in ["B", "K", "M", "G"] {
        if tenths < 10_240 {
            return scaled(tenths, unit);
        }
        tenths /= 1024;
    }
    scaled(tenths, "T")
}

fn scaled(tenths: u128, unit: &str) -> String {
    if tenths.is_multiple_of(10) {
        format!("{}{unit}", tenths / 10)
    } else {
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    }
}

/// Processor time: `250ms`, `2.1s`, `3m05s`, `2h14m`.
pub fn cpu(ns: u64) -> String {
    let ms = ns / 1_000_000;
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}.{}s", ms % 1000 / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
    }
}

/// What may hold any character, for a place that has one line: a command, a reason.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// `1st`, `2nd`, `3rd`, `4th`, `11th`.
pub fn ordinal(n: u32) -> String {
    let suffix = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{suffix}")
}

/// One place of a [`table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub fn coloured(text: impl Into<String>, colour: Colour) -> Self {
        Self {
            text: text.into(),
            colour: Some(colour),
        }
    }

    pub fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            colour: None,
        }
    }
}

/// How much lies between two columns.
pub const GAP: usize = 2;

/// The widths of the columns: of each its widest cell.
pub fn widths(rows: &[Vec<Cell>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(Cell::width).max().unwrap_or(0)
    };
    (0..columns).map(width).collect()
}

/// Which of the columns `kept`, of all that have these widths and a `gap` between two, fit in
/// `width`. Of those that do not, the one of the highest rank goes first; the ones of rank 0 stay.
pub fn fitting(
    mut kept: Vec<usize>,
    widths: &[usize],
    gap: usize,
    rank: impl Fn(usize) -> u8,
    width: usize,
) -> Vec<usize> {
    let needed =
        |kept: &[usize]| -> usize { kept.iter().map(|&column| widths[column] + gap).sum() };
    while needed(&kept) > width + gap
        && let Some(&last) = kept.iter().max_by_key(|column| rank(**column))
        && rank(last) > 0
    {
        kept.retain(|column| *column != last);
    }
    kept
}

/// Left-aligned columns, nothing after the last one.
pub fn table(rows: &[Vec<Cell>], look: &Look) -> String {
    let widths = widths(rows);
    let mut text = String::new();
    for row in rows {
        let mut pad = 0;
        for (cell, width) in row.iter().zip(&widths) {
            if !cell.text.is_empty() {
                text.push_str(&" ".repeat(pad));
                match cell.colour {
                    Some(colour) => text.push_str(&look.paint(colour, &cell.text)),
                    None => text.push_str(&cell.text),
                }
                pad = 0;
            }
            pad += width - cell.width() + GAP;
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use test_case::test_case;

    use super::*;

    /// 2026-11-23 19:42:10 UTC.
    pub(crate) const NOW: i64 = 1_795_462_930_000;

    pub(crate) fn plain() -> Look {
        Look {
            colour: false,
            width: None,
            zone: TimeZone::UTC,
            now_ms: NOW,
        }
    }

    #[test_case(0 => "2026/11/23 19:42:10 +0000 (~ 0s ago)")]
    #[test_case(59 => "2026/11/23 19:41:11 +0000 (~ 59s ago)")]
    #[test_case(3_599 => "2026/11/23 18:42:11 +0000 (~ 59m ago)")]
    #[test_case(3_600 => "2026/11/23 18:42:10 +0000 (~ 1h ago)")]
    #[test_case(89_999 => "2026/11/22 18:42:11 +0000 (~ 24h ago)")]
    #[test_case(90_000 => "2026/11/22 18:42:10 +0000")]
    fn a_time_has_an_age_for_25_hours(seconds: i64) -> String {
        plain().time_ago(NOW - seconds * 1000)
    }

    #[test]
    fn a_time_is_in_the_zone() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let look = Look { zone, ..plain() };
        assert_eq!(look.time(NOW), "2026/11/23 21:42:10 +0200");
    }

    #[test]
    fn an_age_never_runs_out() {
        assert_eq!(plain().age(NOW - 90_000_000), "25h");
        assert_eq!(plain().age(NOW - 864_000_000), "10d");
        assert_eq!(plain().age(NOW + 1000), "0s", "a clock that was set back");
    }

    #[test_case(None, None, true => true)]
    #[test_case(None, None, false => false)]
    #[test_case(Some("1"), Some("1"), true => false)]
    #[test_case(Some(""), None, true => true; "an empty NO_COLOR is none")]
    #[test_case(None, Some("1"), false => true)]
    #[test_case(None, Some("0"), true => false)]
    fn colour(no_color: Option<&str>, force: Option<&str>, terminal: bool) -> bool {
        decide(no_color, force, terminal)
    }

    #[test_case(512 => "512B")]
    #[test_case(1536 => "1.5K")]
    #[test_case(13_107_200 => "12.5M")]
    #[test_case(1 << 40 => "1T")]
    fn sizes(count: u64) -> String {
        bytes(count)
    }

    #[test_case(250_000_000 => "250ms")]
    #[test_case(2_123_000_000 => "2.1s")]
    #[test_case(185_000_000_000 => "3m05s")]
    #[test_case(8_063_000_000_000 => "2h14m")]
    fn processor_times(ns: u64) -> String {
        cpu(ns)
    }

    #[test]
    fn one_line_stays_one() {
        assert_eq!(
            one_line("if x\nthen\ty \x1b[31m 'é'"),
            "if x\\nthen\\ty \\u{1b}[31m 'é'"
        );
    }

    #[test]
    fn ordinals() {
        let words = [1, 2, 3, 4, 11, 12, 13, 21, 111].map(ordinal);
        let expected = [
            "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(Cell::from).to_vec();
        let rows = [
            row(["A", "B", "C"]),
            row(["long", "", ""]),
            row(["ü", "", "x"]),
        ];
        assert_eq!(table(&rows, &plain()), "A     B  C\nlong\nü        x\n");
    }

    #[test]
    fn a_colour_takes_no_room() {
        let look = Look {
            colour: true,
            ..plain()
        };
        let rows = [
            vec![Cell::coloured("up", Colour::Green), "x".into()],
            vec!["crashed".into(), "y".into()],
        ];
        let expected = "\x1b[32mup\x1b[0m       x\ncrashed  y\n";
        assert_eq!(table(&rows, &look), expected);
    }

    #[test_case(None, Some(80) => Some(80))]
    #[test_case(Some("40"), Some(80) => Some(40); "who says so knows better")]
    #[test_case(Some("0"), None => None)]
    #[test_case(Some("wide"), Some(80) => Some(80))]
    #[test_case(None, None => None; "a pipe has no width")]
    fn columns(variable: Option<&str>, terminal: Option<usize>) -> Option<usize> {
        width(variable, terminal)
    }
}
