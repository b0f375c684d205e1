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
use crate::io::tls::Server;
use crate::io::{Io, Turn};
use crate::liveness::close::{self, CloseReason, Ending, How};
use crate::liveness::keepalive::RTO_MAX_DEFAULT;
use crate::os::fault::may_die;
use crate::os::sys;
use crate::service::any::{Hooks, State};
use crate::service::{Context, Ready, Service};

/// How many bytes one connection may read in a turn before the others get theirs.
const READ_BUDGET: usize = 256 * 1024;

/// A connection and what its service remembers of it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) io: Io,
    state: State,
}

/// What a connection is served with in one turn.
pub(crate) struct Serving<'a> {
    pub(crate) service: &'a Hooks,
    pub(crate) turn: Turn<'a>,
    /// Of its listener, which may have none.
    pub(crate) tls: Option<&'a Server>,
    /// What is read goes there: so much it may read at once.
    pub(crate) buffer: &'a mut [u8],
    /// As much, for its far side.
    pub(crate) far_buffer: &'a mut [u8],
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
    /// Wraps a socket that no service has heard of.
    pub(crate) fn unheard(io: Io) -> Self {
        Self::with_state(io, Box::new(()))
    }

    /// Lets the service greet.
    pub(crate) fn greet(&mut self, serving: &Serving<'_>) {
        self.begin(serving, |service, conn| service.open(conn));
    }

    /// The service begins with it.
    fn begin(
        &mut self,
        serving: &Serving<'_>,
        with: impl FnOnce(&Hooks, &mut Context<'_>) -> State,
    ) {
        let opened = self.call(serving, |service, _, conn| with(service, conn));
        if let Some(state) = opened {
            self.state = state;
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
        let listed = [Mark::Closing, Mark::Copied, Mark::Leftover, Mark::Paused];
        !listed.into_iter().any(|mark| io.marks.has(mark))
            && !io.is(Is::GivenAway)
            && io.watches().is_none()
    }

    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// What follows from the greeting.
    pub(crate) fn opened(&mut self, serving: &Serving<'_>) -> Step {
        self.conclude(serving, false)
    }

    /// Bytes read so far, from either side, and as many as it took the time of.
    #[inline]
    pub(crate) fn taken_in(&self) -> u64 {
        let taken_in = |io: &Io| io.read + io.surcharge();
        taken_in(&self.io) + self.io.far_io().map_or(0, taken_in)
    }

    /// Does what can be done now: output first, for that makes room, then input, then what follows from both.
    pub(crate) fn advance(&mut self, serving: &mut Serving<'_>) -> Step {
        if self.io.pending.is_some() {
            if self.io.door().is_some() {
                return self.knock(serving);
            }
            self.go_on(serving);
            if self.io.is(Is::GivenAway) {
                return self.attend(&serving.turn);
            }
            if self.io.is_just_back() {
                return Step::Again;
            }
            let waited = self.io.waiting_output() > 0;
            self.io.flush(&serving.turn);
            if waited && self.io.waiting_output() == 0 {
                self.give_room(serving);
            }
            self.flush_far(&serving.turn);
            self.offer_kept(serving);
        }
        let mut more = self.pull(serving);
        more |= self.pull_far(serving);
        self.conclude(serving, more)
    }

    /// Output that was withheld may leave: it does, and makes room.
    pub(crate) fn release(&mut self, serving: &mut Serving<'_>) -> Step {
        self.io.flush(&serving.turn);
        let has_left = self.io.waiting_output() == 0;
        if has_left {
            self.give_room(serving);
            self.offer_kept(serving);
        }
        // No event tells of what there is room for only now, of either side.
        let io = &self.io;
        let reads = io.is(Is::Readable) && io.input_room(&serving.turn) > 0;
        let more = has_left && (io.waiting_output() > 0 || reads);
        self.conclude(serving, more)
    }

    /// Services were prompted: this one may have output.
    pub(crate) fn prompted(&mut self, serving: &mut Serving<'_>) -> Step {
        if self.io.is(Is::GivenAway) || self.io.door().is_some() {
            return Step::Rest;
        }
        self.give_room(serving);
        // A write that fails leaves what came before to be read.
        let more = self.pull(serving);
        self.conclude(serving, more)
    }

    /// Asks the service for output, unless the connection is ending and the service has said all.
    fn give_room(&mut self, serving: &Serving<'_>) {
        if (self.io.is_open() || self.io.owes()) && !self.io.has_failed() {
            self.call(serving, Service::output);
        }
    }

    /// Calls the service. `None`: it panicked, and its connection ends for that.
    #[inline]
    fn call<T>(
        &mut self,
        serving: &Serving<'_>,
        what: impl FnOnce(&Hooks, &mut State, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let Self { io, state } = self;
        let called = catch_unwind(AssertUnwindSafe(|| {
            let io = &mut *io;
            let turn = serving.turn;
            what(serving.service, state, &mut Context { io, turn })
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
    fn pull(&mut self, serving: &mut Serving<'_>) -> bool {
        // Each read goes behind the last one: should the process die, all of them are there.
        let (mut at, budget) = (0, READ_BUDGET.min(serving.buffer.len()));
        let free = self.io.surcharge();
        while self.io.is(Is::Readable) {
            let room = self.io.input_room(&serving.turn).min(budget);
            let room = if room > 0 {
                self.io.ration(room, &serving.turn)
            } else {
                0
            };
            if room == 0 {
                self.io.stop_reading(serving.turn.now);
                return false;
            }
            let surcharge = self.io.surcharge() - free;
            if at as u64 + surcharge >= budget as u64 {
                return true;
            }
            let end = budget.min(at + room);
            let count = self.io.take_in(&mut serving.buffer[at..end], &serving.turn);
            may_die("read");
            if count > 0 {
                self.deliver(serving, &serving.buffer[at..at + count]);
                may_die("served");
                at += count;
            } else if self.io.is(Is::Readable) {
                // Records of TLS with nothing in them, of which there may be any number: the others have their turns.
                return true;
            }
        }
        false
    }

    /// Hands bytes to the service, behind what it left before, and keeps what it leaves now.
    #[inline]
    fn deliver(&mut self, serving: &Serving<'_>, bytes: &[u8]) {
        let turn = &serving.turn;
        if self.io.discards_input() || self.io.is_decided() {
            return;
        }
        let drained = self.io.drains(bytes.len());
        if self.io.keeps_input() {
            if self.io.keep(bytes, turn).is_err() {
                return self.io.out_of_memory();
            }
            self.serve_kept(serving);
        } else {
            self.io.shows(bytes.len());
            let used = self.serve(serving, bytes);
            if used < bytes.len() {
                if self.io.keep(&bytes[used..], turn).is_err() {
                    return self.io.out_of_memory();
                }
                self.left_over(turn, used);
            }
        }
        if drained {
            self.finish_unasked(serving, CloseReason::Drain);
        }
    }

    /// Neither the client nor the service wants it to end: some hear their client out, whose last words may be on their
    /// way.
    fn finish_unasked(&mut self, serving: &Serving<'_>, reason: CloseReason) {
        let hears_out = !self.io.is_told() && serving.service.hears_out();
        self.io.finish_unasked(reason, hears_out);
    }

    /// Shows the service what it left, if it asked for that or there is room again.
    fn offer_kept(&mut self, serving: &Serving<'_>) {
        let io = &mut self.io;
        let full = io.waiting_output() >= serving.turn.limits.buffer;
        if io.offers() && !io.is(Is::Paused) && !full && !io.discards_input() {
            self.serve_kept(serving);
        }
    }

    fn serve_kept(&mut self, serving: &Serving<'_>) {
        let most = serving.turn.limits.buffer;
        loop {
            let mut kept = self.io.take_kept();
            // After a crash there may be more than there is in any other case.
            let all = kept.in_one_piece();
            let shown = all.get(..most).unwrap_or(all);
            let is_all = shown.len() == all.len();
            let used = self.serve(serving, shown);
            if !self.io.put_back(kept, used) {
                return;
            }
            self.left_over(&serving.turn, used);
            let io = &self.io;
            if is_all || used == 0 || io.offers() || io.discards_input() || io.is_decided() {
                return;
            }
        }
    }

    /// The service left some input: decides when it sees that again.
    fn left_over(&mut self, turn: &Turn<'_>, used: usize) {
        if self.io.is(Is::Paused) || self.io.waiting_output() > 0 {
            // Seen again when the service is resumed, or output has left and there is more room.
            self.io.offer_kept();
        } else if used == 0 && self.io.pending().kept.len() >= turn.limits.buffer {
            log::warn!(
                id = self.io.id();
                "service used none of a full buffer of input"
            );
            self.io.overrule(Ending::reset(CloseReason::Service));
        }
    }

    #[inline]
    fn serve(&mut self, serving: &Serving<'_>, bytes: &[u8]) -> usize {
        let used = self.call(serving, |service, state, conn| {
            service.input(state, conn, bytes)
        });
        used.map_or(bytes.len(), |used| used.min(bytes.len()))
    }

    /// Tells the service that its input is over.
    fn end(&mut self, serving: &Serving<'_>) {
        let mut kept = self.io.take_kept();
        self.call(serving, |service, state, conn| {
            service.end(state, conn, kept.in_one_piece());
        });
        let io = &mut self.io;
        if io.is(Is::Paused) {
            io.put_back(kept, 0);
        } else {
            io.told();
        }
    }

    /// What follows from what was read and written.
    fn conclude(&mut self, serving: &Serving<'_>, more: bool) -> Step {
        let turn = &serving.turn;
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
            self.end(serving);
            if let Some(errno) = self.io.write_error() {
                self.io.fail(errno);
            }
        }
        self.conclude_far(serving);
        let io = &mut self.io;
        if let Some(verdict) = io.verdict()
            && io.may_end()
        {
            return Step::Close(verdict);
        }
        if io.is_draining() && !io.is(Is::Readable) && !io.is(Is::Paused) && !io.offers() {
            self.finish_unasked(serving, CloseReason::Drain);
            return self.conclude(serving, false);
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
        } else if io.fin_wanted()
            && io.waiting_output() == 0
            && !io.fin_sent()
            && io.has_said_goodbye(turn)
        {
            io.send_fin(turn);
        }
        self.io.settle(turn);
        if more || self.io.is_again() {
            Step::Again
        } else {
            Step::Rest
        }
    }

    /// A deadline may have come: acts on what is due.
    pub(crate) fn expire(&mut self, serving: &mut Serving<'_>) -> Step {
        let turn = serving.turn;
        let known = turn.known;
        if self.io.pending.is_some() {
            if self.io.door().is_some() {
                return self.knock(serving);
            }
            self.ring(serving);
            if self.io.is_just_back() {
                return Step::Again;
            }
        }
        if self.io.is(Is::GivenAway) {
            return self.expire_given_away(serving);
        }
        if self.io.linger().is_some_and(|until| until <= known) {
            return self.hang_up(serving);
        }
        if self.io.look_at <= known {
            let half_closed = self.io.half_closed();
            let other = half_closed.then(|| self.io.far_as_other()).flatten();
            self.io.look(&turn, other);
        }
        self.look_far(&turn);
        if self.io.read_deadline(&turn) <= known {
            // A byte that came since the turn began saves the connection.
            self.io.set(Is::Readable, true);
            let more = self.pull(serving);
            if self.io.has_pair() && self.io.far_io().is_some_and(|far| far.as_other().waits) {
                // It has said something that its program has not read.
                self.io.renew(turn.now);
            }
            if self.io.read_deadline(&turn) > known {
                return self.conclude(serving, more);
            }
            self.finish_unasked(serving, CloseReason::ReadTimeout);
            self.recall_pair(serving);
            if let Ok(info) = self.io.tcp_info()
                && (info.probes > 0 || info.retransmits > 0)
            {
                self.io.set_silent(info);
            }
        }
        if self.io.age_deadline(&turn) <= known {
            // What has come by now is still served.
            self.io.set(Is::Readable, true);
            self.pull(serving);
            self.finish_unasked(serving, CloseReason::MaxAge);
            self.recall_pair(serving);
        }
        self.conclude(serving, false)
    }

    /// The client's FIN has been awaited for long enough. What has come by now is the last that is heard of it.
    fn hang_up(&mut self, serving: &mut Serving<'_>) -> Step {
        if !self.io.discards_input() {
            self.io.set(Is::Readable, true);
            self.pull(serving);
            if !self.io.is(Is::Paused) {
                self.io.hears_no_more();
                self.end(serving);
            }
            if self.io.is(Is::Paused) {
                // It goes on with what it has heard, and the wait begins anew.
                self.io.linger_anew();
                return self.conclude(serving, false);
            }
        }
        Step::Close(self.io.ending())
    }

    /// The server drains: serves what has come, then finishes.
    pub(crate) fn drain(&mut self, serving: &mut Serving<'_>) -> Step {
        if self.io.door().is_some() {
            return self.drain_at_door(serving);
        }
        if serving.service.outlasts_drain() {
            return Step::Rest;
        }
        let io = &mut self.io;
        if io.is(Is::GivenAway) {
            // Whoever has it goes on until it is done, or the drain is over.
            return Step::Rest;
        }
        if io.is_open() && !io.is_told() && !io.peer_fin() {
            let unread = io.unread();
            if unread == 0 && !io.is(Is::Paused) && !io.offers() {
                self.finish_unasked(serving, CloseReason::Drain);
            } else {
                io.set(Is::Readable, true);
                io.drain(unread);
            }
        } else {
            io.finish_for(CloseReason::Drain);
        }
        self.advance(serving)
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

    /// It has come of another process, and is to be found by the next one.
    #[cfg(control)]
    pub(crate) fn has_come(&mut self, serving: &Serving<'_>) {
        self.call(serving, Service::arrived);
    }

    /// The service may go on.
    pub(crate) fn resume(&mut self, serving: &Serving<'_>) {
        let io = &mut self.io;
        io.set(Is::Paused, false);
        if io.keeps_input() {
            io.offer_kept();
        }
        io.resume_reading(serving.turn.now);
        self.tell(serving, Ready::Resumed);
    }

    /// It has ended as `ending` says: the service is told, and no event comes any more.
    pub(crate) fn ended(&mut self, serving: &Serving<'_>, registry: &Registry, ending: &Ending) {
        if self.io.is(Is::GivenAway) {
            self.io.recount(&serving.turn);
        }
        self.over(serving, ending.reason);
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
