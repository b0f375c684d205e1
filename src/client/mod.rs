//! The client that comes back: the loop over links that dial, are connected, are lost, wait, and dial again.
//!
//! A link outlives its connections. What it says and what it hears is the owner's ([`Caller`]); finding out that a server
//! is gone is the same as for a server's clients (`io/`, `liveness/reap.rs`), so each loss has one exact reason.

mod dialing;
mod engine;
mod link;
mod timer;

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Token};

use crate::client::engine::{
    EVENTS, Engine, Entry, LinkState, PATIENCE, READ_BUDGET, State, TIMER, WAKER, state_of,
};
use crate::client::link::arm;
use crate::dial::Dial;
use crate::error::Error;
use crate::io::Is;
use crate::io::Turn;
use crate::io::marks::Mark;
use crate::liveness::close::{CloseReason, Ending};
use crate::liveness::keepalive::Keepalive;
use crate::time::deadline::{Moment, slot};

pub use engine::{End, LinkId, Wake};
pub use link::{Caller, Link, Links, Next};

/// How much of what a link may read in a turn a read counts as that brings nothing.
const EMPTY_READ: usize = 16 * 1024;

/// What one read may bring.
const READ_BUFFER: usize = 64 * 1024;

/// A loop over links to one server.
///
/// ```
/// use standfast::{client::{Caller, Client, End, Link, LinkId, Links, Next}, dial::{Dial, DialError}};
/// use std::time::Instant;
///
/// /// Says hello, and prints the answer.
/// struct Hello;
///
/// impl Caller for Hello {
///     fn connected(&mut self, link: &mut Link<'_>) {
///         link.send(b"hello\n");
///     }
///
///     fn input(&mut self, link: &mut Link<'_>, bytes: &[u8]) {
///         print!("{}", String::from_utf8_lossy(bytes));
///         link.leave();
///     }
///
///     fn ended(&mut self, _: LinkId, end: &End) -> Next {
///         eprintln!("{}", end.reason);
///         Next::Drop
///     }
///
///     fn failed(&mut self, _: LinkId, error: &DialError) -> Next {
///         eprintln!("{error}");
///         Next::Retry
///     }
///
///     fn turn(&mut self, links: &mut Links<'_>) -> Option<Instant> {
///         if links.opened() == 0 {
///             links.open();
///         } else if links.live() == 0 {
///             links.end();
///         }
///         None
///     }
/// }
///
/// # fn main() -> Result<(), standfast::Error> {
/// # let listen = standfast::Listen::new("127.0.0.1:0".parse().unwrap(), standfast::services::Echo);
/// # let server = standfast::Server::bind(standfast::Config { listen: vec![listen], ..Default::default() })?;
/// # let (address, handle) = (server.addresses()[0].to_string(), server.handle());
/// # let serving = std::thread::spawn(move || server.run());
/// let client = Client::new(Dial::new(address.parse().unwrap()), Hello)?;
/// client.run()?;
/// # handle.drain();
/// # serving.join().unwrap()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client<C> {
    caller: C,
    engine: Engine,
    buffer: Box<[u8]>,
}

impl<C: Caller> Client<C> {
    /// Checks what `dial` asks. Nothing is connected before [`Links::open`].
    ///
    /// # Errors
    /// Settings that contradict each other or that the system refuses, or no event queue to be had.
    pub fn new(dial: Dial, caller: C) -> Result<Self, Error> {
        let engine = Engine::new(dial)?;
        Ok(Self {
            caller,
            engine,
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
        })
    }

    /// Keepalive, with the system's values where those are kept. `None`: off.
    #[must_use]
    pub fn keepalive(&self) -> Option<Keepalive> {
        self.engine.options.keepalive()
    }

    /// The bound within which a vanished server is found. `None`: nothing finds it.
    #[must_use]
    pub fn dead_after(&self) -> Option<Duration> {
        self.engine.options.detection.dead_after
    }

