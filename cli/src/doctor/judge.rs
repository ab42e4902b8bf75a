//! What is right and what is wrong with what was seen, for the driver that was asked for. Pure.

use std::fmt;

use hsup_core::ports;
use serde::Serialize;

use super::facts::{
    Answer, Cgroups, Driver, Facts, Health, Kernel, Layout, Limits, NAMESPACES, Presence, Stacks,
    Unread, User, Way,
};

/// Below that `hsup start` has room for a few dynos only.
const FEW_FILES: u64 = 1024;
/// What hsup itself has open, about, and what it opens for each dyno.
const OWN_FILES: u64 = 64;
const FILES_A_DYNO: u64 = 3;
/// How few processes are worth a word.
const FEW_PROCESSES: u64 = 256;

/// The driver that is to run dynos.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Simple,
    Docker,
    Libcontainer,
    /// Somebody's program: what it needs is its own affair.
    Other(String),
}

impl Wanted {
    /// By the name that `-d` takes.
    pub fn named(name: &str) -> Self {
        match name {
            "simple" => Self::Simple,
            "docker" => Self::Docker,
            "libcontainer" => Self::Libcontainer,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The name that `-d` takes.
    pub fn name(&self) -> &str {
        match self {
            Self::Simple => "simple",
            Self::Docker => "docker",
            Self::Libcontainer => "libcontainer",
            Self::Other(name) => name,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Worth knowing; dynos run all the same.
    Note,
    Wrong,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Wrong => "wrong",
        })
    }
}

/// One line. The names of the fields are what `-o json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub area: &'static str,
    /// What was looked at.
    pub what: String,
    pub found: String,
    pub verdict: Verdict,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(area: &'static str, what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            area,
            what: what.into(),
            found: found.into(),
            verdict: Verdict::Ok,
            advice: None,
        }
    }

    /// The same, where it is not as it should be.
    fn but(mut self, verdict: Verdict, advice: impl Into<String>) -> Self {
        self.verdict = verdict;
        self.advice = Some(advice.into());
        self
    }
}

/// What is wrong for the driver of these that is wanted is wrong; for any other it is a note.
fn weigh(wanted: &Wanted, who_needs_it: &[Wanted]) -> Verdict {
    if who_needs_it.contains(wanted) {
        Verdict::Wrong
    } else {
        Verdict::Note
    }
}

/// All findings, in the order in which they are shown.
pub fn judge(facts: &Facts, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = kernel(&facts.kernel, wanted);
    findings.extend(cgroups(&facts.cgroups, wanted));
    findings.push(user(&facts.user));
    findings.extend(sockets(facts));
    findings.extend(
        facts
            .drivers
            .iter()
            .map(|asked| driver(asked, facts.packaged, wanted)),
    );
    findings.push(stacks(&facts.stacks, &facts.drivers, wanted));
    findings.extend(limits(&facts.limits));
    findings.extend(
        facts
            .ports
            .iter()
            .map(|(port, state)| self::port(*port, *state, wanted)),
    );
    findings
}

