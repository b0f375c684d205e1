//! A connection's far side: what comes from there, what goes there, and how the end of one side becomes that of the other.
//!
//! `worker/dialing.rs` connects it. From then on both sockets are one connection: events of either come here, and it ends
//! as one.

use std::io;

use super::{Connection, READ_BUDGET, Serving, Step};
use crate::dial::DialError;
use crate::io::Is;
use crate::io::marks::Mark;
use crate::io::{Far, Io, Turn, Up};
use crate::liveness::close::{CloseReason, Ending, How, Note};
use crate::liveness::keepalive::RTO_MAX_DEFAULT;
use crate::os::fault::may_die;
use crate::os::sys;
use crate::service::Service;

impl Connection {
    /// Tells the service what has come of dialling.
    pub(crate) fn dialed(&mut self, serving: &Serving<'_>, outcome: Result<(), &DialError>) {
        if self.io.is_open() {
            self.call(serving, |service, state, conn| {
                service.dialed(state, conn, outcome);
            });
        }
    }

    /// It is connected, and another worker that did it has passed it on. It goes on in the next turn if it `is_kept`: what
    /// comes of a client that outlives the process is not read before its far side does, too.
    pub(crate) fn arrived(&mut self, serving: &mut Serving<'_>, is_kept: bool) -> Step {
        self.dialed(serving, Ok(()));
        // On its way it may have missed a prompt.
        self.give_room(serving);
        self.connected(serving, is_kept)
    }

    /// What follows once it was told how dialling went.
    pub(crate) fn connected(&mut self, serving: &mut Serving<'_>, is_kept: bool) -> Step {
        self.io.resume_reading_if_room(&serving.turn);
        if is_kept {
            return Step::Again;
        }
        self.advance(serving)
    }

    /// Writes what waits for the far side; that may make room for input.
    pub(super) fn flush_far(&mut self, turn: &Turn<'_>) {
        let Some(up) = self.io.far_up() else { return };
        let (far, far_turn) = up.split(turn);
        far.flush(&far_turn);
        self.io.resume_reading_if_room(turn);
    }

    /// A program that reads no more may say something yet.
    fn spare_pair(&mut self) {
        if let Some(up) = self.io.far_up().filter(|up| up.terms.of_pairs) {
            up.io.writes_in_vain();
        }
    }

    /// Whoever had the other end of a pair has left something unread there: an end as any other.
    fn pair_is_left(&mut self, serving: &Serving<'_>) {
        let was_told = self.io.far_io().is_some_and(Io::is_told);
        self.io.hang_up_far();
        if !was_told && (self.io.is_open() || self.io.owes()) {
            self.call(serving, Service::far_end);
        }
    }

    /// The service ends whoever has the other end of a pair, and what they have said by then is delivered before the end.
    pub(super) fn recall_pair(&mut self, serving: &Serving<'_>) {
        if self.io.has_pair() {
            self.call(serving, Service::recall);
        }
    }

    /// Reads from the far side, as far as there is room for it on this one. Answers whether the budget stopped it.
    pub(super) fn pull_far(&mut self, serving: &mut Serving<'_>) -> bool {
        self.spare_pair();
        // Each read goes behind the last one, as in `pull`.
        let (mut at, budget) = (0, READ_BUDGET.min(serving.far_buffer.len()));
        let free = self.io.far_io().map_or(0, Io::surcharge);
        loop {
            // Nobody wants it any more: it is read and forgotten.
            let over = !(self.io.is_open() || self.io.owes()) || self.io.has_failed();
            let room = if over {
                usize::MAX
            } else if self.io.is_held() {
                0
            } else {
                serving
                    .turn
                    .limits
                    .buffer
                    .saturating_sub(self.io.waiting_output())
            };
            let Some(up) = self.io.far_up() else {
                return false;
            };
            let far = &up.io;
            if !far.is(Is::Readable) || far.is_decided() || room == 0 {
                return false;
            }
            if at as u64 + (far.surcharge() - free) >= budget as u64 {
                return true;
            }
            let mut room = room.min(budget - at);
            if !over {
                room = self.io.far_ration(room, &serving.turn);
            }
            let Some(up) = self.io.far_up().filter(|_| room > 0) else {
                return false;
            };
            let (far, far_turn) = up.split(&serving.turn);
            let (from, end) = (at, at + room);
            let count = far.take_in(&mut serving.far_buffer[from..end], &far_turn);
            may_die("far-read");
            if count == 0 {
                if far.is(Is::Readable) {
                    // Records of TLS with nothing in them, of which there may be any number: the others have their turns.
                    return true;
                }
                continue;
            }
            at += count;
            if over {
                continue;
            }
            // Bytes either way renew the read deadline; of the client's own silence they say nothing. A program that has the
            // client's socket itself renews nothing either.
            if !up.terms.of_pairs {
                self.io.renew(serving.turn.now);
            }
            self.call(serving, |service, state, conn| {
                service.far_input(state, conn, &serving.far_buffer[from..at]);
            });
            may_die("far-served");
        }
    }

