//! Every line that a dyno wrote, and what became of it.
//!
//! Two drains get all lines. The file must have each line of a dyno once and in order. Of what
//! the file has, Logplex must have got each, or have been told that it is missing.
//!
//! Only what a killed hsup had in hand is gone. How much that was is known to the line: what it
//! had not read still waits in the FIFO, and what it had written is in the file. All else, what
//! dynos write while there is no hsup included, must arrive.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use anyhow::{Result, ensure};
use hsup_tests::fake::logplex::FakeLogplex;

/// The lines of one process of a dyno, by `ID:PID`.
#[derive(Clone, Copy, Debug, Default)]
struct Numbered {
    /// How many it says it has written; one that died meanwhile has not said it.
    written: u64,
    /// All up to this one are in the file, or were in the hands of an hsup that was killed.
    last: u64,
    /// All up to this one are at Logplex or announced, or were in those hands.
    sent: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Books {
    path: PathBuf,
    offset: u64,
    /// The beginning of a line.
    rest: Vec<u8>,
    /// The file has half a line of an hsup that was killed, and the next one ends it.
    is_torn: bool,
    dynos: BTreeMap<String, Numbered>,
    /// Lines in the file: all, and those of dynos alone.
    in_file: (u64, u64),
    /// Messages of Logplex that were looked at.
    looked: usize,
    /// What Logplex has got: all, and those of dynos alone.
    taken: (u64, u64),
    told_missing: u64,
    /// Lines that the file has and of which Logplex does not know, for hsup was killed.
    untold: i64,
    /// Lines of dynos that hsup had in hand when it was killed: they are nowhere.
    in_hand: u64,
    /// Lines of dynos that were in their FIFOs when nobody was left to hold those.
    forgotten: u64,
    /// At the last look: lines of dynos that Logplex has not got, and of how many lines it was
    /// told that they are missing.
    looked_at: (u64, u64),
}

/// Lines in the file and at Logplex: if they stay the same, nothing comes any more.
pub(crate) type Counts = (u64, u64, u64);

impl Books {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self {
            path,
            offset: 0,
            rest: Vec::new(),
            is_torn: false,
            dynos: BTreeMap::new(),
            in_file: (0, 0),
            looked: 0,
            taken: (0, 0),
            told_missing: 0,
            untold: 0,
            in_hand: 0,
            forgotten: 0,
            looked_at: (0, 0),
        }
    }

    /// This dyno has now written so many lines.
    pub(crate) fn wrote(&mut self, id: &str, written: u64) {
        self.dynos.entry(id.to_owned()).or_default().written = written;
    }

    /// hsup was killed, and no request of it is under way any more. `waiting`: the first line that
    /// is in a dyno's FIFO. Those before it and behind the last in the file are gone; there are
    /// none if it was quiet.
    pub(crate) fn killed(
        &mut self,
        logplex: &FakeLogplex,
        waiting: &BTreeMap<String, u64>,
        was_quiet: bool,
    ) -> Result<()> {
        self.read(logplex)?;
        self.is_torn |= !std::mem::take(&mut self.rest).is_empty();
        let mut gone = 0;
        for (id, dyno) in &mut self.dynos {
            let read = waiting.get(id).map_or(dyno.written, |first| first - 1);
            gone += read.saturating_sub(dyno.last);
            dyno.last = dyno.last.max(read);
            dyno.sent = dyno.sent.max(read);
        }
        let missing = self.missing();
        ensure!(
            !was_quiet || gone == 0 && missing == self.looked_at.0,
            "all lines had arrived, and a kill took {gone} of them: {}",
            self.counts()
        );
        self.in_hand += gone;
        self.untold += self.unknown();
        self.looked_at = (missing, self.told_missing);
        Ok(())
    }

    /// Of these dynos nobody held the FIFO any more: what was in it is gone.
    pub(crate) fn forget(&mut self, is_bereft: impl Fn(&str) -> bool) {
        for dyno in self.dynos.iter_mut().filter(|(id, _)| is_bereft(id)) {
            let dyno = dyno.1;
            self.forgotten += dyno.written.saturating_sub(dyno.last);
            dyno.last = dyno.last.max(dyno.written);
        }
    }

