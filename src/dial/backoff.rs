//! How long to wait before trying again: exponential backoff with full jitter. Pure: randomness comes in as an argument.
//!
//! Clients that lost the same server must not all come back at the same moment, so already the first retry is spread
//! over its whole interval.

use std::time::Duration;

/// Exponential backoff with full jitter: retry number `n` waits for anything from nothing to `least` doubled `n - 1`
/// times, at most `most`.
///
/// Too small a `most` keeps hammering a server that is down; too large a one lets clients come back late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Longest wait before the first retry. Default 500 ms.
    pub least: Duration,
    /// Longest wait before any. Default 30 s.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            least: Duration::from_millis(500),
            most: Duration::from_secs(30),
        }
    }
}

impl Backoff {
    /// The longest wait before retry number `attempt`; the first is 1.
    #[must_use]
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt.saturating_sub(1));
        factor
            .and_then(|factor| self.least.checked_mul(factor))
            .map_or(self.most, |wait| wait.min(self.most))
    }

    /// How long to wait before retry number `attempt`: the share of its [`ceiling`](Self::ceiling) that `random` is of
    /// all numbers.
    #[must_use]
    pub fn wait(&self, attempt: u32, random: u64) -> Duration {
        let ceiling = self.ceiling(attempt).as_nanos();
        // Below 2^64 nanoseconds, 584 years, the product fits.
        let share = (ceiling.min(u128::from(u64::MAX)) * u128::from(random)) >> 64;
        Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

/// The retries of one link: how many there were since it last was connected for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Retries {
    made: u32,
}

impl Retries {
    /// The next retry: its number, or none if `most` have been made.
    pub(crate) fn next(&mut self, most: Option<u32>) -> Option<u32> {
        if most.is_some_and(|most| self.made >= most) {
            return None;
        }
        self.made = self.made.saturating_add(1);
        Some(self.made)
    }

    /// It was connected for `age`: counting begins anew after `stable_after`. A server that accepts and closes at once
    /// is no better than one that refuses.
    pub(crate) fn connected_for(&mut self, age: Duration, stable_after: Duration) {
        if age >= stable_after {
            self.made = 0;
        }
    }

    pub(crate) fn made(self) -> u32 {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        least: Duration::from_millis(500),
        most: Duration::from_secs(30),
    };

    #[test]
    fn the_ceiling_doubles_up_to_the_most() {
        let millis: Vec<u128> = (1..=9)
            .map(|attempt| BACKOFF.ceiling(attempt).as_millis())
            .collect();
        assert_eq!(
            millis,
            [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]
        );
        for attempt in [31, 32, 33, 1000, u32::MAX] {
            assert_eq!(BACKOFF.ceiling(attempt), BACKOFF.most);
        }
    }

    #[test]
    fn randomness_spreads_over_the_whole_interval_the_first_retry_included() {
        assert_eq!(BACKOFF.wait(1, 0), Duration::ZERO);
        assert_eq!(
            BACKOFF.wait(1, u64::MAX / 2 + 1),
            Duration::from_millis(250)
        );
        assert_eq!(
            BACKOFF.wait(3, u64::MAX / 4 + 1),
            Duration::from_millis(500)
        );
        let nearly = BACKOFF.wait(4, u64::MAX);
        assert!(Duration::from_millis(3999) < nearly && nearly < Duration::from_secs(4));
        assert_eq!(BACKOFF.wait(9, u64::MAX).as_secs(), 29);
    }

    #[test]
    fn a_least_above_the_most_is_capped_and_nothing_overflows() {
        let odd = Backoff {
            least: Duration::from_secs(9),
            most: Duration::from_secs(3),
        };
        assert_eq!(odd.ceiling(1), Duration::from_secs(3));
        let endless = Backoff {
            least: Duration::MAX,
            most: Duration::MAX,
        };
        assert!(endless.wait(40, u64::MAX) > Duration::from_secs(500 * 365 * 86_400));
    }

    #[test]
    fn counting_begins_anew_only_after_a_stable_while() {
        let (mut retries, stable) = (Retries::default(), Duration::from_secs(10));
        assert_eq!(retries.next(None), Some(1));
        retries.connected_for(Duration::from_millis(9_999), stable);
        assert_eq!(retries.next(None), Some(2));
        retries.connected_for(stable, stable);
        assert_eq!(retries.next(None), Some(1));
    }

    #[test]
    fn retries_end() {
        let mut retries = Retries::default();
        assert_eq!(retries.next(Some(2)), Some(1));
        assert_eq!(retries.next(Some(2)), Some(2));
        assert_eq!(retries.next(Some(2)), None);
        assert_eq!(retries.made(), 2);
        assert_eq!(Retries::default().next(Some(0)), None);
    }
}
