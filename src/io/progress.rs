//! How far a connection has come, and what follows where it stands still.

use std::os::fd::AsFd;

use socket2::SockRef;

use super::{Io, Turn};
use crate::io::Is;
use crate::liveness::close::CloseReason;
use crate::liveness::reap::{self, Limits, Seen, Verdict};
use crate::os::sys;
use crate::time::deadline::Moment;

/// How the other side of a relay stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Other {
    /// How far it has come, in both directions.
    pub(crate) moved: u64,
    /// Output waits for its peer: it is for that one to move.
    pub(crate) waits: bool,
}

impl Io {
    /// Looks whether the peer acknowledges, and judges; on a relay, by the other side, too.
    pub(crate) fn look(&mut self, turn: &Turn<'_>, other: Option<Other>) {
        let fd = self.socket.as_fd();
        let queued = sys::unacknowledged(fd).unwrap_or(0);
        let outbox = self.waiting_output();
        let waits = outbox > 0 || queued > 0;
        let untold = self.is(Is::Multipath);
        let seen = Seen {
            outbox,
            queued,
            info: if queued > 0 || untold {
                self.tcp_info().ok()
            } else {
                None
            },
            untold,
            taken: self.taken(queued),
            moved: self
                .moved(queued)
                .wrapping_add(other.filter(|_| !waits).map_or(0, |other| other.moved)),
            half_closed: self.half_closed()
                && !self.is(Is::Paused)
                && !other.is_some_and(|other| other.waits),
        };
        let mut progress = self.pending.as_ref().and_then(|pending| pending.progress);
        let verdict = reap::judge(turn.limits, (turn.now, turn.known), &seen, &mut progress);
        if progress.is_some() || self.pending.is_some() {
            self.pending().progress = progress;
        }
        match verdict {
            Verdict::Quiet => self.look_at = Moment::NEVER,
            Verdict::Wait(until) => self.look_at = until,
            Verdict::Reap(mut ending) => {
                self.look_at = Moment::NEVER;
                // It ends in any case, so a soft error may be taken now: the network's word on why.
                if ending.reason == CloseReason::Unacknowledged
                    && let Ok(Some(error)) = SockRef::from(&self.socket).take_error()
                    && let Some(errno) = error.raw_os_error()
                {
                    ending.reason = reap::reason_of(errno, true);
                    ending.errno = Some(errno);
                }
                self.overrule(ending);
            }
        }
    }

    /// What the peer has taken, with `queued` bytes unacknowledged.
    pub(crate) fn taken(&self, queued: u64) -> u64 {
        (self.written + u64::from(self.fin_sent())).saturating_sub(queued)
    }

    /// How it stands, for the other side of a relay: asked where that is half-closed.
    pub(crate) fn as_other(&self) -> Other {
        let queued = sys::unacknowledged(self.socket.as_fd()).unwrap_or(0);
        Other {
            moved: self.taken(queued).wrapping_add(self.read),
            waits: queued > 0 || self.waiting_output() > 0,
        }
    }

    /// When it ends if it goes on standing still, as far as is known, and for which reason.
    pub(crate) fn stalls(&self, limits: &Limits) -> Option<(Moment, CloseReason)> {
        let queued = sys::unacknowledged(self.socket.as_fd()).unwrap_or(0);
        let waits = self.waiting_output() > 0 || queued > 0;
        let half_closed = self.half_closed() && !self.is(Is::Paused);
        let stall = reap::stall(limits, waits, half_closed, self.taken(queued))?;
        let progress = self.pending.as_ref().and_then(|pending| pending.progress);
        // It counts from the first look.
        let since = progress.map_or(self.look_at, |progress| progress.since);
        let until = since.after(stall.limit);
        (until != Moment::NEVER).then_some((until, stall.reason))
    }

    /// How far it has come, with `queued` bytes unacknowledged: what has to move.
    pub(super) fn moved(&self, queued: u64) -> u64 {
        let acknowledged = self.taken(queued);
        // What is read while output waits, or while it ends, is no sign that the output will be.
        let counts = queued == 0 && self.waiting_output() == 0 && self.is_open();
        let read = if counts { self.read } else { 0 };
        acknowledged.wrapping_add(read)
    }
}
