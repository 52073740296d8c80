//! Owns the bound on memory of the fuzz targets: bytes that lie about a size must be
//! refused before the size is allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes that one allocation may take: what a whole batch may decompress to is
/// the largest that any decoder asks for.
const ALLOCATION_MAX: usize = 128 << 20;
/// Most bytes that one input may add to what is held while it is looked at.
const HELD_MAX: usize = 256 << 20;

/// The system's allocator, which knows how much is held.
#[derive(Debug)]
pub struct Bounded;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's; beside it only counters change.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ALLOCATION_MAX {
            // A panic would allocate. The fuzzer keeps the input of an abort.
            std::process::abort();
        }
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// Gives `bytes` to `target` and looks at what that took.
///
/// # Panics
/// When it took more memory than any input may.
pub fn bounded(target: fn(&[u8]), bytes: &[u8]) {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    target(bytes);
    let took = MOST.load(Ordering::Relaxed).saturating_sub(before);
    assert!(took <= HELD_MAX, "{took} bytes were held for {} bytes of input", bytes.len());
}
