//! The end of a connection: why it ended, how its socket is closed, and the one line that says so.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::SockRef;

use crate::address::endpoint::{Endpoint, Peer};
use crate::os::sys::TcpInfo;

/// Why a connection ended. A closed set: the log key `reason`, the metric label, the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer said it was done (FIN), and everything was delivered to it; or what came yet it had not waited for.
    PeerClosed,
    /// The peer reset the connection: `ECONNRESET`, `EPIPE`.
    PeerReset,
    /// The peer vanished while idle: keepalive probes went unanswered.
    KeepaliveDead,
    /// The peer vanished with output waiting: data or window probes went unanswered.
    Unacknowledged,
    /// The peer vanished, and the network said why: `EHOSTUNREACH`, `ENETUNREACH`, `ECONNREFUSED`.
    Unreachable,
    /// The client sent nothing for the read timeout.
    ReadTimeout,
    /// Output waited, and for the write timeout no byte of it was acknowledged.
    WriteStall,
    /// Half-closed, and nothing moved for the half-close timeout.
    HalfCloseTimeout,
    /// Over a limit on the number of connections: never served.
    Limit,
    /// The service asked for it, or panicked.
    Service,
    /// What it was to be connected with could not be reached, or was lost.
    UpstreamFailed,
    /// The server is stopping.
    Drain,
    /// An operator ended it.
    Killed,
    /// Another process has it now.
    HandedOff,
    /// Another error of the system, named by `errno`.
    IoError,
    // The numbers cross takeovers: what was thought of later stands behind.
    /// A rule keeps its address out: never served.
    Denied,
    /// It was connected for as long as one may be.
    MaxAge,
    /// Who it is was to be said in a header of the PROXY protocol, and was not, or by somebody who may not say that: never
    /// served.
    BadProxyHeader,
    /// The server that had it crashed; counted by the next one, which a keeper has started.
    Crash,
    /// There was no TLS session: never served.
    TlsHandshake,
    /// As `PeerClosed`, of the client or of its upstream, without the goodbye of TLS: whether that was all nobody knows.
    TlsTruncated,
    /// The client, or its upstream, gave the TLS session up, or did in it what it may not.
    TlsAlert,
    /// The keys of a TLS session were used up, and its version has no new ones.
    TlsKeysUsedUp,
}

impl CloseReason {
    /// Every reason, in the order of the variants.
    pub const ALL: [Self; 23] = [
        Self::PeerClosed,
        Self::PeerReset,
        Self::KeepaliveDead,
        Self::Unacknowledged,
        Self::Unreachable,
        Self::ReadTimeout,
        Self::WriteStall,
        Self::HalfCloseTimeout,
        Self::Limit,
        Self::Service,
        Self::UpstreamFailed,
        Self::Drain,
        Self::Killed,
        Self::HandedOff,
        Self::IoError,
        Self::Denied,
        Self::MaxAge,
        Self::BadProxyHeader,
        Self::Crash,
        Self::TlsHandshake,
        Self::TlsTruncated,
        Self::TlsAlert,
        Self::TlsKeysUsedUp,
    ];

    /// The word in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer-closed",
            Self::PeerReset => "peer-reset",
            Self::KeepaliveDead => "keepalive-dead",
            Self::Unacknowledged => "unacknowledged",
            Self::Unreachable => "unreachable",
            Self::ReadTimeout => "read-timeout",
            Self::WriteStall => "write-stall",
            Self::HalfCloseTimeout => "half-close-timeout",
            Self::Limit => "limit",
            Self::Service => "service",
            Self::UpstreamFailed => "upstream-failed",
            Self::Drain => "drain",
            Self::Killed => "killed",
            Self::HandedOff => "handed-off",
            Self::IoError => "io-error",
            Self::Denied => "denied",
            Self::MaxAge => "max-age",
            Self::BadProxyHeader => "bad-proxy-header",
            Self::Crash => "crash",
            Self::TlsHandshake => "tls-handshake",
            Self::TlsTruncated => "tls-truncated",
            Self::TlsAlert => "tls-alert",
            Self::TlsKeysUsedUp => "tls-keys-used-up",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A decision to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: CloseReason,
    pub(crate) how: How,
    /// The error the system gave, if it was one.
    pub(crate) errno: Option<i32>,
    /// What the kernel knew of the peer, where that was the reason or bears on it.
    pub(crate) info: Option<TcpInfo>,
}

/// What is to be said of an end besides its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Which limit it was.
    Limit(&'static str),
    /// What came when everything had been said and delivered: who closes at once resets when something comes yet, such
    /// as the goodbye of TLS.
    Late(&'static str),
    /// What was wrong with the header of the PROXY protocol.
    Header(&'static str),
    /// What was wrong with TLS: of the client's alert the name.
    Tls(&'static str),
    /// The same, of its far side's.
    Upstream(&'static str),
    /// It said nothing: somebody looked whether the port is open, as health checks do.
    Probe,
    /// It is a proxy's own, whose header had so many bytes: a probe, unless it says something behind that.
    Own(u64),
}

impl Note {
    pub(crate) fn limit(self) -> Option<&'static str> {
        match self {
            Self::Limit(which) => Some(which),
            _ => None,
        }
    }

    pub(crate) fn late(self) -> Option<&'static str> {
        match self {
            Self::Late(what) => Some(what),
            _ => None,
        }
    }

    pub(crate) fn tls(self) -> Option<&'static str> {
        match self {
            Self::Tls(what) => Some(what),
            _ => None,
        }
    }

    pub(crate) fn upstream(self) -> Option<&'static str> {
        match self {
            Self::Upstream(what) => Some(what),
            _ => None,
        }
    }

    pub(crate) fn header(self) -> Option<&'static str> {
        match self {
            Self::Header(what) => Some(what),
            _ => None,
        }
    }
}

