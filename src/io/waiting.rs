//! Bytes that wait in this process: output that the kernel would not take yet, input that a service left.

use std::collections::{TryReserveError, VecDeque};

use crate::memory::{Held, Memory, WaitingKind};

/// A queue of bytes: appended behind, used from the front. Empty, it owns no memory.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    bytes: VecDeque<u8>,
    held: Held,
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Memory it takes, bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Adds `bytes` behind what there is, which is to stay within `most`, and is counted in `memory` as that kind.
    ///
    /// # Errors
    /// There is no memory; nothing was added.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        most: usize,
        memory: (&Memory, WaitingKind),
    ) -> Result<(), TryReserveError> {
        self.reserve(self.len() + bytes.len(), most, memory)?;
        self.bytes.extend(bytes);
        Ok(())
    }

    /// Has room for `needed` bytes in all, and for more as long as that stays within `most`.
    ///
    /// # Errors
    /// There is no memory; nothing has changed.
    pub(crate) fn reserve(
        &mut self,
        needed: usize,
        most: usize,
        (memory, kind): (&Memory, WaitingKind),
    ) -> Result<(), TryReserveError> {
        if needed <= self.bytes.capacity() {
            return Ok(());
        }
        let (held, len) = ((&mut self.held, kind), self.bytes.len());
        memory.reserve(held, (len, needed, most), |more| {
            self.bytes.try_reserve_exact(more)?;
            Ok(self.bytes.capacity())
        })
    }

    /// Bytes to use next; more may follow behind them.
    pub(crate) fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// All of it.
    pub(crate) fn in_one_piece(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }

    /// All of it, in two pieces.
    pub(crate) fn pieces(&self) -> (&[u8], &[u8]) {
        self.bytes.as_slices()
    }

    /// Drops `count` bytes from the front.
    pub(crate) fn advance(&mut self, count: usize) {
        self.bytes.drain(..count);
        if self.is_empty() {
            self.clear();
        } else if self.len() <= self.bytes.capacity() / 4 {
            // Halved at the most each time, so what is moved is no more than what has left.
            self.bytes.shrink_to(self.len() * 2);
            self.held.set(self.bytes.capacity());
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes = VecDeque::new();
        self.held.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: usize = 256 * 1024;

    fn memory() -> Memory {
        Memory::new(64 << 20)
    }

    fn as_output(memory: &Memory) -> (&Memory, WaitingKind) {
        (memory, WaitingKind::Output)
    }

    #[test]
    fn bytes_leave_in_the_order_they_came() {
        let (memory, mut waiting) = (memory(), Waiting::default());
        let (mut came, mut left) = (Vec::new(), Vec::new());
        for step in 0..2000_usize {
            let chunk: Vec<u8> = (0..step % 97)
                .map(|at| u8::try_from(at * step % 251).unwrap())
                .collect();
            waiting.push(&chunk, MARK, as_output(&memory)).unwrap();
            came.extend_from_slice(&chunk);
            let take = waiting.front().len().min(step * 31 % 113);
            left.extend_from_slice(&waiting.front()[..take]);
            waiting.advance(take);
            assert_eq!(waiting.len(), came.len() - left.len());
        }
        while !waiting.is_empty() {
            left.extend_from_slice(waiting.front());
            waiting.advance(waiting.front().len());
        }
        assert_eq!(left, came);
    }

    #[test]
    fn a_queue_that_never_empties_does_not_grow_with_what_passes_through() {
        let (memory, mut waiting) = (memory(), Waiting::default());
        waiting.push(&[0; 1000], MARK, as_output(&memory)).unwrap();
        for _ in 0..10_000 {
            waiting.push(&[1; 500], MARK, as_output(&memory)).unwrap();
            waiting.advance(400);
            waiting.advance(100);
        }
        assert_eq!(waiting.len(), 1000);
        assert!(
            waiting.bytes.capacity() < 10_000,
            "{}",
            waiting.bytes.capacity()
        );
    }

    #[test]
    fn an_emptied_queue_gives_its_memory_back() {
        let (memory, mut waiting) = (memory(), Waiting::default());
        waiting
            .push(&vec![0; 1 << 20], MARK, as_output(&memory))
            .unwrap();
        assert_eq!(memory.held(), 1 << 20);
        waiting.advance(1 << 20);
        assert_eq!((waiting.capacity(), memory.held()), (0, 0));
    }

    #[test]
    fn what_it_takes_shrinks_with_what_is_in_it_and_is_counted() {
        let (memory, mut waiting) = (memory(), Waiting::default());
        while waiting.len() < MARK {
            waiting
                .push(
                    &[7; 1000][..1000.min(MARK - waiting.len())],
                    MARK,
                    as_output(&memory),
                )
                .unwrap();
            assert!(waiting.capacity() <= MARK, "never beyond the mark");
            assert_eq!(memory.held(), waiting.capacity());
        }
        while waiting.len() > 1000 {
            waiting.advance(1000);
            assert!(waiting.capacity() <= 4 * waiting.len());
            assert_eq!(memory.held(), waiting.capacity());
        }
        drop(waiting);
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn what_is_left_stays_in_one_piece_and_its_memory_is_counted() {
        let memory = Memory::new(1 << 20);
        let as_input = (&memory, WaitingKind::Input);
        let mut kept = Waiting::default();
        kept.push(b"one", 1000, as_input).unwrap();
        kept.push(b"two", 1000, as_input).unwrap();
        kept.advance(2);
        assert_eq!(kept.in_one_piece(), b"etwo");
        kept.push(&[b'x'; 900], 1000, as_input).unwrap();
        assert_eq!((kept.len(), kept.capacity()), (904, 1000));
        assert_eq!(memory.held_as(WaitingKind::Input), 1000);
        kept.advance(850);
        kept.push(&[b'y'; 940], 1000, as_input).unwrap();
        let whole = [&[b'x'; 54][..], &[b'y'; 940]].concat();
        assert_eq!(kept.in_one_piece(), whole);
        kept.advance(990);
        assert_eq!((kept.len(), kept.capacity()), (4, 8));
        assert_eq!(memory.held(), 8);
        kept.advance(4);
        assert_eq!(memory.held(), 0);
    }
}
