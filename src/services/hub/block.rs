//! Lines that were published together: immutable, in memory once, however many clients have yet to get them.
//!
//! Each block knows the next one, so a reader goes on from block to block without a lock.

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::memory::{Held, Memory, WaitingKind};

/// The longest line there can be: places within a block are 32 bits.
pub(super) const LONGEST: usize = 1 << 30;

/// Lines, one after another.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// Where its first byte stands in the feed.
    pub(super) position: u64,
    /// The number of its first line.
    pub(super) first: u64,
    pub(super) bytes: Box<[u8]>,
    /// Where each line ends.
    ends: Box<[u32]>,
    /// Where the lines of one sender end that stand side by side, and whose they are.
    runs: Box<[(u32, u64)]>,
    pub(super) next: OnceLock<Arc<Self>>,
    held: Held,
}

impl Block {
    /// Where the feed goes on behind it.
    pub(super) fn end(&self) -> u64 {
        self.position + self.bytes.len() as u64
    }

    /// The number of the line behind its last one.
    pub(super) fn last(&self) -> u64 {
        self.first + self.ends.len() as u64
    }

    /// The next bytes from `at` on that are not `own`, up to where something of that stands; empty at the end.
    pub(super) fn stretch(&self, at: usize, own: Option<u64>) -> Range<usize> {
        let Some(own) = own else {
            return at..self.bytes.len();
        };
        let from = self.runs.partition_point(|&(end, _)| place(end) <= at);
        let mut stretch = at..at;
        for &(end, sender) in self.runs.get(from..).unwrap_or_default() {
            if sender != own {
                stretch.end = place(end);
            } else if stretch.is_empty() {
                stretch = place(end)..place(end);
            } else {
                break;
            }
        }
        stretch
    }

    /// Where the line ends that has the byte at `at`.
    pub(super) fn line_end(&self, at: usize) -> usize {
        let end = self.ends.get(self.lines_before(at));
        end.map_or(self.bytes.len(), |&end| place(end))
    }

    /// Where the line begins that has the byte at `at`, or the next one, if one ends there.
    pub(super) fn line_start(&self, at: usize) -> usize {
        self.start_of(self.lines_before(at))
    }

    /// Where its line of that index begins.
    pub(super) fn start_of(&self, line: usize) -> usize {
        let before = line.checked_sub(1).and_then(|before| self.ends.get(before));
        before.map_or(0, |&end| place(end))
    }

    /// How many lines end at or before `at`.
    pub(super) fn lines_before(&self, at: usize) -> usize {
        self.ends.partition_point(|&end| place(end) <= at)
    }

    pub(super) fn lines(&self) -> usize {
        self.ends.len()
    }

    /// How many lines from `at` on are not `own`.
    pub(super) fn lines_from(&self, at: usize, own: Option<u64>) -> u64 {
        let (mut at, mut count) = (at, 0);
        loop {
            let stretch = self.stretch(at, own);
            if stretch.is_empty() {
                return count;
            }
            count += (self.lines_before(stretch.end) - self.lines_before(stretch.start)) as u64;
            at = stretch.end;
        }
    }

    /// Where each line ends.
    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Where each run ends, and who sent it.
    pub(super) fn runs(&self) -> &[(u32, u64)] {
        &self.runs
    }

    /// What of it was said in one piece, as far as that is known: where it ends, who has said it, and whether it is one line, whatever
    /// stands in it.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, u64, bool)> {
        let mut lines = self.ends.iter().copied().peekable();
        let mut from = 0;
        self.runs.iter().flat_map(move |&(end, sender)| {
            let bytes = self.bytes.get(from..place(end)).unwrap_or_default();
            let each: Vec<u32> =
                std::iter::from_fn(|| lines.next_if(|&line| line <= end)).collect();
            let begun = std::mem::replace(&mut from, place(end));
            let ended = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let ended = ended.map(|(at, _)| begun + at + 1);
            // Other pieces, as a raw feed has them, are found again by their own ends alone.
            let is_plain = each.iter().copied().map(place).eq(ended);
            let each = if is_plain { vec![end] } else { each };
            each.into_iter()
                .map(move |end| (place(end), sender, !is_plain))
        })
    }

    /// A block of these lines and runs. `None`: there cannot be such a one.
    pub(super) fn of(
        (position, first): (u64, u64),
        ends: Box<[u32]>,
        runs: Box<[(u32, u64)]>,
        bytes: &[u8],
    ) -> Option<Self> {
        // Nothing may overflow later, however long the feed goes on.
        position.checked_add(1 << 60)?;
        first.checked_add(1 << 60)?;
        let mut before = 0;
        for &end in &ends {
            let length = end.checked_sub(before)?;
            if length == 0 || place(length) > LONGEST {
                return None;
            }
            before = end;
        }
        let mut lines = ends.iter();
        for (end, _) in &runs {
            // Behind the run before, with a line.
            lines.find(|&line| line == end)?;
        }
        let last = ends.last().copied().unwrap_or(0);
        if place(last) != bytes.len() || runs.last().map_or(0, |&(end, _)| end) != last {
            return None;
        }
        Some(Self {
            position,
            first,
            bytes: bytes.into(),
            ends,
            runs,
            next: OnceLock::new(),
            held: Held::default(),
        })
    }
}

