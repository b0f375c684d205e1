//! Keepalive where connections are many: their probes are kept from leaving at once.
//!
//! The kernel counts idle time in whole seconds and rounds its timers up by as much as an eighth, so connections that came
//! in one burst, or were last heard of together, are probed in the same millisecond. Loopback and the links of containers
//! hold a thousand packets (`net.core.netdev_max_backlog`) and drop the rest, and living peers count as vanished. So each
//! connection of many has an idle time of its own ([`Keepalive::spread`]), counted from a moment of its own.
//!
//! [`Keepalive::spread`]: crate::keepalive::Keepalive::spread

use std::collections::VecDeque;
use std::time::Duration;

use crate::deadline::Moment;

/// From how many connections on they are a herd.
const MANY: usize = 500;

/// In how many parts a burst of connections is dispersed, and the time between two: in all less than a second, for no idle
/// time is cut by less.
const PARTS: usize = 60;
const STEP: Duration = Duration::from_millis(15);

/// How long one may have waited for its turn, that its idle time may begin anew: the bound for a vanished peer holds.
const FRESH: Duration = Duration::from_secs(1);

/// Whether so many connections are a herd.
pub(crate) fn is_herd(connections: usize) -> bool {
    connections >= MANY
}

/// New connections of a herd, each until its turn comes.
#[derive(Debug, Default)]
pub(crate) struct Herd {
    waiting: VecDeque<Member>,
    /// The most that have waited at a time since none did.
    most: usize,
    next: Option<Moment>,
}

/// A new connection of a herd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    /// Where it was when it came,
    pub(crate) key: usize,
    /// and its number, for another may have come there since.
    pub(crate) id: u64,
    came: Moment,
}

impl Member {
    /// Whether its idle time may begin anew.
    pub(crate) fn is_fresh(&self, now: Moment) -> bool {
        now.since(self.came) <= FRESH
    }
}

impl Herd {
    pub(crate) fn add(&mut self, key: usize, id: u64, now: Moment) {
        self.waiting.push_back(Member { key, id, came: now });
        self.most = self.most.max(self.waiting.len());
        self.next.get_or_insert_with(|| now.after(STEP));
    }

    /// When the next part is due.
    pub(crate) fn next(&self) -> Moment {
        self.next.unwrap_or(Moment::NEVER)
    }

    /// Those whose turn has come.
    pub(crate) fn due(&mut self, now: Moment) -> impl Iterator<Item = Member> {
        let mut part = 0;
        if self.next() <= now {
            part = self.waiting.len().min(self.most / PARTS + 1);
            if part == self.waiting.len() {
                self.most = 0;
                self.next = None;
            } else {
                self.next = Some(now.after(STEP));
            }
        }
        self.waiting.drain(..part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_is_dispersed_evenly_over_the_window() {
        let mut herd = Herd::default();
        assert_eq!(herd.next(), Moment::NEVER);
        for id in 0..18_000 {
            herd.add(7, id, at(0));
        }
        let (mut came, mut last) = (0, at(0));
        while herd.next() != Moment::NEVER {
            last = herd.next();
            assert_eq!(herd.due(last.before(Duration::from_nanos(1))).count(), 0);
            let part: Vec<Member> = herd.due(last).collect();
            assert!((1..=301).contains(&part.len()), "{} at once", part.len());
            for member in part {
                assert_eq!(member.id, came);
                assert!(member.is_fresh(last));
                came += 1;
            }
        }
        assert_eq!(came, 18_000);
        assert!(last > at(800) && last <= at(0).after(FRESH), "{last:?}");
    }

    #[test]
    fn one_that_waited_for_long_keeps_the_time_that_it_was_idle() {
        let mut herd = Herd::default();
        herd.add(1, 2, at(0));
        let member = herd.due(at(5000)).next().unwrap();
        assert!(!member.is_fresh(at(5000)));
    }
}