fn kernel(kernel: &Kernel, wanted: &Wanted) -> Vec<Finding> {
    const AREA: &str = "kernel";
    let containers = weigh(wanted, &[Wanted::Libcontainer]);
    let mut findings = vec![version(&kernel.release, containers)];

    let missing: Vec<_> = NAMESPACES
        .into_iter()
        .filter(|kind| !kernel.namespaces.contains(kind))
        .collect();
    findings.push(if missing.is_empty() {
        Finding::ok(AREA, "namespaces", NAMESPACES.join(" "))
    } else {
        Finding::ok(
            AREA,
            "namespaces",
            format!("missing: {}", missing.join(" ")),
        )
        .but(
            containers,
            "libcontainer needs a kernel with CONFIG_NAMESPACES and all kinds of them",
        )
    });
    findings.push(if kernel.seccomp.contains("errno") {
        Finding::ok(AREA, "seccomp", "filters can refuse calls")
    } else {
        Finding::ok(AREA, "seccomp", "no filters").but(
            containers,
            "libcontainer needs a kernel with CONFIG_SECCOMP_FILTER",
        )
    });
    for (what, presence, option) in [
        ("overlayfs", kernel.overlay, "OVERLAY_FS"),
        ("nf_tables", kernel.nf_tables, "NF_TABLES"),
        ("veth", kernel.veth, "VETH"),
    ] {
        findings.push(match presence {
            Presence::Here => Finding::ok(AREA, what, "there"),
            Presence::Loadable => Finding::ok(AREA, what, "a module, loaded when it is needed"),
            Presence::Unknown => Finding::ok(AREA, what, "this kernel does not tell"),
            Presence::Absent => Finding::ok(AREA, what, "missing").but(
                containers,
                format!(
                    "libcontainer needs a kernel with CONFIG_{option}, and its module installed"
                ),
            ),
        });
    }
    findings.push(match kernel.ipvlan {
        Presence::Absent => Finding::ok(AREA, "ipvlan", "missing").but(
            Verdict::Note,
            "only LIBCONTAINER_DYNO_EXTRA_INTERFACE needs it",
        ),
        Presence::Unknown => Finding::ok(AREA, "ipvlan", "this kernel does not tell"),
        Presence::Here | Presence::Loadable => Finding::ok(AREA, "ipvlan", "there"),
    });
    findings
}

/// The version, and what comes with it.
fn version(release: &str, containers: Verdict) -> Finding {
    let finding = |what: &str| Finding::ok("kernel", "Linux", format!("{release}{what}"));
    match version_of(release) {
        None => finding("").but(
            Verdict::Note,
            "hsup does not know this version: it needs 5.3 or newer",
        ),
        Some(version) if version < (5, 3) => {
            finding(", too old: no pidfd").but(Verdict::Wrong, "use Linux 5.3 or newer")
        }
        Some(version) if version < (5, 12) => finding(", without id-mapped mounts").but(
            containers,
            "libcontainer needs Linux 5.12 or newer; 5.19 does not copy slugs",
        ),
        Some(version) if version < (5, 19) => finding(", without id-mapped layers").but(
            Verdict::Note,
            "libcontainer copies each dyno's slug; Linux 5.19 or newer maps it",
        ),
        Some(_) => finding(" (pidfd, id-mapped layers)"),
    }
}

/// The first two numbers of `6.12.3-amd64`.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

fn cgroups(cgroups: &Cgroups, wanted: &Wanted) -> Vec<Finding> {
    const AREA: &str = "cgroups";
    const LIMITS: [&str; 3] = ["cpu", "memory", "pids"];
    let layout = match cgroups.layout {
        Layout::Unified => Finding::ok(AREA, "version", "2"),
        Layout::Hybrid => Finding::ok(AREA, "version", "1, with a tree of version 2"),
        Layout::Legacy => Finding::ok(AREA, "version", "1"),
        Layout::None => Finding::ok(AREA, "version", "none is mounted").but(
            weigh(wanted, &[Wanted::Libcontainer]),
            "libcontainer needs them: mount -t cgroup2 none /sys/fs/cgroup",
        ),
    };
    let missing: Vec<_> = LIMITS
        .into_iter()
        .filter(|name| !cgroups.controllers.contains(*name))
        .collect();
    let controllers =
        if missing.is_empty() {
            Finding::ok(AREA, "controllers", LIMITS.join(" "))
        } else {
            Finding::ok(AREA, "controllers", format!("missing: {}", missing.join(" "))).but(
            weigh(wanted, &[Wanted::Libcontainer]),
            "libcontainer cannot keep the limits of a dyno: see the kernel's cgroup_disable= and \
             cgroup.subtree_control",
        )
        };
    let own = match (&cgroups.own, cgroups.writable) {
        (None, _) => Finding::ok(AREA, "our own", "not of version 2").but(
            Verdict::Note,
            "simple knows the processes of a dyno by other signs (docs/drivers.md)",
        ),
        (Some(path), true) => Finding::ok(AREA, "our own", path.display().to_string()),
        (Some(path), false) => Finding::ok(
            AREA,
            "our own",
            format!("{} is not ours to write", path.display()),
        )
        .but(
            Verdict::Note,
            "simple gives each dyno a cgroup where it may: Delegate=yes in the unit, or start \
                 hsup with `systemd-run --user --scope -p Delegate=yes`",
        ),
    };
    vec![layout, controllers, own]
}

