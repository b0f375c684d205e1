//! A worker's drain: whose turn to go comes when, how long each has from then on, and what came of it.
//!
//! Told to drain, a server goes on for the delay as if nothing had happened, but for being unready. Then it accepts no
//! more, and the turns of those who are there come one after another over the spread. Who is not done at the timeout
//! after its turn is cut off. So all is over after the sum of the three at the latest.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Config;
use crate::handle::Order;
use crate::liveness::keepalive::evenly;
use crate::time::deadline::Moment;

/// How long the parts of a drain may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrainTimes {
    delay: Duration,
    spread: Duration,
    /// `None`: as long as it takes.
    timeout: Option<Duration>,
}

impl DrainTimes {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            delay: config.drain_delay.unwrap_or_default(),
            spread: config.drain_spread.unwrap_or_default(),
            timeout: config.drain_timeout,
        }
    }

    /// When a drain is over whose turns begin `now`.
    pub(crate) fn over_at(&self, now: Moment) -> Moment {
        now.after(self.spread).after_if(self.timeout)
    }
}

/// How the drain of a worker ended, and so the worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drained {
    /// Connections that were cut off.
    pub(crate) cut: u64,
    /// When its drain was to be over, if there was one.
    pub(crate) over_at: Option<Moment>,
}

/// Jitter is in so many steps.
const STEPS: u32 = 1024;

/// A connection whose turn to go comes, or to be cut off.
#[derive(Clone, Copy, Debug)]
struct Due {
    at: Moment,
    key: usize,
    /// The key may be another connection's by then.
    id: u64,
}

/// A worker's drain: not begun, under way, or at its end.
#[derive(Debug)]
pub(super) struct Drain {
    times: DrainTimes,
    /// Told to drain: until then it accepts.
    accepts_until: Option<Moment>,
    /// It accepts no more, and all turns come before that.
    turns_until: Option<Moment>,
    turns: VecDeque<Due>,
    /// Those whose turn has come, to be cut off if they are not done.
    cuts: VecDeque<Due>,
    /// It has said that some were not done.
    said: bool,
    /// Connections that were cut off.
    cut: u64,
}

impl Drain {
    pub(super) fn by(times: DrainTimes) -> Self {
        Self {
            times,
            accepts_until: None,
            turns_until: None,
            turns: VecDeque::new(),
            cuts: VecDeque::new(),
            said: false,
            cut: 0,
        }
    }

    /// The server is told to end. Answers whether it is to accept no more.
    pub(super) fn told(&mut self, order: Order, now: Moment) -> bool {
        match order {
            Order::Run => return false,
            Order::Drain => {}
            Order::DrainAtOnce | Order::Stop => {
                self.times.delay = Duration::ZERO;
                self.times.spread = Duration::ZERO;
                self.accepts_until = Some(now);
                for due in &mut self.turns {
                    due.at = now;
                }
            }
        }
        let until = self
            .accepts_until
            .unwrap_or_else(|| now.after(self.times.delay));
        self.accepts_until = Some(until);
        until <= now
    }

    /// Whether it told others for a while that it would end.
    pub(super) fn was_delayed(&self) -> bool {
        !self.times.delay.is_zero()
    }

