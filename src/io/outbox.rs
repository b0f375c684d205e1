//! Output that the kernel would not take yet.

use std::collections::{TryReserveError, VecDeque};

use crate::memory::{Held, Memory, WaitingKind};

/// A queue of bytes: appended behind, written from the front. Empty, it owns no memory.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: VecDeque<u8>,
    held: Held,
}

impl Outbox {
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

    /// Adds `bytes` behind what there is, which is to stay within `most`.
    ///
    /// # Errors
    /// There is no memory; nothing was added.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        memory: &Memory,
        most: usize,
    ) -> Result<(), TryReserveError> {
        self.reserve(self.len() + bytes.len(), memory, most)?;
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
        memory: &Memory,
        most: usize,
    ) -> Result<(), TryReserveError> {
        if needed <= self.bytes.capacity() {
            return Ok(());
        }
        let (held, len) = ((&mut self.held, WaitingKind::Output), self.bytes.len());
        memory.reserve(held, (len, needed, most), |more| {
            self.bytes.try_reserve_exact(more)?;
            Ok(self.bytes.capacity())
        })
    }

    /// Bytes to write next; more may follow behind them.
    pub(crate) fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
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

    #[test]
    fn bytes_leave_in_the_order_they_came() {
        let (memory, mut outbox) = (memory(), Outbox::default());
        let (mut came, mut left) = (Vec::new(), Vec::new());
        for step in 0..2000_usize {
            let chunk: Vec<u8> = (0..step % 97)
                .map(|at| u8::try_from(at * step % 251).unwrap())
                .collect();
            outbox.push(&chunk, &memory, MARK).unwrap();
            came.extend_from_slice(&chunk);
            let take = outbox.front().len().min(step * 31 % 113);
            left.extend_from_slice(&outbox.front()[..take]);
            outbox.advance(take);
            assert_eq!(outbox.len(), came.len() - left.len());
        }
        while !outbox.is_empty() {
            left.extend_from_slice(outbox.front());
            outbox.advance(outbox.front().len());
        }
        assert_eq!(left, came);
    }

    #[test]
    fn a_queue_that_never_empties_does_not_grow_with_what_passes_through() {
        let (memory, mut outbox) = (memory(), Outbox::default());
        outbox.push(&[0; 1000], &memory, MARK).unwrap();
        for _ in 0..10_000 {
            outbox.push(&[1; 500], &memory, MARK).unwrap();
            outbox.advance(400);
            outbox.advance(100);
        }
        assert_eq!(outbox.len(), 1000);
        assert!(
            outbox.bytes.capacity() < 10_000,
            "{}",
            outbox.bytes.capacity()
        );
    }

    #[test]
    fn an_emptied_outbox_gives_its_memory_back() {
        let (memory, mut outbox) = (memory(), Outbox::default());
        outbox.push(&vec![0; 1 << 20], &memory, MARK).unwrap();
        assert_eq!(memory.held(), 1 << 20);
        outbox.advance(1 << 20);
        assert_eq!((outbox.capacity(), memory.held()), (0, 0));
    }

    #[test]
    fn what_it_takes_shrinks_with_what_is_in_it_and_is_counted() {
        let (memory, mut outbox) = (memory(), Outbox::default());
        while outbox.len() < MARK {
            outbox
                .push(&[7; 1000][..1000.min(MARK - outbox.len())], &memory, MARK)
                .unwrap();
            assert!(outbox.capacity() <= MARK, "never beyond the mark");
            assert_eq!(memory.held(), outbox.capacity());
        }
        while outbox.len() > 1000 {
            outbox.advance(1000);
            assert!(outbox.capacity() <= 4 * outbox.len());
            assert_eq!(memory.held(), outbox.capacity());
        }
        drop(outbox);
        assert_eq!(memory.held(), 0);
    }
}
