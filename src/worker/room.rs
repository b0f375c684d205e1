//! Room in memory, for newcomers and for those who are not read for want of it.
//!
//! What newcomers take cannot be refused once they are in, so it is made sure of before. The tables of connections grow here alone. What is small (a service's boxes, lists, the mailboxes) is not followed
//! up: every so many newcomers there has to be more than they can take.

use super::Worker;
use crate::connection::{Connection, Step};
use crate::io::Is;
use crate::liveness::close::{CloseReason, Ending, Note};

/// Newcomers for whom what is small is made sure of at once.
const PARTY: usize = 64;

/// Connections that the tables have room for at first: so they have pages of their own from the beginning, grow in place
/// (mremap(2)) and leave nothing behind. What of that is not used yet is address space.
const FIRST: usize = 8192;

/// What is to be had for them, bytes: more than they take in any service.
const HEADROOM: usize = 1 << 20;

/// What lists that double may take for each connection that is there, bytes.
const LISTED: usize = 128;

/// What a connection takes in the tables, bytes: its slot, its deadline and where that stands.
const SLOT: usize = size_of::<Connection>() + 8 + 24;

/// Connections tried in a turn that wait for memory: events must not wait for all of them.
const BATCH: usize = 256;

impl Worker {
    /// Whether the system has the memory that one more connection may take.
    pub(super) fn has_room_for_more(&mut self) -> bool {
        if self.vouched == 0 {
            let listed = self.shared.open() * LISTED;
            if !self.shared.memory.could_have(HEADROOM + listed) {
                return false;
            }
            self.vouched = PARTY;
        }
        let has_room = self.grow();
        if has_room {
            self.vouched -= 1;
        }
        has_room
    }

    /// Sees to it that the tables have room for one more. Answers whether they do: the system may have no memory.
    pub(super) fn grow(&mut self) -> bool {
        let capacity = self.connections.capacity();
        if self.connections.len() < capacity {
            return true;
        }
        let doubled = (2 * capacity).max(FIRST);
        if !self.shared.memory.could_have(HEADROOM + doubled * SLOT) {
            return false;
        }
        self.connections.reserve(doubled - capacity);
        self.deadlines.reserve(self.connections.capacity());
        true
    }
    /// Those who wait for memory get none for as long as whoever has it keeps still. With output waiting that is a write
    /// stall; with input that no service can use, such as half a line, the one that holds most of it is cut off once
    /// it has kept still as long.
    fn make_room(&mut self) {
        let timeouts = self.origins.iter();
        let timeouts = timeouts.filter_map(|origin| origin.settings.limits.write_timeout);
        let Some(patience) = timeouts.min() else {
            return;
        };
        if !self.short.is_out_of_patience(self.now, patience) {
            return;
        }
        let hoards = |connection: &Connection| {
            let origin = &self.origins[usize::from(connection.io.listener)];
            let turn = origin.turn(self.now);
            let limit = turn.limits.write_timeout;
            limit.is_some_and(|limit| connection.io.hoards(&turn, limit))
        };
        let hoarding = self.connections.iter();
        let hoarding = hoarding.filter(|(_, connection)| hoards(connection));
        let most = hoarding.max_by_key(|(_, connection)| connection.io.held());
        if let Some(key) = most.map(|(key, _)| key) {
            self.step(key, |connection, _| {
                connection.io.set_remark(Note::Limit("memory"));
                let ending = Ending::reset(CloseReason::Limit);
                Step::Close(connection.io.cut_off(ending))
            });
        }
    }

    /// Tries some of those that wait for memory, if there is more than there was.
    pub(super) fn serve_short(&mut self) {
        if self.short.is_empty() {
            return;
        }
        self.make_room();
        for _ in 0..BATCH {
            let Some(key) = self.short.next() else { break };
            let Some(connection) = self.connections.get(key) else {
                continue;
            };
            let origin = &self.origins[usize::from(connection.io.listener)];
            if connection.io.is(Is::Short) && !connection.io.has_memory(&origin.turn(self.now)) {
                self.short.push(key);
                continue;
            }
            self.freeze_in_time();
            self.step(key, Connection::advance);
        }
    }
}
