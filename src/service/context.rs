//! A connection, as its service sees it during a call, and the far side of it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

#[cfg(all(target_os = "linux", not(standfast_portable)))]
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use socket2::SockRef;

use crate::address::endpoint::Peer;
use crate::dial::DialError;
use crate::dial::upstream::Upstream;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
use crate::inspect::TlsInfo;
use crate::io::Is;
use crate::io::{Far as Dialled, Io, Turn};
use crate::liveness::close::{CloseReason, Ending, Note};
use crate::time::deadline::Moment;

/// A connection, as the service sees it during a call.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) io: &'a mut Io,
    pub(crate) turn: Turn<'a>,
}

impl Context<'_> {
    /// The number of this connection, unique within the server and over its restarts.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.io.id()
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.io.peer()
    }

    /// The address that the client has dialled: of this host, or of a proxy that says so.
    ///
    /// # Errors
    /// What getsockname(2) says; a Unix socket has no such address.
    pub fn local(&self) -> io::Result<SocketAddr> {
        if let Some(dialled) = self.io.dialled() {
            return Ok(dialled);
        }
        let address = SockRef::from(&self.io.socket).local_addr()?;
        address
            .as_socket()
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// How long ago it was accepted, be it by another process that this one has taken over from.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.turn.now.since(self.io.opened())
    }

    /// The time, as of this turn of the event loop: since some moment in the past, the same one for all connections of
    /// a server.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.turn.now.since(Moment::at_start())
    }

    /// Begins to connect the far side of this connection to `upstream`, in `after`. The client is not read until
    /// [`Service::dialed`](crate::Service::dialed) has told what came of it. A far side that there is already is closed.
    ///
    /// It gets the socket options and the deadlines of the listener, and no read deadline: bytes from there renew that of
    /// the client. From then on [`Service::input`](crate::Service::input) is offered what there is room for on the far side.
    ///
    /// With TLS there (`Upstream::with_tls`) it is connected once its handshake is done, and its end without a goodbye is
    /// told apart ([`Far::is_truncated`]).
    pub fn dial(&mut self, upstream: &Upstream, after: Duration) {
        self.dial_behind(upstream, after, &[]);
    }

    /// As [`dial`](Self::dial); where that is with TLS `preface` is said before the handshake.
    pub(crate) fn dial_behind(&mut self, upstream: &Upstream, after: Duration, preface: &[u8]) {
        if self.io.far_up().is_some() {
            self.io.is_to_be_copied_anew();
        }
        self.io.set_far(Dialled::Wanted {
            upstream: upstream.clone(),
            at: self.turn.now.after(after),
            preface: preface.into(),
        });
    }

    /// The far side, once it is connected.
    #[inline]
    pub fn far(&mut self) -> Option<Far<'_>> {
        let (io, turn) = self.io.far_up()?.split(&self.turn);
        Some(Far { io, turn })
    }

    /// Ends the connection with reason `upstream-failed`: what waits for the client is delivered, then it is reset.
    pub fn upstream_failed(&mut self, error: &DialError) {
        log::info!(id = self.io.id(), error:%; "upstream failed");
        if let Some(fault) = error.tls_fault() {
            self.io.set_remark(Note::Upstream(fault.as_str()));
        }
        self.io.fail_at_last(Ending {
            errno: error.errno(),
            ..Ending::reset(CloseReason::UpstreamFailed)
        });
    }

    /// Whether the client has said that it sends no more: its FIN was read.
    #[must_use]
    pub fn has_peer_finished(&self) -> bool {
        self.io.peer_fin()
    }

    /// Whether that came without the goodbye of TLS (`close_notify`) in front of it: what the client has sent may be cut
    /// short, by whoever is on the way.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.io.is_truncated()
    }

    /// Ends the connection as [truncated](Self::is_truncated), or as its [far side](Far::is_truncated): what waits for the
    /// client is delivered, then it is reset, and its far side; neither is to take what it has for the whole.
    pub fn fail_as_truncated(&mut self) {
        if self.io.far_io().is_some_and(Io::is_truncated) {
            self.io.set_remark(Note::Upstream("truncated"));
        }
        self.io
            .fail_at_last(Ending::reset(CloseReason::TlsTruncated));
    }

    /// How many bytes the client has sent that nobody has read, the service's own rest not counted.
    #[must_use]
    pub fn unread(&self) -> u64 {
        self.io.unread()
    }

    /// Reads no more from this client until [`Handle::resume`](crate::Handle::resume) is called, from whatever thread. The
    /// read deadline stands still meanwhile.
    pub fn pause(&mut self) {
        self.io.pause(self.turn.now);
    }

    /// Sends `bytes`: straight to the socket, and what that does not take waits, in order, within this process.
    ///
    /// All of it is kept, so a service that makes more output than it gets input looks at [`room`](Self::room): the
    /// engine asks it for nothing more while there is none. Once the connection has failed, bytes are dropped.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) {
        self.io.write(bytes, &self.turn);
    }

    /// Sends what the socket takes of `bytes` at once, and answers how much that is; nothing while output waits. What it
    /// does not take is the service's to keep.
    #[inline]
    #[must_use]
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        if self.io.is_withheld() {
            // As much as there is room for is as good as sent.
            let count = bytes.len().min(self.room());
            self.io.write(&bytes[..count], &self.turn);
            return count;
        }
        if self.io.waiting_output() > 0 {
            return 0;
        }
        self.io.send(bytes, &self.turn)
    }

    /// As [`send`](Self::send), of several pieces, one after another, in one go.
    #[must_use]
    pub fn send_vectored(&mut self, pieces: &[IoSlice<'_>]) -> usize {
        if self.io.is_withheld() {
            return pieces.iter().map(|piece| self.send(piece)).sum();
        }
        if self.io.waiting_output() > 0 {
            return 0;
        }
        self.io.send_vectored(pieces, &self.turn)
    }

    /// How many bytes of output wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.io.waiting_output()
    }

    /// How many more bytes may wait before the high-water mark is reached, which is below [`buffer`](Self::buffer) when
    /// memory is short.
    #[must_use]
    pub fn room(&self) -> usize {
        room(self.io, &self.turn)
    }

    /// The high-water mark of this connection's waiting output, and of the input kept for its service.
    #[must_use]
    pub fn buffer(&self) -> usize {
        self.turn.limits.buffer
    }

    /// Whether nothing can be sent any more: what is written is dropped.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.io.fin_sent() || self.io.has_failed()
    }

    /// Sends FIN behind the output; what comes is still read.
    pub fn half_close(&mut self) {
        self.io.want_fin();
    }

    /// Has [`Service::ready`](crate::Service::ready) called whenever `fd` may be read, as an edge: once, until a read of
    /// it would block. It is kept for as long as the connection lives, and goes along in a takeover.
    pub fn watch(&mut self, fd: OwnedFd) {
        self.io.watch(fd);
    }

    /// What is [watched](Self::watch), in that order; after a takeover, too.
    #[must_use]
    pub fn watched(&self) -> &[OwnedFd] {
        self.io.watched()
    }

    /// Has [`Service::ready`](crate::Service::ready) called with [`Ready::Watched`](crate::Ready::Watched) again in the
    /// next turn, after the other connections: for a service that reads only some of what a watched descriptor has at a
    /// time.
    pub fn again(&mut self) {
        self.io.set_again(true);
    }

    /// Has [`Service::ready`](crate::Service::ready) called in that time, once, instead of any time set before; `None`: not
    /// at all. What is left of it goes along in a takeover.
    pub fn set_alarm(&mut self, after: Option<Duration>) {
        self.io.set_alarm(self.turn.now.after_if(after));
    }

    /// Gives the socket away, to another process as a rule: answers a copy of it, which blocks, as programs expect.
    ///
    /// From here on the engine neither reads nor writes it, and tells of no input and no end. It goes on counting and
    /// keeping the deadlines by what the kernel knows (`TCP_INFO`, `SIOCOUTQ`; so not on a Unix socket), and ends both
    /// copies at a deadline ([`Service::recall`](crate::Service::recall) comes before a silent client's), a kill, or the
    /// end of a drain; until then a drain leaves it alone. When whoever got it is done, [`finish`](Self::finish) closes
    /// this process's copy alone: the client gets its FIN when there is no other one. What the service has not used of its
    /// input stays with it.
    ///
    /// # Errors
    /// `WouldBlock` while output waits; else what the system says, for want of descriptors as a rule. Nothing has
    /// happened then.
    pub fn give_away(&mut self) -> io::Result<OwnedFd> {
        self.io.give_away(&self.turn)
    }

    /// Takes a socket back that was given away: the engine reads and writes it again. Nobody else may have it any more:
    /// `O_NONBLOCK`, and what is read, are the same for all copies. One that the system has given up stays as it is,
    /// and ends.
    ///
    /// # Errors
    /// What the system says; nothing has happened then.
    pub fn take_back(&mut self) -> io::Result<()> {
        self.io.take_back(&self.turn)
    }

    /// There is more output than is to wait here: the end comes once [`finish`](Self::finish) is called. Until then
    /// [`Service::output`](crate::Service::output) is called whenever what waits has been written, be the connection ending
    /// or not.
    pub fn finish_later(&mut self) {
        self.io.owe();
    }

    /// Ends the connection once all output is delivered. The reason is that the client has sent its FIN, or else
    /// `service`.
    pub fn finish(&mut self) {
        self.settle_if_given_away();
        self.io.finish();
    }

    /// As [`finish`](Self::finish), for that reason: `service` where the client is done and the service will not be,
    /// `limit` where there is no room for it.
    pub fn finish_as(&mut self, reason: CloseReason) {
        self.settle_if_given_away();
        self.io.finish_as(reason);
    }

    /// Where what was written ends, counted from the first byte to the client.
    #[inline]
    pub(crate) fn output_end(&self) -> u64 {
        self.io.written + self.io.waiting_output() as u64
    }

    /// Where input begins that is so long, and is just being given to the service.
    #[inline]
    pub(crate) fn input_at(&self, count: usize) -> u64 {
        self.io.shown_at(count)
    }

    /// The input before that place is not given to the service again.
    #[cfg(control)]
    pub(crate) fn skip_input(&mut self, to: u64) {
        self.io.skip_kept(to);
    }

    /// It cannot go on after a crash: it is reset.
    #[cfg(control)]
    pub(crate) fn is_lost(&mut self) {
        self.io.overrule(Ending::reset(CloseReason::Crash));
    }

    fn settle_if_given_away(&mut self) {
        if self.io.is(Is::GivenAway) {
            self.io.recount(&self.turn);
        }
        self.io.recalled(false);
    }

    /// Which limit it is that ends the connection, for the log.
    pub fn name_limit(&mut self, limit: &'static str) {
        self.io.set_remark(Note::Limit(limit));
    }

    /// Ends the connection at once, by a reset: nothing more is delivered.
    pub fn abort(&mut self) {
        self.io.overrule(Ending::reset(CloseReason::Service));
    }
}

