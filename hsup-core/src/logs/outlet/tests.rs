//! What has no room, and who waits.

use super::*;

const BOUNDS: Bounds = Bounds {
    room: 1000,
    kept: 0,
    patience: Duration::ZERO,
};

#[test]
fn what_has_no_room_is_counted_and_so_is_all_behind_it() {
    let mut batch = Batch::default();
    let long = format!("{}\n", "x".repeat(BOUNDS.room - 10)).into_bytes();
    batch.add(b"web.1 | ", &long, usize::MAX, BOUNDS.room);
    assert_eq!((batch.bytes.len(), batch.dropped), (BOUNDS.room - 1, 0));
    batch.add(b"", b"\n\nthree\n", usize::MAX, BOUNDS.room);
    assert_eq!((batch.bytes.len(), batch.dropped), (BOUNDS.room, 2));
    // There would be room for nothing now, but there is none for the order either.
    batch.bytes.clear();
    batch.add(b"", b"four\n", usize::MAX, BOUNDS.room);
    assert_eq!((batch.bytes.len(), batch.dropped), (0, 3));
}

#[test]
fn lines_are_added_until_as_many_wait_as_are_held() {
    let mut batch = Batch::default();
    let added = batch.add(b"> ", b"one\ntwo\nthree\n", 6, BOUNDS.room);
    assert_eq!((&batch.bytes[..], added), (&b"> one\n"[..], 4));
    assert_eq!(batch.add(b"", b"two\n", 6, BOUNDS.room), 0);
}
