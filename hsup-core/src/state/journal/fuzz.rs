//! Whether a journal that was damaged anyhow can be gone on with.

use super::*;

/// The text of a journal: what is known to live after it was opened is known again when it is
/// opened the next time, and nothing is amiss then.
pub fn journal(text: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    File::create(&path)
        .and_then(|mut file| file.write_all(text))
        .expect("the journal");
    let (mut journal, _) = Journal::open(&path).expect("the journal opens");
    let live: Vec<LiveDyno> = journal.live().cloned().collect();
    let again = |left: &[LiveDyno]| {
        let (journal, damage) = Journal::open(&path).expect("the journal opens again");
        assert!(damage.is_empty(), "{damage:?}");
        assert!(journal.live().eq(left));
    };
    again(&live);
    if let Some((first, rest)) = live.split_first() {
        let dyno_id = first.dyno_id.clone();
        let status = ExitStatus::code(0, 7);
        journal
            .append(&[Record::End { dyno_id, status }])
            .expect("there is room");
        again(rest);
    }
}
