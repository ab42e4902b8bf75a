//! What `top` knows, and what a key means. Pure: the clock comes with each update.

use std::collections::HashMap;

use hsup_proto::control::{Dyno, DynoState, GetStatusResponse};
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    feed::{Ask, Update, Whose},
    log::{Line, Log},
};
use crate::{ctl::dyno::DynoReport, look::one_line};

/// The whole of it.
#[derive(Debug, Default)]
pub(super) struct State {
    /// None: hsup has not answered yet.
    pub(super) app: Option<App>,
    pub(super) dynos: Vec<DynoReport>,
    /// The dyno that keys are about. By name: others come and go around it.
    selected: Option<String>,
    /// The lines of all dynos.
    all: Log,
    /// Those of the selected one: among all, a dyno that writes little is soon forgotten.
    own: Log,
    pub(super) mode: Mode,
    /// When hsup does not answer.
    pub(super) away: Option<Away>,
    /// What became of the last wish.
    pub(super) said: Option<Result<String, String>>,
    /// By the driver's key of a dyno, which is another one after each start.
    usage: HashMap<String, Usage>,
    /// The first dyno that is shown, where not all have room.
    pub(super) scrolled: usize,
}

/// An hsup that does not answer.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) why: String,
    since_ms: i64,
}

/// What is said of the whole app.
#[derive(Debug)]
pub(super) struct App {
    pub(super) name: String,
    pub(super) release: Option<u64>,
    pub(super) formation: Vec<(String, u32)>,
    pub(super) driver: String,
    /// Why the driver is not ready, when it is not.
    pub(super) driver_trouble: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// The dynos, and below them the last lines of the selected one.
    #[default]
    Dynos,
    /// The log alone, so many lines above its end: of the selected dyno, or of all.
    Log { back: usize, all: bool },
    /// Is this meant?
    Sure(Ask),
}

/// What is to be done about a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act {
    Nothing,
    Quit,
    /// The screen is not what it should be, by somebody else's writing to it.
    Repaint,
    Ask(Ask),
}

/// The last two readings of a dyno's processor time.
#[derive(Clone, Copy, Debug)]
struct Usage {
    cpu_ns: u64,
    at_ms: i64,
    /// In thousandths of a processor; none before there are two readings.
    share: Option<u64>,
}

impl Usage {
    fn next(before: Option<Self>, cpu_ns: u64, at_ms: i64) -> Self {
        let share = before.and_then(|before| {
            let ms = u64::try_from(at_ms - before.at_ms)
                .ok()
                .filter(|&ms| ms > 0)?;
            // Nanoseconds in a millisecond, of which a thousandth is 1000.
            Some(cpu_ns.saturating_sub(before.cpu_ns) / (ms * 1000))
        });
        match (before, share) {
            // Twice at one time: what was known is still right.
            (Some(before), None) => before,
            _ => Self {
                cpu_ns,
                at_ms,
                share,
            },
        }
    }
}

impl State {
    /// Takes in what is new.
    pub(super) fn update(&mut self, update: Update, now_ms: i64) {
        match update {
            Update::Status(status) => {
                self.away = None;
                self.take(*status, now_ms);
            }
            Update::Lines(whose, lines) => {
                let new = lines.len();
                let Some(log) = self.log_of(&whose) else {
                    return;
                };
                log.extend(lines);
                let furthest = log.furthest();
                // Who reads further up goes on to read there, for as long as it is kept.
                if let Some(back @ 1..) = self.back_in(&whose) {
                    *back = (*back + new).min(furthest);
                }
            }
            Update::Anew(whose) => {
                if let Some(log) = self.log_of(&whose) {
                    log.clear();
                    if let Some(back) = self.back_in(&whose) {
                        *back = 0;
                    }
                }
            }
            Update::Away(why) => {
                // It is told again and again.
                let since_ms = self.known_at(now_ms);
                let why = one_line(&why);
                self.away = Some(Away { why, since_ms });
            }
            Update::Said(said) => {
                let fit = |text: String| one_line(&text);
                self.said = Some(said.map(fit).map_err(|why| one_line(&why)));
            }
        }
    }

