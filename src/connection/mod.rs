//! One connection: read, serve, write, and the way to its end.
//!
//! All of a connection's state is in [`Connection`], nothing in a stack frame or a closure: that is what lets it leave
//! for another process. What an idle connection does not need stands in [`Pending`](crate::io::Pending), which it does
//! not have.
//!
//! `worker/` says when (readiness, leftovers, deadlines) and carries out a [`Step::Close`]; the judgement over
//! silence is in `liveness/reap.rs`.

mod door;
mod far;
mod given_away;

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mio::Registry;

use crate::io::Is;
use crate::io::marks::Mark;
use crate::io::{Far, Io, Turn};
use crate::liveness::close::{self, CloseReason, Ending, How};
use crate::liveness::keepalive::RTO_MAX_DEFAULT;
use crate::os::sys;
use crate::service::{AnyService, Context, Ready, State};

/// How many bytes one connection may read in a turn before the others get theirs.
const READ_BUDGET: usize = 256 * 1024;

/// A connection and what its service remembers of it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) io: Io,
    state: State,
}

/// What the worker has to do for a connection after a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing until the next event or deadline.
    Rest,
    /// Call `advance` again in the next turn: its budget was spent.
    Again,
    /// Call `advance` in the next turn: it is as it was.
    PutOff,
    /// What its client waited for at the door has come: let it in.
    Enter,
    /// Close it.
    Close(Ending),
}

impl Connection {
    /// Wraps an accepted socket and lets the service greet.
    pub(crate) fn open(io: Io, service: &AnyService, turn: &Turn<'_>) -> Self {
        let mut connection = Self::unheard(io);
        connection.greet(service, turn);
        connection
    }

    /// Wraps a socket that no service has heard of.
    pub(crate) fn unheard(io: Io) -> Self {
        Self::with_state(io, Box::new(()))
    }

