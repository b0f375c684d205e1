//! Deadlines: who is due, and when. Pure: time comes in as an argument.
//!
//! One entry a connection. Renewing a deadline is a store in the connection alone: when the entry fires, the worker
//! asks the connection when it is really due and puts the entry back. Only a deadline that moves *nearer* touches the
//! queue.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A point in time: nanoseconds since the server's epoch. Half the size of an [`Instant`], and easily invented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Later than every other moment: the deadline that is off.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// Earlier than every other moment: what is due at once.
    pub(crate) fn at_start() -> Self {
        Self(0)
    }

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(nanos(wait)))
    }

    pub(crate) fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(time)))
    }

    /// `after`, or never.
    pub(crate) fn after_if(self, wait: Option<Duration>) -> Self {
        wait.map_or(Self::NEVER, |wait| self.after(wait))
    }

    /// Time from `earlier` until this moment; zero if it is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// As a number, for a process that knows what the clock of this one showed.
    #[cfg(control)]
    #[inline]
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Whole tenths of a millisecond: 48 bits at the most.
    pub(crate) fn tenths(self) -> u64 {
        self.0 / TENTH
    }

    pub(crate) fn of_tenths(tenths: u64) -> Self {
        Self(tenths.saturating_mul(TENTH))
    }

    #[cfg(test)]
    pub(crate) fn at(wait: Duration) -> Self {
        Self(nanos(wait))
    }
}

/// A tenth of a millisecond, in nanoseconds.
const TENTH: u64 = 100_000;

/// A moment that several threads make nearer, and one takes when it has come.
#[derive(Debug)]
pub(crate) struct NearestMoment(AtomicU64);

impl NearestMoment {
    pub(crate) fn never() -> Self {
        Self(AtomicU64::new(Moment::NEVER.0))
    }

    pub(crate) fn get(&self) -> Moment {
        Moment(self.0.load(Ordering::Acquire))
    }

    /// Answers whether `moment` is nearer than what was there.
    pub(crate) fn bring_near(&self, moment: Moment) -> bool {
        moment.0 < self.0.fetch_min(moment.0, Ordering::AcqRel)
    }

    /// It has come: what is asked for from here on is the next one.
    pub(crate) fn take(&self) {
        self.0.swap(Moment::NEVER.0, Ordering::AcqRel);
    }
}

fn nanos(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)
}

/// The one reader of the clock; all workers of a server share its epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

/// What a clock shows at its start: late enough that what a predecessor began still has its moment.
const EPOCH: u64 = 1 << 62;

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the clock is read here and nowhere else"
    )]
    pub(crate) fn start() -> Self {
        Self {
            epoch: Instant::now(),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the clock is read here and nowhere else"
    )]
    pub(crate) fn now(&self) -> Moment {
        self.moment(Instant::now())
    }

    /// `instant` on this clock.
    pub(crate) fn moment(&self, instant: Instant) -> Moment {
        Moment(EPOCH).after(instant.duration_since(self.epoch))
    }

    /// The instant at which this clock shows `moment`.
    pub(crate) fn instant(&self, moment: Moment) -> Instant {
        self.epoch + moment.since(Moment(EPOCH))
    }
}

/// A queue of at most one deadline per key: a binary heap that knows where each key's entry stands, so that an
/// entry can be moved and removed. Memory: 16 bytes a key.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    cells: Vec<Cell>,
    /// How many of them, from the first on, have an entry.
    entries: usize,
}

/// An entry of the heap, and beside it what has nothing to do with that: where the entry of the key stands that is this
/// cell's number, or `ABSENT`.
#[derive(Clone, Copy, Debug)]
struct Cell {
    at: Moment,
    key: u32,
    place: u32,
}

const EMPTY: Cell = Cell {
    at: Moment::NEVER,
    key: ABSENT,
    place: ABSENT,
};

const ABSENT: u32 = u32::MAX;

/// A connection's key in the queue of deadlines.
#[expect(
    clippy::cast_possible_truncation,
    reason = "descriptors, and so connections, are counted in 31 bits"
)]
pub(crate) fn slot(key: usize) -> u32 {
    key as u32
}

