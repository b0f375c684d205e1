//! One bound for all bytes that wait in this process: who holds how much of it, and how much more a connection may.
//!
//! What counts is the capacity of buffers. It is counted when a buffer grows or shrinks, so a message that does not
//! have to wait costs one look at one number. Until half of it is held every connection may hold what its listener's
//! high-water mark says. From there on the mark falls, with what is left, so that those who come late get a share, too;
//! the last eighth is for small ones alone, and the last sixteenth for those whose output does not wait at all.

mod kernel;
mod kind;
mod machine;

use std::collections::TryReserveError;
use std::fmt;
use std::iter::successors;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::Waker;

use crate::inspect::MemoryInfo;
use crate::os::sys::reserve;
pub use crate::os::sys::reserve::{SpareAllocator, end_where_nothing_is_left};
pub use kernel::KernelMemory;
pub(crate) use kernel::{Pressure, settings};
pub use kind::WaitingKind;
pub use machine::MemorySource;
pub(crate) use machine::available;

/// The least that may be asked for, bytes: below it a handful of clients would have all of it.
pub(crate) const LEAST: usize = 1 << 20;

/// The default takes that part of what there is, and at most that many bytes.
const PART: u64 = 4;
const MOST: u64 = 1 << 30;

/// The default where nothing is known of the machine.
const UNKNOWN: u64 = 256 << 20;

/// What is left is divided among those that hold some of it, as if they were at least and at most so many.
const SHARES_LEAST: usize = 4;
const SHARES_MOST: usize = 256;

/// What a connection may always hold, as long as there is any of it: enough for a message or a line of most protocols.
const SMALL: usize = 4 * 1024;

/// Address space to keep for need at first, bytes; once that was needed it is [`reserve::LEAST`].
const FIRST_SPARE: usize = 8 << 20;

/// What is kept for need, bytes, the most of it that there is: with the least of them whoever is served at once still is.
const SPARES: [usize; 4] = [
    FIRST_SPARE,
    reserve::LEAST,
    reserve::LEAST / 2,
    reserve::LEAST / 4,
];

/// What may wait beyond what waited when the system had no more, bytes.
const MARGIN: usize = 64 * 1024;

/// More than that has to be there before a bound that was lowered rises by it, bytes.
const RISE: usize = 1 << 20;

/// Less than that is not worth a read, bytes.
const MORSEL: usize = 512;

/// The budget of a server, shared: cheap to clone, usable from every thread.
#[derive(Clone)]
pub struct Memory(Arc<Account>);

struct Account {
    /// What was asked for.
    asked: usize,
    /// What holds now: less, once the system had no more; nothing, while even what is kept for that case is gone.
    limit: AtomicUsize,
    /// What held last that was not nothing.
    bound: Mutex<usize>,
    /// Raised when something is kept for need again.
    recovered: AtomicUsize,
    held: AtomicUsize,
    kinds: [AtomicUsize; WaitingKind::ALL.len()],
    /// How many hold some of it.
    holders: AtomicUsize,
    /// Somebody wants to hear when less than that is held.
    wake_below: AtomicUsize,
    wakers: Mutex<Vec<Arc<Waker>>>,
}

