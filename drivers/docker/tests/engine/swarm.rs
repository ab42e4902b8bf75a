//! A Swarm of this one engine. What several machines may go through is tried in `tests/swarm`.

use std::{io::Write as _, process::Stdio};

use hsup_proto::driver::{ListRequest, exit_status::How};
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{
    fixture::{Driver, Dyno, Engine, PATIENCE, PAUSE, is_greeted, output},
    restarts::{COUNT, numbers},
};

const ADDRESS: &str = "10.99.0.1";

pub(crate) async fn swarm() -> Engine {
    let engine = Engine::start().await;
    // The loopback's address is none that a Swarm advertises.
    let address = format!("address add {ADDRESS}/24 dev swarm0");
    for words in [
        "link add swarm0 type veth peer name swarm1",
        &address,
        "link set swarm0 up",
        "link set swarm1 up",
    ] {
        output(engine.inside("ip").args(words.split(' ')));
    }
    output(&mut engine.docker(&["swarm", "init", "--advertise-addr", ADDRESS]));
    engine
}

pub(crate) fn service(engine: &Engine, id: &str, line: &str) -> Dyno {
    let mut dyno = Dyno::new(engine, id, line);
    let option = ("swarm".to_owned(), "true".to_owned());
    dyno.request.options.extend([option]);
    dyno
}

/// The services of dynos.
fn services(engine: &Engine) -> String {
    let list = ["service", "ls", "--filter", "label=hsup.dyno_id", "--quiet"];
    output(&mut engine.docker(&list))
}

/// Waits until the Swarm has taken all away that belongs to a dyno.
async fn nothing_is_left(engine: &Engine) {
    let networks = ["network", "ls", "--filter", "name=hsup-", "--quiet"];
    let left = || services(engine) + &engine.containers() + &output(&mut engine.docker(&networks));
    let leaving = async {
        while !left().is_empty() {
            sleep(PAUSE).await;
        }
    };
    let in_time = timeout(PATIENCE, leaving).await.is_ok();
    assert!(in_time, "left behind: {}", left());
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn every_byte_of_a_service_arrives_and_nothing_is_left() {
    let engine = swarm().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    // Empty lines, one longer than a frame of the log, bytes that are no text, no end of the last.
    let line = r"printf '\n\na\n\nb\n'; i=0
                 while [ $i -lt 5000 ]; do i=$((i+1)); printf 'long line '; done
                 printf 'end\n\0\377\r\nlast'; exit 3";
    let dyno = service(&engine, "d-bytes", line);
    dyno.start(&mut client).await;
    assert_eq!(services(&engine).lines().count(), 1);
    let mut expected = b"\n\na\n\nb\n".to_vec();
    expected.extend("long line ".repeat(5000).into_bytes());
    expected.extend(b"end\n\0\xff\r\nlast");
    let mut all = Vec::new();
    dyno.read(&mut all, expected.len()).await;
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(3)));
    all.extend(dyno.rest());
    assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
    dyno.remove(&mut client).await;
    // As one whose hsup ends with its last dyno.
    drop(driver);
    nothing_is_left(&engine).await;
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_service_is_reached_found_again_and_stopped() {
    let engine = swarm().await;
    let mut driver = Driver::start(&engine);
    let line = "nc -ll -p $PORT -e echo hello & wait";
    let dyno = service(&engine, "d-port", line);
    dyno.start(&mut driver.client().await).await;
    driver.replace();
    let mut client = driver.client().await;
    let info = dyno.ip_info(&mut client).await;
    assert_eq!(info.ip, ADDRESS);
    assert_eq!(info.node, output(&mut engine.inside("hostname")));
    is_greeted(engine.inside("timeout"), &info);
    let status = dyno.stop(&mut client).await;
    assert_eq!(status.how, Some(How::Signal("SIGTERM".to_owned())));
    dyno.remove(&mut client).await;
    nothing_is_left(&engine).await;
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_driver_that_was_killed_goes_on_with_the_log_of_a_service() {
    let engine = swarm().await;
    let mut driver = Driver::start(&engine);
    let dyno = service(&engine, "d-log", COUNT);
    dyno.start(&mut driver.client().await).await;
    let mut all = Vec::new();
    dyno.read(&mut all, 300).await;
    driver.replace();
    let mut client = driver.client().await;
    dyno.read(&mut all, numbers().len()).await;
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(42)));
    all.extend(dyno.rest());
    // None is missing, and none is there twice.
    assert!(all == numbers(), "{}", String::from_utf8_lossy(&all));
    dyno.remove(&mut client).await;
    nothing_is_left(&engine).await;
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_one_off_dyno_is_on_the_engine_and_reaches_the_others() {
    let engine = swarm().await;
    let mut driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let web = service(&engine, "d-web", "exec nc -ll -p $PORT -e echo hello");
    web.start(&mut client).await;
    let line = "until nc web.1 5000 </dev/null | grep hello; do sleep 0.1; done; exec sleep 1000";
    let mut run = Dyno::new(&engine, "d-run", line);
    run.request.process_type = "run".to_owned();
    run.request.options.clone_from(&web.request.options);
    run.start(&mut client).await;
    assert_eq!(services(&engine).lines().count(), 1);
    let mut said = Vec::new();
    run.read(&mut said, 6).await;
    assert_eq!(said, b"hello\n");
    // The network stays for the last one of them, which the next driver knows.
    driver.replace();
    let mut client = driver.client().await;
    for dyno in [web, run] {
        dyno.stop(&mut client).await;
        dyno.remove(&mut client).await;
    }
    nothing_is_left(&engine).await;
}

