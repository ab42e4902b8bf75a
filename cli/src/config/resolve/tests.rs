use std::{fs::File, io::Write as _, time::Duration};

use tempfile::TempDir;

use super::*;

struct Machine {
    root: TempDir,
    places: Places,
}

impl Machine {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for (path, text) in files {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            let mut file = File::create(at(path)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        let places = Places {
            etc: at("etc"),
            user: Some(at("user")),
            current_dir: Some(at("app")),
        };
        Self { root, places }
    }

    fn resolve(&self, line: &str, variables: &[(&str, &str)]) -> Result<Resolved, String> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name)?;
            Some(OsString::from(found.1))
        };
        resolve(&arguments, variable, &self.places).map_err(|error| match error {
            ResolveError::Usage(error) => error.to_string(),
            ResolveError::Config(error) => {
                let root = self.root.path().to_str().unwrap();
                hsup_core::errors::chain(&error).replace(root, "")
            }
        })
    }

    fn grace(&self, line: &str, variables: &[(&str, &str)]) -> u64 {
        let resolved = self.resolve(line, variables).unwrap();
        resolved.cli.options.grace.as_secs()
    }
}

#[test]
fn the_files_count_in_their_order() {
    let all = [
        ("etc/hsup.toml", "grace = 1"),
        ("etc/hsup.d/10-a.toml", "grace = 2"),
        ("etc/hsup.d/20-b.toml", "grace = 3"),
        ("etc/hsup.d/30-c.bak", "no toml at all"),
        ("user/hsup.toml", "grace = 4"),
        ("app/Procfile", "web: x"),
        ("app/hsup.toml", "grace = 5"),
    ];
    for (count, expected) in [
        (0, 30),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 3),
        (5, 4),
        (6, 4),
        (7, 5),
    ] {
        let machine = Machine::new(&all[..count]);
        assert_eq!(machine.grace("hsup start", &[]), expected);
    }
    let machine = Machine::new(&all);
    let variable = [("HSUP_GRACE", "6s")];
    assert_eq!(machine.grace("hsup start", &variable), 6);
    assert_eq!(machine.grace("hsup start --grace 7s", &variable), 7);
    assert_eq!(machine.grace("hsup --grace 8s start", &variable), 8);
}

#[test]
fn a_file_that_is_named_counts_instead_of_the_usual_ones() {
    let files = [
        ("etc/hsup.toml", "grace = 1"),
        ("mine.toml", "boot-timeout = 9"),
    ];
    let machine = Machine::new(&files);
    let mine = machine.root.path().join("mine.toml");
    let mine = mine.to_str().unwrap();
    assert_eq!(machine.grace("hsup start", &[("HSUP_CONFIG", mine)]), 30);
    let resolved = machine
        .resolve(&format!("hsup --config {mine} start"), &[])
        .unwrap();
    assert_eq!(resolved.cli.options.boot_timeout, Duration::from_secs(9));
    let error = machine
        .resolve("hsup start --config /nowhere.toml", &[])
        .unwrap_err();
    assert!(error.contains("/nowhere.toml"), "{error}");
}

#[test]
fn an_apps_own_file_is_with_what_is_run() {
    let files = [
        ("app/hsup.toml", "grace = 1"),
        ("other/hsup.toml", "grace = 2"),
        ("etc/hsup.toml", "cycle = true"),
    ];
    let machine = Machine::new(&files);
    let other = machine.root.path().join("other");
    let other = other.to_str().unwrap();
    assert_eq!(machine.grace("hsup start", &[]), 30, "there is no app here");
    assert_eq!(machine.grace(&format!("hsup start -C {other}"), &[]), 2);
    assert_eq!(
        machine.grace(&format!("hsup start --control-dir {other}"), &[]),
        2
    );
    let variable = [("HSUP_CONTROL_DIR", other)];
    assert_eq!(machine.grace("hsup start", &variable), 2);
    // Of the two, whose app is run says the token.
    assert_eq!(machine.grace("hsup start -a shop", &variable), 2);
    let with_token = [variable[0], ("HEROKU_API_KEY", "t")];
    assert_eq!(machine.grace("hsup start -a shop", &with_token), 30);
    let named = [variable[0], ("HSUP_APP", "shop")];
    assert_eq!(machine.grace("hsup start", &named), 2);
    let named = [with_token[0], with_token[1], named[1]];
    assert_eq!(machine.grace("hsup start", &named), 30);
    let no_folder = format!("hsup start -C {other}/hsup.toml");
    assert_eq!(machine.grace(&no_folder, &[]), 30);
}

