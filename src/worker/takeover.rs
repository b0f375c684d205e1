//! A worker's part in a takeover, on either side of it.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use mio::Token;

use super::{FAR, Worker};
use crate::connection::Connection;
use crate::handle::takeover::Call;
use crate::handoff::share::{Giving, Share};
use crate::handoff::take::Taker;
use crate::io::Is;
use crate::io::door::Door;
use crate::io::marks::Mark;
use crate::liveness::close::CloseReason;
use crate::service::{AnyService, Exported};
use crate::time::deadline::slot;
use crate::wire::baton::{Baton, Event, Fate, Outcome};
use crate::wire::record::{Arrival, Update};

/// Given connections that are closed before others get the processor.
const CLOSE_BATCH: usize = 64;

/// The old process's side.
impl Worker {
    pub(super) fn take_part(&mut self, call: Call) {
        match call {
            Call::Give(baton, events) => self.give(baton, events),
            Call::Keep => self.keep(),
            Call::Freeze(until, outcome) => self.freeze(until, &outcome),
        }
    }

    /// A process wants to take over: from here on copies are sent.
    fn give(&mut self, baton: Arc<Baton>, events: Sender<Event>) {
        self.keep();
        let mut giving = Giving::new(baton, events, self.index);
        if let Some(acceptor) = &mut self.acceptor {
            giving.send_listeners(&self.origins, &acceptor.lend());
        }
        self.giving = Some(giving);
        self.hold_handshakes(true);
    }

    /// No handshake begins that the new process could not go on with, or those that have been held up do.
    fn hold_handshakes(&mut self, held: bool) {
        for origin in &self.origins {
            let Some(tls) = &origin.settings.tls else {
                continue;
            };
            tls.hold(held);
        }
        if held {
            return;
        }
        for (key, connection) in &mut self.connections {
            if connection.io.is_heard() && matches!(connection.io.door(), Some(Door::Handshake(_)))
            {
                self.leftovers.add(key, &mut connection.io.marks);
            }
        }
    }

    /// It came to nothing: no connection is copied any more.
    fn keep(&mut self) {
        if self.giving.take().is_some() {
            self.hold_handshakes(false);
            self.release();
            for (_, connection) in &mut self.connections {
                connection.io.marks.put(Mark::Copied, false);
                connection.io.marks.put(Mark::Changed, false);
            }
        }
    }

    /// Who was held up is served again.
    fn release(&mut self) {
        for (key, connection) in &mut self.connections {
            let marks = &mut connection.io.marks;
            if marks.put(Mark::Held, false) {
                self.leftovers.add(key, marks);
            }
        }
    }

    /// The slices of a takeover that a turn has time for.
    pub(super) fn hand_over(&mut self) {
        if let Some(mut giving) = self.giving.take() {
            if giving.lets_go() {
                self.release();
            }
            giving.advance(&mut self.share());
            self.giving = Some(giving);
        }
        self.configure();
    }

    /// A turn of many events, or of large ones, is too long for a freeze to wait for its end.
    #[inline]
    pub(super) fn freeze_in_time(&mut self) {
        if self.giving.is_some() && self.shared.is_freezing() {
            self.woken();
        }
    }

