//! What an idle connection does not have: bytes that wait, and an end under way.

use std::os::fd::OwnedFd;

use super::Far;
use crate::io::inbox::Inbox;
use crate::io::outbox::Outbox;
use crate::liveness::close::{Ending, Note};
use crate::liveness::reap::Progress;
use crate::os::sys::TcpInfo;
use crate::time::deadline::Moment;

/// What an idle connection does not have.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) outbox: Outbox,
    /// Input that the service left.
    pub(crate) kept: Inbox,
    /// Where that begins, counted from the connection's first byte.
    pub(crate) kept_at: u64,
    /// The service is to see `kept` again, though nothing new has come.
    pub(crate) offer: bool,
    /// Since when nothing is read, for want of room or because the service waits.
    pub(crate) paused: Option<Moment>,
    /// How far acknowledgements had come, and since when they stand.
    pub(crate) progress: Option<Progress>,
    /// A write failed: what it said. Bytes that came before are still read.
    pub(crate) failed: Option<i32>,
    /// The end, decided; only the service has not been told yet.
    pub(crate) verdict: Option<Ending>,
    /// The far side, on its way or there.
    pub(crate) far: Option<Box<Far>>,
    /// It came after the connection was copied for another process, which has no descriptor of it.
    #[cfg(control)]
    pub(crate) beside_late: bool,
    /// The end, once the client has everything that waits.
    pub(crate) at_last: Option<Ending>,
    /// Since when that is waited for.
    pub(crate) awaited_since: Option<Moment>,
    /// What is to be said of the end besides its reason.
    pub(crate) note: Option<Note>,
    /// The kernel's view of a silent peer, noted when a deadline of ours ended it.
    pub(crate) silent: Option<TcpInfo>,
    /// Draining: how many more bytes are served.
    pub(crate) quota: Option<u64>,
    /// All is acknowledged; the client's FIN is awaited until then.
    pub(crate) linger: Option<Moment>,
    /// What the service wants to be told of beside the socket.
    pub(crate) beside: Option<Box<Beside>>,
}

/// What a service wants to be told of beside the socket; and what of a socket that was given away.
#[derive(Debug)]
pub(crate) struct Beside {
    /// Descriptors whose readiness is told.
    pub(crate) watched: Vec<OwnedFd>,
    /// So many of them are registered.
    pub(crate) registered: usize,
    /// When the service wants to be called.
    pub(crate) alarm: Moment,
    /// A watched descriptor may be read further: the service is called again in the next turn.
    pub(crate) again: bool,
    /// The system has given up a socket that was given away: whoever has it is left alone with the error until then.
    pub(crate) lost: Moment,
    /// The connection is to end, and the service ends whoever has the socket first.
    pub(crate) recalled: bool,
}

impl Default for Beside {
    fn default() -> Self {
        Self {
            watched: Vec::new(),
            registered: 0,
            alarm: Moment::NEVER,
            again: false,
            lost: Moment::NEVER,
            recalled: false,
        }
    }
}

impl Pending {
    pub(crate) fn is_vacant(&self) -> bool {
        self.outbox.is_empty()
            && self.kept.is_empty()
            && self.paused.is_none()
            && self.progress.is_none()
            && self.failed.is_none()
            && self.verdict.is_none()
            && self.far.is_none()
            && self.at_last.is_none()
            && self.note.is_none()
            && self.silent.is_none()
            && self.quota.is_none()
            && self.linger.is_none()
            && self.beside.is_none()
    }
}