#[test]
fn a_path_in_a_file_is_one_from_there_and_else_from_the_current_directory() {
    let machine = Machine::new(&[
        (
            "etc/hsup.toml",
            "driver = './jail'\ncontrol-socket = 'c.sock'",
        ),
        ("app/Procfile", "web: x"),
        ("app/hsup.toml", "state-dir = 'st'"),
    ]);
    let at = |path: &str| machine.root.path().join(path);
    let resolved = machine.resolve("hsup start", &[]).unwrap();
    let options = resolved.cli.options;
    assert_eq!(options.state_dir, Some(at("app/st")));
    assert_eq!(options.control_socket, Some(at("etc/c.sock")));
    assert_eq!(options.driver.map(PathBuf::from), Some(at("etc/./jail")));
    let mut shown = resolved.settings.iter();
    let shown = shown
        .find(|setting| setting.key.name == "state-dir")
        .unwrap();
    let st = at("app/st").to_str().unwrap().to_owned();
    assert_eq!(shown.given, Some(Given::Values(vec![st])));
    for (line, variables) in [
        ("hsup start --state-dir st", &[][..]),
        ("hsup start", &[("HSUP_STATE_DIR", "st")]),
    ] {
        let options = machine.resolve(line, variables).unwrap().cli.options;
        assert_eq!(options.state_dir, Some(PathBuf::from("st")), "{line}");
    }
}

#[test]
fn the_machines_file_is_no_apps() {
    let text = "control-dir = '/srv/releases'\ngrace = 1";
    let machine = Machine::new(&[("etc/hsup.toml", text)]);
    let etc = machine.places.etc.to_str().unwrap();
    for directory in [etc.to_owned(), format!("{etc}/../etc")] {
        let variable = [("HSUP_CONTROL_DIR", directory.as_str())];
        let resolved = machine.resolve("hsup start", &variable).unwrap();
        assert_eq!(resolved.control_dir, Some(PathBuf::from(&directory)));
        let read = resolved.files.iter();
        let read = read.filter(|(_, reading)| *reading == Reading::Read);
        assert_eq!(read.count(), 1, "{:?}", resolved.files);
    }
}

#[test]
fn a_value_is_refused_in_the_options_own_words() {
    let machine = Machine::new(&[("etc/hsup.toml", "\ngrace = 'soon'")]);
    let time = "`soon` is not a time: use 30, 30s, 500ms or 5m";
    assert_eq!(
        machine.resolve("hsup start", &[]).unwrap_err(),
        format!("/etc/hsup.toml:2: grace: {time}")
    );
    let machine = Machine::new(&[]);
    assert_eq!(
        machine
            .resolve("hsup start", &[("HSUP_GRACE", "soon")])
            .unwrap_err(),
        format!("HSUP_GRACE: {time}")
    );
    let range = machine.resolve("hsup start", &[("HSUP_START_NUMBER", "0")]);
    assert!(
        range
            .unwrap_err()
            .starts_with("HSUP_START_NUMBER: 0 is not in 1..")
    );
}

