//! How far a worker has come with the connections that are to be asked for output.

use std::time::Duration;

use crate::time::deadline::{Clock, Moment};

/// A round: each key that there is, once.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The key that is next.
    next: usize,
    /// How many keys are left of it, the next one included.
    left: usize,
    /// The time for another one came meanwhile.
    again: bool,
    began: Option<Moment>,
}

impl Round {
    /// The time for one has come: behind the one that goes on, if one does.
    pub(super) fn is_due(&mut self) {
        self.again = true;
    }

    pub(super) fn goes_on(&self) -> bool {
        self.left > 0
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.goes_on() || self.again
    }

    /// Begins, over so many `keys`, if its time has come.
    pub(super) fn begins(&mut self, keys: usize, clock: Clock) -> bool {
        let begins = std::mem::take(&mut self.again);
        if begins {
            self.next = 0;
            self.left = keys;
            self.began = Some(clock.now());
        }
        begins
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        self.next += 1;
        Some(self.next - 1)
    }

    /// How long it took, if that was the last one.
    pub(super) fn is_over(&mut self, clock: Clock) -> Option<Duration> {
        let began = self.began.take_if(|_| self.left == 0)?;
        Some(clock.now().since(began))
    }
}
