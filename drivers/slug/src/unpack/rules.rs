//! What no entry may do, wherever the entries go: into a directory or into a layer.

use super::{UnpackError, archive::Entry, escaped, name::Place};
use crate::error::SlugError;

pub(super) const NOT_A_DIRECTORY: &str = "is not a directory";
pub(super) const REPLACES: &str = "would replace a directory";
pub(super) const THROUGH_LINK: &str = "would be written through a symbolic link";
pub(super) const NO_WAY: &str = "has something on its way that is no directory";
pub(super) const NOT_IN_APP: &str = "is a hard link to a file that is not in the app";
pub(super) const NOT_BEFORE: &str = "is a hard link to what is not before it in the archive";
pub(super) const TO_DIRECTORY: &str = "is a hard link to a directory";

/// `PATH_MAX` of Linux, without the NUL.
const LONGEST_TARGET: usize = 4_095;

pub(super) fn refused(entry: &Entry, reason: &str) -> UnpackError {
    UnpackError::Slug(SlugError::Entry {
        name: escaped(&entry.name),
        reason: reason.to_owned(),
    })
}

pub(super) fn no_app() -> UnpackError {
    SlugError::Archive("there is no directory app/ in it".to_owned()).into()
}

/// A link may say whatever it likes, if it says something: it is followed in the dyno, whose
/// root is another.
pub(super) fn check_symlink(entry: &Entry) -> Result<(), UnpackError> {
    if entry.target.is_empty() || entry.target.contains(&0) {
        return Err(refused(entry, "is a symbolic link to nothing"));
    }
    if entry.target.len() > LONGEST_TARGET {
        return Err(refused(
            entry,
            "is a symbolic link whose target is too long",
        ));
    }
    Ok(())
}

/// The file that a hard link at `place` is to be another name of: one in the app.
pub(super) fn target_of_link(place: &Place, entry: &Entry) -> Result<Place, UnpackError> {
    let outside = || refused(entry, NOT_IN_APP);
    let target = Place::of(&entry.target).map_err(|_| outside())?;
    if target.is_outside() || target.is_app() {
        return Err(outside());
    }
    if target == *place {
        return Err(refused(entry, "is a hard link to itself"));
    }
    Ok(target)
}
