//! What a server notes for the one after it, as its counters: in memory that outlives it, whole wherever it is killed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, memfd_create};

/// No note is longer, bytes: another server's word is not taken for more.
const MOST: usize = 8 << 20;

/// Before a note: which one it is, how long it is, and a checksum over both and the note.
const HEAD: usize = 8 + 4 + 4;

/// One server's: two files, written by turns, so that the one that is not just being written is whole.
#[derive(Debug)]
pub(crate) struct Notes {
    files: [File; 2],
    /// The number of the last one.
    last: Mutex<u64>,
}

impl Notes {
    /// # Errors
    /// No descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let file = || memfd_create("standfast", MemfdFlags::CLOEXEC);
        Ok(Self {
            files: [file()?.into(), file()?.into()],
            last: Mutex::new(0),
        })
    }

    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        self.files.each_ref().map(File::as_fd)
    }

    /// Notes that in the place of what was noted before.
    ///
    /// # Errors
    /// It is too long, or there is no memory. What was noted before is there, then.
    pub(crate) fn note(&self, note: &[u8]) -> io::Result<()> {
        let length = u32::try_from(note.len()).map_err(io::Error::other)?;
        if note.len() > MOST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *last + 1;
        let about = [&number.to_le_bytes()[..], &length.to_le_bytes()].concat();
        let check = check(&about, note).to_le_bytes();
        let text = [&about, &check[..], note].concat();
        let [even, odd] = &self.files;
        let file = if number.is_multiple_of(2) { even } else { odd };
        file.write_all_at(&text, 0)?;
        *last = number;
        Ok(())
    }
}

/// The last whole note that is in one of these.
pub(crate) fn noted(files: Vec<OwnedFd>) -> Option<Vec<u8>> {
    let whole = files.into_iter().filter_map(|file| one(&file.into()));
    whole
        .max_by_key(|(number, _)| *number)
        .map(|(_, note)| note)
}

/// The note that is there with its number, if it is whole.
fn one(file: &File) -> Option<(u64, Vec<u8>)> {
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0).ok()?;
    let (about, expected) = head.split_at(HEAD - 4);
    let (number, length) = about.split_first_chunk()?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let length = usize::try_from(length).ok().filter(|it| *it <= MOST)?;
    let mut note = vec![0; length];
    file.read_exact_at(&mut note, HEAD as u64).ok()?;
    let is_whole = check(about, &note).to_le_bytes() == expected;
    is_whole.then(|| (u64::from_le_bytes(*number), note))
}

fn check(about: &[u8], note: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(about);
    hasher.update(note);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(notes: &Notes) -> Option<Vec<u8>> {
        let copies = notes.descriptors().map(|one| one.try_clone_to_owned());
        noted(copies.into_iter().flatten().collect())
    }

    #[test]
    fn the_last_note_is_read_and_the_one_before_where_that_is_torn() {
        let notes = Notes::new().unwrap();
        assert_eq!(read(&notes), None);
        for note in ["a first one", "a second, longer one", "third"] {
            notes.note(note.as_bytes()).unwrap();
            assert_eq!(read(&notes).unwrap(), note.as_bytes());
        }
        // The process was killed in the middle of the third one.
        let [even, odd] = &notes.files;
        odd.write_all_at(b"?", HEAD as u64 + 2).unwrap();
        assert_eq!(read(&notes).unwrap(), b"a second, longer one");
        even.write_all_at(&[0xff; HEAD], 0).unwrap();
        assert_eq!(read(&notes), None);
        notes.note(b"fourth").unwrap();
        assert_eq!(read(&notes).unwrap(), b"fourth");
    }

    #[test]
    fn what_is_too_long_leaves_what_is_there() {
        let notes = Notes::new().unwrap();
        notes.note(b"short").unwrap();
        assert!(notes.note(&vec![b'x'; MOST + 1]).is_err());
        assert_eq!(read(&notes).unwrap(), b"short");
    }
}
