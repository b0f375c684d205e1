//! The far side of a connection: a socket that was dialled for it, on its way or there.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mio::Interest;
use mio::event::Event;
use rustix::net::Shutdown;
use socket2::SockRef;

use super::progress::Other;
use super::{Io, Terms, Turn};
use crate::address::endpoint::{Endpoint, Peer};
use crate::dial::Dialing;
use crate::dial::upstream::Upstream;
use crate::io::Is;
use crate::io::tls::Shaking;
#[cfg(control)]
use crate::liveness::close::CloseReason;
use crate::liveness::sockopt::INTEREST;
use crate::os::sys;
use crate::time::deadline::Moment;

/// A far side.
#[derive(Debug)]
pub(crate) enum Far {
    /// To be dialled at that time.
    Wanted {
        upstream: Upstream,
        at: Moment,
        /// What is said there before a handshake of TLS.
        preface: Box<[u8]>,
    },
    /// On its way.
    Dialing {
        upstream: Upstream,
        dialing: Dialing,
        /// An event said that there is something to read.
        readable: bool,
        preface: Box<[u8]>,
    },
    /// Connected, and its handshake of TLS is under way.
    Shaking {
        upstream: Upstream,
        shaking: Box<Shaking>,
    },
    /// It was being dialled by the process that had the connection before.
    Interrupted,
    /// There from the beginning: one end of a pair, whose events are not told yet.
    Made(OwnedFd),
    Up(Up),
}

/// Connected.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) io: Io,
    pub(crate) terms: Arc<Terms>,
}

impl Up {
    #[inline]
    pub(crate) fn split(&mut self, turn: &Turn<'_>) -> (&mut Io, Turn<'_>) {
        let turn = self.terms.turn(turn.now, turn.known);
        (&mut self.io, turn)
    }
}

impl Far {
    /// When something is to be done for it, though no event comes.
    pub(crate) fn due(&self) -> Moment {
        match self {
            Self::Wanted { at, .. } => *at,
            Self::Interrupted | Self::Made(_) => Moment::at_start(),
            Self::Dialing { dialing, .. } => dialing.due(),
            Self::Shaking { shaking, .. } => shaking.until(),
            Self::Up(up) => up.io.linger().unwrap_or(up.io.look_at),
        }
    }
}

impl Io {
    #[inline]
    pub(crate) fn far(&self) -> Option<&Far> {
        self.pending.as_ref()?.far.as_deref()
    }

