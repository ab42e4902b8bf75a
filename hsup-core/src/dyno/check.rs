//! Whether a web dyno says of itself that it is ready: an HTTP GET that an operator asked for.
//!
//! The answer's head is all that is read of it, and both its size and the time it may take are
//! bounded: a dyno is not trusted.

use std::{fmt, io, net::SocketAddr, str::FromStr, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Request, StatusCode, Uri,
    client::conn::http1,
    header::{CONNECTION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use super::connect::connect;

/// How long one GET may take, from the connection to the end of the answer's head.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long an answer's head may be.
const HEAD_MAX: usize = 16 * 1024;

/// What a web dyno is asked before it counts as ready: the path of a GET that is to be
/// answered with 2xx or 3xx.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpCheck {
    uri: Uri,
    /// Whom the dyno is asked as; `None`: its own address. Many apps answer for their hosts alone.
    host: Option<HeaderValue>,
}

/// The text is no check.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseHttpCheckError {
    /// It is no path.
    #[error("`{text}` is no path to ask for: use /PATH or http://HOST/PATH, or web=… of them")]
    Path {
        /// What was written.
        text: String,
    },
    /// No other type's port is known to anybody.
    #[error("`{process_type}` dynos are not asked: only web dynos are reached by HTTP")]
    NotWeb {
        /// What was written.
        process_type: String,
    },
}

/// A dyno that can be connected to did not say that it is ready.
#[derive(Debug, Error)]
pub(super) enum NotReady {
    #[error("it could not be connected to")]
    Unreachable(#[source] io::Error),

    #[error("{0}")]
    Answered(StatusCode),

    #[error("what it answered is no HTTP")]
    NotHttp(#[source] hyper::Error),

    #[error("no answer within {} seconds", ANSWER_WITHIN.as_secs())]
    Silent,
}

impl HttpCheck {
    /// Asks whoever listens at `address` once.
    pub(super) async fn ask(&self, address: SocketAddr) -> Result<(), NotReady> {
        let stream = timeout(ANSWER_WITHIN, connect(address)).await;
        let stream = stream
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(NotReady::Unreachable)?;
        match timeout(ANSWER_WITHIN, self.get(stream, address)).await {
            Ok(Ok(status)) if status.is_success() || status.is_redirection() => Ok(()),
            Ok(Ok(status)) => Err(NotReady::Answered(status)),
            Ok(Err(error)) => Err(NotReady::NotHttp(error)),
            Err(_) => Err(NotReady::Silent),
        }
    }

    async fn get(&self, stream: TcpStream, address: SocketAddr) -> hyper::Result<StatusCode> {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let mut request = Request::new(Empty::<Bytes>::new());
        request.uri_mut().clone_from(&self.uri);
        let headers = request.headers_mut();
        let host = self.host.clone();
        if let Some(host) = host.or_else(|| address.to_string().parse().ok()) {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, const { HeaderValue::from_static("hsup") });
        headers.insert(CONNECTION, const { HeaderValue::from_static("close") });
        let answer = sender.send_request(request);
        tokio::pin!(connection, answer);
        tokio::select! {
            biased;
            response = &mut answer => Ok(response?.status()),
            ended = &mut connection => {
                ended?;
                Ok(answer.await?.status())
            }
        }
    }
}

/// What is no check may be a URL with a password or a token.
fn without_secrets(text: &str) -> String {
    let (before_query, query) = match text.split_once('?') {
        Some((before, _)) => (before, "?…"),
        None => (text, ""),
    };
    match before_query.rsplit_once('@') {
        Some((_, place)) => format!("…@{place}{query}"),
        None => format!("{before_query}{query}"),
    }
}

impl FromStr for HttpCheck {
    type Err = ParseHttpCheckError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (process_type, path) = match text.split_once('=') {
            Some((name, path)) if !name.contains('/') => (name, path),
            _ => ("web", text),
        };
        let explain = || ParseHttpCheckError::Path {
            text: without_secrets(text),
        };
        let uri: Uri = path.parse().map_err(|_| explain())?;
        // Other schemes ask for what a dyno does not speak; a name and password are no host.
        let host = match (uri.scheme_str(), uri.authority()) {
            (None, None) if path.starts_with('/') => None,
            (Some("http"), Some(host)) if !host.as_str().contains('@') => {
                Some(host.as_str().parse().map_err(|_| explain())?)
            }
            _ => return Err(explain()),
        };
        if process_type != "web" {
            let process_type = process_type.to_owned();
            return Err(ParseHttpCheckError::NotWeb { process_type });
        }
        let uri = uri
            .path_and_query()
            .map_or_else(Uri::default, |path| path.clone().into());
        Ok(Self { uri, host })
    }
}

impl fmt::Display for HttpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_ref().and_then(|host| host.to_str().ok());
        let scheme = if host.is_some() { "http://" } else { "" };
        let host = host.unwrap_or_default();
        write!(f, "GET {scheme}{host}{}", self.uri.path())
    }
}

