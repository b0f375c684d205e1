//! Output that the kernel would not take yet.

use std::collections::VecDeque;

/// A queue of bytes: appended behind, written from the front.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: VecDeque<u8>,
}

/// What an emptied outbox may keep of its memory.
const KEEP: usize = 16 * 1024;

impl Outbox {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Bytes to write next; more may follow behind them.
    pub(crate) fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// All of it, in two pieces.
    #[cfg(control)]
    pub(crate) fn pieces(&self) -> (&[u8], &[u8]) {
        self.bytes.as_slices()
    }

    /// Drops `count` bytes from the front.
    pub(crate) fn advance(&mut self, count: usize) {
        self.bytes.drain(..count);
        if self.is_empty() {
            self.clear();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_they_came() {
        let mut outbox = Outbox::default();
        let (mut came, mut left) = (Vec::new(), Vec::new());
        for step in 0..2000_usize {
            let chunk: Vec<u8> = (0..step % 97)
                .map(|at| u8::try_from(at * step % 251).unwrap())
                .collect();
            outbox.push(&chunk);
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
        let mut outbox = Outbox::default();
        outbox.push(&[0; 1000]);
        for _ in 0..10_000 {
            outbox.push(&[1; 500]);
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
        let mut outbox = Outbox::default();
        outbox.push(&vec![0; 1 << 20]);
        outbox.advance(1 << 20);
        assert!(outbox.bytes.capacity() <= KEEP);
    }
}
