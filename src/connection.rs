//! One connection: read, serve, write, and the way to its end.
//!
//! All of a connection's state is in [`Connection`], nothing in a stack frame or a closure: that is what will let it
//! leave for another process. What an idle connection does not need stands in [`Pending`], which it does not have.
//!
//! `worker.rs` says when (readiness, leftovers, deadlines) and carries out a [`Step::Close`]; the judgement over
//! silence is in `reap.rs`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use mio::Interest;
use mio::event::Event;
use mio::net::TcpStream;

use crate::close::{CloseReason, Ending, How};
use crate::deadline::Moment;
use crate::outbox::Outbox;
use crate::reap::{self, Progress, Seen, Verdict};
use crate::service::{AnyService, Context, State, Turn};
use crate::sys::{self, TcpInfo};

/// How many bytes one connection may read in a turn before the others get theirs.
const READ_BUDGET: usize = 256 * 1024;

/// How long a client that has acknowledged everything, our FIN included, is given to send its own.
const LINGER: Duration = Duration::from_secs(1);

/// A connection and what its service remembers of it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) io: Io,
    state: State,
}

/// A connection without its service: the socket, its counters, and what waits.
#[derive(Debug)]
pub(crate) struct Io {
    stream: TcpStream,
    /// Which of the server's listeners it came through.
    pub(crate) listener: u16,
    /// An edge said there is something to read, and no read has said otherwise: edges come once.
    readable: bool,
    /// Behind what is readable there is more than bytes (FIN, error, urgent mark): a short read is not the end.
    read_on: bool,
    /// The event said there is an error to ask for. Never asked otherwise: `SO_ERROR` would tell, and eat, the soft
    /// error of a living connection.
    error: bool,
    /// The client's FIN was read.
    peer_fin: bool,
    /// Our FIN was sent.
    fin_sent: bool,
    /// The service was told that no more input comes.
    ended: bool,
    /// The service waits: it gets no input until it is resumed.
    halted: bool,
    /// Registered for write readiness too.
    writable_interest: bool,
    /// To be closed at the end of the turn.
    pub(crate) closing: bool,
    /// On the worker's list of connections with something left to do in the next turn.
    pub(crate) leftover: bool,
    /// Output is being delivered, then FIN: for this reason.
    finishing: Option<CloseReason>,
    pub(crate) id: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) opened: Moment,
    /// When the last byte came, later by the time we did not read: what the read deadline counts from.
    last_in: Moment,
    /// When to look next whether output is acknowledged. Armed by a write.
    watch: Moment,
    pub(crate) read: u64,
    /// Bytes the kernel took.
    pub(crate) written: u64,
    pending: Option<Box<Pending>>,
}

/// What an idle connection does not have.
#[derive(Debug, Default)]
struct Pending {
    outbox: Outbox,
    /// Input that the service left.
    kept: Vec<u8>,
    /// The service is to see `kept` again, though nothing new has come.
    offer: bool,
    /// Since when nothing is read, for want of room or because the service waits.
    paused: Option<Moment>,
    /// How far acknowledgements had come, and since when they stand.
    progress: Option<Progress>,
    /// A write failed: what it said. Bytes that came before are still read.
    failed: Option<i32>,
    /// The end, decided; only the service has not been told yet.
    verdict: Option<Ending>,
    /// The kernel's view of a silent peer, noted when a deadline of ours ended it.
    silent: Option<TcpInfo>,
    /// Draining: how many more bytes are served.
    quota: Option<u64>,
    /// All is acknowledged; the client's FIN is awaited until then.
    linger: Option<Moment>,
}

impl Pending {
    fn is_vacant(&self) -> bool {
        self.outbox.is_empty()
            && self.kept.is_empty()
            && self.paused.is_none()
            && self.progress.is_none()
            && self.failed.is_none()
            && self.verdict.is_none()
            && self.silent.is_none()
            && self.quota.is_none()
            && self.linger.is_none()
    }
}

/// What `worker.rs` has to do for a connection after a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing until the next event or deadline.
    Rest,
    /// Call `advance` again in the next turn: its budget was spent.
    Again,
    /// Close it.
    Close(Ending),
}

