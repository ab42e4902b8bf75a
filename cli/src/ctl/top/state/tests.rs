use hsup_proto::control::{LogLine, Process, Release};
use test_case::test_case;

use super::*;
use crate::{ctl::top::log::KEPT, look::tests::NOW};

fn dyno(name: &str) -> Dyno {
    let (process_type, _) = name.split_once('.').unwrap();
    Dyno {
        name: name.to_owned(),
        process_type: process_type.to_owned(),
        state: DynoState::Up.into(),
        ready: true,
        release: 3,
        since_unix_ms: NOW - 90_000,
        dyno_id: format!("{name}-id"),
        ..Dyno::default()
    }
}

pub(in crate::ctl::top) fn status(dynos: Vec<Dyno>) -> Update {
    Update::Status(Box::new(GetStatusResponse {
        app: "shop".to_owned(),
        release: Some(Release {
            version: 3,
            ..Release::default()
        }),
        formation: vec![Process {
            process_type: "web".to_owned(),
            quantity: 2,
            command: String::new(),
        }],
        driver: "simple".to_owned(),
        driver_ready: true,
        dynos,
        ..GetStatusResponse::default()
    }))
}

pub(in crate::ctl::top) fn with(names: &[&str]) -> State {
    let mut state = State::default();
    let dynos = names.iter().map(|name| dyno(name)).collect();
    state.update(status(dynos), NOW);
    state
}

/// Lines of this dyno, among those of all or as its own.
pub(in crate::ctl::top) fn lines_as(whose: Whose, dyno: &str, texts: &[&str]) -> Update {
    let line = |text: &&str| LogLine {
        at_unix_us: NOW * 1000,
        source: "app".to_owned(),
        dyno: dyno.to_owned(),
        line: text.as_bytes().to_vec(),
        stderr: false,
    };
    Update::Lines(whose, texts.iter().map(line).collect())
}

/// What hsup sends of a dyno's lines: of the selected one, they come twice.
pub(in crate::ctl::top) fn write(state: &mut State, dyno: &str, texts: &[&str]) {
    for whose in [Whose::All, Whose::Dyno(dyno.to_owned())] {
        state.update(lines_as(whose, dyno, texts), NOW);
    }
}