/// How the socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// The output, then FIN, then wait until all of it is acknowledged.
    Fin,
    /// At once, nothing more is sent but a reset, nothing is left behind: the peer is presumed dead.
    Reset,
    /// The descriptor alone, at once: the kernel has given the connection up, or goes on delivering what it holds.
    Release,
}

impl Ending {
    pub(crate) fn fin(reason: CloseReason) -> Self {
        Self {
            reason,
            how: How::Fin,
            errno: None,
            info: None,
        }
    }

    pub(crate) fn reset(reason: CloseReason) -> Self {
        Self {
            how: How::Reset,
            ..Self::fin(reason)
        }
    }
}

/// The life of a connection, told when it is over.
#[derive(Debug)]
pub(crate) struct Obituary<'a> {
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    /// The proxy that says so.
    pub(crate) via: Option<Peer>,
    /// What the client has dialled, as that one says.
    pub(crate) dialled: Option<SocketAddr>,
    pub(crate) listener: &'a Endpoint,
    /// The server that its far side was connected to.
    pub(crate) upstream: Option<Endpoint>,
    pub(crate) ending: &'a Ending,
    pub(crate) note: Option<Note>,
    /// The name that the client asked for by TLS, and whose certificate it has shown.
    pub(crate) named: (Option<&'a str>, Option<&'a str>),
    pub(crate) age: Duration,
    pub(crate) read: u64,
    pub(crate) written: u64,
}

impl Obituary<'_> {
    /// The one line an ended connection leaves in the log; key names are a contract.
    pub(crate) fn log(&self, level: log::Level) {
        if !log::log_enabled!(level) {
            return;
        }
        let Ending {
            reason,
            errno,
            info,
            ..
        } = *self.ending;
        let errno = errno.map(|errno| Errno(errno).to_string());
        let upstream = self.upstream.as_ref().map(Endpoint::to_string);
        let via = self.via.as_ref().map(Peer::to_string);
        let dialled = self.dialled.map(|dialled| dialled.to_string());
        let level = match self.note {
            Some(Note::Probe) => level.max(log::Level::Debug),
            _ => level,
        };
        let verdict = !matches!(
            reason,
            CloseReason::ReadTimeout | CloseReason::HalfCloseTimeout | CloseReason::WriteStall
        );
        let probes = info.map(|info| info.probes);
        let retransmits = info.map(|info| info.retransmits);
        let silent = info.filter(|_| !verdict).map(|info| millis(info.silence));
        log::log!(
            level,
            id = self.id,
            peer:% = self.peer,
            via = via.as_deref(),
            dialled = dialled.as_deref(),
            listener:% = self.listener,
            upstream = upstream.as_deref(),
            reason = reason.as_str(),
            limit = self.note.and_then(Note::limit),
            header = self.note.and_then(Note::header),
            tls = self.note.and_then(Note::tls),
            upstream_tls = self.note.and_then(Note::upstream),
            sni = self.named.0,
            client = self.named.1,
            late = self.note.and_then(Note::late),
            age = millis(self.age),
            read = self.read,
            written = self.written,
            errno = errno.as_deref(),
            probes,
            retransmits,
            flows = info.and_then(|info| info.flows),
            silent_for = silent;
            "closed"
        );
    }
}

/// Seconds, to the millisecond.
fn millis(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

/// An error number that shows as its name.
#[derive(Clone, Copy)]
pub(crate) struct Errno(pub(crate) i32);

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::ETIMEDOUT => "ETIMEDOUT",
            libc::ECONNRESET => "ECONNRESET",
            libc::EPIPE => "EPIPE",
            libc::EHOSTUNREACH => "EHOSTUNREACH",
            libc::ENETUNREACH => "ENETUNREACH",
            libc::ECONNREFUSED => "ECONNREFUSED",
            libc::ECONNABORTED => "ECONNABORTED",
            libc::EHOSTDOWN => "EHOSTDOWN",
            libc::ENETDOWN => "ENETDOWN",
            libc::ENOPROTOOPT => "ENOPROTOOPT",
            libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
            libc::EADDRINUSE => "EADDRINUSE",
            libc::EAFNOSUPPORT => "EAFNOSUPPORT",
            libc::EACCES => "EACCES",
            libc::EPERM => "EPERM",
            libc::EMFILE => "EMFILE",
            libc::ENFILE => "ENFILE",
            libc::ENOBUFS => "ENOBUFS",
            libc::ENOMEM => "ENOMEM",
            libc::EPROTO => "EPROTO",
            libc::ENOTCONN => "ENOTCONN",
            libc::EINVAL => "EINVAL",
            libc::EBADF => "EBADF",
            other => return write!(f, "{other}"),
        };
        f.write_str(name)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Ends a connection of which a copy lives in another process, where closing it would not: with FIN, or with a reset.
pub(crate) fn end_shared(socket: &OwnedFd, ending: &Ending) {
    // To dissolve the association resets the peer (tcp_disconnect in the kernel's net/ipv4/tcp.c); a Unix socket has
    // no such thing.
    let reset = ending.how == How::Reset && rustix::net::connect_unspec(socket).is_ok();
    if !reset {
        // It may have ended by itself.
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    }
}

/// Closes with a reset: no orphan in the kernel, no `TIME_WAIT` (`SO_LINGER` with time zero, socket(7)).
pub(crate) fn reset(socket: OwnedFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    drop(socket);
    Ok(())
}