    /// The turns of `clients` begin, of each its key and number; one after another, in step with those of the other
    /// workers: this is the `index`th of so many.
    pub(super) fn begin(
        &mut self,
        now: Moment,
        clients: impl ExactSizeIterator<Item = (usize, u64)>,
        (index, workers): (usize, usize),
    ) {
        self.turns_until = Some(now.after(self.times.spread));
        let each = share(self.times.spread, clients.len());
        let own = share(each, workers);
        let offset = own.saturating_mul(u32::try_from(index).unwrap_or(0));
        let mut begins = now.after(offset);
        for (key, id) in clients {
            let at = begins.after(own / STEPS * evenly(id, STEPS));
            self.turns.push_back(Due { at, key, id });
            begins = begins.after(each);
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.turns_until.is_some()
    }

    /// One more, who was let in by the system before it began. Its turn is one of those yet to come.
    pub(super) fn arrived(&mut self, key: usize, id: u64, now: Moment) {
        let Some(until) = self.turns_until else {
            return;
        };
        let at = now.after(until.since(now) / STEPS * evenly(id, STEPS));
        let behind = self.turns.partition_point(|due| due.at <= at);
        self.turns.insert(behind, Due { at, key, id });
    }

    /// Whose turn has come `now`, by key and number.
    pub(super) fn next_turn(&mut self, now: Moment) -> Option<(usize, u64)> {
        let due = self.turns.pop_front_if(|due| due.at <= now)?;
        // A late turn takes nothing of the time that follows it.
        let at = now.after_if(self.times.timeout);
        self.cuts.push_back(Due { at, ..due });
        Some((due.key, due.id))
    }

    /// Who should be done by what is `known`, and may not be.
    pub(super) fn next_cut(&mut self, known: Moment) -> Option<(usize, u64)> {
        let due = self.cuts.pop_front_if(|due| due.at <= known)?;
        Some((due.key, due.id))
    }

    /// When something is to be done for it next.
    pub(super) fn due(&self) -> Moment {
        let first = |queue: &VecDeque<Due>| queue.front().map_or(Moment::NEVER, |due| due.at);
        let next = first(&self.turns).min(first(&self.cuts));
        match self.accepts_until {
            Some(until) if !self.has_begun() => next.min(until),
            _ => next,
        }
    }

    /// So many were cut off. Answers whether that is the first time.
    pub(super) fn count_cut(&mut self, count: u64) -> bool {
        self.cut += count;
        count > 0 && !std::mem::replace(&mut self.said, true)
    }

    pub(super) fn ended(&self) -> Drained {
        Drained {
            cut: self.cut,
            over_at: self
                .turns_until
                .map(|until| until.after_if(self.times.timeout)),
        }
    }
}

/// One of so many equal parts of `whole`.
fn share(whole: Duration, parts: usize) -> Duration {
    whole / u32::try_from(parts).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn drain(delay: u32, spread: u32, timeout: Option<Duration>) -> Drain {
        Drain::by(DrainTimes {
            delay: delay * SECOND,
            spread: spread * SECOND,
            timeout,
        })
    }

    fn start() -> Moment {
        Moment::at_start().after(SECOND)
    }

    fn clients(count: usize) -> impl ExactSizeIterator<Item = (usize, u64)> {
        (0..count).map(|key| (key, 1000 + key as u64))
    }

    #[test]
    fn a_drain_is_due_its_timeout_after_it_began() {
        let now = start();
        let mut drain = drain(0, 0, Some(5 * SECOND));
        assert!(!drain.has_begun());
        assert_eq!(drain.due(), Moment::NEVER);
        assert!(drain.told(Order::Drain, now));
        drain.begin(now, clients(1), (0, 1));
        assert_eq!(drain.next_turn(now), Some((0, 1000)));
        assert!(drain.has_begun());
        let end = now.after(5 * SECOND);
        assert_eq!(drain.due(), end);
        assert_eq!(drain.next_cut(end.before(SECOND)), None);
        assert_eq!(drain.next_cut(end), Some((0, 1000)));
        assert!(drain.count_cut(1));
        assert!(!drain.count_cut(1));
        assert_eq!(drain.ended().cut, 2);
        assert_eq!(drain.ended().over_at, Some(end));
    }

    #[test]
    fn a_drain_without_a_timeout_waits_for_the_last() {
        let mut drain = drain(0, 0, None);
        drain.begin(start(), clients(3), (0, 1));
        while drain.next_turn(start()).is_some() {}
        assert!(drain.has_begun());
        assert_eq!(drain.due(), Moment::NEVER);
    }

    #[test]
    fn it_accepts_until_the_delay_is_over_unless_it_is_urgent() {
        let now = start();
        for urgent in [Order::DrainAtOnce, Order::Stop] {
            let mut drain = drain(3, 60, Some(SECOND));
            assert!(!drain.told(Order::Drain, now));
            assert_eq!(drain.due(), now.after(3 * SECOND));
            assert!(!drain.told(Order::Drain, now.after(2 * SECOND)));
            assert!(drain.told(urgent, now.after(2 * SECOND)));
            assert!(!drain.told(Order::Run, now.after(2 * SECOND)));
        }
        let mut drain = drain(3, 60, Some(SECOND));
        assert!(!drain.told(Order::Drain, now));
        assert!(drain.told(Order::Drain, now.after(3 * SECOND)));
    }

    /// When the turns come of so many clients of each of two workers.
    fn turns(count: usize, spread: u32) -> Vec<Duration> {
        let now = start();
        let mut turns = Vec::new();
        for index in 0..2 {
            let mut drain = drain(0, spread, Some(SECOND));
            drain.begin(now, clients(count), (index, 2));
            while drain.due() != Moment::NEVER {
                let at = drain.turns.front().map(|due| due.at);
                let Some(at) = at else { break };
                assert!(drain.next_turn(at).is_some());
                turns.push(at.since(now));
            }
        }
        turns.sort();
        turns
    }

    #[test]
    fn turns_come_evenly_over_the_spread_and_not_in_step() {
        let turns = turns(500, 10);
        assert_eq!(turns.len(), 1000);
        for (nth, at) in (0_u32..).zip(&turns) {
            let begins = SECOND / 100 * nth;
            assert!(
                *at >= begins && *at < begins + SECOND / 100,
                "{nth}: {at:?}"
            );
        }
        let into = |(nth, at): (u32, &Duration)| (*at - SECOND / 100 * nth).as_millis();
        let jitter: Vec<_> = (0..).zip(&turns).map(into).collect();
        assert!(jitter.contains(&0) && jitter.contains(&9), "{jitter:?}");
    }

    #[test]
    fn without_a_spread_all_turns_come_at_once() {
        assert!(turns(500, 0).into_iter().all(|at| at.is_zero()));
    }

    #[test]
    fn each_has_the_timeout_from_its_own_turn_on() {
        let now = start();
        let mut drain = drain(0, 10, Some(5 * SECOND));
        drain.begin(now, clients(2), (0, 1));
        assert!(drain.next_turn(now.after(5 * SECOND)).is_some());
        assert!(drain.next_turn(now.after(10 * SECOND)).is_some());
        assert!(drain.next_cut(now.after(10 * SECOND)).is_some());
        assert!(drain.next_cut(now.after(14 * SECOND)).is_none());
        assert!(drain.next_cut(now.after(15 * SECOND)).is_some());
        assert_eq!(drain.ended().over_at, Some(now.after(15 * SECOND)));
    }

    #[test]
    fn who_arrives_late_has_a_turn_in_what_is_left_of_the_spread() {
        let now = start();
        let mut drain = drain(0, 10, Some(SECOND));
        drain.begin(now, clients(10), (0, 1));
        let later = now.after(9 * SECOND);
        for id in 0..50 {
            drain.arrived(100, id, later);
        }
        let all: Vec<Moment> = drain.turns.iter().map(|due| due.at).collect();
        assert_eq!(all.len(), 60);
        assert!(all.is_sorted());
        let late = drain.turns.iter().filter(|due| due.key == 100);
        assert!(
            late.clone()
                .all(|due| due.at >= later && due.at <= now.after(10 * SECOND))
        );
        drain.told(Order::DrainAtOnce, now);
        assert_eq!(
            drain.due(),
            now,
            "all that is left of them, when it is urgent"
        );
    }
}
