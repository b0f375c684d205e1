//! A connection's socket: what was read and written, what waits, and what the kernel says of the peer.
//!
//! The half of a connection that a service call works on ([`Context`](crate::Context)); the half that calls the
//! service is in `connection/`.

pub(crate) mod chronicle;
mod compact;
pub(crate) mod door;
pub(crate) mod end;
mod far;
mod flags;
mod given_away;
pub(crate) mod marks;
mod output;
mod pending;
mod progress;
mod ration;
pub(crate) mod readiness;
pub(crate) mod stats;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
pub(crate) mod tls;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::address::endpoint::{PackedPeer, Peer};
use crate::io::compact::{Number, Opened};
use crate::io::end::End;
use crate::io::flags::{Flag, Flags};
use crate::io::marks::{Mark, Marks};
use crate::io::stats::Stats;
use crate::liveness::multipath;
use crate::liveness::reap::{self, Limits};
use crate::liveness::sockopt::INTEREST;
use crate::memory::Memory;
use crate::os::sys::{self, TcpInfo};
use crate::time::deadline::Moment;
use crate::time::horizon::Pause;

pub(crate) use far::{Far, Up};
#[cfg(control)]
pub(crate) use given_away::Accounted;
pub(crate) use given_away::WATCHED;
pub(crate) use pending::{Pending, Watched};

/// What holds for connections in one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) now: Moment,
    /// Deadlines up to then may be judged: everything that happened before is known.
    pub(crate) known: Moment,
    pub(crate) limits: &'a Limits,
    pub(crate) stats: &'a Stats,
    pub(crate) memory: &'a Memory,
}

/// What holds for connections of one kind at any time: those of a client, or the far sides of a listener's.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) limits: Limits,
    pub(crate) stats: Stats,
    pub(crate) memory: Memory,
    /// They are ends of pairs, whose other ends programs have: who closes its own is done, whatever it has left unread.
    pub(crate) of_pairs: bool,
}

impl Terms {
    /// Those of the far sides of connections with `limits`. How long a program takes to read is its own affair.
    pub(crate) fn of_far_sides(limits: &Limits, of_pairs: bool, memory: Memory) -> Self {
        let of_servers = |limit: Option<Duration>| limit.filter(|_| !of_pairs);
        Self {
            limits: Limits {
                read_timeout: None,
                max_age: None,
                dead_after: of_servers(limits.dead_after),
                write_timeout: of_servers(limits.write_timeout),
                half_close_timeout: of_servers(limits.half_close_timeout),
                ..*limits
            },
            stats: Stats::default(),
            memory,
            of_pairs,
        }
    }

    #[inline]
    pub(crate) fn turn(&self, now: Moment, known: Moment) -> Turn<'_> {
        Turn {
            now,
            known,
            limits: &self.limits,
            stats: &self.stats,
            memory: &self.memory,
        }
    }
}

/// A connection without its service: the socket, its counters, and what waits.
#[derive(Debug)]
pub(crate) struct Io {
    pub(crate) socket: OwnedFd,
    /// Which of the server's listeners it came through.
    pub(crate) listener: u16,
    /// How it stands, as far as yes and no say it.
    flags: Flags<Is>,
    /// How far its end has come.
    end: End,
    /// What it is registered for.
    pub(crate) registered: Interest,
    /// What the worker has noted of it.
    pub(crate) marks: Marks,
    id: Number,
    peer: PackedPeer,
    opened: Opened,
    /// When the last byte came, later by the time we did not read: what the read deadline counts from.
    pub(crate) last_in: Moment,
    /// When to look next whether output is acknowledged. Armed by a write.
    pub(crate) look_at: Moment,
    pub(crate) read: u64,
    /// Bytes the kernel took.
    pub(crate) written: u64,
    pub(crate) pending: Option<Box<Pending>>,
}

/// How a connection's socket stands, as far as yes and no say it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Is {
    /// An edge said there is something to read, and no read has said otherwise: edges come once.
    Readable,
    /// Behind what is readable there is more than bytes (FIN, error, urgent mark): a short read is not the end.
    ReadOn,
    /// The event said there is an error to ask for. Never asked otherwise: `SO_ERROR` would tell, and eat, the soft
    /// error of a living connection.
    Failing,
    /// The service has paused it: it gets no input until it is resumed.
    Paused,
    /// The socket was given away: it is neither read nor written here.
    GivenAway,
    /// `last_in` was made later, for time in which nothing was read.
    Shifted,
    /// Not read for want of memory in the process.
    Short,
    /// It has, or may have, several paths: the kernel does not say by itself that the peer has vanished.
    Multipath,
}

