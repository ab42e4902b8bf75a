//! What the real one refuses is refused.

use super::*;

const MESSAGE: &str = "<190>1 2026-11-28T12:00:00.000000+00:00 h app web.1 - - one\n";

/// What this body is answered, with one thing of the request changed: what is not as `from`
/// says, `to` takes its place.
fn answered(dialect: Dialect, body: &str, from: &str, to: &str) -> u16 {
    let fake = FakeLogplex::start(dialect).unwrap();
    let head = format!(
        "POST /logs HTTP/1.1\r\nHost: h\r\nAuthorization: Basic {}\r\n\
         Content-Type: application/logplex-1\r\nLogplex-Msg-Count: 1\r\n\
         Logplex-Frame-Id: {}\r\nContent-Length: {}\r\n\r\n",
        base64(CREDENTIALS.as_bytes()),
        "0".repeat(32),
        body.len()
    );
    assert!(from.is_empty() || head.contains(from), "{from}");
    let mut stream = TcpStream::connect(fake.address).unwrap();
    write!(stream, "{}{body}", head.replacen(from, to, 1)).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(fake.messages().len(), usize::from(status == 204));
    status
}

#[test]
fn a_request_is_taken_whole_or_not_at_all() {
    let framed = |message: &str| format!("{} {message}", message.len());
    let good = framed(MESSAGE);
    let to_logplex = |from, to| answered(Dialect::Logplex, &good, from, to);
    assert_eq!(to_logplex("", ""), 204);
    for (from, to, status) in [
        ("POST", "GET", 405),
        ("/logs", "/drain", 404),
        ("Basic ", "Basic x", 401),
        ("logplex-1", "json", 415),
        ("Content-Length: ", "X: ", 411),
        ("Count: 1", "Count: 2", 400),
        ("Count: 1", "X: 1", 400),
        ("Frame-Id", "X", 400),
        ("Host: h", "Content-Encoding: gzip", 400),
    ] {
        assert_eq!(to_logplex(from, to), status, "{from}");
    }
    let body = |body: &str| answered(Dialect::Logplex, body, "", "");
    let of_length =
        |length: usize| framed(&(MESSAGE.to_owned() + &"x".repeat(length - MESSAGE.len())));
    assert_eq!(body(&of_length(MOST_BYTES)), 204);
    assert_eq!(body(&of_length(MOST_BYTES + 1)), 400, "too long");
    let short = good.replacen(
        &MESSAGE.len().to_string(),
        &(MESSAGE.len() + 1).to_string(),
        1,
    );
    assert_eq!(body(&short), 400, "longer than what came");
    assert_eq!(
        body(&framed(&MESSAGE.replace("- - ", "- "))),
        400,
        "one dash"
    );
    assert_eq!(
        body(&framed(&MESSAGE.replace("+00:00", "Z"))),
        400,
        "the time"
    );
    // A drain is sent one dash.
    let one = framed(&MESSAGE.replace("- - ", "- "));
    assert_eq!(answered(Dialect::Drain, &one, "", ""), 204);
    assert_eq!(answered(Dialect::Drain, &good, "", ""), 400);
}
