//! From the door to its service: a client that has said who it is, or whose turn has come.

use std::sync::atomic::Ordering;

use super::Worker;
use crate::connection::{Connection, Step};
use crate::io::Is;
use crate::io::door::Door;
use crate::liveness::close::{CloseReason, Ending, Note};

impl Worker {
    /// A connection waits at the door.
    pub(super) fn count_at_door(&self) {
        let at_door = &self.shared.workers[self.index].at_door;
        at_door.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection waits there no longer.
    pub(super) fn count_from_door(&self) {
        let at_door = &self.shared.workers[self.index].at_door;
        at_door.fetch_sub(1, Ordering::Relaxed);
    }

    /// What a connection waited for at the door has come. A proxy's client is only now somebody for whom there are rules
    /// and limits.
    pub(super) fn enter(&mut self, key: usize) {
        let draining = self.drain.has_begun();
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let (io, now) = (&mut connection.io, self.now);
        let id = io.id();
        let settings = &self.origins[usize::from(io.listener)].settings;
        if matches!(io.door(), Some(Door::Header(_))) {
            let ip = io.peer().ip();
            if !ip.is_none_or(|ip| settings.access.lets_in(ip)) {
                return self.keep_out(key, CloseReason::Denied, None);
            }
            if let Err(limit) = settings.admission.admit_from(ip) {
                return self.keep_out(key, CloseReason::Limit, Some(Note::Limit(limit)));
            }
            // What another process has of it has neither its address nor its service.
            io.is_to_be_copied_anew();
            let turn = settings.admission.turn_of(ip, now);
            io.wait_at(Door::Turn(turn), now);
        }
        if let Some(Door::Turn(turn)) = io.door()
            && now < turn
            && !draining
        {
            return self.step(key, |_, _| Step::Rest);
        }
        let door = io.door();
        if matches!(door, Some(Door::Turn(_)))
            && let Some(handshake) = settings.handshake(now)
        {
            io.wait_at(handshake, now);
            // An edge may have told of what waits behind the header.
            io.set(Is::Readable, true);
            return self.step(key, Connection::knock);
        }
        io.come_in(now);
        log::debug!(id = io.id(), peer:% = io.peer(), via = io.via().map(|via| via.to_string()).as_deref(), worker = self.index; "let in");
        self.count_from_door();
        if door.is_some_and(Door::is_after_crash) {
            let anew = door == Some(Door::Anew);
            return self.step(key, |connection, serving| {
                connection.enter_again(serving, anew)
            });
        }
        self.put_into_vault(key, 0);
        self.step(key, Connection::enter);
        // Where its turn to go has come before, it had not been in.
        self.drain.arrived(key, id, now);
    }

    /// No service hears of it.
    fn keep_out(&mut self, key: usize, reason: CloseReason, note: Option<Note>) {
        self.step(key, |connection, _| {
            if let Some(note) = note {
                connection.io.set_remark(note);
            }
            Step::Close(Ending::fin(reason))
        });
    }
}
