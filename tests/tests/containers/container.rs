//! What a dyno finds itself in.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
};

use hsup_tests::deadline;

use crate::{caller::Caller, host::Host, running::Running};

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_is_what_the_original_made() {
    let host = Host::new();
    let driver = host.driver();
    let uid = host.says("id -u; id -g; id -G");
    let expected = host.first_uid().to_string();
    assert_eq!(uid.split_whitespace().collect::<Vec<_>>(), [&*expected; 3]);
    let env = host.says("env | sort");
    for line in [
        "DYNO=run.1",
        "PORT=5000",
        "HOME=/app",
        "PWD=/app",
        "PATH=/usr/local/bin:/usr/bin:/bin",
    ] {
        assert!(
            env.lines().any(|found| found == line),
            "{line} is not in\n{env}"
        );
    }
    assert_eq!(host.says("pwd"), "/app\n");
    assert_eq!(host.says("cat Procfile"), "worker: exec sleep 1000\n");
    assert_eq!(host.says("whoami"), "dyno\n");
    let identity = host.says("cat /etc/heroku/dyno");
    assert!(identity.contains(r#""name":"run.1"}"#), "{identity}");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_configured_subnet_is_the_dynos() {
    let host = Host::new();
    let driver = host.driver_with(|command| {
        command.env("LIBCONTAINER_DYNO_SUBNET", "192.168.200.0/30");
    });
    let shown = host.says("ip -o -4 addr show eth0; ip route; cat /etc/hosts");
    assert!(shown.contains("192.168.200.2/30"), "{shown}");
    assert!(
        shown.contains("default via 192.168.200.1 dev eth0"),
        "{shown}"
    );
    assert!(shown.contains("127.0.0.1"), "{shown}");
    // The one address there is was the last dyno's a moment ago.
    for _ in 0..3 {
        host.says("true");
    }
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn exit_codes_and_signals_are_told_as_they_are() {
    let host = Host::new();
    let driver = host.driver();
    let code = |line: &str| host.run(line).status.code();
    assert_eq!(code("exit 7"), Some(7));
    assert_eq!(code("kill -9 $$"), Some(137));
    assert_eq!(code("kill -TERM $$"), Some(143));
    assert_eq!(code("no-such-command"), Some(127));
    assert_eq!(code("/etc/passwd"), Some(126));
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn profile_scripts_are_sourced_in_their_order_and_arguments_arrive_intact() {
    let host = Host::new();
    host.write("work/stacks/test-1/etc/profile.d/stack.sh", "TRAIL=stack\n");
    host.write("app/.profile.d/b.sh", "TRAIL=\"$TRAIL b\"\n");
    host.write("app/.profile.d/a.sh", "TRAIL=\"$TRAIL a\"\n");
    host.write("app/.profile.d/c.txt", "TRAIL=\"$TRAIL c\"\n");
    host.write("app/.profile", "export TRAIL=\"$TRAIL profile\"\n");
    let driver = host.driver();
    assert_eq!(host.says("echo $TRAIL"), "stack a b profile\n");
    let words = host.run_with("b  c", |command| {
        command.args(["--", "printf", "%s|", "a \"'$HOME", ""]);
    });
    assert_eq!(String::from_utf8_lossy(&words.stdout), "a \"'$HOME||b  c|");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_storm_of_thirty_starts_is_thirty_dynos() {
    let host = Host::new();
    let driver = host.driver();
    let hsup = Running::start(&host, |command| {
        command.arg("worker=30");
    });
    let names: Vec<_> = (1..=30).map(|number| format!("worker.{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    hsup.wait_up(&names);
    // Each has a user and an address of its own.
    assert_eq!(host.names("uids").len(), 30);
    assert_eq!(host.names("subnets").len(), 30);
    hsup.interrupt();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_is_the_same_whatever_the_umask_of_who_started_the_driver() {
    let host = Host::new();
    for mask in [0o077, 0o002] {
        let driver = host.driver_with(|command| with_umask(command, mask));
        let modes = host.says("stat -c '%a %n' / /etc /etc/hosts /app; cat /etc/hostname Procfile");
        for expected in ["755 /\n", "755 /etc\n", "644 /etc/hosts\n", "exec sleep"] {
            assert!(
                modes.contains(expected),
                "{mask:o}: no {expected:?} in\n{modes}"
            );
        }
        driver.end();
    }
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn names_and_the_link_are_as_they_should_be() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let line = "hostname; cat /etc/hostname; cat /sys/class/net/eth0/mtu; cat /etc/resolv.conf";
    let (said, _) = caller.output("web-1-x", line, |_| ());
    let mut lines = said.lines();
    assert_eq!(
        lines.by_ref().take(3).collect::<Vec<_>>(),
        ["web-1-x", "web-1-x", "1500"]
    );
    let servers = |text: &str| -> Vec<String> {
        let servers = text.lines().filter(|line| line.starts_with("nameserver"));
        servers.map(str::to_owned).collect()
    };
    let own = fs::read_to_string("/etc/resolv.conf").unwrap();
    // Those on the loopback cannot be the dyno's.
    let reachable = servers(&own)
        .into_iter()
        .filter(|line| !line.contains(" 127.") && !line.contains("::1"));
    let found = servers(&said);
    for server in reachable {
        assert!(found.contains(&server), "no {server} in\n{said}");
    }
    assert!(!said.contains("nameserver 127."), "{said}");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_driver_is_a_child_of_hsup_that_root_starts_and_the_variables_reach_it() {
    let host = Host::new();
    // Its own: the operator's is not taken by root, who would leave /run/hsup behind.
    let runtime = host.path("runtime");
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = host.hsup("hsup");
    command.uid(0).gid(0).env("XDG_RUNTIME_DIR", &runtime);
    command.args([
        "run",
        "-d",
        "libcontainer",
        "id -u; ip -o -4 addr show eth0",
    ]);
    let output = deadline::output(&mut command);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert_eq!(said.lines().next(), Some(&*host.first_uid().to_string()));
    let address = host.subnet().replace("0/24", "2/30");
    assert!(said.contains(&address), "{said}");
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_operator_is_told_what_makes_every_start_wait() {
    let host = Host::new();
    let driver = host.driver();
    let set = |file: &str, what: &str| fs::read_to_string(file).unwrap_or_default().contains(what);
    let is_spared =
        set("/sys/kernel/rcu_expedited", "1") || set("/proc/self/mountinfo", "favordynmods");
    let log = driver.log();
    assert_eq!(log.contains("RCU grace period"), !is_spared, "{log}");
    driver.end();
    host.is_clean();
}

#[expect(
    unsafe_code,
    reason = "the umask is the process's own, and tests share theirs"
)]
fn with_umask(command: &mut std::process::Command, mask: u32) {
    let mask = nix::sys::stat::Mode::from_bits_truncate(mask);
    // SAFETY: umask(2) is all that is called after the fork.
    unsafe {
        command.pre_exec(move || {
            nix::sys::stat::umask(mask);
            Ok(())
        });
    }
}
