use hsup_proto::control::{Dyno, ExitStatus, exit_status::How};
use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

use super::*;
use crate::{
    ctl::top::{
        feed::Update,
        state::tests::{press, status, with, write},
    },
    look::tests::{NOW, plain},
};

fn screen(state: &mut State, width: u16, height: u16, look: &Look) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, look)).unwrap();
    terminal.backend().clone()
}

fn text(state: &mut State, width: u16, height: u16) -> Vec<String> {
    let screen = screen(state, width, height, &plain());
    let rows = screen.buffer().content().chunks(usize::from(width));
    rows.map(|row| {
        let row: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        row.trim_end().to_owned()
    })
    .collect()
}

fn crashed() -> Dyno {
    let exit = ExitStatus {
        how: Some(How::Code(1)),
        at_unix_ms: NOW - 3000,
        ..ExitStatus::default()
    };
    Dyno {
        name: "worker.1".to_owned(),
        process_type: "worker".to_owned(),
        state: DynoState::Crashed.into(),
        since_unix_ms: NOW - 3000,
        restarts: 4,
        crashes_in_a_row: 4,
        retry_at_unix_ms: Some(NOW + 12_000),
        last_exit: Some(exit.clone()),
        crash: Some(exit),
        release: 7,
        ..Dyno::default()
    }
}

fn web() -> Dyno {
    Dyno {
        name: "web.1".to_owned(),
        process_type: "web".to_owned(),
        state: DynoState::Up.into(),
        ready: true,
        since_unix_ms: NOW - 3_600_000,
        cpu_ns: Some(1_000_000_000),
        memory_bytes: Some(13_107_200),
        port: 5000,
        release: 7,
        dyno_id: "web-1".to_owned(),
        ..Dyno::default()
    }
}

fn both() -> State {
    let mut state = State::default();
    state.update(status(vec![web(), crashed()]), NOW - 1000);
    let later = Dyno {
        cpu_ns: Some(1_120_000_000),
        ..web()
    };
    state.update(status(vec![later, crashed()]), NOW);
    write(&mut state, "web.1", &["Listening on 5000", "GET /"]);
    write(&mut state, "worker.1", &["KeyError"]);
    state
}

#[test]
fn a_screen_of_eighty_columns() {
    assert_eq!(
        text(&mut both(), 80, 10),
        [
            "shop  v3  simple  web=2",
            "NAME                    STATE     REL   AGE  RESTARTS EXIT   CPU    MEM    PORT",
            "web.1                   up        v7    1h   0        -      12.0%  12.5M  5000",
            "worker.1                crashed   v7    3s   4        1      -      -      -",
            "── web.1 ───────────────────────────────────────────────────────────────────────",
            "19:42:10 Listening on 5000",
            "19:42:10 GET /",
            "",
            "",
            "↑↓ select  r restart  s stop  +/- scale  l log  a all logs  q quit",
        ]
    );
}

#[test]
fn a_figure_is_whole_or_marked_or_not_there() {
    let wide = Dyno {
        name: "a-process-type.12345".to_owned(),
        release: 20_261_129,
        restarts: 1_234_567_890,
        memory_bytes: Some(1_073_700_000),
        port: 65_535,
        last_exit: Some(ExitStatus {
            how: Some(How::NotStarted("no such program".to_owned())),
            ..ExitStatus::default()
        }),
        ..crashed()
    };
    let mut state = State::default();
    state.update(status(vec![web(), wide]), NOW);
    let figures = [
        "a-process-type.12345",
        "crashed",
        "v20261129",
        "3s",
        "1234567890",
        "not-started",
        "-",
        "1023.9M",
        "65535",
    ];
    for width in 1..=120 {
        let shown = text(&mut state, width, 24);
        let row: Vec<_> = shown[3].split_whitespace().collect();
        let is_right = |figure: &&str| figures.contains(figure) || figure.contains('…');
        assert!(row.iter().all(is_right), "{width}: {row:?}");
        if width >= 100 {
            assert_eq!(row, figures);
        }
        let head = shown[0].strip_prefix("shop  v3  simple  web=2");
        assert!(
            head.is_some() || shown[0].ends_with('…') || width < 6,
            "{width}: {}",
            shown[0]
        );
    }
    let narrow = text(&mut state, 80, 24);
    assert_eq!(
        narrow[1..4],
        [
            "NAME                  STATE     AGE  RESTARTS   EXIT        CPU    MEM     PORT",
            "web.1                 up        1h   0          -           -      12.5M   5000",
            "a-process-type.12345  crashed   3s   1234567890 not-started -      1023.9M 65535",
        ]
    );
}

#[test]
fn a_long_name_keeps_its_number_and_takes_no_column_away() {
    let of_type = "verylong".repeat(8);
    let long = |number: u32| Dyno {
        name: format!("{of_type}-mail.{number}"),
        process_type: format!("{of_type}-mail"),
        ..crashed()
    };
    let mut state = State::default();
    state.update(status(vec![web(), long(1), long(12)]), NOW);
    press(&mut state, KeyCode::Down);
    let shown = text(&mut state, 80, 24);
    assert_eq!(
        shown[1..5],
        [
            "NAME                    STATE     REL   AGE  RESTARTS EXIT   CPU    MEM    PORT",
            "web.1                   up        v7    1h   0        -      -      12.5M  5000",
            "verylongver…long-mail.1 crashed   v7    3s   4        1      -      -      -",
            "verylongver…ong-mail.12 crashed   v7    3s   4        1      -      -      -",
        ]
    );
    let title = shown.iter().find(|line| line.starts_with("── ")).unwrap();
    assert!(
        title.starts_with("── verylongve…ng-mail.1: exited with code 1, starting again in 12s"),
        "{title}"
    );
    press(&mut state, KeyCode::Char('r'));
    assert_eq!(
        text(&mut state, 80, 24)[23],
        "Restart verylongverylongverylo…erylongverylong-mail.1? y: yes, any other key: no"
    );
    press(&mut state, KeyCode::Char('n'));
    write(&mut state, &long(1).name, &["KeyError"]);
    press(&mut state, KeyCode::Char('a'));
    assert_eq!(
        text(&mut state, 80, 24)[2],
        "19:42:10 verylongve…ng-mail.1 KeyError"
    );
}

