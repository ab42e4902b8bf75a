//! Downloads from servers that break, hang, refuse and lie.

use std::{io::Write as _, net::TcpStream, time::Duration};

use hsup_slug::{Program, Silent, SlugError, Step, Stream};
use test_case::test_case;

use crate::{
    archive::{big, checksum, noise, small},
    server::{Request, Server, reset, serve, status},
    support::{Env, fetch, me, program, shown, tree},
};

/// All of a download, and nothing else done with it.
async fn download(program: &Program, url: String) -> Result<Vec<u8>, SlugError> {
    let mut user = me();
    if user.uid == 0 {
        (user.uid, user.gid) = (crate::support::UNPACKER, crate::support::UNPACKER);
    }
    let fetch = fetch(url);
    let mut stream = Stream::open(program, &fetch, user, 100 << 20, Step::Fetch).await?;
    let mut all = Vec::new();
    while let Some(bytes) = stream.chunk(&Silent).await? {
        all.extend_from_slice(bytes);
    }
    assert_eq!(stream.id(), Some(checksum(&all)));
    Ok(all)
}

fn cut(
    stream: &mut TcpStream,
    request: &Request,
    body: &[u8],
    headers: &str,
) -> std::io::Result<()> {
    serve(stream, request, body, headers, 300_000)
}

#[tokio::test]
async fn a_slug_is_downloaded_and_told_of() {
    let body = big(700_000);
    let served = body.clone();
    let server =
        Server::new(move |_, request, stream| serve(stream, request, &served, "", usize::MAX));
    let env = Env::new();
    let id = env.add(&fetch(server.url())).await.unwrap();
    assert_eq!(id, checksum(&body));
    let (step, done, total) = *env
        .said
        .bytes
        .lock()
        .unwrap()
        .iter()
        .rfind(|(step, ..)| *step == Step::Fetch)
        .unwrap();
    assert_eq!(
        (step, done, total),
        (Step::Fetch, body.len() as u64, body.len() as u64)
    );
}

#[test_case("etag: \"1\"\r\n", "\"1\""; "by its tag")]
#[test_case("last-modified: Sat, 28 Nov 2026 06:00:00 GMT\r\n", "Sat, 28 Nov 2026 06:00:00 GMT"; "by its time")]
#[tokio::test]
async fn a_broken_download_goes_on(headers: &'static str, validator: &str) {
    let body = noise(1_000_000);
    let served = body.clone();
    let server = Server::new(move |_, request, stream| cut(stream, request, &served, headers));
    assert!(download(&program(), server.url()).await.unwrap() == body);
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    assert_eq!(requests[0].range, None);
    for request in &requests[1..] {
        assert!(request.range > Some(0));
        assert_eq!(request.if_range.as_deref(), Some(validator));
    }
}

