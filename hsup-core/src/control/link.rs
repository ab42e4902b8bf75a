//! What leads hsupctl to a control socket that is not where it looks anyway.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{self, Path},
};

use crate::paths::Paths;

/// Tells hsupctl where the control socket of the supervisor is that has the folder `run_dir`;
/// `None`: nowhere, or where it looks anyway. What was told before counts no more.
pub(crate) fn lead_to(run_dir: &Path, socket: Option<&Path>) {
    let link = Paths::control_link(run_dir);
    if let Err(error) = fs::remove_file(&link)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, path = %link.display(), "link not removed");
    }
    let Some(socket) = socket else {
        return;
    };
    let made = path::absolute(socket).and_then(|socket| symlink(socket, &link));
    if let Err(error) = made {
        // Whoever named the socket can name it to hsupctl, too.
        tracing::warn!(%error, path = %link.display(), "no link to the control socket");
    }
}
