//! Stop, linger, and the end of the driver itself: what was started is gone afterwards.

use std::time::Duration;

use hsup_proto::driver::{
    GetInfoRequest, ListRequest, State, StopRequest, WaitRequest, exit_status::How,
};
use nix::sys::signal::Signal;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::Code;

use crate::fixture::{Driver, PATIENCE, how, signalled, stop, until, until_gone, wait};

const STUBBORN: &str = "trap '' TERM; echo $$; while :; do sleep 1; done";

#[tokio::test]
async fn a_dyno_that_obeys_ends_by_the_signal() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    let (request, mut output) = driver.dyno("a", "echo $$; exec sleep 60");
    client.start(request).await.unwrap();
    let pid = output.pid().await;
    client.stop(stop("a", 0)).await.unwrap();
    assert!(
        crate::fixture::gone(pid),
        "Stop answers when every process is gone"
    );
    assert_eq!(how(&wait(&client, "a").await), signalled("SIGTERM"));
    client.stop(stop("a", 0)).await.unwrap();
    client.stop(stop("never-was", 0)).await.unwrap();
}

#[tokio::test]
async fn a_real_time_signal_has_the_name_that_its_end_is_told_with() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    let (request, mut output) = driver.dyno("a", "echo $$; exec sleep 60");
    client.start(request).await.unwrap();
    output.pid().await;
    let request = StopRequest {
        signal: "SIGRTMIN+3".into(),
        ..stop("a", 0)
    };
    client.stop(request).await.unwrap();
    assert_eq!(how(&wait(&client, "a").await), signalled("SIGRTMIN+3"));
}

#[tokio::test]
async fn a_dyno_that_ignores_the_signal_is_killed_with_its_children() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    let line = "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo $!; wait";
    let (request, mut output) = driver.dyno("a", line);
    client.start(request).await.unwrap();
    let grandchild = output.pid().await;
    client.stop(stop("a", 100)).await.unwrap();
    assert!(crate::fixture::gone(grandchild), "its child is still there");
    assert_eq!(how(&wait(&client, "a").await), signalled("SIGKILL"));
}

#[tokio::test]
async fn what_left_the_session_is_gone_when_the_first_process_has_ended() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    // A daemon: another session, its parent gone, deaf to signals.
    let line = "exec 9>&1; setsid sh -c 'sh -c \"trap \\\"\\\" TERM HUP; echo \\$\\$ >&9; \
                while :; do sleep 1; done\" & exit 0'; read -r _ _ < \"$1\"; exit 7";
    let (mut request, mut output) = driver.dyno("a", line);
    let go = driver.dir.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    request
        .argv
        .extend(["sh".into(), go.to_str().unwrap().into()]);
    client.start(request).await.unwrap();
    let daemon = output.pid().await;
    assert!(!crate::fixture::gone(daemon));
    // Opening blocks until the dyno reads.
    let release = tokio::task::spawn_blocking(move || std::fs::File::create(go).map(drop));
    let status = wait(&client, "a").await;
    release.await.unwrap().unwrap();
    assert!(crate::fixture::gone(daemon), "its daemon is still there");
    assert_eq!(how(&status), How::Code(7));
}

#[tokio::test]
async fn a_dyno_that_forks_all_the_time_can_be_stopped() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    // Each of them is replaced by another session's child before it ends.
    let line = "again='trap \"\" TERM; echo x; setsid sh -c \"$again\" & sleep 0.01'; export again
                echo $$; sh -c \"$again\"; sleep 1000";
    let (mut request, mut output) = driver.dyno("a", line);
    let env = &mut request.env;
    env.insert(
        "HSUP_TEST_FORKS".into(),
        driver.dir.path().display().to_string(),
    );
    client.start(request).await.unwrap();
    output.pid().await;
    for _ in 0..20 {
        assert_eq!(output.line().await, "x");
    }
    let force = StopRequest {
        force: true,
        ..stop("a", 0)
    };
    client.stop(force).await.unwrap();
    let mine = format!("HSUP_TEST_FORKS={}", driver.dir.path().display());
    let left = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&mine)
    });
    assert!(!left, "somebody got away");
    assert_eq!(how(&wait(&client, "a").await), signalled("SIGKILL"));
}

