//! How long a worker's drain may take, and what came of it.

use std::time::Duration;

use super::Ended;
use crate::time::deadline::Moment;

/// A worker's drain: not begun, under way, or at its end.
#[derive(Debug)]
pub(super) struct Drain {
    /// How long it may take.
    timeout: Option<Duration>,
    /// It has begun, and what is left then is cut off.
    until: Option<Moment>,
    from: Moment,
    /// Connections that were cut off.
    cut: u64,
}

impl Drain {
    pub(super) fn within(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            until: None,
            from: Moment::NEVER,
            cut: 0,
        }
    }

    pub(super) fn begin(&mut self, now: Moment) {
        self.until = Some(now.after_if(self.timeout));
        self.from = now;
    }

    pub(super) fn has_begun(&self) -> bool {
        self.until.is_some()
    }

    /// When what is left is cut off.
    pub(super) fn due(&self) -> Moment {
        self.until.unwrap_or(Moment::NEVER)
    }

    pub(super) fn count_cut(&mut self) {
        self.cut += 1;
    }

    pub(super) fn ended(&self) -> Ended {
        Ended {
            cut: self.cut,
            drained_from: self.from,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_due_its_timeout_after_it_began() {
        let now = Moment::at_start().after(Duration::from_secs(1));
        let mut drain = Drain::within(Some(Duration::from_secs(5)));
        assert!(!drain.has_begun());
        assert_eq!(drain.due(), Moment::NEVER);
        drain.begin(now);
        drain.count_cut();
        assert!(drain.has_begun());
        assert_eq!(drain.due(), now.after(Duration::from_secs(5)));
        assert_eq!(drain.ended().cut, 1);
        assert_eq!(drain.ended().drained_from, now);
    }

    #[test]
    fn a_drain_without_a_timeout_waits_for_the_last() {
        let mut drain = Drain::within(None);
        drain.begin(Moment::at_start());
        assert!(drain.has_begun());
        assert_eq!(drain.due(), Moment::NEVER);
    }
}
