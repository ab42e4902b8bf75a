//! `--durable`, where it differs; the rest is the conformance suite's.

use std::fs;

use hsup_proto::driver::ListRequest;
use nix::unistd::geteuid;
use tonic::Code;

use crate::fixture::Driver;

#[tokio::test]
async fn a_folder_that_is_there_already_is_left_alone() {
    // Never executed: the start ends before that.
    let driver = Driver::after("touch hsup-shim; export PATH=$PWD:$PATH", &["--durable"]);
    let client = driver.connect().await.client();
    // It is answered once the driver has its folder, and has looked at what is in there.
    client.clone().list(ListRequest::default()).await.unwrap();
    let folder = driver.dir.path().join(format!("drv.dynos/{}.d", geteuid()));
    let precious = folder.join("precious");
    fs::create_dir(&folder).unwrap();
    fs::create_dir(&precious).unwrap();
    let (request, _output) = driver.dyno("d", "exit 0");
    let error = client.clone().start(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error}");
    let place = folder.display().to_string();
    assert!(error.message().contains(&place), "{error}");
    assert!(precious.is_dir());
}
