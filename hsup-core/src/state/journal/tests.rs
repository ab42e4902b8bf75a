use std::{ffi::OsStr, fs};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use proptest::prelude::*;

use super::*;

fn dyno(number: u64) -> LiveDyno {
    let name: DynoName = format!("web.{}", number + 1).parse().unwrap();
    LiveDyno {
        dyno_id: DynoId::mint(&name, number),
        name,
        release_id: 3,
        port: Some(5000),
        at_unix_ms: 7,
        io_dir: Some("/run/hsup/run/x/y".into()),
        ready: false,
    }
}

fn ready(number: u64) -> Record {
    Record::Ready {
        dyno_id: dyno(number).dyno_id,
    }
}

fn start(number: u64) -> Record {
    Record::Start(dyno(number))
}

fn end(number: u64) -> Record {
    Record::End {
        dyno_id: dyno(number).dyno_id,
        status: ExitStatus::code(1, 42),
    }
}

fn live(journal: &Journal) -> Vec<LiveDyno> {
    journal.live().cloned().collect()
}

impl Journal {
    /// Has the disk be full until what this answers is given to [`Journal::free_disk`].
    pub(crate) fn fill_disk(&mut self) -> File {
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        std::mem::replace(&mut self.file, full)
    }

    pub(crate) fn free_disk(&mut self, file: File) {
        self.file = file;
    }
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("journal")
    }

    fn open(&self) -> (Journal, Vec<Damage>) {
        Journal::open(&self.path()).unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }
}

#[test]
fn what_was_started_and_has_not_ended_is_found_again() {
    let dir = Dir::new();
    let (mut journal, damage) = dir.open();
    assert_eq!(damage, []);
    journal.append(&[start(0), start(1)]).unwrap();
    journal.append(&[end(0), start(2)]).unwrap();
    assert_eq!(live(&journal), [dyno(1), dyno(2)]);
    drop(journal);

    let (journal, damage) = dir.open();
    assert_eq!((live(&journal), damage), (vec![dyno(1), dyno(2)], vec![]));
    assert_eq!(dir.text().lines().count(), 2, "not compacted on open");
}

#[test]
fn a_line_is_what_the_manual_says() {
    let dir = Dir::new();
    dir.open().0.append(&[start(0), ready(0), end(0)]).unwrap();
    assert_eq!(
        dir.text(),
        concat!(
            r#"{"start":{"dyno_id":"web-1-0000000000000","name":"web.1","release":3,"at_unix_ms":7,"port":5000,"io_dir":"/run/hsup/run/x/y"}}"#,
            "\n",
            r#"{"ready":{"dyno_id":"web-1-0000000000000"}}"#,
            "\n",
            r#"{"end":{"dyno_id":"web-1-0000000000000","status":{"how":{"code":1},"at_unix_ms":42}}}"#,
            "\n"
        )
    );
}

#[test]
fn that_a_dyno_was_ready_is_remembered_for_as_long_as_it_lives() {
    let dir = Dir::new();
    let records = [start(0), start(1), ready(1), end(0), ready(0)];
    dir.open().0.append(&records).unwrap();
    let expected = [LiveDyno {
        ready: true,
        ..dyno(1)
    }];
    for _ in 0..2 {
        // The second time it is read from what the first has compacted.
        assert_eq!(live(&dir.open().0), expected);
        assert_eq!(dir.text().lines().count(), 1);
    }
}

#[test]
fn garbage_is_reported_and_skipped() {
    let dir = Dir::new();
    dir.open().0.append(&[start(0), start(1)]).unwrap();
    let (first, second) = {
        let text = dir.text();
        let mut lines = text.lines().map(str::to_owned);
        (lines.next().unwrap(), lines.next().unwrap())
    };
    let mut text = format!("{first}\n\0\0\0\n{{\"start\":7}}\n{second}\n").into_bytes();
    text.extend(b"\xff\xfe\n{\"start\":{\"dyno_id\":\"we");
    crate::files::write_atomic(&dir.path(), &text).unwrap();

    let (journal, damage) = dir.open();
    assert_eq!(live(&journal), [dyno(0), dyno(1)]);
    let damage: Vec<String> = damage.iter().map(ToString::to_string).collect();
    assert_eq!(damage.len(), 2, "{damage:?}");
    assert!(damage[0].starts_with("3 of 6 lines"), "{damage:?}");
    assert!(damage[1].contains("cut off"), "{damage:?}");
    assert_eq!(dir.open().1, [], "damage is reported once");
}

