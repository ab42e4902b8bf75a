//! The slug, fetched as drivers that run slugs do, and refused as they say it.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Status;

use crate::script::broken;

/// Fetches what an `http://` URL gives.
pub(crate) async fn fetch(url: &str) -> Result<(), Status> {
    let answer = get(url).await.map_err(|error| broken(&error))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    match status {
        "200" => Ok(()),
        "401" | "403" | "404" | "410" => Err(Status::failed_precondition(format!(
            "slug_url is refused: HTTP {status}"
        ))),
        _ => Err(Status::data_loss("the slug's server answered nonsense")),
    }
}

async fn get(url: &str) -> io::Result<String> {
    let target = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'));
    let (host, path) = target.ok_or_else(|| io::Error::other("slug_url is not http://"))?;
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; 64];
    let length = stream.read(&mut head).await?;
    Ok(String::from_utf8_lossy(&head[..length]).into_owned())
}