impl Flag for Is {
    #[inline]
    fn place(self) -> u8 {
        self as u8
    }
}

impl Io {
    pub(crate) fn new(socket: OwnedFd, id: u64, peer: Peer, listener: u16, opened: Moment) -> Self {
        Self {
            socket,
            listener,
            flags: Flags::default(),
            end: End::default(),
            registered: INTEREST,
            marks: Marks::default(),
            id: Number::new(id),
            peer: peer.into(),
            opened: Opened::new(opened),
            last_in: opened,
            look_at: Moment::NEVER,
            read: 0,
            written: 0,
            pending: None,
        }
    }

    #[inline]
    pub(crate) fn is(&self, how: Is) -> bool {
        self.flags.has(how)
    }

    #[inline]
    pub(crate) fn set(&mut self, how: Is, holds: bool) {
        self.flags.put(how, holds);
    }

    pub(crate) fn id(&self) -> u64 {
        self.id.get()
    }

    pub(crate) fn opened(&self) -> Moment {
        self.opened.get()
    }

    /// Who is at the other end: who a proxy says it is, if one does.
    pub(crate) fn peer(&self) -> Peer {
        self.peer.get()
    }

    /// The proxy that says so.
    pub(crate) fn via(&self) -> Option<Peer> {
        self.peer.via()
    }

    /// What the client has dialled, as that proxy says.
    pub(crate) fn dialled(&self) -> Option<SocketAddr> {
        self.peer.dialled()
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What the kernel knows of the peer.
    pub(crate) fn tcp_info(&self) -> io::Result<TcpInfo> {
        if self.is(Is::Multipath) {
            sys::multipath_info(self.socket.as_fd())
        } else {
            sys::tcp_info(self.socket.as_fd())
        }
    }

    /// It is a connection of a listener for such: finds out whether it has, or may have, several paths.
    pub(crate) fn find_paths(&mut self, limits: &Limits, now: Moment) {
        if multipath::is_multipath(&self.socket) {
            self.set(Is::Multipath, true);
            if self.look_at == Moment::NEVER {
                self.look_at = reap::first_look(limits, now, self.last_in);
            }
        }
    }

    /// Has its events told under `token`, from now on.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = self.interest();
        self.registered = interest;
        registry.register(&mut SourceFd(&self.socket.as_raw_fd()), token, interest)?;
        self.register_watched(registry, token)
    }

    /// Has no events told any more: while a copy of the socket lives elsewhere, closing it would not end that.
    pub(crate) fn deregister(&self, registry: &Registry) {
        if let Some(far) = self.far_io() {
            far.deregister(registry);
        }
        self.deregister_watched(registry);
        if let Err(error) = registry.deregister(&mut SourceFd(&self.socket.as_raw_fd())) {
            log::debug!(id = self.id(), error:%; "cannot deregister a connection");
        }
    }

    /// Notes what an event says; the outcome of a read is what counts.
    pub(crate) fn note(&mut self, event: &Event) {
        let (ends, fails) = (event.is_read_closed(), event.is_error());
        self.flags
            .add(Is::Readable, event.is_readable() || ends || fails);
        self.flags
            .add(Is::ReadOn, ends || fails || event.is_priority());
        self.flags.add(Is::Failing, fails);
    }

    /// One read: how many bytes came. Whether there may be more says [`Is::Readable`]; the end that it shows is the
    /// peer's FIN, or the verdict.
    #[inline]
    pub(crate) fn take_in(&mut self, buffer: &mut [u8], turn: &Turn<'_>) -> usize {
        if self.has_tls() {
            return self.take_in_sealed(buffer, turn);
        }
        let count = self.receive(buffer, turn);
        if count > 0 {
            self.note_input(count, turn);
        }
        count
    }

    /// So many bytes have come for its service.
    #[inline]
    fn note_input(&mut self, count: usize, turn: &Turn<'_>) {
        self.last_in = turn.now;
        self.set(Is::Shifted, false);
        self.read += count as u64;
    }

