//! The connection there is: what was sent on it and what came, and how far its end has come.

use std::mem;
use std::time::{Duration, Instant};

use standfast::client::Link;

use crate::connect::heartbeat::Heartbeat;
use crate::connect::parting::{Parting, QUESTION};

/// A connection.
#[derive(Debug, Default)]
pub(crate) struct Up {
    /// Bytes that the kernel took.
    pub(crate) sent: u64,
    /// Bytes that came.
    pub(crate) received: u64,
    /// How many of those that came are to be written before the end that a signal asked for.
    pub(crate) heard_out: Option<u64>,
    /// When something of stdin was sent last, or something came; or it was made.
    pub(crate) moved: Option<Instant>,
    pub(crate) heartbeat: Option<Heartbeat>,
    /// The kernel takes nothing more for now.
    pub(crate) is_full: bool,
    /// stdout has no room, so nothing is read.
    pub(crate) is_paused: bool,
    pub(crate) half_closed: bool,
    /// The server has, and we go on.
    pub(crate) parting: Option<Parting>,
    /// until now: all that is left is that everything arrives.
    pub(crate) gone: bool,
    /// We said goodbye.
    pub(crate) leaving: bool,
    /// The read timeout has come, and that is to be the end.
    pub(crate) timed_out: bool,
}

impl Up {
    /// How many of the bytes sent are not known to have arrived, of `queued` ones: a FIN is one of those, and a Unix socket
    /// counts more than bytes.
    pub(crate) fn in_doubt(&self, queued: u64) -> u64 {
        let goodbye = u64::from(self.leaving || self.half_closed);
        let kept = self.parting.as_ref().map_or(0, Parting::asked);
        let (kept, sent) = (kept as u64, self.sent - kept as u64);
        queued.saturating_sub(goodbye + kept).min(sent)
    }

    /// These bytes of stdin were sent.
    pub(crate) fn has_sent(&mut self, bytes: &[u8], now: Instant) {
        let Some(&last) = bytes.last() else { return };
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.sent(last, now);
        }
        self.sent += bytes.len() as u64;
    }

    /// So many bytes came.
    pub(crate) fn has_received(&mut self, count: usize, link: &Link<'_>) {
        self.received += count as u64;
        self.has_moved(link);
    }

    /// Bytes were sent or came: just now, however long ago the turn began.
    pub(crate) fn has_moved(&mut self, link: &Link<'_>) {
        self.moved = Some(link.clock());
    }

    /// Ends it, the server having said all, when it has everything.
    pub(crate) fn go(&mut self, link: &mut Link<'_>) {
        self.half_closed = true;
        if !mem::replace(&mut self.gone, true) {
            link.leave();
        }
    }

    /// Sends the first of what waits, to see whether the server still reads. Answers whether the kernel took it.
    pub(crate) fn ask(&mut self, waiting: &[u8], link: &mut Link<'_>) -> bool {
        let question = &waiting[..waiting.len().min(QUESTION)];
        let count = link.send(question);
        if let Some(parting) = &mut self.parting {
            parting.ask(count, self.sent);
        }
        self.has_sent(&question[..count], link.now());
        if count > 0 {
            self.has_moved(link);
        }
        count > 0
    }

    /// Whether it is not known to take anything.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.parting
            .as_ref()
            .is_some_and(|parting| !parting.reads_on())
    }

    /// Whether bytes may be sent that are not kept for the next connection.
    pub(crate) fn may_send(&self) -> bool {
        self.parting.as_ref().is_none_or(Parting::takes)
    }

    /// How long nothing of stdin was sent, and nothing came.
    pub(crate) fn idle(&self, link: &Link<'_>) -> Duration {
        let now = link.clock();
        now.saturating_duration_since(self.moved.unwrap_or(now))
    }

    /// Whether the server may have gone since it was seen to read on: between that look and this moment the process may
    /// have stood still, and more may have come of stdin.
    pub(crate) fn may_have_gone(&self, link: &Link<'_>) -> bool {
        let parting = self.parting.as_ref();
        parting.is_some_and(|parting| parting.may_have_gone(self.idle(link), link.unacknowledged()))
    }
}
