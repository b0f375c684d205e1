//! A socket that was given away, and descriptors beside it: what the engine still knows, sees to, and counts.
//!
//! Whoever has the copy reads and writes; here the kernel's account (`TCP_INFO`, `SIOCOUTQ`) stands in for the bytes
//! that do not pass through. Nothing here touches the socket but to end it: what `fcntl`, `shutdown` and a read do to
//! it, they do to the other copy too.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::net::RecvFlags;
use socket2::SockRef;

use super::{Io, Turn, Watched};
use crate::io::Is;
use crate::io::marks::Mark;
use crate::liveness::close::{CloseReason, Ending, How};
use crate::liveness::keepalive::RTO_MAX_DEFAULT;
use crate::liveness::reap::{self, Limits, Seen, Verdict};
use crate::os::fault::may_die;
use crate::os::sys::{self, TcpInfo, TcpState};
use crate::time::deadline::Moment;

/// How long whoever has the socket is left alone with the error that ended it, which only one of us can be told.
const LOST: Duration = Duration::from_secs(1);

/// In the token of a descriptor that a connection's service watches, beside the connection's key.
pub(crate) const WATCHED: usize = 1 << (usize::BITS - 3);

impl Io {
    pub(crate) fn watched_mut(&mut self) -> &mut Watched {
        self.pending().watched.get_or_insert_default()
    }

    /// What there is of that.
    #[inline]
    pub(crate) fn watches(&self) -> Option<&Watched> {
        self.pending.as_ref()?.watched.as_deref()
    }

    pub(crate) fn watched(&self) -> &[OwnedFd] {
        self.watches().map_or(&[], |watched| &watched.descriptors)
    }

    /// Has the readiness of a descriptor told.
    pub(crate) fn watch(&mut self, fd: OwnedFd) {
        self.watched_mut().descriptors.push(fd);
        self.is_to_be_copied_anew();
    }

    /// Its descriptors are not those any more that it had, or it is somebody else's: another process's copy of it is none.
    pub(crate) fn is_to_be_copied_anew(&mut self) {
        if self.marks.has(Mark::Copied) {
            self.pending().copy_anew = true;
        }
    }

    /// When the service wants to be called.
    pub(crate) fn alarm(&self) -> Moment {
        self.watches().map_or(Moment::NEVER, |it| it.alarm)
    }

    pub(crate) fn set_alarm(&mut self, at: Moment) {
        self.watched_mut().alarm = at;
    }

    /// Whether the service is to be called again in the next turn, for what it watches.
    #[inline]
    pub(crate) fn is_again(&self) -> bool {
        self.watches().is_some_and(|it| it.again)
    }

    pub(crate) fn set_again(&mut self, again: bool) {
        self.watched_mut().again = again;
    }

    /// When the error of a socket that was given away is taken.
    pub(crate) fn lost(&self) -> Moment {
        self.watches().map_or(Moment::NEVER, |it| it.lost)
    }

    /// Whether the service is on its way to have the socket back that it gave away, to end the connection.
    pub(crate) fn is_recalled(&self) -> bool {
        self.watches().is_some_and(|it| it.recalled)
    }

    /// It is on its way to that, or it is not any more.
    pub(crate) fn recalled(&mut self, recalled: bool) {
        if self.is_recalled() != recalled {
            self.watched_mut().recalled = recalled;
        }
    }

