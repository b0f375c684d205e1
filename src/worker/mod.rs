//! The event loop: one turn after another, over connections that belong to this worker alone.

mod asked;
mod buffer;
mod dialing;
mod dials;
pub(crate) mod drain;
mod entering;
#[cfg_attr(not(control), path = "not_kept.rs")]
mod kept;
mod leftovers;
mod listings;
mod paused;
mod placing;
mod prompt;
mod room;
mod round;
mod short;
#[cfg_attr(not(control), path = "no_takeover.rs")]
mod takeover;
mod unconfigured;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mio::{Events, Poll, Token};
use slab::Slab;

use crate::connection::{Connection, Serving, Step};
use crate::handle::{Mail, Shared};
use crate::handoff::share::Giving;
use crate::io::Is;
use crate::io::WATCHED;
use crate::io::marks::Mark;
use crate::io::readiness;
use crate::listen::accept::Acceptor;
use crate::listen::origin::Origin;
use crate::liveness::close::{CloseReason, Ending, Obituary};
use crate::liveness::herd::Herd;
use crate::memory::Pressure;
use crate::service::RoundStage;
use crate::time::deadline::{Clock, Deadlines, Moment, slot};
use crate::time::horizon::{Horizon, Pause, Wait};
use crate::vault::Vault;
use crate::worker::buffer::ReadBuffer;
use crate::worker::dials::Dials;
use crate::worker::drain::{Drain, DrainTimes, Drained};
use crate::worker::leftovers::Leftovers;
use crate::worker::listings::Listings;
use crate::worker::paused::Paused;
use crate::worker::round::Round;
use crate::worker::short::Short;
use crate::worker::unconfigured::Unconfigured;

/// Events taken in one turn.
const EVENTS: usize = 1024;

/// Descriptors of a connection that events may come from: its own, its far side's, and what stands beside them.
const DESCRIPTORS: usize = 4;

/// How long in a turn those are served whose bytes wait already, before the others have theirs. Thousands of them may have
/// something to read at once, as after a takeover, and each may take a fraction of a millisecond.
const SLICE: Duration = Duration::from_millis(2);

/// The token of a worker's waker. Connections have their slab key, listeners count down from below.
pub(crate) const WAKER: Token = Token(usize::MAX);

/// In the token of a connection's far side, beside the connection's key.
const FAR: usize = 1 << (usize::BITS - 2);

/// The token of listener `at`.
pub(crate) fn listener_token(at: usize) -> Token {
    Token(WAKER.0 - 1 - at)
}

/// One thread's share of the server.
#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    poll: Poll,
    clock: Clock,
    now: Moment,
    /// What deadlines are judged by.
    horizon: Horizon,
    connections: Slab<Connection>,
    deadlines: Deadlines,
    /// Connections that stopped at their read budget: they get no second event.
    leftovers: Leftovers,
    dials: Dials,
    /// Workers that were sent connections, and not woken yet.
    receivers: Vec<usize>,
    /// Connections to close at the end of the turn: their keys are not used anew before.
    closing: Vec<(usize, Ending)>,
    /// Connections whose deadline has come in this turn.
    due: Vec<u32>,
    /// Newcomers whose small memory was made sure of.
    vouched: usize,
    /// Connections that are read once there is memory.
    short: Short,
    /// Worker 0 looks after the kernel's memory.
    pressure: Pressure,
    paused: Paused,
    origins: Vec<Origin>,
    /// Worker 0's listeners, until the drain.
    acceptor: Option<Acceptor>,
    mail: Receiver<Mail>,
    listings: Listings,
    round: Round,
    shared: Arc<Shared>,
    herd: Herd,
    /// A takeover is under way, and this is our share in it.
    giving: Option<Giving>,
    unconfigured: Unconfigured,
    /// A keeper has what is in there.
    vault: Option<Vault>,
    buffer: ReadBuffer,
    drain: Drain,
}