#[test]
fn a_flag_outdoes_its_rivals() {
    let text = "driver = 'docker'\ndirectory = '/srv/shop'\ncontrol-socket = '/s'";
    let machine = Machine::new(&[("etc/hsup.toml", text)]);
    let options = |line: &str| machine.resolve(line, &[]).unwrap().cli.options;
    let plain = options("hsup start");
    assert_eq!(plain.driver.as_deref(), Some("docker"));
    assert_eq!(plain.directory.as_deref(), Some(Path::new("/srv/shop")));
    assert_eq!(plain.control_socket.as_deref(), Some(Path::new("/s")));
    let flagged = options("hsup start --driver-socket /d --control-dir /c");
    assert_eq!((flagged.driver, flagged.directory), (None, None));
    let run = options("hsup run true");
    assert_eq!(
        run.control_socket, None,
        "`run` has one only where it is told to"
    );
}

/// Whoever can put a file there says which program is the driver.
#[test]
#[ignore = "needs root: it gives a file away"]
fn a_strangers_file_with_the_app_is_refused() {
    use std::os::unix::fs::{chown, symlink};

    let files = [
        ("app/Procfile", "web: x"),
        ("app/hsup.toml", "driver = '/evil'"),
        ("other/Procfile", "web: x"),
    ];
    let machine = Machine::new(&files);
    let own = machine.root.path().join("app/hsup.toml");
    chown(&own, Some(4711), None).unwrap();
    let error = machine.resolve("hsup start", &[]).unwrap_err();
    assert!(
        error.starts_with("`/app/hsup.toml` belongs to user 4711"),
        "{error}"
    );
    // What counts is whose the file is, not whose the link.
    let other = machine.root.path().join("other");
    symlink(&own, other.join(FILE)).unwrap();
    let line = format!("hsup start -C {}", other.display());
    let error = machine.resolve(&line, &[]).unwrap_err();
    assert!(error.contains("belongs to user 4711"), "{error}");
}

/// While it changes hands, each read goes by the owner of what it read.
#[test]
#[ignore = "needs root: it gives a file away"]
fn a_strangers_file_does_not_take_the_place_of_one_that_was_looked_at() {
    use std::{
        os::unix::fs::{chown, symlink},
        sync::atomic::{AtomicBool, Ordering},
    };

    let files = [
        ("app/Procfile", "web: x"),
        ("good.toml", "grace = 7"),
        ("evil.toml", "driver = '/evil'"),
    ];
    let machine = Machine::new(&files);
    let at = |path: &str| machine.root.path().join(path);
    chown(at("evil.toml"), Some(4711), None).unwrap();
    let swap = |target: &str| {
        symlink(at(target), at("next")).unwrap();
        fs::rename(at("next"), at("app/hsup.toml")).unwrap();
    };
    swap("good.toml");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                swap("evil.toml");
                swap("good.toml");
            }
        });
        let taken = (0..300).any(|_| {
            let resolved = machine.resolve("hsup start", &[]);
            resolved.is_ok_and(|resolved| resolved.cli.options.driver.is_some())
        });
        is_over.store(true, Ordering::Relaxed);
        assert!(!taken, "a stranger's driver counted");
    });
}

/// What is not for this user says nothing in `/etc/hsup`; with the app it may say what its dynos
/// are shut in by.
#[test]
fn an_apps_own_file_has_to_be_readable() {
    use std::os::unix::fs::PermissionsExt as _;

    let files = [
        ("etc/hsup.toml", "grace = 1"),
        ("app/Procfile", "web: x"),
        ("app/hsup.toml", "grace = 2"),
    ];
    let machine = Machine::new(&files);
    let close = |path: &str| {
        let path = machine.root.path().join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    };
    close("etc/hsup.toml");
    assert_eq!(machine.grace("hsup start", &[]), 2);
    close("app/hsup.toml");
    let resolved = machine.resolve("hsup start", &[]);
    // Root may read whatever it is.
    if geteuid().is_root() {
        assert_eq!(resolved.unwrap().cli.options.grace.as_secs(), 2);
    } else {
        let error = resolved.unwrap_err();
        assert!(error.contains("failed to read `/app/hsup.toml`"), "{error}");
    }
}
