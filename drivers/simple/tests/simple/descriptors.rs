//! A driver that has no descriptor left keeps to the truth, and its dynos can be stopped.

use std::{fs, os::unix::net::UnixStream, path::PathBuf};

use hsup_driver_kit::client::Client;
use hsup_proto::driver::{
    RemoveRequest, SignalRequest, StatsRequest, StatsResponse, StopRequest, WaitRequest,
    remove_request::What,
};
use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::Pid,
};
use tonic::{Code, Status};

use crate::fixture::{Driver, Output, gone, how, run, signalled, stop, until, wait};

/// A dyno that answers to SIGUSR1 and has an orphan in another session, which is deaf.
const FAMILY: &str = "trap 'echo got it' USR1
    trap '' HUP; (trap '' TERM; setsid sleep 1000 & echo $!); echo $$
    while :; do sleep 0.05; done";

/// Starts [`FAMILY`]: its output, its orphan and its first process.
async fn start_family(driver: &Driver, client: &Client) -> (Output, Pid, Pid) {
    let (request, mut output) = driver.dyno("family", FAMILY);
    client.clone().start(request).await.unwrap();
    let (orphan, first) = (output.pid().await, output.pid().await);
    (output, orphan, first)
}

async fn signal(client: &Client, name: &str) {
    let request = SignalRequest {
        dyno_id: "family".into(),
        signal: name.into(),
    };
    client.clone().signal(request).await.unwrap();
}

async fn stats(client: &Client) -> StatsResponse {
    let dyno_id = "family".into();
    let answer = client.clone().stats(StatsRequest { dyno_id }).await;
    answer.unwrap().into_inner()
}

fn descriptors(driver: &Driver) -> usize {
    let folder = PathBuf::from(format!("/proc/{}/fd", driver.pid()));
    fs::read_dir(folder).unwrap().count()
}

#[tokio::test]
#[ignore = "needs root: nobody else counts the driver's descriptors"]
async fn one_that_is_held_in_reserve_is_enough_to_stop_a_dyno() {
    let driver = Driver::after("ulimit -n 64", &[]);
    let client = driver.connect().await.client();
    let (mut output, orphan, _) = start_family(&driver, &client).await;
    let hogs: Vec<_> = (0..64)
        .map(|_| UnixStream::connect(driver.socket()).unwrap())
        .collect();
    until("the last descriptor to go", || {
        driver.log().contains("failed to accept").then_some(())
    })
    .await;

    let (another, _output) = driver.dyno("another", "exit 0");
    let status: Status = client.clone().start(another.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(stats(&client).await.pids.unwrap() >= 2);
    signal(&client, "SIGUSR1").await;
    assert_eq!(output.line().await, "got it");
    client.clone().stop(stop("family", 100)).await.unwrap();
    assert!(gone(orphan), "it got away");

    drop(hogs);
    until("a descriptor to come back", || {
        (descriptors(&driver) < 32).then_some(())
    })
    .await;
    client.clone().start(another).await.unwrap();
}

/// Sets how many descriptors the driver may have from now on.
fn limit(driver: &Driver, files: u64) {
    let mut prlimit = run("prlimit");
    let pid = driver.pid().to_string();
    prlimit.args(["--pid", &pid, &format!("--nofile={files}:")]);
    assert!(prlimit.status().unwrap().success());
}

#[tokio::test]
async fn not_to_know_is_not_to_see_nobody() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let (mut output, orphan, first) = start_family(&driver, &client).await;
    // Not even the one in reserve can be used.
    limit(&driver, 3);
    let stats = stats(&client).await;
    assert_eq!((stats.pids, stats.memory_bytes), (None, None));
    signal(&client, "SIGUSR1").await;
    assert_eq!(output.line().await, "got it");

    let stopping = {
        let mut client = client.clone();
        let request = StopRequest {
            force: true,
            ..stop("family", 0)
        };
        tokio::spawn(async move { client.stop(request).await })
    };
    until("the end of the first process", || gone(first).then_some(())).await;
    let wanted = WaitRequest {
        dyno_id: "family".into(),
        timeout_ms: 300,
    };
    let answer = client.clone().wait(wanted).await.unwrap().into_inner();
    // In a cgroup all of them go at once, and even then nobody can see it.
    assert_eq!(answer.status, None);

    limit(&driver, 1000);
    stopping.await.unwrap().unwrap();
    assert!(gone(orphan), "it got away");
    assert_eq!(how(&wait(&client, "family").await), signalled("SIGKILL"));
}

/// How many FIFOs of a dyno the driver has open.
fn held(driver: &Driver, id: &str) -> usize {
    let io_dir = driver.dir.path().join(id);
    let folder = fs::read_dir(format!("/proc/{}/fd", driver.pid())).unwrap();
    let targets = folder.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(&io_dir)).count()
}

#[tokio::test]
#[ignore = "needs root: nobody else counts the driver's descriptors"]
async fn what_a_dyno_wrote_is_kept_until_it_is_read_or_the_dyno_is_removed() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let (unread, _output) = driver.dyno("unread", "echo last words");
    client.clone().start(unread).await.unwrap();
    wait(&client, "unread").await;
    assert_eq!(held(&driver, "unread"), 2);
    let removed = RemoveRequest {
        what: Some(What::DynoId("unread".into())),
    };
    client.clone().remove(removed).await.unwrap();
    until("the driver to let go", || {
        (held(&driver, "unread") == 0).then_some(())
    })
    .await;

    let (read, mut output) = driver.dyno("read", "echo words; exec sleep 1000");
    client.clone().start(read).await.unwrap();
    assert_eq!(output.line().await, "words");
    assert_eq!(held(&driver, "read"), 2);
    client.clone().stop(stop("read", 100)).await.unwrap();
    assert_eq!(held(&driver, "read"), 0);
}

#[tokio::test]
#[ignore = "needs root: nobody else counts the driver's descriptors"]
async fn to_keep_what_was_written_takes_no_descriptor_that_is_needed_for_more() {
    let driver = Driver::after("ulimit -n 64", &[]);
    let client = driver.connect().await.client();
    let room = 16;
    for number in 0..room {
        let (request, mut output) = driver.dyno(
            &format!("d{number}"),
            "printf 'up\\nwords\\n'; exec sleep 1000",
        );
        client.clone().start(request).await.unwrap();
        assert_eq!(output.line().await, "up");
    }
    let (another, _output) = driver.dyno("another", "exit 0");
    let status = client.clone().start(another.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(!driver.log().contains("given up"), "{}", driver.log());
    client.clone().stop(stop("d3", 100)).await.unwrap();
    assert_eq!(held(&driver, "d3"), 2);
    client.clone().start(another).await.unwrap();
    assert_eq!(held(&driver, "d3"), 0);
    assert!(driver.log().contains("given up"), "{}", driver.log());
    wait(&client, "another").await;
}

#[tokio::test]
async fn the_driver_takes_all_it_may_have_and_dynos_get_what_it_was_given() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let driver = Driver::after("ulimit -S -n 200", &[]);
    let client = driver.connect().await.client();
    let (request, mut output) = driver.dyno("a", "ulimit -S -n; ulimit -H -n");
    client.clone().start(request).await.unwrap();
    assert_eq!(output.line().await, "200");
    assert_eq!(output.line().await, hard.to_string());
    let limits = fs::read_to_string(format!("/proc/{}/limits", driver.pid())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let columns: Vec<_> = files.unwrap().split_whitespace().collect();
    assert_eq!(columns[3..5], [hard.to_string(), hard.to_string()]);
    wait(&client, "a").await;
}
