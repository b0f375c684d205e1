//! Rounds of output: every connection's service is asked for some, a few hundred a turn.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Worker;
use crate::connection::Connection;
use crate::service::RoundStage;
use crate::time::deadline::Moment;

/// Connections asked in one turn: events must not wait for a whole round.
const BATCH: usize = 512;

/// How far a worker has come with the connections that are to be asked.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The key that is next.
    next: usize,
    /// How many keys are left of the round, the next one included.
    left: usize,
    /// The time for another one came meanwhile.
    again: bool,
    began: Option<Moment>,
}

impl Round {
    pub(super) fn is_under_way(&self) -> bool {
        self.left > 0 || self.again
    }
}

impl Worker {
    /// Begins a round if its time has come, and does a turn's part of the one that is under way.
    pub(super) fn prompt(&mut self) {
        let prompted = &self.shared.workers[self.index].prompted;
        if prompted.get() <= self.now {
            // Taken first: whoever prompts from here on has another round.
            prompted.take();
            self.round.again = true;
        }
        if self.round.left == 0 {
            // Each connection would change: while a takeover cannot follow, that waits for a moment.
            if self.is_holding() || !std::mem::take(&mut self.round.again) {
                return;
            }
            self.round.began = Some(self.clock.now());
            self.tell(RoundStage::Begins);
            self.round.next = 0;
            self.round.left = self.connections.capacity();
        } else {
            self.tell(RoundStage::GoesOn);
        }
        let mut asked = 0;
        while self.round.left > 0 && asked < BATCH {
            self.freeze_in_time();
            let key = self.round.next;
            self.round.next += 1;
            self.round.left -= 1;
            if self.connections.contains(key) {
                asked += 1;
                self.step(key, Connection::prompted);
            }
        }
        if self.round.left == 0
            && let Some(began) = self.round.began.take()
        {
            let took = self.clock.now().since(began);
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
