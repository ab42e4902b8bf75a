//! `hsupctl top`: the dynos as they are now, and a keyboard to drive them with.
//!
//! ```text
//!   keyboard ─┐                      ┌─▶ draw ─▶ terminal
//!   feed ─────┼─▶ State::… (pure) ───┤
//!   clock ────┘                      └─▶ Ask ─▶ feed ─▶ hsup
//! ```
//!
//! [`state`] is what is known and what a key means, [`draw`] what that looks like; both are
//! pure, as is [`log`]. [`feed`] talks to hsup and comes back when hsup does. What is here holds the
//! terminal, and gives it back whatever happens.

mod draw;
mod feed;
mod log;
mod state;

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::{
    draw::draw,
    feed::Feed,
    state::{Act, State},
};
use super::{Outcome, connect::Supervisor, error::CtlError};
use crate::look::Look;

/// How often ages and countdowns move on.
const TICK: Duration = Duration::from_secs(1);
/// How many updates are taken in before they are shown.
const AT_ONCE: usize = 512;
/// Who is ended by a signal ends with this and its number.
const SIGNALLED: u8 = 128;

/// Shows the app, which was asked for by its name or is the only one, until somebody has seen
/// enough.
pub(super) async fn run(
    supervisor: Supervisor,
    app: Option<String>,
    look: Look,
) -> Result<Outcome, CtlError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(CtlError::NoTerminal);
    }
    let mut signals = Signals::new().map_err(CtlError::Terminal)?;
    let feed = Feed::start(supervisor, app);
    // The hook for a panic is in it, too.
    let terminal = ratatui::try_init().map_err(CtlError::Terminal)?;
    let shown = show(terminal, feed, &mut signals, look).await;
    ratatui::try_restore().map_err(CtlError::Terminal)?;
    Ok(Outcome::new(String::new(), shown?))
}

async fn show(
    mut terminal: DefaultTerminal,
    mut feed: Feed,
    signals: &mut Signals,
    mut look: Look,
) -> Result<u8, CtlError> {
    let mut keyboard = keyboard();
    let mut clock = interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = State::default();
    let mut updates = Vec::new();
    loop {
        feed.follow(state.selected());
        look.now_ms = hsup_core::time::now_unix_ms();
        terminal
            .draw(|frame| draw(frame, &mut state, &look))
            .map_err(CtlError::Terminal)?;
        tokio::select! {
            biased;
            code = signals.next() => return Ok(code),
            event = keyboard.recv() => match event.map(|event| state.event(&event)) {
                // Nobody is at the keyboard any more.
                None | Some(Act::Quit) => return Ok(0),
                Some(Act::Ask(ask)) => feed.ask(ask),
                // Not by `clear`, which asks the terminal where its cursor is: the answer comes by
                // the keyboard, which is read elsewhere.
                Some(Act::Repaint) => {
                    let all = terminal.size().map(Into::into);
                    all.and_then(|all| terminal.resize(all)).map_err(CtlError::Terminal)?;
                }
                Some(Act::Nothing) => {}
            },
            _ = feed.updates.recv_many(&mut updates, AT_ONCE) => {
                for update in updates.drain(..) {
                    state.update(update, look.now_ms);
                }
            }
            _ = clock.tick() => {}
        }
    }
}

/// What is typed. It is read in a thread that nobody waits for: a read ends when there is
/// something to read.
fn keyboard() -> mpsc::Receiver<Event> {
    let (tell, told) = mpsc::channel(16);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if tell.blocking_send(event).is_err() {
                return;
            }
        }
    });
    told
}

/// What ends it from outside. The terminal is to be given back first.
struct Signals {
    terminate: Signal,
    hang_up: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> u8 {
        let number = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        };
        SIGNALLED + u8::try_from(number.as_raw_value()).unwrap_or_default()
    }
}
