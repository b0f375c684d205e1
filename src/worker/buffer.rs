//! What a worker reads into, and how much of a turn one connection may have of it.

#[cfg(control)]
use crate::os::sys::mapping::Mapping;

/// What one read may bring. A worker has two such buffers: what comes of far sides goes behind what comes of clients, and
/// should the process die, both are there.
const READ_BUFFER: usize = 256 * 1024;
#[cfg(control)]
const _: () = assert!(READ_BUFFER == crate::vault::BUFFER);

/// Once a turn has read so much, a few milliseconds' worth, each connection's share of it is small: a thousand that all
/// have much to say must not keep one with a word waiting for a quarter of a gigabyte.
const MUCH: u64 = 8 * 1024 * 1024;
const SHARE: usize = 16 * 1024;

/// What a worker reads into.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    memory: Memory,
    /// Bytes read in this turn.
    taken: u64,
}

#[derive(Debug)]
enum Memory {
    Own(Own),
    /// It outlives the process. Beside it is what is read of clients with TLS, whose words are for nobody else.
    #[cfg(control)]
    Kept(Mapping, Own),
}

/// A process's own, which begins with a page: the kernel copies half again as fast to there (scripts/bench/forward).
#[derive(Debug)]
struct Own {
    bytes: Box<[u8]>,
    from: usize,
}

impl Own {
    fn new() -> Self {
        const PAGE: usize = 4096;
        let bytes = vec![0; 2 * READ_BUFFER + PAGE].into_boxed_slice();
        let from = bytes.as_ptr().align_offset(PAGE).min(PAGE);
        Self { bytes, from }
    }

    #[inline]
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + 2 * READ_BUFFER]
    }
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self {
            memory: Memory::Own(Own::new()),
            taken: 0,
        }
    }

    /// In memory that begins with a page and has as much as one read of either side may bring.
    #[cfg(control)]
    pub(super) fn kept(memory: Mapping) -> Self {
        Self {
            memory: Memory::Kept(memory, Own::new()),
            taken: 0,
        }
    }

    /// For what comes of a client, and for what comes of its far side.
    #[inline]
    #[cfg_attr(
        not(control),
        expect(unused_variables, reason = "there is no memory but its own")
    )]
    pub(super) fn bytes(&mut self, has_tls: bool) -> (&mut [u8], &mut [u8]) {
        let bytes = match &mut self.memory {
            Memory::Own(own) => own.bytes(),
            #[cfg(control)]
            Memory::Kept(_, own) if has_tls => own.bytes(),
            #[cfg(control)]
            Memory::Kept(memory, _) => &mut memory.bytes()[..2 * READ_BUFFER],
        };
        bytes.split_at_mut(READ_BUFFER)
    }

    pub(super) fn begin_turn(&mut self) {
        self.taken = 0;
    }

    #[inline]
    pub(super) fn has_taken(&mut self, bytes: u64) {
        self.taken += bytes;
    }

    /// How much the next connection may read in this turn.
    #[inline]
    pub(super) fn share(&self) -> usize {
        if self.taken < MUCH {
            READ_BUFFER
        } else {
            SHARE
        }
    }
}