/// As a machine that is rebooted: nothing is left there that tells of services, and the Swarm gives no
/// answer yet. Here it is locked; a manager without the others says no more.
#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_swarm_that_does_not_answer_yet_may_have_dynos() {
    let mut engine = swarm().await;
    let mut driver = Driver::start(&engine);
    let dyno = service(&engine, "d-reboot", "exec sleep 1000");
    dyno.start(&mut driver.client().await).await;
    output(&mut engine.docker(&["swarm", "update", "--autolock=true"]));
    let key = output(&mut engine.docker(&["swarm", "unlock-key", "--quiet"]));
    driver.kill();
    driver.forget();
    engine.kill();
    engine.start_again();
    engine.answers().await;
    driver.start_again();
    let info = driver.info(|info| !info.message.is_empty()).await;
    assert!(!info.ready && info.message.contains("lock"), "{info:?}");
    let mut client = driver.client().await;
    let refused = client.list(ListRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let mut unlock = engine.docker(&["swarm", "unlock"]);
    let mut unlock = unlock.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = unlock.stdin.take().unwrap();
    writeln!(stdin, "{key}").unwrap();
    drop(stdin);
    assert!(unlock.wait().unwrap().success());
    driver.info(|info| info.ready).await;
    let found = client.list(ListRequest::default()).await.unwrap();
    assert_eq!(found.into_inner().dynos.len(), 1);
    // The engine ended it when it began again.
    dyno.wait(&mut client).await;
    dyno.remove(&mut client).await;
    nothing_is_left(&engine).await;
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn an_engine_that_has_left_its_swarm_has_no_dynos_there() {
    let engine = swarm().await;
    let mut driver = Driver::start(&engine);
    let dyno = service(&engine, "d-left", "exec sleep 1000");
    dyno.start(&mut driver.client().await).await;
    driver.kill();
    output(&mut engine.docker(&["swarm", "leave", "--force"]));
    driver.start_again();
    driver.info(|info| info.ready).await;
    let list = ListRequest::default();
    let found = driver.client().await.list(list).await.unwrap();
    assert_eq!(found.into_inner().dynos, []);
}

/// Has the driver refuse a dyno for a Swarm that is not there, and start one that is for none.
async fn only_who_wants_a_swarm_is_refused(driver: &Driver, engine: &Engine) {
    let mut client = driver.client().await;
    let wanting = service(engine, "d-wanting", "exec sleep 1000");
    let refused = client.start(wanting.request.clone()).await.unwrap_err();
    // It is waited for: whoever is away may be back.
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let said = "the engine is no manager of a Swarm";
    assert!(refused.message().contains(said), "{refused}");
    let plain = Dyno::new(engine, "d-plain", "exit 3");
    plain.start(&mut client).await;
    assert_eq!(plain.wait(&mut client).await.how, Some(How::Code(3)));
    plain.remove(&mut client).await;
    let info = driver.info(|_| true).await;
    assert!(info.ready, "{info:?}");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_swarm_that_is_not_there_is_only_theirs_who_want_it() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    only_who_wants_a_swarm_is_refused(&driver, &engine).await;
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_swarm_that_was_left_is_not_missed_once_its_last_dyno_is_gone() {
    let engine = swarm().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let dyno = service(&engine, "d-left", "exit 3");
    dyno.start(&mut client).await;
    dyno.wait(&mut client).await;
    output(&mut engine.docker(&["swarm", "leave", "--force"]));
    let said = "the engine is no manager of a Swarm";
    driver
        .info(|info| !info.ready && info.message.contains(said))
        .await;
    dyno.remove(&mut client).await;
    driver.info(|info| info.ready).await;
    only_who_wants_a_swarm_is_refused(&driver, &engine).await;
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn what_somebody_else_has_begun_in_a_dynos_place_is_ended_with_it() {
    let engine = swarm().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let dyno = service(&engine, "d-changed", "exec sleep 1000");
    dyno.start(&mut client).await;
    let service = services(&engine);
    let update = ["service", "update", "--detach", "--force", &service];
    output(&mut engine.docker(&update));
    let how = dyno.wait(&mut client).await.how;
    let said = "its service was changed by somebody else";
    assert_eq!(how, Some(How::Lost(said.to_owned())));
    assert_eq!(output(&mut engine.docker(&["ps", "--quiet"])), "");
    dyno.remove(&mut client).await;
    nothing_is_left(&engine).await;
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_network_of_somebody_else_is_no_apps() {
    let engine = swarm().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let dyno = service(&engine, "d-network", "exec sleep 1000");
    dyno.start(&mut client).await;
    let list = [
        "network",
        "ls",
        "--filter",
        "name=hsup-",
        "--format",
        "{{.Name}}",
    ];
    let name = output(&mut engine.docker(&list));
    dyno.stop(&mut client).await;
    dyno.remove(&mut client).await;
    nothing_is_left(&engine).await;
    output(&mut engine.docker(&["network", "create", "--driver", "overlay", &name]));
    let dyno = service(&engine, "d-other", "exec sleep 1000");
    let refused = client.start(dyno.request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains(&name), "{refused}");
    assert_eq!(services(&engine), "");
}
