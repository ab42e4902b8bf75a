use std::os::unix::fs::symlink;

use nix::{
    sys::stat::Mode,
    unistd::{Uid, chown, geteuid, mkfifo, setfsuid},
};
use tokio::time::timeout;

use super::*;
use crate::files::{write_atomic, write_with_mode};

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The text of a release.
fn release(version: u64) -> String {
    format!(
        r#"{{"Version": {version}, "Processes": [{{"Type": "web", "Args": ["x"], "Quantity": 1}}]}}"#
    )
}

fn open(path: &Path) -> ControlDir {
    let mut source = ControlDir::open(path).unwrap();
    source.claim().unwrap();
    source
}

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes as a shell's `>` does: in place.
    fn write(&self, name: &str, text: &str) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
    }

    /// All names but those of files on their way.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn open(&self) -> ControlDir {
        open(self.dir.path())
    }
}

#[test]
fn a_release_that_a_killed_hsup_was_writing_is_gone() {
    let fixture = Fixture::new();
    fixture.write(".hsup-unfinished-a1B2c3", &release(1));
    let _source = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { fixture.open() });
    assert!(fixture.names().is_empty(), "{:?}", fixture.names());
}

#[test]
fn what_another_hsup_may_be_writing_is_not_removed() {
    let fixture = Fixture::new();
    fixture.write(".hsup-unfinished-a1B2c3", &release(1));
    let inbox = Inbox::new(fixture.dir.path().to_owned());
    inbox.recover(false);
    assert_eq!(fixture.names(), [".hsup-unfinished-a1B2c3"]);
    inbox.recover(true);
    assert!(fixture.names().is_empty());
}

async fn next(source: &mut ControlDir) -> Update {
    timeout(PATIENCE, source.next())
        .await
        .expect("the control directory said nothing")
}

async fn next_release(source: &mut ControlDir) -> Loaded {
    match next(source).await {
        Update::Release(loaded) => *loaded,
        other => panic!("not a release: {other:?}"),
    }
}

async fn next_rejection(source: &mut ControlDir) -> String {
    match next(source).await {
        Update::Rejected { reason } => reason,
        other => panic!("not a rejection: {other:?}"),
    }
}

async fn next_empty(source: &mut ControlDir) -> String {
    match next(source).await {
        Update::Empty { why, .. } => why,
        other => panic!("not empty: {other:?}"),
    }
}

async fn next_warning(source: &mut ControlDir) -> String {
    match next(source).await {
        Update::Warning(text) => text,
        other => panic!("not a warning: {other:?}"),
    }
}

#[tokio::test]
async fn a_new_file_becomes_loaded() {
    let fixture = Fixture::new();
    fixture.write("new", &release(1));
    let mut source = fixture.open();
    let loaded = next_release(&mut source).await;
    assert_eq!(loaded.release.version, 1);
    assert_eq!(loaded.origin, Origin::ControlDirectory);
    assert_eq!(loaded.newness, Newness::New);
    assert_eq!(loaded.text.unwrap().expose(), release(1));
    assert_eq!(fixture.names(), ["loaded"]);
    assert_eq!(fixture.read("loaded").unwrap(), release(1));
    assert_eq!(fixture.mode("loaded"), 0o600);
}

#[tokio::test]
async fn a_bad_file_is_kept_beside_the_reason() {
    let fixture = Fixture::new();
    fixture.write("loaded", &release(1));
    let mut source = fixture.open();
    let loaded = next_release(&mut source).await;
    assert_eq!((loaded.release.version, loaded.newness), (1, Newness::Kept));

    let bad = release(2).replace(": 1}", ": -1}");
    fixture.write("new", &bad);
    let reason = next_rejection(&mut source).await;
    assert!(reason.contains("new: line 1 column "), "{reason}");
    assert!(reason.contains("at Processes[0].Quantity: "), "{reason}");
    assert_eq!(fixture.names(), ["last_error", "loaded", "rejected"]);
    assert_eq!(fixture.read("rejected").unwrap(), bad);
    assert_eq!(fixture.read("loaded").unwrap(), release(1));
    assert_eq!(fixture.mode("last_error"), 0o400);
    let text = fixture.read("last_error").unwrap();
    assert!(text.contains("Z: new: line 1 column "), "{text}");

    // The next good one says that it is over.
    fixture.write("new", &release(3));
    assert_eq!(next_release(&mut source).await.release.version, 3);
    assert_eq!(fixture.names(), ["loaded"]);
}