impl Block {
    /// Counts what it takes in `memory`, until it goes.
    pub(super) fn count_in(&mut self, memory: &Memory) {
        let anatomy = size_of_val(&*self.ends) + size_of_val(&*self.runs);
        self.held = memory.hold(WaitingKind::Hub);
        self.held
            .set(size_of::<Self>() + self.bytes.len() + anatomy);
    }
}

impl Drop for Block {
    /// One after another: a long chain would overflow the stack if each dropped the next.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut block) = next.and_then(Arc::into_inner) {
            next = block.next.take();
        }
    }
}

/// Lines on their way into a block.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    runs: Vec<(u32, u64)>,
}

impl Gathering {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn lines(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Makes room for that many bytes, in so many lines.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn reserve(&mut self, bytes: usize, lines: usize) -> Result<(), TryReserveError> {
        self.bytes.try_reserve(bytes)?;
        self.ends.try_reserve(lines)?;
        self.runs.try_reserve(1)
    }

    /// What it takes, bytes.
    pub(super) fn capacity(&self) -> usize {
        let ends = self.ends.capacity() * size_of::<u32>();
        self.bytes.capacity() + ends + self.runs.capacity() * size_of::<(u32, u64)>()
    }

    /// Adds a line of `sender`, which is not empty and not longer than [`LONGEST`].
    pub(super) fn push(&mut self, sender: u64, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        let end = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.ends.push(end);
        match self.runs.last_mut() {
            Some((before, same)) if *same == sender => *before = end,
            _ => self.runs.push((end, sender)),
        }
    }

    /// The block, to stand behind `before`.
    pub(super) fn seal(&mut self, before: &Block) -> Block {
        let Self { bytes, ends, runs } = std::mem::take(self);
        Block {
            position: before.end(),
            first: before.last(),
            bytes: bytes.into_boxed_slice(),
            ends: ends.into_boxed_slice(),
            runs: runs.into_boxed_slice(),
            next: OnceLock::new(),
            held: Held::default(),
        }
    }
}

/// A place within a block.
fn place(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(lines: &[(u64, &str)]) -> Block {
        let mut gathering = Gathering::default();
        for (sender, line) in lines {
            gathering.push(*sender, line.as_bytes());
        }
        gathering.seal(&Block::default())
    }

    fn heard(block: &Block, own: Option<u64>) -> Vec<&str> {
        let mut at = 0;
        let mut heard = Vec::new();
        loop {
            let stretch = block.stretch(at, own);
            if stretch.is_empty() {
                assert_eq!(stretch.start, block.bytes.len());
                return heard;
            }
            at = stretch.end;
            heard.push(std::str::from_utf8(&block.bytes[stretch]).unwrap());
        }
    }

    #[test]
    fn a_sender_hears_all_but_its_own_lines() {
        let block = block(&[(1, "a\n"), (1, "b\n"), (2, "c\n"), (3, "dd\n"), (1, "e\n")]);
        assert_eq!(heard(&block, None), ["a\nb\nc\ndd\ne\n"]);
        assert_eq!(heard(&block, Some(1)), ["c\ndd\n"]);
        assert_eq!(heard(&block, Some(2)), ["a\nb\n", "dd\ne\n"]);
        assert_eq!(heard(&block, Some(9)), ["a\nb\nc\ndd\ne\n"]);
        for (own, count) in [(None, 5), (Some(1), 2), (Some(2), 4), (Some(3), 4)] {
            assert_eq!(block.lines_from(0, own), count, "{own:?}");
        }
        assert_eq!(block.lines_from(4, Some(1)), 2);
        assert_eq!(block.lines_from(6, Some(1)), 1);
    }

    #[test]
    fn a_place_belongs_to_its_line() {
        let block = block(&[(1, "ab\n"), (2, "\n"), (1, "cd\n")]);
        for (at, start, end) in [(0, 0, 3), (2, 0, 3), (3, 3, 4), (4, 4, 7), (6, 4, 7)] {
            assert_eq!((block.line_start(at), block.line_end(at)), (start, end));
        }
        assert_eq!(block.line_start(7), 7);
        assert_eq!((block.end(), block.last(), block.lines()), (7, 3, 3));
        assert_eq!([0, 1, 2, 3].map(|line| block.start_of(line)), [0, 3, 4, 7]);
    }

    #[test]
    fn a_run_of_lines_is_one_part_and_of_other_pieces_each_is() {
        let lines = block(&[(1, "a\n"), (1, "b\n"), (2, "c\n")]);
        let parts: Vec<_> = lines.parts().collect();
        assert_eq!(parts, [(4, 1, false), (6, 2, false)]);
        // As many line ends as pieces, but elsewhere.
        let raw = block(&[(7, "a\nb"), (7, "c\n"), (7, "\n")]);
        let parts: Vec<_> = raw.parts().collect();
        assert_eq!(parts, [(3, 7, true), (5, 7, true), (6, 7, true)]);
    }

    #[test]
    fn a_long_chain_ends_without_a_deep_stack() {
        let first = Arc::new(Block::default());
        let mut last = Arc::clone(&first);
        for _ in 0..200_000 {
            let mut gathering = Gathering::default();
            gathering.push(1, b"\n");
            let next = Arc::new(gathering.seal(&last));
            last.next.set(Arc::clone(&next)).unwrap();
            last = next;
        }
        assert_eq!(last.end(), 200_000);
        drop(last);
        drop(first);
    }
}