#[tokio::test]
async fn a_way_on_which_everything_goes_wrong_brings_all_of_it() {
    let body = noise(1_000_000);
    let served = body.clone();
    let tag = "etag: \"1\"\r\n";
    let server = Server::new(move |number, request, stream| match number {
        0 => {
            cut(stream, request, &served, tag)?;
            reset(stream)
        }
        1 => status(stream, 503, ""),
        2 => {
            std::thread::sleep(Duration::from_millis(30));
            cut(stream, request, &served, tag)
        }
        3 => reset(stream),
        4 => status(stream, 502, ""),
        _ => serve(stream, request, &served, tag, usize::MAX),
    });
    assert!(download(&program(), server.url()).await.unwrap() == body);
    let ranges: Vec<_> = server.requests().iter().map(|it| it.range).collect();
    assert_eq!(ranges.len(), 6);
    // A reset takes with it what was not read yet.
    assert!(
        ranges[2] <= Some(300_000) && ranges[3] > ranges[2],
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_server_without_ranges_is_asked_for_all_of_it() {
    let body = noise(1_000_000);
    let served = body.clone();
    let server = Server::new(move |number, request, stream| {
        let whole = Request {
            range: None,
            ..request.clone()
        };
        let sent = if number == 0 { 300_000 } else { usize::MAX };
        serve(stream, &whole, &served, "etag: \"1\"\r\n", sent)
    });
    assert!(download(&program(), server.url()).await.unwrap() == body);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn another_file_is_not_appended_to_the_first() {
    let server = Server::new(move |number, request, stream| {
        let mut body = noise(1_000_000);
        body[7] = u8::try_from(number).unwrap();
        let whole = Request {
            range: None,
            ..request.clone()
        };
        cut(stream, &whole, &body, "")
    });
    let error = download(&program(), server.url()).await.unwrap_err();
    assert!(matches!(error, SlugError::Changed { .. }), "{error}");
}

#[tokio::test]
async fn a_part_from_another_place_is_not_taken() {
    let body = noise(1_000_000);
    let served = body.clone();
    let server = Server::new(move |number, request, stream| match number {
        0 => cut(stream, request, &served, "etag: \"1\"\r\n"),
        1 => {
            let elsewhere = Request {
                range: Some(5),
                ..request.clone()
            };
            serve(stream, &elsewhere, &served, "etag: \"1\"\r\n", usize::MAX)
        }
        _ => {
            assert_eq!(request.range, None);
            serve(stream, request, &served, "", usize::MAX)
        }
    });
    assert!(download(&program(), server.url()).await.unwrap() == body);
    assert_eq!(server.requests().len(), 3);
}

#[test_case(401)]
#[test_case(403)]
#[test_case(404)]
#[test_case(410)]
#[tokio::test]
async fn a_url_that_is_not_good_any_more(code: u16) {
    let server = Server::new(move |_, _, stream| status(stream, code, ""));
    let error = download(&program(), server.url()).await.unwrap_err();
    assert!(error.wants_fresh_url(), "{error}");
    assert_eq!(server.requests().len(), 1, "it is not tried again");
    let text = error.to_string();
    assert!(
        text.contains(&server.host) && text.contains(&code.to_string()),
        "{text}"
    );
    assert!(
        !text.contains("SECRET") && !text.contains("slug.tgz"),
        "{text}"
    );
}

#[tokio::test]
async fn a_url_that_expires_in_the_middle() {
    let body = noise(1_000_000);
    let server = Server::new(move |number, request, stream| match number {
        0 => cut(stream, request, &body, "etag: \"1\"\r\n"),
        _ => status(stream, 403, ""),
    });
    let error = download(&program(), server.url()).await.unwrap_err();
    assert!(error.wants_fresh_url(), "{error}");
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again() {
    let body = small();
    let served = body.clone();
    let server = Server::new(move |number, request, stream| match number {
        0 => status(stream, 503, "retry-after: 0\r\n"),
        1 => status(stream, 429, ""),
        _ => serve(stream, request, &served, "", usize::MAX),
    });
    assert!(download(&program(), server.url()).await.unwrap() == body);
}

#[tokio::test]
async fn a_server_that_is_ill_is_given_up() {
    let server = Server::new(move |_, _, stream| status(stream, 500, ""));
    let error = download(&program(), server.url()).await.unwrap_err();
    assert!(error.is_network() && !error.wants_fresh_url(), "{error}");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn nobody_listens() {
    let server = Server::new(|_, _, _| Ok(()));
    // Port 1 of the loopback interface is nobody's.
    let error = download(&program(), "http://127.0.0.1:1/?SECRET".to_owned())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SlugError::Network { host, tries: 3, .. } if host == "127.0.0.1:1"),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
    // One that hangs up says nothing, either.
    let error = download(&program(), server.url()).await.unwrap_err();
    assert!(matches!(error, SlugError::Network { .. }), "{error}");
    assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
}

#[test_case(false; "before the answer")]
#[test_case(true; "in the middle")]
#[tokio::test]
async fn a_server_that_says_nothing_any_more(begins: bool) {
    let server = Server::new(move |_, request, stream| {
        if begins {
            serve(stream, request, &noise(1_000), "", 10)?;
            stream.flush()?;
        }
        std::thread::park();
        Ok(())
    });
    let mut fetch = fetch(server.url());
    fetch.patience.stall = Duration::from_millis(200);
    let env = Env::new();
    let error = env.add(&fetch).await.unwrap_err();
    assert!(matches!(error, SlugError::Stalled { .. }), "{error:?}");
    assert!(error.to_string().contains(&server.host));
    assert_eq!(env.names("staging"), Vec::<String>::new());
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever() {
    let server = Server::new(move |_, request, stream| match request.path.as_str() {
        "/slug.tgz?signature=SECRET" => status(stream, 302, "location: /there\r\n"),
        "/there" => serve(stream, request, &small(), "", usize::MAX),
        _ => status(stream, 302, "location: /round?SECRET\r\n"),
    });
    assert!(download(&program(), server.url()).await.unwrap() == small());
    let url = format!("http://{}/round?SECRET", server.host);
    let error = download(&program(), url).await.unwrap_err();
    assert!(matches!(error, SlugError::Redirect { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains("SECRET"));
}

#[tokio::test]
async fn more_than_a_slug_may_be_is_not_fetched() {
    let server = Server::new(move |_, request, stream| {
        if request.path == "/unknown" {
            // Its length is not told.
            write!(stream, "HTTP/1.1 200 x\r\nconnection: close\r\n\r\n")?;
            return stream.write_all(&noise(200_000));
        }
        serve(stream, request, &noise(200_000), "", usize::MAX)
    });
    let mut settings = crate::support::settings();
    settings.limits.max_download = 100_000;
    let env = Env::with(settings);
    for url in [server.url(), format!("http://{}/unknown", server.host)] {
        let text = shown(env.add(&fetch(url)).await);
        assert!(text.contains("100000 bytes, compressed"), "{text}");
    }
    env.assert_empty();
}

#[tokio::test]
async fn a_wrong_checksum_is_r17() {
    let body = small();
    let actual = checksum(&body);
    let server =
        Server::new(move |_, request, stream| serve(stream, request, &body, "", usize::MAX));
    let env = Env::new();
    let expected = checksum(b"another");
    let mut fetch = fetch(server.url());
    fetch.checksum = Some(expected);
    assert_eq!(
        shown(env.add(&fetch).await),
        format!(
            "Checksum does match expected value. Expected: SHA256:{expected} Actual: SHA256:{actual}"
        )
    );
    env.assert_empty();
    fetch.checksum = Some(actual);
    let id = env.add(&fetch).await.unwrap();
    assert_eq!(id, actual);
    let slug = env.store.get(me().uid, &id).unwrap().unwrap();
    assert_eq!(
        tree(&slug.path),
        [("Procfile".to_owned(), "web: true\n".to_owned())]
    );
}

#[tokio::test]
async fn garbage_with_a_checksum_is_r17_too() {
    let server = Server::new(move |_, request, stream| {
        serve(stream, request, &noise(3_000_000), "", usize::MAX)
    });
    let env = Env::new();
    let mut fetch = fetch(server.url());
    fetch.checksum = Some(checksum(b"another"));
    let error = env.add(&fetch).await.unwrap_err();
    assert!(
        matches!(error, SlugError::Checksum { actual, .. } if actual == checksum(&noise(3_000_000))),
        "{error}"
    );
    env.assert_empty();
}

#[tokio::test]
async fn the_url_is_in_no_argument_and_no_environment() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let server = Server::new(move |_, _, stream| {
        let mut said = Vec::new();
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            for file in ["cmdline", "environ"] {
                said.extend(std::fs::read(process.path().join(file)).unwrap_or_default());
            }
        }
        sender.send(said).unwrap();
        status(stream, 404, "")
    });
    let url = format!("http://{}/?5ecre7ly", server.host);
    download(&program(), url).await.unwrap_err();
    let said = receiver.recv().unwrap();
    assert!(String::from_utf8_lossy(&said).contains("slug-helper"));
    assert!(!String::from_utf8_lossy(&said).contains("5ecre7ly"));
}

#[tokio::test]
async fn a_program_that_is_none_is_named() {
    let program = Program::at(std::path::Path::new("/bin/false")).unwrap();
    let error = download(&program, "http://127.0.0.1:1/".to_owned())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the process that should fetch the slug failed"),
        "{error}"
    );
}
