//! What `top` looks like: a pure function of what it knows.

use std::borrow::Cow;

use hsup_core::lifecycle::words;
use hsup_proto::control::DynoState;
use jiff::Timestamp;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line as Text, Span},
    widgets::{Paragraph, Row, Table},
};

use super::{
    feed::Ask,
    log::Line,
    state::{App, Mode, State, is_empty_type},
};
use crate::{
    ctl::dyno::{DynoReport, ExitReport},
    look::{Colour, Look, bytes, fitting},
};

/// The columns of the list, how wide each is at least, and when a terminal that is too narrow goes
/// without it: the highest number first, and never without 0.
const COLUMNS: [(&str, usize, u8); 9] = [
    ("NAME", 8, 0),
    ("STATE", 9, 0),
    ("REL", 5, 7),
    ("AGE", 4, 1),
    ("RESTARTS", 8, 2),
    ("EXIT", 6, 3),
    ("CPU", 6, 5),
    ("MEM", 6, 4),
    ("PORT", 5, 6),
];
/// How much lies between two of them.
const GAP: u16 = 1;

/// How wide a name may be on the narrowest screen that has room for all columns: 80.
const NAME: u16 = 20;

/// Draws the whole screen. How far the list is scrolled follows from its size.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State, look: &Look) {
    let look = &Look {
        now_ms: state.known_at(look.now_ms),
        ..look.clone()
    };
    let brush = Brush { look };
    let [head, trouble, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(trouble(state).is_some())),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(self::head(state, head.width), head);
    if let Some(text) = self::trouble(state) {
        let text = cut(text, trouble.width);
        frame.render_widget(Text::styled(text, brush.bold(Colour::Red)), trouble);
    }
    match state.mode {
        Mode::Log { back, all } => brush.log(frame, body, state, back, all),
        Mode::Dynos | Mode::Sure(_) => brush.dynos(frame, body, state),
    }
    frame.render_widget(brush.foot(state, foot.width), foot);
}

/// What keeps everything from being well, and who is in the way.
fn trouble(state: &State) -> Option<String> {
    if let Some(away) = &state.away {
        return Some(format!("hsup is away: {}", away.why));
    }
    let app = state.app.as_ref()?;
    let why = app.driver_trouble.as_ref()?;
    Some(format!("the driver is not ready: {why}"))
}

/// Draws with or without colours.
struct Brush<'a> {
    look: &'a Look,
}