impl Connection {
    /// Wraps an accepted socket and lets the service greet.
    pub(crate) fn open(mut io: Io, service: &AnyService, turn: &Turn<'_>) -> Self {
        let state = catch_unwind(AssertUnwindSafe(|| {
            service.open(&mut Context { io: &mut io, turn })
        }));
        let state = state.unwrap_or_else(|_| {
            io.ended = true;
            io.overrule(Ending::reset(CloseReason::Service));
            Box::new(())
        });
        Self { io, state }
    }

    /// What follows from the greeting.
    pub(crate) fn opened(&mut self, service: &AnyService, turn: &Turn<'_>) -> Step {
        self.conclude(service, turn, false)
    }

    /// Notes what an event says; the outcome of `read` is what counts.
    pub(crate) fn note(&mut self, event: &Event) {
        let io = &mut self.io;
        io.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        io.read_on |= event.is_read_closed() || event.is_error() || event.is_priority();
        io.error |= event.is_error();
    }

    /// Does what can be done now: output first, for that makes room, then input, then what follows from both.
    pub(crate) fn advance(
        &mut self,
        service: &AnyService,
        turn: &Turn<'_>,
        buffer: &mut [u8],
    ) -> Step {
        if self.io.pending.is_some() {
            self.io.flush(turn);
            self.offer_kept(service, turn);
        }
        let more = self.pull(service, turn, buffer);
        self.conclude(service, turn, more)
    }

