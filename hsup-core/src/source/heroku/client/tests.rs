use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use super::*;

/// A server that answers each connection with the next of these texts, and then hangs up.
fn server(answers: Vec<String>) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            read_request(&stream);
            // A client that has read enough hangs up.
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    Client::new(&Access::new(&url, "hunter2")).unwrap()
}

fn read_request(mut stream: &TcpStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
        request.push(byte[0]);
    }
    String::from_utf8(request).unwrap()
}

fn answer(head: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

async fn get(client: &Client) -> Result<serde_json::Value, ApiError> {
    client.get("it".to_owned(), &["apps", "shop"]).await
}

async fn problem_with(answers: Vec<String>) -> String {
    let error = get(&server(answers)).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("hunter2"), "{text}");
    error.to_string()
}

#[tokio::test]
async fn a_refusal_is_told_with_its_request_and_without_the_token() {
    let head = "403 Forbidden\r\nRequest-Id: 47-11\r\nRateLimit-Remaining: 17";
    let body = r#"{"id":"forbidden","message":"hunter2 may not"}"#;
    let client = server(vec![answer(head, body)]);
    let error = get(&client).await.unwrap_err().to_string();
    let expected = "HTTP 403: forbidden: … may not (request 47-11); the token has not the rights";
    assert!(error.contains(expected), "{error}");
    assert_eq!(client.remaining(), Some(17));
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n";
    let endless = format!("{head}{}", " ".repeat(MAX_BODY + 1));
    let problem = problem_with(vec![endless]).await;
    assert!(problem.contains("more than 4194304 bytes"), "{problem}");
}

#[tokio::test]
async fn json_that_is_cut_short_is_told_without_its_text() {
    for (body, expected) in [
        (
            r#"{"SECRET":"hunter2"#,
            "it is cut short, at line 1 column 18",
        ),
        (
            r#"{"SECRET":hunter2}"#,
            "it is no JSON, at line 1 column 11",
        ),
    ] {
        let problem = problem_with(vec![answer("200 OK", body)]).await;
        assert!(problem.contains(expected), "{problem}");
    }
    let client = server(vec![answer("200 OK", r#"{"a":["hunter2"]}"#)]);
    let answer = client.get::<super::super::model::ConfigVars>("it".to_owned(), &[]);
    let error = answer.await.unwrap_err();
    assert!(error.to_string().contains("not of the kind"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_body_that_ends_early_is_a_failure_that_may_pass() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{\"id\":".to_owned();
    let error = get(&server(vec![cut])).await.unwrap_err();
    assert!(matches!(error, ApiError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_wrong_with_an_answer_is_told_with_its_request() {
    let head = "HTTP/1.1 200 OK\r\nRequest-Id: 47-11\r\n";
    for answer in [
        format!("{head}Content-Length: 2\r\n\r\n[x"),
        format!("{head}Content-Length: 100\r\n\r\n["),
        format!(
            "{head}Content-Length: 10000000000\r\n\r\n{}",
            " ".repeat(MAX_BODY + 1)
        ),
    ] {
        let problem = problem_with(vec![answer]).await;
        assert!(problem.ends_with("(request 47-11)"), "{problem}");
    }
}

#[tokio::test]
async fn the_token_goes_to_no_other_host_and_round_in_no_circle() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let address = elsewhere.local_addr().unwrap();
    let head = format!("302 Found\r\nLocation: http://{address}/steal");
    let problem = problem_with(vec![answer(&head, "")]).await;
    assert!(problem.contains("sends on to another place"), "{problem}");
    assert!(problem.contains("nowhere else (request "), "{problem}");
    assert!(elsewhere.accept().is_err(), "nobody came");

    let head = "302 Found\r\nLocation: /apps/shop";
    let problem = problem_with(vec![answer(head, ""); REDIRECTS + 2]).await;
    assert!(problem.contains("sends on to another place"), "{problem}");
    let moved = vec![answer(head, ""), answer("200 OK", "1")];
    assert_eq!(get(&server(moved)).await.unwrap(), 1, "within it may");
}

#[tokio::test]
async fn an_answer_that_never_comes_is_late() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut client = Client::new(&Access::new(&url, "hunter2")).unwrap();
    client.answer_within = Duration::from_millis(10);
    let error = get(&client).await.unwrap_err();
    assert!(matches!(error, ApiError::Late { .. }), "{error:?}");
}

#[tokio::test]
async fn a_request_without_an_answer_is_told_by_the_name_that_it_was_sent_with() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (heard, asked) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let head = read_request(&stream);
            let mut lines = head.lines();
            let id = lines.find_map(|line| line.strip_prefix("request-id: "));
            heard.send(id.unwrap().to_owned()).unwrap();
        }
    });
    let client = Client::new(&Access::new(&url, "hunter2")).unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let error = get(&client).await.unwrap_err().to_string();
        let id = asked.recv().unwrap();
        assert!(error.ends_with(&format!("(request {id})")), "{error}");
        let parts: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{id}");
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);

    // Nobody takes this one's connections.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut client = Client::new(&Access::new(&url, "hunter2")).unwrap();
    client.answer_within = Duration::from_millis(10);
    let error = get(&client).await.unwrap_err();
    assert!(matches!(error, ApiError::Late { .. }), "{error:?}");
    assert!(error.to_string().contains(" (request "), "{error}");
    // Where nobody was reached nobody knows of it.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let url = format!("http://{}", closed.unwrap());
    let client = Client::new(&Access::new(&url, "hunter2")).unwrap();
    let error = get(&client).await.unwrap_err().to_string();
    assert!(!error.contains("(request "), "{error}");
}

#[tokio::test]
async fn how_many_requests_are_left_is_known_by_the_last_answer_that_told_it() {
    let told = |requests| format!("200 OK\r\nRateLimit-Remaining: {requests}");
    let client = server(vec![
        answer("200 OK", "1"),
        answer(&told(17), "1"),
        answer("503 Service Unavailable", ""),
        answer("304 Not Modified", ""),
        answer(&told(4000), "1"),
    ]);
    for expected in [None, Some(17), Some(17), Some(17), Some(4000)] {
        drop(get(&client).await);
        assert_eq!(client.remaining(), expected);
    }
}

/// A server with a certificate that nobody has signed but itself.
fn self_signed() -> (String, thread::JoinHandle<Option<u8>>) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

    const PEM: &[u8] = include_bytes!("self_signed.pem");
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(PEM).unwrap()],
            PrivateKeyDer::from_pem_slice(PEM).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let heard = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(config.into()).unwrap();
        // The first byte that a client says to somebody whom it trusts.
        let mut byte = [0];
        let read = rustls::Stream::new(&mut tls, &mut stream).read(&mut byte);
        read.is_ok_and(|length| length > 0).then(|| byte[0])
    });
    (url, heard)
}

#[tokio::test]
async fn a_certificate_that_does_not_verify_is_told_nothing() {
    let (url, heard) = self_signed();
    let client = Client::new(&Access::new(&url, "hunter2")).unwrap();
    let error = get(&client).await.unwrap_err();
    assert!(matches!(error, ApiError::Untrusted { .. }), "{error:?}");
    let error = error.to_string();
    assert!(
        error.contains("which this machine does not trust: "),
        "{error}"
    );
    assert!(error.contains(": invalid peer certificate: "), "{error}");
    assert!(
        error.ends_with("; SSL_CERT_FILE names whom it trusts"),
        "{error}"
    );
    drop(client);
    assert_eq!(heard.join().unwrap(), None);
}
