//! Whether a history that was damaged anyhow can be gone on with.

use super::*;

/// The text of the history: a release can be taken in after it, and is found again.
pub fn history(text: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history.json");
    crate::files::write_atomic(&path, text).expect("the history");
    let (mut history, _) = History::load(path.clone()).expect("the history loads");
    let good = history.last_good().map(|record| record.id);
    let taken = history
        .take_in(Release::default(), None, "apply", None, 7)
        .expect("there is room");
    assert_eq!(history.last_good().map(|record| record.id), good);
    assert!(taken.forgotten.iter().all(|it| Some(it.id) != good));
    let ids = |history: &History| history.iter().map(|it| it.id).collect::<Vec<_>>();
    let of_id = history.iter().filter(|it| it.id == taken.id);
    assert_eq!(of_id.count(), 1);

    let (again, damage) = History::load(path).expect("the history loads again");
    assert!(damage.is_none(), "{damage:?}");
    assert_eq!(ids(&again), ids(&history));
}
