//! The end of a connection: how far it has come, each step on the way, and the reason for it.
//!
//! A connection, its far side and a client's link end through it alone: its fields are written nowhere else. A stage
//! gives way to a later one only, and the reason that came first stays, unless that was to end well:
//!
//! ```text
//! Open ──drain──► Draining ──finish──► Finishing ──fail_at_last──► AtLast
//!   │                │                     │                         │
//!   └────────────────┴──────overrule───────┴─────────────────────────┴──► Decided
//! ```
//!
//! The stage and the FINs take three bytes of every [`Io`]. What a stage needs besides stands in [`Details`], which an
//! open connection does not have. Delivery, on which the steps from `Finishing` wait, is in `output.rs`.

use std::os::fd::AsFd;

use socket2::SockRef;

use super::Io;
use crate::io::Is;
use crate::io::flags::{Flag, Flags};
use crate::liveness::close::{CloseReason, Ending, How, Note};
use crate::liveness::reap;
use crate::os::sys::{self, TcpInfo};
use crate::time::deadline::Moment;

/// How far the end has come, and both directions' FINs.
#[derive(Debug, Default)]
pub(super) struct End {
    stage: Stage,
    fins: Flags<Fin>,
}

impl End {
    /// Output waits until it is where the next server finds it.
    #[inline]
    pub(super) fn is_withheld(&self) -> bool {
        self.fins.has(Fin::Withheld)
    }
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Read, served, written.
    #[default]
    Open,
    /// The server drains: what had come by then is still served, which is [`Details::left`].
    Draining,
    /// The output is delivered, then FIN; then the client's FIN is awaited, until [`Details::linger`].
    Finishing(CloseReason),
    /// The output is delivered, which is awaited since [`Details::since`]; then it ends as [`Details::ending`] says.
    AtLast(CloseReason),
    /// It ends as [`Details::ending`] says, once the service has been told.
    Decided,
}

/// What has become of the two directions.
#[derive(Clone, Copy)]
enum Fin {
    /// In: the peer's FIN was read.
    Read,
    /// In: the service was told that no more comes.
    Told,
    /// In: nobody wants what comes any more, though the service was not told.
    Unwanted,
    /// Out: the service has more output, which comes before the end.
    Owed,
    /// Out: ours is to follow the output.
    Wanted,
    /// Out: ours was sent.
    Sent,
    /// Out: output waits until it is where the next server finds it.
    Withheld,
}

impl Flag for Fin {
    #[inline]
    fn place(self) -> u8 {
        self as u8
    }
}

/// What the end of a connection needs besides its stage.
#[derive(Debug, Default)]
pub(super) struct Details {
    /// Draining: how many more bytes are served.
    left: u32,
    /// Finishing: all is acknowledged, and the client's FIN is awaited until then.
    linger: Option<Moment>,
    /// At last, decided: how it ends.
    ending: Option<Ending>,
    /// At last: since when the client is to have everything.
    since: Option<Moment>,
    /// A write failed so. Bytes that came before are still read.
    write_error: Option<i32>,
    /// The kernel's view of a silent peer, noted when a deadline of ours ended it.
    silent: Option<TcpInfo>,
    /// What is to be said of the end besides its reason.
    remark: Option<Note>,
}

impl Details {
    pub(super) fn is_vacant(&self) -> bool {
        self.left == 0
            && self.linger.is_none()
            && self.ending.is_none()
            && self.write_error.is_none()
            && self.silent.is_none()
            && self.remark.is_none()
    }
}

/// What another process goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) peer_fin: bool,
    pub(crate) fin_wanted: bool,
    pub(crate) fin_sent: bool,
    pub(crate) told: bool,
    pub(crate) finishing: Option<CloseReason>,
    pub(crate) write_error: Option<i32>,
    pub(crate) linger: Option<Moment>,
}

/// What comes in.
impl Io {
    /// Whether the peer's FIN was read.
    #[inline]
    pub(crate) fn peer_fin(&self) -> bool {
        self.end.fins.has(Fin::Read)
    }

