//! How many ends of connections are logged a second: by reason, so that a flood of one hides no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::kv::Key;
use log::{Log, Metadata, Record};
use standfast::{AcceptRate, CloseReason};

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The reasons of one log.
#[derive(Debug)]
pub(super) struct Rates {
    /// Between two lines of a reason, nanoseconds.
    apart: u64,
    /// How far lines may run ahead of that.
    ahead: u64,
    since: Instant,
    reasons: [OfReason; CloseReason::ALL.len()],
}

#[derive(Debug, Default)]
struct OfReason {
    /// When all lines so far would be out if they came one by one: nanoseconds.
    due: AtomicU64,
    left_out: AtomicU64,
}

impl Rates {
    pub(super) fn new(rate: AcceptRate, now: Instant) -> Self {
        Self {
            apart: nanoseconds(rate.interval()).max(1),
            ahead: nanoseconds(rate.ahead()),
            since: now,
            reasons: Default::default(),
        }
    }

    /// Whether a line for the reason of that number is to be logged; else it is counted. Answers the second with whether
    /// it is the first to be counted since they were [taken](Self::take).
    fn admits(&self, reason: usize, now: Instant) -> Result<(), bool> {
        let Some(reason) = self.reasons.get(reason) else {
            return Ok(());
        };
        let now = nanoseconds(now.saturating_duration_since(self.since));
        let next = |due: u64| {
            let from = due.max(now);
            (from - now <= self.ahead).then_some(from.saturating_add(self.apart))
        };
        let admitted = reason
            .due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        admitted
            .map(drop)
            .map_err(|_| reason.left_out.fetch_add(1, Ordering::Relaxed) == 0)
    }

    /// What was left out since it was asked last.
    pub(super) fn take(&self) -> Vec<(CloseReason, u64)> {
        let each = CloseReason::ALL.into_iter().zip(&self.reasons);
        let each = each.map(|(name, reason)| (name, reason.left_out.swap(0, Ordering::Relaxed)));
        each.filter(|&(_, count)| count > 0).collect()
    }

    pub(super) fn has_left_out(&self) -> bool {
        let mut reasons = self.reasons.iter();
        reasons.any(|reason| reason.left_out.load(Ordering::Relaxed) > 0)
    }
}

/// A log that leaves lines out.
pub(super) struct Limited<L> {
    pub(super) log: L,
    pub(super) rates: Arc<Rates>,
    /// Called when something was left out after nothing was.
    pub(super) tell: Box<dyn Fn() + Send + Sync>,
}

impl<L: Log> Log for Limited<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.log.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(reason) = reason(record)
            && self.log.enabled(record.metadata())
        {
            #[expect(
                clippy::disallowed_methods,
                reason = "a line of the log has the time in it, too"
            )]
            let now = Instant::now();
            match self.rates.admits(reason, now) {
                Ok(()) => {}
                Err(is_first) => {
                    if is_first {
                        (self.tell)();
                    }
                    return;
                }
            }
        }
        self.log.log(record);
    }

    fn flush(&self) {
        self.log.flush();
    }
}

/// The number of the reason, if the record says that a connection has ended.
fn reason(record: &Record<'_>) -> Option<usize> {
    if record.args().as_str() != Some("closed") {
        return None;
    }
    let reason = record.key_values().get(Key::from("reason"))?;
    let reason = reason.to_borrowed_str()?;
    let mut all = CloseReason::ALL.into_iter();
    all.position(|one| one.as_str() == reason)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;

    fn rates(per_second: u32, burst: u32, now: Instant) -> Rates {
        let [per_second, burst] = [per_second, burst].map(|n| NonZeroU32::new(n).unwrap());
        Rates::new(AcceptRate { per_second, burst }, now)
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a time to count from; none passes"
    )]
    fn each_reason_has_its_burst_and_then_its_rate() {
        let begin = Instant::now();
        let rates = rates(10, 3, begin);
        let at = |millis| begin + Duration::from_millis(millis);
        let (denied, closed) = (CloseReason::Denied, CloseReason::PeerClosed);
        let admitted = |reason: CloseReason, millis, tries: usize| {
            (0..tries)
                .filter(|_| rates.admits(reason as usize, at(millis)).is_ok())
                .count()
        };
        assert_eq!(admitted(denied, 0, 10), 3);
        assert_eq!(admitted(closed, 0, 2), 2, "another reason has its own");
        assert!(rates.has_left_out());
        assert_eq!(rates.take(), [(denied, 7)]);
        assert!(!rates.has_left_out());
        assert_eq!(admitted(denied, 99, 5), 0);
        assert_eq!(admitted(denied, 100, 5), 1);
        assert_eq!(admitted(denied, 250, 5), 1);
        assert_eq!(admitted(denied, 10_000, 10), 3, "no more than the burst");
        assert_eq!(rates.take(), [(denied, 20)]);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a time to count from; none passes"
    )]
    fn only_the_first_that_is_left_out_is_said() {
        let begin = Instant::now();
        let rates = rates(1, 1, begin);
        let tries = (0..4).map(|_| rates.admits(0, begin));
        let tries: Vec<_> = tries.collect();
        assert_eq!(tries, [Ok(()), Err(true), Err(false), Err(false)]);
        rates.take();
        assert_eq!(rates.admits(0, begin), Err(true));
    }
}
