//! TLS sessions, which go in the freeze alone, in which nothing is sealed: with the records of their connections, or by
//! themselves where those were sent and have not changed since.

use std::io;
use std::mem;
use std::time::Instant;

use super::{FULL, Giving, Share};
use crate::connection::Connection;
use crate::io::Io;
use crate::io::marks::Mark;
use crate::wire::record::{Message, Record, Secret};

impl Share<'_> {
    /// `is_frozen`: nothing is sealed any more, so what it is sealed with may go.
    pub(super) fn export(&self, connection: &Connection, is_frozen: bool) -> Option<Record> {
        let mut record = connection.export(self.service(connection), self.now)?;
        if is_frozen && record.tls.is_some() {
            let saved = connection.io.saved_tls(true)?;
            record.tls = Some(Secret(saved.to_vec()));
        }
        if is_frozen
            && let Some(far) = &mut record.far
            && far.1.tls.is_some()
        {
            let saved = connection.io.far_io()?.saved_tls(true)?;
            far.1.tls = Some(Secret(saved.to_vec()));
        }
        Some(record)
    }

    /// Whether a handshake is under way that no other process can go on with.
    pub(super) fn is_shaking(&self) -> bool {
        let mut origins = self.origins.iter();
        origins.any(|origin| origin.settings.tls.is_some())
            && self
                .connections
                .iter()
                .any(|(_, connection)| connection.io.is_shaking())
    }
}

impl Giving {
    /// Each of them, whatever was sent in a freeze before. Those of connections that have changed go with their records.
    pub(super) fn send_sessions(
        &self,
        share: &Share<'_>,
        until: Option<Instant>,
    ) -> io::Result<()> {
        let (mut sessions, mut far_sessions, mut size) = (Vec::new(), Vec::new(), 0);
        for (_, connection) in &*share.connections {
            let io = &connection.io;
            if !io.marks.has(Mark::Copied) || io.marks.has(Mark::Changed) {
                continue;
            }
            let saved = |io: &Io| io.saved_tls(true).map(|saved| Secret(saved.to_vec()));
            let (own, far) = (saved(io), io.far_io().and_then(saved));
            let lengths = [&own, &far]
                .into_iter()
                .flatten()
                .map(|saved| saved.0.len());
            let length = lengths.sum::<usize>() + size_of::<u64>();
            if size + length > FULL {
                self.pass_sessions(&mut sessions, &mut far_sessions, until)?;
                size = 0;
            }
            match (own, far) {
                (None, None) => continue,
                (Some(own), None) => sessions.push((io.id(), own)),
                (own, Some(far)) => {
                    let own = own.unwrap_or_else(|| Secret(Vec::new()));
                    far_sessions.push((io.id(), own, far));
                }
            }
            size += length;
        }
        self.pass_sessions(&mut sessions, &mut far_sessions, until)
    }

    fn pass_sessions(
        &self,
        sessions: &mut Vec<(u64, Secret)>,
        far_sessions: &mut Vec<(u64, Secret, Secret)>,
        until: Option<Instant>,
    ) -> io::Result<()> {
        if !sessions.is_empty() {
            let message = Message::Sessions(mem::take(sessions));
            self.baton.pass(&message, &[], until)?;
        }
        if !far_sessions.is_empty() {
            let message = Message::FarSessions(mem::take(far_sessions));
            self.baton.pass(&message, &[], until)?;
        }
        Ok(())
    }
}