impl Deadlines {
    /// Makes room for keys below `count`: setting theirs takes no memory then.
    pub(crate) fn reserve(&mut self, count: usize) {
        let more = count.saturating_sub(self.cells.len());
        self.cells.reserve_exact(more);
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Moment {
        self.at(0)
    }

    /// The deadline of `key`, [`Moment::NEVER`] if it has none.
    pub(crate) fn get(&self, key: u32) -> Moment {
        self.place(key)
            .map_or(Moment::NEVER, |place| self.at(place))
    }

    /// Sets the deadline of `key`, instead of any it had; [`Moment::NEVER`] removes it.
    pub(crate) fn set(&mut self, key: u32, at: Moment) {
        if at == Moment::NEVER {
            return self.remove(key);
        }
        let place = match self.place(key) {
            Some(place) => {
                self.cells[place].at = at;
                place
            }
            None => {
                if self.cells.len() <= key as usize {
                    self.cells.resize(key as usize + 1, EMPTY);
                }
                let last = self.entries;
                self.entries += 1;
                self.put(last, at, key);
                last
            }
        };
        let place = self.rise(place);
        self.sink(place);
    }

    pub(crate) fn remove(&mut self, key: u32) {
        let Some(place) = self.place(key) else { return };
        self.entries -= 1;
        let Cell { at, key: last, .. } = self.cells[self.entries];
        self.cells[self.entries].at = Moment::NEVER;
        self.cells[key as usize].place = ABSENT;
        if place < self.entries {
            self.put(place, at, last);
            let place = self.rise(place);
            self.sink(place);
        }
    }

    /// Takes out a key whose deadline has come.
    pub(crate) fn pop_due(&mut self, now: Moment) -> Option<u32> {
        let Cell { at, key, .. } = *self.cells.first().filter(|_| self.entries > 0)?;
        if at > now {
            return None;
        }
        self.remove(key);
        Some(key)
    }

    /// The deadline of the entry at `place`, [`Moment::NEVER`] behind the last.
    fn at(&self, place: usize) -> Moment {
        self.cells.get(place).map_or(Moment::NEVER, |cell| cell.at)
    }

    fn place(&self, key: u32) -> Option<usize> {
        let place = self.cells.get(key as usize)?.place;
        (place != ABSENT).then_some(place as usize)
    }

    /// Moves the entry at `place` towards the root as far as it belongs, and notes where it and the passed ones stand.
    fn rise(&mut self, mut place: usize) -> usize {
        let Cell { at, key, .. } = self.cells[place];
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.at(parent) <= at {
                break;
            }
            self.put(place, self.at(parent), self.cells[parent].key);
            place = parent;
        }
        self.put(place, at, key);
        place
    }

    /// Moves the entry at `place` away from the root as far as it belongs.
    fn sink(&mut self, mut place: usize) {
        let Cell { at, key, .. } = self.cells[place];
        loop {
            let mut child = 2 * place + 1;
            if self.at(child + 1) < self.at(child) {
                child += 1;
            }
            if at <= self.at(child) {
                break;
            }
            self.put(place, self.at(child), self.cells[child].key);
            place = child;
        }
        self.put(place, at, key);
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a heap has at most one entry for each u32 key"
    )]
    fn put(&mut self, place: usize, at: Moment, key: u32) {
        (self.cells[place].at, self.cells[place].key) = (at, key);
        self.cells[key as usize].place = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded::Seeded;

    fn at(seconds: u64) -> Moment {
        Moment::at(Duration::from_secs(seconds))
    }

    #[test]
    fn a_deadline_is_small() {
        assert_eq!(size_of::<Cell>(), 16);
    }

    #[test]
    fn the_earliest_is_next_and_comes_out_first() {
        let mut deadlines = Deadlines::default();
        for (key, seconds) in [(3, 30), (1, 10), (2, 20), (0, 40)] {
            deadlines.set(key, at(seconds));
        }
        assert_eq!(deadlines.next(), at(10));
        assert_eq!(deadlines.pop_due(at(9)), None);
        let order: Vec<_> = std::iter::from_fn(|| deadlines.pop_due(at(100))).collect();
        assert_eq!(order, [1, 2, 3, 0]);
        assert_eq!(deadlines.next(), Moment::NEVER);
    }

    #[test]
    fn a_deadline_is_moved_nearer_further_and_off() {
        let mut deadlines = Deadlines::default();
        deadlines.set(0, at(10));
        deadlines.set(1, at(20));
        deadlines.set(1, at(5));
        assert_eq!(deadlines.next(), at(5));
        deadlines.set(1, at(15));
        assert_eq!(deadlines.next(), at(10));
        assert_eq!(deadlines.get(1), at(15));
        deadlines.set(0, Moment::NEVER);
        assert_eq!(
            (deadlines.next(), deadlines.get(0)),
            (at(15), Moment::NEVER)
        );
        deadlines.remove(7);
    }

    /// Against the plainest possible queue, over a long seeded walk.
    #[test]
    fn it_agrees_with_a_sorted_list() {
        let mut deadlines = Deadlines::default();
        let mut plain = std::collections::BTreeMap::new();
        let mut random = Seeded::new(1);
        let mut draw = |limit: u64| random.below(limit);
        for _ in 0..20_000 {
            let key = u32::try_from(draw(50)).unwrap();
            match draw(4) {
                0 => {
                    deadlines.remove(key);
                    plain.remove(&key);
                }
                1 => {
                    let now = at(draw(1000));
                    let due = plain.values().any(|&at| at <= now);
                    let popped = deadlines.pop_due(now);
                    assert_eq!(popped.is_some(), due);
                    if let Some(key) = popped {
                        let gone = plain.remove(&key).unwrap();
                        assert!(plain.values().all(|&at| gone <= at));
                    }
                }
                _ => {
                    let when = at(draw(1000));
                    deadlines.set(key, when);
                    plain.insert(key, when);
                }
            }
            assert_eq!(
                deadlines.next(),
                plain.values().min().copied().unwrap_or(Moment::NEVER)
            );
        }
    }

    #[test]
    fn moments_saturate_instead_of_wrapping() {
        assert_eq!(at(1).after(Duration::MAX), Moment::NEVER);
        assert_eq!(at(1).since(at(2)), Duration::ZERO);
        assert_eq!(at(1).after_if(None), Moment::NEVER);
    }
}