#[tokio::test]
async fn a_second_stop_shortens_the_grace_and_a_lost_caller_changes_nothing() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let (request, mut output) = driver.dyno("a", STUBBORN);
    client.clone().start(request).await.unwrap();
    output.pid().await;
    let state = async || {
        let list = client.clone().list(ListRequest::default()).await.unwrap();
        list.into_inner().dynos[0].state()
    };
    let begun = async {
        while state().await != State::Stopping {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let hurried = driver.connect().await;
    {
        let mut client = hurried.client();
        tokio::select! {
            answer = client.stop(stop("a", 600_000)) => panic!("{answer:?}"),
            begun = timeout(PATIENCE, begun) => begun.expect("the stop to begin"),
        }
    }
    drop(hurried);
    assert_eq!(state().await, State::Stopping);
    let force = StopRequest {
        dyno_id: "a".into(),
        force: true,
        ..Default::default()
    };
    timeout(PATIENCE, client.clone().stop(force))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(how(&wait(&client, "a").await), signalled("SIGKILL"));
}

#[tokio::test]
async fn sixty_four_waits_do_not_hold_up_a_stop() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let (request, _output) = driver.dyno("a", "exec sleep 60");
    client.clone().start(request).await.unwrap();
    let mut waits = JoinSet::new();
    for _ in 0..64 {
        let client = client.clone();
        waits.spawn(async move { wait(&client, "a").await });
    }
    client
        .clone()
        .get_info(GetInfoRequest::default())
        .await
        .unwrap();
    client.clone().stop(stop("a", 5_000)).await.unwrap();
    while let Some(status) = waits.join_next().await {
        assert_eq!(how(&status.unwrap()), signalled("SIGTERM"));
    }
}

#[tokio::test]
async fn a_wait_says_nothing_of_a_dyno_that_runs() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    let (request, _output) = driver.dyno("a", "exec sleep 60");
    client.start(request).await.unwrap();
    let request = WaitRequest {
        dyno_id: "a".into(),
        timeout_ms: 50,
    };
    let answer = client.wait(request).await.unwrap().into_inner();
    assert_eq!(answer.status, None);
}

#[tokio::test]
async fn a_dyno_is_stopped_when_its_supervisor_stays_away() {
    let driver = Driver::new();
    let onlooker = driver.connect().await;
    let supervisor = driver.connect().await;
    let (mut lingers, _first) = driver.dyno("lingers", "exec sleep 60");
    lingers.linger_ms = 100;
    let (stays, _second) = driver.dyno("stays", "exec sleep 60");
    supervisor.client().start(lingers).await.unwrap();
    supervisor.client().start(stays).await.unwrap();
    drop(supervisor);
    // Wait and an unfiltered List speak for no supervisor.
    let client = onlooker.client();
    assert_eq!(how(&wait(&client, "lingers").await), signalled("SIGTERM"));
    let list = client.clone().list(ListRequest::default()).await.unwrap();
    let states: Vec<_> = list
        .into_inner()
        .dynos
        .iter()
        .map(|dyno| dyno.state)
        .collect();
    assert_eq!(states, [4, 2], "exited and running");
}

#[tokio::test]
async fn sigterm_stops_the_dynos_and_then_the_driver() {
    let mut driver = Driver::new();
    let client = driver.connect().await.client();
    let (request, mut output) = driver.dyno(
        "a",
        "trap 'exit 3' TERM; echo $$; while :; do sleep 0.05; done",
    );
    client.clone().start(request).await.unwrap();
    let pid = output.pid().await;
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { wait(&client, "a").await })
    };
    // The Wait is at the driver once a later call on its connection has been answered.
    tokio::task::yield_now().await;
    client
        .clone()
        .get_info(GetInfoRequest::default())
        .await
        .unwrap();
    driver.signal(Signal::SIGINT);
    driver.signal(Signal::SIGTERM);
    assert_eq!(how(&waiting.await.unwrap()), How::Code(3));
    assert!(driver.ended().await.success());
    until_gone(pid).await;
    assert!(!driver.socket().exists());
}

#[tokio::test]
async fn a_driver_that_ends_starts_nothing_and_can_be_hurried() {
    let mut driver = Driver::new();
    let mut client = driver.connect().await.client();
    let (request, mut output) = driver.dyno("a", STUBBORN);
    let (another, _output) = driver.dyno("b", "exec sleep 60");
    client.start(request.clone()).await.unwrap();
    let pid = output.pid().await;
    driver.signal(Signal::SIGTERM);
    // The socket's name goes first.
    until("the end to begin", || {
        (!driver.socket().exists()).then_some(())
    })
    .await;
    let status = client.start(another).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    // What was started before still was.
    client.start(request).await.unwrap();
    driver.signal(Signal::SIGTERM);
    // Far less than the grace of ten seconds.
    let ended = timeout(Duration::from_secs(5), driver.ended()).await;
    assert!(ended.expect("the driver is in no hurry").success());
    assert!(crate::fixture::gone(pid));
}

#[tokio::test]
async fn no_dyno_outlives_a_killed_driver() {
    let mut driver = Driver::new();
    let client = driver.connect().await.client();
    let (request, mut output) = driver.dyno("a", STUBBORN);
    client.clone().start(request).await.unwrap();
    let pid = output.pid().await;
    driver.signal(Signal::SIGKILL);
    driver.ended().await;
    until_gone(pid).await;

    // The socket that it left behind is in nobody's way.
    assert!(driver.socket().exists());
    driver.restart();
    let client = driver.connect().await.client();
    let list = client.clone().list(ListRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().dynos, []);
}
