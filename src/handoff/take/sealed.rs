//! What TLS has beside the records of connections.

use super::{Taker, Taking, UNKNOWN};
use crate::io::tls::has_come;
use crate::wire::record::Secret;

impl<T: Taker> Taking<'_, T> {
    /// The old process seals again: whatever came of sessions is of no use any more, and to go on with it would use numbers
    /// of records twice.
    pub(super) fn thaw_sessions(&mut self) {
        self.incomplete.extend(&self.sealed);
    }

    pub(super) fn take_sessions(&mut self, sessions: &[(u64, Secret)]) -> Result<(), String> {
        for (id, saved) in sessions {
            let &(at, key) = self.places.get(id).ok_or(UNKNOWN)?;
            let worker = self.workers.get_mut(at).ok_or(UNKNOWN)?;
            worker.take_session(key, &saved.0)?;
            self.incomplete.remove(id);
            if has_come(&saved.0) {
                self.first.insert(*id);
            }
        }
        Ok(())
    }

    pub(super) fn take_far_sessions(
        &mut self,
        sessions: &[(u64, Secret, Secret)],
    ) -> Result<(), String> {
        for (id, saved, far) in sessions {
            let &(at, key) = self.places.get(id).ok_or(UNKNOWN)?;
            let worker = self.workers.get_mut(at).ok_or(UNKNOWN)?;
            if !saved.0.is_empty() {
                worker.take_session(key, &saved.0)?;
            }
            worker.take_far_session(key, &far.0)?;
            self.incomplete.remove(id);
            if has_come(&saved.0) || has_come(&far.0) {
                self.first.insert(*id);
            }
        }
        Ok(())
    }

    pub(super) fn take_ticket_keys(&mut self, theirs: u16, keys: &[u8]) -> Result<(), String> {
        let ours = self.listener_of.get(usize::from(theirs));
        let ours = *ours.ok_or("tickets of no listener")?;
        let worker = self.workers.first_mut().ok_or("no worker")?;
        worker.take_ticket_keys(ours, keys);
        Ok(())
    }
}
