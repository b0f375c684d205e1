//! How much may be read of a connection, with what waits in the whole process.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Io, Turn};
use crate::io::Is;
use crate::os::sys;

/// What is read at a time of one that has failed, when nothing else is, bytes.
const LAST_WORDS: usize = 4 * 1024;

/// What is certain to take as much as is read near the end: four times that, for what the kernel adds to each segment.
const AMPLE: u32 = 4 * 4 * 1024;

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
        let sink = self.far_io().unwrap_or(self);
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
            if self.is(Is::Short) {
                self.set(Is::Short, false);
                self.resume_reading(turn.now);
            }
            return granted;
        }
        if self.is_given_up() {
            // It ends with what there is to read, and that frees what it holds.
            return room.min(LAST_WORDS);
        }
        self.set(Is::Short, true);
        0
    }

    /// Whether it holds input that its service cannot use, and nothing of it has moved for that long: in `held` bytes.
    pub(crate) fn hoards(&self, turn: &Turn<'_>, time: Duration) -> bool {
        let Some(pending) = &self.pending else {
            return false;
        };
        let since = pending.stopped.unwrap_or(self.last_in);
        let still = turn.now.since(since) >= time;
        let holds = !pending.kept.is_empty() || self.held_sealed() > 0;
        still && holds && !self.is(Is::Paused) && pending.outbox.is_empty()
    }

    /// Whether the socket takes output at once: some, not however much. Certain is a little where nothing is in it that the
    /// peer has not acknowledged (`SIOCOUTQ`), or where much more fits: an acknowledgement makes no event, so who sent its
    /// second message before that would wait for somebody else's memory.
    fn takes(&self, certain: bool) -> bool {
        if certain {
            let fd = self.socket.as_fd();
            return sys::unacknowledged(fd).is_ok_and(|queued| queued == 0)
                || sys::send_room(fd).is_ok_and(|room| room >= AMPLE);
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
            pending.outbox.capacity() + pending.kept.capacity() + self.held_sealed()
        })
    }
}

#[cfg(all(test, target_os = "linux", not(standfast_portable)))]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::Peer;
    use crate::time::deadline::Moment;

    #[test]
    fn a_second_message_is_certain_to_pass_before_the_first_is_acknowledged() {
        let (mut near, _far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let socket = near.try_clone().unwrap().into();
        let io = Io::new(socket, 1, Peer::Unix(None), 0, Moment::at_start());
        near.write_all(b"not read yet").unwrap();
        assert!(sys::unacknowledged(near.as_fd()).unwrap() > 0);
        assert!(io.takes(true));
        while near.write(&[7; 4096]).is_ok() {}
        assert!(!io.takes(true), "it is full");
    }
}
