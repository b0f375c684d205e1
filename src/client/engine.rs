//! What a client's loop works on: the links, their connections, and who is due.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};
use rustix::net::RecvFlags;
use slab::Slab;

use crate::address::endpoint::Endpoint;
use crate::client::timer::Timer;
use crate::dial::backoff::Retries;
use crate::dial::resolve::{Family, Resolver};
use crate::dial::{Dial, Dialing, TlsFault};
use crate::error::Error;
use crate::io::readiness;
use crate::io::stats::Stats;
use crate::io::tls::Shaking;
use crate::io::{Io, Terms, Turn};
use crate::liveness::close::{self, CloseReason, Ending, Errno, How, Note};
use crate::liveness::keepalive::RTO_MAX_DEFAULT;
use crate::liveness::reap::{Limits, SLOWEST_READER};
use crate::liveness::sockopt::SocketOptions;
use crate::memory::Memory;
use crate::os::sys;
use crate::time::deadline::{Clock, Deadlines, Moment, slot};
use crate::time::horizon::{Horizon, Pause, Wait};

/// Which link: 0, 1, 2, in the order in which they were opened. The number of one that is gone is used anew.
pub type LinkId = usize;

/// Events taken in one turn.
pub(crate) const EVENTS: usize = 1024;

/// How many bytes one link may read in a turn before the others get theirs.
pub(crate) const READ_BUDGET: usize = 256 * 1024;

/// How long a server that has closed may take to acknowledge what it was sent before, with nothing of it moving.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const WAKER: Token = Token(usize::MAX);
pub(crate) const TIMER: Token = Token(usize::MAX - 1);

/// Calls [`Caller::turn`](crate::client::Caller::turn) soon, from any thread.
#[derive(Clone, Debug)]
pub struct Wake(Arc<Waker>);

impl Wake {
    pub(crate) fn new(waker: &Arc<Waker>) -> Self {
        Self(Arc::clone(waker))
    }

    /// Does so.
    pub fn wake(&self) {
        if let Err(error) = self.0.wake() {
            log::debug!(error:%; "cannot wake the client");
        }
    }
}

/// Everything of a client but its owner.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) poll: Poll,
    pub(crate) waker: Arc<Waker>,
    pub(crate) timer: Timer,
    /// When the timer rings.
    pub(crate) armed: Moment,
    pub(crate) clock: Clock,
    pub(crate) now: Moment,
    /// What deadlines are judged by.
    pub(crate) horizon: Horizon,
    pub(crate) dial: Dial,
    pub(crate) options: SocketOptions,
    /// What holds for all connections,
    pub(crate) terms: Terms,
    /// but for those whose link has gone on without them.
    pub(crate) leaving: Limits,
    pub(crate) resolver: Resolver,
    /// By token.
    pub(crate) entries: Slab<Entry>,
    /// By [`LinkId`].
    pub(crate) links: Vec<LinkState>,
    /// Numbers of links that are gone.
    pub(crate) unused: Vec<LinkId>,
    /// Links that were ever opened.
    pub(crate) opened: usize,
    /// Links that are not gone.
    pub(crate) live: usize,
    pub(crate) deadlines: Deadlines,
    /// Waiting for the name to be resolved.
    pub(crate) resolving: Vec<usize>,
    /// To look after in the next turn: edges come once.
    pub(crate) later: Vec<usize>,
    /// Keys to be used anew from the next turn on: an event of this one may still name them.
    pub(crate) gone: Vec<usize>,
    pub(crate) over: bool,
}

/// A link: where its present connection stands, if it is not gone.
#[derive(Debug)]
pub(crate) struct LinkState {
    pub(crate) key: Option<usize>,
    pub(crate) retries: Retries,
}

/// A connection of a link, before, while and after it is one.
#[derive(Debug)]
pub(crate) struct Entry {
    /// `None`: its link has gone on, and only what was sent is still to be acknowledged.
    pub(crate) link: Option<LinkId>,
    pub(crate) state: State,
}

/// How it stands, if there is one of that number.
#[inline]
pub(crate) fn state_of(entries: &mut Slab<Entry>, key: usize) -> Option<&mut State> {
    entries.get_mut(key).map(|entry| &mut entry.state)
}

#[derive(Debug)]
pub(crate) enum State {
    Dialing(Dialing),
    /// Connected, but for TLS.
    Shaking(Box<Shaking>),
    Up(Connected),
    /// Until the next attempt.
    Waiting,
    Gone,
}

