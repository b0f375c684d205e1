//! One of the connections that are held, over its losses: what is outstanding on it. `caller.rs` moves the bytes.

use standfast::client::LinkId;

use crate::load::pattern::Pattern;
use crate::load::verify::Verifier;

/// Why we ended a connection ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It was owed an echo for too long.
    TimedOut,
    /// What it sends is no echo.
    Foreign,
    /// Its one message is back.
    Done,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: LinkId,
    pub(super) up: bool,
    /// The first attempt to connect has come to an end.
    pub(super) is_tried: bool,
    /// The connection before this one was lost.
    pub(super) was_lost: bool,
    pub(super) cause: Option<Cause>,
    pub(super) verifier: Verifier,
    /// Messages of this connection that it began to send.
    pub(super) begun: u64,
    /// Those of them that are settled, echoed or not.
    pub(super) settled: u64,
    /// Where in the stream the first one ends that is not settled.
    pub(super) settled_at: u64,
    /// Where the last one ends that was begun.
    pub(super) begun_at: u64,
    /// The number of its next message among all of this slot.
    pub(super) next: u64,
    /// Some echo is outstanding.
    pub(super) owed: bool,
    /// When something of it came last, or it became outstanding.
    pub(super) waits_since: u64,
    /// With churn: when its message was due.
    pub(super) due: u64,
    /// With churn: whether its message has been sent, on this connection or one before.
    pub(super) is_counted: bool,
}

impl Slot {
    pub(super) const fn new() -> Self {
        Self {
            id: LinkId::MAX,
            up: false,
            is_tried: false,
            was_lost: false,
            cause: None,
            verifier: Verifier::new(Pattern::new(0)),
            begun: 0,
            settled: 0,
            settled_at: 0,
            begun_at: 0,
            next: 0,
            owed: false,
            waits_since: 0,
            due: 0,
            is_counted: false,
        }
    }

    /// A new connection, with a stream of its own.
    pub(super) fn connected(&mut self, stream: u32, size: u64) {
        self.up = true;
        self.cause = None;
        self.verifier = Verifier::new(Pattern::new(stream));
        self.begun = 0;
        self.settled = 0;
        self.settled_at = size;
        self.begun_at = 0;
        self.owed = false;
    }

    pub(super) const fn outstanding(&self) -> u64 {
        self.begun - self.settled
    }

    /// Gives back the messages that were begun and of which the kernel has taken nothing: they are not sent, and will be
    /// the next. Answers how many.
    pub(super) fn give_back(&mut self, size: u64) -> u64 {
        let taken = self.verifier.sent().div_ceil(size);
        let untaken = self.begun.saturating_sub(taken);
        self.begun -= untaken;
        self.begun_at = self.begun * size;
        self.next -= untaken;
        self.is_counted &= untaken == 0;
        untaken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_which_nothing_was_taken_is_the_next() {
        // Three messages of 10 bytes were begun as numbers 5, 6 and 7.
        for (taken, untaken) in [(0, 3), (1, 2), (10, 2), (11, 1), (30, 0)] {
            let mut slot = Slot::new();
            slot.connected(1, 10);
            (slot.begun, slot.next) = (3, 8);
            slot.verifier.took(taken);
            assert_eq!(slot.give_back(10), untaken, "{taken}");
            assert_eq!(slot.next, 8 - untaken);
            assert_eq!(slot.begun_at, (3 - untaken) * 10);
        }
    }
}