    /// Of which moment all this is: now, or when hsup went away, since when nobody knows whether a
    /// dyno has gone on.
    pub(super) fn known_at(&self, now_ms: i64) -> i64 {
        self.away.as_ref().map_or(now_ms, |away| away.since_ms)
    }

    /// None: somebody else is selected by now.
    fn log_of(&mut self, whose: &Whose) -> Option<&mut Log> {
        match whose {
            Whose::All => Some(&mut self.all),
            Whose::Dyno(name) => (self.selected.as_ref() == Some(name)).then_some(&mut self.own),
        }
    }

    /// How far up this log is read, where it is the one that is read.
    fn back_in(&mut self, whose: &Whose) -> Option<&mut usize> {
        match &mut self.mode {
            Mode::Log { back, all } if *all == (*whose == Whose::All) => Some(back),
            _ => None,
        }
    }

    fn take(&mut self, status: GetStatusResponse, now_ms: i64) {
        let trouble = match (status.driver_ready, status.driver_message.as_str()) {
            (true, _) => None,
            (false, "") => Some("not ready".to_owned()),
            (false, why) => Some(one_line(why)),
        };
        self.app = Some(App {
            name: one_line(&status.app),
            release: status.release.map(|release| release.version),
            formation: status
                .formation
                .into_iter()
                .map(|process| (process.process_type, process.quantity))
                .collect(),
            driver: one_line(&status.driver),
            driver_trouble: trouble,
        });
        let place = self.selected_place();
        let empty = empty_types(self.app.as_ref(), &status.dynos);
        let all = status.dynos.into_iter().chain(empty);
        self.dynos = all.map(DynoReport::from).collect();
        let mut before = std::mem::take(&mut self.usage);
        for dyno in &self.dynos {
            if let (Some(id), Some(cpu_ns)) = (&dyno.dyno_id, dyno.cpu_ns) {
                let usage = Usage::next(before.remove(id), cpu_ns, now_ms);
                self.usage.insert(id.clone(), usage);
            }
        }
        if self.selected_dyno().is_none() {
            // The first one of a type that had none; whoever took its place; the last one where
            // nobody did.
            let is_heir = |dyno: &DynoReport| Some(&dyno.process_type) == self.selected.as_ref();
            let place = self.dynos.iter().position(is_heir).or(place).unwrap_or(0);
            self.select(place.min(self.dynos.len().saturating_sub(1)));
        }
    }

    /// How much processor a dyno uses now, in thousandths of one.
    pub(super) fn share(&self, dyno: &DynoReport) -> Option<u64> {
        self.usage.get(dyno.dyno_id.as_ref()?)?.share
    }

    pub(super) fn selected_place(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.dynos.iter().position(|dyno| dyno.name == *selected)
    }

    pub(super) fn selected_dyno(&self) -> Option<&DynoReport> {
        self.dynos.get(self.selected_place()?)
    }

    /// Whose lines are wanted besides those of all.
    pub(super) fn selected(&self) -> Option<&str> {
        self.selected.as_deref()
    }

    fn select(&mut self, place: usize) {
        let selected = self.dynos.get(place).map(|dyno| dyno.name.clone());
        if selected == self.selected {
            return;
        }
        self.selected = selected;
        self.own.clear();
        if let Mode::Log { back, all: false } = &mut self.mode {
            *back = 0;
        }
    }

    /// The last so many lines, above the last `back`, of the selected dyno or of all.
    pub(super) fn last_lines(&self, count: usize, back: usize, all: bool) -> Vec<&Line> {
        self.log(all).last(count, back)
    }

    fn log(&self, all: bool) -> &Log {
        if all { &self.all } else { &self.own }
    }

