//! What this thread has allocated, for tests that look at memory: counted as an allocator of the
//! usual kind (glibc's) counts it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

/// Bytes that this thread has allocated and nobody has freed on it.
pub(super) fn allocated() -> isize {
    ALLOCATED.get()
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn add(bytes: isize) {
    // A thread that ends frees after its own variables are gone.
    let _: Result<(), _> = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + bytes));
}

/// With the word before it, in steps of 16 bytes from 32 on.
fn cost(size: usize) -> isize {
    let whole = (size + size_of::<usize>()).next_multiple_of(16).max(32);
    whole.cast_signed()
}

#[expect(
    unsafe_code,
    reason = "it counts, and the system's allocator does the work"
)]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(cost(layout.size()));
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(-cost(layout.size()));
        // SAFETY: the caller's word.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(cost(size) - cost(layout.size()));
        // SAFETY: the caller's word.
        unsafe { System.realloc(at, layout, size) }
    }
}
