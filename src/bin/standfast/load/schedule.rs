//! When each message of a given rate is due. Pure; times are nanoseconds.

/// Binary places of a period's fraction: so that rates that are no divisor of a second hold over days.
const FRACTION: u32 = 24;

/// Messages 0, 1, 2, ... at equal distances.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    start: u64,
    /// In 2^-24 nanoseconds.
    period: u128,
}

impl Schedule {
    /// From `start` on, `rate` a second.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast from a float saturates"
    )]
    pub(super) fn new(start: u64, rate: f64) -> Self {
        let period = 1e9 / rate * f64::from(1_u32 << FRACTION);
        Self {
            start,
            period: (period as u128).max(1),
        }
    }

    /// When message `number` is due.
    pub(super) fn due(&self, number: u64) -> u64 {
        let after = u128::from(number).saturating_mul(self.period) >> FRACTION;
        let after = u64::try_from(after).unwrap_or(u64::MAX);
        self.start.saturating_add(after)
    }

    /// How many are due before `end`.
    pub(super) fn before(&self, end: u64) -> u64 {
        let time = u128::from(end.saturating_sub(self.start)) << FRACTION;
        u64::try_from(time.div_ceil(self.period)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn messages_are_due_at_equal_distances() {
        let schedule = Schedule::new(5 * SECOND, 4.0);
        let due: Vec<u64> = (0..3).map(|number| schedule.due(number)).collect();
        assert_eq!(due, [5_000_000_000, 5_250_000_000, 5_500_000_000]);
    }

    #[test]
    fn a_rate_that_divides_nothing_holds_for_a_day() {
        let schedule = Schedule::new(0, 30_000.0 / 7.0);
        let day = 86_400 * SECOND;
        let off = schedule.due(30_000 * 86_400 / 7).abs_diff(day);
        assert!(off < SECOND / 1000, "{off} ns");
    }

    #[test]
    fn what_is_due_is_counted() {
        for rate in [0.001, 0.3, 1.0, 3.0, 1000.0, 77_777.0, 1e9] {
            let schedule = Schedule::new(SECOND, rate);
            for number in [0, 1, 2, 999, 100_000] {
                let due = schedule.due(number);
                // At high rates several may fall on one nanosecond, but none is counted before its time.
                assert!(schedule.before(due) <= number, "{rate} {number}");
                assert!(schedule.before(due + 1) > number, "{rate} {number}");
            }
            assert_eq!(schedule.before(SECOND), 0);
            assert_eq!(schedule.before(0), 0);
        }
    }
}