    fn share(&mut self) -> Share<'_> {
        Share {
            connections: &mut self.connections,
            origins: &self.origins,
            now: self.now,
        }
    }

    /// Stands still until the outcome is known.
    fn freeze(&mut self, until: Instant, outcome: &Receiver<Outcome>) {
        self.close();
        let Some(mut giving) = self.giving.take() else {
            return;
        };
        let outcome = giving.freeze(&mut self.share(), until, outcome);
        if outcome == Some(Outcome::Thawed) {
            giving.thaw();
            self.release();
        }
        self.giving = Some(giving);
        match outcome {
            Some(Outcome::Thawed) => {}
            Some(Outcome::Committed) => self.let_go(),
            None => self.keep(),
        }
        self.horizon.excuse(self.clock.now());
    }

    /// What was given is the other process's: it is only closed here. What could not leave is drained.
    fn let_go(&mut self) {
        self.hold_handshakes(false);
        self.leave_vault();
        let giving = self.giving.take();
        let mut began = self.clock.now();
        for (count, key) in self.keys().into_iter().enumerate() {
            if !self.connections[key].io.marks.has(Mark::Copied) {
                continue;
            }
            if count % CLOSE_BATCH == 0 {
                // As much rest as work: the clients, served elsewhere now, wait for the same processors.
                std::thread::park_timeout(self.clock.now().since(began));
                began = self.clock.now();
            }
            let mut connection = self.connections.remove(key);
            connection.io.deregister(self.poll.registry());
            connection.io.sends_no_more();
            let origin = &self.origins[usize::from(connection.io.listener)];
            let serving = origin.serving(self.now, self.buffer.bytes(origin.has_tls()));
            connection.over(&serving, CloseReason::HandedOff);
            let io = &connection.io;
            log::debug!(id = io.id(), peer:% = io.peer(), listener:% = origin.address, reason:% = CloseReason::HandedOff, read = io.read, written = io.written; "closed");
            self.deadlines.remove(slot(key));
            self.count_out(&connection, CloseReason::HandedOff);
            // The service's state goes along, and its destructor may panic as anything else.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(connection)));
        }
        self.begin_drain();
        // Those who come yet are this worker's, and go with the others.
        let registry = self.poll.registry().try_clone();
        if let (Some(acceptor), Some(giving), Ok(registry)) =
            (self.acceptor.take(), giving, registry)
        {
            let stays = |at| giving.fate(at) == Fate::Stays;
            let shared = Arc::clone(&self.shared);
            acceptor.let_go(stays, &registry, self.now, &shared, self);
        }
    }
}

/// The new process's side: it is registered, and not read before the commit.
impl Taker for Worker {
    fn import(
        &mut self,
        arrival: &Arrival,
        socket: OwnedFd,
        along: Vec<OwnedFd>,
    ) -> Result<usize, String> {
        if !self.has_room_for_more() {
            return Err("no memory for so many connections".to_owned());
        }
        let origin = self
            .origins
            .get(usize::from(arrival.listener))
            .ok_or("a connection of no listener")?;
        let terms = (&origin.settings.service, &origin.terms);
        if origin.settings.tls.is_none() && arrival.record.has_tls() {
            return Err(format!(
                "clients of {} have TLS, the new process has none there",
                origin.address
            ));
        }
        let mut connection = Connection::import(arrival, socket, along, terms, self.now)?;
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        connection
            .io
            .register(self.poll.registry(), Token(key))
            .map_err(|error| format!("cannot register a connection: {error}"))?;
        if let Some(up) = connection.io.far_up() {
            up.io
                .register(self.poll.registry(), Token(FAR | key))
                .map_err(|error| format!("cannot register a far side: {error}"))?;
        }
        let (settings, io) = (&origin.settings, &mut connection.io);
        if settings.proxies.is_some() {
            io.find_via(arrival.dialled);
        }
        let ip = arrival.peer.ip();
        let door = io.door();
        if let Some(Door::Turn(turn)) = door {
            settings.admission.keep_turn(ip, turn, self.now);
        }
        if origin.multipath {
            io.find_paths(&settings.limits, self.now);
        }
        let is_named = !matches!(door, Some(Door::Header(_)));
        settings.admission.count(ip.filter(|_| is_named));
        let due = io.due(&origin.turn(self.now));
        entry.insert(connection);
        self.deadlines.set(slot(key), due);
        origin.stats.open.add(1);
        if door.is_none_or(Door::is_after_crash) {
            self.put_into_vault(key, arrival.record.output);
            self.has_come(key);
            self.settle_in_vault(key);
        }
        if door.is_some() {
            self.count_at_door();
        }
        let open = &self.shared.workers[self.index].open;
        open.fetch_add(1, Ordering::Relaxed);
        Ok(key)
    }

