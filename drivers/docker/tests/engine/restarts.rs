//! The driver is killed, and the engine, or the way between them ends.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use hsup_proto::driver::{Bind, Durability, ListRequest, State, exit_status::How};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use test_case::test_case;
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{
    door::Door,
    fixture::{Driver, Dyno, Engine, PATIENCE, PAUSE, output},
};

/// Writes numbers, each on a line.
pub(crate) const COUNT: &str =
    "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 42";
/// The same, which goes on from 300 when it is told to.
const COUNT_ON: &str = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.01; \
                        if [ $i = 300 ]; then until [ -e /shared/back ]; do sleep 0.05; done; fi; \
                        done; exit 42";

pub(crate) fn numbers() -> Vec<u8> {
    let lines = (1..=400).map(|number| format!("{number}\n"));
    lines.collect::<String>().into_bytes()
}

#[test_case("web"; "whose log is read")]
#[test_case("run"; "that is attached to")]
#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_driver_that_was_killed_goes_on_with_a_dyno(process_type: &str) {
    let engine = Engine::start().await;
    let mut driver = Driver::start(&engine);
    let mut dyno = Dyno::new(&engine, "d-killed", COUNT);
    dyno.request.process_type = process_type.to_owned();
    dyno.start(&mut driver.client().await).await;
    let mut all = Vec::new();
    dyno.read(&mut all, 300).await;
    driver.replace();
    let mut client = driver.client().await;
    // The same request starts nothing.
    dyno.start(&mut client).await;
    dyno.read(&mut all, numbers().len()).await;
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(42)));
    all.extend(dyno.rest());
    assert!(all == numbers(), "{}", String::from_utf8_lossy(&all));
    driver.replace();
    // It is known how it ended until it is removed.
    let mut client = driver.client().await;
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(42)));
    assert_eq!(dyno.rest(), b"");
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn what_is_attached_to_is_read_on_when_that_connection_alone_breaks() {
    let engine = Engine::start().await;
    let door = Door::of(&engine).await;
    let driver = Driver::reaching(&door.host(), Vec::new());
    driver.info(|info| info.ready).await;
    let mut client = driver.client().await;
    let mut dyno = Dyno::new(&engine, "d-cut", COUNT);
    dyno.request.process_type = "run".to_owned();
    dyno.start(&mut client).await;
    let mut all = Vec::new();
    dyno.read(&mut all, 300).await;
    door.cut("/attach?stream=1&stdout=1");
    dyno.read(&mut all, numbers().len()).await;
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(42)));
    all.extend(dyno.rest());
    assert!(all == numbers(), "{}", String::from_utf8_lossy(&all));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn an_end_behind_a_broken_connection_is_the_dynos_own() {
    let engine = Engine::start().await;
    let door = Door::of(&engine).await;
    let driver = Driver::reaching(&door.host(), Vec::new());
    driver.info(|info| info.ready).await;
    let mut client = driver.client().await;
    let line = "trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done";
    let dyno = Dyno::new(&engine, "d-behind", line);
    dyno.start(&mut client).await;
    let mut all = Vec::new();
    dyno.read(&mut all, 3).await;
    door.shut();
    driver.info(|info| !info.ready).await;
    output(&mut engine.docker(&["kill", "--signal", "USR1", &engine.containers()]));
    engine.has_exited().await;
    door.open();
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(7)));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn an_engine_that_was_killed_is_waited_for() {
    let mut engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let dyno = Dyno::new(&engine, "d-before", "echo up; sleep 600");
    // The engine's SIGTERM is no reason to end well.
    let line = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let mut trapping = Dyno::new(&engine, "d-trapping", line);
    let slug = TempDir::with_prefix("hsup").unwrap();
    trapping.request.artifact = driver.build_slug(slug.path()).await.unwrap();
    for dyno in [&dyno, &trapping] {
        dyno.start(&mut client).await;
        let mut all = Vec::new();
        dyno.read(&mut all, 3).await;
        assert_eq!(all, b"up\n");
    }
    driver.info(|info| info.ready).await;
    engine.kill();
    let info = driver.info(|info| !info.ready).await;
    assert!(info.message.contains("does not answer"), "{}", info.message);
    let other = Dyno::new(&engine, "d-down", "true");
    let refused = client.start(other.request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    engine.start_again();
    engine.answers().await;
    driver.info(|info| info.ready).await;
    // Nobody knows what it would have said.
    for dyno in [&dyno, &trapping] {
        let status = dyno.wait(&mut client).await;
        assert!(matches!(status.how, Some(How::Lost(_))), "{status:?}");
        assert_eq!(dyno.rest(), b"");
        dyno.remove(&mut client).await;
    }
    let other = Dyno::new(&engine, "d-after", "exit 7");
    other.start(&mut client).await;
    assert_eq!(other.wait(&mut client).await.how, Some(How::Code(7)));
    other.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_start_whose_answer_is_lost_has_no_twin() {
    let engine = Engine::start().await;
    let door = Door::of(&engine).await;
    let driver = Driver::reaching(&door.host(), Vec::new());
    driver.info(|info| info.ready).await;
    let mut client = driver.client().await;
    let dyno = Dyno::new(&engine, "d-lost", "echo up; sleep 600");
    door.shut_after("/start ");
    let refused = client.start(dyno.request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    // It runs, and nobody knows of it.
    let lost = engine.containers();
    assert_eq!(lost.lines().count(), 1);
    // The supervisor may start another in its place meanwhile.
    door.open();
    let removed = async {
        while engine.containers() != "" {
            sleep(PAUSE).await;
        }
    };
    let in_time = timeout(PATIENCE, removed).await;
    in_time.expect("what a start left that failed is removed when the engine is back");
    // Or ask again for the same.
    door.shut_after("/start ");
    client.start(dyno.request.clone()).await.unwrap_err();
    let lost = engine.containers();
    door.open();
    driver.info(|info| info.ready).await;
    dyno.start(&mut client).await;
    let mut all = Vec::new();
    dyno.read(&mut all, 3).await;
    assert_eq!(all, b"up\n");
    let found = engine.containers();
    assert_eq!(found.lines().count(), 1);
    assert_ne!(found, lost);
    output(&mut engine.docker(&["rm", "--force", &found]));
    // One that somebody else removes is lost, not ended.
    let status = dyno.wait(&mut client).await;
    let how = status.how.expect("how it ended");
    let said = "its container was removed by somebody else";
    assert_eq!(how, How::Lost(said.to_owned()));
    dyno.remove(&mut client).await;
}

/// The engine ends before anybody hears that the dyno has begun, which outlives it.
#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_start_that_the_engines_end_cuts_off_has_no_twin() {
    let mut engine = Engine::start_with(&["--live-restore"]).await;
    let door = Door::of(&engine).await;
    let driver = Driver::reaching(&door.host(), Vec::new());
    driver.info(|info| info.ready).await;
    let mut client = driver.client().await;
    let dyno = Dyno::new(&engine, "d-begun", "echo up; sleep 600");
    door.shut_after("/start ");
    let refused = client.start(dyno.request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    engine.kill();
    engine.start_again();
    engine.answers().await;
    let running = output(&mut engine.docker(&["ps", "--quiet"]));
    assert_eq!(running.lines().count(), 1);
    door.open();
    engine.has_containers(str::is_empty).await;
    driver.info(|info| info.ready).await;
    dyno.start(&mut client).await;
    let mut all = Vec::new();
    dyno.read(&mut all, 3).await;
    assert_eq!(all, b"up\n");
    assert_eq!(engine.containers().lines().count(), 1);
    dyno.kill(&mut client).await;
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_dyno_that_somebody_removes_is_lost() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let slug = TempDir::with_prefix("hsup").unwrap();
    let slug = driver.build_slug(slug.path()).await.unwrap();
    // It is killed first, and there for a while with that end.
    for number in 0..10 {
        let mut dyno = Dyno::new(
            &engine,
            &format!("d-removed-{number}"),
            "echo up; sleep 600",
        );
        dyno.request.artifact.clone_from(&slug);
        dyno.start(&mut client).await;
        let mut all = Vec::new();
        dyno.read(&mut all, 3).await;
        output(&mut engine.docker(&["rm", "--force", &engine.containers()]));
        let said = "its container was removed by somebody else";
        let how = dyno.wait(&mut client).await.how;
        assert_eq!(how, Some(How::Lost(said.to_owned())), "{number}");
        dyno.remove(&mut client).await;
    }
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn what_an_engine_ended_while_the_driver_was_away_is_lost() {
    let mut engine = Engine::start().await;
    let mut driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let slug = TempDir::with_prefix("hsup").unwrap();
    let slug = driver.build_slug(slug.path()).await.unwrap();
    // The driver knows how this one ended.
    let over = Dyno::new(&engine, "d-over", "exit 7");
    let line = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let image = Dyno::new(&engine, "d-image", line);
    let mut of_slug = Dyno::new(&engine, "d-slug", line);
    of_slug.request.artifact = slug;
    over.start(&mut client).await;
    assert_eq!(over.wait(&mut client).await.how, Some(How::Code(7)));
    for dyno in [&image, &of_slug] {
        dyno.start(&mut client).await;
        dyno.read(&mut Vec::new(), 3).await;
    }
    driver.kill();
    engine.end(Signal::SIGTERM);
    engine.start_again();
    engine.answers().await;
    driver.start_again();
    let mut client = driver.client().await;
    for dyno in [&image, &of_slug] {
        let status = dyno.wait(&mut client).await;
        assert!(matches!(status.how, Some(How::Lost(_))), "{status:?}");
    }
    assert_eq!(over.wait(&mut client).await.how, Some(How::Code(7)));
    for dyno in [&over, &image, &of_slug] {
        dyno.remove(&mut client).await;
    }
    // One that ends while only the driver is away is known.
    let line = "echo up; sleep 1; exit 7";
    let alone = Dyno::new(&engine, "d-alone", line);
    alone.start(&mut client).await;
    driver.kill();
    engine.has_exited().await;
    driver.start_again();
    let mut client = driver.client().await;
    assert_eq!(alone.wait(&mut client).await.how, Some(How::Code(7)));
    alone.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_build_that_is_cut_off_leaves_nothing() {
    let mut engine = Engine::start().await;
    let mut driver = Driver::start(&engine);
    // Whoever asks for the slug waits.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/slug.tgz", listener.local_addr().unwrap());
    let building = driver.begin_build(url.clone()).await;
    engine.has_containers(|ids| !ids.is_empty()).await;
    driver.replace();
    building.await.unwrap().unwrap_err();
    engine.has_containers(str::is_empty).await;

    let building = driver.begin_build(url).await;
    engine.has_containers(|ids| !ids.is_empty()).await;
    engine.kill();
    // Nobody waits for the slug any more.
    building.await.unwrap().unwrap_err();
    engine.start_again();
    engine.answers().await;
    engine.has_containers(str::is_empty).await;
}

async fn is_there(path: &Path) {
    let looking = async {
        while !path.exists() {
            sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, looking).await.expect("it never was");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_dyno_outlives_an_engine_that_lets_it() {
    let mut engine = Engine::start_with(&["--live-restore"]).await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let info = driver.info(|info| info.ready).await;
    assert_eq!(info.durability(), Durability::Exact);
    let shared = TempDir::with_prefix("hsup").unwrap();
    let at = |name: &str| shared.path().join(name);
    let sharing = |id: &str, line: &str| {
        let mut dyno = Dyno::new(&engine, id, line);
        dyno.request.binds = vec![Bind {
            host_path: shared.path().to_str().unwrap().to_owned(),
            dyno_path: "/shared".to_owned(),
            writable: true,
        }];
        dyno
    };
    // It writes while the engine is away, and does not end before that is back.
    let mut counts = ["web", "run"].map(|process_type| {
        let mut dyno = sharing(&format!("d-counts-{process_type}"), COUNT_ON);
        dyno.request.process_type = process_type.to_owned();
        (dyno, Vec::new())
    });
    // They end while the engine is away.
    let ending = |id: &str, how: &str| {
        let line = format!(
            "echo up; until [ -e /shared/go ]; do sleep 0.05; done; echo >/shared/{id}; {how}"
        );
        sharing(id, &line)
    };
    // A slug's dyno is not root.
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(at("slug")).unwrap();
    let slug = driver.build_slug(&at("slug")).await.unwrap();
    let image = ending("d-image", "exit 7");
    let mut slugs = [
        (ending("d-code", "exit 7"), How::Code(7)),
        (ending("d-255", "exit 255"), How::Code(255)),
        (
            ending("d-signal", "kill -USR1 $$"),
            How::Signal("SIGUSR1".to_owned()),
        ),
    ];
    for (dyno, _) in &mut slugs {
        dyno.request.artifact.clone_from(&slug);
    }
    let end: Vec<_> = slugs.iter().map(|(dyno, _)| dyno).chain([&image]).collect();
    for (dyno, _) in &counts {
        dyno.start(&mut client).await;
    }
    for dyno in &end {
        dyno.start(&mut client).await;
        let mut said = Vec::new();
        dyno.read(&mut said, 3).await;
        assert_eq!(said, b"up\n");
    }
    for (dyno, counted) in &mut counts {
        dyno.read(counted, 300).await;
    }
    engine.kill();
    driver.info(|info| !info.ready).await;
    File::create(at("go")).unwrap();
    for dyno in &end {
        is_there(&at(&dyno.request.dyno_id)).await;
    }
    engine.start_again();
    engine.answers().await;
    driver.info(|info| info.ready).await;
    for (dyno, how) in &slugs {
        let id = &dyno.request.dyno_id;
        assert_eq!(dyno.wait(&mut client).await.how.as_ref(), Some(how), "{id}");
    }
    // The init of an image's dyno is the engine's, which writes nothing down.
    let how = image.wait(&mut client).await.how;
    if engine.version().starts_with("20.") {
        assert_eq!(how, Some(How::Code(7)));
    } else {
        let lost = "it ended while the engine was away, which does not know how";
        assert_eq!(how, Some(How::Lost(lost.to_owned())));
    }
    for dyno in &end {
        assert_eq!(dyno.rest(), b"", "{}", dyno.request.dyno_id);
    }
    File::create(at("back")).unwrap();
    for (dyno, counted) in &mut counts {
        dyno.read(counted, numbers().len()).await;
        assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(42)));
        counted.extend(dyno.rest());
        let text = String::from_utf8_lossy(counted);
        assert!(*counted == numbers(), "{text}");
    }
    let counts = counts.iter().map(|(dyno, _)| dyno);
    for dyno in end.into_iter().chain(counts) {
        dyno.remove(&mut client).await;
    }
    assert_eq!(engine.containers(), "");
}

/// More than an engine keeps in its log.
const FLOOD: usize = 128 << 20;
/// How much of that comes while a test is patient.
const PART: usize = 4 << 20;

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_flood_of_a_one_off_dyno_comes_whole() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let line = format!("yes 0123456 | head -c {FLOOD}; echo end >&2; exit 3");
    let mut dyno = Dyno::new(&engine, "d-flood", &line);
    dyno.request.process_type = "run".to_owned();
    dyno.start(&mut client).await;
    dyno.widen();
    let mut all = Vec::with_capacity(FLOOD);
    while all.len() < FLOOD {
        let next = (all.len() + PART).min(FLOOD);
        dyno.read(&mut all, next).await;
    }
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(3)));
    assert_eq!(dyno.rest(), b"");
    assert!(all.chunks(8).all(|line| line == b"0123456\n"));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

/// A driver that has lost what it kept, as in a reboot of its machine, and begins before the engine.
#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_driver_that_begins_before_its_engine_finds_its_dynos() {
    let mut engine = Engine::start_with(&["--live-restore"]).await;
    let mut driver = Driver::start(&engine);
    let dyno = Dyno::new(&engine, "d-early", "exec sleep 1000");
    dyno.start(&mut driver.client().await).await;
    driver.kill();
    driver.forget();
    engine.kill();
    driver.start_again();
    let info = driver.info(|info| !info.ready).await;
    assert!(info.message.contains("does not answer"), "{}", info.message);
    let mut client = driver.client().await;
    let list = ListRequest::default();
    let refused = client.list(list.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    engine.start_again();
    engine.answers().await;
    driver.info(|info| info.ready).await;
    let found = client.list(list).await.unwrap().into_inner().dynos;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].state(), State::Running);
    dyno.kill(&mut client).await;
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}
