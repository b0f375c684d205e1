//! What a socket takes, what waits for it, and the FIN behind the last of it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};

use super::{Io, Turn};
use crate::io::Is;
use crate::liveness::close::Ending;
use crate::liveness::reap;
use crate::memory::WaitingKind;
use crate::os::sys;
use crate::time::deadline::Moment;

/// How long a client that has acknowledged everything, our FIN included, is given to send its own.
const LINGER: Duration = Duration::from_secs(1);

/// How soon it is looked first whether everything is acknowledged, where the end waits for that alone.
const RECHECK: Duration = Duration::from_millis(10);

impl Io {
    /// What the socket takes of `bytes` at once; nothing once the end is known.
    #[inline]
    pub(crate) fn send(&mut self, bytes: &[u8], turn: &Turn<'_>) -> usize {
        if bytes.is_empty() || self.fin_sent() || self.has_failed() {
            return 0;
        }
        if self.has_tls() {
            return self.send_sealed(bytes, turn);
        }
        let sent = send(&self.socket, bytes);
        self.has_sent(sent, turn)
    }

    /// As [`send`](Self::send), of several pieces in one go.
    pub(crate) fn send_vectored(&mut self, pieces: &[IoSlice<'_>], turn: &Turn<'_>) -> usize {
        if let [piece] = pieces {
            return self.send(piece, turn);
        }
        if pieces.iter().all(|piece| piece.is_empty()) || self.fin_sent() || self.has_failed() {
            return 0;
        }
        if self.has_tls() {
            return self.send_gathered(pieces, turn);
        }
        let sent = send_vectored(&self.socket, pieces);
        self.has_sent(sent, turn)
    }

    #[inline]
    fn has_sent(&mut self, sent: Result<usize, i32>, turn: &Turn<'_>) -> usize {
        match sent {
            Ok(count) => {
                self.count_written(count, turn);
                self.watch_output(turn);
                count
            }
            Err(errno) => {
                self.write_failed(errno);
                0
            }
        }
    }

    /// Straight to the socket if nothing waits; what it does not take waits, or all of it if it is withheld.
    #[inline]
    pub(crate) fn write(&mut self, bytes: &[u8], turn: &Turn<'_>) {
        if self.has_tls() {
            return self.write_sealed(bytes, turn);
        }
        self.put(bytes, turn);
    }

    /// As [`write`](Self::write), as the peer is to have it.
    #[inline]
    pub(crate) fn put(&mut self, mut bytes: &[u8], turn: &Turn<'_>) {
        if self.waiting_output() == 0
            && !self.is_withheld()
            && !bytes.is_empty()
            && !self.fin_sent()
            && !self.has_failed()
        {
            let sent = send(&self.socket, bytes);
            bytes = &bytes[self.has_sent(sent, turn)..];
        }
        if bytes.is_empty() || self.fin_sent() || self.has_failed() {
            return;
        }
        let most = turn.memory.mark(turn.limits.buffer);
        let memory = (turn.memory, WaitingKind::Output);
        let kept = self.pending().outbox.push(bytes, most, memory);
        if kept.is_err() {
            self.out_of_memory();
        }
    }

    /// Something waits for the peer from now on: arms the look at whether it is acknowledged.
    #[inline]
    fn watch_output(&mut self, turn: &Turn<'_>) {
        if self.look_at == Moment::NEVER || self.is(Is::Multipath) {
            // Reading had paused: the last byte is older than its moment says, so it does not count.
            let last_in = if self.is(Is::Shifted) {
                turn.now.before(Duration::MAX)
            } else {
                self.last_in
            };
            let first = reap::first_look(turn.limits, turn.now, last_in);
            self.look_at = self.look_at.min(first);
        }
    }

    /// Writes what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self, turn: &Turn<'_>) {
        let held_back = self.holds_back_far(turn);
        while let Some(pending) = &mut self.pending
            && !pending.outbox.is_empty()
        {
            let mut front = pending.outbox.front();
            if self.end.is_withheld() {
                let committed = pending.committed.saturating_sub(self.written);
                front = front
                    .get(..usize::try_from(committed).unwrap_or(usize::MAX))
                    .unwrap_or(front);
                if front.is_empty() {
                    break;
                }
            }
            let whole = front.len();
            match send(&self.socket, front) {
                Ok(count) => {
                    pending.outbox.advance(count);
                    self.count_written(count, turn);
                    if count < whole {
                        break;
                    }
                }
                Err(errno) => return self.write_failed(errno),
            }
        }
        if self.waiting_output() < turn.limits.buffer && !self.is(Is::Paused) {
            self.resume_reading(turn.now);
        }
        if held_back && !self.holds_back_far(turn) {
            // Whether the far side was silent meanwhile nobody knows.
            self.last_in = turn.now;
            self.set(Is::Shifted, true);
        }
    }

