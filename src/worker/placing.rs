//! Which worker serves a connection: the accepting one lets it in, and another gets it where that has fewer.
//!
//! It changes hands as it was accepted; where its service dials, once it is connected. So far sides are dialled by one
//! worker, in the order in which clients came: programs that open several connections tell them apart by that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::Token;

use super::{FAR, Worker};
use crate::connection::{Connection, Step};
use crate::handle::Newcomer;
use crate::io::Io;
use crate::listen::accept::Placing;
use crate::liveness::close::{CloseReason, Ending, Note};
use crate::liveness::herd::{self, Joins};
use crate::os::fault::may_die;
use crate::time::deadline::slot;

impl Placing for Worker {
    fn has_room(&mut self) -> bool {
        self.has_room_for_more()
    }

    fn place(&mut self, io: Io) {
        // The others may have ended once nobody is let in any more.
        let to = if self.drain.has_begun() || self.dials(&io) {
            self.index
        } else {
            self.receiver()
        };
        let (state, standing) = (None, None);
        self.send(
            Newcomer {
                io,
                state,
                standing,
            },
            to,
        );
    }
}

impl Worker {
    /// Accepts, and hands over what another worker is to serve from the beginning.
    pub(super) fn accept(&mut self) {
        let Some(mut acceptor) = self.acceptor.take() else {
            return;
        };
        if acceptor.next() <= self.now {
            let shared = Arc::clone(&self.shared);
            acceptor.accept(self.now, &shared, self);
            self.wake_receivers();
        } else if acceptor.holds_back() {
            self.shared.accepting.wait(true);
        }
        self.acceptor = Some(acceptor);
    }

    /// Whether its service connects it on before anything else.
    fn dials(&self, io: &Io) -> bool {
        let origin = self.origins.get(usize::from(io.listener));
        origin.is_some_and(|origin| origin.settings.service.dials())
    }

    /// Who gets the next connection, of those that this worker has. During a takeover none moves: it would be in
    /// nobody's copy.
    fn receiver(&self) -> usize {
        if self.giving.is_some() {
            return self.index;
        }
        self.shared.least_loaded(self.index)
    }

