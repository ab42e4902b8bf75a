//! Users and addresses: who gets which, and what is said when there are no more.

use std::{os::unix::process::CommandExt as _, process::Command};

use hsup_tests::deadline::poll;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::{
    caller::{Caller, is_exhausted},
    host::{Host, OPERATOR},
    machine::{Link, left_out, tool},
};

const SUBNET: &str = "LIBCONTAINER_DYNO_SUBNET";
const UID_MIN: &str = "LIBCONTAINER_DYNO_UID_MIN";
const UID_MAX: &str = "LIBCONTAINER_DYNO_UID_MAX";
const EXTRA_INTERFACE: &str = "LIBCONTAINER_DYNO_EXTRA_INTERFACE";
const EXTRA_ROUTES: &str = "LIBCONTAINER_DYNO_EXTRA_ROUTES";

#[test]
#[ignore = "needs root: it makes containers"]
fn a_block_of_one_subnet_serves_one_dyno_at_a_time() {
    let host = Host::new();
    let block = host.subnet().replace("/24", "/30");
    let driver = host.driver_with(|command| {
        command.env(SUBNET, &block);
    });
    let caller = Caller::new(&host.socket());
    let one = caller.start("a", "read _ <&2");
    let refused = caller.try_start("b", "true", |_| ()).err().unwrap();
    is_exhausted(&refused, &["no subnet left", &block, SUBNET, "stop a dyno"]);
    // To hsup's user it is said too.
    let output = host.run("true");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("no subnet left"), "{said}");
    one.end();
    assert_eq!(caller.output("c", "echo well", |_| ()).0, "well\n");
    assert_eq!(host.says("echo well"), "well\n");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn as_many_dynos_run_as_there_are_users() {
    let host = Host::new();
    let last = host.first_uid() + 1;
    let driver = host.driver_with(|command| {
        command.env(UID_MAX, last.to_string());
    });
    let caller = Caller::new(&host.socket());
    let one = caller.start("a", "read _ <&2");
    let two = caller.start("b", "read _ <&2");
    let refused = caller.try_start("c", "true", |_| ()).err().unwrap();
    is_exhausted(
        &refused,
        &["no uid left", "all 2", &last.to_string(), UID_MAX],
    );
    one.end();
    let (said, _) = caller.output("d", "id -u", |_| ());
    assert_eq!(said, format!("{}\n", host.first_uid()));
    two.end();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_cannot_be_is_refused_at_start() {
    let host = Host::new();
    for (variable, value, words) in [
        (SUBNET, "10.213.0.0", &["10.213.0.0", "prefix length"][..]),
        (SUBNET, "10.213.0.0/31", &["10.213.0.0/31", "no /30 fits"]),
        (SUBNET, "10.213.0.300/24", &["10.213.0.300/24"]),
        (SUBNET, "10.213.0.254/24", &["no /30 fits"]),
        (SUBNET, "127.0.0.0/8", &["127.0.0.0/8"]),
        (UID_MIN, "many", &["many"]),
        (UID_MIN, "0", &["the system's own"]),
        (UID_MIN, "900000000", &["is above", UID_MAX]),
        (UID_MAX, "4294967294", &[UID_MAX, "a uid"]),
        ("LIBCONTAINER_DYNO_ALLOW", "everything", &["everything"]),
        (EXTRA_INTERFACE, "none0:10.1.2.3/24", &["none0"]),
        (EXTRA_INTERFACE, "eth0", &["`eth0`", "IF:IP/LENGTH"]),
        (
            EXTRA_ROUTES,
            "10.0.0.0/8",
            &["10.0.0.0/8", "BLOCK:GATEWAY:IF"],
        ),
        (EXTRA_ROUTES, "10.0.0.0/8:default:eth1", &["eth1"]),
        (
            EXTRA_ROUTES,
            "10.0.0.0/8:10.9.9.9:eth0",
            &["no gateway but its own"],
        ),
        (
            "LIBCONTAINER_STACKS_MANIFEST",
            "ftp://x/list.yml",
            &["ftp://x/list.yml", "https://"],
        ),
        ("LIBCONTAINER_DYNO_TMP_SIZE", "large", &["large", "512m"]),
        ("LIBCONTAINER_CGROUP_PARENT", "../up", &["../up"]),
        ("LIBCONTAINER_ALLOW_BIND", "srv", &["srv", "absolute"]),
    ] {
        let said = host.driver_fails(|command| {
            command.env(variable, value);
        });
        let said_as = variable.replace("LIBCONTAINER_STACKS_MANIFEST", "stacks-manifest");
        let named = said_as.replace("LIBCONTAINER_", "");
        let named = said.contains(&named) || variable == "LIBCONTAINER_ALLOW_BIND";
        assert!(named, "{variable} is not in:\n{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in:\n{said}");
        }
    }
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn whom_the_driver_serves_is_nobody_that_a_dyno_may_be() {
    let host = Host::new();
    // The last of the dynos' is one below who unpacks slugs.
    for uid in [host.first_uid(), host.first_uid() + 63] {
        let said = host.driver_fails(|command| {
            command.arg("--socket").arg(host.socket());
            command.args(["--allow-uid", &uid.to_string()]);
        });
        for word in [&format!("uid {uid} may call"), UID_MIN, UID_MAX] {
            assert!(said.contains(word), "no `{word}` in {said}");
        }
    }
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_driver_that_is_not_root_says_so() {
    let host = Host::new();
    let said = host.driver_fails(|command| {
        command.uid(OPERATOR).gid(OPERATOR);
    });
    assert!(said.contains("has to be root"), "{said}");
    assert!(said.contains(&OPERATOR.to_string()), "{said}");
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_driver_without_cgroups_says_so() {
    let host = Host::new();
    let said = host.driver_fails(without_cgroups);
    assert!(
        said.contains("no cgroup file system is mounted: mount -t"),
        "{said}"
    );
    host.is_clean();
}

/// Has it see none of the host's cgroup file systems.
#[expect(
    unsafe_code,
    reason = "the mounts are the process's own, and tests share theirs"
)]
fn without_cgroups(command: &mut Command) {
    let hide = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        // All that is below it goes with it.
        Ok(umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH)?)
    };
    // SAFETY: these calls, with what was there before the fork, are all that is made after it.
    unsafe { command.pre_exec(hide) };
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_the_host_uses_is_passed_over() {
    let host = Host::new();
    let first = host.subnet().replace("0/24", "1");
    let link = Link::with(&host, &format!("{first}/30"));
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let one = caller.start("a", "read _ <&2");
    assert_eq!(caller.ip("a"), host.subnet().replace("0/24", "6"));
    one.end();
    driver.end();
    drop(link);
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_block_that_the_host_uses_all_of_is_told_until_it_is_free() {
    let host = Host::new();
    let link = Link::with(&host, &host.subnet().replace("0/24", "9/24"));
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let info = caller.info();
    assert!(!info.ready);
    for word in [SUBNET, "leaves no subnet", &host.subnet()] {
        assert!(info.message.contains(word), "`{word}`: {}", info.message);
    }
    let refused = caller.try_start("a", "true", |_| ()).err().unwrap();
    is_exhausted(&refused, &["no subnet left", "63 by the host itself"]);
    drop(link);
    // The driver remembers a moment what the host has.
    let started = || caller.try_start("b", "true", |_| ()).ok();
    assert!(poll(started).is_some());
    caller.remove_all();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn routes_are_added_as_configured() {
    let host = Host::new();
    let driver = host.driver_with(|command| {
        command.env(EXTRA_ROUTES, "10.211.0.0/16:default:eth0");
    });
    let routes = host.says("ip route");
    let gateway = host.subnet().replace("0/24", "1");
    let expected = format!("10.211.0.0/16 via {gateway} dev eth0");
    assert!(routes.contains(&expected), "{routes}");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn an_interface_is_added_where_the_kernel_has_the_kind() {
    let host = Host::new();
    let link = Link::new(&host);
    let (parent, network) = (link.name(), link.address().trim_end_matches('1'));
    let interface = format!("{parent}:{network}9/24");
    let routes = format!("10.211.0.0/16:{network}1:eth1,10.210.0.0/16:default:eth0");
    let probe = format!("{parent}i");
    if tool(
        "ip",
        &format!("link add link {parent} name {probe} type ipvlan"),
    )
    .is_ok()
    {
        tool("ip", &format!("link delete {probe}")).unwrap();
        let driver = host.driver_with(|command| {
            command.env(EXTRA_INTERFACE, &interface);
            command.env(EXTRA_ROUTES, &routes);
        });
        let shown = host.says("ip -o -4 addr show eth1; ip route");
        for expected in [
            format!("{network}9/24"),
            format!("10.211.0.0/16 via {network}1 dev eth1"),
            "10.210.0.0/16 via 10.213.".to_owned(),
        ] {
            assert!(shown.contains(&expected), "{expected} is not in\n{shown}");
        }
        driver.end();
    } else {
        left_out("eth1 in a dyno: this kernel has no ipvlan");
        let said = host.driver_fails(|command| {
            command.env(EXTRA_INTERFACE, &interface);
        });
        assert!(said.contains(EXTRA_INTERFACE), "{said}");
        assert!(said.contains("modprobe ipvlan"), "{said}");
    }
    drop(link);
    host.is_clean();
}