    fn update(&mut self, key: usize, update: &Update) -> Result<bool, String> {
        let connection = self
            .connections
            .get_mut(key)
            .ok_or("a connection that was forgotten")?;
        let origin = &self.origins[usize::from(connection.io.listener)];
        let terms = (&origin.settings.service, &*origin.terms);
        let was_at_door = connection.io.door().is_some();
        let more = connection.update(update, terms, self.now)?;
        let let_in = was_at_door && connection.io.door().is_none();
        // Ready by the time it is ours: to try to write for each then would keep the others waiting.
        let registry = self.poll.registry();
        if connection.io.waiting_output() > 0 {
            connection.io.watch_writes(registry, Token(key));
        }
        if let Some(up) = connection.io.far_up()
            && up.io.waiting_output() > 0
        {
            up.io.watch_writes(registry, Token(FAR | key));
        }
        let due = connection.io.due(&origin.turn(self.now));
        if due < self.deadlines.get(slot(key)) {
            self.deadlines.set(slot(key), due);
        }
        if let_in {
            self.count_from_door();
            self.put_into_vault(key, update.record.output);
        }
        self.has_come(key);
        self.settle_in_vault(key);
        Ok(more)
    }

    fn forget(&mut self, key: usize) {
        if let Some(connection) = self.connections.try_remove(key) {
            if let Some(vault) = &mut self.vault {
                vault.forget(key);
            }
            connection.io.deregister(self.poll.registry());
            self.deadlines.remove(slot(key));
            // It is the old process's yet, which counts its end.
            self.release_place(&connection);
        }
    }

    fn import_common(
        &self,
        listeners: &[u16],
        exported: &Exported,
        ahead: bool,
    ) -> Result<(), String> {
        let mut told: Vec<&AnyService> = Vec::new();
        for &listener in listeners {
            let origin = self.origins.get(usize::from(listener));
            let service = &origin
                .ok_or("common state of no listener")?
                .settings
                .service;
            if told.iter().any(|before| before.is_same(service)) {
                continue;
            }
            let imported = catch_unwind(AssertUnwindSafe(|| match ahead {
                true => service.import_ahead(exported),
                false => service.import_common(exported),
            }));
            imported.unwrap_or_else(|_| Err(format!("{} panicked", service.name())))?;
            told.push(service);
        }
        Ok(())
    }

    fn take_session(&mut self, key: usize, saved: &[u8]) -> Result<(), String> {
        let connection = self.connections.get_mut(key);
        let connection = connection.ok_or("a TLS session of nobody")?;
        connection.io.restore_tls(saved)
    }

    fn take_far_session(&mut self, key: usize, saved: &[u8]) -> Result<(), String> {
        let connection = self.connections.get_mut(key);
        let far = connection.and_then(|connection| connection.io.far_up());
        let far = far.ok_or("a TLS session of no far side")?;
        far.io.restore_tls(saved)
    }

    fn take_ticket_keys(&mut self, listener: u16, keys: &[u8]) {
        let origin = self.origins.get(usize::from(listener));
        if let Some(tls) = origin.and_then(|origin| origin.settings.tls.as_ref()) {
            tls.take_ticket_keys(keys);
        }
    }

    fn look_at_the_clock(&mut self) {
        // What has come by now is where the next process finds it: that is not left for the end.
        self.flush_vault();
        self.now = self.clock.now();
    }

    fn own(&mut self, first: impl Iterator<Item = usize>) {
        for key in first {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            connection.io.marks.put(Mark::PutOff, true);
            self.leftovers.add(key, &mut connection.io.marks);
        }
        self.unconfigured.own(self.connections.capacity());
    }
}

impl Worker {
    /// The listeners that were taken over get this process's options: connections inherit them.
    pub(crate) fn configure_listeners(&self) {
        if let Some(acceptor) = &self.acceptor {
            acceptor.configure();
        }
    }

    /// The next taken over connections get their options: those of this process's settings.
    fn configure(&mut self) {
        if self.unconfigured.due() > self.now {
            return;
        }
        let has_herd = self.has_herd();
        for key in self.unconfigured.batch(self.now) {
            let Some(connection) = self.connections.get(key) else {
                continue;
            };
            let io = &connection.io;
            let origin = &self.origins[usize::from(io.listener)];
            let near = origin.address.tcp().map(|_| io.descriptor());
            let near = near.map(|socket| (socket, io.is(Is::Multipath)));
            let far = io.far_io().map(|far| (far.descriptor(), false));
            let options = origin.settings.options.of_one(io.id(), has_herd);
            for (socket, multipath) in near.into_iter().chain(far) {
                if let Err(refused) = options.give(&socket, multipath) {
                    log::debug!(id = io.id(), option = refused.option.as_str(), error:% = refused.source; "option refused");
                }
            }
        }
    }
}
