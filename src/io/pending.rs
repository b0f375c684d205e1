//! What an idle connection does not have: bytes that wait, and an end under way.

use std::collections::TryReserveError;
use std::os::fd::OwnedFd;

use super::{Far, Io, Turn};
use crate::io::door::Door;
use crate::io::end::Details;
use crate::io::tls::Tls;
use crate::io::waiting::Waiting;
use crate::liveness::reap::Progress;
use crate::memory::WaitingKind;
use crate::time::deadline::Moment;

/// What an idle connection does not have.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// What it waits for before a service hears of it.
    pub(crate) door: Option<Door>,
    /// TLS, where that stands between the socket and the service.
    pub(super) tls: Option<Tls>,
    /// Output that the kernel would not take yet.
    pub(crate) outbox: Waiting,
    /// Where that ends of it that is where the next server finds it, if it is [withheld](Io::is_withheld) until then.
    pub(super) committed: u64,
    /// Input that the service left.
    pub(crate) kept: Waiting,
    /// Where that begins, counted from the connection's first byte.
    pub(crate) kept_at: u64,
    /// The service is to see `kept` again, though nothing new has come.
    pub(crate) offer: bool,
    /// Since when nothing is read, for want of room or because the service has paused it.
    pub(crate) stopped: Option<Moment>,
    /// How far acknowledgements had come, and since when they stand.
    pub(crate) progress: Option<Progress>,
    /// What its end needs.
    pub(super) end: Details,
    /// The far side, on its way or there.
    pub(crate) far: Option<Box<Far>>,
    /// Another process has a copy of the connection that an update cannot mend, as with descriptors that are not its own
    /// any more.
    pub(crate) copy_anew: bool,
    /// What the service wants to be told of beside the socket.
    pub(crate) watched: Option<Box<Watched>>,
}

/// What a service wants to be told of beside the socket; and what of a socket that was given away.
#[derive(Debug)]
pub(crate) struct Watched {
    /// Descriptors whose readiness is told.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// So many of them are registered.
    pub(crate) registered: usize,
    /// When the service wants to be called.
    pub(crate) alarm: Moment,
    /// A watched descriptor may be read further: the service is called again in the next turn.
    pub(crate) again: bool,
    /// The system has given up a socket that was given away: whoever has it is left alone with the error until then.
    pub(crate) lost: Moment,
    /// The connection is to end, and the service ends whoever has the socket first.
    pub(crate) recalled: bool,
    /// A socket that was given away was taken back in this step: it is read once that is where the next server finds it.
    pub(crate) just_back: bool,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            descriptors: Vec::new(),
            registered: 0,
            alarm: Moment::NEVER,
            again: false,
            lost: Moment::NEVER,
            recalled: false,
            just_back: false,
        }
    }
}

impl Io {
    /// Whether nothing is to be read in this step: what the service has taken back is not noted yet as its own.
    pub(crate) fn is_just_back(&self) -> bool {
        self.watches().is_some_and(|watched| watched.just_back)
    }

    /// Whether there is input that the service left.
    #[inline]
    pub(crate) fn keeps_input(&self) -> bool {
        let pending = self.pending.as_ref();
        pending.is_some_and(|pending| !pending.kept.is_empty())
    }

    /// Keeps the last input, which the service left, or did not see for what it left before.
    ///
    /// # Errors
    /// There is no memory; nothing was kept.
    pub(crate) fn keep(&mut self, bytes: &[u8], turn: &Turn<'_>) -> Result<(), TryReserveError> {
        let at = self.read - bytes.len() as u64;
        let pending = self.pending();
        if pending.kept.is_empty() {
            pending.kept_at = at;
        }
        let memory = (turn.memory, WaitingKind::Input);
        pending.kept.push(bytes, turn.limits.buffer, memory)
    }

    /// What the service is to see.
    pub(crate) fn take_kept(&mut self) -> Waiting {
        let pending = self.pending.as_mut();
        pending.map_or_else(Waiting::default, |pending| {
            std::mem::take(&mut pending.kept)
        })
    }

    /// It has `used` so much of that. Answers whether it left some.
    pub(crate) fn put_back(&mut self, mut kept: Waiting, used: usize) -> bool {
        kept.advance(used);
        let left = !kept.is_empty();
        let pending = self.pending();
        pending.offer = false;
        pending.kept = kept;
        pending.kept_at += used as u64;
        left
    }

    /// So much that has just been read is shown to the service.
    #[inline]
    pub(crate) fn shows(&mut self, count: usize) {
        if let Some(pending) = &mut self.pending {
            pending.kept_at = self.read - count as u64;
        }
    }

    /// Where that begins, which is so long, that the service is shown.
    #[inline]
    pub(crate) fn shown_at(&self, count: usize) -> u64 {
        let read = || self.read - count as u64;
        self.pending
            .as_ref()
            .map_or_else(read, |pending| pending.kept_at)
    }

    /// The service has seen what is kept up to there.
    #[cfg(control)]
    pub(crate) fn skip_kept(&mut self, to: u64) {
        let Some(pending) = &mut self.pending else {
            return;
        };
        let seen = usize::try_from(to.saturating_sub(pending.kept_at)).unwrap_or(usize::MAX);
        let seen = seen.min(pending.kept.len());
        pending.kept.advance(seen);
        pending.kept_at += seen as u64;
        pending.offer &= !pending.kept.is_empty();
    }

    /// The service is to see what is kept, though nothing new has come.
    pub(crate) fn offer_kept(&mut self) {
        self.pending().offer = true;
    }

    pub(crate) fn offers(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.offer)
    }
}

impl Pending {
    pub(crate) fn is_vacant(&self) -> bool {
        if self.copy_anew {
            return false;
        }
        self.door.is_none()
            && self.tls.is_none()
            && self.outbox.is_empty()
            && self.kept.is_empty()
            && self.stopped.is_none()
            && self.progress.is_none()
            && self.end.is_vacant()
            && self.far.is_none()
            && self.watched.is_none()
    }
}