    /// The end of the input was read: the peer's FIN, as a rule.
    pub(super) fn reads_end(&mut self) {
        // Behind a reset that a write was told of there is an end, too. Had a FIN come before that, it would have been
        // EPIPE (tcp_reset in the kernel's net/ipv4/tcp_input.c).
        if self.write_error() != Some(libc::ECONNRESET) {
            self.end.fins.put(Fin::Read, true);
        }
    }

    /// Whether the peer's FIN came, and whether ours was sent, as the kernel knows it of a socket that was given away.
    pub(super) fn note_fins(&mut self, peer_fin: bool, fin_sent: bool) {
        self.end.fins.put(Fin::Read, peer_fin);
        self.end.fins.put(Fin::Sent, fin_sent);
    }

    /// Whether the service was told that no more comes.
    #[inline]
    pub(crate) fn is_told(&self) -> bool {
        self.end.fins.has(Fin::Told)
    }

    /// The service was told that no more comes; or it panicked, and is told nothing any more.
    pub(crate) fn told(&mut self) {
        self.end.fins.put(Fin::Told, true);
    }

    /// Nobody wants what comes any more.
    #[inline]
    pub(crate) fn discards_input(&self) -> bool {
        self.is_told() || self.end.fins.has(Fin::Unwanted)
    }

    /// The service has heard its client out for long enough.
    pub(crate) fn hears_no_more(&mut self) {
        self.end.fins.put(Fin::Unwanted, true);
    }

    pub(crate) fn input_is_over(&self) -> bool {
        self.peer_fin() || self.discards_input() || self.is_decided()
    }

    /// The service left some input for want of room, and sees it again once output has left.
    pub(crate) fn offers_later(&self) -> bool {
        let waits = |pending: &super::Pending| pending.offer && !pending.outbox.is_empty();
        !self.discards_input() && self.pending.as_deref().is_some_and(waits) && !self.has_failed()
    }

    /// Nothing more can be read: FIN, or an error behind the bytes.
    pub(crate) fn input_over(&mut self) {
        if let Some(errno) = self.write_error() {
            self.fail(errno);
        } else if self.flags.put(Is::Failing, false)
            && let Ok(Some(error)) = SockRef::from(&self.socket).take_error()
        {
            self.fail(error.raw_os_error().unwrap_or(libc::EIO));
        }
    }
}

/// What goes out.
impl Io {
    /// Whether our FIN is to follow the output.
    pub(crate) fn fin_wanted(&self) -> bool {
        self.end.fins.has(Fin::Wanted)
    }

    pub(crate) fn want_fin(&mut self) {
        self.end.fins.put(Fin::Wanted, true);
    }

    /// Whether our FIN was sent.
    #[inline]
    pub(crate) fn fin_sent(&self) -> bool {
        self.end.fins.has(Fin::Sent)
    }

    pub(super) fn sent_fin(&mut self) {
        self.end.fins.put(Fin::Sent, true);
    }

    /// The socket is another process's: whatever its service does, nothing goes to either side any more.
    #[cfg(control)]
    pub(crate) fn sends_no_more(&mut self) {
        self.sent_fin();
        self.let_session_go();
        if let Some(up) = self.far_up() {
            up.io.sent_fin();
            up.io.let_session_go();
        }
    }

    /// Whether output waits for [`flush`](Self::flush) always, which comes once it is where the next server finds it.
    #[inline]
    pub(crate) fn is_withheld(&self) -> bool {
        self.end.is_withheld()
    }

    pub(crate) fn withhold(&mut self, withheld: bool) {
        self.end.fins.put(Fin::Withheld, withheld);
    }

    /// Whether one side has sent its FIN.
    pub(crate) fn half_closed(&self) -> bool {
        self.peer_fin() || self.fin_sent()
    }

    /// Whether the service has more output, which comes before the end.
    pub(crate) fn owes(&self) -> bool {
        self.end.fins.has(Fin::Owed)
    }

