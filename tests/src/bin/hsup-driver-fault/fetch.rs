//! The slug, fetched as drivers that run slugs do, and refused as they say it.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Status;

/// Fetches what an `http://` URL gives.
pub(crate) async fn fetch(url: &str) -> Result<(), Status> {
    let unavailable = |why: &str| Status::unavailable(format!("failed to fetch the slug: {why}"));
    let answer = get(url).await;
    let answer = answer.map_err(|error| unavailable(&error.to_string()))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).unwrap_or_default();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    match status {
        "200" if length.is_some_and(|length| length != body.len().to_string()) => {
            Err(unavailable("it ended early"))
        }
        "200" => Ok(()),
        "401" | "403" | "404" | "410" => Err(Status::failed_precondition(format!(
            "slug_url is refused: HTTP {status}"
        ))),
        "" | "503" => Err(unavailable("there was no answer")),
        _ => Err(Status::data_loss("the slug's server answered nonsense")),
    }
}

async fn get(url: &str) -> io::Result<String> {
    let target = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'));
    let (host, path) = target.ok_or_else(|| io::Error::other("slug_url is not http://"))?;
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
