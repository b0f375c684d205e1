//! Address space kept for a time of need, and an allocator that has it by then.
//!
//! Rust ends the process where an allocation fails that did not ask whether it may. With this allocator it fails once
//! what is kept is gone, too; whoever keeps it looks now and then whether it is, and has less waiting from then on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The least that is worth keeping, bytes: more than one read and all that goes with it.
pub(crate) const LEAST: usize = 1 << 20;

/// What is kept in this process. While it is locked, nothing is allocated but by the system's allocator.
static KEPT: Mutex<Option<Spare>> = Mutex::new(None);

/// How much that is, bytes.
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// The program ends where nothing is left.
static ENDS: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread can do without what it asks for.
    static DOES_WITHOUT: Cell<bool> = const { Cell::new(false) };
}

fn kept() -> MutexGuard<'static, Option<Spare>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps `length` bytes, unless as many are kept already. Answers whether they are now.
pub(crate) fn keep(length: usize) -> bool {
    let mut kept = kept();
    if LENGTH.load(Ordering::Relaxed) < length
        && let Ok(spare) = Spare::new(length)
    {
        *kept = Some(spare);
        LENGTH.store(length, Ordering::Relaxed);
    }
    LENGTH.load(Ordering::Relaxed) >= length
}

/// How many are kept.
#[inline]
pub(crate) fn length() -> usize {
    LENGTH.load(Ordering::Relaxed)
}

/// Whether some are kept.
#[inline]
pub(crate) fn is_kept() -> bool {
    length() > 0
}

/// Has `allocate` get memory only where the system has some beside what is kept.
pub(crate) fn sparing<T>(allocate: impl FnOnce() -> T) -> T {
    let before = DOES_WITHOUT.replace(true);
    let answer = allocate();
    DOES_WITHOUT.set(before);
    answer
}

/// Gives them up.
pub(crate) fn give_up() {
    empty(&mut kept());
}

fn empty(kept: &mut Option<Spare>) {
    *kept = None;
    LENGTH.store(0, Ordering::Relaxed);
}

/// Whether the system has that many bytes.
pub(crate) fn could_have(bytes: usize) -> bool {
    Spare::new(bytes).is_ok()
}

/// Address space. Nothing is in it, so it takes no memory; given back when it is dropped.
#[derive(Debug)]
struct Spare {
    at: usize,
    length: usize,
}

impl Spare {
    /// # Errors
    /// What mmap(2) says: `ENOMEM` when there is no more to be had.
    fn new(length: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a new mapping at an address of the system's choice, which nobody can read or write: no memory that
        // anybody knows of is touched.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            at: at.expose_provenance(),
            length,
        })
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let at = std::ptr::with_exposed_provenance_mut(self.at);
        // SAFETY: the mapping was made by `new` with that address and length, is this value's alone, and nothing points
        // into it.
        let answer = unsafe { libc::munmap(at, self.length) };
        debug_assert_eq!(answer, 0);
    }
}

/// The system's allocator, with address space kept for the time when that has no more (`RLIMIT_AS`, overcommit).
///
/// Rust ends a process in which an allocation fails. A [`Server`](crate::Server) keeps some address space for need; with
/// this allocator as the program's, any allocation may have it, and the server notices: it reads nobody and takes nobody in
/// until there is some again.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: standfast::memory::SpareAllocator = standfast::memory::SpareAllocator;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct SpareAllocator;

/// From here on, or no more: where an allocation gets nothing even of what was kept, a program with [`SpareAllocator`] ends
/// with exit status 1 and one line on stderr. Rust would abort it with several. For a program that has no clients, or does
/// not serve them yet: it ends for an allocation that may fail, too.
pub fn end_where_nothing_is_left(ends: bool) {
    ENDS.store(ends, Ordering::Relaxed);
}

/// Ends the process for want of `size` bytes; allocates nothing.
#[cold]
fn end(size: usize) -> ! {
    let mut line = [0; 160];
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "standfast: out of memory: {size} bytes are not to be had (raise ulimit -v, or what the machine or its cgroup has)"
    );
    let left = rest.len();
    let length = line.len() - left;
    // SAFETY: as many bytes as `line` has are read from it.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length) };
    // SAFETY: nothing of this process runs on.
    unsafe { libc::_exit(1) }
}

/// What the system has of `size` bytes, and where that is nothing, what it has without what was kept.
#[inline]
fn in_need(size: usize, allocate: impl Fn() -> *mut u8) -> *mut u8 {
    let at = allocate();
    if at.is_null() {
        once_more(size, allocate)
    } else {
        at
    }
}

/// Another thread may have given up what was kept already; none keeps it anew meanwhile.
#[cold]
fn once_more(size: usize, allocate: impl FnOnce() -> *mut u8) -> *mut u8 {
    if DOES_WITHOUT.get() {
        return std::ptr::null_mut();
    }
    let mut kept = kept();
    empty(&mut kept);
    let at = allocate();
    if at.is_null() && ENDS.load(Ordering::Relaxed) {
        end(size);
    }
    at
}

// SAFETY: every answer is the system allocator's to the very call, asked once more where it was null; neither panics.
unsafe impl GlobalAlloc for SpareAllocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the one that is asked for.
        in_need(layout.size(), || unsafe { System.alloc(layout) })
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        in_need(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above; whatever was allocated here, the system's allocator did.
        unsafe { System.dealloc(at, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above; where it answers null what was there is as before.
        in_need(size, || unsafe { System.realloc(at, layout, size) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_given_up_for_an_allocation_that_fails_and_can_be_kept_again() {
        assert!(keep(LEAST));
        let mut asked = 0;
        once_more(1, || {
            asked += 1;
            // Nobody else keeps anything before this is over.
            assert!(!is_kept());
            std::ptr::null_mut()
        });
        assert_eq!(asked, 1);
        assert!(keep(LEAST), "again");
        assert!(!could_have(usize::MAX >> 1));
    }

    #[test]
    fn what_is_kept_is_not_given_up_for_what_can_be_done_without() {
        let mut asked = 0;
        let mut more = || {
            asked += 1;
            std::ptr::null_mut()
        };
        sparing(|| once_more(1, &mut more));
        once_more(1, &mut more);
        assert_eq!(asked, 1, "not the first time");
    }

    /// All tests of the library have it.
    #[global_allocator]
    static ALLOCATOR: SpareAllocator = SpareAllocator;

    #[repr(align(64))]
    #[derive(Clone, Copy, PartialEq, Debug)]
    struct Aligned(u64);

    #[test]
    fn what_is_allocated_is_aligned_and_moves_with_its_content() {
        let mut grown = vec![Aligned(0); 100];
        assert_eq!(grown[99], Aligned(0));
        grown[0] = Aligned(7);
        grown.reserve_exact(100_000);
        assert_eq!(grown.as_ptr().addr() % 64, 0);
        assert_eq!((grown[0], grown[99]), (Aligned(7), Aligned(0)));
        assert!(Vec::<u8>::new().try_reserve(usize::MAX >> 1).is_err());
    }
}