    /// For other threads, to have [`Caller::turn`] called.
    #[must_use]
    pub fn wake(&self) -> Wake {
        Wake::new(&self.engine.waker)
    }

    /// Runs until [`Links::end`]; gives the caller back.
    ///
    /// # Errors
    /// What the event queue itself said; a link's errors never come here.
    pub fn run(mut self) -> Result<C, Error> {
        let mut events = Events::with_capacity(EVENTS);
        self.engine.now = self.engine.clock.now();
        self.engine.horizon.excuse(self.engine.now);
        let mut next = self.ask();
        while !self.engine.over {
            let waited = self.engine.wait(&mut events, next);
            let pause = waited.map_err(|source| Error::Start {
                what: "wait for events",
                source,
            })?;
            if let Some(pause) = pause {
                self.caller.stood_still(pause.length());
            }
            self.dispatch(&events);
            self.look_after();
            self.expire();
            next = self.ask();
            self.engine.forget();
        }
        self.engine.let_go(&mut self.buffer);
        Ok(self.caller)
    }

    /// The owner's share of the turn.
    fn ask(&mut self) -> Moment {
        let engine = &mut self.engine;
        let next = self.caller.turn(&mut Links { engine });
        next.map_or(Moment::NEVER, |at| self.engine.clock.moment(at))
    }

    fn dispatch(&mut self, events: &Events) {
        for event in events {
            match event.token() {
                WAKER => {
                    // Also if nobody waits for it any more: it is fresh now.
                    self.engine.resolver.hear(self.engine.now);
                    for key in std::mem::take(&mut self.engine.resolving) {
                        self.dial(key);
                    }
                }
                TIMER => self.engine.armed = Moment::NEVER,
                Token(key) => self.ready(key, event),
            }
        }
    }

    #[inline]
    fn ready(&mut self, key: usize, event: &Event) {
        let engine = &mut self.engine;
        match state_of(&mut engine.entries, key) {
            Some(State::Up(up)) => {
                up.io.note(event);
                if event.is_writable() && up.io.waiting_output() > 0 {
                    // What TLS has sealed, and the kernel would not take yet.
                    let turn = engine.terms.turn(engine.now, engine.horizon.known());
                    up.flush(&turn);
                }
                let writable = up.short && event.is_writable() && !up.is_aborted();
                if writable {
                    up.short = false;
                    self.call(key, |caller, link| caller.writable(link));
                }
                self.advance(key);
            }
            Some(State::Dialing(dialing)) if dialing.is_resolved() => self.dial(key),
            Some(State::Shaking(shaking)) => {
                shaking.io().note(event);
                self.shake_hands(key);
            }
            _ => {}
        }
    }

    /// What was left over in the turn before.
    fn look_after(&mut self) {
        for key in std::mem::take(&mut self.engine.later) {
            match state_of(&mut self.engine.entries, key) {
                Some(State::Up(up)) => {
                    up.io.marks.put(Mark::Leftover, false);
                    self.advance(key);
                }
                Some(State::Dialing(_)) => self.dial(key),
                _ => {}
            }
        }
    }

    fn expire(&mut self) {
        let known = self.engine.horizon.known();
        while let Some(slot) = self.engine.deadlines.pop_due(known) {
            let key = slot as usize;
            let Some(entry) = self.engine.entries.get_mut(key) else {
                continue;
            };
            match &entry.state {
                State::Dialing(dialing) => {
                    if !dialing.is_resolved() {
                        self.engine.resolving.retain(|waiting| *waiting != key);
                    }
                    self.dial(key);
                }
                // Not here: an attempt that fails at once, to be followed by another at once, would be due again.
                State::Waiting => self.engine.start(key),
                State::Up(_) => self.due(key),
                State::Shaking(_) => self.late(key),
                State::Gone => {}
            }
        }
    }

