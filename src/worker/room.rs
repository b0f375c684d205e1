//! Room for newcomers: what they take cannot be refused once they are in, so it is made sure of before.
//!
//! The tables of connections grow here alone. What is small (a service's boxes, lists, the mailboxes) is not followed
//! up: every so many newcomers there has to be more than they can take.

use super::Worker;
use crate::connection::Connection;

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
}