fn user(user: &User) -> Finding {
    let name = if user.name.is_empty() {
        "without a name"
    } else {
        &user.name
    };
    let groups = if user.groups.is_empty() {
        "in no other group".to_owned()
    } else {
        format!("groups: {}", user.groups.join(" "))
    };
    Finding::ok("user", "we are", format!("{} ({name}), {groups}", user.uid))
}

fn sockets(facts: &Facts) -> Vec<Finding> {
    const AREA: &str = "sockets";
    let mut findings = vec![match &facts.runtime_dir {
        Ok(path) => Finding::ok(AREA, "directory", path.display().to_string()),
        Err(why) => Finding::ok(AREA, "directory", why.clone()).but(
            Verdict::Wrong,
            "set XDG_RUNTIME_DIR to a directory that is yours alone",
        ),
    }];
    for (path, answer) in &facts.control_sockets {
        let found = |what: &str| Finding::ok(AREA, "control", format!("{} {what}", path.display()));
        findings.push(match answer {
            Answer::Listens => found("has a listener"),
            Answer::LeftBehind => found("was left behind").but(
                Verdict::Note,
                "the next hsup of that app replaces it; else remove it",
            ),
            Answer::Forbidden(advice) => {
                found("may not be connected to").but(Verdict::Note, advice.clone())
            }
        });
    }
    findings
}

fn driver(driver: &Driver, packaged: bool, wanted: &Wanted) -> Finding {
    let verdict = if driver.kind == *wanted {
        Verdict::Wrong
    } else {
        Verdict::Note
    };
    let finding = |found: String| Finding::ok("drivers", &driver.name, found);
    match &driver.health {
        Health::Answers(introduction) => {
            let version = format!("{} {}", introduction.name, introduction.version);
            match &introduction.fitness {
                Ok(()) => finding(format!("{version}, ready")),
                Err(why) => finding(format!("{version}, not ready: {why}"))
                    .but(verdict, unready(driver, packaged)),
            }
        }
        Health::NotInstalled => finding("not installed".to_owned()).but(
            verdict,
            if packaged {
                "hsup's package brings its own drivers to /usr/bin: install it again; install \
                 another one beside them, or on PATH"
            } else {
                "install it beside hsup or on PATH; `cargo build --workspace` makes all drivers"
            },
        ),
        Health::Unknown(why) => finding(why.clone()).but(
            verdict,
            "-d, or `driver` in a file (`hsup config show` says which), takes simple, docker, \
             libcontainer, or the path of a driver program",
        ),
        Health::Silent(why) => finding(why.clone()).but(verdict, unanswered(driver, packaged)),
    }
}

fn unready(driver: &Driver, packaged: bool) -> &'static str {
    match driver.kind {
        // It says so when it is there, and cannot reach its engine.
        Wanted::Docker => unanswered(driver, packaged),
        _ => "it tries again by itself; dynos start once it is ready",
    }
}

fn unanswered(driver: &Driver, packaged: bool) -> &'static str {
    match (&driver.kind, driver.way) {
        (Wanted::Docker, _) => {
            "is there an engine, and may you use it? DOCKER_HOST says where it is"
        }
        (Wanted::Libcontainer, Way::PackagedSocket) => {
            "it answers root and the user hsup (docs/systemd.md has how another one is let in), \
             once root has said `systemctl enable --now hsup-driver-libcontainer.socket`; \
             `journalctl -u hsup-driver-libcontainer` has what it says"
        }
        (Wanted::Libcontainer, Way::Child) if packaged => {
            "have root say `systemctl enable --now hsup-driver-libcontainer.socket`, and use \
             --driver-socket /run/hsup-driver-libcontainer.sock"
        }
        (Wanted::Libcontainer, Way::Child) => {
            "start hsup as root, or have root start `hsup-driver-libcontainer --socket PATH \
             --allow-uid N` and use --driver-socket PATH"
        }
        (_, Way::Socket | Way::PackagedSocket) => {
            "is it running, and may you connect to it? Start it by hand to see what it says"
        }
        (_, Way::Child) => "start it by hand to see what it says",
    }
}

