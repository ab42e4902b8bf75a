//! A slug as a layer of an image, made while it comes: nothing of it is ever on a disk of ours.
//!
//! ```text
//!    fetch ── bytes ──▶ hash, count ── bytes ──▶ check, make anew ── bytes ──▶ who takes it
//! ```
//!
//! What is taken is worth something only once [`layer`] has returned a slug's id: before that
//! it may be a part, or of another slug than was asked for.

use std::{io, os::fd::AsFd as _};

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncReadExt as _, join, net::unix::pipe, sync::mpsc};

use crate::{
    error::SlugError,
    feed::{Fed, feed},
    fetch::{Fetch, Source, Stream, widen},
    helper::{Helper, Program},
    id::SlugId,
    privilege::Peer,
    progress::{Progress, Step},
    store::Limits,
    unpack, wire,
};

/// As much as goes to whoever takes it at once.
const PIECE: usize = 256 * 1024;

/// How a layer is made.
#[derive(Clone, Debug)]
pub struct Layering {
    /// What is executed for the processes that fetch and check.
    pub program: Program,
    /// Whom they run as; one that owns nothing, where the driver is root.
    pub user: Peer,
    /// What a slug may at most be.
    pub limits: Limits,
    /// Whose all of it is in the layer: user and group.
    pub owner: (u32, u32),
}

/// Why there is no layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is the slug.
    #[error(transparent)]
    Slug(#[from] SlugError),
    /// Whoever was to take it takes no more, and knows why.
    #[error("the layer was not taken")]
    NotTaken,
}

/// Fetches a slug, and gives it out as an archive of `app/`.
///
/// The checksum of a directory is that of the archive that it makes: it comes from
/// [`identify`] only.
///
/// # Errors
/// When the slug cannot be fetched, is none, means harm, is another than it should be, or is
/// not taken.
pub async fn layer(
    how: &Layering,
    fetch: &Fetch,
    taker: mpsc::Sender<Bytes>,
    progress: &dyn Progress,
) -> Result<SlugId, LayerError> {
    let source = fetch.source()?;
    let mut stream = open(how, fetch, &source).await?;
    let job = wire::Job::Layer(unpack::LayerJob {
        user: how.user.clone(),
        limits: how.limits.clone(),
        compressed: !source.is_directory(),
        owner: how.owner,
    });
    let (mut to, input) = pipe::pipe().map_err(broken)?;
    let (output, from) = pipe::pipe().map_err(broken)?;
    let input = input.into_blocking_fd().map_err(broken)?;
    let output = output.into_blocking_fd().map_err(broken)?;
    widen(input.as_fd());
    widen(output.as_fd());
    let mut helper = Helper::start(
        &how.program,
        unpack::LAYER_TASK,
        &job,
        Some(input.as_fd()),
        Some(output.as_fd()),
    )
    .await?;
    drop((input, output));
    let feeding = async {
        let fed = feed(&mut stream, &mut to, progress).await;
        drop(to);
        fed
    };
    let (fed, handed) = join!(feeding, hand_on(from, taker));
    let answer = match &fed {
        Ok(_) => Some(helper.answer(progress).await),
        Err(_) => None,
    };
    helper.end().await;
    if let Handed::Not = handed? {
        return Err(LayerError::NotTaken);
    }
    match (fed?, answer.transpose()) {
        (Fed::All, Ok(_)) => Ok(stream.id().ok_or(SlugError::Url)?),
        (Fed::All, Err(error)) => Err(error.into()),
        // It has had enough, and says why. But a slug that is not what it should be is that
        // above all, so the rest is looked at.
        (Fed::Refused, said) => {
            while fetch.checksum.is_some() && stream.chunk(progress).await?.is_some() {}
            Err(match said {
                Ok(_) => broken(io::ErrorKind::BrokenPipe.into()).into(),
                Err(error) => error.into(),
            })
        }
    }
}

/// Reads all of a slug, and says what it is.
///
/// # Errors
/// When it cannot be read, or is another than it should be.
pub async fn identify(
    how: &Layering,
    fetch: &Fetch,
    progress: &dyn Progress,
) -> Result<SlugId, SlugError> {
    let most = most(how, &fetch.source()?);
    let mut stream = Stream::open(&how.program, fetch, how.user.clone(), most, Step::Check).await?;
    while stream.chunk(progress).await?.is_some() {}
    stream.id().ok_or(SlugError::Url)
}

async fn open(how: &Layering, fetch: &Fetch, source: &Source) -> Result<Stream, SlugError> {
    let step = match source {
        Source::Http(_) => Step::Fetch,
        Source::File(_) | Source::Directory(_) => Step::Unpack,
    };
    let mut fetch = fetch.clone();
    let of_directory = fetch.checksum.take_if(|_| source.is_directory());
    let user = how.user.clone();
    let mut stream = Stream::open(&how.program, &fetch, user, most(how, source), step).await?;
    if of_directory.is_some() {
        stream.expect(of_directory);
    }
    Ok(stream)
}

/// A directory is not compressed.
fn most(how: &Layering, source: &Source) -> u64 {
    if source.is_directory() {
        how.limits.max_bytes
    } else {
        how.limits.max_download
    }
}

enum Handed {
    All,
    Not,
}

async fn hand_on(
    mut from: pipe::Receiver,
    taker: mpsc::Sender<Bytes>,
) -> Result<Handed, SlugError> {
    let mut piece = BytesMut::with_capacity(PIECE);
    loop {
        let read = from.read_buf(&mut piece).await.map_err(broken)?;
        if (read == 0 || piece.len() >= PIECE / 2) && !piece.is_empty() {
            let full = std::mem::replace(&mut piece, BytesMut::with_capacity(PIECE));
            if taker.send(full.freeze()).await.is_err() {
                return Ok(Handed::Not);
            }
        }
        if read == 0 {
            return Ok(Handed::All);
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is used with map_err")]
fn broken(error: io::Error) -> SlugError {
    SlugError::helper(unpack::LAYER_TASK, &error)
}
