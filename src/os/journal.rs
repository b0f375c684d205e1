//! A stream of bytes that outlives the process in which it was said: the last of it, record by record, in memory that is a
//! file's; and places beside it, where whoever reads the stream notes how far it has come.
//!
//! ```text
//! a page: how large the parts are, where the oldest record begins and the newest ends, some words of the service's
//! what the journal is about
//! a place for each reader
//! a ring of records: five words, then bytes
//! ```
//!
//! A record counts once the store is there that says where the newest ends: a process may be killed between any two stores.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::process::{Resource, getrlimit};

use crate::os::sys::mapping::Mapping;

const MAGIC: u64 = u64::from_le_bytes(*b"stdfastj");
/// The form of all this: another one is not read.
const FORM: u64 = 1;

const PAGE: usize = 4096;
const WORD: usize = 8;

/// Words of the first page: what it is, in words that change no more, the last of which is a checksum over the others.
const HEAD: usize = 6;
/// Where the oldest record begins in the ring, and where the newest ends, counted on from round to round.
const OLDEST: usize = 16;
const NEWEST: usize = 17;
/// What a service notes.
const NOTES: usize = 24;

/// Words of a place: a cache line, for each is written by one thread time and again.
pub(crate) const PLACE: usize = 8;

/// Words before the bytes of a record.
const RECORD: usize = 5;
const RECORD_BYTES: usize = RECORD * WORD;

/// No ring is written so often: farther on nothing is believed, for places are added up.
const FAR: u64 = 1 << 60;

/// In a record's first word, beside the length: [`Record::is_whole`].
const WHOLE: u64 = 1 << 63;

/// What stands before bytes of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Where the first of them stands in the stream.
    pub(crate) position: u64,
    /// The number of the first line.
    pub(crate) line: u64,
    /// The connection that they are of.
    pub(crate) sender: u64,
    /// So much of its input is in the stream with them: what comes again of that is not to be said again.
    pub(crate) heard: u64,
    /// They are one line, whatever stands in them.
    pub(crate) is_whole: bool,
}

/// How large the parts are, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    about: usize,
    places: usize,
    ring: usize,
}

impl Size {
    fn places_at(self) -> usize {
        PAGE + paged(self.about)
    }

    fn ring_at(self) -> usize {
        self.places_at() + paged(self.places)
    }

    fn whole(self) -> usize {
        self.ring_at() + self.ring
    }
}

fn paged(bytes: usize) -> usize {
    bytes.div_ceil(PAGE).max(1) * PAGE
}

/// A journal, of whoever writes it, or of whoever finds it.
#[derive(Debug)]
pub struct Journal {
    file: OwnedFd,
    head: Arc<Mapping>,
    places: Arc<Mapping>,
    ring: Mapping,
    size: Size,
}

