//! Stacks and lists from a server.

use std::{
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use super::{
    server::{Answer, Server},
    *,
};

/// An archive that takes many packets, compressed, and its checksum.
fn packed() -> (Vec<u8>, String) {
    let bytes = gz(&archive(3_000_000));
    let sum = sha256(&bytes);
    (bytes, sum)
}

impl Work {
    fn with_remote(&self, server: &Server, checksum: &str) -> Stacks {
        self.with_one(
            "v1",
            "rootfs-tar",
            &server.url("s.tgz?sig=SECRET"),
            checksum,
        )
    }

    fn is_whole(&self) -> bool {
        fs::metadata(self.path("s-v1/noise")).is_ok_and(|it| it.len() == 3_000_000)
            && self.half_made().is_empty()
    }
}

#[tokio::test]
async fn a_stack_is_fetched_verified_and_unpacked_once() {
    let work = Work::new();
    let (bytes, sum) = packed();
    let length = bytes.len();
    let server = Server::new([Answer::File(bytes)]);
    let stacks = work.with_remote(&server, &sum);
    let stack = work.resolve(&stacks).await;
    assert_eq!(stack.image, Image::Directory(work.path("s-v1")));
    assert!(work.is_whole());
    assert!(work.reported(&format!("Fetching {{ done: 0, total: Some({length}) }}")));
    assert!(work.reported(&format!(
        "Fetching {{ done: {length}, total: Some({length}) }}"
    )));
    assert!(work.reported("Installing"));
    assert_eq!(work.resolve(&work.stacks()).await, stack);
    assert_eq!(server.requests(), [None]);
}

#[tokio::test]
async fn a_connection_that_breaks_is_gone_on_with() {
    let work = Work::new();
    let (bytes, sum) = packed();
    let cut = [1_000_000, 2_000_000].map(|at| Answer::Cut(bytes.clone(), at));
    let server = Server::new(cut.into_iter().chain([
        Answer::Status("503 Service Unavailable"),
        Answer::File(bytes.clone()),
    ]));
    work.resolve(&work.with_remote(&server, &sum)).await;
    assert!(work.is_whole());
    let expected = [None, Some(1_000_000), Some(2_000_000), Some(2_000_000)];
    assert_eq!(server.requests(), expected);
}

#[tokio::test]
async fn who_sends_on_for_ever_is_not_asked_again() {
    let work = Work::new();
    let (_, sum) = packed();
    let server = Server::new([Answer::Redirect]);
    let error = work.error(&work.with_remote(&server, &sum)).await;
    assert!(error.contains("sends on the download too often"), "{error}");
    assert!(!error.contains("SECRET"), "{error}");
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn the_next_driver_goes_on_where_one_was_killed() {
    let work = Work::new();
    let (bytes, sum) = packed();
    let (end, until) = mpsc::channel();
    let stall = Answer::Stall(bytes.clone(), 2_000_000, until);
    let server = Server::new([stall, Answer::File(bytes.clone())]);
    let stacks = work.with_remote(&server, &sum);
    // How much is on the disk when it is given up: the bytes pass through a buffer of a megabyte,
    // and what is on its way from there is still written, by a thread that nobody waits for.
    let part = || {
        let name = work
            .half_made()
            .into_iter()
            .find(|name| name.contains(".part"));
        name.map_or(0, |name| {
            fs::metadata(work.path(".fetch").join(name)).unwrap().len()
        })
    };
    tokio::select! {
        _ = stacks.resolve("s", &work) => panic!("it was not all there"),
        () = async { while part() < 1_000_000 { tokio::task::yield_now().await } } => {}
    }
    let had = usize::try_from(part()).unwrap();
    drop((stacks, end));
    let stacks = work.stacks();
    work.resolve(&stacks).await;
    assert!(work.is_whole());
    let requests = server.requests();
    assert!(
        matches!(requests[..], [None, Some(from)] if (had..=2_000_000).contains(&from)),
        "with {had} bytes at least: {requests:?}"
    );
}

#[tokio::test]
async fn the_beginning_of_something_else_is_fetched_again() {
    let work = Work::new();
    let (bytes, sum) = packed();
    let server = Server::new([Answer::File(bytes.clone())]);
    let stacks = work.with_remote(&server, &sum);
    let tag = &sum["sha256: ".len()..][..16];
    write(
        &work.path(".fetch").join(format!("s-v1.{tag}.part")),
        &[7; 1000],
    );
    work.resolve(&stacks).await;
    assert!(work.is_whole());
    assert_eq!(server.requests(), [Some(1000), None]);
    // One that is longer than the file.
    stacks.remove("s-v1").unwrap();
    let long = vec![7; bytes.len() + 1];
    write(&work.path(".fetch").join(format!("s-v1.{tag}.part")), &long);
    work.resolve(&stacks).await;
    assert!(work.is_whole());
}

#[tokio::test]
async fn a_server_without_ranges_sends_it_all() {
    let work = Work::new();
    let (bytes, sum) = packed();
    let server = Server::new([Answer::Cut(bytes.clone(), 1_000_000), Answer::Whole(bytes)]);
    work.resolve(&work.with_remote(&server, &sum)).await;
    assert!(work.is_whole());
    assert_eq!(server.requests(), [None, Some(1_000_000)]);
}

#[tokio::test]
async fn what_is_not_what_the_list_says_is_not_kept() {
    let work = Work::new();
    let (bytes, sum) = packed();
    let garbage = b"<html>no such file</html>".to_vec();
    let actual = sha256(&garbage).replace(':', "");
    let server = Server::new([Answer::File(garbage)]);
    let error = work.error(&work.with_remote(&server, &sum)).await;
    let expected = format!(
        "stack s-v1 from {} is not what it should be: it has the {actual} instead of {}; nothing \
         of it was kept",
        server.url("s.tgz"),
        sum.replace(':', "")
    );
    assert_eq!(error, expected);
    assert_eq!(work.half_made(), [""; 0]);
    assert!(!work.path("s-v1").exists());

    let length = bytes.len();
    let short = Server::new([Answer::File(bytes[..length - 1].to_vec())]);
    let size = format!("size: {length}, {sum}");
    let error = work.error(&work.with_remote(&short, &size)).await;
    let expected = format!(
        "it has {} bytes instead of {length}; nothing of it was kept",
        length - 1
    );
    assert!(error.contains(&expected), "{error}");

    let long = Server::new([Answer::File([&bytes[..], b"more"].concat())]);
    let error = work.error(&work.with_remote(&long, &size)).await;
    assert!(error.contains("is longer than"), "{error}");
    assert!(!work.path("s-v1").exists());
}

#[tokio::test]
async fn an_answer_that_will_not_change_is_told_at_once_without_what_is_secret() {
    let work = Work::new();
    let server = Server::new([Answer::Status("403 Forbidden")]);
    let (_, sum) = packed();
    let error = work.error(&work.with_remote(&server, &sum)).await;
    let url = server.url("s.tgz");
    assert_eq!(
        error,
        format!("failed to fetch stack s-v1: {url} answered 403 Forbidden")
    );
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_without_what_is_secret() {
    let work = Work::new();
    let (_, sum) = packed();
    let server = Server::new([Answer::Status("200 OK")]);
    let stacks = work.with_remote(&server, &sum);
    let url = server.url("s.tgz");
    drop(server);
    let error = work.error(&stacks).await;
    let expected = format!("failed to fetch {url}: 0 bytes came, and nothing more in 5 tries");
    assert!(error.contains(&expected), "{error}");
    assert!(!error.contains("SECRET"), "{error}");
}

#[tokio::test]
async fn without_a_checksum_an_original_entry_is_used_with_a_warning() {
    let work = Work::new();
    let image = ext4();
    let server = Server::new([
        Answer::Cut(image.clone(), 500_000),
        Answer::File(image.clone()),
    ]);
    let url = server.url("s.img");
    let stacks = work.with(&format!("- {{name: s, version: v1, url: '{url}'}}"));
    work.resolve(&stacks).await;
    assert!(fs::read(work.path("s-v1.img")).unwrap() == image);
    assert!(work.reported("has no checksum"));
    assert_eq!(work.half_made(), [""; 0]);
}

#[tokio::test]
async fn a_list_is_fetched_once_and_kept() {
    let work = Work::new();
    let root = work.folder.path().display().to_string();
    let list = format!(
        "version: 2\nstacks: [{{name: s, version: v1, format: directory, url: 'file://{root}'}}]"
    );
    let server = Server::new([
        Answer::Status("502 Bad Gateway"),
        Answer::File(b"<html>".to_vec()),
        Answer::File(list.into_bytes()),
        Answer::Status("404 Not Found"),
    ]);
    let url = server.url("manifest.yml?sig=SECRET");
    let stacks = || Stacks::open(work.folder.path(), Some(url.clone())).unwrap();
    let error = work.error(&stacks()).await;
    let expected = format!("{} is no list of stacks", server.url("manifest.yml"));
    assert!(error.contains(&expected), "{error}");
    assert!(!work.path("manifest.yml").exists());
    let stack = work.resolve(&stacks()).await;
    assert_eq!(stack.image, Image::Directory(work.folder.path().to_owned()));
    assert_eq!(work.resolve(&stacks()).await, stack);
    assert_eq!(server.requests().len(), 3);
    assert_eq!(stacks().find("s", "v1").unwrap(), Some(stack));
    // Removed, it is fetched anew: and what is here is used if it cannot be.
    fs::remove_file(work.path("manifest.yml")).unwrap();
    let error = work.error(&stacks()).await;
    let url = server.url("manifest.yml");
    assert_eq!(
        error,
        format!("failed to fetch the list of stacks: {url} answered 404 Not Found")
    );
    fs::create_dir(work.path("s-v7")).unwrap();
    assert_eq!(work.resolve(&stacks()).await.version.as_str(), "v7");
    assert!(work.reported("answered 404 Not Found"));
}

/// Says whether this process is one of those that a test starts, and where it works.
const SECOND: &str = "HSUP_TEST_STACKS";

/// Resolves the stack if this process was started for that; else `None`, and it is the test.
fn as_second_process() -> Option<()> {
    let folder = PathBuf::from(std::env::var_os(SECOND)?);
    let told = |event: Event<'_>| {
        if let Event::Waiting { .. } = event {
            write(
                &folder.join("waits"),
                std::process::id().to_string().as_bytes(),
            );
        }
    };
    let stacks = Stacks::open(&folder, None).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(stacks.resolve("s", &told)).unwrap();
    Some(())
}

/// Two processes that run the same test. One of them fetches, the other waits for it.
fn two_processes(work: &Work, test: &str) -> (Child, Child) {
    let start = || {
        #[expect(clippy::disallowed_methods, reason = "this test itself, not a dyno")]
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", &format!("stack::tests::remote::{test}")])
            .env(SECOND, work.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let (one, other) = (start(), start());
    let mut tries = 0;
    loop {
        let waits = fs::read_to_string(work.folder.path().join("waits")).unwrap_or_default();
        match waits.parse::<u32>() {
            Ok(pid) if pid == other.id() => return (one, other),
            Ok(pid) if pid == one.id() => return (other, one),
            _ => {}
        }
        tries += 1;
        assert!(tries < 3000, "neither process waits for the other");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn two_processes_fetch_it_once() {
    if as_second_process().is_some() {
        return;
    }
    let work = Work::new();
    let (bytes, sum) = packed();
    let (end, until) = mpsc::channel();
    let server = Server::new([
        Answer::Stall(bytes.clone(), 1_500_000, until),
        Answer::File(bytes),
    ]);
    drop(work.with_remote(&server, &sum));
    let (mut first, mut second) = two_processes(&work, "two_processes_fetch_it_once");
    assert!(!work.path("s-v1").exists());
    drop(end);
    assert!(first.wait().unwrap().success());
    assert!(second.wait().unwrap().success());
    assert!(work.is_whole());
    // The second request is for the other half, by whoever had the first.
    assert_eq!(server.requests(), [None, Some(1_500_000)]);
}

#[test]
fn who_waits_goes_on_with_what_one_that_was_killed_began() {
    if as_second_process().is_some() {
        return;
    }
    let work = Work::new();
    let (bytes, sum) = packed();
    let (end, until) = mpsc::channel();
    let server = Server::new([
        Answer::Stall(bytes.clone(), 1_500_000, until),
        Answer::File(bytes),
    ]);
    drop(work.with_remote(&server, &sum));
    let test = "who_waits_goes_on_with_what_one_that_was_killed_began";
    let (mut first, mut second) = two_processes(&work, test);
    first.kill().unwrap();
    first.wait().unwrap();
    drop(end);
    assert!(second.wait().unwrap().success());
    assert!(work.is_whole());
    assert_eq!(server.requests().len(), 2);
}
