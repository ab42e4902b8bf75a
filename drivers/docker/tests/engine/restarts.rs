//! The driver is killed, and the engine.

use hsup_proto::driver::exit_status::How;
use tonic::Code;

use super::fixture::{Driver, Dyno, Engine};

/// Writes numbers, each on a line.
const COUNT: &str = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 42";

fn numbers() -> Vec<u8> {
    let lines = (1..=400).map(|number| format!("{number}\n"));
    lines.collect::<String>().into_bytes()
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_driver_that_was_killed_goes_on_where_it_was() {
    let engine = Engine::start().await;
    let mut driver = Driver::start(&engine);
    let dyno = Dyno::new(&engine, "d-killed", COUNT);
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
async fn an_engine_that_was_killed_is_waited_for() {
    let mut engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let dyno = Dyno::new(&engine, "d-before", "echo up; sleep 600");
    dyno.start(&mut client).await;
    let mut all = Vec::new();
    dyno.read(&mut all, 3).await;
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
    let status = dyno.wait(&mut client).await;
    assert!(matches!(status.how, Some(How::Lost(_))), "{status:?}");
    all.extend(dyno.rest());
    assert_eq!(all, b"up\n");
    dyno.remove(&mut client).await;
    let other = Dyno::new(&engine, "d-after", "exit 7");
    other.start(&mut client).await;
    assert_eq!(other.wait(&mut client).await.how, Some(How::Code(7)));
    other.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}