pub(in crate::ctl::top) fn press(state: &mut State, code: KeyCode) -> Act {
    state.event(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn typed(state: &mut State, keys: &str) -> Act {
    let mut last = Act::Nothing;
    for key in keys.chars() {
        last = press(state, KeyCode::Char(key));
    }
    last
}

fn selected(state: &State) -> Option<&str> {
    state.selected_dyno().map(|dyno| dyno.name.as_str())
}

#[test]
fn a_dyno_stays_selected_while_others_come_and_go() {
    let mut state = with(&["web.1", "web.2", "worker.1"]);
    assert_eq!(selected(&state), Some("web.1"));
    typed(&mut state, "jj");
    assert_eq!(selected(&state), Some("worker.1"));
    typed(&mut state, "j");
    assert_eq!(selected(&state), Some("worker.1"), "that is the last one");
    typed(&mut state, "k");
    state.update(
        status(vec![dyno("api.1"), dyno("web.1"), dyno("web.2")]),
        NOW,
    );
    assert_eq!(selected(&state), Some("web.2"));
    state.update(status(vec![dyno("api.1"), dyno("web.1")]), NOW);
    assert_eq!(
        selected(&state),
        Some("web.1"),
        "it is in its place, or nearest"
    );
    state.update(Update::Status(Box::default()), NOW);
    assert_eq!(selected(&state), None);
    assert_eq!(
        typed(&mut state, "jrs+-lq"),
        Act::Nothing,
        "nothing is selected"
    );
}

fn restart() -> Ask {
    Ask::Restart {
        dyno: "web.1".to_owned(),
    }
}

fn scale(by: i32) -> Ask {
    Ask::Scale {
        process_type: "web".to_owned(),
        by,
    }
}

#[test_case("r" => Act::Nothing; "a restart is asked about")]
#[test_case("ry" => Act::Ask(restart()))]
#[test_case("rn" => Act::Nothing)]
#[test_case("rq" => Act::Nothing; "no is any other key")]
#[test_case("rnq" => Act::Quit)]
#[test_case("sy" => Act::Ask(Ask::Stop { dyno: "web.1".to_owned() }))]
#[test_case("+" => Act::Ask(scale(1)); "one more takes nothing away")]
#[test_case("-" => Act::Nothing; "one fewer is asked about")]
#[test_case("-y" => Act::Ask(scale(-1)))]
#[test_case("q" => Act::Quit)]
#[test_case("lq" => Act::Nothing; "out of the log")]
#[test_case("lqq" => Act::Quit)]
fn keys(keys: &str) -> Act {
    typed(&mut with(&["web.1"]), keys)
}

#[test]
fn enter_is_any_other_key() {
    let mut state = with(&["web.1"]);
    typed(&mut state, "s");
    assert_eq!(press(&mut state, KeyCode::Enter), Act::Nothing);
    assert_eq!(state.mode, Mode::Dynos);
}

#[test]
fn a_process_type_without_dynos_can_be_scaled() {
    let mut state = with(&["worker.1"]);
    assert_eq!(typed(&mut state, "j+"), Act::Ask(scale(1)));
    assert_eq!(selected(&state), Some("web"));
    state.update(status(vec![dyno("web.1"), dyno("worker.1")]), NOW);
    assert_eq!(selected(&state), Some("web.1"));
}

#[test]
fn what_is_stopped_can_be_started() {
    let mut state = State::default();
    let down = Dyno {
        state: DynoState::Down.into(),
        ..dyno("web.1")
    };
    state.update(status(vec![down]), NOW);
    let start = Ask::Start {
        dyno: "web.1".to_owned(),
    };
    assert_eq!(typed(&mut state, "s"), Act::Ask(start));
}

fn with_control(state: &mut State, key: char) -> Act {
    state.event(&Event::Key(KeyEvent::new(
        KeyCode::Char(key),
        KeyModifiers::CONTROL,
    )))
}

#[test]
fn control_c_quits_wherever_one_is() {
    for keys in ["", "l", "r"] {
        let mut state = with(&["web.1"]);
        typed(&mut state, keys);
        assert_eq!(with_control(&mut state, 'c'), Act::Quit, "{keys}");
    }
}

#[test]
fn with_control_or_alt_a_key_does_not_do_what_it_does_alone() {
    let mut state = State::default();
    let down = Dyno {
        state: DynoState::Down.into(),
        ..dyno("web.1")
    };
    state.update(status(vec![down]), NOW);
    assert_eq!(with_control(&mut state, 'l'), Act::Repaint);
    for key in "sralq+-".chars() {
        let with_alt = KeyEvent::new(KeyCode::Char(key), KeyModifiers::ALT);
        assert_eq!(state.event(&Event::Key(with_alt)), Act::Nothing, "{key}");
        if key != 'l' {
            assert_eq!(with_control(&mut state, key), Act::Nothing, "{key}");
        }
        assert_eq!(state.mode, Mode::Dynos, "{key}");
    }
    let shifted = KeyEvent::new(KeyCode::Char('+'), KeyModifiers::SHIFT);
    assert_eq!(state.event(&Event::Key(shifted)), Act::Ask(scale(1)));
}

#[test]
fn processor_time_becomes_a_share() {
    let mut state = State::default();
    let mut used = |ms: i64, cpu_ms: u64, id: &str| {
        let dyno = Dyno {
            cpu_ns: Some(cpu_ms * 1_000_000),
            dyno_id: id.to_owned(),
            ..dyno("web.1")
        };
        state.update(status(vec![dyno]), NOW + ms);
        state.share(&state.dynos[0])
    };
    assert_eq!(used(0, 500, "a"), None, "there is one reading");
    assert_eq!(used(1000, 750, "a"), Some(250));
    assert_eq!(used(1000, 750, "a"), Some(250), "no time has gone by");
    assert_eq!(used(2000, 3750, "a"), Some(3000), "on three processors");
    assert_eq!(used(3000, 10, "b"), None, "another process");
    assert_eq!(used(2500, 20, "b"), None, "the clock was set back");
}

/// What two rows show of the log that is read.
fn shown(state: &State) -> Vec<String> {
    let Mode::Log { back, all } = state.mode else {
        panic!("{:?}", state.mode)
    };
    let lines = state.last_lines(2, back, all);
    lines.iter().map(|line| line.text.clone()).collect()
}

#[test]
fn the_log_is_scrolled_and_stays_where_it_is_read() {
    let mut state = with(&["web.1", "web.2"]);
    write(&mut state, "web.1", &["a", "b", "c", "d"]);
    write(&mut state, "web.2", &["x"]);
    typed(&mut state, "l");
    assert_eq!(shown(&state), ["c", "d"]);
    typed(&mut state, "k");
    assert_eq!(shown(&state), ["b", "c"]);
    write(&mut state, "web.1", &["e"]);
    assert_eq!(shown(&state), ["b", "c"]);
    typed(&mut state, "G");
    assert_eq!(shown(&state), ["d", "e"]);
    typed(&mut state, "g");
    assert_eq!(shown(&state), ["a"]);
    typed(&mut state, "a");
    assert_eq!(shown(&state), ["x", "e"]);
}

#[test]
fn a_log_that_is_read_further_up_is_not_moved_by_others() {
    let mut state = with(&["web.1", "web.2"]);
    write(&mut state, "web.1", &["a", "b", "c"]);
    typed(&mut state, "lk");
    write(&mut state, "web.2", &["x"; 80]);
    assert_eq!(shown(&state), ["a", "b"]);
    typed(&mut state, "qak");
    write(&mut state, "web.2", &["y"]);
    assert_eq!(
        shown(&state),
        ["x", "x"],
        "all that is new counts among all"
    );
}

#[test]
fn where_the_oldest_lines_went_the_oldest_that_are_kept_are_read() {
    let mut state = with(&["web.1"]);
    write(&mut state, "web.1", &["a", "b"]);
    typed(&mut state, "lk");
    let many = vec!["x"; KEPT];
    write(&mut state, "web.1", &many);
    assert_eq!(shown(&state), ["x"]);
}

#[test]
fn a_dyno_that_is_selected_has_its_lines_and_none_of_others() {
    let mut state = with(&["web.1", "web.2"]);
    write(&mut state, "web.1", &["a", "b"]);
    typed(&mut state, "lkqjl");
    assert_eq!(state.selected(), Some("web.2"));
    assert_eq!(shown(&state), [""; 0]);
    // They were on their way.
    write(&mut state, "web.1", &["late"]);
    assert_eq!(shown(&state), [""; 0]);
    write(&mut state, "web.2", &["x"]);
    assert_eq!(shown(&state), ["x"]);
}

#[test]
fn a_log_that_begins_anew_is_read_at_its_end() {
    for (keys, whose) in [("lk", Whose::Dyno("web.1".to_owned())), ("ak", Whose::All)] {
        let mut state = with(&["web.1"]);
        write(&mut state, "web.1", &["a", "b", "c"]);
        typed(&mut state, keys);
        state.update(Update::Anew(whose), NOW);
        assert_eq!(shown(&state), [""; 0], "{keys}");
        write(&mut state, "web.1", &["d", "e"]);
        assert_eq!(shown(&state), ["d", "e"], "{keys}");
    }
}

#[test]
fn an_hsup_that_comes_back_is_not_away() {
    let mut state = with(&["web.1"]);
    state.update(Update::Away("it\x1b ended".to_owned()), NOW);
    let away = state.away.as_ref().unwrap();
    assert_eq!(away.why, "it\\u{1b} ended");
    assert_eq!(state.dynos.len(), 1, "what was known last is still shown");
    state.update(status(vec![dyno("web.1")]), NOW);
    assert!(state.away.is_none());
}

#[test]
fn what_was_known_last_is_of_when_hsup_went_away() {
    let mut state = with(&["web.1"]);
    assert_eq!(state.known_at(NOW + 500), NOW + 500);
    state.update(Update::Away("it ended".to_owned()), NOW + 1000);
    state.update(Update::Away("no hsup runs".to_owned()), NOW + 2000);
    assert_eq!(state.known_at(NOW + 60_000), NOW + 1000);
    state.update(status(vec![dyno("web.1")]), NOW + 70_000);
    assert_eq!(state.known_at(NOW + 70_000), NOW + 70_000);
}
