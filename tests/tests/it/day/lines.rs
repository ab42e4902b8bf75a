//! What was written, as those say it who wrote, and what became of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use hsup_tests::fake::logplex::FakeLogplex;

/// The numbers of the lines of each dyno, by its id, in their order: of `ID NUMBER …`.
pub(crate) fn numbers<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, Vec<u64>> {
    let mut numbers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in lines {
        let mut words = line.split(' ');
        // Half a line may have half a number, and then nothing behind it.
        if let (Some(id), Some(Ok(number)), Some(_)) =
            (words.next(), words.next().map(str::parse), words.next())
        {
            numbers.entry(id).or_default().push(number);
        }
    }
    numbers
}

/// What the dynos themselves left in this folder of how much each has written.
pub(crate) fn tallies(folder: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries
        .map(|entry| {
            let count = fs::read_to_string(entry.path()).unwrap().parse().unwrap();
            (entry.file_name().into_string().unwrap(), count)
        })
        .collect()
}

/// What a file drain has of the lines that dynos say they wrote: each once at most, and in order.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) lines: u64,
    pub(crate) missing: u64,
    /// In so many places.
    pub(crate) gaps: usize,
}

/// Compares the text of a file drain with what the dynos say they wrote. It may hold no other
/// lines of dynos than these, and none twice or out of order.
pub(crate) fn kept(text: &str, tallies: &BTreeMap<String, u64>) -> Kept {
    let in_file = in_file(text);
    let mut kept = Kept::default();
    for (id, count) in tallies {
        let written = in_file.get(&**id).map_or(&[][..], Vec::as_slice);
        let mut next = 1;
        for &number in written.iter().chain([&(count + 1)]) {
            assert!(number >= next, "{id}: {number} comes after {}", next - 1);
            kept.missing += number - next;
            kept.gaps += usize::from(number > next);
            next = number + 1;
        }
        kept.lines += written.len() as u64;
    }
    let silent = |id: &&&str| !tallies.contains_key(**id);
    let unknown: BTreeSet<_> = in_file.keys().filter(silent).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    kept
}

/// The numbers of the lines of each dyno in the text of a file drain.
pub(crate) fn in_file(text: &str) -> BTreeMap<&str, Vec<u64>> {
    let texts = text.lines();
    numbers(texts.filter_map(|line| Some(line.split_once("]: ")?.1)))
}

/// Looks that each line that the dynos say they wrote is in the text of a file drain, once and
/// in order, and no other.
pub(super) fn are_all_in(text: &str, tallies: &BTreeMap<String, u64>) {
    let kept = kept(text, tallies);
    assert_eq!(kept.missing, 0, "{kept:?}");
}

/// What became of the lines of Logplex.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) sent: u64,
    /// L12.
    pub(super) dropped: u64,
    /// L13.
    pub(super) lost: u64,
    /// In hsup's last words.
    pub(super) left: u64,
}

impl Books {
    /// What Logplex says, which has got no line twice or out of order, and how hsup ended.
    pub(super) fn of(logplex: &FakeLogplex, log: &str) -> Self {
        let messages = logplex.messages();
        let own: Vec<_> = messages
            .iter()
            .filter(|message| message.priority != 172)
            .collect();
        for (id, numbers) in numbers(own.iter().map(|message| &*message.text)) {
            assert!(numbers.is_sorted_by(|one, next| one < next), "{id}");
        }
        let mut words = log.lines();
        let words = words.find(|line| line.contains("not delivered to logplex+http://"));
        let left = words.map_or(0, |line| line.split(' ').nth(1).unwrap().parse().unwrap());
        let (dropped, lost) = logplex.told_missing();
        Self {
            sent: own.len() as u64,
            dropped,
            lost,
            left,
        }
    }
}
