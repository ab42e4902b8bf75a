//! `hsup run`: codes, bytes, pipes.

use std::{io::Write as _, process::Stdio};

use crate::app::{App, binaries, processes_of};

fn code(app: &App, line: &str) -> Option<i32> {
    app.run(&["run", line]).status.code()
}

#[test]
fn the_code_is_the_commands() {
    let app = App::procfile("web: true\n");
    assert_eq!(code(&app, "exit 7"), Some(7));
    assert_eq!(code(&app, "no-such-command"), Some(127));
    assert_eq!(code(&app, "/etc/passwd"), Some(126));
    assert_eq!(code(&app, "kill -KILL $$"), Some(137));
    assert_eq!(code(&app, "kill -TERM $$"), Some(143));
    assert!(processes_of(&app).is_empty());
}

#[test]
fn options_before_the_command_may_have_their_value_attached() {
    let app = App::procfile("web: true\n");
    let folder = app.path("app");
    let directory = format!("-C{}", folder.display());
    for options in [
        &["-dsimple", "-C."][..],
        &["-d=simple", &directory],
        &["-d", "simple", "-C", "."],
    ] {
        let words = [&["run"], options, &["printf", "%s|", "-d", "-C."]].concat();
        let output = app.run(&words);
        assert_eq!(output.stdout, b"-d|-C.|", "{options:?}");
    }
}

#[test]
fn words_and_bytes_arrive_as_they_are() {
    let app = App::procfile("web: true\n");
    let output = app.run(&["run", "--", "printf", r"%s\n", "a b", "c"]);
    assert_eq!(output.stdout, b"a b\nc\n");
    let dyno = binaries().join("test-dyno");
    let output = app.run(&["run", dyno.to_str().unwrap(), "bytes"]);
    assert_eq!(output.stdout, b"a\0b\xff\xfe\x80\r\n\x1b[31m\xc3(\nend");
    let output = app.run(&["run", "echo $DYNO; echo problem >&2"]);
    assert_eq!(output.stdout, b"run.1\n");
    assert_eq!(output.stderr, b"problem\n");
}

#[test]
fn input_and_its_end_are_passed_on() {
    let app = App::procfile("web: true\n");
    let mut child = app
        .command("hsup")
        .args(["run", "cat; echo end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let big = vec![b'x'; 1 << 20];
    let writer = std::thread::spawn(move || stdin.write_all(&big).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.stdout.len(), (1 << 20) + 4);
    assert!(output.stdout.ends_with(b"xend\n"));
}

#[test]
fn a_reader_that_leaves_means_141() {
    let app = App::procfile("web: true\n");
    let mut child = app
        .command("hsup")
        .args(["run", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert!(processes_of(&app).is_empty());
}

#[test]
fn a_closed_stdin_is_an_empty_one() {
    let app = App::procfile("web: true\n");
    let hsup = binaries().join("hsup");
    let output = app.run(&["run", &format!("{} run cat <&-; echo $?", hsup.display())]);
    assert_eq!(output.stdout, b"0\n");
}