/// What the exec of this crate alone needs.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
impl Context<'_> {
    /// Takes over what the kernel has counted of a socket that was given away, and whether the client has finished.
    pub(crate) fn recount(&mut self) {
        self.io.recount(&self.turn);
    }

    /// What the socket is called in proc(5).
    pub(crate) fn inode(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(self.io.descriptor())?.st_ino)
    }

    /// Whether TLS stands before its service: then nobody can be given the socket.
    pub(crate) fn has_tls(&self) -> bool {
        self.io.has_tls()
    }

    /// Its TLS session, and who has signed the client's certificate.
    pub(crate) fn tls(&self) -> Option<(TlsInfo, Option<&str>)> {
        Some((self.io.tls_info()?, self.io.tls_issuer()))
    }

    /// Makes a pair of connected sockets (socketpair(2)): one is the far side from now on, the other one, which blocks, as
    /// programs expect, is for whoever would have been given the socket.
    pub(crate) fn pair(&mut self) -> io::Result<OwnedFd> {
        let kind = (
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
        );
        let (own, other) = rustix::net::socketpair(kind.0, kind.1, kind.2, None)?;
        rustix::io::ioctl_fionbio(&own, true)?;
        self.io.set_far(Dialled::Made(own));
        Ok(other)
    }

    /// Whether nothing more comes from the far side.
    pub(crate) fn has_far_ended(&self) -> bool {
        self.io.far_io().is_none_or(Io::is_told)
    }

    /// Whether nobody has the other end of the pair any more, or would read there.
    pub(crate) fn is_far_hung_up(&self) -> bool {
        self.io.far_io().is_none_or(Io::is_hung_up)
    }

    /// Whether the far side was told, in order, that its input is over.
    pub(crate) fn has_far_heard_all(&self) -> bool {
        self.io.far_io().is_none_or(Io::fin_sent)
    }

    /// Another descriptor of the far side: as long as it is there, whoever has the other end of the pair sees no end.
    pub(crate) fn hold_far(&self) -> Option<OwnedFd> {
        self.io.far_io()?.descriptor().try_clone_to_owned().ok()
    }

    /// Gives the far side up: whoever has the other end of the pair is hung up on.
    pub(crate) fn hang_up_far(&mut self) {
        self.io.hang_up_far();
    }

    /// Whether its end is under way.
    pub(crate) fn is_ending(&self) -> bool {
        !self.io.is_open()
    }
}