fn stacks(stacks: &Stacks, drivers: &[Driver], wanted: &Wanted) -> Finding {
    let is_elsewhere =
        |driver: &Driver| driver.kind == Wanted::Libcontainer && !matches!(driver.way, Way::Child);
    let (verdict, advice) = if drivers.iter().any(is_elsewhere) {
        (
            Verdict::Note,
            "libcontainer needs one: `hsup-driver-libcontainer stack import heroku/heroku:24`. Where \
             the driver at the socket has its own, it alone knows (`stack --work-dir DIR list`)",
        )
    } else {
        (
            weigh(wanted, &[Wanted::Libcontainer]),
            "libcontainer needs one: `hsup-driver-libcontainer stack import heroku/heroku:24`",
        )
    };
    let folder = stacks.folder.display();
    let finding = |found: String| Finding::ok("stacks", "libcontainer", found);
    match &stacks.names {
        Ok(names) if !names.is_empty() => finding(format!("{} in {folder}", names.join(" "))),
        _ if stacks.manifest => finding("fetched when a release names one".to_owned()),
        Ok(_) | Err(Unread::Missing) => finding(format!("none in {folder}")).but(verdict, advice),
        Err(Unread::Forbidden) => finding(format!("{folder} is for root to read"))
            .but(Verdict::Note, "`hsup doctor` as root says which there are"),
        Err(Unread::Failed(why)) => finding(why.clone()).but(verdict, format!("see to {folder}")),
    }
}

fn limits(limits: &Limits) -> Vec<Finding> {
    const AREA: &str = "limits";
    let files = limits.open_files;
    let room = files.saturating_sub(OWN_FILES) / FILES_A_DYNO;
    let finding = Finding::ok(
        AREA,
        "open files",
        format!("{files}, room for about {room} dynos"),
    );
    let verdict = match room {
        0 => Some(Verdict::Wrong),
        _ if files < FEW_FILES => Some(Verdict::Note),
        _ => None,
    };
    let advice = "raise it with `ulimit -Hn`, or LimitNOFILE= in the unit";
    let mut findings = vec![match verdict {
        Some(verdict) => finding.but(verdict, advice),
        None => finding,
    }];
    findings.push(match limits.processes {
        None => Finding::ok(AREA, "processes", "any number"),
        Some(count) => {
            let finding = Finding::ok(AREA, "processes", format!("{count} of this user"));
            if count < FEW_PROCESSES {
                finding.but(
                    Verdict::Note,
                    "raise it with `ulimit -u`, or LimitNPROC= in the unit",
                )
            } else {
                finding
            }
        }
    });
    findings.push(match &limits.inotify {
        Ok(()) => Finding::ok(AREA, "inotify", "directories can be watched"),
        Err(why) => Finding::ok(AREA, "inotify", why.clone()).but(
            Verdict::Wrong,
            "close what watches, or raise fs.inotify.max_user_instances with sysctl",
        ),
    });
    findings
}

fn port(port: u16, state: ports::State, wanted: &Wanted) -> Finding {
    let finding = |found: &str| Finding::ok("ports", port.to_string(), found);
    match state {
        ports::State::Free => finding("free"),
        ports::State::Taken => finding("in use").but(
            Verdict::Note,
            "dynos get the next one that is free; PORT says where they begin",
        ),
        ports::State::Forbidden => finding("for root to listen at").but(
            weigh(wanted, &[Wanted::Simple]),
            "give PORT a higher one, and have a proxy listen there; net.ipv4.ip_unprivileged_port_start says from \
             where on they are for everybody",
        ),
    }
}

#[cfg(test)]
mod tests;