impl Engine {
    /// Checks what `dial` asks, and makes a loop without a link.
    pub(crate) fn new(dial: Dial) -> Result<Self, Error> {
        dial.check()?;
        let options = SocketOptions::resolve(dial.keepalive, dial.dead_after, dial.user_timeout)?;
        let start = |source| Error::Start {
            what: "make an event queue",
            source,
        };
        let poll = Poll::new().map_err(start)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(start)?);
        let timer = Timer::new(poll.registry(), TIMER).map_err(start)?;
        // An address to come from says which of the server's can be reached.
        let family = match dial.sources.first() {
            Some(source) if source.is_ipv4() => Family::V4,
            Some(_) => Family::V6,
            None => dial.family,
        };
        let resolver = Resolver::new(dial.address.clone(), family, Arc::clone(&waker));
        let clock = Clock::start();
        let limits = Limits {
            read_timeout: dial.read_timeout,
            dead_after: options.bound(),
            write_timeout: None,
            slowest_reader: None,
            half_close_timeout: None,
            max_age: None,
            // Nothing is queued here.
            buffer: usize::MAX,
        };
        let leaving = Limits {
            write_timeout: Some(PATIENCE),
            slowest_reader: Some(SLOWEST_READER),
            half_close_timeout: Some(PATIENCE),
            ..limits
        };
        Ok(Self {
            poll,
            waker,
            timer,
            armed: Moment::NEVER,
            clock,
            now: clock.now(),
            horizon: Horizon::new(clock.now()),
            dial,
            options,
            terms: Terms {
                limits,
                stats: Stats::default(),
                // Nothing is queued here.
                memory: Memory::new(usize::MAX),
                of_pairs: false,
            },
            leaving,
            resolver,
            entries: Slab::new(),
            links: Vec::new(),
            unused: Vec::new(),
            opened: 0,
            live: 0,
            deadlines: Deadlines::default(),
            resolving: Vec::new(),
            later: Vec::new(),
            gone: Vec::new(),
            over: false,
        })
    }

    /// A new link, which begins to connect in the next turn.
    pub(crate) fn open(&mut self) -> LinkId {
        let id = self.unused.pop().unwrap_or(self.links.len());
        let key = self.entries.insert(Entry {
            link: Some(id),
            state: State::Waiting,
        });
        let link = LinkState {
            key: Some(key),
            retries: Retries::default(),
        };
        match self.links.get_mut(id) {
            Some(slot) => *slot = link,
            None => self.links.push(link),
        }
        self.opened += 1;
        self.live += 1;
        self.start(key);
        id
    }

    /// Begins to connect in the next turn, which comes at once.
    pub(crate) fn start(&mut self, key: usize) {
        self.deadlines.remove(slot(key));
        self.entries[key].state = State::Dialing(Dialing::new(&self.dial, self.now));
        self.later.push(key);
    }

    /// Waits for events. Answers whether the loop stood still for long, then or before.
    pub(crate) fn wait(
        &mut self,
        events: &mut Events,
        wanted: Moment,
    ) -> io::Result<Option<Pause>> {
        let mut until = self.deadlines.next();
        let began = self.clock.now();
        if let Some(turn) = self.horizon.long_turn(began) {
            for (_, entry) in &mut self.entries {
                if let State::Up(up) = &mut entry.state {
                    up.io.blur(turn);
                }
            }
        }
        if !self.later.is_empty() {
            until = began;
        } else if wanted > began && wanted < until.after(Duration::from_millis(1)) {
            // Epoll wakes up to a millisecond after `until`: that may be too late for what is wanted next.
            let rings = self.armed == wanted || self.timer.arm(wanted.since(began));
            if rings {
                self.armed = wanted;
            } else {
                until = wanted;
            }
        } else {
            until = until.min(wanted);
        }
        let told = readiness::wait(&mut self.poll, events, began, until)?;
        self.now = self.clock.now();
        let pause = self.horizon.waited(Wait {
            began,
            until: until.min(self.armed),
            ended: self.now,
            told,
            most: EVENTS,
            // An attempt may have several.
            descriptors: 4 * self.entries.len() + 2,
        });
        // Of one that nothing was due in, nobody knows the length.
        Ok(pause.filter(|pause| !pause.at_most))
    }

    /// An entry is used no more; its link, if it has one, is gone.
    pub(crate) fn free(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        entry.state = State::Gone;
        if let Some(id) = entry.link.take() {
            self.links[id].key = None;
            self.unused.push(id);
            self.live -= 1;
        }
        self.deadlines.remove(slot(key));
        self.gone.push(key);
    }

    pub(crate) fn forget(&mut self) {
        for key in self.gone.drain(..) {
            self.entries.try_remove(key);
        }
    }

    /// The end: what the kernel still holds of the output it goes on delivering, with its usual patience. That it does
    /// not if a socket is closed with unread input, so what has come is read.
    pub(crate) fn let_go(&mut self, buffer: &mut [u8]) {
        let turn = self.terms.turn(self.now, self.horizon.known());
        for (_, entry) in &mut self.entries {
            let State::Up(up) = &mut entry.state else {
                continue;
            };
            if up.io.has_tls() {
                up.io.has_said_goodbye(&turn);
            }
            let socket = up.io.descriptor();
            if sys::unacknowledged(socket).unwrap_or(0) > 0 {
                let _ = sys::set_rto_max(socket, RTO_MAX_DEFAULT);
                // Not for ever from a server that goes on sending.
                let mut budget = rustix::io::ioctl_fionread(socket).unwrap_or(0);
                while let Ok((count @ 1.., _)) =
                    rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())
                    && budget > 0
                {
                    budget = budget.saturating_sub(count as u64);
                }
            }
        }
    }
}

