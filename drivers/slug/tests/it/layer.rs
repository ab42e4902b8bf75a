//! Slugs as layers of images.

use std::{
    io::{Read as _, Write as _},
    os::unix::fs::symlink,
};

use hsup_slug::{LayerError, SlugError};

use crate::{
    archive::{Tar, big, checksum, small},
    server::Server,
    support::{Env, fetch, layering, shown},
};

/// What the entries of a layer say: kind, owner, mode and name; `>` and the target or content.
fn entries(layer: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(layer);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header();
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        let kind = char::from(header.entry_type().as_byte());
        let mode = header.mode().unwrap();
        let name = entry.path().unwrap().display().to_string();
        let target = entry.link_name().unwrap();
        let mut rest = target.map_or(String::new(), |target| target.display().to_string());
        entry.read_to_string(&mut rest).unwrap();
        format!("{kind} {}:{} {mode:o} {name} > {rest}", owner.0, owner.1)
    });
    entries.collect()
}

#[tokio::test]
async fn an_honest_slug_is_made_anew() {
    let long = format!("app/{}/end", "d".repeat(120));
    let content = Tar::new()
        .dir("./")
        .file("etc/passwd", "not ours")
        .entry(b'0', b"./app/bin/su", b"", 0o6755, b"su")
        .dir("./app/bin/")
        .pax(&[
            ("path", long.as_bytes()),
            ("SCHILY.xattr.security.capability", b"all"),
        ])
        .file("x", "far")
        .symlink("app/link", "../etc/..//passwd")
        .hard_link("app/hard", "./app/bin/su")
        .hard_link("app/other", "app/link")
        .file("app/link", "a file now")
        .tgz();
    let env = Env::new();
    let url = env.file("slug.tgz", &content);
    let (id, layer) = env.layer(&fetch(url)).await;
    assert_eq!(id.unwrap(), checksum(&content));
    let notes = env.said.notes.lock().unwrap().join("");
    assert!(
        notes.ends_with("1 file(s), the first is `./app/bin/su`"),
        "{notes}"
    );
    assert_eq!(
        entries(&layer),
        [
            "5 7:8 755 app/ > ",
            "5 7:8 755 app/bin/ > ",
            "0 7:8 755 app/bin/su > su",
            "5 7:8 755 app/bin/ > ",
            &format!("5 7:8 755 app/{}/ > ", "d".repeat(120)),
            &format!("0 7:8 644 {long} > far"),
            "2 7:8 777 app/link > ../etc/..//passwd",
            "1 7:8 644 app/hard > app/bin/su",
            "1 7:8 644 app/other > app/link",
            "0 7:8 644 app/link > a file now",
        ]
    );
}

#[tokio::test]
async fn a_directory_is_a_layer_of_the_hash_it_was_known_by() {
    let env = Env::new();
    let app = env.path("app");
    std::fs::create_dir(&app).unwrap();
    env.file("app/Procfile", b"web: true");
    symlink("/nowhere", app.join("link")).unwrap();
    let mut wanted = fetch(format!("file://{}/", app.display()));
    let id = hsup_slug::identify(&layering(), &wanted, &env.said).await;
    let id = id.unwrap();
    wanted.checksum = Some(id);
    let (made, layer) = env.layer(&wanted).await;
    assert_eq!(made.unwrap(), id);
    let names = entries(&layer);
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.contains(&"2 7:8 777 app/link > /nowhere".to_owned()));

    env.file("app/Procfile", b"web: false");
    let (changed, _) = env.layer(&wanted).await;
    assert!(matches!(
        changed,
        Err(LayerError::Slug(SlugError::Checksum { expected, .. })) if expected == id
    ));
}

#[tokio::test]
async fn another_slug_is_refused_by_its_checksum_first() {
    let env = Env::new();
    let hostile = Tar::new().file("/etc/passwd", "x").tgz();
    for content in [small(), hostile] {
        let mut wanted = fetch(env.file("slug.tgz", &content));
        wanted.checksum = Some(checksum(b"something else"));
        let (made, _) = env.layer(&wanted).await;
        let text = shown(made);
        let expected = format!(
            "Checksum does match expected value. Expected: SHA256:{} Actual: SHA256:{}",
            checksum(b"something else"),
            checksum(&content)
        );
        assert_eq!(text, expected);
    }
}

#[tokio::test]
async fn a_download_that_is_cut_goes_on_where_it_was() {
    let content = big(3_000_000);
    let served = content.clone();
    let server = Server::new(move |number, request, stream| {
        let from = request.range.unwrap_or(0);
        let status = if from > 0 {
            "206 Partial Content"
        } else {
            "200 OK"
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nETag: \"1\"\r\nContent-Length: {}\r\n\
             Content-Range: bytes {from}-{}/{}\r\n\r\n",
            served.len() - from,
            served.len() - 1,
            served.len(),
        )?;
        let until = if number == 0 { 1_000_000 } else { served.len() };
        stream.write_all(&served[from..until])
    });
    let env = Env::new();
    let mut wanted = fetch(server.url());
    wanted.checksum = Some(checksum(&content));
    let (made, layer) = env.layer(&wanted).await;
    made.unwrap();
    let whole: usize = tar::Archive::new(&layer[..])
        .entries()
        .unwrap()
        .map(|entry| usize::try_from(entry.unwrap().size()).unwrap())
        .sum();
    assert_eq!(whole, 3_000_000);
    let requests = server.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[1].range.is_some_and(|from| from > 0));
}

#[tokio::test]
async fn nobody_takes_it() {
    let env = Env::new();
    let wanted = fetch(env.file("slug.tgz", &big(3_000_000)));
    let (taker, taken) = tokio::sync::mpsc::channel(1);
    drop(taken);
    let made = hsup_slug::layer(&layering(), &wanted, taker, &env.said).await;
    assert!(matches!(made, Err(LayerError::NotTaken)), "{made:?}");
}