impl Memory {
    /// A budget of that many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Arc::new(Account {
            asked: limit,
            limit: AtomicUsize::new(limit),
            bound: Mutex::new(limit),
            recovered: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            kinds: Default::default(),
            holders: AtomicUsize::new(0),
            wake_below: AtomicUsize::new(0),
            wakers: Mutex::default(),
        }))
    }

    /// The default: a quarter of what this process may have, at most 1 GiB.
    pub(crate) fn usual() -> usize {
        let part = available().map_or(UNKNOWN, |(bytes, _)| bytes / PART);
        usize::try_from(part.min(MOST))
            .unwrap_or(usize::MAX)
            .max(LEAST)
    }

    /// The most that one connection may hold, of the `buffer` bytes asked for: some others are to have as much.
    pub(crate) fn buffer(&self, buffer: usize) -> usize {
        buffer.min(self.0.asked / 8)
    }

    /// The bound, bytes: what was asked for, or what the system had at most.
    #[must_use]
    pub fn limit(&self) -> usize {
        *self.bound()
    }

    /// What is held now, bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Of that, what is of one kind.
    #[must_use]
    pub fn held_as(&self, kind: WaitingKind) -> usize {
        self.0.kinds[kind as usize].load(Ordering::Relaxed)
    }

    /// For the status.
    pub(crate) fn info(&self) -> MemoryInfo {
        let kinds = WaitingKind::ALL.into_iter();
        MemoryInfo {
            limit: self.limit(),
            held: self.held(),
            waiting: kinds
                .map(|kind| (kind.as_str().to_owned(), self.held_as(kind)))
                .collect(),
            mark: Some(self.mark(usize::MAX)).filter(|mark| *mark < usize::MAX),
        }
    }

    /// Counts nothing yet: whoever holds bytes says how many, as that changes.
    #[must_use]
    pub fn hold(&self, kind: WaitingKind) -> Held {
        Held {
            memory: Some(self.clone()),
            kind,
            bytes: 0,
        }
    }

    /// What a connection may hold now, of the `buffer` bytes that its listener allows. Zero: nothing is to be kept for
    /// anybody.
    #[inline]
    pub(crate) fn mark(&self, buffer: usize) -> usize {
        let (limit, held) = (self.0.limit.load(Ordering::Relaxed), self.held());
        if held < limit / 2 {
            return buffer;
        }
        let large = limit - limit / 8;
        if held < large {
            let shares = self.0.holders.load(Ordering::Relaxed);
            let shares = shares.clamp(SHARES_LEAST, SHARES_MOST);
            return ((large - held) / shares).max(SMALL).min(buffer);
        }
        if held < limit - limit / 16 {
            SMALL.min(buffer)
        } else {
            0
        }
    }

    /// What may be read of `room` bytes for a connection that holds `held`, of the `buffer` that its listener allows: all
    /// of it may have to be kept. `takes`: whether it need not be, for the socket that it goes to takes it; asked with the
    /// word whether that is to be certain, as it is near the end, where nothing is left for a mistake.
    #[inline]
    pub(crate) fn ration(
        &self,
        room: usize,
        held: usize,
        buffer: usize,
        takes: impl FnOnce(bool) -> bool,
    ) -> usize {
        let mark = self.mark(buffer);
        if mark == buffer {
            return room;
        }
        let left = mark.saturating_sub(held);
        if left >= room.min(MORSEL) {
            room.min(left)
        } else if held == 0 && !self.is_short() && takes(self.is_nearly_full()) {
            room.min(SMALL)
        } else {
            0
        }
    }

    fn is_nearly_full(&self) -> bool {
        let limit = self.0.limit.load(Ordering::Relaxed);
        self.held() >= limit - limit / 64
    }

    /// Whether all of it is held: nothing is read that might have to be kept.
    pub(crate) fn is_full(&self) -> bool {
        self.held() >= self.0.limit.load(Ordering::Relaxed)
    }

    /// Has `waker` woken when others may be read again.
    pub(crate) fn wakes(&self, waker: Arc<Waker>) {
        self.wakers().push(waker);
    }

    /// Whether anything may be read for a connection that holds `held` bytes.
    pub(crate) fn has_room(&self, held: usize, buffer: usize) -> bool {
        held == 0 || self.mark(buffer).saturating_sub(held) >= MORSEL.min(buffer)
    }

    /// Connections wait to be read: below which level some of it is free again that is worth a look.
    pub(crate) fn room_to_wait_for(&self) -> usize {
        self.held().saturating_sub(self.0.asked / 64).max(1)
    }

    /// Has the workers woken once less than that is held. Answers whether that is so already.
    pub(crate) fn wait_until_below(&self, level: usize) -> bool {
        self.0.wake_below.fetch_max(level, Ordering::SeqCst);
        self.0.held.load(Ordering::SeqCst) < level
    }

    fn bound(&self) -> MutexGuard<'_, usize> {
        self.0.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `reserve` get memory. Where the system has none, what is kept for that is given up for it: nobody is read
    /// until there is something to keep again, and less may wait from then on.
    ///
    /// # Errors
    /// There is none even so.
    pub(crate) fn get(
        &self,
        mut reserve: impl FnMut() -> Result<(), TryReserveError>,
    ) -> Result<(), TryReserveError> {
        let got = reserve().or_else(|_| {
            self.fall_short();
            reserve()
        });
        if self.is_spent() {
            self.fall_short();
        }
        got
    }

    /// Makes room in a buffer of `len` bytes for `needed`, and for more as long as that stays within `most` and the system
    /// has it: `reserve` is told how many more, and answers the capacity, which `held` counts from then on as `kind`.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn reserve(
        &self,
        (held, kind): (&mut Held, WaitingKind),
        (len, needed, most): (usize, usize, usize),
        mut reserve: impl FnMut(usize) -> Result<usize, TryReserveError>,
    ) -> Result<(), TryReserveError> {
        let more = capacity_for(needed, most) - len;
        let mut capacity = 0;
        let mut make_room = |more| reserve(more).map(|has| capacity = has);
        reserve::sparing(|| make_room(more)).or_else(|_| self.get(|| make_room(needed - len)))?;
        held.count_in(self, kind);
        held.set(capacity);
        Ok(())
    }

    /// Whether the system has that many bytes beside what is kept for need: that is for those who are there.
    pub(crate) fn could_have(&self, bytes: usize) -> bool {
        !self.is_short() && !self.is_spent() && reserve::could_have(bytes)
    }

    /// The system has no memory: gives up what is kept for that.
    pub(crate) fn fall_short(&self) {
        let bound = self.bound();
        reserve::give_up();
        self.0.limit.store(0, Ordering::Relaxed);
        drop(bound);
    }

    /// Whether the system had no memory, and nothing is kept for the next time.
    pub(crate) fn is_short(&self) -> bool {
        self.0.limit.load(Ordering::Relaxed) == 0
    }

    /// Whether what was kept has been given up where nothing knew of this budget: by the allocator.
    fn is_spent(&self) -> bool {
        self.recovered() > 0 && !reserve::is_kept()
    }

    /// Where what was kept for need is gone, wherever that was: keeps something again. Answers whether there is something.
    pub(crate) fn replenish(&self) -> bool {
        if self.is_spent() {
            self.fall_short();
        }
        !self.is_short() || self.recover()
    }

    /// Keeps something for need. Answers whether it could.
    pub(crate) fn recover(&self) -> bool {
        let mut bound = self.bound();
        // What it is less than at first is for the rest of the process, threads that answer questions among it.
        let first = usize::from(self.recovered() > 0);
        if !SPARES[first..].iter().copied().any(reserve::keep) {
            return false;
        }
        // Nobody was read meanwhile: that much the system has, and hardly more.
        let (held, before) = (self.held(), *bound);
        if self.is_short() {
            // Nothing at all would mean that nothing is kept.
            *bound = before.min(held.saturating_add(margin())).max(1);
        }
        let now = *bound;
        self.0.limit.store(now, Ordering::Relaxed);
        self.0.recovered.fetch_add(1, Ordering::Relaxed);
        // The log counts what it holds here, too.
        drop(bound);
        if now < before {
            log::warn!(waiting = held, budget = before; "out of memory, no more than that waits from here on");
        }
        true
    }

    /// The bound was lowered while another thread got some of what had been kept: more is held than that, and will be, so
    /// it is no bound. That much the system does have.
    pub(crate) fn settle(&self) {
        if !self.is_full() || self.is_short() {
            return;
        }
        let mut bound = self.bound();
        let limit = self.held().saturating_add(margin()).min(self.0.asked);
        if *bound < limit {
            *bound = limit;
            self.0.limit.store(limit, Ordering::Relaxed);
            self.0.recovered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the system had no more once, and less may wait since than was asked for.
    #[inline]
    pub(crate) fn is_lowered(&self) -> bool {
        self.0.limit.load(Ordering::Relaxed) < self.0.asked
    }

    /// Looks whether the system has more again, and lets as much wait, as far as it was asked for.
    pub(crate) fn rise(&self) {
        let mut bound = self.bound();
        let (asked, held, before) = (self.0.asked, self.held(), *bound);
        if self.is_short() || before >= asked || !reserve::keep(reserve::LEAST) {
            return;
        }
        let worth = before.saturating_add(RISE).min(asked);
        let all = asked.saturating_sub(held);
        let more = successors(Some(all), |more| Some(more / 2))
            .take_while(|more| held + more >= worth)
            .find(|more| reserve::could_have(more + FIRST_SPARE));
        let Some(more) = more else { return };
        let now = (held + more).min(asked);
        *bound = now;
        self.0.limit.store(now, Ordering::Relaxed);
        self.0.recovered.fetch_add(1, Ordering::Relaxed);
        drop(bound);
        log::info!(waiting = held, budget = now; "there is memory again, so much may wait");
        self.wake();
    }

    /// How often it has recovered.
    pub(crate) fn recovered(&self) -> usize {
        self.0.recovered.load(Ordering::Relaxed)
    }

    fn changed(&self, kind: WaitingKind, before: usize, now: usize) {
        let account = &*self.0;
        if before == 0 {
            account.holders.fetch_add(1, Ordering::Relaxed);
        } else if now == 0 {
            account.holders.fetch_sub(1, Ordering::Relaxed);
        }
        let by_kind = &account.kinds[kind as usize];
        if now >= before {
            by_kind.fetch_add(now - before, Ordering::Relaxed);
            account.held.fetch_add(now - before, Ordering::Relaxed);
            return;
        }
        let less = before - now;
        by_kind.fetch_sub(less, Ordering::Relaxed);
        // Against a worker that says what it waits for and then looks how much is held: one of the two sees the other.
        let held = account.held.fetch_sub(less, Ordering::SeqCst) - less;
        let level = account.wake_below.load(Ordering::SeqCst);
        if held < level && account.wake_below.swap(0, Ordering::SeqCst) > 0 {
            self.wake();
        }
    }

    /// Wakes those who wait to read.
    fn wake(&self) {
        for waker in &*self.wakers() {
            // One that is awake already, or gone.
            let _ = waker.wake();
        }
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Arc<Waker>>> {
        let wakers = self.0.wakers.lock();
        wakers.unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("limit", &self.limit())
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

/// What one holder holds; given back when it is dropped.
#[derive(Debug, Default)]
pub struct Held {
    memory: Option<Memory>,
    kind: WaitingKind,
    bytes: usize,
}

impl Held {
    /// It holds that many bytes now.
    #[inline]
    pub fn set(&mut self, bytes: usize) {
        if bytes != self.bytes
            && let Some(memory) = &self.memory
        {
            memory.changed(self.kind, self.bytes, bytes);
            self.bytes = bytes;
        }
    }

    /// How many it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts in `memory` from here on, if it did not count yet.
    #[inline]
    pub(crate) fn count_in(&mut self, memory: &Memory, kind: WaitingKind) {
        if self.memory.is_none() {
            *self = memory.hold(kind);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What may wait beyond what waits when the system has no more, bytes: nothing where hardly anything is kept for need.
fn margin() -> usize {
    if reserve::length() < reserve::LEAST {
        0
    } else {
        MARGIN
    }
}

/// The capacity for `needed` bytes, in steps of four, as long as that stays within `most`. What a buffer has grown out of the
/// allocator may have to keep: with steps of two that is as much again, with these a third.
fn capacity_for(needed: usize, most: usize) -> usize {
    const LEAST: usize = 1024;
    let mut step = LEAST;
    while step < needed {
        step = step.saturating_mul(4);
    }
    needed.max(step.min(most))
}

#[cfg(test)]
mod tests;