    /// A copy of the socket for somebody else, who blocks; from here on it is neither read nor written here.
    pub(crate) fn give_away(&mut self, turn: &Turn<'_>) -> io::Result<OwnedFd> {
        if self.waiting_output() > 0 {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "output waits that the socket does not take",
            ));
        }
        if self.has_tls() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "TLS stands between it and the service",
            ));
        }
        if self.is(Is::Multipath) {
            // What has come of the bytes, and of either end, the kernel tells of TCP alone.
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it is connected over MPTCP",
            ));
        }
        let copy = self.socket.try_clone()?;
        set_nonblocking(&self.socket, false)?;
        self.set(Is::GivenAway, true);
        self.set(Is::Readable, false);
        let _ = self.watched_mut();
        self.look_at = self
            .look_at
            .min(next_look(turn.limits, turn.now, Duration::ZERO));
        Ok(copy)
    }

    /// Nobody else reads or writes any more: this process does again. What the system has given up stays as it is: why
    /// that was, only the kernel's account may tell yet.
    pub(crate) fn take_back(&mut self, turn: &Turn<'_>) -> io::Result<()> {
        if !self.is(Is::GivenAway) {
            return Ok(());
        }
        let info = self.recount(turn);
        if let Some(info) = info
            && info.journal.state == TcpState::Over
            && !is_orderly(&info)
        {
            self.find_lost(&info, turn.now);
            return Ok(());
        }
        set_nonblocking(&self.socket, true)?;
        may_die("taken-back");
        self.set(Is::GivenAway, false);
        self.watched_mut().just_back = self.is_withheld();
        let fin_sent = info.is_some_and(|info| info.journal.state.fin_sent() || is_orderly(&info));
        // What came before a FIN is to be read yet.
        self.note_fins(false, fin_sent);
        self.set(Is::Readable, true);
        self.set(Is::ReadOn, true);
        self.look_at = reap::first_look(turn.limits, turn.now, self.last_in);
        Ok(())
    }

    /// What the client sent and nobody has read, bytes.
    pub(crate) fn unread(&self) -> u64 {
        let unread = rustix::io::ioctl_fionread(self.socket.as_fd()).unwrap_or(0);
        unread + self.unopened() as u64
    }

    /// Takes over what the kernel has counted, of a socket that was given away.
    pub(crate) fn recount(&mut self, turn: &Turn<'_>) -> Option<TcpInfo> {
        let Ok(account) = self.account() else {
            // No TCP. Its end can be seen all the same. One that is gone comes first: a read would eat the error that tells how.
            let peer_fin =
                self.peer_fin() || self.polled().contains(PollFlags::HUP) || self.is_at_end();
            self.note_fins(peer_fin, self.fin_sent());
            return None;
        };
        let (count, info) = (self.count(&account, turn.now), account.info);
        let fin_sent = self.fin_sent() || info.journal.state.fin_sent();
        self.note_fins(count.peer_fin, fin_sent);
        self.last_in = count.last_in;
        // A socket that was dissolved counts from zero again.
        turn.stats.read.add(count.read.saturating_sub(self.read));
        self.read = self.read.max(count.read);
        let written = count.written.saturating_sub(self.written);
        turn.stats.written.add(written);
        self.written += written;
        Some(info)
    }

    /// Bytes read and written, and when the last one came, for the table.
    pub(crate) fn counted(&self, now: Moment) -> (u64, u64, Moment) {
        if self.is(Is::GivenAway)
            && let Ok(account) = self.account()
        {
            let count = self.count(&account, now);
            return (count.read, count.written, count.last_in);
        }
        (self.read, self.written_plain(), self.last_in)
    }

    /// How much was read and written by whoever had it, and whether a FIN was sent, by the kernel's own account.
    /// `None`: the system does not count, as of a Unix socket. Of one that was `dialled` it counts the SYN.
    #[cfg(control)]
    pub(crate) fn accounted(&self, dialled: bool, now: Moment) -> Option<Accounted> {
        // Whoever reads fast acknowledges all the time: what no two looks agree on is not known.
        let moved = |account: &Account| {
            let journal = account.info.journal;
            (journal.received, journal.acknowledged)
        };
        let mut stable = None;
        for _ in 0..MOMENTS_AT_LAST {
            let account = self.account().ok()?;
            let again = sys::tcp_info(self.socket.as_fd()).ok()?.journal;
            if moved(&account) == (again.received, again.acknowledged) {
                stable = Some(account);
                break;
            }
        }
        let mut account = stable?;
        let acknowledged = &mut account.info.journal.acknowledged;
        *acknowledged = acknowledged.saturating_sub(dialled.into());
        let count = self.count(&account, now);
        Some(Accounted {
            read: count.read,
            written: count.written,
            peer_fin: count.peer_fin,
            fin_sent: account.info.journal.state.fin_sent() || is_orderly(&account.info),
        })
    }

    /// What the kernel says of one moment, as long as there is one in which nothing comes in between.
    fn account(&self) -> io::Result<Account> {
        let fd = self.socket.as_fd();
        let moved = |info: &TcpInfo| (info.journal.received, info.journal.acknowledged);
        let mut info = sys::tcp_info(fd)?;
        for _ in 0..MOMENTS {
            let unread = self.unread();
            let queued = sys::unacknowledged(fd).unwrap_or(0);
            let before = std::mem::replace(&mut info, sys::tcp_info(fd)?);
            if moved(&before) == moved(&info) {
                return Ok(Account {
                    info,
                    unread,
                    queued,
                });
            }
        }
        Ok(Account {
            unread: self.unread(),
            queued: sys::unacknowledged(fd).unwrap_or(0),
            info,
        })
    }

    fn count(&self, account: &Account, now: Moment) -> Count {
        let info = &account.info;
        let journal = info.journal;
        // Whether a FIN came before a reset, the state does not tell any more.
        let reset = journal.state == TcpState::Over && !is_orderly(info);
        let peer_fin = self.peer_fin()
            || journal.state.peer_fin()
            || is_orderly(info)
            || reset && sys::fin_came(self.socket.as_fd()).unwrap_or(false);
        let fin_sent = journal.state.fin_sent() || is_orderly(info);
        Count {
            peer_fin,
            read: journal
                .received
                .saturating_sub(account.unread + u64::from(peer_fin)),
            written: (journal.acknowledged + account.queued).saturating_sub(u64::from(fin_sent)),
            last_in: self.last_in.max(now.before(journal.idle)),
        }
    }

    /// Looks whether the peer acknowledges, and judges: as [`Io::look`], by the kernel's account alone.
    pub(crate) fn look_from_afar(&mut self, turn: &Turn<'_>) {
        let Some(info) = self.recount(turn) else {
            return self.look_at_local(turn);
        };
        self.find_lost(&info, turn.now);
        if info.journal.state == TcpState::Over {
            self.look_at = Moment::NEVER;
            return;
        }
        let queued = sys::unacknowledged(self.socket.as_fd()).unwrap_or(0);
        let seen = Seen {
            outbox: 0,
            queued,
            info: (queued > 0).then_some(info),
            untold: false,
            taken: info.journal.acknowledged,
            moved: info.journal.acknowledged,
            half_closed: self.half_closed(),
        };
        let next = next_look(turn.limits, turn.now, info.silence);
        self.judge(&seen, turn, next);
    }

    /// An event of the socket: the system may have given it up.
    pub(crate) fn stirred(&mut self, turn: &Turn<'_>) {
        self.set(Is::Readable, false);
        self.set(Is::ReadOn, false);
        self.set(Is::Failing, false);
        match self.recount(turn) {
            Some(info) => self.find_lost(&info, turn.now),
            None => self.look_at_local(turn),
        }
    }

    /// As [`look_from_afar`](Self::look_from_afar), of a Unix socket: whether its client has gone. One that has left
    /// output unread has broken off; any other may leave its input to whoever has the socket, as a half-closed one does.
    fn look_at_local(&mut self, turn: &Turn<'_>) {
        self.look_at = Moment::NEVER;
        let polled = self.polled();
        if polled.contains(PollFlags::ERR) {
            let watched = self.watched_mut();
            watched.lost = watched.lost.min(turn.now.after(LOST));
        } else if polled.contains(PollFlags::HUP) {
            let seen = Seen {
                untold: false,
                outbox: 0,
                queued: 0,
                info: None,
                // What of its input is read, moves.
                moved: u64::MAX - self.unread(),
                taken: 0,
                half_closed: true,
            };
            self.judge(&seen, turn, Moment::NEVER);
        }
    }

    /// Whether both directions have ended.
    pub(crate) fn is_hung_up(&self) -> bool {
        self.polled().contains(PollFlags::HUP)
    }

    /// What poll(2) tells of the socket unasked.
    fn polled(&self) -> PollFlags {
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = rustix::event::Timespec::default();
        match rustix::event::poll(&mut fds, Some(&now)) {
            Ok(_) => fds[0].revents(),
            Err(_) => PollFlags::empty(),
        }
    }

    /// Judges what was `seen`, and when to look next: at `next` at the latest.
    fn judge(&mut self, seen: &Seen, turn: &Turn<'_>, next: Moment) {
        let mut progress = self.pending().progress;
        let when = (turn.now, turn.known);
        let verdict = reap::judge(turn.limits, when, seen, &mut progress);
        self.pending().progress = progress;
        match verdict {
            Verdict::Quiet => self.look_at = next,
            Verdict::Wait(until) => self.look_at = until.min(next),
            Verdict::Reap(ending) => {
                self.look_at = Moment::NEVER;
                self.overrule(ending);
            }
        }
    }

    fn find_lost(&mut self, info: &TcpInfo, now: Moment) {
        if info.journal.state == TcpState::Over && !is_orderly(info) {
            let watched = self.watched_mut();
            watched.lost = watched.lost.min(now.after(LOST));
        }
    }

    /// Whether the client is to blame for its silence now, its read deadline having come: not if it has said something
    /// that is not read.
    pub(crate) fn is_silent(&mut self, turn: &Turn<'_>) -> bool {
        self.recount(turn);
        if self.unread() > 0 {
            self.last_in = turn.now;
        }
        self.read_deadline(turn) <= turn.known
    }

    /// Why a connection is over, when whoever had the socket has gone, or the system has given it up. Closing takes
    /// away this process's copy alone.
    pub(crate) fn last_word(&mut self, reason: CloseReason, turn: &Turn<'_>) -> Ending {
        let info = self.recount(turn);
        let well = Ending {
            how: How::Release,
            ..Ending::fin(reason)
        };
        let Some(info) = info else {
            let errno = self
                .take_error()
                .filter(|_| reason == CloseReason::PeerReset);
            return Ending { errno, ..well };
        };
        if info.journal.state != TcpState::Over {
            // With the last copy gone the kernel goes on delivering, with its usual patience.
            let _ = sys::set_rto_max(self.socket.as_fd(), RTO_MAX_DEFAULT);
            return well;
        }
        let queued = sys::unacknowledged(self.socket.as_fd()).unwrap_or(0) > 0;
        let errno = self.take_error();
        let reason = match errno {
            Some(errno) => reap::reason_of(errno, queued),
            None if is_orderly(&info) => return well,
            // Whoever had the socket was told the error; what the kernel counted tells it again.
            None if info.probes > 0 || info.retransmits > 0 => {
                reap::reason_of(libc::ETIMEDOUT, queued)
            }
            None => CloseReason::PeerReset,
        };
        Ending {
            reason,
            how: How::Release,
            errno,
            info: Some(info),
        }
    }

    fn take_error(&self) -> Option<i32> {
        let error = SockRef::from(&self.socket).take_error();
        error.unwrap_or(None)?.raw_os_error()
    }

    /// Whether a socket that is no TCP has nothing more to read.
    fn is_at_end(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(
            rustix::net::recv(self.socket.as_fd(), &mut [0; 1], flags),
            Ok((0, _))
        )
    }

    /// Has the events of descriptors beside the socket told, of those that are new.
    pub(crate) fn register_watched(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let Some(watched) = self
            .pending
            .as_mut()
            .and_then(|pending| pending.watched.as_mut())
        else {
            return Ok(());
        };
        for fd in watched.descriptors.iter().skip(watched.registered) {
            let token = Token(WATCHED | token.0);
            registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
            watched.registered += 1;
        }
        Ok(())
    }

    pub(crate) fn deregister_watched(&self, registry: &Registry) {
        for fd in self.watched() {
            // One that could not be registered ended the connection.
            let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
    }
}

