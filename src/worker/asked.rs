//! What a worker is asked for by other threads: tables, kills, and the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use super::Worker;
use crate::connection::{Connection, Step};
use crate::handle::wanted::Wanted;
use crate::handle::{Mail, Order};
use crate::io::marks::Mark;
use crate::liveness::close::{CloseReason, Ending};

impl Worker {
    /// Somebody wants something: looks in the mailbox, and whether paused connections may go on.
    pub(super) fn woken(&mut self) {
        while let Ok(mail) = self.mail.try_recv() {
            match mail {
                Mail::Arrival(newcomer) => self.adopt(newcomer),
                Mail::List(wish) => self.listings.add(wish),
                Mail::Kill(id, wanted, found) => self.kill(id, &wanted, &found),
                // Who asked may have gone.
                Mail::Ping(turning) => drop(turning.send(())),
                Mail::Takeover(call) => self.take_part(call),
                #[cfg(control)]
                Mail::Leave(left) => self.leave(&left),
            }
        }
        self.dials.resolved(self.now);
        let resumed = self.shared.resumed();
        for key in self.paused.resumed(resumed) {
            self.step(key, |connection, serving| {
                if !connection.io.marks.put(Mark::Paused, false) {
                    // The key is another connection's by now.
                    return Step::Rest;
                }
                connection.resume(serving);
                connection.advance(serving)
            });
            if let Some(giving) = &mut self.giving {
                // While it was paused, it may have been one that could not leave.
                giving.arrived(key);
            }
        }
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.retry();
        }
    }

    /// Shows the batch of each table that is asked for.
    pub(super) fn list(&mut self) {
        self.listings.show(&self.connections, |connection| {
            let origin = &self.origins[usize::from(connection.io.listener)];
            origin.show(&connection.io, self.now)
        });
    }

    /// Ends a connection because an operator wants that.
    fn kill(&mut self, id: u64, wanted: &Wanted, found: &Sender<bool>) {
        let key = self
            .connections
            .iter()
            .find(|(_, connection)| connection.io.id() == id);
        let Some(key) = key.map(|(key, _)| key) else {
            return;
        };
        if !wanted.stands() {
            log::debug!(id; "not killed: who asked has given up");
            return;
        }
        self.step(key, |connection, _| {
            let killed = Ending::reset(CloseReason::Killed);
            Step::Close(connection.io.cut_off(killed))
        });
        // Who asked may have gone.
        let _ = found.send(true);
    }

    /// Carries out what the server was told to do, and ends a drain that takes too long.
    pub(super) fn obey(&mut self) {
        let order = self.shared.ordered();
        let is_time = self.drain.told(order, self.now);
        if is_time && !self.drain.has_begun() {
            self.begin_drain();
            self.close_listeners();
        }
        // What another process could not take over is drained without an order.
        if !self.drain.has_begun() {
            return;
        }
        while let Some((key, id)) = self.drain.next_turn(self.now) {
            if self.is_still(key, id) {
                self.step(key, Connection::drain);
            }
        }
        if order == Order::Stop {
            let cut = self.keys().into_iter().filter(|&key| self.cut(key));
            let cut = cut.count() as u64;
            self.drain.count_cut(cut);
            return;
        }
        let mut cut = 0;
        while let Some((key, id)) = self.drain.next_cut(self.horizon.known()) {
            cut += u64::from(self.is_still(key, id) && self.cut(key));
        }
        if self.drain.count_cut(cut) {
            let left = self.connections.len();
            log::warn!(worker = self.index, late = cut, left; "a drain has to cut who is not done in time");
        }
    }

    /// The turns of those who are there to go begin.
    pub(super) fn begin_drain(&mut self) {
        let clients = self.connections.iter().map(|(key, one)| (key, one.io.id()));
        let place = (self.index, self.shared.workers.len());
        self.drain.begin(self.now, clients, place);
    }

    /// Whether a key is still that connection's.
    fn is_still(&self, key: usize, id: u64) -> bool {
        let connection = self.connections.get(key);
        connection.is_some_and(|connection| connection.io.id() == id)
    }

    /// Ends a connection of a server that ends now. Answers whether that cuts something off.
    fn cut(&mut self, key: usize) -> bool {
        let mut cut = false;
        self.step(key, |connection, _| {
            let ending;
            (ending, cut) = connection.cut();
            Step::Close(ending)
        });
        cut
    }

    pub(super) fn keys(&self) -> Vec<usize> {
        self.connections.iter().map(|(key, _)| key).collect()
    }

    /// Lets nobody in any more, but those whom the system has let in already.
    fn close_listeners(&mut self) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        if self.drain.was_delayed() {
            log::info!(open = self.shared.open(); "accepting no more");
        }
        let registry = self.poll.registry().try_clone();
        let shared = Arc::clone(&self.shared);
        if let Ok(registry) = registry {
            acceptor.close(&registry, self.now, &shared, self);
        }
        shared.accepting.closed.store(true, Ordering::Release);
        shared.wake_all();
    }
}
