//! Connections on their way from one worker to another, which nobody reads: until the other one has them in its own vault the
//! next server finds them here, and they are dialled for anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::os::sys::mapping::{Mapping, Standing};

/// So many may be on their way at a time.
const MOST: usize = 64;

/// A place: the connection's number, or 0; the length of the record and its checksum; the record.
const PLACE: usize = 512;
const WORD: usize = 8;
const WORDS: usize = PLACE / WORD;
const HEAD: usize = 2;
const LONGEST: usize = PLACE - HEAD * WORD;

/// What there is of memory for them.
pub(super) const SIZE: usize = MOST * PLACE;

#[derive(Debug)]
pub(super) struct Moving(pub(super) Arc<Mapping>);

impl Moving {
    /// Puts one there, for as long as what is answered lives; the number, last, makes it count. `None`: there is no room.
    pub(super) fn put(&self, id: u64, record: &[u8]) -> Option<Standing> {
        let words = self.0.words();
        let free = |at: &usize| words[*at].load(Ordering::Acquire) == 0;
        let at = (0..MOST).map(|place| place * WORDS).find(free)?;
        let length = u32::try_from(record.len()).ok()?;
        if record.len() > LONGEST {
            return None;
        }
        let places = &words[at + HEAD..at + WORDS];
        for (bytes, place) in record.chunks(WORD).zip(places) {
            let mut word = [0; WORD];
            word[..bytes.len()].copy_from_slice(bytes);
            place.store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        let head = u64::from(length) << 32 | u64::from(crc32fast::hash(record));
        words[at + 1].store(head, Ordering::Relaxed);
        words[at].store(id, Ordering::Release);
        Some(Standing::new(&self.0, at))
    }

    /// Those that are there: their numbers, and their records.
    pub(super) fn each(&self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let (places, _) = self.0.words().as_chunks::<WORDS>();
        places.iter().filter_map(|words| {
            let id = words[0].load(Ordering::Acquire);
            let [a, b, c, d, e, f, g, h] = words[1].load(Ordering::Relaxed).to_le_bytes();
            let check = u32::from_le_bytes([a, b, c, d]);
            let length = usize::try_from(u32::from_le_bytes([e, f, g, h])).ok()?;
            let bytes = words[HEAD..]
                .iter()
                .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
            let record: Vec<u8> = bytes.take(length).collect();
            let is_whole = record.len() == length && crc32fast::hash(&record) == check;
            (id != 0 && is_whole).then_some((id, record))
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.each().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn one_is_there_until_what_it_was_put_with_is_gone_and_there_is_room_for_so_many() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, SIZE as u64).unwrap();
        let moving = Moving(Arc::new(Mapping::new(file.as_fd(), 0, SIZE).unwrap()));
        assert!(moving.is_empty());
        let first = moving.put(7, b"a record of some bytes").unwrap();
        let second = moving.put(8, &[]).unwrap();
        let seen: Vec<_> = moving.each().collect();
        assert_eq!(
            seen,
            [(7, b"a record of some bytes".to_vec()), (8, Vec::new())]
        );
        drop(first);
        assert_eq!(moving.each().collect::<Vec<_>>(), [(8, Vec::new())]);
        drop(second);
        assert!(moving.is_empty());
        assert!(moving.put(9, &[0; LONGEST + 1]).is_none());
        let all: Vec<_> = (1..)
            .map_while(|id| moving.put(id, &[1; LONGEST]))
            .collect();
        assert_eq!(all.len(), MOST);
    }
}
