//! Where each reader stands in the feed, noted where the next server finds it, should this one crash.
//!
//! A reader's place has two notes, one older than the other: up to which byte of its output the client had got what stands before
//! which place of the feed. The newer one counts if so much output was sent, or waits where that is found, too; else what was
//! noted last was on its way, and the older one counts. From there on the feed itself says what else was sent: the kernel knows
//! how much that is.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::cursor::Cursor;
use crate::os::journal::{Journal, Notes, PLACE, Places};

/// Words of a place: whose it is, or 0; lines lost so far, and in the last bit which of the notes is the newer one.
const ID: usize = 0;
const MARK: usize = 1;
const NOTES: [usize; 2] = [2, 5];
/// Words of a note.
const POSITION: usize = 0;
const LINE: usize = 1;
const END: usize = 2;

/// The service's own words of the journal: lines lost so far, of all clients.
const LOST: usize = 0;

/// No place: there was none left.
pub(super) const NOWHERE: u32 = u32::MAX;

/// All of them, and what the server before has left.
#[derive(Debug)]
pub(super) struct Ledger {
    places: Places,
    notes: Notes,
    free: Mutex<Free>,
    /// Places of clients that this process has not served yet.
    waiting: Mutex<HashMap<u64, u32>>,
    /// Up to where those clients have been heard whose last words may come again.
    pub(super) heard: Mutex<HashMap<u64, u64>>,
}

#[derive(Debug, Default)]
struct Free {
    used: Vec<u32>,
    /// Those from here on were never used.
    fresh: u32,
}

/// What stood before that place of the feed, with the line of that number, had been sent up to the byte `end` of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stood {
    pub(super) position: u64,
    pub(super) line: u64,
    pub(super) end: u64,
}

/// What there is of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at: u32,
    pub(super) lost: u64,
    /// `None`: more was noted than can have been.
    pub(super) stood: Option<Stood>,
}

impl Ledger {
    pub(super) fn new(places: Places, notes: Notes) -> Self {
        Self {
            places,
            notes,
            free: Mutex::default(),
            waiting: Mutex::default(),
            heard: Mutex::default(),
        }
    }

    /// Takes over those of `former` that live.
    pub(super) fn go_on_from(&self, former: &Places, living: &HashSet<u64>) {
        for at in 0..u32::try_from(former.count()).unwrap_or(u32::MAX) {
            let Some(there) = former.get(at) else { break };
            let id = there[ID].load(Ordering::Acquire);
            if !living.contains(&id) {
                continue;
            }
            let Some(at) = self.take() else { return };
            if let Some(place) = self.places.get(at) {
                for (to, from) in place.iter().zip(there).skip(1) {
                    to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                place[ID].store(id, Ordering::Release);
            }
            locked(&self.waiting).insert(id, at);
        }
    }

    /// Lines lost so far.
    pub(super) fn set_lost(&self, lost: u64) {
        self.notes.set(LOST, lost);
    }

    fn take(&self) -> Option<u32> {
        let mut free = locked(&self.free);
        if let Some(at) = free.used.pop() {
            return Some(at);
        }
        let fresh = free.fresh;
        self.places.get(fresh)?;
        free.fresh += 1;
        Some(fresh)
    }

    /// A client of that number has come, who stands there. Answers where its place is.
    pub(super) fn enter(&self, id: u64, stood: &Stood) -> u32 {
        let Some(at) = self.take() else {
            return NOWHERE;
        };
        self.begin(at, id, stood);
        at
    }

    /// As [`enter`](Self::enter), of one that comes of another process: it may come more than once, and stands there now.
    pub(super) fn arrive(&self, id: u64, stood: &Stood) -> u32 {
        let mut waiting = locked(&self.waiting);
        let at = match waiting.get(&id) {
            Some(&at) => at,
            None => match self.take() {
                Some(at) => at,
                None => return NOWHERE,
            },
        };
        waiting.insert(id, at);
        self.begin(at, id, stood);
        at
    }

    fn begin(&self, at: u32, id: u64, stood: &Stood) {
        if let Some(place) = self.places.get(at) {
            place[ID].store(0, Ordering::Release);
            place[MARK].store(0, Ordering::Relaxed);
            for note in NOTES {
                put(place, note, stood);
            }
            place[ID].store(id, Ordering::Release);
        }
    }

    /// The client at that place has ended.
    pub(super) fn leave(&self, at: u32, id: u64) {
        locked(&self.waiting).remove(&id);
        if let Some(place) = self.places.get(at) {
            place[ID].store(0, Ordering::Release);
            locked(&self.free).used.push(at);
        }
    }

    /// A client of the server before, to which so much has been sent, or is to be sent of what waits.
    pub(super) fn found(&self, id: u64, end: u64) -> Option<Entry> {
        let at = locked(&self.waiting).get(&id).copied()?;
        let place = self.places.get(at)?;
        let mark = place[MARK].load(Ordering::Relaxed);
        let newer = newer(mark);
        let each = [newer, 1 - newer].map(|which| (which, get(place, NOTES[which])));
        let valid = each.into_iter().find(|(_, stood)| stood.end <= end);
        if let Some((which, _)) = valid {
            // The other one is written next.
            place[MARK].store(mark & !1 | which as u64, Ordering::Release);
        }
        Some(Entry {
            at,
            lost: mark >> 1,
            stood: valid.map(|(_, stood)| stood),
        })
    }

    /// The client at that place has lost so many lines.
    pub(super) fn loses(&self, at: u32, lost: u64) {
        if let Some(place) = self.places.get(at) {
            let which = place[MARK].load(Ordering::Relaxed) & 1;
            place[MARK].store(lost << 1 | which, Ordering::Release);
        }
    }

    /// The client at that place stands at `cursor` now, and its output ends there.
    #[inline]
    pub(super) fn note(&self, at: u32, cursor: &Cursor, end: u64) {
        if let Some(place) = self.places.get(at) {
            let mark = place[MARK].load(Ordering::Relaxed);
            let stood = Stood {
                position: cursor.position(),
                line: cursor.line(),
                end,
            };
            put(place, NOTES[1 - newer(mark)], &stood);
            place[MARK].store(mark ^ 1, Ordering::Release);
        }
    }

    /// As [`note`](Self::note), if it does not stand there by what was noted last.
    #[inline]
    pub(super) fn begins(&self, at: u32, cursor: &Cursor, end: u64) {
        if let Some(place) = self.places.get(at) {
            let newer = NOTES[newer(place[MARK].load(Ordering::Relaxed))];
            if place[newer + POSITION].load(Ordering::Relaxed) != cursor.position() {
                self.note(at, cursor, end);
            }
        }
    }
}

/// Lines lost so far, by what stands in a journal.
pub(super) fn lost(journal: &Journal) -> u64 {
    journal.noted(LOST)
}

#[inline]
fn newer(mark: u64) -> usize {
    usize::from(mark & 1 == 1)
}

#[inline]
fn put(place: &[AtomicU64; PLACE], note: usize, stood: &Stood) {
    place[note + POSITION].store(stood.position, Ordering::Relaxed);
    place[note + LINE].store(stood.line, Ordering::Relaxed);
    place[note + END].store(stood.end, Ordering::Relaxed);
}

fn get(place: &[AtomicU64; PLACE], note: usize) -> Stood {
    let word = |at: usize| place[note + at].load(Ordering::Acquire);
    Stood {
        position: word(POSITION),
        line: word(LINE),
        end: word(END),
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