    /// A connection that is connected now changes hands, if another worker has fewer. Not once nobody is let in any
    /// more: the others may have ended. Answers whether it has left.
    pub(super) fn pass_on(&mut self, key: usize) -> bool {
        if self.acceptor.is_none() || !self.connections.get(key).is_some_and(Connection::can_move) {
            return false;
        }
        let open = &self.shared.workers[self.index].open;
        open.fetch_sub(1, Ordering::Relaxed);
        let to = self.receiver();
        if to == self.index {
            open.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let Some(standing) = self.move_in_vault(key) else {
            let open = &self.shared.workers[self.index].open;
            open.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let connection = self.connections.remove(key);
        connection.io.deregister(self.poll.registry());
        self.deadlines.remove(slot(key));
        let (io, state) = connection.into_parts();
        self.origins[usize::from(io.listener)]
            .stats
            .open
            .take_away(1);
        let state = Some(state);
        let newcomer = Newcomer {
            io,
            state,
            standing,
        };
        self.send(newcomer, to);
        may_die("vault-moved");
        true
    }

    /// A connection that counts nowhere is that worker's from here on; it looks when it is woken.
    fn send(&mut self, newcomer: Newcomer, to: usize) {
        let workers = &self.shared.workers;
        workers[to].open.fetch_add(1, Ordering::Relaxed);
        let unsent = if to == self.index {
            Some(newcomer)
        } else {
            workers[to].send(newcomer).err()
        };
        let Some(newcomer) = unsent else {
            if !self.receivers.contains(&to) {
                self.receivers.push(to);
            }
            return;
        };
        workers[to].open.fetch_sub(1, Ordering::Relaxed);
        workers[self.index].open.fetch_add(1, Ordering::Relaxed);
        self.adopt(newcomer);
    }

    /// Wakes those that were sent connections.
    pub(super) fn wake_receivers(&mut self) {
        for to in self.receivers.drain(..) {
            self.shared.workers[to].wake();
        }
    }

    /// Whether its connections are some of many.
    pub(super) fn has_herd(&self) -> bool {
        herd::is_herd(self.shared.open())
    }

    /// Gives connections that came when they were few a keepalive of their own.
    fn join(&self, joins: Joins, newcomer: usize) {
        let joining: &mut dyn Iterator<Item = &Connection> = match joins {
            Joins::Nobody => return,
            Joins::Newcomer => &mut self.connections.get(newcomer).into_iter(),
            Joins::All => &mut self.connections.iter().map(|(_, connection)| connection),
        };
        for connection in joining {
            let near = &connection.io;
            let origin = &self.origins[usize::from(near.listener)];
            for io in std::iter::once(near).chain(near.far_io()) {
                // Where that fails the system has ended it already, or it has no keepalive.
                let _ = origin.settings.options.vary(&io.socket, Some(near.id()));
            }
        }
    }

    /// There is no memory to serve a connection with.
    fn turn_away(&mut self, newcomer: Newcomer) {
        let Newcomer { mut io, state, .. } = newcomer;
        io.set_remark(Note::Limit("memory"));
        let ending = Ending::fin(CloseReason::Limit);
        let Some(origin) = self.origins.get(usize::from(io.listener)) else {
            return;
        };
        let connection = match state {
            Some(state) => {
                let mut connection = Connection::with_state(io, state);
                let serving = origin.serving(self.now, self.buffer.bytes(origin.has_tls()));
                connection.over(&serving, ending.reason);
                connection
            }
            // The service has not heard of it, and does not.
            None => Connection::unheard(io),
        };
        self.count_out(&connection, ending.reason);
        self.bury(connection, &ending);
    }

    /// A connection is this worker's from here on.
    pub(super) fn adopt(&mut self, newcomer: Newcomer) {
        if let Some(origin) = self.origins.get(usize::from(newcomer.io.listener)) {
            origin.stats.open.add(1);
        }
        let at_door = newcomer.io.door().is_some();
        if at_door {
            self.count_at_door();
        }
        if !self.grow() {
            return self.turn_away(newcomer);
        }
        let Newcomer {
            mut io,
            state,
            standing,
        } = newcomer;
        let Some(origin) = self.origins.get(usize::from(io.listener)) else {
            return;
        };
        let joins = self.herd.grown(self.shared.open(), self.now);
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let registry = self.poll.registry();
        let mut registered = io.register(registry, Token(key));
        let (connected, fresh) = (state.is_some(), state.is_none() && !at_door);
        let id = io.id();
        let connection = match state {
            Some(state) => {
                if let Some(up) = io.far_up() {
                    up.terms = Arc::clone(&origin.terms);
                    let far = up.io.register(registry, Token(FAR | key));
                    registered = registered.and(far);
                }
                log::debug!(id = io.id(), worker = self.index; "passed on");
                Connection::with_state(io, state)
            }
            None if at_door => {
                log::debug!(id = io.id(), peer:% = io.peer(), listener:% = origin.address, worker = self.index; "at the door");
                Connection::unheard(io)
            }
            None => {
                log::debug!(id = io.id(), peer:% = io.peer(), listener:% = origin.address, worker = self.index; "opened");
                Connection::unheard(io)
            }
        };
        entry.insert(connection);
        if !at_door {
            self.put_into_vault(key, 0);
        }
        if let (Some(vault), Some(standing)) = (&mut self.vault, standing) {
            vault.comes(standing);
        }
        self.join(joins, key);
        if let Some(giving) = &mut self.giving {
            giving.arrived(key);
        }
        let is_kept = self.vault.is_some();
        self.step(key, |connection, serving| {
            if fresh {
                connection.greet(serving);
            }
            match &registered {
                Ok(()) if at_door => connection.knock(serving),
                Ok(()) if connected => connection.arrived(serving, is_kept),
                Ok(()) => connection.opened(serving),
                // Out of memory for it (epoll_ctl(2): ENOMEM, ENOSPC): it cannot be served.
                Err(error) => Step::Close(connection.io.cut_off(Ending {
                    errno: error.raw_os_error(),
                    ..Ending::fin(CloseReason::IoError)
                })),
            }
        });
        self.drain.arrived(key, id, self.now);
    }
}
