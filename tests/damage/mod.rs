//! Damaged files, and the memory that reading one takes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

#[allow(unsafe_code, reason = "an allocator is unsafe by its trait; every call goes to the system's")]
// SAFETY: every method passes its arguments on to the system allocator unchanged; watching does not allocate.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.set(LIVE.get().wrapping_add(layout.size()));
        PEAK.set(PEAK.get().max(LIVE.get()));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// What `work` says, and the most memory it held at once in this thread, in bytes.
pub(crate) fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LIVE.set(0);
    PEAK.set(0);
    let answer = work();
    (answer, PEAK.get())
}

/// One of the things that happen to files.
pub(crate) fn mutate(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let len = bytes.len();
    let at = rng.random_range(0..len.max(1)).min(len.saturating_sub(1));
    match rng.random_range(0..7) {
        _ if len == 0 => bytes.push(rng.random()),
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes.truncate(at),
        2 => bytes.insert(at, rng.random()),
        3 => drop(bytes.remove(at)),
        4 => {
            let end = (at + rng.random_range(1..9)).min(len);
            rng.fill(&mut bytes[at..end]);
        }
        5 => bytes[at] = [0, 0x7f, 0x80, 0xff][rng.random_range(0..4)],
        _ => {
            let end = (at + rng.random_range(1..64)).min(len);
            let part = bytes[at..end].to_vec();
            bytes.extend(part);
        }
    }
}