/// The far side of a connection: what its [`Context::dial`] has connected it to.
///
/// It ends with the connection, which alone can be dialled on and given away:
///
/// ```
/// # fn relay(conn: &mut standfast::Context<'_>, to: &standfast::dial::Upstream) {
/// conn.dial(to, std::time::Duration::ZERO);
/// # }
/// # fn lend(conn: &mut standfast::Context<'_>) {
/// conn.give_away().unwrap();
/// # }
/// ```
/// ```compile_fail,E0599
/// # fn relay(conn: &mut standfast::Context<'_>, to: &standfast::dial::Upstream) {
/// conn.far().unwrap().dial(to, std::time::Duration::ZERO);
/// # }
/// ```
/// ```compile_fail,E0599
/// # fn lend(conn: &mut standfast::Context<'_>) {
/// conn.far().unwrap().give_away().unwrap();
/// # }
/// ```
#[derive(Debug)]
pub struct Far<'a> {
    io: &'a mut Io,
    turn: Turn<'a>,
}

impl Far<'_> {
    /// The server there.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.io.peer()
    }

    /// Sends `bytes` there, as [`Context::write`] does to the client.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) {
        self.io.write(bytes, &self.turn);
    }

    /// How many bytes wait to be sent there.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.io.waiting_output()
    }

    /// How many more may wait before the high-water mark is reached. [`Service::input`](crate::Service::input) is offered
    /// no more than that.
    #[must_use]
    pub fn room(&self) -> usize {
        room(self.io, &self.turn)
    }

    /// Whether nothing can be sent there any more.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.io.fin_sent() || self.io.has_failed()
    }

    /// Whether its end came without the goodbye of TLS (`close_notify`) in front of it: what has come from there may be cut
    /// short, by whoever is on the way.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.io.is_truncated()
    }

    /// Sends FIN behind what waits; what comes from there is still read.
    pub fn half_close(&mut self) {
        self.io.want_fin();
    }
}

fn room(io: &Io, turn: &Turn<'_>) -> usize {
    let mark = turn.memory.mark(turn.limits.buffer);
    mark.saturating_sub(io.waiting_output())
}