/// The kernel's counters of a socket, and what of their bytes is still there.
struct Account {
    info: TcpInfo,
    unread: u64,
    queued: u64,
}

/// How often the kernel is asked anew where bytes came while it was asked.
const MOMENTS: usize = 8;
#[cfg(control)]
const MOMENTS_AT_LAST: usize = 10_000;

/// What the kernel has counted of a connection.
struct Count {
    peer_fin: bool,
    read: u64,
    written: u64,
    last_in: Moment,
}

/// The kernel's account of a connection, for a process that does not know how far another has come.
#[cfg(control)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accounted {
    pub(crate) read: u64,
    pub(crate) written: u64,
    /// The peer's FIN has come, whether it was read or not.
    pub(crate) peer_fin: bool,
    pub(crate) fin_sent: bool,
}

/// Whether a connection that is over was closed by both sides: the peer has acknowledged a FIN of ours, which counts
/// as one byte more than were sent.
fn is_orderly(info: &TcpInfo) -> bool {
    let journal = info.journal;
    journal.state == TcpState::Over && journal.acknowledged > journal.sent
}

/// When to look next after a peer that has been silent for `silence`. No write is seen, so each look is as for one that
/// comes right after it.
fn next_look(limits: &Limits, now: Moment, silence: Duration) -> Moment {
    let vanished = limits
        .dead_after
        .map(|bound| (bound / 20 * 19).saturating_sub(silence).max(bound / 20));
    let eighths = [limits.write_timeout, limits.half_close_timeout];
    let eighths = eighths.into_iter().flatten().map(|limit| limit / 8);
    now.after_if(eighths.chain(vanished).min())
}

