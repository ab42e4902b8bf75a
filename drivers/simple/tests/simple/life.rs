//! Build, Start, Wait, `IPInfo`, List, Remove: a dyno's life.

use hsup_driver_kit::open_files;
use hsup_proto::driver::{
    GetInfoRequest, IpInfoRequest, ListRequest, Release, RemoveRequest, SignalRequest, State,
    StatsRequest, exit_status::How, remove_request::What,
};
use tokio::task::JoinSet;
use tonic::Code;

use crate::fixture::{Driver, build, how, signalled, wait};

#[tokio::test]
async fn every_kind_of_exit_is_told() {
    let driver = Driver::new();
    let connection = driver.connect().await;
    let client = connection.client();
    let cases = [
        ("zero", "exit 0", How::Code(0)),
        ("seven", "exit 7", How::Code(7)),
        ("high", "exit 255", How::Code(255)),
        ("killed", "kill -KILL $$", signalled("SIGKILL")),
        ("termed", "kill -TERM $$", signalled("SIGTERM")),
    ];
    for (id, line, expected) in cases {
        let (request, _output) = driver.dyno(id, line);
        client.clone().start(request).await.unwrap();
        assert_eq!(how(&wait(&client, id).await), expected, "{line}");
    }
    let (mut missing, _output) = driver.dyno("missing", "");
    missing.argv = vec!["no-such-command".into()];
    client.clone().start(missing).await.unwrap();
    assert_eq!(how(&wait(&client, "missing").await), How::Code(127));
    let (mut directory, _output) = driver.dyno("directory", "");
    directory.argv = vec!["/".into()];
    client.clone().start(directory).await.unwrap();
    assert_eq!(how(&wait(&client, "directory").await), How::Code(126));
}

#[tokio::test]
async fn who_asks_while_many_start_does_not_wait_for_all_of_them() {
    const MANY: usize = 300;
    // Two FIFOs each, beside those of the other tests.
    open_files::raise().unwrap();
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let mut starts = JoinSet::new();
    let mut outputs = Vec::new();
    for number in 0..MANY {
        let (request, output) = driver.dyno(&format!("d{number}"), "exec sleep 1000");
        outputs.push(output);
        let mut client = client.clone();
        starts.spawn(async move { client.start(request).await });
    }
    starts.join_next().await.unwrap().unwrap().unwrap();
    let list = client.clone().list(ListRequest::default()).await.unwrap();
    let dynos = list.into_inner().dynos;
    let starting = dynos.iter().filter(|dyno| dyno.state() == State::Starting);
    assert!(starting.count() > 0, "none of {} was starting", dynos.len());
    for started in starts.join_all().await {
        started.unwrap();
    }
}

#[tokio::test]
async fn a_release_runs_in_its_directory_or_where_the_driver_was_started() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let release = |url: &str, image: &str| Release {
        slug_url: url.into(),
        image: image.into(),
        ..Default::default()
    };
    let here = format!(
        "dir:{}",
        driver.dir.path().canonicalize().unwrap().display()
    );
    let archive = release("https://store/slug.tgz?X-Signature=hunter2", "");
    assert_eq!(build(&client, archive).await.unwrap(), here);
    assert_eq!(build(&client, release("", "")).await.unwrap(), here);

    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().to_str().unwrap();
    let artifact = build(&client, release(&format!("file://{path}/"), ""))
        .await
        .unwrap();
    let (mut request, mut output) = driver.dyno("a", "pwd");
    request.artifact = artifact;
    client.clone().start(request).await.unwrap();
    assert_eq!(output.line().await, path);

    let missing = release("file:///no/such/directory/", "");
    let status = build(&client, missing).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("/no/such/directory"), "{status}");
    let status = build(&client, release("", "alpine")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("docker"), "{status}");
}

#[tokio::test]
async fn a_dyno_is_seen_until_it_is_removed() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    let (request, mut output) = driver.dyno("a", "echo $$; exec sleep 60");
    client.start(request.clone()).await.unwrap();
    client.start(request.clone()).await.unwrap();
    let other = hsup_proto::driver::StartRequest {
        release: 2,
        ..request
    };
    let status = client.start(other).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);

    let id = || "a".to_owned();
    let ip = client
        .ip_info(IpInfoRequest { dyno_id: id() })
        .await
        .unwrap();
    assert_eq!(
        (ip.get_ref().ip.as_str(), ip.get_ref().port),
        ("127.0.0.1", 5000)
    );
    output.pid().await;
    let stats = client.stats(StatsRequest { dyno_id: id() }).await.unwrap();
    assert!(stats.get_ref().at_unix_ms > 0, "{stats:?}");
    let remove = || RemoveRequest {
        what: Some(What::DynoId(id())),
    };
    let status = client.remove(remove()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);

    let signal = SignalRequest {
        dyno_id: id(),
        signal: "SIGUSR1".into(),
    };
    client.signal(signal).await.unwrap();
    assert_eq!(how(&wait(&client, "a").await), signalled("SIGUSR1"));
    let list = client
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.dynos.len(), 1);
    assert_eq!(list.dynos[0].state(), State::Exited);
    let of_another = ListRequest {
        supervisor_id: "another".into(),
    };
    let list = client.list(of_another).await.unwrap().into_inner();
    assert_eq!(list.dynos, []);
    let status = client
        .ip_info(IpInfoRequest { dyno_id: id() })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    client.remove(remove()).await.unwrap();
    client.remove(remove()).await.unwrap();
    let status = client
        .ip_info(IpInfoRequest { dyno_id: id() })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn an_unknown_artifact_is_said_to_be_one() {
    let driver = Driver::new();
    let mut client = driver.connect().await.client();
    let (mut request, _output) = driver.dyno("a", "true");
    request.artifact = "dir:/no/such/directory".into();
    let status = client.start(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().starts_with("artifact"), "{status}");
    let list = client.list(ListRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().dynos, []);
    // What another test's killed driver left, any other buries.
    let log = driver.log();
    let own: Vec<_> = log
        .lines()
        .filter(|line| !line.contains("buried a dead driver's cgroups"))
        .collect();
    let expected = "hsup-driver-simple: a dyno could not be started dyno_id=a code=NotFound";
    assert_eq!(own, [expected]);
}

#[tokio::test]
async fn three_hundred_dynos_start_at_once() {
    let driver = Driver::new();
    let client = driver.connect().await.client();
    let mut outputs = Vec::new();
    let mut starts = tokio::task::JoinSet::new();
    for number in 0..300 {
        let (request, output) = driver.dyno(&format!("dyno-{number}"), "exec sleep 60");
        outputs.push(output);
        let mut client = client.clone();
        starts.spawn(async move { client.start(request).await.map(drop) });
    }
    while let Some(started) = starts.join_next().await {
        started.unwrap().unwrap();
    }
    let list = client.clone().list(ListRequest::default()).await.unwrap();
    let running = list.into_inner().dynos;
    assert_eq!(running.len(), 300);
    assert!(running.iter().all(|dyno| dyno.state() == State::Running));
}

#[tokio::test]
async fn the_driver_says_what_it_is() {
    let driver = Driver::new();
    let connection = driver.connect().await;
    assert_eq!(connection.pid(), Some(driver.pid().as_raw()));
    let info = connection
        .client()
        .get_info(GetInfoRequest::default())
        .await
        .unwrap();
    let info = info.into_inner();
    assert_eq!((info.name.as_str(), info.ready), ("simple", true));
    assert_eq!(info.instance_id.len(), 32);
}
