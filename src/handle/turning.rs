//! Whether the workers turn, or one of them hangs.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use super::{Handle, Mail};
use crate::time::allowance::Allowance;

impl Handle {
    /// Whether every worker turns: each is asked, and answers within `patience`. What a watchdog wants to know.
    #[must_use]
    pub fn is_turning(&self, patience: Duration) -> bool {
        have_turned(&self.ping(), patience)
    }

    /// Asks every worker for a sign that it turns.
    pub(crate) fn ping(&self) -> Receiver<()> {
        let (reply, turning) = mpsc::channel();
        for worker in &self.shared.workers {
            worker.post(Mail::Ping(reply.clone()));
        }
        turning
    }
}

/// Whether all workers that were [asked](Handle::ping) have answered within `patience`, or have ended.
pub(crate) fn have_turned(turning: &Receiver<()>, patience: Duration) -> bool {
    let mut patience = Allowance::new(patience);
    while let Some(piece) = patience.piece() {
        match turning.recv_timeout(piece) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            // All have answered, or have ended: in a drain one may be done before the others.
            Err(RecvTimeoutError::Disconnected) => return true,
        }
    }
    false
}
