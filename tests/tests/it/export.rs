//! `hsup export systemd`: units of what `start` would run, or none.

use std::fs;

use crate::app::App;

#[test]
fn what_start_refuses_gets_no_units() {
    let app = App::procfile("web: true\n");
    let folder = app.path("units");
    fs::create_dir(&folder).unwrap();
    let to = ["--to", folder.to_str().unwrap()];
    for (options, code) in [
        (&["-d", "simple", "--driver-socket", "/y"][..], 2),
        (&["-d", "nosuch"], 1),
        (&["-d", "./none"], 1),
        (&["-C", ".", "-a", "shop"], 2),
        (&["-C", "nowhere"], 1),
        (&["-C", "Procfile"], 1),
        (&["-C", "/"], 1),
    ] {
        let said = |command: &[&str]| {
            let output = app.run(&[command, options].concat());
            let said = String::from_utf8(output.stderr).unwrap();
            (output.status.code(), said)
        };
        let start = said(&["start"]);
        assert_eq!(start.0, Some(code), "{start:?}");
        let export = said(&[&["export", "systemd", "x"][..], &to].concat());
        assert_eq!(export, start, "{options:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{options:?}");
    }
}

/// A token is the unit's to have; where there is none here, a control directory goes before it.
#[test]
fn the_unit_runs_what_start_would_run() {
    let app = App::empty();
    let exported = |variables: &[(&str, &str)]| {
        let mut command = app.command("hsup");
        command.envs(variables.iter().copied());
        let output = command
            .args(["export", "systemd", "-a", "shop"])
            .output()
            .unwrap();
        let units = String::from_utf8(output.stdout).unwrap();
        let line = units.lines().find(|line| line.starts_with("ExecStart="));
        let line = line.unwrap_or_else(|| panic!("{:?}", output.stderr));
        let command = line.split_once(" start ").unwrap().1.to_owned();
        (command, String::from_utf8(output.stderr).unwrap())
    };
    let control_dir = ("HSUP_CONTROL_DIR", "/srv/ctl");
    let (command, said) = exported(&[control_dir]);
    assert!(
        command.starts_with("--control-dir /srv/ctl --"),
        "{command}"
    );
    assert!(!command.contains("--app"), "{command}");
    assert!(said.contains("-a shop has no effect"), "{said}");
    for variables in [&[][..], &[control_dir, ("HEROKU_API_KEY", "t")]] {
        let (command, said) = exported(variables);
        assert!(command.starts_with("--app shop --"), "{command}");
        assert!(!command.contains("--control-dir"), "{command}");
        assert_eq!(said, "");
    }
}