    /// The far side's socket, if it is connected.
    #[inline]
    pub(crate) fn far_io(&self) -> Option<&Self> {
        match self.far()? {
            Far::Up(up) => Some(&up.io),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn far_mut(&mut self) -> Option<&mut Far> {
        self.pending.as_mut()?.far.as_deref_mut()
    }

    pub(crate) fn set_far(&mut self, far: Far) {
        self.pending().far = Some(Box::new(far));
    }

    pub(crate) fn take_far(&mut self) -> Option<Far> {
        Some(*self.pending.as_mut()?.far.take()?)
    }

    /// Notes what an event of the far side says. Answers whether that is still being dialled.
    pub(crate) fn note_far(&mut self, event: &Event) -> bool {
        match self.far_mut() {
            Some(Far::Up(up)) => up.io.note(event),
            Some(Far::Dialing { readable, .. }) => {
                *readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                return true;
            }
            Some(Far::Shaking { shaking, .. }) => {
                shaking.io().note(event);
                return true;
            }
            _ => {}
        }
        false
    }

    /// What was dialled for it is there: `socket`, to `server`.
    pub(crate) fn reached(&self, (server, socket): (&Endpoint, OwnedFd), now: Moment) -> Self {
        let readable = matches!(self.far(), Some(Far::Dialing { readable: true, .. }));
        let peer = server.tcp().map_or(Peer::Unix(None), Peer::from);
        let mut io = Self::new(socket, self.id(), peer, self.listener, now);
        // What came with the connection, be it a FIN, made its edge before.
        io.set(Is::Readable, readable);
        io.set(Is::ReadOn, readable);
        // Registered so when it was dialled.
        io.registered = INTEREST.add(Interest::WRITABLE);
        io
    }

    /// The far side is connected.
    pub(crate) fn connected(&mut self, io: Self, terms: &Arc<Terms>) {
        let terms = Arc::clone(terms);
        self.set_far(Far::Up(Up { io, terms }));
        self.is_to_be_copied_anew();
    }

    /// The end of a pair that is to be the far side is that from now on, if there is one.
    pub(crate) fn attach(&mut self, terms: &Arc<Terms>, now: Moment) -> Option<&mut Up> {
        if !matches!(self.far(), Some(Far::Made(_))) {
            return None;
        }
        let Some(Far::Made(socket)) = self.take_far() else {
            return None;
        };
        let io = Self::new(socket, self.id(), Peer::Unix(None), self.listener, now);
        let terms = Arc::clone(terms);
        self.set_far(Far::Up(Up { io, terms }));
        self.is_to_be_copied_anew();
        self.far_up()
    }

    /// Whether the far side is one end of a pair, whose other end a program has.
    pub(crate) fn has_pair(&self) -> bool {
        matches!(self.far(), Some(Far::Up(up)) if up.terms.of_pairs)
    }

    /// Nothing goes to the far side any more, and nothing that comes from there is heard.
    pub(crate) fn hang_up_far(&mut self) {
        match self.take_far() {
            None => return,
            // Another process may have a copy, for which closing this one would be no end.
            Some(Far::Up(up)) => drop(rustix::net::shutdown(&up.io.socket, Shutdown::Both)),
            Some(_) => {}
        }
        self.is_to_be_copied_anew();
    }

    /// Goes on from where another process was: at a deadline, what a program says until it has ended comes before the end.
    #[cfg(control)]
    pub(crate) fn restore_pair(&mut self) {
        if self.has_pair() {
            let at_deadline = [CloseReason::ReadTimeout, CloseReason::MaxAge].map(Some);
            let is_told = self.far_io().is_some_and(Self::is_told);
            self.put_owed(at_deadline.contains(&self.finishing()) && !is_told);
        }
    }

    /// How the far side stands, for this one.
    pub(crate) fn far_as_other(&self) -> Option<Other> {
        let Some(Far::Up(up)) = self.far() else {
            return None;
        };
        let other = up.io.as_other();
        // What a program leaves unread is its own affair, and nothing to be waited for.
        Some(Other {
            waits: other.waits && !up.terms.of_pairs,
            ..other
        })
    }

    /// Whether its far side is connected with TLS.
    #[inline]
    pub(crate) fn has_far_tls(&self) -> bool {
        self.far_io().is_some_and(Self::has_tls)
    }

    /// Whether the far side is on its way.
    pub(crate) fn is_dialing(&self) -> bool {
        !matches!(self.far(), None | Some(Far::Up(_)))
    }

    /// The far side, if it is connected.
    #[inline]
    pub(crate) fn far_up(&mut self) -> Option<&mut Up> {
        match self.far_mut()? {
            Far::Up(up) => Some(up),
            _ => None,
        }
    }

    /// Whether the far side has everything that was for it, FIN included.
    pub(crate) fn far_has_all(&self) -> bool {
        // Of a program nobody knows whether its client has heard enough.
        let Some(far) = self.far_io().filter(|_| !self.has_pair()) else {
            return false;
        };
        let queued = sys::unacknowledged(far.descriptor());
        far.fin_sent() && far.waiting_output() == 0 && queued.is_ok_and(|queued| queued == 0)
    }

    /// The server that the far side is connected to.
    pub(crate) fn upstream(&self) -> Option<Endpoint> {
        let far = self.far_io()?;
        match far.peer() {
            Peer::Tcp(address) => Some(Endpoint::Tcp(address)),
            // Of those only the kernel remembers the path, after a takeover, too.
            Peer::Unix(_) => {
                let address = SockRef::from(&far.socket).peer_addr();
                address.ok().and_then(|address| Endpoint::of(&address))
            }
        }
    }

    /// Reading goes on, if there is room for what comes.
    pub(crate) fn resume_reading_if_room(&mut self, turn: &Turn<'_>) {
        if !self.is(Is::Paused) && self.input_room(turn) > 0 {
            self.resume_reading(turn.now);
        }
    }

    /// Whether it is time to dial.
    #[inline]
    pub(crate) fn wants_to_dial(&self, now: Moment) -> bool {
        match self.far() {
            None | Some(Far::Up(_)) => false,
            Some(_) => self.far_due() <= now,
        }
    }

    /// When something is to be done for the far side, though no event comes.
    #[inline]
    pub(crate) fn far_due(&self) -> Moment {
        match self.far() {
            None => Moment::NEVER,
            Some(far) => far.due(),
        }
    }
}
