//! How output looks where it goes: its colours, its width.

use crate::app::App;

/// Whether what `program` writes into a file with these variables has colours.
fn coloured(app: &App, program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> bool {
    let mut command = app.command(program);
    command.args(arguments).envs(variables.iter().copied());
    let written = command.output().unwrap().stdout;
    let text = String::from_utf8(written).unwrap();
    assert!(text.contains("worker"), "{program}: {text}");
    text.contains("\x1b[")
}

#[test]
fn both_programs_go_by_the_same_variables() {
    let app = App::procfile("worker: sleep 1000\n");
    let other = App::procfile("worker: echo done\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    for (variables, expected) in [
        (&[][..], false),
        (&[("FORCE_COLOR", "1")], true),
        (&[("FORCE_COLOR", "0")], false),
        (&[("FORCE_COLOR", "")], false),
        (&[("FORCE_COLOR", "1"), ("NO_COLOR", "1")], false),
        (&[("FORCE_COLOR", "1"), ("NO_COLOR", "")], true),
    ] {
        let start = coloured(&other, "hsup", &["start", "--oneshot"], variables);
        assert_eq!(start, expected, "hsup start, {variables:?}");
        let ps = coloured(&app, "hsupctl", &["ps"], variables);
        assert_eq!(ps, expected, "hsupctl ps, {variables:?}");
    }
    hsup.interrupt();
}

#[test]
fn a_wide_list_is_as_wide_as_there_is_room() {
    let app = App::procfile("worker: exit 7\n");
    let hsup = app.start(&["--restart-backoff", "1h..1h"]);
    hsup.wait_for_line("Crashed 2 times in a row");
    let header = |columns: &str| {
        let mut command = app.command("hsupctl");
        command.env("COLUMNS", columns).args(["ps", "-o", "wide"]);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        if let Ok(columns) = columns.parse::<usize>() {
            assert!(text.lines().all(|line| line.len() <= columns), "{text}");
        }
        let words = text.lines().next().unwrap().split_whitespace();
        words.map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(header("45"), "NAME STATE READY AGE");
    let all = "NAME STATE READY PID RELEASE AGE RESTARTS LAST-EXIT CPU MEM PORT";
    assert_eq!(header("200"), all);
    assert_eq!(header(""), all, "a pipe has any width");
    hsup.interrupt();
}
