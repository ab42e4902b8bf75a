//! What the real one refuses is refused.

use std::io::{Read as _, Write as _};

use super::*;

/// The head of what a question with these headers is answered.
fn asked(fake: &Platform, path: &str, headers: &[&str]) -> String {
    let mut stream = TcpStream::connect(fake.url().trim_start_matches("http://")).unwrap();
    let headers = headers.join("\r\n");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n\r\n"
    )
    .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let head = answer.split("\r\n\r\n").next().unwrap();
    head.trim_start_matches("HTTP/1.1 ").to_owned()
}

#[test]
fn who_asks_as_the_api_wants_it_is_answered_and_nobody_else() {
    let fake = Platform::start("shop");
    fake.deploy(&[("web", "true")]);
    fake.deploy(&[("web", "false")]);
    let accept = "Accept: application/vnd.heroku+json; version=3";
    let token = format!("Authorization: Bearer {TOKEN}");
    let agent = "User-Agent: test";
    let all = [accept, &token, agent];
    let status = |path: &str, headers: &[&str]| asked(&fake, path, headers)[..3].to_owned();
    assert_eq!(status("/apps/shop", &all), "200");
    assert_eq!(status("/apps/shop", &[&token, agent]), "406");
    assert_eq!(status("/apps/shop", &["Accept: */*", &token, agent]), "406");
    assert_eq!(status("/apps/shop", &[accept, agent]), "401");
    let basic = "Authorization: Basic another";
    assert_eq!(status("/apps/shop", &[accept, basic, agent]), "401");
    assert_eq!(status("/apps/shop", &[accept, &token]), "400");
    assert_eq!(status("/apps/another", &all), "404");

    let releases = "/apps/shop/releases";
    let range = |range| [&all[..], &[range]].concat();
    assert_eq!(status(releases, &range("Range: id ..")), "416");
    assert_eq!(status(releases, &all), "200");
    let page = asked(
        &fake,
        releases,
        &range("Range: version ..; max=1, order=desc"),
    );
    assert!(page.starts_with("206"), "{page}");
    let next = "Next-Range: version ]2..; max=1, order=desc";
    assert!(page.contains(next), "{page}");

    let tag = page
        .lines()
        .find_map(|line| line.strip_prefix("ETag: "))
        .unwrap();
    let known = format!("If-None-Match: {tag}");
    let again = range("Range: version ..; max=1, order=desc");
    let again = [&again[..], &[known.as_str()]].concat();
    assert_eq!(status(releases, &again), "304");
    fake.set_config(&[("NAME", "two")]);
    assert_eq!(status(releases, &again), "206");

    let formation = "/apps/shop/formation";
    assert_eq!(status(formation, &all), "200");
    fake.deploy(&[("web", "true"), ("worker", "true")]);
    fake.is_paged(1);
    let page = asked(&fake, formation, &all);
    assert!(page.starts_with("206"), "{page}");
    assert!(page.contains("Next-Range: id ]f0-web..; max=1"), "{page}");
    let rest = range("Range: id ]f0-web..; max=1");
    assert_eq!(status(formation, &rest), "200");
    assert_eq!(status(formation, &range("Range: type ..")), "416");

    fake.leave(1);
    let last = asked(&fake, "/apps/shop", &all);
    assert!(
        last.starts_with("200") && last.contains("RateLimit-Remaining: 0"),
        "{last}"
    );
    let none = asked(&fake, "/apps/shop", &all);
    assert!(
        none.starts_with("429") && none.contains("Retry-After: 0"),
        "{none}"
    );
}