    /// Reads on in the file and at Logplex.
    pub(crate) fn read(&mut self, logplex: &FakeLogplex) -> Result<Counts> {
        self.read_file()?;
        for message in logplex.messages_behind(self.looked) {
            self.looked += 1;
            let (dropped, lost) = message.told_missing();
            if dropped + lost > 0 {
                self.told_missing += dropped + lost;
                continue;
            }
            self.taken.0 += 1;
            let Some((id, number)) = numbered(&message.text) else {
                continue;
            };
            self.taken.1 += 1;
            let dyno = self.dynos.entry(id.to_owned()).or_default();
            let sent = dyno.sent;
            ensure!(
                number > sent,
                "Logplex got line {number} of {id} after {sent}"
            );
            dyno.sent = number;
        }
        Ok((self.in_file.0, self.taken.0, self.told_missing))
    }

    fn read_file(&mut self) -> Result<()> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read_to_end(&mut self.rest)?;
        self.offset += read as u64;
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let rest = self.rest.split_off(whole.map_or(0, |last| last + 1));
        let mut text = std::mem::replace(&mut self.rest, rest);
        if self.is_torn && !text.is_empty() {
            ensure!(text[0] == b'\n', "half a line in the file has no end");
            text.remove(0);
            self.is_torn = false;
        }
        for line in String::from_utf8_lossy(&text).lines() {
            self.in_file.0 += 1;
            let Some((id, number)) = line.split_once("]: ").and_then(|(_, text)| numbered(text))
            else {
                continue;
            };
            self.in_file.1 += 1;
            let dyno = self.dynos.entry(id.to_owned()).or_default();
            let last = dyno.last;
            ensure!(
                number == last + 1,
                "the file has line {number} of {id} after {last}"
            );
            dyno.last = number;
        }
        Ok(())
    }

    /// The lines of dynos that the file should have and has not.
    pub(crate) fn missing_in_file(&self, is_bereft: impl Fn(&str) -> bool) -> Vec<String> {
        let missing = self.dynos.iter();
        let missing = missing.filter(|(id, dyno)| dyno.last < dyno.written && !is_bereft(id));
        let shown = missing.map(|(id, dyno)| format!("{id}: {} of {}", dyno.last, dyno.written));
        shown.collect()
    }

    /// Lines of dynos that the file has and Logplex has not.
    const fn missing(&self) -> u64 {
        self.in_file.1.saturating_sub(self.taken.1)
    }

    /// Of how many lines Logplex does not know, which are in the file.
    fn unknown(&self) -> i64 {
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        count(self.in_file.0) - count(self.taken.0 + self.told_missing) - self.untold
    }

    /// What Logplex should know of and does not.
    pub(crate) fn missing_at_logplex(&self) -> Option<String> {
        let unknown = self.unknown();
        (unknown != 0).then(|| format!("{unknown} lines at Logplex: {}", self.counts()))
    }

    /// Closes the books of a step: no more lines of dynos are missing than were announced.
    pub(crate) fn close(&mut self) -> Result<()> {
        let missing = self.missing();
        let lost = missing.saturating_sub(self.looked_at.0);
        let told = self.told_missing - self.looked_at.1;
        ensure!(
            lost <= told,
            "{lost} lines of dynos did not reach Logplex, {told} were announced: {}",
            self.counts()
        );
        self.looked_at = (missing, self.told_missing);
        Ok(())
    }

    /// For people.
    pub(crate) fn counts(&self) -> String {
        let Self {
            in_file,
            taken,
            told_missing,
            untold,
            in_hand,
            forgotten,
            ..
        } = self;
        format!(
            "{} lines in the file, {} of dynos; {} at Logplex, {} of dynos; {told_missing} \
             announced as missing; gone with a killed hsup {in_hand} lines of dynos, and \
             {untold} that are in the file and not at Logplex; {forgotten} with a driver besides",
            in_file.0, in_file.1, taken.0, taken.1
        )
    }
}

