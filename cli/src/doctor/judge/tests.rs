use hsup_core::{ports, run::Introduction};
use test_case::test_case;

use super::*;

/// A machine on which nothing is wrong for anybody.
fn well() -> Facts {
    let set = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Facts {
        kernel: Kernel {
            release: "6.12.3-amd64".to_owned(),
            namespaces: NAMESPACES.into(),
            seccomp: set(&["errno", "allow"]),
            overlay: Presence::Here,
            nf_tables: Presence::Loadable,
            veth: Presence::Here,
            ipvlan: Presence::Here,
        },
        cgroups: Cgroups {
            layout: Layout::Unified,
            controllers: set(&["cpu", "memory", "pids"]),
            own: Some("/sys/fs/cgroup/hsup".into()),
            writable: true,
        },
        user: User {
            uid: 1000,
            name: "shop".to_owned(),
            groups: vec!["shop".to_owned(), "docker".to_owned()],
        },
        runtime_dir: Ok("/run/user/1000/hsup".into()),
        control_sockets: vec![("/run/user/1000/hsup/shop.sock".into(), Answer::Listens)],
        drivers: ["simple", "docker", "libcontainer"]
            .map(|name| Driver {
                name: name.to_owned(),
                kind: Wanted::named(name),
                way: Way::Child,
                health: answers(Ok(())),
            })
            .into(),
        packaged: false,
        stacks: Stacks {
            folder: "/var/lib/hsup/stacks".into(),
            names: Ok(vec!["debian-12".to_owned()]),
            manifest: false,
        },
        limits: Limits {
            open_files: 524_288,
            processes: None,
            inotify: Ok(()),
        },
        ports: vec![(5000, ports::State::Free), (5100, ports::State::Free)],
    }
}

fn answers(fitness: Result<(), String>) -> Health {
    Health::Answers(Introduction {
        name: "it".to_owned(),
        version: "1".to_owned(),
        fitness,
    })
}

const ALL: [Wanted; 3] = [Wanted::Simple, Wanted::Docker, Wanted::Libcontainer];

/// What is not ok, as `verdict what`.
fn complaints(facts: &Facts, wanted: &Wanted) -> Vec<String> {
    let findings = judge(facts, wanted);
    let bad = findings
        .iter()
        .filter(|finding| finding.verdict != Verdict::Ok);
    bad.map(|finding| {
        assert!(finding.advice.is_some(), "what is to be done? {finding:?}");
        format!("{} {}", finding.verdict, finding.what)
    })
    .collect()
}

/// What is said of a machine with one fault: `verdict what` for each of the drivers.
fn is_said(what: &str, harm: fn(&mut Facts), verdict: impl Fn(&Wanted) -> &'static str) {
    let mut facts = well();
    harm(&mut facts);
    for wanted in ALL {
        assert_eq!(
            complaints(&facts, &wanted),
            [format!("{} {what}", verdict(&wanted))],
            "{wanted:?}"
        );
    }
}

/// How bad it is for whoever wants another driver, and for whoever wants this one.
fn wrong_for(driver: &str) -> impl Fn(&Wanted) -> &'static str {
    move |wanted| {
        if wanted.name() == driver {
            "wrong"
        } else {
            "note"
        }
    }
}

#[test]
fn where_all_is_well_nothing_is_said() {
    for wanted in ALL {
        assert_eq!(complaints(&well(), &wanted), [""; 0], "{wanted:?}");
    }
}

/// What is wrong for libcontainer alone.
#[test_case("namespaces", |facts| { facts.kernel.namespaces.remove("net"); })]
#[test_case("seccomp", |facts| facts.kernel.seccomp.clear())]
#[test_case("overlayfs", |facts| facts.kernel.overlay = Presence::Absent)]
#[test_case("nf_tables", |facts| facts.kernel.nf_tables = Presence::Absent)]
#[test_case("veth", |facts| facts.kernel.veth = Presence::Absent)]
#[test_case("Linux", |facts| facts.kernel.release = "5.10.0".to_owned())]
#[test_case("version", |facts| facts.cgroups.layout = Layout::None)]
#[test_case("controllers", |facts| { facts.cgroups.controllers.remove("memory"); })]
#[test_case("libcontainer", |facts| facts.stacks.names = Ok(Vec::new()); "no stack")]
#[test_case("libcontainer", |facts| facts.stacks.names = Err(Unread::Missing); "no folder of stacks")]
#[test_case("libcontainer", |facts| facts.drivers[2].health = answers(Err("no route".to_owned())); "not ready")]
fn what_only_containers_need_is_a_note_for_others(what: &str, harm: fn(&mut Facts)) {
    is_said(what, harm, wrong_for("libcontainer"));
}

/// What is wrong for everybody.
#[test_case("Linux", |facts| facts.kernel.release = "4.19.0".to_owned())]
#[test_case("directory", |facts| facts.runtime_dir = Err("no room".to_owned()))]
#[test_case("open files", |facts| facts.limits.open_files = 64)]
#[test_case("inotify", |facts| facts.limits.inotify = Err("too many".to_owned()))]
fn what_all_need(what: &str, harm: fn(&mut Facts)) {
    is_said(what, harm, |_| "wrong");
}