    fn greet(&mut self, service: &AnyService, turn: &Turn<'_>) {
        let Self { io, state } = self;
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let io = &mut *io;
            service.open(&mut Context { io, turn: *turn })
        }));
        match opened {
            Ok(opened) => *state = opened,
            Err(_) => {
                io.told();
                io.overrule(Ending::reset(CloseReason::Service));
            }
        }
    }

    pub(crate) fn with_state(io: Io, state: State) -> Self {
        Self { io, state }
    }

    pub(crate) fn into_parts(self) -> (Io, State) {
        (self.io, self.state)
    }

    /// Whether another worker may have it: no list of this one's names it, and its sockets are all that is registered.
    pub(crate) fn can_move(&self) -> bool {
        let io = &self.io;
        let watched = io
            .pending
            .as_ref()
            .and_then(|pending| pending.watched.as_ref());
        let listed = [Mark::Closing, Mark::Copied, Mark::Leftover, Mark::Paused];
        !listed.into_iter().any(|mark| io.marks.has(mark))
            && !io.is(Is::GivenAway)
            && watched.is_none()
    }

    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// What follows from the greeting.
    pub(crate) fn opened(&mut self, service: &AnyService, turn: &Turn<'_>) -> Step {
        self.conclude(service, turn, false)
    }

    /// Bytes read so far, from either side.
    #[inline]
    pub(crate) fn taken_in(&self) -> u64 {
        let far = match self.io.far() {
            Some(Far::Up(up)) => up.io.read,
            _ => 0,
        };
        self.io.read + far
    }

    /// Does what can be done now: output first, for that makes room, then input, then what follows from both.
    pub(crate) fn advance(
        &mut self,
        service: &AnyService,
        turn: &Turn<'_>,
        buffer: &mut [u8],
    ) -> Step {
        if self.io.pending.is_some() {
            if self.io.door().is_some() {
                return self.knock(turn, buffer);
            }
            self.go_on(service, turn);
            if self.io.is(Is::GivenAway) {
                return self.attend(turn);
            }
            let waited = self.io.waiting_output() > 0;
            self.io.flush(turn);
            if waited && self.io.waiting_output() == 0 {
                self.give_room(service, turn);
            }
            self.flush_far(turn);
            self.offer_kept(service, turn);
        }
        let mut more = self.pull(service, turn, buffer);
        more |= self.pull_far(service, turn, buffer);
        self.conclude(service, turn, more)
    }

    /// As [`advance`](Self::advance), but in a later turn if bytes of it wait already, and this one `is_late`.
    #[inline]
    pub(crate) fn advance_unless(
        &mut self,
        is_late: impl FnOnce(&Turn<'_>) -> bool,
        service: &AnyService,
        turn: &Turn<'_>,
        buffer: &mut [u8],
    ) -> Step {
        if self.io.holds_bytes() && is_late(turn) {
            return Step::PutOff;
        }
        self.advance(service, turn, buffer)
    }

    /// Services were prompted: this one may have output.
    pub(crate) fn prompted(
        &mut self,
        service: &AnyService,
        turn: &Turn<'_>,
        buffer: &mut [u8],
    ) -> Step {
        if self.io.is(Is::GivenAway) || self.io.door().is_some() {
            return Step::Rest;
        }
        self.give_room(service, turn);
        // A write that fails leaves what came before to be read.
        let more = self.pull(service, turn, buffer);
        self.conclude(service, turn, more)
    }

    /// Asks the service for output, unless the connection is ending and the service has said all.
    fn give_room(&mut self, service: &AnyService, turn: &Turn<'_>) {
        if (self.io.is_open() || self.io.owes()) && !self.io.has_failed() {
            self.call(turn, |state, conn| service.output(state, conn));
        }
    }

    /// Calls the service. `None`: it panicked, and its connection ends for that.
    #[inline]
    fn call<T>(
        &mut self,
        turn: &Turn<'_>,
        what: impl FnOnce(&mut State, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let Self { io, state } = self;
        let called = catch_unwind(AssertUnwindSafe(|| {
            let io = &mut *io;
            what(state, &mut Context { io, turn: *turn })
        }));
        if called.is_err() {
            io.told();
            io.set(Is::Paused, false);
            io.overrule(Ending::reset(CloseReason::Service));
        }
        called.ok()
    }

    /// Reads until there is no more, the budget is spent, or there is no room for what would come of it.
    /// Answers whether the budget stopped it.
    fn pull(&mut self, service: &AnyService, turn: &Turn<'_>, buffer: &mut [u8]) -> bool {
        let mut budget = READ_BUDGET.min(buffer.len());
        while self.io.is(Is::Readable) {
            let room = self.io.input_room(turn).min(buffer.len());
            let room = if room > 0 {
                self.io.ration(room, turn)
            } else {
                0
            };
            if room == 0 {
                self.io.stop_reading(turn.now);
                return false;
            }
            if budget == 0 {
                return true;
            }
            let count = self.io.take_in(&mut buffer[..room], turn);
            if count > 0 {
                budget = budget.saturating_sub(count);
                self.deliver(service, turn, &buffer[..count]);
            }
        }
        false
    }

    /// Hands bytes to the service, behind what it left before, and keeps what it leaves now.
    #[inline]
    fn deliver(&mut self, service: &AnyService, turn: &Turn<'_>, bytes: &[u8]) {
        if self.io.discards_input() || self.io.is_decided() {
            return;
        }
        let drained = self.io.drains(bytes.len());
        if let Some(pending) = &mut self.io.pending
            && !pending.kept.is_empty()
        {
            if pending.keep(bytes, turn).is_err() {
                return self.io.out_of_memory();
            }
            self.serve_kept(service, turn);
            if drained {
                self.finish_unasked(service, CloseReason::Drain);
            }
            return;
        }
        let used = self.serve(service, turn, bytes);
        if used < bytes.len() {
            let kept_at = self.io.read - (bytes.len() - used) as u64;
            let pending = self.io.pending();
            pending.kept_at = kept_at;
            if pending.keep(&bytes[used..], turn).is_err() {
                return self.io.out_of_memory();
            }
            self.left_over(turn, used);
        }
        if drained {
            self.finish_unasked(service, CloseReason::Drain);
        }
    }

    /// Neither the client nor the service wants it to end: some hear their client out, whose last words may be on their
    /// way.
    fn finish_unasked(&mut self, service: &AnyService, reason: CloseReason) {
        let hears_out = !self.io.is_told() && service.hears_out();
        self.io.finish_unasked(reason, hears_out);
    }

    /// Shows the service what it left, if it asked for that or there is room again.
    fn offer_kept(&mut self, service: &AnyService, turn: &Turn<'_>) {
        let io = &mut self.io;
        let Some(pending) = &io.pending else { return };
        let full = pending.outbox.len() >= turn.limits.buffer;
        if pending.offer && !io.is(Is::Paused) && !full && !io.discards_input() {
            self.serve_kept(service, turn);
        }
    }

    fn serve_kept(&mut self, service: &AnyService, turn: &Turn<'_>) {
        let pending = self.io.pending();
        pending.offer = false;
        let mut kept = std::mem::take(&mut pending.kept);
        let used = self.serve(service, turn, kept.in_one_piece());
        kept.advance(used);
        let left = !kept.is_empty();
        let pending = self.io.pending();
        pending.kept = kept;
        pending.kept_at += used as u64;
        if left {
            self.left_over(turn, used);
        }
    }

    /// The service left some input: decides when it sees that again.
    fn left_over(&mut self, turn: &Turn<'_>, used: usize) {
        let paused = self.io.is(Is::Paused);
        let pending = self.io.pending();
        if paused || !pending.outbox.is_empty() {
            // Seen again when the service is resumed, or output has left and there is more room.
            pending.offer = true;
        } else if used == 0 && pending.kept.len() >= turn.limits.buffer {
            log::warn!(
                id = self.io.id();
                "service used none of a full buffer of input"
            );
            self.io.overrule(Ending::reset(CloseReason::Service));
        }
    }

    #[inline]
    fn serve(&mut self, service: &AnyService, turn: &Turn<'_>, bytes: &[u8]) -> usize {
        let used = self.call(turn, |state, conn| service.input(state, conn, bytes));
        used.map_or(bytes.len(), |used| used.min(bytes.len()))
    }

    /// Tells the service that its input is over.
    fn end(&mut self, service: &AnyService, turn: &Turn<'_>) {
        let pending = self.io.pending.as_mut();
        let kept = pending.map(|pending| std::mem::take(&mut pending.kept));
        let mut kept = kept.unwrap_or_default();
        self.call(turn, |state, conn| {
            service.end(state, conn, kept.in_one_piece());
        });
        let io = &mut self.io;
        if io.is(Is::Paused) {
            io.pending().kept = kept;
        } else {
            io.told();
        }
    }

    /// What follows from what was read and written.
    fn conclude(&mut self, service: &AnyService, turn: &Turn<'_>, more: bool) -> Step {
        if self.io.is(Is::GivenAway) {
            return self.conclude_given_away(turn);
        }
        if self.io.is(Is::Paused) && self.io.is_given_up() && !self.io.holds_input() {
            // Nothing is to be read first, so the verdict need not wait for the service.
            self.io.input_over();
            self.io.set(Is::Paused, !self.io.is_decided());
        }
        if self.io.input_is_over()
            && !self.io.is_told()
            && !self.io.is(Is::Paused)
            && !self.io.offers_later()
        {
            self.end(service, turn);
            if let Some(errno) = self.io.write_error() {
                self.io.fail(errno);
            }
        }
        self.conclude_far(service, turn);
        let io = &mut self.io;
        if let Some(verdict) = io.verdict()
            && io.may_end()
        {
            return Step::Close(verdict);
        }
        let offers = io.pending.as_ref().is_some_and(|pending| pending.offer);
        if io.is_draining() && !io.is(Is::Readable) && !io.is(Is::Paused) && !offers {
            self.finish_unasked(service, CloseReason::Drain);
            return self.conclude(service, turn, false);
        }
        if io.finishing().is_some() && io.may_end() && !io.owes() {
            let ending = match io.at_last() {
                Some(ending) => io.deliver_and_reset(turn, ending),
                None => io.deliver_and_fin(turn),
            };
            if let Some(ending) = ending
                && self.far_is_delivered(turn)
            {
                return Step::Close(ending);
            }
        } else if io.fin_wanted() && io.waiting_output() == 0 && !io.fin_sent() {
            io.send_fin(turn);
        }
        let io = &mut self.io;
        if io.half_closed() && !io.is(Is::Paused) {
            let limits = turn.limits;
            io.look_at = io.look_at.min(
                turn.now
                    .after_if(limits.half_close_timeout.map(|wait| wait / 8)),
            );
        }
        if io.pending.is_some() {
            io.tidy(turn);
        }
        if more || self.wants_more() {
            Step::Again
        } else {
            Step::Rest
        }
    }

    /// A deadline may have come: acts on what is due.
    pub(crate) fn expire(
        &mut self,
        service: &AnyService,
        turn: &Turn<'_>,
        buffer: &mut [u8],
    ) -> Step {
        let known = turn.known;
        if self.io.pending.is_some() {
            if self.io.door().is_some() {
                return self.knock(turn, buffer);
            }
            self.ring(service, turn);
        }
        if self.io.is(Is::GivenAway) {
            return self.expire_given_away(service, turn);
        }
        if self.io.linger().is_some_and(|until| until <= known) {
            return self.hang_up(service, turn, buffer);
        }
        if self.io.look_at <= known {
            let other = match self.io.far() {
                Some(Far::Up(up)) if self.io.half_closed() => Some(up.io.as_other()),
                _ => None,
            };
            self.io.look(turn, other);
        }
        self.look_far(turn);
        if self.io.read_deadline(turn) <= known {
            // A byte that came since the turn began saves the connection.
            self.io.set(Is::Readable, true);
            let more = self.pull(service, turn, buffer);
            if self.io.read_deadline(turn) > known {
                return self.conclude(service, turn, more);
            }
            self.finish_unasked(service, CloseReason::ReadTimeout);
            if let Ok(info) = self.io.tcp_info()
                && (info.probes > 0 || info.retransmits > 0)
            {
                self.io.set_silent(info);
            }
        }
        if self.io.age_deadline(turn) <= known {
            // What has come by now is still served.
            self.io.set(Is::Readable, true);
            self.pull(service, turn, buffer);
            self.finish_unasked(service, CloseReason::MaxAge);
        }
        self.conclude(service, turn, false)
    }

    /// The client's FIN has been awaited for long enough. What has come by now is the last that is heard of it.
    fn hang_up(&mut self, service: &AnyService, turn: &Turn<'_>, buffer: &mut [u8]) -> Step {
        if !self.io.discards_input() {
            self.io.set(Is::Readable, true);
            self.pull(service, turn, buffer);
            if !self.io.is(Is::Paused) {
                self.io.hears_no_more();
                self.end(service, turn);
            }
            if self.io.is(Is::Paused) {
                // It goes on with what it has heard, and the wait begins anew.
                self.io.linger_anew();
                return self.conclude(service, turn, false);
            }
        }
        Step::Close(self.io.ending())
    }

    /// The server drains: serves what has come, then finishes.
    pub(crate) fn drain(
        &mut self,
        service: &AnyService,
        turn: &Turn<'_>,
        buffer: &mut [u8],
    ) -> Step {
        if self.io.door().is_some() {
            return self.drain_at_door(turn, buffer);
        }
        if service.outlasts_drain() {
            return Step::Rest;
        }
        let io = &mut self.io;
        if io.is(Is::GivenAway) {
            // Whoever has it goes on until it is done, or the drain is over.
            return Step::Rest;
        }
        if io.is_open() && !io.is_told() && !io.peer_fin() {
            let unread = rustix::io::ioctl_fionread(io.socket.as_fd()).unwrap_or(0);
            if unread == 0
                && !io.is(Is::Paused)
                && io.pending.as_ref().is_none_or(|pending| !pending.offer)
            {
                self.finish_unasked(service, CloseReason::Drain);
            } else {
                io.set(Is::Readable, true);
                io.drain(unread);
            }
        } else {
            io.finish_for(CloseReason::Drain);
        }
        self.advance(service, turn, buffer)
    }

    /// The server ends now. Answers how, and whether that cuts something off.
    pub(crate) fn cut(&mut self) -> (Ending, bool) {
        let io = &mut self.io;
        if io.is(Is::GivenAway) {
            io.overrule(Ending::reset(CloseReason::Drain));
            return (io.ending(), true);
        }
        let undelivered = io.waiting_output() > 0 || io.far().is_some();
        let queued = sys::unacknowledged(io.socket.as_fd()).unwrap_or(0);
        io.overrule(if undelivered {
            Ending::reset(CloseReason::Drain)
        } else {
            // The kernel goes on delivering what it holds, with its usual patience.
            let _ = sys::set_rto_max(io.socket.as_fd(), RTO_MAX_DEFAULT);
            Ending {
                how: How::Release,
                ..Ending::fin(CloseReason::Drain)
            }
        });
        let only_lingers = io.fin_sent() && queued == 0 && !undelivered;
        (io.ending(), !only_lingers)
    }

    /// The service may go on.
    pub(crate) fn resume(&mut self, service: &AnyService, turn: &Turn<'_>) {
        let io = &mut self.io;
        io.set(Is::Paused, false);
        if let Some(pending) = &mut io.pending {
            pending.offer |= !pending.kept.is_empty();
        }
        io.resume_reading(turn.now);
        self.tell(service, turn, Ready::Resumed);
    }

    /// It has ended as `ending` says: the service is told, and no event comes any more.
    pub(crate) fn ended(
        &mut self,
        service: &AnyService,
        turn: &Turn<'_>,
        registry: &Registry,
        ending: &Ending,
    ) {
        if self.io.is(Is::GivenAway) {
            self.io.recount(turn);
        }
        self.over(service, turn, ending.reason);
        let io = &self.io;
        // A close alone would end nothing while a copy lives elsewhere; it is enough where another process is to keep what
        // was given to it.
        if io.marks.has(Mark::Shared) || io.is(Is::GivenAway) {
            io.deregister(registry);
            if !io.is(Is::GivenAway) || ending.how != How::Release {
                close::end_shared(&io.socket, ending);
            }
        } else if io.pending.is_some() {
            io.deregister_watched(registry);
        }
    }

    /// Closes the socket as `ending` says.
    pub(crate) fn close(mut self, ending: &Ending) -> io::Result<()> {
        self.close_far(ending)?;
        match ending.how {
            How::Reset => close::reset(self.io.socket),
            How::Fin | How::Release => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With its entry in the queue of deadlines (16 bytes) an idle connection takes 120.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn an_idle_connection_is_small() {
        let slot = size_of::<Option<Connection>>();
        assert!(slot <= 104, "{slot} bytes");
    }
}