/// `ID:PID NUMBER`, as `test-tally` writes and answers it.
pub(crate) fn numbered(text: &str) -> Option<(&str, u64)> {
    let mut words = text.split(' ');
    let (id, number) = (words.next()?, words.next()?.parse().ok()?);
    id.contains(':').then_some((id, number))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use hsup_tests::fake::logplex::Dialect;

    use super::*;

    const ID: &str = "web-1-a:7";

    /// Books of a file with these lines of a dyno that says it has written so many.
    fn books(numbers: &[u64], written: u64) -> (tempfile::TempDir, Books) {
        let dir = tempfile::tempdir().unwrap();
        let mut books = Books::new(dir.path().join("all.log"));
        books.wrote(ID, written);
        append(&books, numbers);
        (dir, books)
    }

    fn append(books: &Books, numbers: &[u64]) {
        for number in numbers {
            let line = format!("2026-11-28T20:00:00Z app[web.1]: {ID} {number} \n");
            append_text(books, &line);
        }
    }

    fn append_text(books: &Books, text: &str) {
        let mut options = File::options();
        let mut file = options.append(true).create(true).open(&books.path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// hsup is killed while lines are on their way, and this one is the first in the FIFO.
    fn kill(books: &mut Books, waiting: Option<u64>) -> Result<()> {
        let logplex = FakeLogplex::start(Dialect::Logplex)?;
        let waiting = waiting.map(|first| (ID.to_owned(), first));
        books.killed(&logplex, &waiting.into_iter().collect(), false)
    }

    fn missing(books: &Books) -> Vec<String> {
        books.missing_in_file(|_| false)
    }

    #[test]
    fn every_line_in_order_is_right() {
        let (_dir, mut books) = books(&[1, 2], 3);
        books.read_file().unwrap();
        assert_eq!(missing(&books), ["web-1-a:7: 2 of 3"]);
        append(&books, &[3]);
        books.read_file().unwrap();
        assert!(missing(&books).is_empty());
        assert_eq!(books.in_file, (3, 3));
    }

    #[test]
    fn a_line_that_is_missing_or_comes_twice_is_noticed() {
        for wrong in [&[1, 3][..], &[1, 1], &[2, 1]] {
            let (_dir, mut books) = books(wrong, 3);
            assert!(books.read_file().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_hsup_had_in_hand_is_gone_and_what_waits_must_come() {
        let (_dir, mut books) = books(&[1, 2], 7);
        kill(&mut books, Some(5)).unwrap();
        assert_eq!(missing(&books), ["web-1-a:7: 4 of 7"]);
        books.wrote(ID, 9);
        append(&books, &[5, 6, 7, 8]);
        books.read_file().unwrap();
        assert_eq!(missing(&books), ["web-1-a:7: 8 of 9"]);
        assert_eq!(books.in_hand, 2);
        for wrong in [8, 10] {
            append(&books, &[wrong]);
            assert!(books.read_file().is_err(), "{wrong}");
        }
    }

    #[test]
    fn where_nothing_waits_all_is_gone_that_is_not_in_the_file() {
        let (_dir, mut books) = books(&[1, 2], 5);
        kill(&mut books, None).unwrap();
        assert!(missing(&books).is_empty());
        append(&books, &[5]);
        assert!(books.read_file().is_err(), "it was gone");
    }

    #[test]
    fn a_quiet_kill_takes_no_line() {
        let logplex = FakeLogplex::start(Dialect::Logplex).unwrap();
        let (_dir, mut complete) = books(&[], 0);
        let none = BTreeMap::new();
        complete.killed(&logplex, &none, true).unwrap();
        let (_dir, mut lacking) = books(&[], 1);
        lacking.killed(&logplex, &none, true).unwrap_err();
    }

    #[test]
    fn half_a_line_of_one_that_was_killed_is_none() {
        let (_dir, mut books) = books(&[1], 12);
        append_text(&books, "2026-11-28T20:00:00Z app[web.1]: web-1-a:7 1");
        kill(&mut books, Some(12)).unwrap();
        append_text(&books, "\n");
        append(&books, &[12]);
        books.read_file().unwrap();
        assert!(missing(&books).is_empty());
        assert_eq!(books.in_file, (2, 2));
    }

    #[test]
    fn what_nobody_held_is_forgotten_for_those_alone() {
        let (_dir, mut books) = books(&[1], 3);
        books.wrote("web-2-b:8", 1);
        books.read_file().unwrap();
        let is_bereft = |id: &str| id == ID;
        assert_eq!(books.missing_in_file(is_bereft), ["web-2-b:8: 0 of 1"]);
        books.forget(is_bereft);
        assert_eq!(missing(&books), ["web-2-b:8: 0 of 1"]);
        assert_eq!(books.forgotten, 2);
    }

    #[test]
    fn more_lines_may_not_be_lost_than_were_announced() {
        let (_dir, mut books) = books(&[1, 2, 3], 3);
        books.read_file().unwrap();
        books.taken = (1, 1);
        assert_eq!(books.unknown(), 2);
        assert!(books.close().is_err());
        books.told_missing = 2;
        assert_eq!(books.missing_at_logplex(), None);
        books.close().unwrap();
        append(&books, &[4]);
        books.read_file().unwrap();
        // In the file, and not at Logplex when it was killed.
        kill(&mut books, None).unwrap();
        assert_eq!(books.missing_at_logplex(), None);
        books.close().unwrap();
        books.wrote(ID, 5);
        append(&books, &[5]);
        books.read_file().unwrap();
        assert!(books.missing_at_logplex().is_some());
        assert!(books.close().is_err());
    }
}
