//! Connections whose services are given again what they had not come to an end with: they go on from their records, and what a
//! service writes leaves once that is there.

use super::Vault;
use super::blocks::Reached;
use crate::connection::Connection;
use crate::io::Is;
use crate::os::fault::may_die;
use crate::service::{AnyService, Survive};
use crate::time::deadline::Moment;
use crate::wire::record::Record;

impl Vault {
    /// As [`settle`](Self::settle): from one moment on it stands as it does now, its state, its output and what is left of its
    /// input.
    pub(super) fn settle_to_be_given_again(
        &mut self,
        key: usize,
        connection: &Connection,
        service: &AnyService,
        now: Moment,
    ) {
        let io = &connection.io;
        let (read, written, last_in) = (io.read, io.written, io.last_in.number());
        if self.has_nothing_beside(key, connection, service.survive()) {
            // The moment in which there is no record any more, or no other slot: that counts then.
            self.arena.note(key, read, written, last_in);
            may_die("vault-noted");
            if self.blocks.has(key) {
                self.settle_beside(key, connection, service, now);
            }
        } else {
            // That in which the record counts, whatever the slot says.
            self.settle_beside(key, connection, service, now);
            self.arena.note(key, read, written, last_in);
            may_die("vault-noted");
        }
        may_die("vault-settled");
    }

    pub(super) fn has_nothing_beside(
        &self,
        key: usize,
        connection: &Connection,
        survive: Survive,
    ) -> bool {
        connection.io.is_plain()
            && survive != Survive::State
            && !self.blocks.is_suspect(key, Self::reached(connection))
    }

    /// A connection is there whose socket was given away, once its service says how it stands: it was not while nobody could
    /// tell whether somebody has it.
    pub(super) fn arrived_given_away(
        &mut self,
        key: usize,
        connection: &Connection,
        service: &AnyService,
        now: Moment,
    ) {
        let is_exported = || connection.export(service, now).is_some();
        if service.survive() == Survive::State && is_exported() {
            self.arrived(key, connection, 0, (service, now));
            self.settle_beside(key, connection, service, now);
        }
    }

    /// How a connection stands for a service that is given again what it has not come to an end with. `None`: it ends with the
    /// process.
    pub(super) fn export_to_be_given_again(
        connection: &Connection,
        service: &AnyService,
        now: Moment,
    ) -> Option<Record> {
        let io = &connection.io;
        if matches!(service.survive(), Survive::Fresh | Survive::Journal) {
            return connection.export_afresh(now);
        }
        // What a service does with other descriptors nobody has noted.
        let is_more = io.far().is_some() || !io.watched().is_empty() && !io.is(Is::GivenAway);
        (!is_more).then(|| connection.export(service, now))?
    }

    pub(super) fn reached(connection: &Connection) -> Reached {
        let io = &connection.io;
        let read = if io.is_withheld() {
            io.input().0
        } else {
            connection.taken_in()
        };
        Reached {
            read,
            written: io.written,
        }
    }
}
