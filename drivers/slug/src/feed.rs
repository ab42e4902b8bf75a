//! The bytes of a slug, on their way into a process that takes them.

use tokio::{io::AsyncWriteExt as _, net::unix::pipe};

use crate::{error::SlugError, fetch::Stream, id::SlugId, progress::Progress};

/// How far feeding came.
pub(crate) enum Fed {
    All,
    /// The other end reads no more.
    Refused,
}

/// Writes all that comes; answers whether the other end has taken it.
pub(crate) async fn feed(
    input: &mut impl Input,
    to: &mut pipe::Sender,
    progress: &dyn Progress,
) -> Result<Fed, SlugError> {
    while let Some(bytes) = input.next(progress).await? {
        if to.write_all(bytes).await.is_err() {
            return Ok(Fed::Refused);
        }
    }
    Ok(Fed::All)
}

/// Where the bytes of a slug come from.
pub(crate) trait Input {
    async fn next(&mut self, progress: &dyn Progress) -> Result<Option<&[u8]>, SlugError>;
    /// What it is, once it has ended.
    fn id(&self) -> Option<SlugId>;
    /// Whether it is known what it should be.
    fn is_expected(&self) -> bool;
}

impl Input for Stream {
    async fn next(&mut self, progress: &dyn Progress) -> Result<Option<&[u8]>, SlugError> {
        self.chunk(progress).await
    }

    fn id(&self) -> Option<SlugId> {
        self.id()
    }

    fn is_expected(&self) -> bool {
        true
    }
}
