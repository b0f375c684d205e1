//! When a keeper starts the next server, and when there have been enough: pure arithmetic.

use std::time::{Duration, Instant};

/// Before another server is started: not at all, where the last one had served so long; then doubled, up to the most.
const SETTLED: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MOST: Duration = Duration::from_secs(5);

/// So many in a row that end before they serve are enough.
pub(super) const ENOUGH: u32 = 5;

/// How servers have ended.
pub(super) struct Falls {
    /// When the next one is started.
    pub(super) start_at: Option<Instant>,
    /// Ends in a row with less than [`SETTLED`] before them, and of those the ones without having served.
    in_a_row: u32,
    unserved: u32,
}

impl Falls {
    /// The first one is started at once.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            start_at: Some(now),
            in_a_row: 0,
            unserved: 0,
        }
    }

    /// Whether one is to be started now: once.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        self.start_at.take_if(|at| *at <= now).is_some()
    }

    /// One serves.
    pub(super) fn serves(&mut self) {
        self.unserved = 0;
    }

    /// One has ended that had served for so long, or had not (`None`).
    pub(super) fn ended(&mut self, served: Option<Duration>) {
        match served {
            None => self.unserved += 1,
            Some(served) if served >= SETTLED => self.in_a_row = 0,
            Some(_) => {}
        }
    }

    pub(super) fn are_enough(&self) -> bool {
        self.unserved >= ENOUGH
    }

    /// Another one is started: the sooner, the longer the last one has served.
    pub(super) fn fall(&mut self, now: Instant) {
        let pause = match self.in_a_row {
            0 => Duration::ZERO,
            falls => PAUSE.saturating_mul(1 << (falls - 1).min(16)),
        };
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.start_at = Some(now + pause.min(PAUSE_MOST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn pauses(falls: &mut Falls, count: usize) -> Vec<u64> {
        let now = Instant::now();
        let each = (0..count).map(|_| {
            falls.fall(now);
            let at = falls.start_at.unwrap();
            assert!(falls.is_due(at) && !falls.is_due(at), "once");
            (at - now).as_millis().try_into().unwrap()
        });
        each.collect()
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn the_next_one_is_started_at_once_then_later_and_later() {
        let mut falls = Falls::new(Instant::now());
        let expected = [0, 250, 500, 1000, 2000, 4000, 5000, 5000];
        assert_eq!(pauses(&mut falls, 8), expected);
        falls.ended(Some(Duration::from_millis(999)));
        assert_eq!(pauses(&mut falls, 1), [5000]);
        falls.ended(Some(SETTLED));
        assert_eq!(pauses(&mut falls, 2), [0, 250]);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn five_that_do_not_serve_are_enough_in_a_row() {
        let mut falls = Falls::new(Instant::now());
        for _ in 1..ENOUGH {
            falls.ended(None);
            assert!(!falls.are_enough());
        }
        falls.serves();
        for _ in 0..ENOUGH {
            assert!(!falls.are_enough());
            falls.ended(None);
        }
        assert!(falls.are_enough());
    }
}
