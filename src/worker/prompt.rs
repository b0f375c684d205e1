//! Rounds of output: every connection's service is asked for some, a few hundred a turn.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Worker;
use crate::connection::Connection;
use crate::service::RoundStage;

/// Connections asked in one turn: events must not wait for a whole round.
const BATCH: usize = 512;

impl Worker {
    /// Begins a round if its time has come, and does a turn's part of the one that is under way.
    pub(super) fn prompt(&mut self) {
        let prompted = &self.shared.workers[self.index].prompted;
        if prompted.get() <= self.now {
            // Taken first: whoever prompts from here on has another round.
            prompted.take();
            self.round.is_due();
        }
        if self.round.goes_on() {
            self.tell(RoundStage::GoesOn);
        } else {
            // Each connection would change: while a takeover cannot follow, that waits for a moment.
            let keys = self.connections.capacity();
            if self.is_holding() || !self.round.begins(keys, self.clock) {
                return;
            }
            self.tell(RoundStage::Begins);
        }
        let mut asked = 0;
        while asked < BATCH
            && let Some(key) = self.round.next()
        {
            self.freeze_in_time();
            if self.connections.contains(key) {
                asked += 1;
                self.step(key, Connection::prompted);
            }
        }
        if let Some(took) = self.round.is_over(self.clock) {
            self.tell(RoundStage::Over { took });
        }
    }

    /// Tells each service how far the round has come.
    pub(super) fn tell(&self, stage: RoundStage) {
        for origin in &self.origins {
            let service = &origin.settings.service;
            // No connection is to blame for a service that panics here, nor does one suffer.
            let told = catch_unwind(AssertUnwindSafe(|| service.round(self.index, stage)));
            if told.is_err() {
                log::error!(service = service.name(); "a service panicked");
            }
        }
    }
}
