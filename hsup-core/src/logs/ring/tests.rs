//! What rings keep, and what they cost.

use proptest::prelude::*;

use super::{
    lines::{NAME_BYTES, SLACK},
    *,
};
use crate::logs::line::{Source, Stream};

const APP: Origin = Origin {
    source: Source::App,
    stream: Stream::Stdout,
};

fn id(text: &str) -> DynoId {
    text.parse().unwrap()
}

fn texts(tail: Tail) -> Vec<String> {
    tail.chunks
        .into_iter()
        .flat_map(|mut chunk| std::iter::from_fn(move || chunk.pop()))
        .map(|line| String::from_utf8(line.text.to_vec()).unwrap())
        .collect()
}

#[test]
fn the_tail_is_in_order_of_arrival_over_all_dynos() {
    let mut rings = Rings::new(4096, 1 << 20);
    let (web, _) = rings.begin("web.1", &id("a"));
    let (worker, _) = rings.begin("worker.1", &id("b"));
    rings.append(web, APP, 5, b"1\n2\n");
    rings.append(worker, APP, 4, b"3\n");
    rings.append_note("web.1", 3, b"4\n");
    rings.append(web, APP, 2, b"5\n6\n7\n");
    let all = Filter::default();
    assert_eq!(
        texts(rings.tail(&all, 100, usize::MAX)),
        ["1", "2", "3", "4", "5", "6", "7"]
    );
    assert_eq!(texts(rings.tail(&all, 2, usize::MAX)), ["6", "7"]);
    assert_eq!(
        texts(rings.tail(&all, 6, usize::MAX)),
        ["2", "3", "4", "5", "6", "7"]
    );
    assert_eq!(texts(rings.tail(&all, 0, usize::MAX)), [""; 0]);
    assert_eq!(
        texts(rings.tail(&Filter::dyno("worker"), 9, usize::MAX)),
        ["3"]
    );
    let heroku = Filter {
        source: Some(Source::Heroku),
        ..Filter::default()
    };
    assert_eq!(texts(rings.tail(&heroku, 9, usize::MAX)), ["4"]);
}

#[test]
fn the_lines_of_a_dead_dyno_are_told_from_its_successors() {
    let mut rings = Rings::new(4096, 1 << 20);
    let (old, _) = rings.begin("web.1", &id("old"));
    rings.append(old, APP, 0, b"panic\n");
    rings.end(old);
    rings.append_note("web.1", 0, b"State changed from up to crashed\n");
    let (new, _) = rings.begin("web.1", &id("new"));
    rings.append(new, APP, 0, b"listening\n");
    assert_eq!(texts(rings.tail_of(&id("old"), 9)), ["panic"]);
    assert_eq!(texts(rings.tail_of(&id("new"), 9)), ["listening"]);
    assert_eq!(texts(rings.tail_of(&id("none"), 9)), [""; 0]);

    // A third beside the second, as in a rollout: each is known until another has ended.
    let (newest, _) = rings.begin("web.1", &id("newest"));
    rings.append(newest, APP, 0, b"listening, too\n");
    rings.end(new);
    assert_eq!(texts(rings.tail_of(&id("new"), 9)), ["listening"]);
    assert_eq!(texts(rings.tail_of(&id("newest"), 9)), ["listening, too"]);
    assert_eq!(texts(rings.tail_of(&id("old"), 9)), [""; 0]);
}

#[test]
fn ten_thousand_silent_crashes_leave_nothing_behind() {
    let mut rings = Rings::new(4096, 1 << 20);
    for run in 0..10_000 {
        let (run, _) = rings.begin("web.1", &id(&format!("web-1-{run}")));
        rings.end(run);
    }
    assert_eq!(rings.slots[0].as_ref().unwrap().runs.len(), 1);
    assert_eq!(rings.used, NAME_BYTES);
    assert!(rings.footprint() < 2048, "{}", rings.footprint());
}

#[test]
fn a_tail_without_room_has_the_newest_lines_and_counts_the_others() {
    let mut rings = Rings::new(1 << 20, 1 << 24);
    let (web, _) = rings.begin("web.1", &id("web"));
    let (worker, _) = rings.begin("worker.1", &id("worker"));
    for number in 0..10 {
        let run = if number % 2 == 0 { web } else { worker };
        rings.append(run, APP, 0, format!("{number:999}\n\n").as_bytes());
    }
    let all = Filter::default();
    let tail = rings.tail(&all, 15, 3500);
    assert_eq!(tail.left_out, 15 - 6);
    let kept = texts(tail);
    let firsts: Vec<_> = kept.iter().step_by(2).map(|line| line.trim()).collect();
    assert_eq!(firsts, ["7", "8", "9"]);
    let tail = rings.tail(&all, 1000, 3500);
    assert_eq!(tail.left_out, 20 - 6);
}

#[test]
fn a_dyno_costs_what_it_says_and_little_else() {
    const DYNOS: usize = 1000;
    let mut rings = Rings::new(256 * 1024, 64 << 20);
    let begin = |rings: &mut Rings, number: usize| {
        let name = format!("web.{number}");
        drop(rings.begin(&name, &id(&format!("web-{number}"))));
        name
    };
    let names: Vec<_> = (1..=DYNOS)
        .map(|number| begin(&mut rings, number))
        .collect();
    let silent = rings.footprint() / DYNOS;
    assert!(silent <= 300, "{silent} bytes for a dyno that is silent");
    let notes = [
        "State changed from down to starting\n",
        "Starting process with command `exec bundle exec puma -C config/puma.rb`\n",
        "State changed from starting to up\n",
    ];
    for note in notes {
        for name in &names {
            rings.append_note(name, 0, note.as_bytes());
        }
    }
    let text: usize = notes.iter().map(|note| note.len()).sum();
    let up = rings.footprint() / DYNOS;
    assert!(
        up <= silent + text + 4 * ENTRY_BYTES,
        "{up} bytes for one that is up"
    );
}

