//! How long work will take, by what the same kind of work has taken so far.

use std::time::Duration;

/// What one connection's record costs beside its bytes: as much as so many of those.
pub(crate) const RECORD: u64 = 1024;

/// Of so much work it is remembered how long it took: what is older counts half, and less and less.
const REMEMBERED: u64 = 4 * 1024 * 1024;

/// Work done, in bytes, and the time it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    work: u64,
    time: Duration,
}

impl Default for Pace {
    /// What is expected before anything was measured: 500 MB/s.
    fn default() -> Self {
        Self {
            work: 1_000_000,
            time: Duration::from_millis(2),
        }
    }
}

impl Pace {
    pub(crate) fn note(&mut self, work: u64, time: Duration) {
        self.work = self.work.saturating_add(work);
        self.time = self.time.saturating_add(time);
        while self.work > REMEMBERED {
            self.work /= 2;
            self.time /= 2;
        }
    }

    /// How long `work` will take.
    pub(crate) fn time_for(&self, work: u64) -> Duration {
        let nanos = self.time.as_nanos() * u128::from(work) / u128::from(self.work.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_lately_is_expected_to_take_long() {
        let mut pace = Pace::default();
        let whole = 100 * 1024 * 1024;
        assert!(pace.time_for(whole) < Duration::from_millis(300));
        for _ in 0..1000 {
            pace.note(64 * 1024, Duration::from_millis(1));
        }
        let expected = Duration::from_millis(whole / (64 * 1024));
        let slow = pace.time_for(whole);
        assert!(slow > expected.mul_f64(0.99) && slow < expected.mul_f64(1.01));
        // One bad moment is no verdict.
        pace.note(64 * 1024, Duration::from_millis(20));
        assert!(pace.time_for(whole) < slow * 2);
        for _ in 0..1000 {
            pace.note(64 * 1024, Duration::from_micros(100));
        }
        assert!(pace.time_for(whole) < slow / 9);
        assert_eq!(pace.time_for(0), Duration::ZERO);
        assert!(pace.time_for(u64::MAX) > Duration::from_secs(1000));
    }
}