    /// The end waits for more output of the service's, until that [finishes](Self::finish).
    pub(crate) fn owe(&mut self) {
        self.end.fins.put(Fin::Owed, true);
    }

    /// Whether it does, where another process has said so.
    #[cfg(control)]
    pub(super) fn put_owed(&mut self, owes: bool) {
        self.end.fins.put(Fin::Owed, owes);
    }

    /// What a failed write said.
    pub(crate) fn write_error(&self) -> Option<i32> {
        self.details()?.write_error
    }

    /// A write failed: nothing more can be sent, but what came before is read yet; then that is the verdict.
    pub(super) fn write_failed(&mut self, errno: i32) {
        let pending = self.pending();
        pending.outbox.clear();
        pending.end.write_error = Some(errno);
        self.set(Is::Readable, true);
        self.set(Is::ReadOn, true);
    }

    /// The peer reads no more, as a failed write has told, and may say something yet: what is for it is dropped from here on.
    pub(crate) fn writes_in_vain(&mut self) {
        if let Some(pending) = &mut self.pending
            && matches!(
                pending.end.write_error,
                Some(libc::EPIPE | libc::ECONNRESET)
            )
        {
            pending.end.write_error = None;
            self.sent_fin();
        }
    }

    /// One over MPTCP that was reset in the moment of its accept(2), which takes the kernel's only note of it
    /// (`mptcp_stream_accept` in net/mptcp/protocol.c): it has no path, as one whose last path was given up.
    pub(crate) fn find_reset(&mut self) {
        if self.is(Is::Multipath) && self.tcp_info().is_ok_and(|info| info.flows == Some(0)) {
            self.write_failed(libc::ECONNRESET);
        }
    }

    /// Nothing more can be sent.
    pub(crate) fn has_failed(&self) -> bool {
        self.is_decided() || self.write_error().is_some()
    }

    /// The connection has failed, or an event said so.
    pub(crate) fn is_given_up(&self) -> bool {
        self.is(Is::Failing) || self.has_failed()
    }
}

/// The stages.
impl Io {
    fn details(&self) -> Option<&Details> {
        self.pending.as_ref().map(|pending| &pending.end)
    }

