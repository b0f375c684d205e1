//! TLS sessions of connections that were sent, and have not changed since: in the freeze, in which nothing is sealed.

use std::io;
use std::time::Instant;

use super::{FULL, Giving, Share};
use crate::io::marks::Mark;
use crate::wire::record::{Message, Secret};

impl Giving {
    /// Each of them, whatever was sent in a freeze before. Those of connections that have changed go with their records.
    pub(super) fn send_sessions(
        &self,
        share: &Share<'_>,
        until: Option<Instant>,
    ) -> io::Result<()> {
        let mut connections = share.connections.iter();
        loop {
            let mut sessions = Vec::new();
            let mut size = 0;
            while size < FULL
                && let Some((_, connection)) = connections.next()
            {
                let io = &connection.io;
                if io.marks.has(Mark::Copied)
                    && !io.marks.has(Mark::Changed)
                    && let Some(saved) = io.saved_tls(true)
                {
                    size += saved.len() + size_of::<u64>();
                    sessions.push((io.id(), Secret(saved.to_vec())));
                }
            }
            if sessions.is_empty() {
                return Ok(());
            }
            self.baton.pass(&Message::Sessions(sessions), &[], until)?;
        }
    }
}
