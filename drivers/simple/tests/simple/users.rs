//! More than one user: who trusts whom, and whose dynos are whose. All of it needs root.

use std::{
    fs::{self, Permissions},
    os::unix::{self, fs::PermissionsExt as _},
};

use hsup_driver_kit::client::{Client, ConnectError, Connection};
use hsup_proto::driver::{ListRequest, StartRequest, State, WaitRequest};
use tonic::Code;

use crate::fixture::{
    Driver, NOBODY, Output, connect_as_stranger, how, over, signalled, stop, wait,
};

/// A driver of root's that serves nobody, too; a client of root's, and one of nobody's.
async fn shared() -> (Driver, Client, Client) {
    let driver = Driver::with_args(&["--allow-uid", &NOBODY.to_string()]);
    let roots = driver.connect().await.client();
    // Open the way that the modes of files would bar.
    fs::set_permissions(driver.dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(driver.socket(), Permissions::from_mode(0o666)).unwrap();
    let stream = connect_as_stranger(&driver.socket());
    let nobodys = over(stream).await.client();
    (driver, roots, nobodys)
}

/// A dyno whose folder and FIFOs are nobody's.
fn nobodys_dyno(driver: &Driver, folder: &str) -> (StartRequest, Output) {
    let (request, output) = driver.dyno(folder, "exec sleep 60");
    for name in ["", "stdout", "stderr"] {
        let path = driver.dir.path().join(folder).join(name);
        unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    (request, output)
}

async fn running(client: &Client) -> Vec<String> {
    let list = client.clone().list(ListRequest::default()).await.unwrap();
    let dynos = list.into_inner().dynos.into_iter();
    dynos
        .filter(|dyno| dyno.state() == State::Running)
        .map(|dyno| dyno.app)
        .collect()
}

#[tokio::test]
#[ignore = "acts as another user: needs root"]
async fn a_driver_of_a_third_user_is_not_trusted() {
    let driver = Driver::of_nobody(&[]);
    driver.connect_to_stranger().await;
    match Connection::open(&driver.socket()).await {
        Err(error @ ConnectError::Stranger { uid: NOBODY, .. }) => {
            assert!(error.to_string().contains("config vars"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
#[ignore = "acts as another user: needs root"]
async fn the_same_id_of_two_users_is_two_dynos() {
    let (driver, roots, nobodys) = shared().await;
    let (mut request, _output) = driver.dyno("root", "exec sleep 60");
    request.dyno_id = "a".into();
    request.app = "roots".into();
    roots.clone().start(request).await.unwrap();
    assert_eq!(running(&nobodys).await, [""; 0]);
    let unknown = WaitRequest {
        dyno_id: "a".into(),
        timeout_ms: 1,
    };
    let status = nobodys.clone().wait(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    nobodys.clone().stop(stop("a", 0)).await.unwrap();

    let (mut request, _output) = nobodys_dyno(&driver, "nobody");
    request.dyno_id = "a".into();
    request.app = "nobodys".into();
    nobodys.clone().start(request).await.unwrap();
    assert_eq!(running(&roots).await, ["roots"]);
    assert_eq!(running(&nobodys).await, ["nobodys"]);
    nobodys.clone().stop(stop("a", 0)).await.unwrap();
    assert_eq!(how(&wait(&nobodys, "a").await), signalled("SIGTERM"));
    assert_eq!(running(&roots).await, ["roots"]);
}

#[tokio::test]
#[ignore = "acts as another user: needs root"]
async fn the_fifos_of_another_user_are_not_opened() {
    let (driver, _roots, nobodys) = shared().await;
    let (request, _output) = driver.dyno("root", "exec sleep 60");
    let status = nobodys.clone().start(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let (request, _output) = nobodys_dyno(&driver, "nobody");
    unix::fs::chown(driver.dir.path().join("nobody/stderr"), Some(0), Some(0)).unwrap();
    let status = nobodys.clone().start(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert_eq!(running(&nobodys).await, [""; 0]);
}