    /// What a key means. Anything else, such as another size, is seen when it is drawn.
    pub(super) fn event(&mut self, event: &Event) -> Act {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            _ => Act::Nothing,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Act {
        // Shift is in the character itself; with any other one it is not the key that has a meaning.
        let others = key.modifiers - KeyModifiers::SHIFT;
        if !others.is_empty() {
            return match key.code {
                KeyCode::Char('c') if others == KeyModifiers::CONTROL => Act::Quit,
                KeyCode::Char('l') if others == KeyModifiers::CONTROL => Act::Repaint,
                _ => Act::Nothing,
            };
        }
        self.said = None;
        match self.mode.clone() {
            Mode::Dynos => self.key_of_dynos(key.code),
            Mode::Log { back, all } => self.key_of_log(key.code, back, all),
            Mode::Sure(ask) => {
                self.mode = Mode::Dynos;
                if matches!(key.code, KeyCode::Char('y' | 'Y')) {
                    return Act::Ask(ask);
                }
                Act::Nothing
            }
        }
    }

    fn key_of_dynos(&mut self, key: KeyCode) -> Act {
        let last = self.dynos.len().saturating_sub(1);
        let place = self.selected_place().unwrap_or(0);
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Act::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.select(place.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select((place + 1).min(last)),
            KeyCode::PageUp => self.select(place.saturating_sub(10)),
            KeyCode::PageDown => self.select((place + 10).min(last)),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(last),
            KeyCode::Enter | KeyCode::Char('l') => {
                self.mode = Mode::Log {
                    back: 0,
                    all: false,
                };
            }
            KeyCode::Char('a') => self.mode = Mode::Log { back: 0, all: true },
            KeyCode::Char('r') => {
                if let Some(dyno) = self.name() {
                    self.mode = Mode::Sure(Ask::Restart { dyno });
                }
            }
            KeyCode::Char('s') => {
                let is_down = self.selected_dyno().is_some_and(DynoReport::is_down);
                match self.name() {
                    Some(dyno) if is_down => return Act::Ask(Ask::Start { dyno }),
                    Some(dyno) => self.mode = Mode::Sure(Ask::Stop { dyno }),
                    None => {}
                }
            }
            KeyCode::Char('+' | '=') => return self.scale(1),
            KeyCode::Char('-') => {
                if let Act::Ask(ask) = self.scale(-1) {
                    self.mode = Mode::Sure(ask);
                }
            }
            _ => {}
        }
        Act::Nothing
    }

    fn key_of_log(&mut self, key: KeyCode, back: usize, all: bool) -> Act {
        let to = |back| Mode::Log { back, all };
        let oldest = self.log(all).furthest();
        self.mode = match key {
            KeyCode::Char('q' | 'l') | KeyCode::Esc | KeyCode::Enter => Mode::Dynos,
            KeyCode::Char('a') => Mode::Log { back: 0, all: !all },
            KeyCode::Up | KeyCode::Char('k') => to((back + 1).min(oldest)),
            KeyCode::Down | KeyCode::Char('j') => to(back.saturating_sub(1)),
            KeyCode::PageUp => to((back + 10).min(oldest)),
            KeyCode::PageDown => to(back.saturating_sub(10)),
            KeyCode::Home | KeyCode::Char('g') => to(oldest),
            KeyCode::End | KeyCode::Char('G') => to(0),
            _ => to(back),
        };
        Act::Nothing
    }

    fn name(&self) -> Option<String> {
        self.selected_dyno().map(|dyno| dyno.name.clone())
    }

    fn scale(&self, by: i32) -> Act {
        match self.selected_dyno() {
            Some(dyno) => Act::Ask(Ask::Scale {
                process_type: dyno.process_type.clone(),
                by,
            }),
            None => Act::Nothing,
        }
    }
}

/// Whether it stands for a process type without dynos, as those of [`empty_types`] do.
pub(super) fn is_empty_type(dyno: &DynoReport) -> bool {
    dyno.name == dyno.process_type
}

/// For each process type without dynos one that stands for it: what cannot be selected cannot be
/// scaled.
fn empty_types(app: Option<&App>, dynos: &[Dyno]) -> Vec<Dyno> {
    let types = app.iter().flat_map(|app| &app.formation);
    let release = app.and_then(|app| app.release);
    types
        .filter(|(name, _)| dynos.iter().all(|dyno| dyno.process_type != *name))
        .map(|(name, _)| Dyno {
            name: name.clone(),
            process_type: name.clone(),
            state: DynoState::Down.into(),
            release: release.unwrap_or_default(),
            ..Dyno::default()
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests;