/// What is worth knowing, and keeps no dyno from running.
#[test_case("ipvlan", |facts| facts.kernel.ipvlan = Presence::Absent)]
#[test_case("Linux", |facts| facts.kernel.release = "5.15.0".to_owned())]
#[test_case("Linux", |facts| facts.kernel.release = "unknown".to_owned(); "an unknown version")]
#[test_case("our own", |facts| facts.cgroups.writable = false)]
#[test_case("our own", |facts| facts.cgroups.own = None; "no cgroup of version 2")]
#[test_case("control", |facts| facts.control_sockets[0].1 = Answer::LeftBehind)]
#[test_case("control", |facts| facts.control_sockets[0].1 = Answer::Forbidden("it is ann's".to_owned()); "a stranger's socket")]
#[test_case("libcontainer", |facts| facts.stacks.names = Err(Unread::Forbidden))]
#[test_case("open files", |facts| facts.limits.open_files = 256)]
#[test_case("processes", |facts| facts.limits.processes = Some(100))]
#[test_case("5000", |facts| facts.ports[0].1 = ports::State::Taken)]
fn what_is_a_note(what: &str, harm: fn(&mut Facts)) {
    is_said(what, harm, |_| "note");
}

/// What says nothing of a fault.
#[test_case(|facts| facts.kernel.veth = Presence::Unknown)]
#[test_case(|facts| facts.cgroups.layout = Layout::Hybrid)]
#[test_case(|facts| facts.limits.processes = Some(30_000))]
#[test_case(|facts| { facts.stacks.names = Ok(Vec::new()); facts.stacks.manifest = true; })]
fn what_will_do(change: fn(&mut Facts)) {
    let mut facts = well();
    change(&mut facts);
    assert_eq!(complaints(&facts, &Wanted::Libcontainer), [""; 0]);
}

#[test_case(0, "simple")]
#[test_case(1, "docker")]
fn a_driver_that_does_not_answer_is_wrong_where_it_is_wanted(place: usize, name: &str) {
    for health in [
        Health::NotInstalled,
        Health::Unknown("it is not a file".to_owned()),
        Health::Silent("it ended".to_owned()),
        answers(Err("no engine".to_owned())),
    ] {
        let mut facts = well();
        facts.drivers[place].health = health;
        for wanted in ALL {
            let verdict = wrong_for(name)(&wanted);
            assert_eq!(complaints(&facts, &wanted), [format!("{verdict} {name}")]);
        }
    }
}

/// The advice about a libcontainer driver that does not answer.
fn advice(way: Way, packaged: bool, health: Health) -> String {
    let mut facts = well();
    facts.packaged = packaged;
    facts.drivers[2].way = way;
    facts.drivers[2].health = health;
    let found = judge(&facts, &Wanted::Libcontainer);
    let mut wrong = found.into_iter().filter(|f| f.verdict == Verdict::Wrong);
    wrong.next().unwrap().advice.unwrap()
}

#[test]
fn where_the_package_is_nobody_is_sent_to_the_source() {
    const ENABLE: &str = "systemctl enable --now hsup-driver-libcontainer.socket";
    let silent = || Health::Silent("not root".to_owned());
    assert!(advice(Way::Child, false, silent()).contains("start hsup as root"));
    assert!(advice(Way::Child, true, silent()).contains(ENABLE));
    assert!(advice(Way::PackagedSocket, true, silent()).contains("journalctl"));
    assert!(advice(Way::Child, false, Health::NotInstalled).contains("cargo"));
    assert!(!advice(Way::Child, true, Health::NotInstalled).contains("cargo"));
    // As its unit has it.
    let unit = include_str!("../../../../packaging/hsup-driver-libcontainer.service");
    assert!(unit.contains("driver-libcontainer --allow-uid hsup\n"));
    let packaged = advice(Way::PackagedSocket, true, silent());
    assert!(packaged.contains("root and the user hsup "), "{packaged}");
}

#[test]
fn nobody_is_told_to_start_what_is_not_there() {
    let named = |health| {
        let mut facts = well();
        facts.drivers = vec![Driver {
            name: "./app".to_owned(),
            kind: Wanted::named("./app"),
            way: Way::Child,
            health,
        }];
        let found = judge(&facts, &Wanted::named("./app"));
        let driver = found.into_iter().find(|finding| finding.what == "./app");
        driver.and_then(|finding| finding.advice).unwrap()
    };
    let unknown = named(Health::Unknown("it is not a file".to_owned()));
    assert!(unknown.contains("path of a driver program"), "{unknown}");
    assert!(!unknown.contains("by hand"), "{unknown}");
    let silent = named(Health::Silent("it ended".to_owned()));
    assert!(silent.contains("by hand"), "{silent}");
}

#[test]
fn what_containers_need_is_wrong_for_a_driver_at_a_socket_too() {
    let mut facts = well();
    facts.drivers = vec![Driver {
        name: "/run/it.sock".to_owned(),
        kind: Wanted::Libcontainer,
        way: Way::Socket,
        health: answers(Err("no route".to_owned())),
    }];
    facts.kernel.veth = Presence::Absent;
    let expected = ["wrong veth", "wrong /run/it.sock"];
    assert_eq!(complaints(&facts, &Wanted::Libcontainer), expected);
}

#[test_case(Way::Child => "wrong")]
#[test_case(Way::Socket => "note")]
#[test_case(Way::PackagedSocket => "note")]
fn where_a_driver_at_a_socket_has_its_stacks_nobody_else_knows(way: Way) -> String {
    let mut facts = well();
    facts.drivers[2].way = way;
    facts.stacks.names = Err(Unread::Missing);
    let said = complaints(&facts, &Wanted::Libcontainer);
    let verdict = said[0].strip_suffix(" libcontainer").unwrap();
    verdict.to_owned()
}