impl Brush<'_> {
    fn colour(&self, colour: Colour) -> Style {
        if !self.look.colour {
            return Style::new();
        }
        Style::new().fg(match colour {
            Colour::Red => Color::Red,
            Colour::Green => Color::Green,
            Colour::Yellow => Color::Yellow,
            Colour::Blue => Color::Blue,
            Colour::Magenta => Color::Magenta,
            Colour::Cyan => Color::Cyan,
            Colour::Grey => Color::DarkGray,
        })
    }

    fn bold(&self, colour: Colour) -> Style {
        self.colour(colour).add_modifier(Modifier::BOLD)
    }

    fn dynos(&self, frame: &mut Frame<'_>, area: Rect, state: &mut State) {
        // The list has what it needs, and the log at least a third.
        let rows = u16::try_from(state.dynos.len()).unwrap_or(u16::MAX);
        let list = rows.saturating_add(1).min(area.height - area.height / 3);
        let [list, log] =
            Layout::vertical([Constraint::Length(list), Constraint::Min(0)]).areas(area);
        self.list(frame, list, state);
        if log.height > 0 {
            self.log(frame, log, state, 0, false);
        }
    }

    fn list(&self, frame: &mut Frame<'_>, area: Rect, state: &mut State) {
        let room = usize::from(area.height.saturating_sub(1)).max(1);
        let selected = state.selected_place();
        let place = selected.unwrap_or(0);
        let first = state.dynos.len().saturating_sub(room);
        let lowest = (place + 1).saturating_sub(room);
        state.scrolled = state.scrolled.min(first).clamp(lowest, place);
        let shown = state
            .dynos
            .iter()
            .enumerate()
            .skip(state.scrolled)
            .take(room);
        let rows: Vec<_> = shown
            .map(|(place, dyno)| (Some(place) == selected, self.row(dyno, state)))
            .collect();
        let columns = Columns::of(&rows, area.width);
        let rows = rows.into_iter().map(|(is_selected, cells)| {
            let row = Row::new(columns.fit(cells));
            if is_selected {
                row.style(Style::new().add_modifier(Modifier::REVERSED))
            } else {
                row
            }
        });
        let head = COLUMNS.map(|(name, ..)| Span::raw(name));
        let head = Row::new(columns.fit(head.to_vec()));
        let table = Table::new(rows, columns.widths())
            .header(head.style(Style::new().add_modifier(Modifier::BOLD)))
            .column_spacing(GAP);
        frame.render_widget(table, area);
    }

    fn row(&self, dyno: &DynoReport, state: &State) -> Vec<Span<'static>> {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let state_word = match dyno.state {
            DynoState::Up if !dyno.ready => "up, wait",
            state => words::heroku(state),
        };
        let share = state.share(dyno);
        vec![
            Span::raw(dyno.name.clone()),
            Span::styled(state_word, self.colour(dyno.colour())),
            Span::raw(format!("v{}", dyno.release)),
            Span::raw(or_none(
                (dyno.since_ms != 0).then(|| self.look.age(dyno.since_ms)),
            )),
            Span::raw(dyno.restarts.to_string()),
            Span::raw(or_none(dyno.last_exit.as_ref().map(ExitReport::word))),
            Span::raw(or_none(share.map(percent))),
            Span::raw(or_none(dyno.memory_bytes.map(bytes))),
            Span::raw(or_none(dyno.port.map(|port| port.to_string()))),
        ]
    }

    fn log(&self, frame: &mut Frame<'_>, area: Rect, state: &State, back: usize, all: bool) {
        let room = usize::from(area.height.saturating_sub(1));
        let title = match (all, state.selected_dyno()) {
            (true, _) => "all dynos".to_owned(),
            (false, None) => "no dyno".to_owned(),
            (false, Some(dyno)) => match dyno.trouble(self.look) {
                Some(trouble) => {
                    let name = cut_name(dyno.name.as_str(), room_for_name(area.width));
                    format!("{name}: {trouble}")
                }
                None => dyno.name.clone(),
            },
        };
        let above = match back {
            0 => String::new(),
            count => format!(", {count} lines above the end"),
        };
        let title = crate::look::one_line(&format!("── {title}{above} "));
        let title = cut(title, area.width);
        let filled = format!("{title:─<width$}", width = usize::from(area.width));
        let mut text = vec![Text::styled(filled, self.colour(Colour::Grey))];
        let lines = state.last_lines(room, back, all);
        let name = all.then(|| room_for_name(area.width));
        text.extend(lines.into_iter().map(|line| self.line(line, name)));
        frame.render_widget(Paragraph::new(text), area);
    }

    /// A line with so much room for the name of its dyno, where that is not known otherwise.
    fn line(&self, line: &Line, name: Option<u16>) -> Text<'static> {
        let at = Timestamp::from_microsecond(line.at_us).unwrap_or(Timestamp::UNIX_EPOCH);
        let at = at.to_zoned_datetime(self.look.zone.clone());
        let mut spans = vec![Span::styled(
            at.strftime("%H:%M:%S ").to_string(),
            self.colour(Colour::Grey),
        )];
        if let Some(width) = name {
            let dyno = format!("{} ", cut_name(line.dyno.as_str(), width));
            spans.push(Span::styled(dyno, self.colour(Colour::Cyan)));
        }
        spans.push(Span::raw(line.text.clone()));
        Text::from(spans)
    }

    fn foot(&self, state: &State, width: u16) -> Text<'static> {
        match (&state.mode, &state.said) {
            (Mode::Sure(ask), _) => Text::styled(question(ask, width), self.bold(Colour::Yellow)),
            (_, Some(Ok(done))) => {
                Text::styled(cut(done.clone(), width), self.colour(Colour::Green))
            }
            (_, Some(Err(why))) => Text::styled(cut(why.clone(), width), self.bold(Colour::Red)),
            (Mode::Dynos, None) => {
                let of_dyno = match state.selected_dyno() {
                    Some(dyno) if is_empty_type(dyno) => "",
                    Some(dyno) if dyno.is_down() => "r restart  s start  ",
                    _ => "r restart  s stop  ",
                };
                Text::raw(format!(
                    "↑↓ select  {of_dyno}+/- scale  l log  a all logs  q quit"
                ))
            }
            (Mode::Log { all, .. }, None) => {
                let other = if *all { "a this dyno" } else { "a all dynos" };
                Text::raw(format!("↑↓ scroll  g oldest  G newest  {other}  q back"))
            }
        }
    }
}

/// The columns that a terminal has room for.
struct Columns {
    /// Each with its width.
    kept: Vec<(usize, u16)>,
}