/// Sets or clears `O_NONBLOCK`, for every copy of the descriptor.
fn set_nonblocking(fd: &OwnedFd, nonblocking: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(fd)?;
    flags.set(OFlags::NONBLOCK, nonblocking);
    Ok(rustix::fs::fcntl_setfl(fd, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(sent: u64, acknowledged: u64, state: TcpState) -> TcpInfo {
        let mut info = TcpInfo::default();
        info.journal.sent = sent;
        info.journal.acknowledged = acknowledged;
        info.journal.state = state;
        info
    }

    #[test]
    fn a_connection_is_over_in_order_if_a_fin_of_ours_was_acknowledged() {
        assert!(is_orderly(&info(10, 11, TcpState::Over)));
        assert!(!is_orderly(&info(10, 10, TcpState::Over)), "a reset");
        assert!(!is_orderly(&info(10, 9, TcpState::Over)), "a reset");
        assert!(!is_orderly(&info(10, 11, TcpState::FinSent)), "not over");
    }

    #[test]
    fn the_next_look_comes_before_anything_can_be_due() {
        let now = Moment::at(Duration::from_secs(1000));
        let limits = Limits {
            read_timeout: None,
            dead_after: Some(Duration::from_secs(100)),
            write_timeout: Some(Duration::from_secs(800)),
            slowest_reader: None,
            half_close_timeout: None,
            max_age: None,
            buffer: 1,
        };
        let next = |silence| next_look(&limits, now, Duration::from_secs(silence)).since(now);
        assert_eq!(next(0), Duration::from_secs(95));
        assert_eq!(next(50), Duration::from_secs(45));
        assert_eq!(next(99), Duration::from_secs(5));
        let limits = Limits {
            dead_after: None,
            write_timeout: None,
            ..limits
        };
        assert_eq!(next_look(&limits, now, Duration::ZERO), Moment::NEVER);
    }

    #[test]
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    fn a_fin_is_known_whatever_was_read_and_whatever_came_behind_it() {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};
        for (fin, sent, read) in [
            (false, 0, 0),
            (false, 5, 0),
            (false, 5, 5),
            (true, 0, 0),
            (true, 5, 0),
            (true, 5, 5),
            (true, 5, 6),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            near.write_all(&b"hello"[..sent]).unwrap();
            if fin {
                near.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(far.peek(&mut [0]).unwrap(), sent.min(1));
            }
            let mut buffer = [0; 5];
            far.read_exact(&mut buffer[..read.min(sent)]).unwrap();
            if read > sent {
                assert_eq!(far.read(&mut [0]).unwrap(), 0);
            }
            let came = || sys::fin_came(far.as_fd()).unwrap();
            // The end may come behind the bytes.
            let hung_up = PollFlags::RDHUP;
            let mut fds = [PollFd::new(&far, hung_up)];
            if fin {
                rustix::event::poll(&mut fds, None).unwrap();
            }
            assert_eq!(came(), fin, "{sent} sent, {read} read");
            SockRef::from(&near)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(near);
            let mut fds = [PollFd::new(&far, PollFlags::empty())];
            rustix::event::poll(&mut fds, None).unwrap();
            assert!(far.take_error().unwrap().is_some());
            assert_eq!(came(), fin, "{sent} sent, {read} read, reset");
        }
    }
}
