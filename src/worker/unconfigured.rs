//! Taken over connections get this process's socket options once they are served, in slices.

use std::time::Duration;

use crate::time::deadline::Moment;

/// Taken over connections that get their options at a time, and the rest before the next: nothing depends on them soon,
/// and live clients wait for the same processors.
const OPTIONS_BATCH: usize = 32;
const OPTIONS_REST: Duration = Duration::from_millis(1);

/// Taken over connections that have their former listener's options yet.
#[derive(Debug)]
pub(super) struct Unconfigured {
    /// Those below this key.
    below: usize,
    /// When the next of them get this process's.
    next: Moment,
}

impl Unconfigured {
    pub(super) fn none() -> Self {
        Self {
            below: 0,
            next: Moment::at_start(),
        }
    }

    /// All connections were taken over, at keys below `end`.
    pub(super) fn own(&mut self, end: usize) {
        self.below = end;
    }

    pub(super) fn due(&self) -> Moment {
        match self.below {
            0 => Moment::NEVER,
            _ => self.next,
        }
    }

    /// The keys whose turn has come; there may be no connection at some.
    pub(super) fn batch(&mut self, now: Moment) -> impl Iterator<Item = usize> + use<> {
        let end = self.below;
        self.below = end.saturating_sub(OPTIONS_BATCH);
        self.next = now.after(OPTIONS_REST);
        (self.below..end).rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_over_connections_get_their_options_once_each_and_with_rests() {
        let mut now = Moment::at_start();
        let mut unconfigured = Unconfigured::none();
        assert_eq!(unconfigured.due(), Moment::NEVER);
        let all = 2 * OPTIONS_BATCH + 1;
        unconfigured.own(all);
        assert_eq!(unconfigured.due(), now);
        let mut keys = Vec::new();
        while unconfigured.due() != Moment::NEVER {
            assert!(unconfigured.due() <= now);
            let batch: Vec<_> = unconfigured.batch(now).collect();
            assert!(batch.len() <= OPTIONS_BATCH);
            keys.extend(batch);
            now = now.after(OPTIONS_REST);
        }
        keys.reverse();
        assert_eq!(keys, (0..all).collect::<Vec<_>>());
    }
}
