//! `hsup export systemd`: units for one app, made of those that a package brings for all.
//!
//! What holds for `hsup@.service` holds for an exported unit, with its reasons: only who runs the
//! app, and the command, are others.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf, absolute},
};

use clap::{ArgMatches, Args as _, CommandFactory as _, parser::ValueSource};
use hsup_core::paths::SUN_PATH_MAX;
use thiserror::Error;

use super::{
    args::{Cli, Options, SystemdArgs},
    meant::{AppIs, UnitsApp},
};
use crate::config::{Origin, SOURCES, Setting, key::IsPath};

const SERVICE: &str = include_str!("../../../packaging/hsup@.service");
const SOCKET: &str = include_str!("../../../packaging/hsup@.socket");

/// No units can be written.
#[derive(Debug, Error)]
pub(super) enum ExportError {
    /// It would be a file name, and stand in the units.
    #[error(
        "`{0}` cannot be what a unit is called: use letters, digits, `_`, `.` and `-`, and not `driver-…`"
    )]
    Name(String),
    /// Nobody could connect to the app's hsup.
    #[error(
        "`{name}` is too long for what a unit is called: its control socket {} would have {} bytes, \
         and a socket's path may have {SUN_PATH_MAX}: name it, as `hsup export systemd NAME`",
        control_socket(name), control_socket(name).len()
    )]
    LongName { name: String },
    /// It would stand in the units.
    #[error("`{0}` cannot be the name of a user")]
    User(String),
    /// The app has no name that could be the unit's.
    #[error("the app's directory has no name: say what the units are called")]
    Nameless,
    /// Everybody may read a unit.
    #[error(
        "--{option} may hold a token, and everybody may read a unit: write {variable}=… into /etc/hsup/apps/{name}.env"
    )]
    Secret {
        option: &'static str,
        variable: &'static str,
        name: String,
    },
    /// The same, where a variable of the shell says so: the unit has other ones.
    #[error(
        "{variable} may hold a token, and everybody may read a unit: write {variable}=… into /etc/hsup/apps/{name}.env, and leave it out here (`env -u {variable} hsup export …`)"
    )]
    SecretVariable { variable: String, name: String },
    /// The socket unit says it.
    #[error("-s has no place here: the units' control socket is {}", control_socket(.0))]
    Socket(String),
    /// A path or a value that no unit file can hold.
    #[error("a unit cannot hold `{}`: it is not UTF-8", .0.display())]
    NotText(OsString),
    /// There is no current directory, say.
    #[error("failed to find out where `{}` is", path.display())]
    Place { path: PathBuf, source: io::Error },
    /// The directory of `--to`.
    #[error("failed to write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// What counts here besides the command line, where the service may not find it.
#[derive(Debug)]
pub(super) struct Found<'a> {
    /// As `start` would choose it.
    pub(super) app: &'a UnitsApp,
    pub(super) settings: &'a [Setting],
    /// The file that is read, where one is named.
    pub(super) config: Option<&'a Path>,
}

/// A file that systemd reads.
#[derive(Debug, PartialEq, Eq)]
struct Unit {
    file: String,
    text: String,
}

/// Writes the units for the command line `words` and what the variables say besides; answers
/// what is to be shown.
pub(super) fn systemd(
    args: &SystemdArgs,
    options: &Options,
    found: &Found<'_>,
    words: impl IntoIterator<Item = OsString>,
) -> Result<String, ExportError> {
    let program = env::current_exe().map_err(|source| ExportError::Place {
        path: "hsup".into(),
        source,
    })?;
    // It has been read without an error once.
    let mut words: Vec<_> = words.into_iter().collect();
    words.splice(1..1, of_variables(found, options));
    let matches = Cli::command().get_matches_from(words);
    let name = name(args, options, &found.app.is)?;
    refuse(&matches, &name)?;
    refuse_variables(found.settings, &name)?;
    let mut given = given(&matches)?;
    // What a file says is no business of the units: hsup finds it there again.
    if !found.app.is_in_a_file {
        given.insert(0, of_app(&found.app.is)?);
    }
    if options.linger.is_none() {
        // A service manager takes its time, and a Procfile's dynos are not at somebody's terminal.
        given.push(vec!["--linger".into(), "5m".into()]);
    }
    let state_dir = options.state_dir.is_none();
    let state_dir = state_dir.then(|| format!("--state-dir %S/hsup/state/{name}"));
    let mut command = vec![quoted(program.as_os_str())?, "start".to_owned()];
    for word in given.iter().flatten() {
        command.push(quoted(word)?);
    }
    command.extend(state_dir);
    let units = units(&name, &args.user, &program, &command.join(" "));
    match &args.to {
        None => Ok(shown(&units)),
        Some(folder) => write(&units, folder),
    }
}

