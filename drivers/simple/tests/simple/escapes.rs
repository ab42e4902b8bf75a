//! Processes that a dyno leaves behind and that are hard to tell for whose they are.
//!
//! With `--no-cgroups`: where there are cgroups, nobody gets that far.

use std::{
    fs::{self, Permissions},
    os::unix::{self, fs::PermissionsExt as _},
    path::Path,
};

use hsup_driver_kit::client::Client;
use hsup_proto::driver::ListRequest;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::fixture::{Driver, gone, how, run, signalled, until, wait};

/// Has a dyno bring forth `orphan`, a command that goes on whatever happens, and end; the one
/// who is left.
async fn leave(driver: &Driver, client: &Client, id: &str, orphan: &str) -> Pid {
    let line = format!("echo $$; {orphan} & echo $!; wait");
    let (mut request, mut output) = driver.dyno(id, &line);
    "bash".clone_into(&mut request.argv[0]);
    for fifo in ["stdout", "stderr"] {
        // The driver may be another user.
        let fifo = Path::new(&request.io_dir).join(fifo);
        fs::set_permissions(fifo, Permissions::from_mode(0o666)).unwrap();
    }
    client.clone().start(request).await.unwrap();
    let (first, orphan) = (output.pid().await, output.pid().await);
    until("the program", || {
        let status = fs::read_to_string(format!("/proc/{orphan}/status")).unwrap();
        status.starts_with("Name:\tsleep\n").then_some(())
    })
    .await;
    kill(first, Signal::SIGKILL).unwrap();
    assert_eq!(how(&wait(client, id).await), signalled("SIGKILL"));
    orphan
}

/// Whether this process may raise its hard limits (`CAP_SYS_RESOURCE`).
fn may_raise_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = u64::from_str_radix(capabilities.unwrap().trim(), 16).unwrap();
    capabilities & 1 << 24 != 0
}

#[tokio::test]
async fn who_is_of_no_dyno_is_told_once_and_goes_with_the_driver() {
    let mut driver = Driver::with_args(&["--no-cgroups"]);
    let client = driver.connect().await.client();
    let unmarked = "(ulimit -x 5; exec setsid sleep 1000)";
    let stranger = leave(&driver, &client, "leaves", unmarked).await;
    assert!(!gone(stranger));
    // It holds up nobody else's end, and is nobody else's.
    for id in ["one", "two"] {
        let orphan = leave(&driver, &client, id, "setsid sleep 1000").await;
        assert!(gone(orphan), "it got away");
    }
    assert!(!gone(stranger));
    driver.signal(Signal::SIGTERM);
    assert!(driver.ended().await.success());
    assert!(gone(stranger), "it outlived the driver");
    let log = driver.log();
    let told = log.matches("warning: a process that is of no dyno");
    assert_eq!(told.count(), 1, "{log}");
    assert!(log.contains(&format!("pid={stranger}\n")), "{log}");
}

#[tokio::test]
async fn a_low_limit_on_locks_is_lifted_or_told() {
    let driver = Driver::after("ulimit -x 100", &["--no-cgroups"]);
    let client = driver.connect().await.client();
    let orphan = leave(&driver, &client, "leaves", "setsid sleep 1000").await;
    let log = driver.log();
    let told = log.contains("warning: dynos get no marks");
    assert_eq!(told, !may_raise_limits(), "{log}");
    assert_eq!(gone(orphan), !told);
}

#[tokio::test]
#[ignore = "makes a program of another group: needs root"]
async fn an_orphan_of_another_group_is_known_by_its_mark() {
    let driver = Driver::of_nobody(&["--no-cgroups"]);
    let client = driver.connect_to_stranger().await.client();
    let sleep = driver.dir.path().join("sleep");
    // Nothing of this process: what another test spawns would have it open for writing too, until
    // its `exec`, and the dyno could not execute it.
    let copied = run("cp").arg("/bin/sleep").arg(&sleep).status();
    assert!(copied.unwrap().success());
    unix::fs::chown(&sleep, Some(0), Some(1)).unwrap();
    fs::set_permissions(&sleep, Permissions::from_mode(0o2755)).unwrap();
    let orphan = format!("exec setsid {} 1000", sleep.display());
    let orphan = leave(&driver, &client, "leaves", &orphan).await;
    assert!(gone(orphan), "it got away");
}

#[tokio::test]
async fn what_a_killed_driver_left_goes_when_the_next_one_serves() {
    let bystander = Driver::with_args(&["--no-cgroups"]);
    let other = bystander.connect().await.client();
    let (request, mut output) = bystander.dyno("other", "echo $$; exec sleep 1000");
    other.clone().start(request).await.unwrap();
    let unharmed = output.pid().await;
    for args in [&["--no-cgroups"][..], &[]] {
        let mut driver = Driver::with_args(args);
        let client = driver.connect().await.client();
        // Said by the orphan, when it is in a session of its own.
        let line = "setsid sh -c 'echo $$ '$$'; exec sleep 1000' & exec sleep 1000";
        let (request, mut output) = driver.dyno("leaves", line);
        client.clone().start(request).await.unwrap();
        let pids = output.line().await;
        let pid = |pid: &str| Pid::from_raw(pid.parse().unwrap());
        let (orphan, first) = pids.split_once(' ').unwrap();
        let (orphan, first) = (pid(orphan), pid(first));
        driver.signal(Signal::SIGKILL);
        driver.ended().await;
        until("the end of the first process", || gone(first).then_some(())).await;
        // Who is in a cgroup may have been killed by the driver of another test.
        let in_no_cgroup = !args.is_empty();
        assert!(!in_no_cgroup || !gone(orphan), "nobody could kill it");
        driver.restart();
        let client = driver.connect().await.client();
        client.clone().list(ListRequest::default()).await.unwrap();
        assert!(gone(orphan), "{args:?}");
    }
    assert!(!gone(unharmed));
}