    /// Calls the owner with a connected link.
    #[inline]
    fn call(&mut self, key: usize, what: impl FnOnce(&mut C, &mut Link<'_>)) {
        if let Some(mut link) = self.engine.link(key) {
            what(&mut self.caller, &mut link);
        }
    }

    /// Reads what has come, and sees what follows.
    #[inline]
    fn advance(&mut self, key: usize) {
        let mut budget = READ_BUDGET;
        loop {
            let engine = &mut self.engine;
            let Some(State::Up(up)) = state_of(&mut engine.entries, key) else {
                return;
            };
            if !up.io.is(Is::Readable) || up.io.is(Is::Paused) || up.is_aborted() {
                break;
            }
            if budget == 0 {
                if !up.io.marks.put(Mark::Leftover, true) {
                    engine.later.push(key);
                }
                break;
            }
            let turn = engine.terms.turn(engine.now, engine.horizon.known());
            let count = up.io.take_in(&mut self.buffer, &turn);
            if count == 0 {
                // Records may come that have nothing in them.
                budget = budget.saturating_sub(EMPTY_READ);
            } else {
                budget = budget.saturating_sub(count);
                up.silences = 0;
                let buffer = std::mem::take(&mut self.buffer);
                self.call(key, |caller, link| caller.input(link, &buffer[..count]));
                self.buffer = buffer;
            }
        }
        self.conclude(key);
    }

    /// What follows from what was read and written: nothing, or the end.
    fn conclude(&mut self, key: usize) {
        self.hear_out(key);
        let engine = &mut self.engine;
        let Some(Entry {
            link,
            state: State::Up(up),
        }) = engine.entries.get_mut(key)
        else {
            return;
        };
        let aborted = up.is_aborted();
        let io = &mut up.io;
        if io.is(Is::Paused) && io.is_given_up() && !io.holds_input() {
            // Nothing is to be read first, so the verdict need not wait until reading goes on.
            io.input_over();
        }
        let mut turn = engine.terms.turn(engine.now, engine.horizon.known());
        // What came before the server vanished is heard first, once reading goes on.
        if let Some(verdict) = io.verdict()
            && (aborted || !io.is(Is::Paused) || !io.holds_input())
        {
            return self.over(key, &verdict);
        }
        if io.peer_fin() && !up.goes_on {
            io.finish_for(CloseReason::PeerClosed);
        }
        if let Some(reason) = io.finishing() {
            turn.limits = &engine.leaving;
            if let Some(ending) = io.deliver_and_fin(&turn) {
                return self.over(key, &ending);
            }
            io.look_by(turn.now.after(PATIENCE / 8));
            if link.is_some() && reason != CloseReason::Service {
                return self.leave_behind(key, reason);
            }
        }
        io.tidy(&turn);
        arm(&mut engine.deadlines, key, &up.io, &turn);
    }

    /// The server's FIN, which is told to the owner once, unless it is the end already.
    #[inline]
    fn hear_out(&mut self, key: usize) {
        let Some(Entry {
            link: Some(_),
            state: State::Up(up),
        }) = self.engine.entries.get(key)
        else {
            return;
        };
        let io = &up.io;
        if !io.peer_fin() || up.goes_on || !io.is_open() || io.is_truncated() {
            return;
        }
        let mut goes_on = false;
        self.call(key, |caller, link| goes_on = caller.half_closed(link));
        if let Some(link) = self.engine.link(key) {
            link.up.goes_on = goes_on;
        }
    }

    /// The time for a handshake may be over, unless something has just come.
    fn late(&mut self, key: usize) {
        if let Some(State::Shaking(shaking)) = state_of(&mut self.engine.entries, key) {
            shaking.io().set(Is::Readable, true);
            self.shake_hands(key);
        }
    }

    /// A deadline of a connection may have come.
    fn due(&mut self, key: usize) {
        let engine = &mut self.engine;
        let Some(State::Up(up)) = state_of(&mut engine.entries, key) else {
            return;
        };
        let mut turn = engine.terms.turn(engine.now, engine.horizon.known());
        if up.io.finishing().is_some() {
            turn.limits = &engine.leaving;
        }
        if up.io.linger().is_some_and(|until| until <= turn.known) {
            let ending = up.io.ending();
            return self.over(key, &ending);
        }
        if up.io.look_at <= turn.known {
            up.io.look(&turn, None);
        }
        if up.io.read_deadline(&turn) <= turn.known {
            // A byte that came since the turn began saves the link.
            up.io.set(Is::Readable, true);
            self.advance(key);
            self.silent(key);
        }
        self.conclude(key);
    }

    /// The server is silent, unless it has just sent something.
    fn silent(&mut self, key: usize) {
        let wait = self.engine.dial.read_timeout.unwrap_or_default();
        let Some(mut link) = self.engine.link(key) else {
            return;
        };
        let (up, turn) = (&mut *link.up, &link.turn);
        if up.io.read_deadline(turn) > turn.known {
            return;
        }
        up.silences = up.silences.saturating_add(1);
        let silence = wait.saturating_mul(up.silences);
        // Should it wait on: from now. The moment is none of a byte.
        up.io.renew(turn.now);
        if self.caller.silent(&mut link, silence) {
            link.up.io.finish_for(CloseReason::ReadTimeout);
        }
    }

    /// A connection is over.
    fn over(&mut self, key: usize, ending: &Ending) {
        let engine = &mut self.engine;
        let entry = &mut engine.entries[key];
        let State::Up(up) = std::mem::replace(&mut entry.state, State::Waiting) else {
            return;
        };
        engine.deadlines.remove(slot(key));
        let Some(id) = entry.link else {
            engine.free(key);
            return up.shut(ending);
        };
        let turn = engine.terms.turn(engine.now, engine.horizon.known());
        let end = up.end(ending, &turn);
        up.shut(ending);
        self.tell(key, id, &end);
    }

    /// The link goes on without this connection, of which something is still to be acknowledged.
    fn leave_behind(&mut self, key: usize, reason: CloseReason) {
        let engine = &mut self.engine;
        let Some(Entry {
            link,
            state: State::Up(up),
        }) = engine.entries.get_mut(key)
        else {
            return;
        };
        let Some(id) = link.take() else { return };
        let turn = engine.terms.turn(engine.now, engine.horizon.known());
        let end = up.end(&Ending::fin(reason), &turn);
        up.io.set(Is::Paused, false);
        let turn = Turn {
            limits: &engine.leaving,
            ..turn
        };
        arm(&mut engine.deadlines, key, &up.io, &turn);
        let key = engine.entries.insert(Entry {
            link: Some(id),
            state: State::Waiting,
        });
        engine.links[id].key = Some(key);
        self.tell(key, id, &end);
    }

    fn tell(&mut self, key: usize, id: LinkId, end: &End) {
        log::debug!(id, reason:% = end.reason, server:% = end.server; "link ended");
        let next = self.caller.ended(id, end);
        let stable_after = self.engine.dial.stable_after;
        let retries = &mut self.engine.links[id].retries;
        retries.connected_for(end.age, stable_after);
        self.go_on(key, id, next);
    }

    /// What the owner wants to become of a link that is not connected.
    fn go_on(&mut self, key: usize, id: LinkId, next: Next) {
        let engine = &mut self.engine;
        let LinkState { retries, .. } = &mut engine.links[id];
        match next {
            Next::RetryNow => engine.start(key),
            Next::Retry => match retries.next(engine.dial.max_retries) {
                Some(attempt) => {
                    let random = RandomState::new().hash_one(attempt);
                    let wait = engine.dial.backoff.wait(attempt, random);
                    engine.deadlines.set(slot(key), engine.now.after(wait));
                    self.caller.retrying(id, attempt, wait);
                }
                None => {
                    let made = retries.made();
                    engine.free(key);
                    self.caller.gave_up(id, made);
                }
            },
            Next::Drop => engine.free(key),
        }
    }
}
