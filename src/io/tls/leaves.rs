//! What goes out: sealed, and the goodbye behind the last of it.

use std::cell::RefCell;
use std::io::IoSlice;
use std::os::fd::AsFd;

use super::BATCH;
use crate::io::{Io, Turn};
use crate::liveness::close::CloseReason;
use crate::os::sys;
use crate::tls::{Session, UsedUp};

thread_local! {
    /// Where a worker has what leaves while it is sealed.
    static LEAVES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// What leaves in several pieces, in one.
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Io {
    /// Seals what the socket takes of `bytes`, and sends it: what that leaves of a record waits.
    #[inline(never)]
    pub(in crate::io) fn send_sealed(&mut self, bytes: &[u8], turn: &Turn<'_>) -> usize {
        let mut sent = 0;
        for part in bytes.chunks(BATCH) {
            if self.waiting_output() > 0 || self.fin_sent() || self.has_failed() {
                break;
            }
            self.seal(part, turn);
            sent += part.len();
        }
        sent
    }

    /// As [`send_sealed`](Self::send_sealed), of several pieces, which become records together.
    #[inline(never)]
    pub(in crate::io) fn send_gathered(
        &mut self,
        pieces: &[IoSlice<'_>],
        turn: &Turn<'_>,
    ) -> usize {
        GATHERED.with_borrow_mut(|gathered| {
            gathered.clear();
            for piece in pieces {
                let room = BATCH.saturating_sub(gathered.len());
                gathered.extend_from_slice(piece.get(..room).unwrap_or(piece));
            }
            self.send_sealed(gathered, turn)
        })
    }

    /// Seals all of `bytes`, and sends it or has it wait.
    #[inline(never)]
    pub(in crate::io) fn write_sealed(&mut self, bytes: &[u8], turn: &Turn<'_>) {
        for part in bytes.chunks(BATCH) {
            self.seal(part, turn);
        }
    }

    fn seal(&mut self, part: &[u8], turn: &Turn<'_>) {
        let sealed = self.seal_with(part.len(), turn, |session, out| session.seal(part, out));
        if let Some(Err(UsedUp)) = sealed {
            self.finish_for(CloseReason::TlsKeysUsedUp);
        }
    }

    /// What `seal` makes of so much plaintext is sent, or waits.
    pub(super) fn seal_with<T>(
        &mut self,
        plain: usize,
        turn: &Turn<'_>,
        seal: impl FnOnce(&mut Session, &mut Vec<u8>) -> T,
    ) -> Option<T> {
        LEAVES.with_borrow_mut(|leaves| {
            leaves.clear();
            let sealed = self.sealed()?;
            let outcome = seal(&mut sealed.session, leaves);
            sealed.overhead += leaves.len().saturating_sub(plain) as u64;
            self.put(leaves, turn);
            Some(outcome)
        })
    }

    /// Says that nothing more comes, if that was not said, and the client hears it. Answers whether all of it has left.
    pub(crate) fn has_said_goodbye(&mut self, turn: &Turn<'_>) -> bool {
        let queued = |io: &Self| sys::unacknowledged(io.socket.as_fd()).unwrap_or(0);
        if let Some(sealed) = self.sealed()
            && !sealed.session.is_closed()
        {
            let has_all = self.waiting_output() == 0 && queued(self) == 0;
            if let Some(sealed) = self.sealed() {
                sealed.goodbye_alone = has_all;
            }
            let length = self.seal_with(0, turn, |session, out| {
                session.close(out);
                out.len()
            });
            if let Some(sealed) = self.sealed() {
                sealed.goodbye = length.unwrap_or(0) as u64;
            }
        }
        self.waiting_output() == 0
    }

    /// Whether the client is done, with a goodbye or without, and was to hear nothing but ours yet.
    pub(crate) fn has_heard_all(&self) -> bool {
        self.sealed_ref().is_some_and(|sealed| {
            sealed.goodbye_alone && (sealed.session.is_over() || sealed.is_truncated)
        })
    }
}