impl Drop for Worker {
    /// However the accepting worker ends, nobody waits for more from it.
    fn drop(&mut self) {
        if self.index == 0 {
            self.shared.accepting.closed.store(true, Ordering::Release);
            self.shared.wake_all();
        }
    }
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        poll: Poll,
        clock: Clock,
        origins: Vec<Origin>,
        mail: Receiver<Mail>,
        shared: Arc<Shared>,
        drain_times: DrainTimes,
    ) -> Self {
        Self {
            index,
            poll,
            clock,
            now: clock.now(),
            horizon: Horizon::new(clock.now()),
            connections: Slab::new(),
            deadlines: Deadlines::default(),
            leftovers: Leftovers::default(),
            dials: Dials::new(Arc::clone(&shared.workers[index].waker)),
            receivers: Vec::new(),
            closing: Vec::new(),
            due: Vec::new(),
            vouched: 0,
            short: Short::new(shared.memory.clone()),
            pressure: Pressure::new(),
            paused: Paused::default(),
            origins,
            acceptor: None,
            mail,
            listings: Listings::default(),
            round: Round::default(),
            shared,
            herd: Herd::default(),
            giving: None,
            unconfigured: Unconfigured::none(),
            vault: None,
            buffer: ReadBuffer::new(),
            drain: Drain::by(drain_times),
        }
    }

    pub(crate) fn poll(&self) -> &Poll {
        &self.poll
    }

    pub(crate) fn accept_with(&mut self, acceptor: Acceptor) {
        self.acceptor = Some(acceptor);
    }

    /// Runs until the server ends.
    ///
    /// # Errors
    /// What the event queue itself said; a connection's errors never come here.
    pub(crate) fn run(mut self) -> io::Result<Drained> {
        let mut events = Events::with_capacity(EVENTS);
        self.shared.workers[self.index].runs_on_this_thread();
        self.horizon.excuse(self.clock.now());
        while !self.is_done() {
            self.turn(&mut events)?;
        }
        self.tell(RoundStage::Gone);
        Ok(self.drain.ended())
    }

    /// One turn. I/O before deadlines: a byte that came in this turn saves the connection.
    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        self.wait(events)?;
        self.buffer.begin_turn();
        self.dispatch(events);
        self.accept();
        self.flush_vault();
        self.serve_leftovers();
        self.serve_short();
        if self.index == 0 {
            self.pressure.look(self.now);
        }
        self.dial();
        self.prompt();
        self.list();
        self.hand_over();
        self.expire();
        self.obey();
        self.close();
        Ok(())
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let mut until = self.deadlines.next();
        if let Some(acceptor) = &self.acceptor {
            until = until.min(acceptor.next());
        }
        until = until.min(self.drain.due()).min(self.unconfigured.due());
        if let Some(vault) = &self.vault {
            until = until.min(vault.due());
        }
        let pressing = self.giving.as_ref().is_some_and(Giving::is_pressing);
        until = until.min(self.shared.workers[self.index].prompted.get());
        let began = self.clock.now();
        if let Some(turn) = self.horizon.long_turn(began) {
            for (_, connection) in &mut self.connections {
                connection.io.blur(turn);
            }
        }
        until = until.min(self.short.due(began));
        let busy = !self.leftovers.is_empty() || !self.dials.is_empty();
        let round = self.round.is_under_way() && !self.is_holding();
        if pressing || busy || round || self.short.is_pressing() {
            until = began;
        }
        let told = readiness::wait(&mut self.poll, events, began, until)?;
        self.now = self.clock.now();
        let pause = self.horizon.waited(Wait {
            began,
            until,
            ended: self.now,
            told,
            most: EVENTS,
            descriptors: self.connections.len() * DESCRIPTORS + self.origins.len() + 1,
        });
        if let Some(pause) = pause {
            self.stood_still(pause);
        }
        Ok(())
    }

    /// Says once for all workers that the process stood still.
    fn stood_still(&self, pause: Pause) {
        let seen = self.shared.stood_still.lock();
        let mut seen = seen.unwrap_or_else(PoisonError::into_inner);
        if *seen <= pause.from {
            pause.log();
        }
        *seen = pause.to.max(*seen);
    }

    fn dispatch(&mut self, events: &Events) {
        let first_listener = listener_token(self.origins.len()).0;
        for event in events {
            self.freeze_in_time();
            match event.token() {
                WAKER => self.woken(),
                Token(token) if token > first_listener => {
                    if let Some(acceptor) = &mut self.acceptor {
                        acceptor.ready(WAKER.0 - 1 - token);
                    }
                }
                Token(token) if token & WATCHED != 0 => self.watched(token & !WATCHED),
                Token(token) if token & FAR != 0 => {
                    let key = token & !FAR;
                    let mut dialing = false;
                    self.ready(key, |connection| dialing = connection.io.note_far(event));
                    if dialing {
                        self.dials.push(key);
                    }
                }
                Token(key) => {
                    log::trace!(key, event:? = event; "ready");
                    self.ready(key, |connection| connection.io.note(event));
                }
            }
        }
    }

    /// An event came of a connection or of its far side.
    #[inline]
    fn ready(&mut self, key: usize, note: impl FnOnce(&mut Connection)) {
        let (clock, share) = (self.clock, self.buffer.share());
        self.step(key, |connection, serving| {
            note(connection);
            // Whose bytes wait already goes behind the others once the turn has taken long.
            if connection.io.holds_bytes() && clock.now().since(serving.turn.now) >= SLICE {
                return Step::PutOff;
            }
            serving.buffer = &mut std::mem::take(&mut serving.buffer)[..share];
            serving.far_buffer = &mut std::mem::take(&mut serving.far_buffer)[..share];
            connection.advance(serving)
        });
    }

    /// A descriptor that a connection's service watches may be read.
    fn watched(&mut self, key: usize) {
        log::trace!(key; "watched descriptor ready");
        self.step(key, Connection::watched);
    }

    fn serve_leftovers(&mut self) {
        if self.leftovers.is_empty() {
            return;
        }
        let until = self.clock.now().after(SLICE);
        // Those that are not done stand on the list anew, behind the others.
        for _ in 0..self.leftovers.len() {
            let Some(key) = self.leftovers.next() else {
                break;
            };
            self.freeze_in_time();
            self.step(key, |connection, serving| {
                connection.io.marks.put(Mark::Leftover, false);
                connection.io.marks.put(Mark::PutOff, false);
                connection.advance(serving)
            });
            if self.clock.now() >= until {
                break;
            }
        }
    }

    fn expire(&mut self) {
        // Each once a turn: none that is due again at once can hold up the others.
        let mut due_now = std::mem::take(&mut self.due);
        let known = self.horizon.known();
        while let Some(key) = self.deadlines.pop_due(known) {
            due_now.push(key);
        }
        for key in due_now.drain(..) {
            let key = key as usize;
            let Some(connection) = self.connections.get(key) else {
                continue;
            };
            let origin = &self.origins[usize::from(connection.io.listener)];
            let turn = origin.turn(self.now);
            let due = connection.io.due(&turn);
            if due > known || connection.io.marks.has(Mark::PutOff) {
                // Renewed since, or perhaps by what is not read yet.
                self.deadlines.set(slot(key), due);
            } else {
                self.step(key, |connection, serving| {
                    serving.turn.known = known;
                    connection.expire(serving)
                });
            }
        }
        self.due = due_now;
    }

    /// Does `what` with a connection, and what follows: closing, leftovers, interest, deadline; and sends what was withheld
    /// until then.
    #[inline]
    fn step(&mut self, key: usize, what: impl FnOnce(&mut Connection, &mut Serving<'_>) -> Step) {
        if self.step_once(key, what) {
            self.step_once(key, Connection::release);
        }
    }

    /// Answers whether output was withheld that may leave now.
    #[inline]
    fn step_once(
        &mut self,
        key: usize,
        what: impl FnOnce(&mut Connection, &mut Serving<'_>) -> Step,
    ) -> bool {
        // An event may name a connection that ended earlier in this turn.
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        if connection.io.marks.has(Mark::Closing) {
            return false;
        }
        let origin = &self.origins[usize::from(connection.io.listener)];
        let has_tls = origin.has_tls() || connection.io.has_far_tls();
        let mut serving = origin.serving(self.now, self.buffer.bytes(has_tls));
        let before = connection.taken_in();
        if let Some(vault) = &self.vault {
            vault.begin(key, &connection.io);
        }
        let step = what(connection, &mut serving);
        self.buffer
            .has_taken(connection.taken_in().saturating_sub(before));
        let io = &mut connection.io;
        let put_off = matches!(step, Step::PutOff);
        match step {
            Step::Rest => {}
            Step::Again | Step::PutOff => {
                io.marks.add(Mark::PutOff, put_off);
                self.leftovers.add(key, &mut io.marks);
            }
            Step::Enter => {
                self.enter(key);
                return false;
            }
            Step::Close(ending) => {
                if let Some(vault) = &mut self.vault {
                    vault.forget(key);
                }
                io.marks.put(Mark::Closing, true);
                self.closing.push((key, ending));
                return false;
            }
        }
        if let Some(vault) = &mut self.vault {
            vault.settle(key, connection, &origin.settings.service, self.now);
        }
        let io = &mut connection.io;
        let withheld = io.is_withheld();
        if withheld {
            // Without a vault there is nothing to wait for. Who is not there while others have the socket may be later.
            let vault = self.vault.as_ref();
            io.withhold(vault.is_some_and(|vault| io.is(Is::GivenAway) || vault.has(key)));
            io.commit();
        }
        // One that was put off before may have changed since, as by a prompt.
        if io.marks.has(Mark::Copied)
            && !put_off
            && let Some(giving) = &mut self.giving
            && giving.changed(key, io)
        {
            self.leftovers.add(key, &mut io.marks);
        }
        if io.is(Is::Short) {
            self.short.push(key);
        }
        if io.is(Is::Paused) {
            self.paused.add(key, &mut io.marks);
        }
        if let Err(error) = io.reregister(self.poll.registry(), Token(key)) {
            // Out of memory for it (epoll_ctl(2): ENOMEM, ENOSPC).
            io.marks.put(Mark::Closing, true);
            let errno = error.raw_os_error();
            let ending = Ending::reset(CloseReason::IoError);
            let ending = io.cut_off(Ending { errno, ..ending });
            self.closing.push((key, ending));
            return false;
        }
        if let Some(up) = io.far_up() {
            up.io.watch_writes(self.poll.registry(), Token(FAR | key));
        } else if io.wants_to_dial(self.now) {
            self.dials.push(key);
        }
        let waits = withheld && io.waiting_output() > 0;
        let due = io.due(&origin.turn(self.now));
        if due < self.deadlines.get(slot(key)) {
            self.deadlines.set(slot(key), due);
        }
        waits
    }

    /// Closes what ended in this turn: the socket, the log line, the counters.
    fn close(&mut self) {
        if self.closing.is_empty() {
            return;
        }
        // What comes free here is kept for the next client, before the server beside this one can have it.
        let aside = self.shared.is_aside().then(|| Arc::clone(&self.shared));
        let _alone = aside
            .as_ref()
            .map(|shared| shared.accepting.descriptors.lock());
        for (key, mut ending) in std::mem::take(&mut self.closing) {
            let Some(mut connection) = self.connections.try_remove(key) else {
                continue;
            };
            ending.reason = connection.io.told_apart(ending.reason);
            let origin = &self.origins[usize::from(connection.io.listener)];
            let serving = origin.serving(self.now, self.buffer.bytes(origin.has_tls()));
            connection.ended(&serving, self.poll.registry(), &ending);
            if connection.io.marks.has(Mark::Copied)
                && let Some(giving) = &mut self.giving
            {
                giving.ended(connection.io.id());
            }
            if let Some(vault) = &mut self.vault {
                vault.forget(key);
                if connection.io.is(Is::GivenAway) {
                    vault.let_go(self.now);
                }
            }
            self.deadlines.remove(slot(key));
            self.count_out(&connection, ending.reason);
            self.bury(connection, &ending);
        }
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.retry();
        } else if self.shared.accepting.has_waited() {
            self.shared.workers[0].wake();
        }
    }

    /// The last that is done with a connection: its log line, and its socket.
    fn bury(&self, connection: Connection, ending: &Ending) {
        let io = &connection.io;
        let origin = &self.origins[usize::from(io.listener)];
        let obituary = Obituary {
            id: io.id(),
            peer: io.peer(),
            via: io.via(),
            dialled: io.dialled(),
            listener: &origin.address,
            upstream: io.upstream(),
            ending,
            note: io.remark(),
            named: io.named(),
            age: self.now.since(io.opened()),
            read: io.read,
            written: io.written_plain(),
        };
        obituary.log(self.shared.level());
        self.shared.workers[self.index]
            .ended
            .note(obituary, io.listener, self.now);
        // The service's state goes along, and its destructor may panic as anything else.
        let closed = catch_unwind(AssertUnwindSafe(|| connection.close(ending)));
        if let Ok(Err(error)) = closed {
            log::debug!(error:% = error; "cannot reset a connection");
        }
    }

    /// A connection has ended here.
    fn count_out(&self, connection: &Connection, reason: CloseReason) {
        let origin = &self.origins[usize::from(connection.io.listener)];
        origin.stats.closed(reason);
        self.release_place(connection);
    }

    /// A connection has left this worker.
    fn release_place(&self, connection: &Connection) {
        let io = &connection.io;
        let origin = &self.origins[usize::from(io.listener)];
        origin.stats.open.take_away(1);
        origin.settings.admission.leave(io);
        if io.door().is_some() {
            self.count_from_door();
        }
        let open = &self.shared.workers[self.index].open;
        open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether what makes changes is held up, for a takeover that could not copy them as fast.
    fn is_holding(&self) -> bool {
        self.giving.as_ref().is_some_and(Giving::is_holding)
    }

    fn is_done(&self) -> bool {
        self.drain.has_begun()
            && self.connections.is_empty()
            && self.shared.accepting.closed.load(Ordering::Acquire)
            && self.shared.workers[self.index].open.load(Ordering::Relaxed) == 0
    }
}
