//! Colour where somebody sees it, and nowhere else.

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
