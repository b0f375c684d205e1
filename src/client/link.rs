//! What the owner of a client writes ([`Caller`]) and works with: one connected link, or all of them.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::address::endpoint::Endpoint;
use crate::client::engine::{Connected, End, Engine, Entry, LinkId, State};
use crate::dial::DialError;
use crate::inspect::TlsInfo;
use crate::io::Is;
use crate::io::marks::Mark;
use crate::io::{Io, Turn};
use crate::liveness::close::{CloseReason, Ending};
use crate::time::deadline::{Clock, Deadlines, slot};

/// What to do on the links of a client. Called on the thread that runs it, one call at a time.
pub trait Caller {
    /// A link is connected.
    fn connected(&mut self, link: &mut Link<'_>);

    /// Bytes came from the server.
    fn input(&mut self, link: &mut Link<'_>, bytes: &[u8]);

    /// The kernel takes output again, after [`Link::send`] had taken less than it was given.
    fn writable(&mut self, link: &mut Link<'_>) {
        let _ = link;
    }

    /// Nothing came for `silence`, a multiple of [`Dial::read_timeout`](crate::dial::Dial::read_timeout). Answers whether the
    /// link is to end for it, with reason `read-timeout`; else it waits on.
    fn silent(&mut self, link: &mut Link<'_>, silence: Duration) -> bool {
        let _ = (link, silence);
        true
    }

    /// The server's FIN: it sends nothing more. Answers whether the link goes on to send, until the owner
    /// [leaves](Link::leave) it or it is lost; else it ends with `peer-closed`.
    fn half_closed(&mut self, link: &mut Link<'_>) -> bool {
        let _ = link;
        false
    }

    /// A connected link is over: lost, ended by the server's FIN (`peer-closed`), or left (`service`).
    fn ended(&mut self, id: LinkId, end: &End) -> Next;

    /// An attempt to connect failed.
    fn failed(&mut self, id: LinkId, error: &DialError) -> Next;

    /// After [`Next::Retry`]: retry number `attempt` begins in `wait`.
    fn retrying(&mut self, id: LinkId, attempt: u32, wait: Duration) {
        let _ = (id, attempt, wait);
    }

    /// After [`Next::Retry`]: all of [`Dial::max_retries`](crate::dial::Dial::max_retries) have been made. The link is gone.
    fn gave_up(&mut self, id: LinkId, retries: u32) {
        let _ = (id, retries);
    }

    /// The process stood still for so long, a second at least: it was stopped, frozen or starved, or this caller took its
    /// time. Nobody's silence is measured by it.
    fn stood_still(&mut self, length: Duration) {
        let _ = length;
    }

    /// Once a turn, after everything else, and once before the first. Answers when it wants to be called again at the
    /// latest; on Linux that is met to the microsecond.
    fn turn(&mut self, links: &mut Links<'_>) -> Option<Instant>;
}

/// What becomes of a link that is not connected any more, or never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next {
    /// Connect again, by the backoff.
    Retry,
    /// Connect again at once.
    RetryNow,
    /// It is gone.
    Drop,
}

/// One connected link.
#[derive(Debug)]
pub struct Link<'a> {
    pub(crate) id: LinkId,
    pub(crate) key: usize,
    pub(crate) up: &'a mut Connected,
    pub(crate) turn: Turn<'a>,
    pub(crate) clock: &'a Clock,
    pub(crate) deadlines: &'a mut Deadlines,
    pub(crate) later: &'a mut Vec<usize>,
}

impl Link<'_> {
    /// Which one.
    #[must_use]
    pub fn id(&self) -> LinkId {
        self.id
    }

    /// Whom it is connected to.
    #[must_use]
    pub fn server(&self) -> &Endpoint {
        &self.up.server
    }

    /// Where it comes from.
    ///
    /// # Errors
    /// What getsockname(2) says; a Unix socket has no such address.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let address = SockRef::from(&self.up.io.socket).local_addr()?;
        address
            .as_socket()
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The TLS session that it has, if it has one.
    #[must_use]
    pub fn tls(&self) -> Option<TlsInfo> {
        self.up.io.tls_info()
    }

