//! A client at the door: it is connected, and no service has heard of it yet.
//!
//! Where a proxy is to say who the client is, that is waited for; and a client that came too soon after others of its
//! address waits for its turn. `connection/door.rs` says what comes of it, `worker/entering.rs` lets it in.

use std::net::SocketAddr;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::SockRef;

use super::Io;
use crate::address::endpoint::{PackedPeer, Peer};
use crate::address::introduction::Introduction;
use crate::io::Is;
use crate::time::deadline::Moment;

/// How often a socket is read for what nobody wants.
const MOST_DISCARDED: usize = 16;

/// What a client waits for that no service has heard of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// The header of the PROXY protocol that says who it is: until then.
    Header(Moment),
    /// Its turn among those of its address, which comes then.
    Turn(Moment),
    /// The handshake of TLS: until then.
    Handshake(Moment),
    /// Nothing, but this process's service: that of a server that crashed had not come to an end with its greeting.
    Unheard,
    /// The same: that one's had, and this one's is to begin anew.
    Anew,
}

impl Door {
    pub(crate) fn due(self) -> Moment {
        match self {
            Self::Header(until) | Self::Turn(until) | Self::Handshake(until) => until,
            Self::Unheard | Self::Anew => Moment::at_start(),
        }
    }

    /// Whether it came to this process with a crash.
    pub(crate) fn is_after_crash(self) -> bool {
        matches!(self, Self::Unheard | Self::Anew)
    }
}

/// What has come in front of everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Nothing,
    /// The end, and not a byte before it.
    End,
    Words(Introduction),
}

/// What has come of a handshake.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shaken {
    /// More is to come.
    Waits,
    Done,
    /// The end, and not a byte before it.
    End,
    /// There is no session, for that reason.
    Failed(&'static str),
}

impl Io {
    #[inline]
    pub(crate) fn door(&self) -> Option<Door> {
        self.pending.as_ref().and_then(|pending| pending.door)
    }

    /// It is not read from here on, nor is its silence judged, until it [comes in](Self::come_in).
    pub(crate) fn wait_at(&mut self, door: Door, now: Moment) {
        self.pending().door = Some(door);
        self.stop_reading(now);
    }

    /// It waits for nothing more: its service hears of it.
    pub(crate) fn come_in(&mut self, now: Moment) {
        let mut is_new = true;
        if let Some(pending) = &mut self.pending {
            is_new = !pending.door.take().is_some_and(Door::is_after_crash);
            pending.stopped = None;
        }
        if is_new {
            self.last_in = now;
        }
        // An edge may have told of what waits behind the header.
        self.set(Is::Readable, true);
    }

    /// Takes what has come out of the socket, which nobody reads: else it were closed with a reset, which may overtake what
    /// was said last. Who sends on and on has that.
    pub(crate) fn discard_unread(&mut self, buffer: &mut [u8]) {
        for _ in 0..MOST_DISCARDED {
            match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((1.., _)) => {}
                _ => return,
            }
        }
    }

    /// It is `client`, who has dialled that, as `via` says, unless that speaks for itself.
    pub(crate) fn introduce(&mut self, client: Peer, via: Peer, dialled: Option<SocketAddr>) {
        if client != via {
            self.peer = PackedPeer::introduced(client, via, dialled);
        }
    }

    /// Another process knew who it is, and what it has dialled: where that is not who is at the other end of the socket, that
    /// one had said so.
    pub(crate) fn find_via(&mut self, dialled: Option<SocketAddr>) {
        let socket = SockRef::from(&self.socket).peer_addr();
        let via = match socket.map(|address| (address.as_socket(), address.is_unix())) {
            Ok((Some(address), _)) => Peer::from(address),
            Ok((None, true)) => Peer::Unix(None),
            // It has ended meanwhile.
            _ => return,
        };
        let is_local = matches!((via, self.peer()), (Peer::Unix(_), Peer::Unix(_)));
        if !is_local {
            self.introduce(self.peer(), via, dialled);
        }
    }

    /// Looks at what has come, which stays in the kernel: of a header that is not whole nothing is to be carried along,
    /// and what stands behind it is there for whoever reads the socket next.
    pub(crate) fn listen_at_door(&mut self, buffer: &mut [u8]) -> Heard {
        let flags = RecvFlags::PEEK;
        match rustix::net::recv(&self.socket, &mut *buffer, flags) {
            Ok((0, _)) => return Heard::End,
            Ok((count, _)) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                return Heard::Words(Introduction::of(bytes));
            }
            Err(Errno::AGAIN) if self.is(Is::Failing) => self.input_over(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => self.fail(error.raw_os_error()),
        }
        Heard::Nothing
    }
}