#[test]
fn a_journal_that_cannot_be_compacted_on_open_is_still_appended_to() {
    let dir = Dir::new();
    let (mut journal, _) = dir.open();
    journal.append(&[start(0)]).unwrap();
    // A line that a full disk cut off, and that could not be undone.
    journal.file.write_all(b"{\"start\":{\"dy").unwrap();
    journal.torn = true;
    journal.append(&[start(1)]).unwrap();
    let (journal, damage) = dir.open();
    assert_eq!(live(&journal), [dyno(0), dyno(1)]);
    assert_eq!(damage.len(), 1, "{damage:?}");
}

#[test]
fn a_full_disk_is_an_error_that_says_what_happens_and_ends() {
    let dir = Dir::new();
    let (mut journal, _) = dir.open();
    journal.append(&[start(0)]).unwrap();
    let file = journal.fill_disk();
    let error = journal.append(&[start(1)]).unwrap_err();
    let JournalError::Write { source, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert!(error.to_string().contains("no dyno is started"), "{error}");
    assert!(error.to_string().contains("journal`"), "{error}");
    assert_eq!(
        live(&journal),
        [dyno(0)],
        "what was not written does not count"
    );

    journal.free_disk(file);
    journal.append(&[start(1)]).unwrap();
    drop(journal);
    let (journal, damage) = dir.open();
    assert_eq!((live(&journal), damage), (vec![dyno(0), dyno(1)], vec![]));
}

#[test]
fn an_end_that_could_not_be_written_is_written_when_there_is_room() {
    let dir = Dir::new();
    let (mut journal, _) = dir.open();
    journal.append(&[start(0), start(1), start(2)]).unwrap();
    let file = journal.fill_disk();
    journal.note(end(0)).unwrap_err();
    journal.append(&[start(3)]).unwrap_err();
    journal.catch_up().unwrap_err();
    assert_eq!(live(&journal), [dyno(1), dyno(2)]);

    journal.free_disk(file);
    journal.append(&[start(3)]).unwrap();
    assert_eq!(live(&dir.open().0), [dyno(1), dyno(2), dyno(3)]);

    let (mut journal, _) = dir.open();
    let file = journal.fill_disk();
    journal.note(end(1)).unwrap_err();
    journal.free_disk(file);
    journal.catch_up().unwrap();
    let text = dir.text();
    journal.catch_up().unwrap();
    assert_eq!(dir.text(), text, "once is enough");
    assert_eq!(live(&dir.open().0), [dyno(2), dyno(3)]);
}

#[test]
fn room_that_is_reserved_is_no_part_of_the_text() {
    let dir = Dir::new();
    let (mut journal, _) = dir.open();
    journal.append(&[start(0)]).unwrap();
    let before = dir.text();
    journal.reserve(100).unwrap();
    assert_eq!(dir.text(), before);
    let metadata = fs::metadata(dir.path()).unwrap();
    // In units of 512 bytes. A file system that cannot reserve has only what is written.
    let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
    assert!(
        blocks * 512 >= 100 * ROOM_PER_DYNO || blocks <= 16,
        "{blocks}"
    );
    journal.append(&[start(1)]).unwrap();
    journal.unreserve();
    drop(journal);
    let (journal, damage) = dir.open();
    assert_eq!((live(&journal), damage), (vec![dyno(0), dyno(1)], vec![]));
    let too_much = journal.reserve(usize::MAX).unwrap_err();
    assert!(too_much.to_string().contains("no room"), "{too_much}");
}

#[test]
fn a_write_that_stops_half_way_does_not_spoil_the_next() {
    let dir = Dir::new();
    let (mut journal, _) = dir.open();
    // A pipe takes the first 64 KiB, and cannot be cut back to where it was.
    let (_reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    let file = std::mem::replace(&mut journal.file, File::from(writer));
    let many: Vec<Record> = (0..2000).map(start).collect();
    let error = journal.append(&many).unwrap_err();
    let JournalError::Write { source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(live(&journal), []);

    journal.file = file;
    journal.append(&[start(1)]).unwrap();
    journal.append(&[start(2)]).unwrap();
    let text = dir.text();
    assert!(text.starts_with("\n{") && !text.contains("}\n\n"), "{text}");
    assert_eq!(Contents::read(text.as_bytes()).live.len(), 2);
}

#[test]
fn it_stays_small_however_many_dynos_come_and_go() {
    let dir = Dir::new();
    let (mut journal, _) = dir.open();
    journal.append(&[start(0)]).unwrap();
    let mut largest = 0;
    for round in 0..40 {
        let batch: Vec<Record> = (1..500)
            .flat_map(|n| [start(round * 1000 + n), end(round * 1000 + n)])
            .collect();
        journal.append(&batch).unwrap();
        largest = largest.max(fs::metadata(dir.path()).unwrap().len());
    }
    assert!(largest < 2 * COMPACT_ABOVE, "{largest}");
    assert_eq!(live(&journal), [dyno(0)]);
    assert_eq!(live(&dir.open().0), [dyno(0)]);
}

/// Whoever cannot open it then would go on with the old one, which has no name any more.
#[test]
fn a_rewritten_journal_is_open_before_it_takes_the_place_of_the_old_one() {
    let dir = Dir::new();
    let (mut journal, _) = dir.open();
    journal.append(&[start(0), start(1), end(0)]).unwrap();
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let watched = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(dir.0.path(), watched).unwrap();
    journal.compact().unwrap();
    let events = inotify.read_events().unwrap();
    let of_journal = events
        .iter()
        .filter(|event| event.name.as_deref() == Some(OsStr::new("journal")));
    let masks: Vec<_> = of_journal.map(|event| event.mask).collect();
    assert_eq!(masks, [AddWatchFlags::IN_MOVED_TO]);
    // And what it has open is written at its end.
    journal.append(&[start(2), end(1)]).unwrap();
    drop(journal);
    assert_eq!(dir.text().lines().count(), 3);
    assert_eq!(live(&dir.open().0), [dyno(2)]);
}

#[test]
fn many_live_dynos_do_not_make_every_append_a_rewrite() {
    let dir = Dir::new();
    let (mut journal, _) = dir.open();
    let many: Vec<Record> = (0..10_000).map(start).collect();
    journal.append(&many).unwrap();
    assert!(journal.length > COMPACT_ABOVE);
    assert!(journal.compact_at > journal.length * 3 / 2);
}

proptest! {
    #[test]
    fn cut_anywhere_it_loses_at_most_the_last_line(cut in 0.0..1.0_f64) {
        let dir = Dir::new();
        dir.open().0.append(&[start(0), start(1), end(0), start(2)]).unwrap();
        let text = dir.text();
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "a place in a short text")]
        let text = &text[..(text.len() as f64 * cut) as usize];
        let whole: String = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        let expected = Contents::read(whole.as_bytes());
        prop_assert!(expected.bad.is_empty() && !expected.torn);
        let got = Contents::read(text.as_bytes());
        prop_assert!(got.bad.is_empty());
        // A line that only lacks its end still counts.
        prop_assert!(got.live.len() >= expected.live.len() || got.lines > expected.lines);
        prop_assert!(got.lines <= expected.lines + 1);
    }

    #[test]
    fn reading_never_panics(text in prop::collection::vec(any::<u8>(), 0..300)) {
        Contents::read(&text);
    }
}
