//! The `iptables` of before `nf_tables`, which some hosts still have, Docker's rules in it.
//!
//! Its rules can't be seen or changed by netlink, so its own program is run, where the kernel
//! has a table of that kind at all. On a host without the program we can't tell, and say so.
//!
//! It waits for the lock that all such programs share, which somebody may hold for ever, and we
//! run it with a lock on the leases: so neither it nor we wait for long.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::fd::OwnedFd,
    process::{Command, ExitStatus, Stdio},
    sync::Once,
    thread,
    time::Duration,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;
use tokio::time::Instant;

use super::{
    error::{NetError, failed},
    forward::{DOCKER_USER, FILTER, FORWARD, Way},
    names::Names,
};

const PROGRAM: &str = "iptables-legacy";
/// Where it is looked for, by the sweep of a dyno too, which has no environment: what a driver has
/// put in, the sweep is to find the program to take out.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The tables that are loaded in this network namespace.
const LOADED: &str = "/proc/thread-self/net/ip_tables_names";
/// How many seconds it waits for the lock.
const LOCK_WAIT: &str = "5";
/// What it ends with when it had to wait for longer (`RESOURCE_PROBLEM`).
const LOCKED: i32 = 4;
/// How long it may take in all: a version that takes the number of seconds for none waits for ever.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// The program did not do what it was run for.
#[derive(Debug, Error)]
pub(super) enum LegacyError {
    #[error("somebody holds the lock of {PROGRAM}")]
    Locked,
    #[error("failed to run {PROGRAM}")]
    Run(#[source] io::Error),
}

impl LegacyError {
    fn is_missing(&self) -> bool {
        matches!(self, Self::Run(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

impl From<LegacyError> for NetError {
    fn from(error: LegacyError) -> Self {
        match error {
            LegacyError::Locked => Self::Locked,
            LegacyError::Run(source) => failed("run iptables-legacy")(source),
        }
    }
}

/// Whether packets of dynos get through.
pub(super) fn way(names: &Names) -> Result<Way, LegacyError> {
    if !is_loaded() {
        return Ok(Way::Open);
    }
    match run(&["-S"]) {
        Ok(listing) => Ok(way_of(&listing, names)),
        Err(error) if error.is_missing() => {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::warn!(
                    "this host has legacy iptables rules and no {PROGRAM}: if their FORWARD drops packets, dynos get nowhere"
                );
            });
            Ok(Way::Open)
        }
        Err(error) => Err(error),
    }
}

/// Puts the rules into `DOCKER-USER`.
pub(super) fn open_docker(names: &Names) -> Result<(), LegacyError> {
    for rule in docker_rules(names) {
        change("-I", &rule)?;
    }
    Ok(())
}

/// Removes the rules from `DOCKER-USER`, if there are any.
pub(super) fn close_docker(names: &Names) -> Result<(), LegacyError> {
    if !is_loaded() {
        return Ok(());
    }
    let listing = match run(&["-S"]) {
        Err(error) if error.is_missing() => return Ok(()),
        listed => listed?,
    };
    for rule in docker_rules(names) {
        let listed = format!("-A {DOCKER_USER} {}", rule.join(" "));
        for _ in listing.lines().filter(|line| *line == listed) {
            change("-D", &rule)?;
        }
    }
    Ok(())
}

fn is_loaded() -> bool {
    let loaded = fs::read_to_string(LOADED).unwrap_or_default();
    loaded.lines().any(|table| table == FILTER)
}

/// What `iptables-legacy -S` says about the packets of dynos.
fn way_of(listing: &str, names: &Names) -> Way {
    let has = |line: &str| listing.lines().any(|listed| listed == line);
    let prefix = names.prefix();
    let open = |chain: &str| {
        ["-i", "-o"].iter().all(|way| {
            let begins = format!("-A {chain} {way} {prefix}+ ");
            listing
                .lines()
                .any(|line| line.starts_with(&begins) && line.ends_with("-j ACCEPT"))
        })
    };
    if !has(&format!("-P {FORWARD} DROP")) || open(FORWARD) || open(DOCKER_USER) {
        return Way::Open;
    }
    if has(&format!("-N {DOCKER_USER}")) {
        return Way::Docker;
    }
    let rule = |way| format!("{PROGRAM} -I {FORWARD} {way} {prefix}+ -j ACCEPT");
    Way::Closed {
        by: format!("the chain {FORWARD} of {PROGRAM}"),
        command: format!("{} && {}", rule("-i"), rule("-o")),
    }
}

/// The rules, as they are given and listed.
fn docker_rules(names: &Names) -> [Vec<String>; 2] {
    ["-i", "-o"].map(|way| {
        let interfaces = format!("{}+", names.prefix());
        let rule = [
            way,
            &interfaces,
            "-m",
            "comment",
            "--comment",
            names.table(),
            "-j",
            "ACCEPT",
        ];
        rule.map(str::to_owned).to_vec()
    })
}

fn change(how: &str, rule: &[String]) -> Result<(), LegacyError> {
    let mut arguments = vec![how, DOCKER_USER];
    arguments.extend(rule.iter().map(String::as_str));
    run(&arguments).map(drop)
}

fn run(arguments: &[&str]) -> Result<String, LegacyError> {
    // Wait for others who change the rules.
    let arguments = [&["-w", LOCK_WAIT], arguments].concat();
    run_program(OsStr::new(PROGRAM), &arguments, PATIENCE)
}

/// What a program prints; it is killed when it has not ended by then.
fn run_program(
    program: &OsStr,
    arguments: &[&str],
    patience: Duration,
) -> Result<String, LegacyError> {
    // Not pipes: nobody would have to read what is in memory while the program goes on.
    let printed = in_memory().map_err(LegacyError::Run)?;
    let complained = in_memory().map_err(LegacyError::Run)?;
    let status = ended(program, arguments, [&printed, &complained], patience);
    let status = status.map_err(LegacyError::Run)?;
    match status {
        Some(status) if status.success() => text(printed).map_err(LegacyError::Run),
        Some(status) if status.code() != Some(LOCKED) => {
            let said = text(complained).map_err(LegacyError::Run)?;
            let error = io::Error::other(format!("{status}: {}", said.trim()));
            Err(LegacyError::Run(error))
        }
        // Nothing else keeps it.
        _ => Err(LegacyError::Locked),
    }
}

/// Runs a program; how it ended, unless that took too long.
fn ended(
    program: &OsStr,
    arguments: &[&str],
    [printed, complained]: [&File; 2],
    patience: Duration,
) -> io::Result<Option<ExitStatus>> {
    #[expect(clippy::disallowed_methods, reason = "neither a dyno nor a driver")]
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .stdout(printed.try_clone()?)
        .stderr(complained.try_clone()?)
        .spawn()?;
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

fn in_memory() -> io::Result<File> {
    let file: OwnedFd = memfd_create(c"iptables", MFdFlags::MFD_CLOEXEC)?;
    Ok(file.into())
}

fn text(mut file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKERS: &str = "-P INPUT ACCEPT\n-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n";

    fn sh(line: &str) -> Result<String, LegacyError> {
        let patience = if line.contains("sleep") {
            Duration::from_millis(10)
        } else {
            Duration::from_mins(1)
        };
        run_program(OsStr::new("/bin/sh"), &["-c", line], patience)
    }

    #[test]
    fn what_the_program_prints_or_complains_of_is_told() {
        assert_eq!(sh("echo -P FORWARD DROP").unwrap(), "-P FORWARD DROP\n");
        let LegacyError::Run(error) = sh("echo why >&2; exit 1").unwrap_err() else {
            panic!("nothing was locked");
        };
        assert!(error.to_string().ends_with("1: why"), "{error}");
        let missing = run_program(OsStr::new("/no/such/program"), &[], PATIENCE);
        assert!(missing.unwrap_err().is_missing());
    }

    /// Which is where std looks for the program, too.
    #[test]
    fn it_has_a_path_of_its_own() {
        let said = sh("echo $PATH").unwrap();
        assert_eq!(said.trim(), PATH);
        assert!(PATH.split(':').any(|folder| folder == "/usr/sbin"));
    }

    #[test]
    fn a_lock_that_somebody_keeps_is_named_and_not_waited_for() {
        for line in ["exit 4", "exec sleep 1000"] {
            let error = NetError::from(sh(line).unwrap_err());
            assert!(error.to_string().contains("/run/xtables.lock"), "{error}");
            assert_eq!(error.fault(), super::super::Fault::Host);
        }
    }

    #[test]
    #[ignore = "wants the program iptables-legacy"]
    fn a_lock_that_is_held_ends_the_program_as_we_expect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        let line = format!("XTABLES_LOCKFILE={} {PROGRAM} -w 1 -S", path.display());
        let patience = Duration::from_mins(1);
        let ran = run_program(OsStr::new("/bin/sh"), &["-c", &line], patience);
        assert!(matches!(ran, Err(LegacyError::Locked)), "{ran:?}");
    }

    #[test]
    fn the_listing_tells_whether_dynos_get_through() {
        let names = Names::of_table("hsup-1a2b3c4d").unwrap();
        let way = |listing: &str| way_of(listing, &names);
        assert_eq!(way("-P FORWARD ACCEPT\n-N DOCKER-USER\n"), Way::Open);
        assert_eq!(way(DOCKERS), Way::Docker);
        let mut opened = DOCKERS.to_owned();
        for rule in docker_rules(&names) {
            assert_eq!(way(&opened), Way::Docker);
            opened += &["-A DOCKER-USER ", &rule.join(" "), "\n"].concat();
        }
        assert_eq!(way(&opened), Way::Open);

        let Way::Closed { command, .. } = way("-P FORWARD DROP\n") else {
            panic!("it is not closed");
        };
        let mut mended = "-P FORWARD DROP\n".to_owned();
        for command in command.split(" && ") {
            let rule = command.strip_prefix("iptables-legacy -I ").unwrap();
            mended += &["-A ", rule, "\n"].concat();
        }
        assert_eq!(way(&mended), Way::Open);
    }
}