    /// As [`take_in`](Self::take_in), as the socket has it.
    #[inline]
    fn receive(&mut self, buffer: &mut [u8], turn: &Turn<'_>) -> usize {
        match rustix::net::recv(self.socket.as_fd(), &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => {
                self.reads_end();
                self.set(Is::Readable, false);
                self.input_over();
            }
            Ok((count, _)) => {
                turn.stats.read.add(count as u64);
                if count < buffer.len() && !self.is(Is::ReadOn) {
                    self.set(Is::Readable, false);
                }
                return count;
            }
            Err(Errno::AGAIN) => {
                self.set(Is::Readable, false);
                self.set(Is::ReadOn, false);
                if self.is(Is::Failing) || self.has_failed() {
                    self.input_over();
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                self.set(Is::Readable, false);
                self.set(Is::Failing, false);
                self.fail(error.raw_os_error());
            }
        }
        0
    }

    /// Whether all that there is to know of it are its socket, its peer and how much has come and gone.
    #[cfg(control)]
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.pending.is_none()
            && self.is_untouched()
            && !matches!(self.peer, PackedPeer::Introduced(_))
    }

    pub(crate) fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_default()
    }

    /// A takeover could not follow if more were read.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.marks.has(Mark::Held)
    }

    /// Whether it has bytes that the kernel does not keep.
    pub(crate) fn holds_bytes(&self) -> bool {
        self.pending.as_deref().is_some_and(|pending| {
            let far = self.far_io().map_or(0, Self::waiting_output);
            !pending.outbox.is_empty() || !pending.kept.is_empty() || far > 0
        })
    }

    /// Bytes in the outbox.
    pub(crate) fn waiting_output(&self) -> usize {
        self.pending
            .as_ref()
            .map_or(0, |pending| pending.outbox.len())
    }

    /// How many bytes may be read now: bounded by what may have to be kept of them, or of the answer to them.
    #[inline]
    pub(crate) fn input_room(&self, turn: &Turn<'_>) -> usize {
        if self.discards_input() {
            return usize::MAX;
        }
        let Some(pending) = &self.pending else {
            return turn.limits.buffer;
        };
        if self.is(Is::Paused) || self.is_held() {
            return 0;
        }
        // What comes of the input waits for the far side, if there is one.
        let waiting = match pending.far.as_deref() {
            None => pending.outbox.len(),
            Some(Far::Up(up)) => up.io.waiting_output(),
            Some(_) => return 0,
        };
        let buffer = turn.limits.buffer;
        buffer.saturating_sub(pending.kept.len().max(waiting))
    }

    /// The service gets no input until it is resumed.
    pub(crate) fn pause(&mut self, now: Moment) {
        self.set(Is::Paused, true);
        self.stop_reading(now);
    }

    /// Whether it is not read now.
    #[cfg(control)]
    pub(crate) fn is_stopped(&self) -> bool {
        let pending = self.pending.as_ref();
        pending.is_some_and(|pending| pending.stopped.is_some())
    }

    pub(crate) fn stop_reading(&mut self, now: Moment) {
        self.pending().stopped.get_or_insert(now);
    }

    /// It goes on in a later turn: while one direction has ended it is looked often whether anything moves.
    pub(crate) fn settle(&mut self, turn: &Turn<'_>) {
        if self.half_closed() && !self.is(Is::Paused) {
            let wait = turn.limits.half_close_timeout.map(|wait| wait / 8);
            self.look_by(turn.now.after_if(wait));
        }
        self.tidy(turn);
    }

    /// Looks at the latest then whether it comes on.
    pub(crate) fn look_by(&mut self, at: Moment) {
        self.look_at = self.look_at.min(at);
    }

    /// Without room nothing is read, whether something has come or not; and what holds nothing is given back.
    pub(crate) fn tidy(&mut self, turn: &Turn<'_>) {
        if self.pending.is_none() {
            return;
        }
        if self.input_room(turn) == 0 {
            self.stop_reading(turn.now);
        }
        if self.pending.as_ref().is_some_and(|it| it.is_vacant()) {
            self.pending = None;
        }
    }

    /// What was read in a turn that took long may have come at its end.
    pub(crate) fn blur(&mut self, turn: Pause) {
        if self.last_in == turn.from {
            self.last_in = turn.to;
        }
        if let Some(up) = self.far_up() {
            up.io.blur(turn);
        }
    }

    /// The read deadline begins anew, though no byte came of the peer.
    pub(crate) fn renew(&mut self, now: Moment) {
        self.last_in = now;
        self.set(Is::Shifted, true);
    }

    /// Reading goes on: the read deadline stood still meanwhile.
    pub(crate) fn resume_reading(&mut self, now: Moment) {
        if let Some(pending) = &mut self.pending
            && let Some(stopped) = pending.stopped.take()
        {
            self.renew(self.last_in.after(now.since(stopped)));
        }
    }

    /// Whether the client sent something that the service has not used.
    pub(crate) fn holds_input(&self) -> bool {
        self.keeps_input() || self.unread() > 0
    }

    /// Whether its far side is not read, for want of room here: whether that is silent cannot be known.
    pub(crate) fn holds_back_far(&self, turn: &Turn<'_>) -> bool {
        let pending = self.pending.as_ref();
        pending.is_some_and(|pending| {
            pending.outbox.len() >= turn.limits.buffer
                && matches!(pending.far.as_deref(), Some(Far::Up(_)))
        })
    }

    /// When the client's silence ends the connection.
    #[inline]
    pub(crate) fn read_deadline(&self, turn: &Turn<'_>) -> Moment {
        let reads = !self.peer_fin()
            && !self.holds_back_far(turn)
            && self.is_open()
            && self
                .pending
                .as_ref()
                .is_none_or(|pending| pending.stopped.is_none());
        if reads {
            self.last_in.after_if(turn.limits.read_timeout)
        } else {
            Moment::NEVER
        }
    }

    /// When it has been connected for as long as it may.
    #[inline]
    pub(crate) fn age_deadline(&self, turn: &Turn<'_>) -> Moment {
        match turn.limits.max_age {
            Some(max_age) if self.is_open() => self.opened().after(reap::lasts(max_age, self.id())),
            _ => Moment::NEVER,
        }
    }

    /// The earliest of its deadlines.
    #[inline]
    pub(crate) fn due(&self, turn: &Turn<'_>) -> Moment {
        if let Some(until) = self.linger() {
            return until;
        }
        let due = self
            .look_at
            .min(self.read_deadline(turn))
            .min(self.age_deadline(turn));
        if self.pending.is_none() {
            return due;
        }
        if let Some(door) = self.door() {
            return door.due();
        }
        let due = due.min(self.alarm()).min(self.lost());
        due.min(self.far_due())
    }

    /// What it waits for: write readiness while output waits, or would for want of memory; and while acknowledgement of our FIN is awaited, for
    /// that changes the socket's state.
    #[inline]
    fn interest(&self) -> Interest {
        if self.is(Is::GivenAway) {
            GIVEN_AWAY
        } else if self.fin_sent() || self.is(Is::Short) || self.waiting_output() > 0 {
            INTEREST | Interest::WRITABLE
        } else {
            INTEREST
        }
    }

    /// Registers it for write readiness too, if it waits for that; and leaves it so.
    #[inline]
    pub(crate) fn watch_writes(&mut self, registry: &Registry, token: Token) {
        if !self.registered.is_writable() {
            // Nothing stands beside it that could fail.
            let _ = self.reregister(registry, token);
        }
    }

    /// Registers it anew if what it waits for has changed, and what stands beside it.
    ///
    /// # Errors
    /// A descriptor beside it that cannot be registered.
    #[inline]
    pub(crate) fn reregister(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if self.pending.is_some() {
            self.register_watched(registry, token)?;
        }
        let interest = self.interest();
        if interest == self.registered {
            return Ok(());
        }
        self.registered = interest;
        let source = &mut SourceFd(&self.socket.as_raw_fd());
        if let Err(error) = registry.reregister(source, token, interest) {
            log::debug!(id = self.id(), error:%; "cannot change interest");
        }
        Ok(())
    }
}

/// What a socket is registered for that was given away: an error comes with whatever one asks for, and urgent data
/// comes seldom. Its bytes are told to whoever reads them.
#[cfg(any(target_os = "linux", target_os = "android"))]
const GIVEN_AWAY: Interest = Interest::PRIORITY;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const GIVEN_AWAY: Interest = Interest::READABLE;