    /// What follows from how the far side stands.
    pub(super) fn conclude_far(&mut self, serving: &Serving<'_>) {
        self.spare_pair();
        let turn = &serving.turn;
        let over = !self.io.is_open();
        let cut = self.io.finishing();
        let cut = cut.is_some_and(|reason| self.io.is_cut(reason));
        let ends_badly = self.io.is_decided() || self.io.at_last().is_some() || cut;
        // A client that is lost while it is not read, for want of a far side or of room there, would not be found: what
        // it sent last is lost with it.
        if !over
            && self.io.far().is_some()
            && self.io.is_given_up()
            && self.io.input_room(turn) == 0
        {
            return self.io.input_over();
        }
        let Some(up) = self.io.far_up() else { return };
        let is_pair = up.terms.of_pairs;
        let (far, _) = up.split(turn);
        if far.is_given_up() && !far.is(Is::Readable) {
            far.input_over();
        }
        let remark = far.remark();
        if let Some(verdict) = far.verdict() {
            if is_pair && verdict.reason == CloseReason::PeerReset {
                return self.pair_is_left(serving);
            }
            // It had said everything, and that is here: what it did not hear any more is no loss of the client's.
            // Without a goodbye nobody knows whether that was everything.
            let is_reset = verdict.reason == CloseReason::PeerReset;
            let truncated = is_reset && far.is_truncated();
            let late = is_reset && far.peer_fin() && !truncated;
            let well = matches!(self.io.finishing(), None | Some(CloseReason::PeerClosed));
            if late && well && !self.io.is_decided() {
                if self.io.remark().is_none() {
                    self.io.set_remark(Note::Late("upstream-reset"));
                }
                self.io.finish_for(CloseReason::PeerClosed);
            } else if !over {
                let reason = match verdict.reason {
                    _ if truncated => CloseReason::TlsTruncated,
                    reason @ CloseReason::TlsAlert => reason,
                    reason if is_pair => reason,
                    _ => CloseReason::UpstreamFailed,
                };
                let remark = if truncated {
                    Some(Note::Tls("truncated"))
                } else {
                    remark
                };
                // What came before it failed is the client's: first that, then the end.
                self.fail_for_far(
                    Ending {
                        reason,
                        how: How::Reset,
                        ..verdict
                    },
                    remark,
                );
            }
            return;
        }
        if let Some(reason @ (CloseReason::TlsAlert | CloseReason::TlsKeysUsedUp)) = far.finishing()
        {
            if !over {
                self.fail_for_far(Ending::reset(reason), remark);
            }
            return;
        }
        let ended = far.peer_fin() && !far.is_told();
        if ended {
            far.told();
        }
        if ended && (!over || self.io.owes()) {
            self.call(serving, Service::far_end);
        }
        let Some(up) = self.io.far_up() else { return };
        let (far, far_turn) = up.split(turn);
        // A FIN would say that what there was is whole.
        let fin = !ends_badly && (far.fin_wanted() || over);
        if fin && far.waiting_output() == 0 && !far.fin_sent() {
            far.want_fin();
            if far.has_said_goodbye(&far_turn) {
                far.send_fin(&far_turn);
            }
        }
        far.settle(&far_turn);
        // Both have said everything, and each was told of the other's end. A program may work on.
        let said = far.peer_fin() && far.fin_wanted() && !is_pair;
        if said && self.io.peer_fin() && self.io.fin_wanted() {
            self.io.finish_for(CloseReason::PeerClosed);
        }
    }

    /// It ends so for what became of its far side, which that `remark` tells.
    fn fail_for_far(&mut self, ending: Ending, remark: Option<Note>) {
        if let Some(what) = remark.and_then(Note::tls) {
            self.io.set_remark(Note::Upstream(what));
        }
        self.io.fail_at_last(ending);
    }

    /// Whether the far side has everything; where the connection ends for another reason than that, nobody waits for it.
    pub(super) fn far_is_delivered(&mut self, turn: &Turn<'_>) -> bool {
        // A program has ended by then, whatever it has left unread.
        let well = self.io.finishing() == Some(CloseReason::PeerClosed) && !self.io.has_pair();
        let Some(up) = self.io.far_up().filter(|_| well) else {
            return true;
        };
        let (far, far_turn) = up.split(turn);
        if far.is_decided() {
            return true;
        }
        far.finish_for(CloseReason::PeerClosed);
        far.deliver_and_fin(&far_turn).is_some()
    }

    /// Looks whether the far side acknowledges, if it is time for that.
    pub(super) fn look_far(&mut self, turn: &Turn<'_>) {
        let Some(up) = self.io.far_up().filter(|up| up.io.look_at <= turn.known) else {
            return;
        };
        let half_closed = up.io.half_closed();
        let other = half_closed.then(|| self.io.as_other());
        if let Some(up) = self.io.far_up() {
            let (far, far_turn) = up.split(turn);
            far.look(&far_turn, other);
        }
    }

    /// Closes the far side, in the way this one ends.
    pub(super) fn close_far(&mut self, ending: &Ending) -> io::Result<()> {
        let Some(Far::Up(Up { io: far, .. })) = self.io.take_far() else {
            return Ok(());
        };
        // A client that reset late had ended before.
        let both_ended = ending.reason == CloseReason::PeerClosed && far.peer_fin();
        let lost = ending.how == How::Reset
            || (ending.errno.is_some() && !both_ended)
            || far.waiting_output() > 0
            || self.io.is_cut(ending.reason);
        if self.io.marks.has(Mark::Shared) {
            let how = if lost { How::Reset } else { How::Fin };
            crate::liveness::close::end_shared(&far.socket, &Ending { how, ..*ending });
            return Ok(());
        }
        if lost {
            return crate::liveness::close::reset(far.socket);
        }
        if ending.reason != CloseReason::PeerClosed {
            // The kernel goes on delivering what it holds, with its usual patience.
            let _ = sys::set_rto_max(far.descriptor(), RTO_MAX_DEFAULT);
        }
        Ok(())
    }
}