#[test]
fn lines_that_have_gone_leave_no_room_reserved() {
    let mut rings = Rings::new(256 * 1024, 1 << 20);
    let (web, _) = rings.begin("web.1", &id("a"));
    for _ in 0..4 {
        rings.append(web, APP, 0, format!("{}\n", "x".repeat(60_000)).as_bytes());
    }
    // This one never fits, and no ring has a hole.
    let long = format!("{}\nshort\n", "x".repeat(300_000));
    rings.append(web, APP, 0, long.as_bytes());
    assert_eq!(
        texts(rings.tail(&Filter::default(), 9, usize::MAX)),
        ["short"]
    );
    assert!(rings.allocated() < 4096, "{}", rings.allocated());
}

#[test]
fn a_line_that_never_fits_is_not_kept() {
    let mut rings = Rings::new(100, 1 << 20);
    let (web, _) = rings.begin("web.1", &id("a"));
    rings.append(web, APP, 0, format!("{}\n", "x".repeat(200)).as_bytes());
    rings.append(
        web,
        APP,
        0,
        format!("{}\nshort\n", "x".repeat(200)).as_bytes(),
    );
    assert_eq!(
        texts(rings.tail(&Filter::default(), 9, usize::MAX)),
        ["short"]
    );

    // Nor is anything that would stand before it as if it had never been.
    rings.append(
        web,
        APP,
        0,
        format!("{}\nnext\n", "x".repeat(200)).as_bytes(),
    );
    assert_eq!(
        texts(rings.tail(&Filter::default(), 9, usize::MAX)),
        ["next"]
    );
}

#[test]
fn the_total_bound_takes_the_oldest_of_all_and_names_that_are_over() {
    let mut rings = Rings::new(64 * 1024, 256 * 1024);
    let line = format!("{}\n", "x".repeat(99));
    for number in 0..10_000 {
        let (run, _) = rings.begin(&format!("run.{number}"), &id(&format!("run-{number}")));
        rings.append(run, APP, 0, line.as_bytes());
        rings.end(run);
        assert!(rings.used <= rings.total_bytes);
    }
    assert!(
        rings.slots.len() < 2000,
        "slots are used again: {}",
        rings.slots.len()
    );
    assert_eq!(rings.by_name.len(), rings.slots.iter().flatten().count());
    assert!(rings.by_name.contains_key("run.9999"));
    assert!(!rings.by_name.contains_key("run.0"));

    // A chatty one beside them has the newest lines, so the others go first.
    let (web, _) = rings.begin("web.1", &id("web"));
    for _ in 0..10_000 {
        rings.append(web, APP, 0, line.as_bytes());
        assert!(rings.used <= rings.total_bytes);
    }
    assert!(rings.allocated() <= rings.total_bytes + rings.total_bytes / 4);
}

proptest! {
    /// Against a list that forgets nothing: what a ring has is always its end, and as much as fits.
    #[test]
    fn a_ring_holds_the_end_of_what_was_written(
        blocks in prop::collection::vec(prop::collection::vec("[a-z]{0,40}", 1..8), 1..60),
        limit in 64_usize..2048,
        n in 1_usize..50,
    ) {
        let mut rings = Rings::new(limit, 1 << 20);
        let (web, _) = rings.begin("web.1", &id("a"));
        let mut written = Vec::new();
        for block in &blocks {
            rings.append(web, APP, 0, format!("{}\n", block.join("\n")).as_bytes());
            written.extend(block.iter().cloned());
            let ring = rings.slots[0].as_ref().unwrap();
            let held = ring.bytes.len() + ring.entries.len() * ENTRY_BYTES;
            prop_assert!(held <= limit);
            prop_assert_eq!(ring.entries.iter().map(|entry| entry.len as usize).sum::<usize>(), ring.bytes.len());
            prop_assert_eq!(rings.used, ring.used());
        }
        let kept = texts(rings.tail(&Filter::default(), usize::MAX, usize::MAX));
        prop_assert!(!kept.is_empty() || limit < 41 + ENTRY_BYTES);
        prop_assert_eq!(&kept[..], &written[written.len() - kept.len()..]);
        let tail = texts(rings.tail(&Filter::default(), n, usize::MAX));
        prop_assert_eq!(&tail[..], &kept[kept.len().saturating_sub(n)..]);
    }

    #[test]
    fn the_sum_is_the_sum(
        steps in prop::collection::vec((0_usize..6, 1_usize..3000), 1..200),
    ) {
        let mut rings = Rings::new(4096, 12 * 1024);
        let mut runs: Vec<Option<Run>> = vec![None; 6];
        for (index, (which, len)) in steps.into_iter().enumerate() {
            match (runs[which], len % 5) {
                (Some(run), 0) => {
                    rings.end(run);
                    runs[which] = None;
                }
                (Some(run), _) => rings.append(run, APP, 0, format!("{}\n", "x".repeat(len)).as_bytes()),
                (None, _) => {
                    let begun = rings.begin(&format!("web.{}", which + 1), &id(&format!("d{index}")));
                    runs[which] = Some(begun.0);
                }
            }
            prop_assert_eq!(rings.used, rings.slots.iter().flatten().map(Ring::used).sum::<usize>());
            for ring in rings.slots.iter().flatten() {
                prop_assert!(ring.bytes.capacity() <= ring.bytes.len() * 5 / 4 + SLACK);
            }
        }
    }
}
