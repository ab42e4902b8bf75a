//! Who is told how far a slug is.

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The slug is fetched, and unpacked as it comes.
    Fetch,
    /// A directory or file is read to learn whether it is here already.
    Check,
    /// A slug that was fetched before is unpacked.
    Unpack,
}

impl Step {
    /// As a person reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetch => "download slug",
            Self::Check => "check slug",
            Self::Unpack => "unpack slug",
        }
    }
}

/// Is told how far a slug is. Called often: every few hundred kilobytes.
pub trait Progress: Send + Sync {
    /// So many bytes of so many are done; a total of 0 is not known.
    fn progress(&self, step: Step, done: u64, total: u64);
    /// Something that the slug's owner should know, and that is no error.
    fn note(&self, text: &str);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn progress(&self, _: Step, _: u64, _: u64) {}
    fn note(&self, _: &str) {}
}