/// A connected socket, and how its link stands.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) io: Io,
    pub(crate) server: Endpoint,
    /// A send took less than it was given.
    pub(crate) short: bool,
    /// How many read timeouts the server has been silent for.
    pub(crate) silences: u32,
    /// The server's FIN was told to the owner, who goes on to send.
    pub(crate) goes_on: bool,
}

impl Connected {
    pub(crate) fn new(io: Io, server: Endpoint) -> Self {
        Self {
            io,
            server,
            short: false,
            silences: 0,
            goes_on: false,
        }
    }

    /// Writes what waits, and the FIN that was to follow it.
    pub(crate) fn flush(&mut self, turn: &Turn<'_>) {
        self.io.flush(turn);
        if self.io.fin_wanted() && !self.io.fin_sent() && self.io.waiting_output() == 0 {
            self.io.send_fin(turn);
        }
    }

    /// The owner wants no more of it.
    #[inline]
    pub(crate) fn is_aborted(&self) -> bool {
        let verdict = self.io.verdict();
        verdict.is_some_and(|verdict| verdict.reason == CloseReason::Service)
    }

    /// Closes the socket as `ending` says.
    pub(crate) fn shut(self, ending: &Ending) {
        if ending.how == How::Reset
            && let Err(error) = close::reset(self.io.socket)
        {
            log::debug!(error:%; "cannot reset a connection");
        }
    }

    /// How it ended, told now.
    pub(crate) fn end(&self, ending: &Ending, turn: &Turn<'_>) -> End {
        let fd = self.io.descriptor();
        let heard = turn.now.since(self.io.last_in);
        let silence = ending
            .info
            .or_else(|| sys::tcp_info(fd).ok())
            .map_or(heard, |info| info.silence);
        let remark = match self.io.remark() {
            Some(Note::Tls(what)) => Some(what),
            _ => None,
        };
        let noticed = match (ending.reason, turn.limits.read_timeout) {
            (CloseReason::ReadTimeout, Some(wait)) => wait.saturating_mul(self.silences),
            _ => silence,
        };
        End {
            reason: self.io.told_apart(ending.reason),
            tls: remark,
            error: ending.errno.map(io::Error::from_raw_os_error),
            noticed,
            age: turn.now.since(self.io.opened()),
            read: self.io.read,
            written: self.io.written_plain(),
            unacknowledged: self.io.unacknowledged(),
            server: self.server.clone(),
        }
    }
}

/// How a connected link ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct End {
    /// Why. `service`: it was left.
    pub reason: CloseReason,
    /// What of TLS was the reason: the server's alert, such as `CertificateRequired`, or what it did.
    pub tls: Option<&'static str>,
    /// What the system said, if that was the reason.
    pub error: Option<io::Error>,
    /// How long the server had been silent when that was known.
    pub noticed: Duration,
    /// How long it was connected.
    pub age: Duration,
    /// Bytes that came.
    pub read: u64,
    /// Bytes that the kernel took.
    pub written: u64,
    /// Bytes of those that were not known to have arrived, our FIN included.
    pub unacknowledged: u64,
    /// Whom it was connected to.
    pub server: Endpoint,
}

impl End {
    /// Whether the server gave the TLS session up for the certificate that it was shown, or was not: of TLS 1.3 that comes
    /// once the link is connected. To try again is of no use.
    #[must_use]
    pub fn refuses_certificate(&self) -> bool {
        self.reason == CloseReason::TlsAlert && self.tls.is_some_and(TlsFault::is_of_ours)
    }

    /// The name of the error, as in the log: `ETIMEDOUT`.
    #[must_use]
    pub fn errno(&self) -> Option<String> {
        let number = self.error.as_ref()?.raw_os_error()?;
        Some(Errno(number).to_string())
    }
}