    /// No end is under way, but for a drain's.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.end.stage, Stage::Open | Stage::Draining)
    }

    /// Why output is being delivered now, as the last thing.
    pub(crate) fn finishing(&self) -> Option<CloseReason> {
        match self.end.stage {
            Stage::Finishing(reason) | Stage::AtLast(reason) => Some(reason),
            Stage::Open | Stage::Draining | Stage::Decided => None,
        }
    }

    /// It ends, only the service may not have been told yet.
    #[inline]
    pub(crate) fn is_decided(&self) -> bool {
        self.end.stage == Stage::Decided
    }

    /// Whether the service has had its say. One that waits still holds what it was sent: that comes out before the end.
    pub(crate) fn may_end(&self) -> bool {
        self.is_told() || !self.is(Is::Paused)
    }

    /// The server drains, and `unread` bytes have come that are served yet.
    pub(crate) fn drain(&mut self, unread: u64) {
        if self.is_open() {
            self.end.stage = Stage::Draining;
            self.pending().end.left = u32::try_from(unread).unwrap_or(u32::MAX);
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.end.stage == Stage::Draining
    }

    /// `count` bytes are being served. Answers whether a drain waits for no more.
    #[inline]
    pub(crate) fn drains(&mut self, count: usize) -> bool {
        if !self.is_draining() {
            return false;
        }
        let left = &mut self.pending().end.left;
        *left = left.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        *left == 0
    }

    /// The service is done: what it owes, too. Where the client had said so before, it ended.
    pub(crate) fn finish(&mut self) {
        self.finish_as(if self.peer_fin() {
            CloseReason::PeerClosed
        } else {
            CloseReason::Service
        });
    }

    /// The service has finished, for that reason.
    pub(crate) fn finish_as(&mut self, reason: CloseReason) {
        self.end.fins.put(Fin::Owed, false);
        self.finish_for(reason);
    }

    /// Output, then FIN. Nobody wants what comes from here on.
    pub(crate) fn finish_for(&mut self, reason: CloseReason) {
        self.finish_unasked(reason, false);
    }

    /// As [`finish_for`](Self::finish_for), where neither the client nor the service wants it to end: a service that
    /// `hears_out` still gets what comes, for the client's last words may be on their way.
    pub(crate) fn finish_unasked(&mut self, reason: CloseReason, hears_out: bool) {
        if self.is_open() {
            self.end.stage = Stage::Finishing(reason);
            self.end.fins.put(Fin::Unwanted, !hears_out);
            if let Some(pending) = &mut self.pending {
                pending.end.left = 0;
            }
        }
    }

    /// Everything was delivered: the client's FIN is awaited until then, or until what was said before.
    pub(super) fn linger_until(&mut self, until: Moment) {
        if matches!(self.end.stage, Stage::Finishing(_)) {
            self.pending().end.linger.get_or_insert(until);
        }
    }

    /// Until when the client's FIN is awaited.
    #[inline]
    pub(crate) fn linger(&self) -> Option<Moment> {
        self.details()?.linger
    }

    /// The client was waited for in vain, and is waited for anew: its last words keep the service busy.
    pub(crate) fn linger_anew(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.end.linger = None;
        }
    }

    /// Delivers what waits for the client, then ends as said: by a reset, which would overtake it.
    pub(crate) fn fail_at_last(&mut self, ending: Ending) {
        self.finish_for(ending.reason);
        if let Stage::Finishing(reason) = self.end.stage {
            self.end.stage = Stage::AtLast(reason);
            let details = &mut self.pending().end;
            details.linger = None;
            details.ending = Some(ending);
        }
    }

    /// How it ends once the client has everything, where that is not by FIN.
    pub(crate) fn at_last(&self) -> Option<Ending> {
        match self.end.stage {
            Stage::AtLast(_) => self.details()?.ending,
            _ => None,
        }
    }

    /// Since when the client is to have everything: from now on, if nobody has asked before.
    pub(super) fn delivering_since(&mut self, now: Moment) -> Moment {
        *self.pending().end.since.get_or_insert(now)
    }

    /// Ends the connection at once. A reason that was there first stays, unless that was to end well.
    pub(crate) fn overrule(&mut self, ending: Ending) {
        let reason = match self.end.stage {
            Stage::Decided => return,
            Stage::Open
            | Stage::Draining
            | Stage::Finishing(
                CloseReason::PeerClosed | CloseReason::Service | CloseReason::Drain,
            ) => ending.reason,
            Stage::Finishing(first) | Stage::AtLast(first) => first,
        };
        self.decide(Ending { reason, ..ending });
    }

    /// Ends the connection at once, whatever was decided before: an operator or its owner wants that, or it cannot be
    /// served.
    pub(crate) fn cut_off(&mut self, ending: Ending) -> Ending {
        self.decide(ending);
        ending
    }

    fn decide(&mut self, ending: Ending) {
        self.end.stage = Stage::Decided;
        let pending = self.pending();
        pending.outbox.clear();
        pending.end.left = 0;
        pending.end.linger = None;
        pending.end.ending = Some(ending);
    }

    /// The system gave the connection up.
    pub(crate) fn fail(&mut self, errno: i32) {
        let fd = self.socket.as_fd();
        let queued = self.waiting_output() > 0 || sys::unacknowledged(fd).unwrap_or(0) > 0;
        let (errno, why) = match (self.is(Is::Multipath), errno, self.write_error()) {
            // A write was told why.
            (true, libc::ENOTCONN, Some(told)) if told != libc::EPIPE => (told, told),
            // No path to it was left, and it did not come back.
            (true, libc::ENOTCONN, _) => (errno, libc::ETIMEDOUT),
            _ => (errno, errno),
        };
        let mut reason = reap::reason_of(why, queued);
        let info = self.tcp_info().ok();
        let has_all = self.far_has_all() || self.has_heard_all();
        if reason == CloseReason::PeerReset && self.peer_fin() && has_all {
            // It had ended, and all it said has arrived: what it did not hear any more is no loss of its own.
            reason = CloseReason::PeerClosed;
            self.set_remark(Note::Late("peer-reset"));
        }
        self.overrule(Ending {
            reason,
            how: How::Release,
            errno: Some(errno),
            info,
        });
    }

    /// What waits for it, or for its service, could not be kept.
    pub(crate) fn out_of_memory(&mut self) {
        self.overrule(Ending {
            errno: Some(libc::ENOMEM),
            ..Ending::reset(CloseReason::IoError)
        });
    }

    /// How it ends, if that is decided.
    #[inline]
    pub(crate) fn verdict(&self) -> Option<Ending> {
        match self.end.stage {
            Stage::Decided => self.details()?.ending,
            _ => None,
        }
    }

    /// How it ends, as far as is decided.
    pub(crate) fn ending(&self) -> Ending {
        self.verdict().unwrap_or_else(|| Ending {
            info: self.details().and_then(|details| details.silent),
            ..Ending::fin(self.finishing().unwrap_or(CloseReason::PeerClosed))
        })
    }

    /// Whether an end for this reason comes before the client has said everything.
    pub(crate) fn is_cut(&self, reason: CloseReason) -> bool {
        !self.peer_fin() && !matches!(reason, CloseReason::PeerClosed | CloseReason::Service)
    }

    /// Says of the end what the kernel knew of a silent peer.
    pub(crate) fn set_silent(&mut self, info: TcpInfo) {
        self.pending().end.silent = Some(info);
    }

    /// What is to be said of the end besides its reason.
    pub(crate) fn remark(&self) -> Option<Note> {
        match self.details()?.remark {
            Some(Note::Own(header)) => (self.read == header).then_some(Note::Probe),
            remark => remark,
        }
    }

    pub(crate) fn set_remark(&mut self, remark: Note) {
        self.pending().end.remark = Some(remark);
    }
}