#[test]
fn what_cannot_be_done_to_a_type_without_dynos_is_not_offered() {
    let mut state = State::default();
    state.update(status(Vec::new()), NOW);
    assert_eq!(
        text(&mut state, 80, 10)[9],
        "↑↓ select  +/- scale  l log  a all logs  q quit"
    );
}

#[test]
fn while_hsup_is_away_nothing_grows_older() {
    let mut state = both();
    press(&mut state, KeyCode::Down);
    state.update(Update::Away("no hsup answers".to_owned()), NOW);
    let later = Look {
        now_ms: NOW + 7_200_000,
        ..plain()
    };
    let shown = |state: &mut State, look: &Look| screen(state, 80, 10, look).buffer().clone();
    assert_eq!(shown(&mut state, &plain()), shown(&mut state, &later));
    state.update(status(vec![web(), crashed()]), NOW);
    assert_ne!(shown(&mut state, &plain()), shown(&mut state, &later));
}

#[test]
fn a_dyno_that_crashed_says_why() {
    let mut state = both();
    press(&mut state, KeyCode::Down);
    write(&mut state, "worker.1", &["KeyError"]);
    let shown = text(&mut state, 80, 10);
    assert!(
        shown[4]
            .starts_with("── worker.1: exited with code 1, starting again in 12s (4th crash) ─"),
        "{shown:#?}"
    );
    assert_eq!(shown[5], "19:42:10 KeyError");
}

#[test]
fn all_logs_have_the_names_of_their_dynos() {
    let mut state = both();
    press(&mut state, KeyCode::Char('a'));
    let shown = text(&mut state, 40, 6);
    assert_eq!(
        shown[2..5],
        [
            "19:42:10 web.1 Listening on 5000",
            "19:42:10 web.1 GET /",
            "19:42:10 worker.1 KeyError"
        ]
    );
}

#[test]
fn what_is_wrong_is_on_the_screen() {
    let mut state = both();
    state.update(Update::Away("no hsup answers".to_owned()), NOW);
    let shown = text(&mut state, 80, 10);
    assert_eq!(shown[1], "hsup is away: no hsup answers");
    assert!(shown[3].starts_with("web.1 "), "{shown:#?}");

    let mut state = both();
    state.update(Update::Said(Err("refused".to_owned())), NOW);
    assert_eq!(text(&mut state, 80, 10)[9], "refused");
}

#[test]
fn what_takes_something_away_is_asked_about() {
    let mut state = both();
    press(&mut state, KeyCode::Char('s'));
    assert_eq!(
        text(&mut state, 80, 10)[9],
        "Stop web.1? y: yes, any other key: no"
    );
}

#[test]
fn without_colours_the_selected_dyno_is_still_seen() {
    let mut state = both();
    let screen = screen(&mut state, 80, 10, &plain());
    for cell in screen.buffer().content() {
        assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset), "{cell:?}");
    }
    let cell = |row: u16| screen.buffer().cell((0, row)).unwrap();
    assert!(cell(2).modifier.contains(Modifier::REVERSED));
    assert!(!cell(3).modifier.contains(Modifier::REVERSED));
}

#[test]
fn a_state_has_its_colour() {
    let look = Look {
        colour: true,
        ..plain()
    };
    let screen = screen(&mut both(), 80, 10, &look);
    let colour_of = |row: u16| screen.buffer().cell((24, row)).unwrap().fg;
    assert_eq!((colour_of(2), colour_of(3)), (Color::Green, Color::Red));
}

#[test]
fn the_selected_dyno_is_always_shown() {
    let names: Vec<_> = (1..=50).map(|number| format!("web.{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut state = with(&names);
    let shows = |state: &mut State, name: &str| {
        let shown = text(state, 80, 12);
        assert!(
            shown
                .iter()
                .any(|line| line.starts_with(&format!("{name} "))),
            "{shown:#?}"
        );
    };
    shows(&mut state, "web.1");
    press(&mut state, KeyCode::End);
    shows(&mut state, "web.50");
    press(&mut state, KeyCode::PageUp);
    shows(&mut state, "web.40");
    press(&mut state, KeyCode::Home);
    shows(&mut state, "web.1");
}

#[test]
fn no_screen_is_too_small() {
    for (width, height) in [(1, 1), (5, 2), (20, 3), (80, 4), (300, 100)] {
        for key in ['x', 'l', 'a', 'r'] {
            let mut state = both();
            state.update(Update::Away("gone".to_owned()), NOW);
            press(&mut state, KeyCode::Char(key));
            text(&mut state, width, height);
        }
    }
    text(&mut State::default(), 80, 24);
}