#[tokio::test]
async fn a_writer_and_a_mover_are_both_noticed() {
    let fixture = Fixture::new();
    let mut source = fixture.open();
    assert!(next_empty(&mut source).await.starts_with("there is no `"));
    for version in 1..20 {
        if version % 2 == 0 {
            fixture.write("new", &release(version));
        } else {
            write_atomic(&fixture.path("new"), release(version).as_bytes()).unwrap();
        }
        assert_eq!(next_release(&mut source).await.release.version, version);
    }
}

#[tokio::test]
async fn a_cold_start_prefers_new_to_loaded() {
    let fixture = Fixture::new();
    fixture.write("loaded", &release(1));
    fixture.write("new", &release(2));
    let mut source = fixture.open();
    assert_eq!(next_release(&mut source).await.release.version, 2);
}

#[tokio::test]
async fn a_cold_start_with_a_bad_new_goes_on_with_loaded() {
    let fixture = Fixture::new();
    fixture.write("loaded", &release(1));
    fixture.write("new", "{]");
    let mut source = fixture.open();
    let reason = next_rejection(&mut source).await;
    assert!(reason.contains("line 1 column 2"), "{reason}");
    assert_eq!(next_release(&mut source).await.release.version, 1);
}

#[tokio::test]
async fn a_text_without_its_end_gets_a_second_when_nobody_said_it_is_done() {
    let fixture = Fixture::new();
    let whole = release(1);
    fixture.write("new", &whole[..20]);
    let mut source = fixture.open();
    // Nothing comes of it yet; the writer goes on.
    let early = timeout(Duration::from_millis(200), source.next()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(fixture.names(), ["new"]);
    fixture.write("new", &whole);
    assert_eq!(next_release(&mut source).await.release.version, 1);

    drop(source);
    fixture.write("new", &whole[..20]);
    let mut source = fixture.open();
    let reason = next_rejection(&mut source).await;
    assert!(reason.contains("EOF"), "{reason}");
    assert_eq!(next_release(&mut source).await.release.version, 1);
}

#[tokio::test(start_paused = true)]
async fn a_poll_finds_what_the_kernel_does_not_tell() {
    let fixture = Fixture::new();
    let mut source = fixture.open();
    next_empty(&mut source).await;
    let before = Instant::now();
    fixture.write("draft", &release(1));
    fs::hard_link(fixture.path("draft"), fixture.path("new")).unwrap();
    assert_eq!(next_release(&mut source).await.release.version, 1);
    let waited = before.elapsed();
    assert!(
        waited > Duration::from_secs(1) && waited <= POLL,
        "{waited:?}"
    );
    assert_eq!(fixture.names(), ["draft", "loaded"]);
}

#[tokio::test]
async fn what_is_made_as_new_and_is_no_file_is_told_at_once() {
    let fixture = Fixture::new();
    let mut source = fixture.open();
    next_empty(&mut source).await;
    let before = Instant::now();
    symlink("elsewhere", fixture.path("new")).unwrap();
    let reason = next_rejection(&mut source).await;
    assert!(reason.contains("a symbolic link"), "{reason}");
    fs::remove_file(fixture.path("new")).unwrap();
    fs::create_dir(fixture.path("new")).unwrap();
    let reason = next_rejection(&mut source).await;
    assert!(reason.contains("a directory"), "{reason}");
    assert!(before.elapsed() < POLL, "a poll found it");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_seen_may_take_its_time() {
    use std::io::Write as _;
    let fixture = Fixture::new();
    let mut source = fixture.open();
    next_empty(&mut source).await;
    let mut file = fs::File::create(fixture.path("new")).unwrap();
    let text = release(1);
    for part in [&text[..10], &text[10..20]] {
        file.write_all(part.as_bytes()).unwrap();
        let early = timeout(POLL * 5, source.next()).await;
        assert!(early.is_err(), "{early:?}");
    }
    file.write_all(&text.as_bytes()[20..]).unwrap();
    drop(file);
    assert_eq!(next_release(&mut source).await.release.version, 1);
    // One that never closes it is not waited for for ever.
    let mut file = fs::File::create(fixture.path("new")).unwrap();
    file.write_all(b"{").unwrap();
    let late = timeout(BEING_WRITTEN + POLL * 2, source.next()).await;
    assert!(matches!(late, Ok(Update::Rejected { .. })), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_began_before_the_start_is_waited_for() {
    use std::io::Write as _;
    let fixture = Fixture::new();
    let mut file = fs::File::create(fixture.path("new")).unwrap();
    let text = release(1);
    file.write_all(&text.as_bytes()[..10]).unwrap();
    let mut source = fixture.open();
    let early = timeout(BEING_WRITTEN / 2, source.next()).await;
    assert!(early.is_err(), "{early:?}");
    file.write_all(&text.as_bytes()[10..]).unwrap();
    drop(file);
    assert_eq!(next_release(&mut source).await.release.version, 1);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_only_opened_is_not_judged() {
    let fixture = Fixture::new();
    let mut source = fixture.open();
    next_empty(&mut source).await;
    let file = fs::File::create(fixture.path("new")).unwrap();
    // Longer than a text without its end is given.
    let early = timeout(UNFINISHED * 2, source.next()).await;
    assert!(early.is_err(), "{early:?}");
    drop(file);
    assert!(next_rejection(&mut source).await.contains("is empty"));
}

/// Has this thread, and those that it starts, act on files as nobody: root can read everything.
struct ActsAsNobody;

impl ActsAsNobody {
    /// Does nothing for a user who is not root.
    fn in_the_folder_of(fixture: &Fixture) -> Option<Self> {
        let nobody = Uid::from_raw(65534);
        geteuid().is_root().then(|| {
            chown(fixture.dir.path(), Some(nobody), None).unwrap();
            setfsuid(nobody);
            Self
        })
    }
}

impl Drop for ActsAsNobody {
    fn drop(&mut self) {
        setfsuid(geteuid());
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_read_is_looked_at_again_once_it_can() {
    let fixture = Fixture::new();
    let _as_nobody = ActsAsNobody::in_the_folder_of(&fixture);
    write_with_mode(&fixture.path("new"), release(1).as_bytes(), 0o000).unwrap();
    let mut source = fixture.open();
    let reason = next_rejection(&mut source).await;
    assert!(reason.contains("failed to read"), "{reason}");
    next_empty(&mut source).await;
    fs::set_permissions(fixture.path("new"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(next_release(&mut source).await.release.version, 1);
}

#[tokio::test]
async fn what_was_refused_is_kept_where_only_its_owner_reads_it() {
    let fixture = Fixture::new();
    let mut source = fixture.open();
    next_empty(&mut source).await;
    let too_large = " ".repeat(usize::try_from(control_file::MAX_SIZE).unwrap() + 1);
    for text in ["{]", &too_large] {
        fixture.write("draft", text);
        let all = fs::Permissions::from_mode(0o666);
        fs::set_permissions(fixture.path("draft"), all).unwrap();
        fs::rename(fixture.path("draft"), fixture.path("new")).unwrap();
        next_rejection(&mut source).await;
        assert_eq!(fixture.mode("rejected"), 0o600);
        assert_eq!(fixture.read("rejected").unwrap(), text);
    }
}

#[tokio::test]
async fn what_is_no_file_is_refused_once_and_left_alone() {
    let fixture = Fixture::new();
    fixture.write("elsewhere", &release(1));
    let mut source = fixture.open();
    next_empty(&mut source).await;
    mkfifo(&fixture.path("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    fs::create_dir(fixture.path("directory")).unwrap();
    symlink("elsewhere", fixture.path("link")).unwrap();
    for (name, kind) in [
        ("fifo", "a FIFO"),
        ("directory", "a directory"),
        ("link", "a symbolic link"),
    ] {
        fs::rename(fixture.path(name), fixture.path("new")).unwrap();
        let reason = next_rejection(&mut source).await;
        assert!(reason.contains(kind), "{reason}");
        assert!(fixture.read("last_error").unwrap().contains(kind));
        assert_eq!(fixture.inbox_look(&source), "nothing");
        fs::rename(fixture.path("new"), fixture.path(name)).unwrap();
    }
    fixture.write("new", &release(2));
    assert_eq!(next_release(&mut source).await.release.version, 2);
    assert_eq!(fixture.read("elsewhere").unwrap(), release(1));
}

impl Fixture {
    /// What another look at the same `new` finds.
    fn inbox_look(&self, source: &ControlDir) -> &'static str {
        assert!(self.path(NEW).symlink_metadata().is_ok());
        match source.inbox.look(Writer::Done, source.left) {
            Found::Nothing => "nothing",
            Found::Unfinished { .. } => "unfinished",
            Found::Taken { .. } => "taken",
            Found::Refused { .. } => "refused",
        }
    }
}

fn keep(version: u64) -> Keep {
    Keep::Release(ControlText::new(release(version).as_bytes()))
}

fn rejected(version: u64, reason: &str) -> News {
    News::Rejected {
        text: ControlText::new(release(version).as_bytes()),
        reason: reason.to_owned(),
    }
}

#[tokio::test]
async fn a_release_that_does_not_come_up_gives_way_to_the_one_that_is_kept() {
    let fixture = Fixture::new();
    fixture.write("new", &release(2));
    let mut source = fixture.open();
    next_release(&mut source).await;
    let news = Some(rejected(2, "web.1 did not come up"));
    source.tell(&keep(1), news).await.unwrap();
    assert_eq!(fixture.read("loaded").unwrap(), release(1));
    assert_eq!(fixture.mode("loaded"), 0o600);
    assert_eq!(fixture.read("rejected").unwrap(), release(2));
    assert_eq!(fixture.mode("rejected"), 0o600);
    let text = fixture.read("last_error").unwrap();
    assert!(text.ends_with("Z: web.1 did not come up\n"), "{text}");

    // One that is taken in by other means than a file says that this is over.
    source.tell(&keep(3), Some(News::TakenIn)).await.unwrap();
    assert_eq!(fixture.names(), ["loaded"]);
    assert_eq!(fixture.read("loaded").unwrap(), release(3));
}

#[tokio::test]
async fn what_is_told_of_an_older_release_does_not_hide_a_newer_one() {
    let fixture = Fixture::new();
    fixture.write("new", &release(3));
    let mut source = fixture.open();
    next_release(&mut source).await;
    fixture.write("new", &release(4));
    // Taken from the directory, but not yet told.
    while source.updates.is_empty() {
        source.due = Some(Writer::Done);
        let look = timeout(Duration::from_millis(1), source.next()).await;
        if let Ok(update) = look {
            source.updates.push_front(update);
        }
    }
    source
        .tell(&keep(1), Some(rejected(3, "late")))
        .await
        .unwrap();
    assert_eq!(fixture.names(), ["loaded"]);
    assert_eq!(fixture.read("loaded").unwrap(), release(4));
    assert_eq!(next_release(&mut source).await.release.version, 4);
    source
        .tell(&keep(1), Some(rejected(4, "bad")))
        .await
        .unwrap();
    assert_eq!(fixture.read("loaded").unwrap(), release(1));
}

#[tokio::test]
async fn without_a_release_to_keep_there_is_no_loaded() {
    let fixture = Fixture::new();
    fixture.write("new", &release(1));
    let mut source = fixture.open();
    next_release(&mut source).await;
    source
        .tell(&Keep::Nothing, Some(rejected(1, "no")))
        .await
        .unwrap();
    assert_eq!(fixture.names(), ["last_error", "rejected"]);
}

#[tokio::test]
async fn a_loaded_that_is_no_release_stays_until_there_is_one() {
    let fixture = Fixture::new();
    fixture.write("loaded", "{]");
    let mut source = fixture.open();
    let why = next_empty(&mut source).await;
    assert!(why.contains("/loaded` is not a release: line 1"), "{why}");
    source.tell(&Keep::Nothing, None).await.unwrap();
    source.tell(&Keep::WhatIsThere, None).await.unwrap();
    assert_eq!(fixture.read("loaded").unwrap(), "{]");
    source.tell(&keep(1), None).await.unwrap();
    assert_eq!(fixture.read("loaded").unwrap(), release(1));
}

#[tokio::test]
async fn what_cannot_be_written_is_tried_again_when_it_may_be() {
    let fixture = Fixture::new();
    let mut source = fixture.open();
    next_empty(&mut source).await;
    fs::create_dir(fixture.path("loaded")).unwrap();
    let error = source.tell(&keep(1), None).await.unwrap_err();
    assert!(chain(&error).contains("/loaded`"), "{error}");
    source.tell(&keep(1), None).await.unwrap();
    fs::remove_dir(fixture.path("loaded")).unwrap();
    source.tell(&keep(1), None).await.unwrap();
    assert!(fixture.names().is_empty(), "it waits");
    source.forgive();
    source.tell(&keep(1), None).await.unwrap();
    assert_eq!(fixture.names(), ["loaded"]);
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_made() {
    let fixture = Fixture::new();
    let path = fixture.path("a/b");
    let mut source = open(&path);
    assert!(
        next_warning(&mut source)
            .await
            .starts_with("made the control directory")
    );
    next_empty(&mut source).await;
    assert_eq!(fixture.mode("a/b"), 0o700);
    assert_eq!(source.path(), &path.canonicalize().unwrap());

    let error = ControlDir::open(Path::new("/dev/null")).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("`/dev/null`: not a directory"), "{text}");
}

#[tokio::test]
async fn a_directory_is_followed_by_one_alone() {
    let fixture = Fixture::new();
    let first = fixture.open();
    let error = ControlDir::open(fixture.dir.path())
        .unwrap()
        .claim()
        .unwrap_err();
    assert!(matches!(error, OpenControlDirError::InUse { .. }));
    drop(first);
    fixture.open();
}

#[tokio::test]
async fn a_directory_that_is_deleted_may_come_back() {
    let fixture = Fixture::new();
    let path = fixture.path("control");
    let mut source = open(&path);
    next_warning(&mut source).await;
    next_empty(&mut source).await;
    fs::remove_dir_all(&path).unwrap();
    let warning = next_warning(&mut source).await;
    assert!(warning.contains("is gone"), "{warning}");
    fs::create_dir(&path).unwrap();
    assert!(next_warning(&mut source).await.contains("is back"));
    write_with_mode(&path.join("new"), release(1).as_bytes(), 0o600).unwrap();
    assert_eq!(next_release(&mut source).await.release.version, 1);

    // What a start begins with is not what came back, but what runs.
    let keep = keep(1);
    source.tell(&keep, None).await.unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert!(next_warning(&mut source).await.contains("is gone"));
    fs::create_dir(&path).unwrap();
    assert!(next_warning(&mut source).await.contains("is back"));
    source.tell(&keep, None).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("loaded")).unwrap(), release(1));
}

#[tokio::test]
async fn a_directory_that_takes_the_place_of_another_gets_what_runs() {
    let fixture = Fixture::new();
    let path = fixture.path("control");
    let mut source = open(&path);
    next_warning(&mut source).await;
    next_empty(&mut source).await;
    source.tell(&keep(1), None).await.unwrap();
    fs::create_dir(fixture.path("other")).unwrap();
    fs::rename(&path, fixture.path("away")).unwrap();
    fs::rename(fixture.path("other"), &path).unwrap();
    let warning = next_warning(&mut source).await;
    // It may be looked at in between.
    if warning.contains("is gone") {
        assert!(next_warning(&mut source).await.contains("is back"));
    } else {
        assert!(warning.contains("was made anew"), "{warning}");
    }
    source.tell(&keep(1), None).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("loaded")).unwrap(), release(1));
}

#[tokio::test]
async fn a_directory_that_is_made_anew_is_claimed_anew() {
    let fixture = Fixture::new();
    let path = fixture.path("control");
    let mut first = open(&path);
    next_warning(&mut first).await;
    next_empty(&mut first).await;
    fs::rename(&path, fixture.path("away")).unwrap();
    assert!(next_warning(&mut first).await.contains("is gone"));
    let mut second = open(&path);
    next_warning(&mut second).await;
    next_empty(&mut second).await;
    let warning = next_warning(&mut first).await;
    assert!(
        warning.contains("is followed by another hsup now"),
        "{warning}"
    );
    write_with_mode(&path.join("new"), release(1).as_bytes(), 0o600).unwrap();
    assert_eq!(next_release(&mut second).await.release.version, 1);
    // The other one's end is all that it waits for.
    second.tell(&keep(1), None).await.unwrap();
    let loaded = || fs::read_to_string(path.join("loaded")).unwrap();
    first.tell(&keep(7), None).await.unwrap();
    assert_eq!(loaded(), release(1), "it is another's");
    drop(second);
    assert!(next_warning(&mut first).await.contains("is back"));
    first.tell(&keep(7), None).await.unwrap();
    assert_eq!(loaded(), release(7));
    write_with_mode(&path.join("new"), release(2).as_bytes(), 0o600).unwrap();
    assert_eq!(next_release(&mut first).await.release.version, 2);
}

#[tokio::test]
async fn a_release_that_was_on_its_way_out_is_not_lost() {
    let fixture = Fixture::new();
    fixture.write(".new", &release(1));
    let mut source = fixture.open();
    assert_eq!(next_release(&mut source).await.release.version, 1);
    assert_eq!(fixture.names(), ["loaded"]);
}

#[test]
fn a_newer_file_is_not_taken_for_the_one_that_was_read() {
    let fixture = Fixture::new();
    let inbox = Inbox::new(fixture.dir.path().to_owned());
    fixture.write("new", &release(1));
    assert_eq!(
        inbox.race(|| fixture.write("new", &release(22))),
        "put back"
    );
    assert_eq!(fixture.read("new").unwrap(), release(22));
    let moved = || write_atomic(&fixture.path("new"), release(3).as_bytes()).unwrap();
    assert_eq!(inbox.race(moved), "put back");
    assert_eq!(fixture.read("new").unwrap(), release(3));
    assert_eq!(inbox.race(|| {}), "gone");
    assert!(fixture.names().is_empty());
}

#[tokio::test]
async fn everybody_may_not_write_there_without_a_word() {
    let fixture = Fixture::new();
    fs::set_permissions(fixture.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut source = fixture.open();
    let warning = next_warning(&mut source).await;
    assert!(warning.starts_with("everybody may write"), "{warning}");
}

#[tokio::test]
async fn a_run_reads_loaded_and_touches_nothing() {
    let fixture = Fixture::new();
    fixture.write("new", &release(2));
    assert_eq!(read_loaded(fixture.dir.path()).unwrap(), None);
    fixture.write("loaded", &release(1));
    let file = read_loaded(fixture.dir.path()).unwrap().unwrap();
    assert_eq!(file.release.version, 1);
    assert_eq!(fixture.names(), ["loaded", "new"]);
    fixture.write("loaded", "{");
    let error = chain(&read_loaded(fixture.dir.path()).unwrap_err());
    assert!(
        error.contains("/loaded` is not a release: line 1"),
        "{error}"
    );
}

#[tokio::test]
async fn nothing_is_lost_when_nobody_waits() {
    let fixture = Fixture::new();
    let mut source = fixture.open();
    next_empty(&mut source).await;
    fixture.write("new", &release(1));
    // Dropped at its first await, over and over.
    let waited = timeout(PATIENCE, async {
        loop {
            tokio::select! {
                biased;
                update = source.next() => return update,
                () = tokio::task::yield_now() => {}
            }
        }
    });
    let update = waited.await.expect("the release was lost");
    assert!(matches!(update, Update::Release(_)), "{update:?}");
}