/// In a takeover.
impl Io {
    /// Whether another process can go on from here: not where the end is decided, or what has come is measured.
    /// Whether neither side has begun to end it.
    #[cfg(control)]
    #[inline]
    pub(crate) fn is_untouched(&self) -> bool {
        self.end.stage == Stage::Open && self.end.fins.is_empty_but(Fin::Withheld)
    }

    pub(crate) fn is_carriable(&self) -> bool {
        matches!(self.end.stage, Stage::Open | Stage::Finishing(_))
    }

    pub(crate) fn carried(&self) -> Carried {
        Carried {
            peer_fin: self.peer_fin(),
            fin_wanted: self.fin_wanted(),
            fin_sent: self.fin_sent(),
            told: self.is_told(),
            finishing: self.finishing(),
            write_error: self.write_error(),
            linger: self.linger(),
        }
    }

    /// Goes on from where another process was. Whether the service still hears its client out, that did not say: it
    /// does if it `hears_out`.
    pub(crate) fn go_on_from(&mut self, carried: &Carried, hears_out: bool) {
        let Carried {
            peer_fin,
            fin_wanted,
            fin_sent,
            told,
            finishing,
            write_error,
            linger,
        } = *carried;
        let fins = &mut self.end.fins;
        fins.put(Fin::Read, peer_fin);
        fins.put(Fin::Wanted, fin_wanted);
        fins.put(Fin::Sent, fin_sent);
        fins.put(Fin::Told, told);
        fins.put(Fin::Unwanted, finishing.is_some() && !hears_out);
        self.end.stage = finishing.map_or(Stage::Open, Stage::Finishing);
        if write_error.is_some() || linger.is_some() {
            let details = &mut self.pending().end;
            details.write_error = write_error;
            details.linger = linger.filter(|_| finishing.is_some());
        }
    }
}

#[cfg(test)]
mod tests;