    /// What waits by now is where the next server finds it: it may leave.
    pub(crate) fn commit(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.committed = self.written + pending.outbox.len() as u64;
            if let Some(watched) = &mut pending.watched {
                watched.just_back = false;
            }
        }
    }

    #[inline]
    pub(crate) fn count_written(&mut self, count: usize, turn: &Turn<'_>) {
        self.written += count as u64;
        turn.stats.written.add(count as u64);
    }

    /// Finishing: sends FIN behind the last of the output and waits until the client has acknowledged all of it.
    ///
    /// Never closes before: under a capped `TCP_RTO_MAX_MS` the kernel would give the rest up early.
    pub(crate) fn deliver_and_fin(&mut self, turn: &Turn<'_>) -> Option<Ending> {
        if !self.has_said_goodbye(turn) {
            return None;
        }
        let mut queued = sys::unacknowledged(self.socket.as_fd()).unwrap_or(0);
        if self.peer_fin() && queued == 0 {
            return Some(self.ending());
        }
        if !self.fin_sent() {
            self.send_fin(turn);
            queued = sys::unacknowledged(self.socket.as_fd()).unwrap_or(0);
            if self.peer_fin() && queued == 0 {
                return Some(self.ending());
            }
        }
        if queued == 0 {
            self.linger_until(turn.now.after(LINGER));
        }
        None
    }

    /// Waits until the client has acknowledged all of the output; `ending` is a reset, which would overtake it.
    pub(crate) fn deliver_and_reset(&mut self, turn: &Turn<'_>, ending: Ending) -> Option<Ending> {
        let queued = sys::unacknowledged(self.socket.as_fd()).unwrap_or(0);
        if self.waiting_output() == 0 && queued == 0 {
            return Some(ending);
        }
        // Acknowledgements make no event: looked for at once, and then in pauses that grow with the time they take.
        let since = self.delivering_since(turn.now);
        let pause = (turn.now.since(since) / 8).max(RECHECK);
        self.look_at = self.look_at.min(turn.now.after(pause));
        None
    }

    /// Half-closes: sends FIN, and looks whether it is acknowledged.
    pub(crate) fn send_fin(&mut self, turn: &Turn<'_>) {
        self.sent_fin();
        match rustix::net::shutdown(&self.socket, Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => {}
            Err(error) => {
                log::debug!(id = self.id(), error:% = io::Error::from(error); "shutdown failed");
            }
        }
        // A look may be armed for a half-closed connection with nothing to deliver: that is too late now.
        let armed = std::mem::replace(&mut self.look_at, Moment::NEVER);
        self.watch_output(turn);
        self.look_at = self.look_at.min(armed);
    }
}

/// What the socket takes of `bytes`; a full one takes nothing. An error is its number.
///
/// By rustix, not by the standard library: on Linux that enters the kernel without passing the C library's
/// cancellation points, four locked instructions a message.
#[inline]
fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, i32> {
    persist(|| rustix::net::send(socket.as_fd(), bytes, SEND))
}

fn send_vectored(socket: &OwnedFd, pieces: &[IoSlice<'_>]) -> Result<usize, i32> {
    let mut no_descriptors = SendAncillaryBuffer::default();
    persist(|| rustix::net::sendmsg(socket.as_fd(), pieces, &mut no_descriptors, SEND))
}

#[inline]
fn persist(mut send: impl FnMut() -> rustix::io::Result<usize>) -> Result<usize, i32> {
    loop {
        match send() {
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            sent => return sent.map_err(Errno::raw_os_error),
        }
    }
}

/// A peer that is gone is an error, not a signal.
#[cfg(not(target_vendor = "apple"))]
const SEND: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND: SendFlags = SendFlags::empty();
