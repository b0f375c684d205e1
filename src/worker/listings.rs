//! The tables of connections that are asked for: a batch of each a turn.

use slab::Slab;

use crate::connection::Connection;
use crate::handle::listing::{Batch, Wish};
use crate::inspect::ConnectionInfo;

/// Keys looked at in one turn: a table of all must not hold up those that are served.
const BATCH: usize = 32;

/// Batches that are asked for.
#[derive(Debug, Default)]
pub(super) struct Listings(Vec<Wish>);

impl Listings {
    pub(super) fn add(&mut self, wish: Wish) {
        self.0.push(wish);
    }

    /// Answers each, by how a connection is shown.
    pub(super) fn show(
        &mut self,
        connections: &Slab<Connection>,
        show: impl Fn(&Connection) -> ConnectionInfo,
    ) {
        for Wish { from, reply } in self.0.drain(..) {
            let most = connections.capacity();
            let end = from.saturating_add(BATCH).min(most);
            let shown = (from..end).filter_map(|key| connections.get(key));
            let connections = shown.map(&show).collect();
            let next = (end < most).then_some(end);
            // Nobody listens any more.
            let _ = reply.send(Batch { connections, next });
        }
    }
}
