//! The `iptables` of before `nf_tables`, which some hosts still have, Docker's rules in it.
//!
//! Its rules can't be seen or changed by netlink, so its own program is run, where the kernel
//! has a table of that kind at all. On a host without the program we can't tell, and say so.

use std::{fs, io, process::Stdio, sync::Once};

use super::{
    forward::{DOCKER_USER, FILTER, FORWARD, Way},
    names::Names,
};

const PROGRAM: &str = "iptables-legacy";
/// The tables that are loaded in this network namespace.
const LOADED: &str = "/proc/thread-self/net/ip_tables_names";

/// Whether packets of dynos get through.
pub(super) fn way(names: &Names) -> io::Result<Way> {
    if !is_loaded() {
        return Ok(Way::Open);
    }
    match run(&["-S"]) {
        Ok(listing) => Ok(way_of(&listing, names)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
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
pub(super) fn open_docker(names: &Names) -> io::Result<()> {
    for rule in docker_rules(names) {
        change("-I", &rule)?;
    }
    Ok(())
}

/// Removes the rules from `DOCKER-USER`, if there are any.
pub(super) fn close_docker(names: &Names) -> io::Result<()> {
    if !is_loaded() {
        return Ok(());
    }
    let listing = match run(&["-S"]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
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

fn change(how: &str, rule: &[String]) -> io::Result<()> {
    let mut arguments = vec![how, DOCKER_USER];
    arguments.extend(rule.iter().map(String::as_str));
    run(&arguments).map(drop)
}

fn run(arguments: &[&str]) -> io::Result<String> {
    #[expect(clippy::disallowed_methods, reason = "neither a dyno nor a driver")]
    let ran = std::process::Command::new(PROGRAM)
        // Wait for others who change the rules.
        .arg("-w")
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        return Err(io::Error::other(format!("{}: {}", ran.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKERS: &str = "-P INPUT ACCEPT\n-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n";

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
