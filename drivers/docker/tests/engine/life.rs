//! What a dyno writes, where it is reached, and what is left of it.

use hsup_driver_kit::client::Client;
use hsup_proto::driver::{
    AttachRequest, AttachResponse, Bind, StatsRequest,
    attach_request::{Event, Resize},
    attach_response::Event as Output,
    exit_status::How,
};
use tempfile::{NamedTempFile, TempDir};
use tokio::{
    sync::mpsc::{self, Sender},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{
    door::Door,
    fixture::{Driver, Dyno, Engine, PAUSE, is_greeted},
};

/// Somebody at a dyno's terminal.
struct Terminal {
    typed: Sender<AttachRequest>,
    shown: Streaming<AttachResponse>,
}

impl Terminal {
    async fn of(client: &mut Client, dyno: &Dyno) -> Self {
        let (typed, typing) = mpsc::channel(4);
        let event = Some(Event::DynoId(dyno.request.dyno_id.clone()));
        typed.send(AttachRequest { event }).await.unwrap();
        let shown = client.attach(ReceiverStream::new(typing)).await.unwrap();
        Self {
            typed,
            shown: shown.into_inner(),
        }
    }

    async fn send(&self, event: Event) {
        let event = Some(event);
        self.typed.send(AttachRequest { event }).await.unwrap();
    }

    /// What it shows next; nothing at its end.
    async fn shows(&mut self) -> Option<Vec<u8>> {
        let (Output::Stdout(bytes) | Output::Stderr(bytes)) =
            self.shown.message().await.unwrap()?.event?;
        Some(bytes)
    }
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn every_byte_arrives_and_nothing_is_left() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    // Empty lines, one longer than a frame of the log, bytes that are no text, no end of the last.
    let line = r"printf '\n\na\n\nb\n'; i=0
                 while [ $i -lt 5000 ]; do i=$((i+1)); printf 'long line '; done
                 printf 'end\n\0\377\r\nlast'; exit 3";
    let dyno = Dyno::new(&engine, "d-bytes", line);
    dyno.start(&mut client).await;
    let mut expected = b"\n\na\n\nb\n".to_vec();
    expected.extend("long line ".repeat(5000).into_bytes());
    expected.extend(b"end\n\0\xff\r\nlast");
    let mut all = Vec::new();
    dyno.read(&mut all, expected.len()).await;
    let status = dyno.wait(&mut client).await;
    assert_eq!(status.how, Some(How::Code(3)));
    all.extend(dyno.rest());
    assert_eq!(all.len(), expected.len());
    assert!(all == expected, "the bytes are others");
    assert_eq!(driver.kept(), 1);
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
    assert_eq!(driver.kept(), 0);
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_dyno_is_reached_at_the_port_that_is_told() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let line = "nc -ll -p $PORT -e echo hello & wait";
    let dyno = Dyno::new(&engine, "d-port", line);
    dyno.start(&mut client).await;
    let info = dyno.ip_info(&mut client).await;
    assert_eq!(info.ip, "127.0.0.1");
    is_greeted(engine.inside("timeout"), &info);
    let dyno_id = dyno.request.dyno_id.clone();
    let stats = client.stats(StatsRequest { dyno_id });
    let stats = stats.await.unwrap().into_inner();
    assert!(stats.memory_bytes.unwrap() > 0 && stats.cpu_ns.unwrap() > 0);
    let status = dyno.stop(&mut client).await;
    assert_eq!(status.how, Some(How::Signal("SIGTERM".to_owned())));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_terminal_has_a_size_and_passes_on_what_is_typed() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let line = "until stty size | grep -q '^50 132$'; do sleep 0.05; done; echo sized; read -r x; \
                echo \"got $x\"";
    let mut dyno = Dyno::new(&engine, "d-tty", line);
    dyno.request.tty = true;
    dyno.request.tty_rows = 50;
    dyno.request.tty_columns = 132;
    dyno.start(&mut client).await;
    let mut terminal = Terminal::of(&mut client, &dyno).await;
    let mut all = Vec::new();
    while let Some(bytes) = terminal.shows().await {
        let had_size = all.windows(5).any(|word| word == b"sized");
        all.extend(bytes);
        if !had_size && all.windows(5).any(|word| word == b"sized") {
            terminal.send(Event::Stdin(b"hi\r".to_vec())).await;
        }
    }
    let all = String::from_utf8(all).unwrap();
    assert!(all.ends_with("sized\r\nhi\r\ngot hi\r\n"), "{all}");
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(0)));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_terminal_whose_connection_breaks_is_attached_to_again() {
    let engine = Engine::start().await;
    let door = Door::of(&engine).await;
    let driver = Driver::reaching(&door.host(), Vec::new());
    driver.info(|info| info.ready).await;
    let mut client = driver.client().await;
    let line = "echo up; until read -r x && [ \"$x\" = go ]; do :; done; echo went; exit 7";
    let mut dyno = Dyno::new(&engine, "d-broken", line);
    dyno.request.tty = true;
    dyno.start(&mut client).await;
    let mut terminal = Terminal::of(&mut client, &dyno).await;
    let mut all = Vec::new();
    let has = |all: &[u8], word: &[u8]| all.windows(word.len()).any(|bytes| bytes == word);
    let mut is_cut = false;
    loop {
        match timeout(PAUSE, terminal.shows()).await {
            Ok(Some(bytes)) => all.extend(bytes),
            Ok(None) => break,
            Err(_) => {}
        }
        if !is_cut && has(&all, b"up") {
            door.cut("/attach?");
            is_cut = true;
        } else if is_cut && !has(&all, b"went") {
            // What is typed before it is attached to again goes nowhere.
            terminal.send(Event::Stdin(b"go\r".to_vec())).await;
        }
    }
    let all = String::from_utf8(all).unwrap();
    assert!(all.contains("went"), "{all}");
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(7)));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_stop_is_told_to_every_process_of_an_images_dyno() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    // The first one ends after the other, to which it hands nothing on.
    let line = "trap 'wait; exit 3' TERM; \
                (trap 'echo told; exit' TERM; echo up; while :; do sleep 0.05; done) & wait";
    let dyno = Dyno::new(&engine, "d-all", line);
    dyno.start(&mut client).await;
    let mut all = Vec::new();
    dyno.read(&mut all, 3).await;
    assert_eq!(dyno.stop(&mut client).await.how, Some(How::Code(3)));
    all.extend(dyno.rest());
    assert_eq!(all, b"up\ntold\n");
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_start_that_the_engine_fails_at_says_why() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let slug = TempDir::with_prefix("hsup").unwrap();
    let slug = driver.build_slug(slug.path()).await.unwrap();
    let file = NamedTempFile::with_prefix("hsup").unwrap();
    let mut dyno = Dyno::new(&engine, "d-bind", "true");
    dyno.request.binds = vec![Bind {
        host_path: file.path().to_str().unwrap().to_owned(),
        dyno_path: "/bin".to_owned(),
        writable: false,
    }];
    for artifact in [&engine.artifact, &slug] {
        dyno.request.artifact.clone_from(artifact);
        let refused = client.start(dyno.request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let text = refused.message();
        assert!(text.to_lowercase().contains("not a directory"), "{text}");
        assert_eq!(engine.containers(), "");
    }
    // The command's own fault is a dyno's end.
    let mut dyno = Dyno::new(&engine, "d-none", "");
    dyno.request.argv = vec!["/bin/none".to_owned()];
    dyno.start(&mut client).await;
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(127)));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_terminal_that_was_found_again_takes_another_size() {
    let engine = Engine::start().await;
    let mut driver = Driver::start(&engine);
    let line = "until stty size | grep -q '^50 132$'; do sleep 0.05; done; exit 7";
    let mut dyno = Dyno::new(&engine, "d-size", line);
    dyno.request.tty = true;
    dyno.start(&mut driver.client().await).await;
    driver.replace();
    let mut client = driver.client().await;
    let terminal = Terminal::of(&mut client, &dyno).await;
    let size = Resize {
        rows: 50,
        columns: 132,
    };
    terminal.send(Event::Resize(size)).await;
    assert_eq!(dyno.wait(&mut client).await.how, Some(How::Code(7)));
    dyno.remove(&mut client).await;
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn an_image_that_is_gone_is_to_be_built_again() {
    let engine = Engine::start().await;
    let driver = Driver::start(&engine);
    let mut client = driver.client().await;
    let mut dyno = Dyno::new(&engine, "d-gone", "true");
    dyno.request.artifact = format!("image:sha256:{}", "0".repeat(64));
    let refused = client.start(dyno.request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().starts_with("artifact"), "{refused}");
    assert_eq!(engine.containers(), "");
}