/// A query may hold a token.
impl fmt::Debug for HttpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::errors::chain;

    /// What comes of a server that answers with these bytes, and what it was asked.
    async fn asked(check: &str, answer: Vec<u8>) -> (Result<(), NotReady>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            // Who has read enough closes.
            drop(stream.write_all(&answer).await);
            (stream, request)
        });
        let check: HttpCheck = check.parse().unwrap();
        let result = check.ask(address).await;
        let (_, request) = server.await.unwrap();
        (result, String::from_utf8(request).unwrap())
    }

    #[test_case("200 OK" => None)]
    #[test_case("204 No Content" => None)]
    #[test_case("302 Found" => None)]
    #[test_case("404 Not Found" => Some("404 Not Found".to_owned()))]
    #[test_case("503 Service Unavailable" => Some("503 Service Unavailable".to_owned()))]
    #[tokio::test]
    async fn an_answer_of(status: &str) -> Option<String> {
        // The body does not come, and is not waited for.
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: 10\r\n\r\n");
        let (result, request) = asked("web=/health?deep", head.into_bytes()).await;
        assert!(
            request.starts_with("GET /health?deep HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.to_ascii_lowercase().contains("host: 127.0.0.1:"),
            "{request}"
        );
        result.err().map(|error| chain(&error))
    }

    #[test_case("http://u:hunter2@h/x", "`…@h/x`")]
    #[test_case("web=https://u:hunter2@h/x?a=b", "`…@h/x?…`")]
    #[test_case("https://h/x?token=hunter2", "`https://h/x?…`")]
    fn what_is_no_check_is_shown_without_its_secrets(text: &str, shown: &str) {
        let error = text.parse::<HttpCheck>().unwrap_err().to_string();
        assert!(error.contains(shown), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn a_dyno_is_asked_as_the_host_that_is_named() {
        let check = "web=http://shop.example:8080/health?a=b";
        let (result, request) = asked(check, b"HTTP/1.1 200 OK\r\n\r\n".to_vec()).await;
        result.unwrap();
        let request = request.to_ascii_lowercase();
        assert!(
            request.starts_with("get /health?a=b http/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.contains("\r\nhost: shop.example:8080\r\n"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_no_answer() {
        let mut endless = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        endless.resize(1 << 20, b'x');
        let (result, _) = asked("/", endless).await;
        assert!(matches!(result, Err(NotReady::NotHttp(_))), "{result:?}");
        let (result, _) = asked("/", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()).await;
        assert!(matches!(result, Err(NotReady::NotHttp(_))), "{result:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_answer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let check: HttpCheck = "/".parse().unwrap();
        let result = check.ask(listener.local_addr().unwrap()).await;
        assert!(matches!(result, Err(NotReady::Silent)), "{result:?}");
    }

    #[test]
    fn a_check_is_a_path_of_a_web() {
        for good in [
            "/",
            "/health",
            "web=/health",
            "/a?b=c",
            "http://host",
            "http://host/x?a=b",
            "web=http://host:80/x",
        ] {
            assert!(good.parse::<HttpCheck>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "health",
            "web=health",
            "web=",
            "https://host/x",
            "http:///x",
            "http://user:hunter2@host/x",
            "host/x",
            "/a b",
            "/\r\nX: y",
        ] {
            assert!(bad.parse::<HttpCheck>().is_err(), "{bad}");
        }
        let error = "worker=/x".parse::<HttpCheck>().unwrap_err();
        assert!(error.to_string().contains("only web dynos"), "{error}");
        let check: HttpCheck = "/health?token=hunter2".parse().unwrap();
        assert_eq!(format!("{check} {check:?}"), "GET /health GET /health");
        let check: HttpCheck = "http://host/health?token=hunter2".parse().unwrap();
        assert_eq!(check.to_string(), "GET http://host/health");
    }
}
