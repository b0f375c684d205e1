//! Input that a service left: it sees it again, in one piece, with more behind it.

use std::collections::TryReserveError;
use std::ops::Deref;

use crate::memory::{Held, Memory, WaitingKind};

/// Input that a service left.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    held: Held,
}

impl Inbox {
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
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let (held, len) = ((&mut self.held, WaitingKind::Input), self.bytes.len());
            memory.reserve(held, (len, needed, most), |more| {
                self.bytes.try_reserve_exact(more)?;
                Ok(self.bytes.capacity())
            })?;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Drops `count` bytes from the front.
    pub(crate) fn advance(&mut self, count: usize) {
        if count >= self.bytes.len() {
            self.bytes = Vec::new();
        } else {
            self.bytes.drain(..count);
            if self.bytes.len() <= self.bytes.capacity() / 4 {
                self.bytes.shrink_to(self.bytes.len() * 2);
            }
        }
        self.held.set(self.bytes.capacity());
    }

    /// Memory it takes, bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

impl Deref for Inbox {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_stays_and_its_memory_is_counted() {
        let memory = Memory::new(1 << 20);
        let mut inbox = Inbox::default();
        inbox.push(b"one", &memory, 1000).unwrap();
        inbox.push(b"two", &memory, 1000).unwrap();
        inbox.advance(2);
        assert_eq!(&*inbox, b"etwo");
        inbox.push(&[b'x'; 900], &memory, 1000).unwrap();
        assert_eq!((inbox.len(), inbox.capacity()), (904, 1000));
        assert_eq!(memory.held_as(WaitingKind::Input), 1000);
        inbox.advance(900);
        assert_eq!((inbox.len(), inbox.capacity()), (4, 8));
        assert_eq!(memory.held(), 8);
        inbox.advance(4);
        assert_eq!(memory.held(), 0);
    }
}
