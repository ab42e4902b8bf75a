//! Attach: a dyno with a terminal.

use hsup_proto::driver::{
    AttachRequest, ListRequest, RemoveRequest, StopRequest,
    attach_request::{Event, Resize},
    attach_response,
    exit_status::How,
    remove_request::What,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::fixture::{Driver, PATIENCE, how, signalled, until, wait};

fn message(event: Event) -> AttachRequest {
    AttachRequest { event: Some(event) }
}

async fn attach(
    client: &hsup_driver_kit::client::Client,
    id: &str,
) -> Result<
    (
        mpsc::Sender<AttachRequest>,
        Streaming<hsup_proto::driver::AttachResponse>,
    ),
    tonic::Status,
> {
    let (sender, receiver) = mpsc::channel(8);
    sender
        .send(message(Event::DynoId(id.into())))
        .await
        .unwrap();
    let answer = client.clone().attach(ReceiverStream::new(receiver)).await?;
    Ok((sender, answer.into_inner()))
}

/// Reads until the output holds `text`, or to its end without one.
async fn read(
    output: &mut Streaming<hsup_proto::driver::AttachResponse>,
    text: Option<&str>,
) -> String {
    let mut seen = String::new();
    let reading = async {
        while let Some(message) = output.message().await.unwrap() {
            if let Some(attach_response::Event::Stdout(bytes)) = message.event {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            if text.is_some_and(|text| seen.contains(text)) {
                return;
            }
        }
    };
    let finished = timeout(PATIENCE, reading).await;
    assert!(finished.is_ok(), "waited in vain for {text:?} in {seen:?}");
    seen
}

#[tokio::test]
async fn bytes_and_the_window_size_go_both_ways() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let line = "echo early; read line; echo \"got $line\"; stty size; cat; exit 5";
    let (mut request, _output) = driver.dyno("a", line);
    request.tty = true;
    client.clone().start(request).await.unwrap();
    let (input, mut output) = attach(&client, "a").await.unwrap();
    read(&mut output, Some("early")).await;
    let size = Resize {
        rows: 33,
        columns: 99,
    };
    input.send(message(Event::Resize(size))).await.unwrap();
    input
        .send(message(Event::Stdin(b"hello\n".to_vec())))
        .await
        .unwrap();
    let seen = read(&mut output, Some("33 99")).await;
    assert!(seen.contains("got hello"), "{seen:?}");
    let second = attach(&client, "a").await.unwrap_err();
    assert_eq!(second.code(), Code::FailedPrecondition);
    input.send(message(Event::StdinEof(true))).await.unwrap();
    read(&mut output, None).await;
    assert_eq!(how(&wait(&client, "a").await), How::Code(5));
}

#[tokio::test]
async fn what_is_written_before_the_first_attach_is_kept() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let (mut request, _output) = driver.dyno("a", "echo last words; exit 4");
    request.tty = true;
    client.clone().start(request).await.unwrap();
    assert_eq!(how(&wait(&client, "a").await), How::Code(4));
    let (_input, mut output) = attach(&client, "a").await.unwrap();
    assert!(read(&mut output, None).await.contains("last words"));
}

#[tokio::test]
async fn a_caller_that_vanishes_hangs_up() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let (mut request, _output) = driver.dyno("a", "echo up; exec sleep 60");
    request.tty = true;
    client.clone().start(request).await.unwrap();
    let caller = driver.connect().await;
    let (input, mut output) = attach(&caller.client(), "a").await.unwrap();
    read(&mut output, Some("up")).await;
    drop((input, output, caller));
    assert_eq!(how(&wait(&client, "a").await), signalled("SIGHUP"));
}

#[tokio::test]
async fn a_dyno_without_a_terminal_has_none() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let (request, _output) = driver.dyno("a", "exec sleep 60");
    client.clone().start(request).await.unwrap();
    let status = attach(&client, "a").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("without a terminal"), "{status}");
    let status = attach(&client, "b").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
#[ignore = "needs root: nobody else counts the driver's descriptors"]
async fn a_terminal_that_nobody_read_is_not_kept() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    let descriptors = || {
        let folder = format!("/proc/{}/fd", driver.pid());
        std::fs::read_dir(folder).unwrap().count()
    };
    // It is at rest when a call has been answered.
    client.list(ListRequest::default()).await.unwrap();
    let before = descriptors();
    let (mut request, _output) = driver.dyno("a", "echo $$ >pid; exec yes");
    request.tty = true;
    client.start(request).await.unwrap();
    assert_eq!(descriptors(), before + 1);
    let mut waits = 0;
    until("a terminal that takes no more", || {
        let pid = std::fs::read_to_string(driver.dir.path().join("pid")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
        // Between two lines it may sleep, too, but not for long.
        waits = if stat.contains("(yes) S ") {
            waits + 1
        } else {
            0
        };
        (waits == 10).then_some(())
    })
    .await;
    let force = StopRequest {
        dyno_id: "a".into(),
        force: true,
        ..Default::default()
    };
    client.stop(force).await.unwrap();
    let remove = RemoveRequest {
        what: Some(What::DynoId("a".into())),
    };
    client.remove(remove).await.unwrap();
    until("the end of the terminal", || {
        (descriptors() == before).then_some(())
    })
    .await;
}
