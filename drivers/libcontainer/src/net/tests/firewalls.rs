//! Hosts with other firewalls, made as Docker and others make them.

use std::process::{Command, Output};

use super::{
    super::nft::{Batch, Family},
    *,
};

const FORWARD: (Family, &str, &str) = (Family::Ip, "filter", "FORWARD");
const DOCKER_USER: (Family, &str, &str) = (Family::Ip, "filter", "DOCKER-USER");

fn change(changes: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    changes(&mut batch);
    batch.commit().unwrap();
}

fn add_docker() {
    change(|it| {
        it.add_gate(FORWARD);
        it.add_chain(Family::Ip, "filter", "DOCKER-USER");
        it.append(FORWARD, |rule| rule.jump("DOCKER-USER"));
    });
}

fn remove(family: Family, table: &str) {
    change(|it| it.delete_table(family, table));
}

fn comments() -> Vec<Option<String>> {
    let rules = nft::rules(Family::Ip, "filter", "DOCKER-USER").unwrap();
    rules.into_iter().map(|rule| rule.comment).collect()
}

/// Whether a dyno's packets get to the world and back.
fn gets_out(scene: &Scene, dyno: &scene::Dyno) {
    let (_at_world, port) = on(&scene.world, listen);
    on(&dyno.net.netns, || connect(WORLD, port).map(drop)).unwrap();
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn dockers_firewall_is_opened_for_the_first_dyno_and_closed_after_the_last() {
    Scene::play("172.16.0.28/12", &[], |scene| {
        add_docker();
        change(|it| {
            it.insert(DOCKER_USER, "somebody else's", |rule| {
                rule.comes_from("x").accept();
            });
        });
        let ready = || scene.runtime.block_on(scene.network.ready()).unwrap();
        ready();
        assert_eq!(comments().len(), 1, "opened without a dyno");

        let dyno = scene.dyno();
        gets_out(scene, &dyno);
        ready();
        let ours = Some(scene.network.table().to_owned());
        let theirs = Some("somebody else's".to_owned());
        assert_eq!(comments(), [ours.clone(), ours, theirs.clone()]);

        scene.end(&dyno.lease, &dyno.owner);
        assert_eq!(comments(), [theirs]);
        remove(Family::Ip, "filter");
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_docker_that_comes_later_is_opened_by_the_next_look() {
    Scene::play("172.16.0.28/12", &[], |scene| {
        let dyno = scene.dyno();
        add_docker();
        scene.runtime.block_on(scene.network.ready()).unwrap();
        gets_out(scene, &dyno);
        remove(Family::Ip, "filter");
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn any_other_firewall_is_named_with_the_command_that_opens_it() {
    Scene::play("172.16.0.28/12", &[], |scene| {
        let dyno = scene.dyno();
        let prefix = scene.network.0.names.prefix();
        let ready = || scene.runtime.block_on(scene.network.ready());
        let gates = [
            (
                FORWARD,
                format!(
                    "the chain FORWARD of iptables drops the packets of dynos: run `iptables -I FORWARD -i {prefix}+ -j ACCEPT && iptables -I FORWARD -o {prefix}+ -j ACCEPT`"
                ),
            ),
            (
                (Family::Inet, "mine", "fwd"),
                format!(
                    "the chain fwd of the table inet mine drops the packets of dynos: run `nft insert rule inet mine fwd iifname '\"{prefix}*\"' accept && nft insert rule inet mine fwd oifname '\"{prefix}*\"' accept`"
                ),
            ),
        ];
        for (gate, says) in gates {
            change(|it| it.add_gate(gate));
            assert_eq!(ready().unwrap_err().to_string(), says);
            // What the commands do.
            change(|it| it.insert(gate, "", |rule| rule.comes_from(&prefix).accept()));
            ready().unwrap_err();
            change(|it| it.insert(gate, "", |rule| rule.goes_to(&prefix).count().accept()));
            ready().unwrap();
            gets_out(scene, &dyno);
            remove(gate.0, gate.1);
        }

        // No policy, but a last rule that is as good as one.
        let chain = (Family::Inet, "mine", "fwd");
        change(|it| {
            it.add_table(Family::Inet, "mine");
            it.add_base_chain(chain, "filter", nft::Hook::Forward, 0);
            it.append(chain, |rule| rule.count().refuse());
        });
        assert!(matches!(ready(), Err(NetError::Closed { .. })));
        remove(Family::Inet, "mine");
    });
}

/// What a program of this host prints; nothing, and a note, if there is no such program.
fn print(program: &str, arguments: &[&str]) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "a tool of the host, not a dyno")]
    let ran = Command::new(program).args(arguments).output();
    match ran {
        Ok(Output {
            status,
            stdout,
            stderr,
        }) => {
            assert!(
                status.success(),
                "{program}: {}",
                String::from_utf8_lossy(&stderr)
            );
            Some(String::from_utf8(stdout).unwrap())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            #[expect(
                clippy::print_stderr,
                reason = "a part of a test that is left out is named"
            )]
            {
                eprintln!("LEFT OUT, for want of the program `{program}`: how it shows our rules");
            }
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[test]
#[ignore = "needs root: makes network namespaces; wants the program nft"]
fn nft_shows_the_rules_as_they_are_meant() {
    let variables = [(ALLOW_VARIABLE, "10.9.9.0/24")];
    Scene::play("192.168.200.0/30", &variables, |scene| {
        scene.dyno();
        let table = scene.network.table();
        let Some(listing) = print("nft", &["list", "table", "inet", table]) else {
            return;
        };
        let prefix = scene.network.0.names.prefix();
        let group = GROUP;
        for rule in [
            format!("iifname != \"{prefix}*\" accept"),
            "meta nfproto != ipv4 drop".to_owned(),
            "fib saddr . iif oif missing drop".to_owned(),
            "ct state established,related accept".to_owned(),
            "fib daddr . iif type local accept".to_owned(),
            "ip daddr 10.9.9.0-10.9.9.255 fib daddr type local accept".to_owned(),
            "ip daddr 169.254.0.0-169.254.255.255 reject with icmpx".to_owned(),
            "fib daddr type != unicast reject with icmpx".to_owned(),
            format!("iifname \"{prefix}*\" oifgroup {group} reject with icmpx"),
            format!("oifname \"{prefix}*\" ct state established,related accept"),
            format!("oifname \"{prefix}*\" ct status dnat accept"),
            format!("oifname \"{prefix}*\" reject with icmpx"),
            format!("ip saddr 192.168.200.0-192.168.200.3 oifgroup != {group} masquerade"),
        ] {
            assert!(listing.contains(&rule), "no `{rule}` in {listing}");
        }
    });
}

#[test]
#[ignore = "needs root: makes network namespaces; wants the program iptables-nft"]
fn iptables_still_shows_what_we_added_to_dockers() {
    Scene::play("172.16.0.28/12", &[], |scene| {
        let iptables = |line: &str| print("iptables-nft", &line.split(' ').collect::<Vec<_>>());
        for line in [
            "-P FORWARD DROP",
            "-N DOCKER-USER",
            "-A FORWARD -j DOCKER-USER",
            "-A DOCKER-USER -j RETURN",
        ] {
            if iptables(line).is_none() {
                return;
            }
        }
        let dyno = scene.dyno();
        gets_out(scene, &dyno);
        let (prefix, table) = (scene.network.0.names.prefix(), scene.network.table());
        let rule =
            |way| format!("-A DOCKER-USER {way} {prefix}+ -m comment --comment {table} -j ACCEPT");
        let listing = iptables("-S DOCKER-USER").unwrap();
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(
            lines,
            [
                "-N DOCKER-USER",
                &rule("-i"),
                &rule("-o"),
                "-A DOCKER-USER -j RETURN"
            ]
        );
        scene.end(&dyno.lease, &dyno.owner);
        assert_eq!(
            iptables("-S DOCKER-USER").unwrap(),
            "-N DOCKER-USER\n-A DOCKER-USER -j RETURN\n"
        );
        remove(Family::Ip, "filter");
    });
}

#[test]
#[ignore = "needs root: makes network namespaces; wants the program iptables-legacy"]
fn legacy_rules_of_docker_are_opened_and_closed_too() {
    Scene::play("172.16.0.28/12", &[], |scene| {
        let iptables = |line: &str| print("iptables-legacy", &line.split(' ').collect::<Vec<_>>());
        if iptables("-P FORWARD DROP").is_none() {
            return;
        }
        let error = scene
            .runtime
            .block_on(scene.network.ready())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("run `iptables-legacy -I FORWARD -i hs"),
            "{error}"
        );
        for line in ["-N DOCKER-USER", "-A FORWARD -j DOCKER-USER"] {
            iptables(line).unwrap();
        }
        let dyno = scene.dyno();
        gets_out(scene, &dyno);
        scene.runtime.block_on(scene.network.ready()).unwrap();
        assert_eq!(iptables("-S DOCKER-USER").unwrap().lines().count(), 3);
        scene.end(&dyno.lease, &dyno.owner);
        assert_eq!(iptables("-S DOCKER-USER").unwrap(), "-N DOCKER-USER\n");
        assert_eq!(traces().0, [""; 0]);
    });
}
