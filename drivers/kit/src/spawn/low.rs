//! Descriptors with low numbers, by which children are handed theirs.
//!
//! A child is born with a copy of our table of descriptors up to the highest that it is handed,
//! and closes again what is not for it. A driver of a thousand dynos has thousands, and what it
//! opens last, which is what it hands down, has the highest numbers of all.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{fcntl::OFlag, unistd::dup3};

/// As many as one child may need: its own four, and its cgroup.
const COUNT: usize = 5;

static RESERVED: Mutex<Option<Reserved>> = Mutex::new(None);

/// Reserves them, while low numbers are free.
///
/// # Errors
/// Without a `/dev/null`, or without a descriptor left.
pub(crate) fn reserve() -> io::Result<()> {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    if reserved.is_none() {
        let null: OwnedFd = File::open("/dev/null")?.into();
        let copy = || null.try_clone();
        *reserved = Some(Reserved {
            slots: [copy()?, copy()?, copy()?, copy()?, copy()?],
            null,
        });
    }
    Ok(())
}

#[derive(Debug)]
struct Reserved {
    /// What is in a slot that is not lent.
    null: OwnedFd,
    slots: [OwnedFd; COUNT],
}

/// What is handed to one child, until it has been born. Where nothing is reserved, the
/// descriptors are handed down as they are.
#[derive(Debug)]
pub(super) struct Lent {
    reserved: MutexGuard<'static, Option<Reserved>>,
    used: usize,
}

impl Lent {
    pub(super) fn begin() -> Self {
        let reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        Self { reserved, used: 0 }
    }

    /// The number by which the child finds this descriptor.
    pub(super) fn lend(&mut self, fd: BorrowedFd<'_>) -> io::Result<RawFd> {
        let slots = self.reserved.as_mut().map(|reserved| &mut reserved.slots);
        let Some(slot) = slots.and_then(|slots| slots.get_mut(self.used)) else {
            return Ok(fd.as_raw_fd());
        };
        if fd.as_raw_fd() > slot.as_raw_fd() {
            dup3(fd, slot, OFlag::O_CLOEXEC)?;
            self.used += 1;
            return Ok(slot.as_raw_fd());
        }
        Ok(fd.as_raw_fd())
    }
}

impl Drop for Lent {
    /// Or what is the child's, a pipe's end, would be open here too.
    fn drop(&mut self) {
        if let Some(Reserved { null, slots }) = self.reserved.as_mut() {
            for slot in slots.iter_mut().take(self.used) {
                // Nothing is opened: it cannot fail.
                let _ = dup3(&*null, slot, OFlag::O_CLOEXEC);
            }
        }
    }
}