    /// When this turn began.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.instant(self.turn.now)
    }

    /// What the server sent before then has been heard: what its silence is to be measured by, for the process may have
    /// stood still since.
    #[must_use]
    pub fn known(&self) -> Instant {
        self.clock.instant(self.turn.known)
    }

    /// What time it is: long after [`now`](Self::now) where the turn took long, or the process stood still in it. When
    /// something moved is to be noted by this one, if that is to be held against [`known`](Self::known).
    #[must_use]
    pub fn clock(&self) -> Instant {
        self.clock.instant(self.clock.now())
    }

    /// How long it has been connected.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.turn.now.since(self.up.io.opened())
    }

    /// Sends what the kernel takes of `bytes` at once, and answers how much that is. When it was less than all,
    /// [`Caller::writable`] follows, or the end.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let watch = self.up.io.look_at;
        let count = self.up.io.send(bytes, &self.turn);
        if count < bytes.len() {
            self.up.short = true;
            if self.up.io.has_failed() {
                self.come_back();
            }
        }
        if self.up.io.look_at != watch {
            self.arm();
        }
        count
    }

    /// Sends FIN, with TLS behind a goodbye: nothing more is sent, but what the server sends is still read.
    pub fn half_close(&mut self) {
        if !self.up.io.fin_sent() {
            self.up.io.half_close(&self.turn);
            self.arm();
        }
    }

    /// Ends it well: FIN, and what the server still sends is read, until it has acknowledged everything, for which it has
    /// as long as any, and sent its own FIN, for which it has one second more. Then [`Caller::ended`] with reason
    /// `service`.
    pub fn leave(&mut self) {
        self.up.io.finish_for(CloseReason::Service);
        self.resume();
    }

    /// Ends it at once, with a reset. Then [`Caller::ended`] with reason `service`.
    pub fn abort(&mut self) {
        // A verdict that waits for what came before is not waited for any more.
        let ending = Ending::reset(CloseReason::Service);
        self.up.io.cut_off(ending);
        self.come_back();
    }

    /// Reads no more until [`resume`](Self::resume); the read deadline stands still.
    pub fn pause(&mut self) {
        self.up.io.pause(self.turn.now);
    }

    /// Reads again.
    pub fn resume(&mut self) {
        self.up.io.set(Is::Paused, false);
        self.up.io.resume_reading(self.turn.now);
        self.come_back();
    }

    /// Bytes that the server is not known to have received (`SIOCOUTQ`); a FIN counts as one. With TLS it is no more than so
    /// many, for what is sealed is longer.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        self.up.io.unacknowledged()
    }

    /// Bytes that have come and were not read yet (`FIONREAD`); with TLS as they are sealed.
    #[must_use]
    pub fn unread(&self) -> u64 {
        self.up.io.unread()
    }

    /// The engine looks after it in the next turn, which comes at once.
    fn come_back(&mut self) {
        if !self.up.io.marks.put(Mark::Leftover, true) {
            self.later.push(self.key);
        }
    }

    fn arm(&mut self) {
        arm(self.deadlines, self.key, &self.up.io, &self.turn);
    }
}

impl Engine {
    /// The link that `key` is the connection of.
    #[inline]
    pub(crate) fn link(&mut self, key: usize) -> Option<Link<'_>> {
        match self.entries.get_mut(key) {
            Some(Entry {
                link: Some(id),
                state: State::Up(up),
            }) => Some(Link {
                id: *id,
                key,
                up,
                turn: self.terms.turn(self.now, self.horizon.known()),
                clock: &self.clock,
                deadlines: &mut self.deadlines,
                later: &mut self.later,
            }),
            _ => None,
        }
    }
}

/// Has the engine look after a connection when its earliest deadline comes; a later one is found then.
pub(crate) fn arm(deadlines: &mut Deadlines, key: usize, io: &Io, turn: &Turn<'_>) {
    let (due, key) = (io.due(turn), slot(key));
    if due < deadlines.get(key) {
        deadlines.set(key, due);
    }
}

/// All links of a client.
#[derive(Debug)]
pub struct Links<'a> {
    pub(crate) engine: &'a mut Engine,
}

impl Links<'_> {
    /// Begins to connect one more.
    pub fn open(&mut self) -> LinkId {
        self.engine.open()
    }

    /// That link, if it is connected.
    pub fn link(&mut self, id: LinkId) -> Option<Link<'_>> {
        let key = self.engine.links.get(id)?.key?;
        self.engine.link(key)
    }

    /// How many have been opened so far.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.engine.opened
    }

    /// How many of them are not gone: connected, connecting, or waiting to.
    #[must_use]
    pub fn live(&self) -> usize {
        self.engine.live
    }

    /// When this turn began.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.engine.clock.instant(self.engine.now)
    }

    /// What the servers sent before then has been heard: what their silence is to be measured by, for the process may
    /// have stood still since.
    #[must_use]
    pub fn known(&self) -> Instant {
        self.engine.clock.instant(self.engine.horizon.known())
    }

    /// The client ends with this turn. What the kernel holds of the links' output it goes on delivering.
    pub fn end(&mut self) {
        self.engine.over = true;
    }
}