/// The option that names the app.
fn of_app(app: &AppIs) -> Result<Vec<OsString>, ExportError> {
    Ok(match app {
        AppIs::OnHeroku(name) => vec!["--app".into(), name.into()],
        AppIs::ControlDir(path) => vec!["--control-dir".into(), anywhere(path.as_os_str())?],
        AppIs::Directory(path) => vec!["--directory".into(), anywhere(path.as_os_str())?],
    })
}

/// What the variables say, as one would type it: the service has other ones.
fn of_variables(found: &Found<'_>, options: &Options) -> Vec<OsString> {
    let has_place = |setting: &&Setting| match setting.key.name.as_str() {
        // It has one of its own.
        "control-socket" => false,
        key => !setting.key.secret && !SOURCES.contains(&key),
    };
    let is_variables = |setting: &&Setting| matches!(setting.origin, Origin::Variable(_));
    let settings = found.settings.iter().filter(is_variables).filter(has_place);
    let mut words: Vec<_> = settings
        .flat_map(Setting::words)
        .map(OsString::from)
        .collect();
    if let Some(config) = found.config.filter(|_| options.config.is_none()) {
        words.extend(["--config".into(), config.into()]);
    }
    words
}

fn name(args: &SystemdArgs, options: &Options, app: &AppIs) -> Result<String, ExportError> {
    let of_app = || match app {
        AppIs::OnHeroku(name) => Some(name.clone()),
        AppIs::ControlDir(path) | AppIs::Directory(path) => {
            let directory = fs::canonicalize(path).or_else(|_| absolute(path)).ok()?;
            let name = directory.file_name()?.to_str()?;
            Some(name.to_owned())
        }
    };
    let name = args.name.clone().or_else(|| options.app.clone());
    let name = name.or_else(of_app).ok_or(ExportError::Nameless)?;
    // The package has units that are called so.
    if !is_plain(&name) || name.starts_with("driver-") {
        return Err(ExportError::Name(name));
    }
    if control_socket(&name).len() > SUN_PATH_MAX {
        return Err(ExportError::LongName { name });
    }
    if !is_plain(&args.user) {
        return Err(ExportError::User(args.user.clone()));
    }
    Ok(name)
}

/// As the socket unit has it.
fn control_socket(name: &str) -> String {
    format!("/run/hsup/{name}.sock")
}

/// Whether a name means itself wherever it stands in a unit.
fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && name.chars().all(is_plain)
}

/// Whether it was typed, or a variable says it.
fn stands(matches: &ArgMatches, option: &str) -> bool {
    matches.value_source(option) == Some(ValueSource::CommandLine)
}

fn refuse(matches: &ArgMatches, name: &str) -> Result<(), ExportError> {
    let secret = |option, variable| ExportError::Secret {
        option,
        variable,
        name: name.to_owned(),
    };
    if stands(matches, "logplex_url") {
        return Err(secret("logplex-url", "LOGPLEX_URL"));
    }
    if stands(matches, "log_to") {
        return Err(secret("log-to", "HSUP_LOG_TO"));
    }
    if stands(matches, "control_socket") {
        return Err(ExportError::Socket(name.to_owned()));
    }
    Ok(())
}

