//! A token bucket: when the next one may come. Pure: time comes in as an argument.

use std::time::Duration;

use crate::config::AcceptRate;
use crate::time::deadline::Moment;

/// The pace of those that come by an [`AcceptRate`], by the virtual scheduling of ATM's GCRA (ITU-T I.371, annex A): one
/// moment is all that is kept.
#[derive(Debug)]
pub(crate) struct Pace {
    /// From one to the next.
    interval: Duration,
    /// How much sooner than that they may come after a pause.
    ahead: Duration,
    /// When the next one would come if all kept to the interval.
    next: Moment,
}

impl Pace {
    pub(crate) fn of(rate: AcceptRate) -> Self {
        let interval = Duration::from_secs(1) / rate.per_second.get();
        Self {
            interval,
            ahead: interval * (rate.burst.get() - 1),
            next: Moment::at_start(),
        }
    }

    /// From when on one more may come.
    pub(crate) fn opens(&self) -> Moment {
        self.next.before(self.ahead)
    }

    /// One comes.
    pub(crate) fn take(&mut self, now: Moment) {
        self.next = self.next.max(now).after(self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    /// How many come in a turn at `now`.
    fn come(pace: &mut Pace, now: Moment) -> usize {
        let takes = std::iter::from_fn(|| (pace.opens() <= now).then(|| pace.take(now)));
        takes.take(1000).count()
    }

    #[test]
    fn a_burst_comes_at_once_and_then_one_an_interval() {
        let mut pace = Pace::of("10/s:3".parse().unwrap());
        let at = |time: u64| millis(60_000 + time);
        assert_eq!(come(&mut pace, at(0)), 3);
        assert_eq!(pace.opens(), at(100));
        assert_eq!(come(&mut pace, at(99)), 0);
        assert_eq!(come(&mut pace, at(100)), 1);
        assert_eq!(come(&mut pace, at(350)), 2);
        // However long the pause, a burst is all.
        assert_eq!(come(&mut pace, at(90_000)), 3);
    }

    #[test]
    fn in_the_long_run_it_is_the_rate_whatever_the_turns() {
        for step in [1, 7, 40, 250] {
            let mut pace = Pace::of("100/s".parse().unwrap());
            let turns =
                (0..10_000 / step).map(|turn| come(&mut pace, millis(60_000 + turn * step)));
            let count: usize = turns.sum();
            // Ten seconds and the burst.
            assert!((1075..=1101).contains(&count), "{count} by {step} ms");
        }
    }
}
