//! What `top` looks like: a pure function of what it knows.

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
    state::{App, Mode, State},
};
use crate::{
    ctl::dyno::{DynoReport, ExitReport},
    look::{Colour, Look, bytes},
};

const HEADS: [&str; 9] = [
    "NAME", "STATE", "REL", "AGE", "RESTARTS", "EXIT", "CPU", "MEM", "PORT",
];
const WIDTHS: [Constraint; 9] = [
    Constraint::Min(8),
    Constraint::Length(9),
    Constraint::Length(5),
    Constraint::Length(4),
    Constraint::Length(8),
    Constraint::Length(6),
    Constraint::Length(6),
    Constraint::Length(6),
    Constraint::Length(5),
];

/// Draws the whole screen. How far the list is scrolled follows from its size.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State, look: &Look) {
    let brush = Brush { look };
    let [head, trouble, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(trouble(state).is_some())),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(self::head(state), head);
    if let Some(text) = self::trouble(state) {
        frame.render_widget(Text::styled(text, brush.bold(Colour::Red)), trouble);
    }
    match state.mode {
        Mode::Log { back, all } => brush.log(frame, body, state, back, all),
        Mode::Dynos | Mode::Sure(_) => brush.dynos(frame, body, state),
    }
    frame.render_widget(brush.foot(state), foot);
}

/// What keeps everything from being well, and who is in the way.
fn trouble(state: &State) -> Option<String> {
    if let Some(why) = &state.away {
        return Some(format!("hsup is away: {why}"));
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
            .map(|(place, dyno)| {
                let row = self.row(dyno, state);
                if Some(place) == selected {
                    row.style(Style::new().add_modifier(Modifier::REVERSED))
                } else {
                    row
                }
            })
            .collect();
        let head = Row::new(HEADS).style(Style::new().add_modifier(Modifier::BOLD));
        let table = Table::new(rows, WIDTHS).header(head).column_spacing(1);
        frame.render_widget(table, area);
    }

    fn row(&self, dyno: &DynoReport, state: &State) -> Row<'static> {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let state_word = match dyno.state {
            "up" if !dyno.ready => "up, wait",
            word => word,
        };
        let share = state.share(dyno);
        Row::new(vec![
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
        ])
    }

    fn log(&self, frame: &mut Frame<'_>, area: Rect, state: &State, back: usize, all: bool) {
        let room = usize::from(area.height.saturating_sub(1));
        let title = match (all, state.selected_dyno()) {
            (true, _) => "all dynos".to_owned(),
            (false, None) => "no dyno".to_owned(),
            (false, Some(dyno)) => match dyno.trouble(self.look) {
                Some(trouble) => format!("{}: {trouble}", dyno.name),
                None => dyno.name.clone(),
            },
        };
        let above = match back {
            0 => String::new(),
            count => format!(", {count} lines above the end"),
        };
        let title = crate::look::one_line(&format!("── {title}{above} "));
        let filled = format!("{title:─<width$}", width = usize::from(area.width));
        let mut text = vec![Text::styled(filled, self.colour(Colour::Grey))];
        let lines = state.last_lines(room, back, all);
        text.extend(lines.into_iter().map(|line| self.line(line, all)));
        frame.render_widget(Paragraph::new(text), area);
    }

    fn line(&self, line: &Line, all: bool) -> Text<'static> {
        let at = Timestamp::from_microsecond(line.at_us).unwrap_or(Timestamp::UNIX_EPOCH);
        let at = at.to_zoned_datetime(self.look.zone.clone());
        let mut spans = vec![Span::styled(
            at.strftime("%H:%M:%S ").to_string(),
            self.colour(Colour::Grey),
        )];
        if all {
            let dyno = format!("{} ", line.dyno);
            spans.push(Span::styled(dyno, self.colour(Colour::Cyan)));
        }
        spans.push(Span::raw(line.text.clone()));
        Text::from(spans)
    }

    fn foot(&self, state: &State) -> Text<'static> {
        match (&state.mode, &state.said) {
            (Mode::Sure(ask), _) => Text::styled(
                format!("{} y: yes, any other key: no", question(ask)),
                self.bold(Colour::Yellow),
            ),
            (_, Some(Ok(done))) => Text::styled(done.clone(), self.colour(Colour::Green)),
            (_, Some(Err(why))) => Text::styled(why.clone(), self.bold(Colour::Red)),
            (Mode::Dynos, None) => {
                let stop = match state.selected_dyno() {
                    Some(dyno) if dyno.is_down() => "s start",
                    _ => "s stop",
                };
                Text::raw(format!(
                    "↑↓ select  r restart  {stop}  +/- scale  l log  a all logs  q quit"
                ))
            }
            (Mode::Log { all, .. }, None) => {
                let other = if *all { "a this dyno" } else { "a all dynos" };
                Text::raw(format!("↑↓ scroll  g oldest  G newest  {other}  q back"))
            }
        }
    }
}

/// The app, and what is wanted of it.
fn head(state: &State) -> Text<'static> {
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
    spans.push(Span::raw(rest));
    Text::from(spans)
}

fn name(app: &App) -> &str {
    match app.name.as_str() {
        "" => "this app",
        name => name,
    }
}

fn question(ask: &Ask) -> String {
    match ask {
        Ask::Restart { dyno } => format!("Restart {dyno}?"),
        Ask::Stop { dyno } => format!("Stop {dyno}?"),
        Ask::Start { dyno } => format!("Start {dyno}?"),
        Ask::Scale { process_type, by } if *by < 0 => format!("One {process_type} fewer?"),
        Ask::Scale { process_type, .. } => format!("One {process_type} more?"),
    }
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