impl Columns {
    /// As wide as what is in them, but for the names, which have what the others leave: a long one
    /// takes no other column away.
    fn of(rows: &[(bool, Vec<Span<'_>>)], width: u16) -> Self {
        let widest = |(column, (_, least, _)): (usize, &(&str, usize, u8))| {
            let cells = rows.iter().filter_map(|(_, row)| row.get(column));
            cells.map(Span::width).fold(*least, usize::max)
        };
        let mut widths: Vec<_> = COLUMNS.iter().enumerate().map(widest).collect();
        widths[0] = widths[0].min(room_for_name(width).into());
        let rank = |column: usize| COLUMNS[column].2;
        let all = (0..COLUMNS.len()).collect();
        let kept = fitting(all, &widths, GAP.into(), rank, width.into());
        let mut left = width;
        // From the last one, so that the first has the rest.
        let mut kept: Vec<_> = kept
            .into_iter()
            .rev()
            .map(|column| {
                let wanted = u16::try_from(widths[column]).unwrap_or(u16::MAX);
                let own = if column == 0 { left } else { wanted.min(left) };
                left = left.saturating_sub(own.saturating_add(GAP));
                (column, own)
            })
            .collect();
        kept.reverse();
        kept.retain(|(_, width)| *width > 0);
        Self { kept }
    }

    fn widths(&self) -> Vec<Constraint> {
        let widths = self.kept.iter();
        widths
            .map(|&(_, width)| Constraint::Length(width))
            .collect()
    }

    /// What of a row there is room for.
    fn fit<'a>(&self, cells: Vec<Span<'a>>) -> Vec<Span<'a>> {
        let mut columns = self.kept.iter().peekable();
        let cells = cells.into_iter().enumerate();
        cells
            .filter_map(|(column, cell)| {
                let (_, width) = columns.next_if(|(kept, _)| *kept == column)?;
                let cut = if column == 0 { cut_name } else { cut };
                Some(Span::styled(cut(cell.content, *width), cell.style))
            })
            .collect()
    }
}

/// A text for so much room, with a mark where it has more: no figure looks like another one.
fn cut<'a>(text: impl Into<Cow<'a, str>>, width: u16) -> Cow<'a, str> {
    let text = text.into();
    if Span::raw(&*text).width() <= usize::from(width) {
        return text;
    }
    let mut text = text.into_owned();
    while Span::raw(text.as_str()).width() >= usize::from(width.max(1)) {
        text.pop();
    }
    if width > 0 {
        text.push('…');
    }
    text.into()
}

/// How much of a line the name of a dyno may have, where there is more to say.
fn room_for_name(width: u16) -> u16 {
    NAME.max(width / 4)
}

/// The name of a dyno for so much room: cut in its middle, since its number and the end of its
/// type tell it from others.
fn cut_name<'a>(name: impl Into<Cow<'a, str>>, width: u16) -> Cow<'a, str> {
    let name = name.into();
    let letters: Vec<char> = name.chars().collect();
    let room = usize::from(width);
    if letters.len() <= room {
        return cut(name, width);
    }
    let number = letters.iter().rev().position(|&letter| letter == '.');
    let number = number.map_or(0, |digits| digits + 1);
    let kept = room.saturating_sub(1);
    if number > kept {
        return cut(name, width);
    }
    let tail = number.max(kept / 2);
    let (begin, end) = (&letters[..kept - tail], &letters[letters.len() - tail..]);
    let middle = ['…'];
    begin
        .iter()
        .chain(&middle)
        .chain(end)
        .collect::<String>()
        .into()
}

/// The app, and what is wanted of it.
fn head(state: &State, width: u16) -> Text<'static> {
    let Some(app) = &state.app else {
        return Text::raw("waiting for hsup");
    };
    let mut spans = vec![Span::styled(
        name(app).to_owned(),
        Style::new().add_modifier(Modifier::BOLD),
    )];
    let release = app.release.map(|version| format!("  v{version}"));
    let formation: Vec<_> = app
        .formation
        .iter()
        .map(|(process_type, quantity)| format!("{process_type}={quantity}"))
        .collect();
    let rest = format!(
        "{}  {}  {}",
        release.unwrap_or_default(),
        app.driver,
        formation.join(" ")
    );
    let left = usize::from(width).saturating_sub(spans[0].width());
    spans.push(Span::raw(cut(rest, u16::try_from(left).unwrap_or(width))));
    Text::from(spans)
}

fn name(app: &App) -> &str {
    match app.name.as_str() {
        "" => "this app",
        name => name,
    }
}

/// Asks whether it is meant. The name gives way to what the keys are.
fn question(ask: &Ask, width: u16) -> String {
    let (verb, name, end) = match ask {
        Ask::Restart { dyno } => ("Restart", dyno, "?"),
        Ask::Stop { dyno } => ("Stop", dyno, "?"),
        Ask::Start { dyno } => ("Start", dyno, "?"),
        Ask::Scale { process_type, by } if *by < 0 => ("One", process_type, " fewer?"),
        Ask::Scale { process_type, .. } => ("One", process_type, " more?"),
    };
    let end = format!("{end} y: yes, any other key: no");
    let others = u16::try_from(verb.len() + 1 + end.len()).unwrap_or(u16::MAX);
    let name = cut_name(name.as_str(), width.saturating_sub(others));
    format!("{verb} {name}{end}")
}

/// `0.3%`, `99.9%`, `250%`: of one processor, whose thousandths these are.
fn percent(share: u64) -> String {
    if share < 1000 {
        format!("{}.{}%", share / 10, share % 10)
    } else {
        format!("{}%", share / 10)
    }
}

#[cfg(test)]
mod tests;
