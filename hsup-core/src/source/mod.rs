//! Where releases come from.
//!
//! A [`Source`] yields what is wanted, as [`Update`]s; the supervisor does not know which
//! one it has. What it decides about releases it tells back with [`Source::tell`], which a
//! control directory shows in its files. A source decides nothing itself, and remembers
//! nothing that the history does not know better.

use std::fmt;

use crate::{
    name::ProcessType,
    release::Release,
    releases::{Id, Newness},
};

pub mod choose;
pub mod control_dir;
pub mod control_file;
mod control_text;
pub mod directory;
pub mod dotenv;
pub mod heroku;
mod json;
pub mod procfile;

pub use choose::{Choice, ChooseSourceError, Place, SourceSpec, choose};
pub use control_dir::ControlDir;
pub use control_text::ControlText;
pub use directory::{Directory, LoadDirectoryError};
pub use heroku::{Heroku, HerokuApp};

/// A release that a source took in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The release.
    pub release: Release,
    /// What is odd about it but does no harm.
    pub warnings: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
    /// Whether somebody has just handed it in, or it is what there was to begin with.
    pub newness: Newness,
    /// What it was read from, where that is a control file.
    pub text: Option<ControlText>,
}

/// Where a release comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A directory with a Procfile, which is the app itself.
    Procfile,
    /// A control directory.
    ControlDirectory,
    /// An app on Heroku.
    Heroku,
    /// `hsupctl apply`.
    Apply,
    /// `hsupctl rollback`, to an earlier release.
    Rollback {
        /// Its version.
        version: u64,
        /// Its id in the history.
        id: Id,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Procfile => f.write_str("Procfile"),
            Self::ControlDirectory => f.write_str("control directory"),
            Self::Heroku => f.write_str("Heroku"),
            Self::Apply => f.write_str("apply"),
            Self::Rollback { version, .. } => write!(f, "rollback to v{version}"),
        }
    }
}

/// What a source has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// A release is wanted from now on.
    Release(Box<Loaded>),
    /// There is no release to begin with.
    Empty {
        /// What there is instead, with the file.
        why: String,
        /// Whether it stays so unless somebody does something about it.
        is_final: bool,
    },
    /// The source takes long to say whether there is one: what there is need not wait for that.
    Late {
        /// What is waited for.
        why: String,
    },
    /// Some process types of the app are to have as many dynos as this, and nothing else is new.
    Scaled(Vec<(ProcessType, u32)>),
    /// There was a new release, but it is none; what runs goes on.
    Rejected {
        /// Why, with the file and the place in it.
        reason: String,
    },
    /// Something an operator should know.
    Warning(String),
}

/// What the supervisor has to say of a release, beside which one it will begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// One was taken in that the source does not know of.
    TakenIn,
    /// The newest one was rejected.
    Rejected {
        /// What it was read from.
        text: ControlText,
        /// Why.
        reason: String,
    },
}

/// What a source is to keep for the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// This release.
    Release(ControlText),
    /// Whatever there is: the release that is wanted never was a text.
    WhatIsThere,
    /// None.
    Nothing,
}

/// A place in a text: both from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in it.
    pub column: usize,
}

impl Position {
    /// The place of the byte at `offset`.
    fn of(text: &str, offset: usize) -> Self {
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} column {}", self.line, self.column)
    }
}

/// Any of the sources.
#[derive(Debug)]
pub enum Source {
    /// A directory with a Procfile.
    Directory(Directory),
    /// A control directory.
    ControlDir(Box<ControlDir>),
    /// An app on Heroku.
    Heroku(Heroku),
}

impl Source {
    /// Waits for what comes next. Never ends by itself: a source that has said all it
    /// has to say waits for ever.
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Update {
        match self {
            Self::Directory(directory) => directory.next().await,
            Self::ControlDir(control_dir) => control_dir.next().await,
            Self::Heroku(heroku) => heroku.next().await,
        }
    }

    /// Tells what to keep for the next start, and what came of the newest release. Costs
    /// nothing when neither is anything new.
    ///
    /// # Errors
    /// When a control directory's files could not be written. The same is not tried again
    /// before [`Source::forgive`].
    pub async fn tell(
        &mut self,
        keep: &Keep,
        news: Option<News>,
    ) -> Result<(), control_dir::WriteControlDirError> {
        match self {
            // The history has what there is to begin with.
            Self::Directory(_) | Self::Heroku(_) => Ok(()),
            Self::ControlDir(control_dir) => control_dir.tell(keep, news).await,
        }
    }

    /// Whether a release that could not be taken in comes again by itself.
    pub const fn comes_again(&self) -> bool {
        matches!(self, Self::Heroku(_))
    }

    /// Takes back a release that could not be taken in now, to tell it again later where
    /// nobody else will. Answers whether it is the first time.
    pub fn take_back(&mut self, loaded: Box<Loaded>) -> bool {
        match self {
            // Whoever hands it in is told, and does so again.
            Self::Directory(_) | Self::ControlDir(_) => true,
            Self::Heroku(heroku) => heroku.take_back(loaded),
        }
    }

    /// What could not be written may be tried again.
    pub fn forgive(&mut self) {
        match self {
            Self::Directory(_) | Self::Heroku(_) => {}
            Self::ControlDir(control_dir) => control_dir.forgive(),
        }
    }
}

/// What some editors put at the start of a text.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The text without a byte order mark, or the line that is not UTF-8.
fn utf8(text: &[u8]) -> Result<&str, usize> {
    let text = text.strip_prefix(BOM).unwrap_or(text);
    str::from_utf8(text).map_err(|error| {
        let valid = &text[..error.valid_up_to()];
        memchr::memchr_iter(b'\n', valid).count() + 1
    })
}

/// A text as part of a message: not too long, without control characters.
fn excerpt(text: &str) -> String {
    const MAX: usize = 80;
    let mut shown: String = text
        .chars()
        .take(MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}