/// Refuses variables that name log drains: left out, they would be missed where the app runs.
fn refuse_variables(settings: &[Setting], name: &str) -> Result<(), ExportError> {
    let secrets = settings.iter().filter(|setting| setting.key.secret);
    for setting in secrets {
        if let Origin::Variable(variable) = &setting.origin {
            return Err(ExportError::SecretVariable {
                variable: variable.clone(),
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// The options that stand on the command line, each with its words: long, and with paths that
/// mean the same everywhere. Which app is meant is said by who has chosen it.
fn given(matches: &ArgMatches) -> Result<Vec<Vec<OsString>>, ExportError> {
    let known = Options::augment_args(clap::Command::new("options"));
    let mut given = Vec::new();
    for option in known.get_arguments() {
        let id = option.get_id();
        let stands = stands(matches, id.as_str());
        let has_place = |long: &&str| stands && !SOURCES.contains(long);
        let Some(long) = option.get_long().filter(has_place) else {
            continue;
        };
        let flag = OsString::from(format!("--{long}"));
        if !option.get_action().takes_values() {
            given.push(vec![flag]);
            continue;
        }
        for value in matches.get_raw(id.as_str()).into_iter().flatten() {
            // A unit has no directory for it.
            let value = if IsPath::of(option).holds(value) {
                anywhere(value)?
            } else {
                value.to_owned()
            };
            given.push(vec![flag.clone(), value]);
        }
    }
    Ok(given)
}

fn anywhere(path: &OsStr) -> Result<OsString, ExportError> {
    let found = absolute(path).map_err(|source| ExportError::Place {
        path: path.into(),
        source,
    })?;
    Ok(found.into_os_string())
}

/// A word as systemd reads it in a command: without `%` and `$` for it to fill in.
fn quoted(word: &OsStr) -> Result<String, ExportError> {
    let word = word
        .to_str()
        .ok_or_else(|| ExportError::NotText(word.to_owned()))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_-.,:=@+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return Ok(word.to_owned());
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' | '$' => text.extend([c, c]),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.push('"');
    Ok(text)
}

/// The units of the app `name`, whose service runs `command`, which is `program`, as `user`.
fn units(name: &str, user: &str, program: &Path, command: &str) -> [Unit; 2] {
    // A condition is read to the end of its line, with `%` for systemd to fill in.
    let program = program.display().to_string().replace('%', "%%");
    let unit = |kind: &str, template: &str| {
        let from = template.find("[Unit]").unwrap_or(0);
        let text = template[from..]
            .replace("hsup@%i.", &format!("hsup-{name}."))
            .replace("hsup/apps/%i hsup/state/%i", "hsup/state/%i")
            .replace("%i", name)
            .replace("User=hsup\n", &format!("User={user}\n"));
        // The group is of those who operate the package's apps.
        let text = if user == "hsup" {
            text
        } else {
            text.replace("SocketGroup=hsup\nSocketMode=0660", "SocketMode=0600")
        };
        let lines = text.lines().map(|line| match line.split_once('=') {
            Some((key @ "ExecStart", _)) => format!("{key}={command} $HSUP_OPTIONS"),
            Some((key @ "ConditionFileIsExecutable", _)) => format!("{key}={program}"),
            _ => line.to_owned(),
        });
        let lines: Vec<_> = lines.collect();
        Unit {
            file: format!("hsup-{name}.{kind}"),
            text: format!(
                "# Written by `hsup export systemd`.\n{}\n",
                lines.join("\n")
            ),
        }
    };
    [unit("service", SERVICE), unit("socket", SOCKET)]
}

/// As `systemctl cat` shows units.
fn shown(units: &[Unit]) -> String {
    let texts = units
        .iter()
        .map(|unit| format!("# /etc/systemd/system/{}\n{}", unit.file, unit.text));
    texts.collect::<Vec<_>>().join("\n")
}

#[expect(
    clippy::disallowed_methods,
    reason = "systemd reads units when it is told to, and not before they are whole"
)]
fn write(units: &[Unit], folder: &Path) -> Result<String, ExportError> {
    let mut written = String::new();
    for unit in units {
        let path = folder.join(&unit.file);
        fs::write(&path, &unit.text).map_err(|source| ExportError::Write {
            path: path.clone(),
            source,
        })?;
        writeln!(written, "{}", path.display()).expect("writing to a string cannot fail");
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use hsup_core::files;
    use test_case::test_case;

    use super::*;
    use crate::{
        config::{Places, resolve},
        hsup::{
            args::{Command, Export},
            meant::Meant,
        },
    };

    fn exported(line: &str) -> anyhow::Result<String> {
        exported_with(&[], line)
    }

    /// On a machine that has an app in `/srv/shop`.
    fn exported_with(variables: &[(&str, &str)], line: &str) -> anyhow::Result<String> {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("srv/shop")).unwrap();
        files::write_atomic(&root.join("srv/shop/Procfile"), b"web: true\n").unwrap();
        let srv = root.join("srv").to_str().unwrap().to_owned();
        let here = |text: &str| OsString::from(text.replace("/srv", &srv));
        let words: Vec<_> = line.split(' ').map(here).collect();
        let places = Places {
            etc: root.to_owned(),
            user: None,
            current_dir: Some(root.to_owned()),
        };
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(here(found.1))
        };
        let resolved = resolve(&words, variable, &places).unwrap();
        let Command::Export(Export::Systemd(args)) = &resolved.cli.command else {
            panic!("{line}");
        };
        let meant = Meant::by(&resolved, places.current_dir, |_| {});
        let found = Found {
            app: &meant.app_of_a_unit(&resolved.cli.options)?,
            settings: &resolved.settings,
            config: resolved.config.as_deref(),
        };
        let units = systemd(args, &resolved.cli.options, &found, words)?;
        Ok(units.replace(&srv, "/srv"))
    }

    fn command(units: &str) -> &str {
        let line = units.lines().find(|line| line.starts_with("ExecStart="));
        line.unwrap().split_once(" start ").unwrap().1
    }

    #[test]
    fn the_unit_has_the_options_that_were_given_and_no_others() {
        let units = exported(
            "hsup export systemd shop -C /srv/shop --grace 5s --strategy web=stop-first --strategy \
             start-first --cycle -d docker --driver-option swarm=true --driver-option \
             constraint=node.role!=manager",
        )
        .unwrap();
        assert_eq!(
            command(&units),
            "--directory /srv/shop --driver docker --driver-option swarm=true --driver-option \
             \"constraint=node.role!=manager\" --grace 5s --strategy web=stop-first \
             --strategy start-first --cycle --linger 5m --state-dir %S/hsup/state/shop $HSUP_OPTIONS"
        );
        assert!(units.contains("# /etc/systemd/system/hsup-shop.socket\n"));
        assert!(units.contains("\nRequires=hsup-shop.socket\n"));
        assert!(units.contains("\nListenStream=%t/hsup/shop.sock\n"));
        assert!(units.contains("\nLogsDirectory=hsup/shop\n"), "{units}");
        assert!(units.contains("\nStartLimitIntervalSec=0\n"), "{units}");
        let program = env::current_exe().unwrap();
        let condition = format!("\nConditionFileIsExecutable={}\n", program.display());
        assert_eq!(units.matches(&condition).count(), 2, "{units}");
        assert!(!units.contains("%i") && !units.contains("hsup@"), "{units}");
    }

    #[test]
    fn what_variables_say_is_in_the_unit() {
        let named = |variables, line| {
            let units = exported_with(variables, line).unwrap();
            command(&units).to_owned()
        };
        assert_eq!(
            named(
                &[
                    ("HSUP_DIRECTORY", "/srv/shop"),
                    ("HSUP_DRIVER", "docker"),
                    ("HSUP_GRACE", "7s"),
                    ("HSUP_LINGER", "1h"),
                    ("HSUP_STATE_DIR", "/srv/state"),
                ],
                "hsup export systemd shop --grace 5s"
            ),
            "--directory /srv/shop --driver docker --grace 5s --linger 1h --state-dir /srv/state \
             $HSUP_OPTIONS"
        );
        let control_dir = [("HSUP_CONTROL_DIR", "/srv/ctl")];
        assert_eq!(
            named(&control_dir, "hsup export systemd shop"),
            "--control-dir /srv/ctl --linger 5m --state-dir %S/hsup/state/shop $HSUP_OPTIONS"
        );
        assert_eq!(
            named(&control_dir, "hsup export systemd shop -C /srv/shop"),
            "--directory /srv/shop --linger 5m --state-dir %S/hsup/state/shop $HSUP_OPTIONS"
        );
        let units = exported_with(&control_dir, "hsup export systemd").unwrap();
        assert!(units.contains("hsup-ctl.service"), "{units}");
    }

    #[test]
    fn the_file_that_a_variable_names_is_named_in_the_unit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ours.toml");
        let app = folder.path().join("app");
        fs::create_dir(&app).unwrap();
        files::write_atomic(&app.join("Procfile"), b"web: true\n").unwrap();
        let text = format!("directory = \"{}\"\n", app.display());
        files::write_atomic(&path, text.as_bytes()).unwrap();
        let path = path.to_str().unwrap();
        let units = exported_with(&[("HSUP_CONFIG", path)], "hsup export systemd shop").unwrap();
        let command = command(&units);
        assert!(
            command.starts_with(&format!("--config {path} --linger")),
            "{command}"
        );
    }

    #[test]
    fn another_user_runs_it_and_owns_its_socket() {
        let units = exported("hsup export systemd -a shop --user deploy").unwrap();
        assert!(units.contains("\nUser=deploy\n"), "{units}");
        assert!(
            units.contains("\nSocketUser=deploy\nSocketMode=0600\n"),
            "{units}"
        );
        assert!(!units.contains("SocketGroup"), "{units}");
    }

    #[test]
    fn paths_mean_the_same_everywhere() {
        let here = env::current_dir().unwrap();
        // From wherever this runs.
        let up = "..".to_owned() + &"/..".repeat(here.components().count());
        let units = exported(&format!(
            "hsup export systemd x -C {up}/srv/shop -d ./jail --state-dir=state"
        ))
        .unwrap();
        let here = here.display();
        let expected = format!(
            "--directory {here}/{up}/srv/shop --driver {here}/./jail --state-dir {here}/state --linger 5m $HSUP_OPTIONS"
        );
        assert_eq!(command(&units), expected.replace("/./", "/"));
    }

    #[test_case("hsup export systemd ../x -a x", "unit is called"; "a name that is a path")]
    #[test_case("hsup export systemd driver-x -a x", "unit is called"; "a name of the package's")]
    #[test_case("hsup export systemd x -a x --user a%b", "name of a user"; "a user that is none")]
    #[test_case("hsup export systemd x -a x --logplex-url https://t:s3cret@h", "LOGPLEX_URL"; "a token")]
    #[test_case("hsup export systemd x -a x --log-to https://t:s3cret@h", "/etc/hsup/apps/x.env"; "another token")]
    #[test_case("hsup export systemd x -a x -s /x.sock", "/run/hsup/x.sock"; "a socket")]
    #[test_case("hsup export systemd x", "there is no app to run"; "no app")]
    #[test_case("hsup export systemd x -C /srv", "no Procfile in `/"; "a folder without an app")]
    #[test_case("hsup export systemd x -C /srv/shop/Procfile", "no directory `/"; "a file")]
    #[test_case("hsup export systemd x -C /srv/shop -a shop", "give one of them"; "two apps")]
    fn what_no_unit_can_say_is_refused(line: &str, why: &str) {
        let error = exported(line).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test_case("LOGPLEX_URL", "https://t:s3cret@h")]
    #[test_case("HSUP_LOG_TO", "file:///s3cret https://t:s3cret@h")]
    fn a_drain_that_a_variable_names_is_refused(variable: &str, value: &str) {
        let line = "hsup export systemd x -C /srv/shop";
        let error = exported_with(&[(variable, value)], line).unwrap_err();
        let expected = format!(
            "{variable} may hold a token, and everybody may read a unit: write {variable}=… into \
             /etc/hsup/apps/x.env, and leave it out here (`env -u {variable} hsup export …`)"
        );
        assert_eq!(error.to_string(), expected);
        // One that says nothing is no drain.
        assert!(exported_with(&[(variable, "")], line).is_ok());
    }

    #[test]
    fn a_name_has_room_in_the_path_of_its_socket() {
        let export = |length| {
            let line = format!("hsup export systemd {} -a shop", "x".repeat(length));
            exported(&line)
        };
        assert!(export(92).unwrap().contains("/hsup-xxx"));
        let error = export(93).unwrap_err().to_string();
        assert!(error.contains(".sock would have 108 bytes"), "{error}");
        let unit = SOCKET
            .lines()
            .find(|line| line.starts_with("ListenStream="));
        let unit = unit.unwrap().replace("ListenStream=%t", "/run");
        assert_eq!(unit, control_socket("%i"));
    }

    #[test_case("/srv/shop" => "/srv/shop")]
    #[test_case("" => "\"\"")]
    #[test_case("a b\"\\" => "\"a b\\\"\\\\\"")]
    #[test_case("50%$x" => "\"50%%$$x\"")]
    fn words_are_quoted_as_systemd_reads_them(word: &str) -> String {
        quoted(OsStr::new(word)).unwrap()
    }

    #[test]
    fn units_are_written_where_they_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let line = format!(
            "hsup export systemd shop -a shop --to {}",
            folder.path().display()
        );
        let written = exported(&line).unwrap();
        for path in written.lines() {
            assert!(
                fs::read_to_string(path).unwrap().contains("[Install]"),
                "{path}"
            );
        }
        assert_eq!(written.lines().count(), 2);
    }
}