    /// Reads until there is no more, the budget is spent, or there is no room for what would come of it.
    /// Answers whether the budget stopped it.
    fn pull(&mut self, service: &AnyService, turn: &Turn<'_>, buffer: &mut [u8]) -> bool {
        let mut budget = READ_BUDGET;
        while self.io.readable {
            let room = self.io.input_room(turn).min(buffer.len());
            if room == 0 {
                self.io.pause(turn.now);
                return false;
            }
            if budget == 0 {
                return true;
            }
            match self.io.stream.read(&mut buffer[..room]) {
                Ok(0) => {
                    self.io.peer_fin = true;
                    self.io.readable = false;
                    self.io.input_over();
                }
                Ok(count) => {
                    budget = budget.saturating_sub(count);
                    self.io.last_in = turn.now;
                    self.io.read += count as u64;
                    turn.stats.read.add(count as u64);
                    if count < room && !self.io.read_on {
                        self.io.readable = false;
                    }
                    self.deliver(service, turn, &buffer[..count]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.io.readable = false;
                    self.io.read_on = false;
                    if self.io.error || self.io.has_failed() {
                        self.io.input_over();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.io.readable = false;
                    self.io.error = false;
                    self.io.fail(error.raw_os_error().unwrap_or(libc::EIO));
                }
            }
        }
        false
    }

    /// Hands bytes to the service, behind what it left before, and keeps what it leaves now.
    #[inline]
    fn deliver(&mut self, service: &AnyService, turn: &Turn<'_>, bytes: &[u8]) {
        if self.io.ended || self.io.finishing.is_some() {
            return;
        }
        let mut drained = false;
        if let Some(pending) = &mut self.io.pending {
            if pending.verdict.is_some() {
                return;
            }
            if let Some(quota) = &mut pending.quota {
                *quota = quota.saturating_sub(bytes.len() as u64);
                drained = *quota == 0;
            }
            if !pending.kept.is_empty() {
                pending.kept.extend_from_slice(bytes);
                self.serve_kept(service, turn);
                if drained {
                    self.io.finish_for(CloseReason::Drain);
                }
                return;
            }
        }
        let used = self.serve(service, turn, bytes);
        if used < bytes.len() {
            let pending = self.io.pending();
            pending.kept.extend_from_slice(&bytes[used..]);
            self.left_over(turn, used);
        }
        if drained {
            self.io.finish_for(CloseReason::Drain);
        }
    }

    /// Shows the service what it left, if it asked for that or there is room again.
    fn offer_kept(&mut self, service: &AnyService, turn: &Turn<'_>) {
        let io = &mut self.io;
        let Some(pending) = &io.pending else { return };
        let full = pending.outbox.len() >= turn.settings.buffer;
        if pending.offer && !io.halted && !full && !io.ended && io.finishing.is_none() {
            self.serve_kept(service, turn);
        }
    }

    fn serve_kept(&mut self, service: &AnyService, turn: &Turn<'_>) {
        let pending = self.io.pending();
        pending.offer = false;
        let mut kept = std::mem::take(&mut pending.kept);
        let used = self.serve(service, turn, &kept);
        kept.drain(..used);
        let left = !kept.is_empty();
        self.io.pending().kept = kept;
        if left {
            self.left_over(turn, used);
        }
    }

    /// The service left some input: decides when it sees that again.
    fn left_over(&mut self, turn: &Turn<'_>, used: usize) {
        let halted = self.io.halted;
        let pending = self.io.pending();
        let full = pending.outbox.len() >= turn.settings.buffer;
        if halted || full {
            pending.offer = true;
        } else if used == 0 && pending.kept.len() >= turn.settings.buffer {
            log::warn!(
                id = self.io.id;
                "service used none of a full buffer of input"
            );
            self.io.overrule(Ending::reset(CloseReason::Service));
        }
    }

    #[inline]
    fn serve(&mut self, service: &AnyService, turn: &Turn<'_>, bytes: &[u8]) -> usize {
        let Self { io, state } = self;
        let used = catch_unwind(AssertUnwindSafe(|| {
            service.input(state, &mut Context { io: &mut *io, turn }, bytes)
        }));
        match used {
            Ok(used) => used.min(bytes.len()),
            Err(_) => {
                io.ended = true;
                io.overrule(Ending::reset(CloseReason::Service));
                bytes.len()
            }
        }
    }

    /// Tells the service that its input is over.
    fn end(&mut self, service: &AnyService, turn: &Turn<'_>) {
        let Self { io, state } = self;
        let kept = io
            .pending
            .as_mut()
            .map(|pending| std::mem::take(&mut pending.kept));
        let kept = kept.unwrap_or_default();
        let told = catch_unwind(AssertUnwindSafe(|| {
            service.end(state, &mut Context { io: &mut *io, turn }, &kept);
        }));
        if told.is_err() {
            io.halted = false;
            io.overrule(Ending::reset(CloseReason::Service));
        }
        io.ended = !io.halted;
        if io.halted {
            io.pending().kept = kept;
        }
    }

    /// What follows from what was read and written.
    fn conclude(&mut self, service: &AnyService, turn: &Turn<'_>, more: bool) -> Step {
        if self.io.input_is_over() && !self.io.ended && !self.io.halted {
            self.end(service, turn);
            if let Some(errno) = self.io.failed() {
                self.io.fail(errno);
            }
        }
        let io = &mut self.io;
        if let Some(verdict) = io.verdict()
            && (io.ended || !io.halted)
        {
            return Step::Close(verdict);
        }
        if let Some(pending) = &io.pending
            && pending.quota.is_some()
            && !io.readable
            && !io.halted
            && !pending.offer
        {
            io.finish_for(CloseReason::Drain);
            return self.conclude(service, turn, false);
        }
        if io.finishing.is_some()
            && let Some(ending) = io.deliver_and_fin(turn)
        {
            return Step::Close(ending);
        }
        if io.half_closed() {
            let limits = &turn.settings.limits;
            io.watch = io.watch.min(
                turn.now
                    .after_if(limits.half_close_timeout.map(|wait| wait / 8)),
            );
        }
        if io
            .pending
            .as_ref()
            .is_some_and(|pending| pending.is_vacant())
        {
            io.pending = None;
        }
        if more { Step::Again } else { Step::Rest }
    }

    /// A deadline may have come: acts on what is due.
    pub(crate) fn expire(
        &mut self,
        service: &AnyService,
        turn: &Turn<'_>,
        buffer: &mut [u8],
    ) -> Step {
        let now = turn.now;
        if self.io.linger().is_some_and(|until| until <= now) {
            return Step::Close(self.io.ending());
        }
        if self.io.watch <= now {
            self.io.look(turn);
        }
        if self.io.read_deadline(turn) <= now {
            // A byte that came since the turn began saves the connection.
            self.io.readable = true;
            let more = self.pull(service, turn, buffer);
            if self.io.read_deadline(turn) > now {
                return self.conclude(service, turn, more);
            }
            self.io.finish_for(CloseReason::ReadTimeout);
            if let Ok(info) = sys::tcp_info(self.io.stream.as_fd())
                && (info.probes > 0 || info.retransmits > 0)
            {
                self.io.pending().silent = Some(info);
            }
        }
        self.conclude(service, turn, false)
    }

    /// The server drains: serves what has come, then finishes.
    pub(crate) fn drain(
        &mut self,
        service: &AnyService,
        turn: &Turn<'_>,
        buffer: &mut [u8],
    ) -> Step {
        let io = &mut self.io;
        if io.finishing.is_none() && !io.ended && !io.peer_fin {
            let unread = rustix::io::ioctl_fionread(io.stream.as_fd()).unwrap_or(0);
            if unread == 0 && !io.halted && io.pending.as_ref().is_none_or(|pending| !pending.offer)
            {
                io.finish_for(CloseReason::Drain);
            } else {
                io.readable = true;
                io.pending().quota = Some(unread);
            }
        } else if io.finishing.is_none() {
            io.finish_for(CloseReason::Drain);
        }
        self.advance(service, turn, buffer)
    }

    /// The server ends now. Answers how, and whether that cuts something off.
    pub(crate) fn cut(&mut self) -> (Ending, bool) {
        let io = &mut self.io;
        let undelivered = io.waiting_output() > 0;
        let queued = sys::unacknowledged(io.stream.as_fd()).unwrap_or(0);
        io.overrule(if undelivered {
            Ending::reset(CloseReason::Drain)
        } else {
            // The kernel goes on delivering what it holds, with its usual patience.
            let _ = sys::set_rto_max(io.stream.as_fd(), crate::keepalive::RTO_MAX_DEFAULT);
            Ending {
                how: How::Release,
                ..Ending::fin(CloseReason::Drain)
            }
        });
        let only_lingers = io.fin_sent && queued == 0;
        (io.ending(), !only_lingers)
    }

    /// The service may go on.
    pub(crate) fn resume(&mut self, turn: &Turn<'_>) {
        let io = &mut self.io;
        io.halted = false;
        if let Some(pending) = &mut io.pending {
            pending.offer |= !pending.kept.is_empty();
        }
        io.unpause(turn.now);
    }

    /// Closes the socket as `ending` says.
    pub(crate) fn close(self, ending: &Ending) -> io::Result<()> {
        match ending.how {
            How::Reset => crate::close::reset(self.io.stream),
            How::Fin | How::Release => Ok(()),
        }
    }
}

impl Io {
    pub(crate) fn new(
        stream: TcpStream,
        id: u64,
        peer: SocketAddr,
        listener: u16,
        opened: Moment,
    ) -> Self {
        Self {
            stream,
            listener,
            readable: false,
            read_on: false,
            error: false,
            peer_fin: false,
            fin_sent: false,
            ended: false,
            halted: false,
            writable_interest: false,
            closing: false,
            leftover: false,
            finishing: None,
            id,
            peer,
            opened,
            last_in: opened,
            watch: Moment::NEVER,
            read: 0,
            written: 0,
            pending: None,
        }
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_default()
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halted
    }

    /// Bytes in the outbox.
    pub(crate) fn waiting_output(&self) -> usize {
        self.pending
            .as_ref()
            .map_or(0, |pending| pending.outbox.len())
    }

    /// Straight to the socket if nothing waits; what it does not take waits.
    #[inline]
    pub(crate) fn write(&mut self, mut bytes: &[u8], turn: &Turn<'_>) {
        if self.fin_sent || self.has_failed() {
            return;
        }
        if self.waiting_output() == 0 {
            match self.send(bytes) {
                Ok(count) => {
                    self.count_written(count, turn);
                    if self.watch == Moment::NEVER {
                        self.watch =
                            reap::first_look(&turn.settings.limits, turn.now, self.last_in, false);
                    }
                    bytes = &bytes[count..];
                }
                Err(errno) => return self.write_failed(errno),
            }
            if bytes.is_empty() {
                return;
            }
            let look = reap::first_look(&turn.settings.limits, turn.now, self.last_in, true);
            self.watch = self.watch.min(look);
        }
        self.pending().outbox.push(bytes);
    }

    /// Writes what waits, as far as the socket takes it.
    fn flush(&mut self, turn: &Turn<'_>) {
        while let Some(pending) = &mut self.pending
            && !pending.outbox.is_empty()
        {
            let front = pending.outbox.front();
            let whole = front.len();
            match send(&mut self.stream, front) {
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
        if self.waiting_output() < turn.settings.buffer && !self.halted {
            self.unpause(turn.now);
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, i32> {
        send(&mut self.stream, bytes)
    }

    #[inline]
    fn count_written(&mut self, count: usize, turn: &Turn<'_>) {
        self.written += count as u64;
        turn.stats.written.add(count as u64);
    }

    /// A write failed: nothing more can be sent, but what came before is read yet; then that is the verdict.
    fn write_failed(&mut self, errno: i32) {
        let pending = self.pending();
        pending.outbox.clear();
        pending.failed = Some(errno);
        self.readable = true;
        self.read_on = true;
    }

    fn failed(&self) -> Option<i32> {
        self.pending.as_ref().and_then(|pending| pending.failed)
    }

    /// Nothing more can be sent.
    fn has_failed(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|pending| pending.failed.is_some() || pending.verdict.is_some())
    }

    /// How many bytes may be read now: bounded by what may have to be kept of them, or of the answer to them.
    #[inline]
    fn input_room(&self, turn: &Turn<'_>) -> usize {
        let Some(pending) = &self.pending else {
            return usize::MAX;
        };
        if self.ended || self.finishing.is_some() {
            return usize::MAX;
        }
        if self.halted {
            return 0;
        }
        let buffer = turn.settings.buffer;
        buffer.saturating_sub(pending.kept.len().max(pending.outbox.len()))
    }

    /// The service waits.
    pub(crate) fn halt(&mut self, now: Moment) {
        self.halted = true;
        self.pause(now);
    }

    fn pause(&mut self, now: Moment) {
        self.pending().paused.get_or_insert(now);
    }

    /// Reading goes on: the read deadline stood still meanwhile.
    fn unpause(&mut self, now: Moment) {
        if let Some(pending) = &mut self.pending
            && let Some(paused) = pending.paused.take()
        {
            self.last_in = self.last_in.after(now.since(paused));
        }
    }

    /// Nothing more can be read: FIN, or an error behind the bytes.
    fn input_over(&mut self) {
        if let Some(errno) = self.failed() {
            self.fail(errno);
        } else if std::mem::take(&mut self.error)
            && let Ok(Some(error)) = self.stream.take_error()
        {
            self.fail(error.raw_os_error().unwrap_or(libc::EIO));
        }
    }

    /// The system gave the connection up.
    fn fail(&mut self, errno: i32) {
        let fd = self.stream.as_fd();
        let queued = self.waiting_output() > 0 || sys::unacknowledged(fd).unwrap_or(0) > 0;
        let reason = reap::reason_of(errno, queued);
        let told = matches!(
            reason,
            CloseReason::KeepaliveDead | CloseReason::Unacknowledged | CloseReason::Unreachable
        );
        let info = if told { sys::tcp_info(fd).ok() } else { None };
        self.overrule(Ending {
            reason,
            how: How::Release,
            errno: Some(errno),
            info,
        });
    }

    /// Ends the connection at once. A reason that was there first stays, unless it was that all is well.
    fn overrule(&mut self, ending: Ending) {
        let reason = match self.finishing {
            None | Some(CloseReason::PeerClosed | CloseReason::Service) => ending.reason,
            Some(first) => first,
        };
        let pending = self.pending();
        pending.outbox.clear();
        pending.verdict.get_or_insert(Ending { reason, ..ending });
    }

    /// The service is done: output, then FIN.
    pub(crate) fn finish(&mut self) {
        self.finish_for(if self.peer_fin {
            CloseReason::PeerClosed
        } else {
            CloseReason::Service
        });
    }

    fn finish_for(&mut self, reason: CloseReason) {
        self.finishing.get_or_insert(reason);
        if let Some(pending) = &mut self.pending {
            pending.quota = None;
        }
    }

    fn verdict(&self) -> Option<Ending> {
        self.pending.as_ref().and_then(|pending| pending.verdict)
    }

    /// How it ends, as far as is decided.
    fn ending(&self) -> Ending {
        let silent = self.pending.as_ref().and_then(|pending| pending.silent);
        self.verdict().unwrap_or(Ending {
            info: silent,
            ..Ending::fin(self.finishing.unwrap_or(CloseReason::PeerClosed))
        })
    }

    fn input_is_over(&self) -> bool {
        self.peer_fin || self.finishing.is_some() || self.verdict().is_some()
    }

    pub(crate) fn half_closed(&self) -> bool {
        self.peer_fin || self.fin_sent
    }

    /// Finishing: sends FIN behind the last of the output and waits until the client has acknowledged all of it.
    ///
    /// Never closes before: under a capped `TCP_RTO_MAX_MS` the kernel would give the rest up early.
    fn deliver_and_fin(&mut self, turn: &Turn<'_>) -> Option<Ending> {
        if self.waiting_output() > 0 {
            return None;
        }
        let mut queued = sys::unacknowledged(self.stream.as_fd()).unwrap_or(0);
        if self.peer_fin && queued == 0 {
            return Some(self.ending());
        }
        if !self.fin_sent {
            self.fin_sent = true;
            if let Err(error) = self.stream.shutdown(Shutdown::Write)
                && error.kind() != ErrorKind::NotConnected
            {
                log::debug!(id = self.id, error:% = error; "shutdown failed");
            }
            queued = sys::unacknowledged(self.stream.as_fd()).unwrap_or(0);
            self.watch = self.watch.min(reap::first_look(
                &turn.settings.limits,
                turn.now,
                self.last_in,
                false,
            ));
            if self.peer_fin && queued == 0 {
                return Some(self.ending());
            }
        }
        if queued == 0 {
            self.pending().linger.get_or_insert(turn.now.after(LINGER));
        }
        None
    }

    fn linger(&self) -> Option<Moment> {
        self.pending.as_ref().and_then(|pending| pending.linger)
    }

    /// Looks whether the peer acknowledges, and judges.
    fn look(&mut self, turn: &Turn<'_>) {
        let fd = self.stream.as_fd();
        let queued = sys::unacknowledged(fd).unwrap_or(0);
        let seen = Seen {
            outbox: self.waiting_output(),
            queued,
            info: if queued > 0 {
                sys::tcp_info(fd).ok()
            } else {
                None
            },
            acknowledged: (self.written + u64::from(self.fin_sent)).saturating_sub(queued),
            half_closed: self.half_closed(),
        };
        let mut progress = self.pending.as_ref().and_then(|pending| pending.progress);
        let verdict = reap::judge(&turn.settings.limits, turn.now, &seen, &mut progress);
        if progress.is_some() || self.pending.is_some() {
            self.pending().progress = progress;
        }
        match verdict {
            Verdict::Quiet => self.watch = Moment::NEVER,
            Verdict::Wait(until) => self.watch = until,
            Verdict::Reap(mut ending) => {
                // It ends in any case, so a soft error may be taken now: the network's word on why.
                if ending.reason == CloseReason::Unacknowledged
                    && let Ok(Some(error)) = self.stream.take_error()
                    && let Some(errno) = error.raw_os_error()
                {
                    ending.reason = reap::reason_of(errno, true);
                    ending.errno = Some(errno);
                }
                self.overrule(ending);
            }
        }
    }

    /// When the client's silence ends the connection.
    #[inline]
    fn read_deadline(&self, turn: &Turn<'_>) -> Moment {
        let reads = !self.peer_fin
            && self.finishing.is_none()
            && self
                .pending
                .as_ref()
                .is_none_or(|pending| pending.paused.is_none());
        if reads {
            self.last_in.after_if(turn.settings.read_timeout)
        } else {
            Moment::NEVER
        }
    }

    /// The earliest of its deadlines.
    #[inline]
    pub(crate) fn due(&self, turn: &Turn<'_>) -> Moment {
        if let Some(until) = self.linger() {
            return until;
        }
        self.watch.min(self.read_deadline(turn))
    }

    /// The interest to register anew, if it has changed: write readiness is asked for while output waits, and while
    /// acknowledgement of our FIN is awaited, for that changes the socket's state.
    #[inline]
    pub(crate) fn interest_changed(&mut self) -> Option<Interest> {
        let writable = self.fin_sent || self.waiting_output() > 0;
        if writable == self.writable_interest {
            return None;
        }
        self.writable_interest = writable;
        Some(if writable {
            INTEREST | Interest::WRITABLE
        } else {
            INTEREST
        })
    }
}

/// What every connection is registered for. Urgent data makes its own edge on Linux: `recv` stops at the mark, with
/// bytes behind it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const INTEREST: Interest = Interest::READABLE.add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) const INTEREST: Interest = Interest::READABLE;

/// Sends what the socket takes; a full one takes nothing.
#[inline]
fn send(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize, i32> {
    loop {
        match stream.write(bytes) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}