impl Journal {
    /// An empty one with so many places and room for so many bytes, those before records included.
    ///
    /// # Errors
    /// The system has no descriptors, or no address space.
    pub(crate) fn new(about: &[u8], places: usize, room: usize) -> io::Result<Self> {
        let size = Size {
            about: about.len(),
            places: places * PLACE * WORD,
            ring: paged(room),
        };
        // To make a longer file ends the process (SIGXFSZ, setrlimit(2)).
        let longest = getrlimit(Resource::Fsize).current;
        if longest.is_some_and(|longest| size.whole() as u64 > longest) {
            let why = "the limit of the size of a file is too low (ulimit -f)";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("standfast-journal", flags)?;
        ftruncate(&file, size.whole() as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        let mut first = Mapping::new(file.as_fd(), 0, size.places_at())?;
        first.bytes()[PAGE..PAGE + about.len()].copy_from_slice(about);
        let journal = Self::over(file, size, first)?;
        for (place, word) in journal.head.words().iter().zip(size.words(about)) {
            place.store(word, Ordering::Release);
        }
        Ok(journal)
    }

    fn over(file: OwnedFd, size: Size, first: Mapping) -> io::Result<Self> {
        let part = |from: usize, to: usize| Mapping::new(file.as_fd(), from as u64, to - from);
        Ok(Self {
            head: Arc::new(first),
            places: Arc::new(part(size.places_at(), size.ring_at())?),
            ring: part(size.ring_at(), size.whole())?,
            file,
            size,
        })
    }

    /// What another process has left, and what it is about.
    ///
    /// # Errors
    /// In words: it is none that this build reads.
    pub(crate) fn found(file: OwnedFd) -> Result<(Self, Vec<u8>), String> {
        let said = |error: rustix::io::Errno| io::Error::from(error).to_string();
        let seals = fcntl_get_seals(&file).map_err(said)?;
        let length = usize::try_from(fstat(&file).map_err(said)?.st_size).unwrap_or(0);
        if !seals.contains(SealFlags::SHRINK) || length < PAGE {
            return Err("no journal".to_owned());
        }
        let failed = |error: io::Error| error.to_string();
        let head = Mapping::new(file.as_fd(), 0, PAGE).map_err(failed)?;
        let word = |at: usize| {
            head.words()
                .get(at)
                .map_or(0, |it| it.load(Ordering::Acquire))
        };
        if word(0) != MAGIC {
            return Err("no journal, or one that was not complete".to_owned());
        }
        if word(1) != FORM {
            return Err(format!(
                "a journal of form {}, this build reads {FORM}",
                word(1)
            ));
        }
        let part = |at: usize| usize::try_from(word(at)).ok().filter(|it| *it <= 1 << 46);
        let size = match (part(2), part(3), part(4)) {
            (Some(about), Some(places), Some(ring)) => Size {
                about,
                places,
                ring,
            },
            _ => return Err("no journal".to_owned()),
        };
        let is_in_order =
            size.places.is_multiple_of(PLACE * WORD) && size.ring.is_multiple_of(PAGE);
        if size.whole() != length || !is_in_order || size.ring == 0 {
            return Err("a journal of another size".to_owned());
        }
        let mut first = Mapping::new(file.as_fd(), 0, size.places_at()).map_err(failed)?;
        let about = first.bytes()[PAGE..PAGE + size.about].to_vec();
        if size.words(&about)[HEAD - 1] != word(HEAD - 1) {
            return Err("a journal that was damaged".to_owned());
        }
        let journal = Self::over(file, size, first).map_err(failed)?;
        Ok((journal, about))
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// The service's words.
    pub(crate) fn notes(&self) -> Notes {
        Notes(Arc::clone(&self.head))
    }

    /// What stands in that one of them, which is a count of what was said.
    pub(crate) fn noted(&self, at: usize) -> u64 {
        self.head.words()[NOTES + at]
            .load(Ordering::Acquire)
            .min(FAR)
    }

    /// The readers' places.
    pub(crate) fn places(&self) -> Places {
        let count = self.size.places / (PLACE * WORD);
        Places(Arc::clone(&self.places), count)
    }

    fn word(&self, at: usize) -> u64 {
        self.head.words()[at].load(Ordering::Relaxed)
    }

    /// Whether there is room for so many bytes in so many records, or would be without those records that end at or before the position
    /// `wanted`.
    pub(crate) fn has_room(&mut self, bytes: usize, records: usize, wanted: u64) -> bool {
        let needed = bytes + records * (RECORD_BYTES + WORD);
        self.make_room(needed, wanted)
    }

    /// Adds a record. Answers whether there was room for it: what ends at or before the position `wanted` makes some.
    pub(crate) fn append(&mut self, record: &Record, bytes: &[u8], wanted: u64) -> bool {
        let whole = RECORD_BYTES + bytes.len().next_multiple_of(WORD);
        if !self.make_room(whole, wanted) {
            return false;
        }
        let length = bytes.len() as u64 | if record.is_whole { WHOLE } else { 0 };
        let head = [
            length,
            record.position,
            record.line,
            record.sender,
            record.heard,
        ];
        let newest = self.word(NEWEST);
        for (at, word) in (newest..).step_by(WORD).zip(head) {
            self.put(at, &word.to_le_bytes());
        }
        self.put(newest + RECORD_BYTES as u64, bytes);
        self.head.words()[NEWEST].store(newest + whole as u64, Ordering::Release);
        true
    }

    fn make_room(&mut self, needed: usize, wanted: u64) -> bool {
        let (ring, needed) = (self.size.ring as u64, needed as u64);
        let (mut oldest, newest) = (self.word(OLDEST), self.word(NEWEST));
        if needed > ring {
            return false;
        }
        while newest + needed - oldest > ring {
            let (record, length) = self.record(oldest);
            if record.position + length as u64 > wanted {
                return false;
            }
            oldest += (RECORD_BYTES + length.next_multiple_of(WORD)) as u64;
            self.head.words()[OLDEST].store(oldest, Ordering::Release);
        }
        true
    }

    /// All that is there, in order. What makes no sense is not, nor what stands before that.
    pub(crate) fn records(&mut self) -> Vec<(Record, Vec<u8>)> {
        let (mut at, newest) = (self.word(OLDEST), self.word(NEWEST));
        let mut records: Vec<(Record, Vec<u8>)> = Vec::new();
        if newest > FAR || newest.saturating_sub(at) > self.size.ring as u64 {
            return records;
        }
        while at < newest {
            let (record, length) = self.record(at);
            let room = newest - at;
            if (RECORD_BYTES + length) as u64 > room {
                break;
            }
            let mut bytes = vec![0; length];
            self.get(at + RECORD_BYTES as u64, &mut bytes);
            let end = records
                .last()
                .map(|(last, bytes)| last.position + bytes.len() as u64);
            if end.is_some_and(|end| end != record.position) {
                records.clear();
            }
            records.push((record, bytes));
            at += (RECORD_BYTES + length.next_multiple_of(WORD)) as u64;
        }
        records
    }

    /// What stands before the bytes of the record that begins there, and how many of those there are.
    fn record(&mut self, at: u64) -> (Record, usize) {
        let mut words = [0; RECORD];
        for (at, word) in (at..).step_by(WORD).zip(&mut words) {
            let mut bytes = [0; WORD];
            self.get(at, &mut bytes);
            *word = u64::from_le_bytes(bytes);
        }
        let [length, position, line, sender, heard] = words;
        let record = Record {
            position: position & !WHOLE,
            line,
            sender,
            heard,
            is_whole: length & WHOLE != 0,
        };
        // Longer than all that there is: then nothing is believed.
        let length = usize::try_from(length & !WHOLE).unwrap_or(usize::MAX);
        (record, length.min(self.size.ring))
    }

    /// Where that is in the ring, and how much of it is left from there on.
    fn place(&self, at: u64) -> usize {
        usize::try_from(at % self.size.ring as u64).unwrap_or(0)
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let place = self.place(at);
        let ring = self.ring.bytes();
        let (front, back) = bytes.split_at(bytes.len().min(ring.len() - place));
        ring[place..place + front.len()].copy_from_slice(front);
        ring[..back.len()].copy_from_slice(back);
    }

    fn get(&mut self, at: u64, bytes: &mut [u8]) {
        let place = self.place(at);
        let ring = self.ring.bytes();
        let (front, back) = bytes.split_at_mut(bytes.len().min(ring.len() - place));
        front.copy_from_slice(&ring[place..place + front.len()]);
        back.copy_from_slice(&ring[..back.len()]);
    }
}

impl Size {
    fn words(self, about: &[u8]) -> [u64; HEAD] {
        let parts = [self.about, self.places, self.ring].map(|part| part as u64);
        let [about_length, places, ring] = parts;
        let mut hasher = crc32fast::Hasher::new();
        for part in parts {
            hasher.update(&part.to_le_bytes());
        }
        hasher.update(about);
        [
            MAGIC,
            FORM,
            about_length,
            places,
            ring,
            hasher.finalize().into(),
        ]
    }
}

/// Words that a service notes something in.
#[derive(Clone, Debug)]
pub(crate) struct Notes(Arc<Mapping>);

impl Notes {
    pub(crate) fn set(&self, at: usize, word: u64) {
        self.0.words()[NOTES + at].store(word, Ordering::Release);
    }
}

/// Places that readers note something in, each one's own.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Mapping>, usize);

impl Places {
    pub(crate) fn count(&self) -> usize {
        self.1
    }

    #[inline]
    pub(crate) fn get(&self, at: u32) -> Option<&[AtomicU64; PLACE]> {
        let (places, _) = self.0.words().as_chunks::<PLACE>();
        places.get(..self.1)?.get(usize::try_from(at).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(position: u64, sender: u64) -> Record {
        Record {
            position,
            line: position / 10,
            sender,
            heard: position * 3,
            is_whole: sender.is_multiple_of(2),
        }
    }

    fn again(journal: &Journal) -> (Journal, Vec<u8>) {
        Journal::found(journal.file().try_clone().unwrap()).unwrap()
    }

    #[test]
    fn what_was_said_last_is_found_in_order_round_after_round() {
        let mut journal = Journal::new(b"about", 3, PAGE).unwrap();
        let mut position = 0;
        for number in 0..2000_u64 {
            let bytes = vec![number.to_le_bytes()[0]; usize::try_from(number % 301).unwrap()];
            assert!(journal.append(&record(position, number), &bytes, u64::MAX));
            position += bytes.len() as u64;
            let (mut there, about) = again(&journal);
            assert_eq!(about, b"about");
            let records = there.records();
            let (last, said) = records.last().unwrap();
            assert_eq!(
                (*last, said),
                (record(position - bytes.len() as u64, number), &bytes)
            );
            let mut end = records[0].0.position;
            for (one, bytes) in &records {
                assert_eq!(one.position, end);
                assert!(
                    bytes
                        .iter()
                        .all(|byte| *byte == one.sender.to_le_bytes()[0])
                );
                end += bytes.len() as u64;
            }
            let taken: usize = records
                .iter()
                .map(|(_, bytes)| RECORD_BYTES + bytes.len())
                .sum();
            assert!(number < 100 || taken > PAGE / 2, "{taken}");
        }
    }

    #[test]
    fn what_is_wanted_yet_makes_no_room() {
        let mut journal = Journal::new(b"", 0, PAGE).unwrap();
        let bytes = [7; 1000];
        let mut say = |at: u64, wanted| journal.append(&record(at * 1000, at), &bytes, wanted);
        assert_eq!([0, 1, 2].map(|at| say(at, 0)), [true; 3]);
        assert!(!say(3, 999));
        assert!(say(3, 1000));
        assert!(!journal.has_room(5000, 1, u64::MAX), "more than all of it");
        assert!(!journal.has_room(1000, 1, 1999));
        assert!(journal.has_room(1000, 1, 2000));
        let records = journal.records();
        assert_eq!(
            records
                .iter()
                .map(|(it, _)| it.position)
                .collect::<Vec<_>>(),
            [2000, 3000]
        );
    }

    #[test]
    fn places_and_notes_are_found_too_and_another_form_is_refused() {
        let journal = Journal::new(b"about", 3, PAGE).unwrap();
        journal.notes().set(2, 5);
        let places = journal.places();
        assert!(places.get(3).is_none());
        places.get(2).unwrap()[7].store(9, Ordering::Release);
        let (there, _) = again(&journal);
        assert_eq!((there.noted(2), there.places().count()), (5, 3));
        assert_eq!(there.places().get(2).unwrap()[7].load(Ordering::Acquire), 9);
        for (at, wrong) in [(0, 1), (1, FORM + 1), (4, 2 * PAGE as u64), (5, 0)] {
            let word = &journal.head.words()[at];
            let right = word.swap(wrong, Ordering::Relaxed);
            let file = journal.file().try_clone().unwrap();
            assert!(Journal::found(file).is_err(), "{at}");
            word.store(right, Ordering::Relaxed);
        }
        again(&journal);
    }

    #[test]
    fn a_ring_of_anything_is_no_reason_to_panic() {
        let mut chance = crate::seeded::Seeded::new(7);
        let mut journal = Journal::new(b"", 0, PAGE).unwrap();
        for _ in 0..500 {
            for byte in journal.ring.bytes() {
                *byte = if chance.below(3) == 0 {
                    chance.next().to_le_bytes()[0]
                } else {
                    0
                };
            }
            let base = [0, u64::MAX - 2 * PAGE as u64][usize::from(chance.below(4) == 0)];
            let at =
                |chance: &mut crate::seeded::Seeded| base + chance.below(2 * PAGE as u64) / 8 * 8;
            let words = journal.head.words();
            words[OLDEST].store(at(&mut chance), Ordering::Relaxed);
            words[NEWEST].store(at(&mut chance), Ordering::Relaxed);
            journal.records();
        }
    }
}
