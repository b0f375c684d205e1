//! What is known of an upstream from those who tried to reach it: whether it counts as down, and until when it is left
//! alone. Times are those of the server's clock, given.
//!
//! As nginx's `max_fails` and `fail_timeout`: so many failures within that time, and it counts as down; after the same
//! time again one client tries it, and the others go on without it until that one has reached it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::services::forward::options::Fails;

/// What is known of an upstream; shared by all workers, and looked at when one is dialled.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Failures in a row, and when the first of them was.
    fails: u32,
    since: Duration,
    down: Option<Down>,
}

/// It counts as down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Down {
    pub(super) since: Duration,
    /// It is left alone until then, if there is another one.
    pub(super) until: Duration,
}

impl Health {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn down(&self) -> Option<Down> {
        self.known().down
    }

    /// It counted as down when another process knew it.
    pub(super) fn is_down(&self, down: Down) {
        self.known().down = Some(down);
    }

    /// Whether it is worth a try.
    pub(super) fn is_promising(&self, now: Duration) -> bool {
        self.down().is_none_or(|down| down.until <= now)
    }

    /// Whether it is worth a try, by whoever asks: if that is to find out, nobody else is told so for a while.
    pub(super) fn admits(&self, now: Duration, fails: &Fails) -> bool {
        match &mut self.known().down {
            None => true,
            Some(down) if down.until > now => false,
            Some(down) => {
                down.until = now + fails.timeout;
                true
            }
        }
    }

    /// It could not be reached. Answers whether it counts as down from here on.
    pub(super) fn failed(&self, now: Duration, fails: &Fails) -> bool {
        let Some(most) = fails.max else { return false };
        let mut known = self.known();
        let until = now + fails.timeout;
        if let Some(down) = &mut known.down {
            down.until = until;
            return false;
        }
        if known.fails == 0 || now > known.since + fails.timeout {
            known.fails = 0;
            known.since = now;
        }
        known.fails += 1;
        if known.fails >= most.get() {
            known.down = Some(Down { since: now, until });
        }
        known.down.is_some()
    }

    /// It was reached. Answers for how long it had counted as down, if it did.
    pub(super) fn reached(&self, now: Duration) -> Option<Duration> {
        let mut known = self.known();
        known.fails = 0;
        let down = known.down.take()?;
        Some(now.saturating_sub(down.since))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fails(max: u32) -> Fails {
        Fails {
            max: NonZeroU32::new(max),
            timeout: at(10),
        }
    }

    #[test]
    fn one_that_failed_is_left_alone_for_a_while_and_then_tried_by_one() {
        let (health, fails) = (Health::default(), fails(1));
        assert!(health.admits(at(1), &fails));
        assert!(health.failed(at(1), &fails), "to be said");
        assert!(!health.failed(at(2), &fails), "said already");
        assert!(!health.admits(at(11), &fails) && !health.is_promising(at(11)));
        assert!(health.is_promising(at(12)) && health.admits(at(12), &fails));
        assert!(!health.admits(at(12), &fails), "somebody is trying it");
        assert!(!health.failed(at(14), &fails));
        assert!(!health.admits(at(23), &fails));
        assert!(health.admits(at(24), &fails));
        assert_eq!(health.reached(at(25)), Some(at(24)), "to be said");
        assert_eq!(health.reached(at(25)), None);
        assert!(health.admits(at(25), &fails));
    }

    #[test]
    fn only_so_many_failures_within_the_time_count() {
        let (health, fails) = (Health::default(), fails(3));
        assert!(!health.failed(at(1), &fails) && !health.failed(at(2), &fails));
        health.reached(at(3));
        assert!(!health.failed(at(4), &fails) && !health.failed(at(5), &fails));
        // Too late for the first two.
        assert!(!health.failed(at(15), &fails) && !health.failed(at(16), &fails));
        assert!(health.admits(at(16), &fails));
        assert!(health.failed(at(17), &fails));
        assert!(!health.admits(at(17), &fails));
    }

    #[test]
    fn with_max_fails_off_nothing_is_remembered() {
        let (health, fails) = (Health::default(), fails(0));
        for _ in 0..9 {
            assert!(!health.failed(at(1), &fails) && health.admits(at(1), &fails));
        }
        assert_eq!((health.down(), health.reached(at(2))), (None, None));
    }
}
