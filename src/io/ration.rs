//! How much may be read of a connection, with what waits in the whole process.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Far, Io, Turn};
use crate::sys;

/// What is read at a time of one that has failed, when nothing else is, bytes.
const LAST_WORDS: usize = 4 * 1024;

impl Io {
    /// How many of `room` bytes may be read of the client, with what the process holds.
    #[inline]
    pub(crate) fn ration(&mut self, room: usize, turn: &Turn<'_>) -> usize {
        if self.discards_input() {
            return room;
        }
        let (sink, held) = self.sink();
        let most = turn.limits.buffer;
        let granted = turn
            .memory
            .ration(room, held, most, |certain| sink.takes(certain));
        self.granted(granted, room, turn)
    }

    /// Where what comes of the input goes, and what waits for that already, or for the service.
    fn sink(&self) -> (&Self, usize) {
        let Some(pending) = &self.pending else {
            return (self, 0);
        };
        let sink = match pending.far.as_deref() {
            Some(Far::Up(up)) => &up.io,
            _ => self,
        };
        (sink, pending.kept.len().max(sink.waiting_output()))
    }

    /// The same of the far side: what comes from there waits for the client.
    pub(crate) fn far_ration(&mut self, room: usize, turn: &Turn<'_>) -> usize {
        let (held, most) = (self.waiting_output(), turn.limits.buffer);
        let granted = turn
            .memory
            .ration(room, held, most, |certain| self.takes(certain));
        self.granted(granted, room, turn)
    }

    #[inline]
    fn granted(&mut self, granted: usize, room: usize, turn: &Turn<'_>) -> usize {
        if granted > 0 {
            if self.short {
                self.short = false;
                self.unpause(turn.now);
            }
            return granted;
        }
        if self.is_given_up() {
            // It ends with what there is to read, and that frees what it holds.
            return room.min(LAST_WORDS);
        }
        self.short = true;
        0
    }

    /// Whether it holds input that its service cannot use, and nothing of it has moved for that long: in `held` bytes.
    pub(crate) fn hoards(&self, turn: &Turn<'_>, time: Duration) -> bool {
        let Some(pending) = &self.pending else {
            return false;
        };
        let since = pending.paused.unwrap_or(self.last_in);
        let still = turn.now.since(since) >= time;
        still && !pending.kept.is_empty() && !self.halted && pending.outbox.is_empty()
    }

    /// Whether the socket takes output at once: some, not however much. Certain is a little where nothing is in it that the
    /// peer has not acknowledged (`SIOCOUTQ`).
    fn takes(&self, certain: bool) -> bool {
        if certain {
            return sys::unacknowledged(self.socket.as_fd()).is_ok_and(|queued| queued == 0);
        }
        let mut polled = [PollFd::new(&self.socket, PollFlags::OUT)];
        let now = Timespec::default();
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Not read for want of memory: whether there is some for it now, or for what its far side sends.
    pub(crate) fn has_memory(&self, turn: &Turn<'_>) -> bool {
        let most = turn.limits.buffer;
        [self.sink().1, self.waiting_output()]
            .into_iter()
            .any(|held| turn.memory.has_room(held, most))
    }

    /// Memory that its buffers take.
    pub(crate) fn held(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| {
            pending.outbox.capacity() + pending.kept.capacity()
        })
    }
}
