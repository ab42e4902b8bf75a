//! A stack that the engine does not have, from a registry of the test's own.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    thread,
};

use flate2::read::GzDecoder;
use hsup_driver_kit::{hex, proto::Release};
use sha2::{Digest as _, Sha256};

use super::{
    fixture::{Case, Content, archive, docker, me, noise, slug},
    labels,
};
use crate::images::{ImageError, prune::labelled};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(&Sha256::digest(bytes)))
}

/// Serves an image of one layer with these labels, whatever its name, until the process ends; gives
/// its host.
fn registry(layer: Vec<u8>, labels: &str) -> String {
    let mut tar = Vec::new();
    GzDecoder::new(&layer[..]).read_to_end(&mut tar).unwrap();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Labels":{labels}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest(&tar)
    );
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":{},"digest":"{}"}},"layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":{},"digest":"{}"}}]}}"#,
        config.len(),
        digest(config.as_bytes()),
        layer.len(),
        digest(&layer)
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            lines.find(String::is_empty);
            let (kind, content) = if request.contains("/manifests/") {
                (kind, manifest.as_bytes())
            } else if request.contains(&digest(&layer)) {
                ("application/octet-stream", &layer[..])
            } else if request.contains("/blobs/") {
                ("application/octet-stream", config.as_bytes())
            } else {
                ("application/json", &b"{}"[..])
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\n\
                 Docker-Distribution-Api-Version: registry/2.0\r\n\
                 Docker-Content-Digest: {}\r\nContent-Length: {}\r\n\r\n",
                digest(content),
                content.len()
            );
            let body = if request.starts_with("HEAD") {
                &[]
            } else {
                content
            };
            // Whoever has asked may be gone.
            drop(stream.write_all(&[head.as_bytes(), body].concat()));
        }
    });
    host
}

/// An image that was pulled, which goes with the test.
struct Pulled(String);

impl Drop for Pulled {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.0]);
    }
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn a_stack_that_is_not_there_is_pulled() {
    // What is made of it has to go first.
    let _pulled;
    let case = Case::new("pulled", &[]);
    let text = noise(3_000_000);
    let layer = archive(&[Content::File("etc/noise", 0o644, &text)]);
    let stack = format!("{}/my/stack:1", registry(layer, "{}"));
    let release = Release {
        app: case.app.clone(),
        stack: stack.clone(),
        ..Release::default()
    };
    let built = case.build(&release).await;
    let id = docker(&["image", "inspect", "--format", "{{.Id}}", &stack]);
    _pulled = Pulled(stack.clone());
    let artifact = built.unwrap();
    let label = "{{index .Config.Labels \"io.hsup.stack\"}}";
    let made_of = docker(&["image", "inspect", "--format", label, &artifact.image]);
    assert_eq!(made_of, id);
    assert!(case.said().contains(&format!("pulling the image {stack}")));
    let heard = case.listener.progress.lock().unwrap();
    assert!(
        heard
            .iter()
            .any(|(step, _, total)| step == "pull image" && *total > 1_000_000)
    );
}

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn an_image_that_says_it_is_anothers_is_not_kept() {
    let case = Case::new("claims", &[]);
    let labels = format!(
        r#"{{"{}":"{}","{}":"{}","{}":"{}"}}"#,
        labels::ROLE,
        labels::SLUG,
        labels::APP,
        case.app,
        labels::UID,
        me().0 + 1
    );
    let host = registry(slug(&[("app/evil", 0o755, "x")]), &labels);
    let release = Release {
        image: format!("{host}/hsup/{}:v1", case.app),
        ..Release::default()
    };
    let refused = case.build(&release).await.unwrap_err();
    assert!(matches!(refused, ImageError::Anothers(_)), "{refused}");
    // That user's Build would find it.
    let app = format!("{}={}", labels::APP, case.app);
    let images = labelled(&case.engine, &[app]).await.unwrap();
    assert!(images.is_empty(), "{images:?}");
}
