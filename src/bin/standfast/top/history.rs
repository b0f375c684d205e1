//! The counters of the last minutes, and what they came to in a second.

use std::collections::VecDeque;
use std::time::Duration;

use standfast::inspect::Status;

/// How much is remembered; the page of `--metrics` has the same.
pub(super) const SPAN: Duration = Duration::from_secs(300);

/// What is drawn as a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    Open,
    Accepted,
    Ended,
    Read,
    Written,
}

/// The counters at some time.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// Since the first process of this server began to count: the server's own time, so that neither its answer's way nor a
    /// takeover makes a rate wrong.
    at: Duration,
    open: u64,
    accepted: u64,
    closed: u64,
    read: u64,
    written: u64,
}

impl Point {
    fn of(&self, measure: Measure) -> f64 {
        let count = match measure {
            Measure::Open => self.open,
            Measure::Accepted => self.accepted,
            Measure::Ended => self.closed,
            Measure::Read => self.read,
            Measure::Written => self.written,
        };
        count as f64
    }
}

/// Over a takeover the time that a server has counted for is not exact to the moment.
const INEXACT: Duration = Duration::from_secs(2);

/// What was told of a server last, to know whether another one answers.
#[derive(Debug)]
pub(super) struct Seen {
    pid: u32,
    counted_for: Duration,
    crashes: u64,
    /// By our clock.
    answered: Duration,
}

impl Seen {
    /// It was there at `answered`.
    pub(super) fn of(status: &Status, answered: Duration) -> Self {
        Self {
            pid: status.pid,
            counted_for: status.counted_for,
            crashes: status.crashes.unwrap_or(0),
            answered,
        }
    }

    /// Who has answered with `status` what was asked at `asked`.
    pub(super) fn serves(&self, status: &Status, asked: Duration) -> Serves {
        let since = asked.saturating_sub(self.answered);
        let has_counted_on = status.counted_for >= self.counted_for
            && status.counted_for.saturating_add(INEXACT) >= self.counted_for.saturating_add(since);
        if !has_counted_on || status.crashes.unwrap_or(0) > self.crashes {
            Serves::Other
        } else if status.pid == self.pid {
            Serves::Still
        } else {
            Serves::Successor
        }
    }
}

/// What a status says of the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serves {
    /// The same process.
    Still,
    /// Another process, which took over from it.
    Successor,
    /// Another server, which has nobody of the one before.
    Other,
}

/// The counters over the last minutes, over the server's processes.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The oldest first.
    points: VecDeque<Point>,
    /// When other processes took over, in the server's time.
    takeovers: VecDeque<Duration>,
}

impl History {
    /// Takes down what was told by whoever `serves`.
    pub(super) fn remember(&mut self, status: &Status, serves: Serves) {
        let now = status.counted_for;
        match serves {
            Serves::Still => {}
            Serves::Successor => self.takeovers.push_back(now),
            Serves::Other => {
                self.points.clear();
                self.takeovers.clear();
            }
        }
        if self.points.is_empty() {
            self.points
                .extend(status.samples.iter().map(|sample| Point {
                    at: now.saturating_sub(sample.ago),
                    open: sample.open,
                    accepted: sample.accepted,
                    closed: sample.closed,
                    read: sample.read,
                    written: sample.written,
                }));
        }
        self.points.push_back(Point {
            at: now,
            open: u64::try_from(status.open).unwrap_or(u64::MAX),
            accepted: status.accepted,
            closed: status.closed.iter().map(|(_, count)| count).sum(),
            read: status.read,
            written: status.written,
        });
        let since = now.saturating_sub(SPAN);
        // One older than that is kept: the first column begins between it and the next.
        while self.points.get(1).is_some_and(|point| point.at < since) {
            self.points.pop_front();
        }
        while self.takeovers.front().is_some_and(|at| *at < since) {
            self.takeovers.pop_front();
        }
    }

    /// A second, from the last time to this one; of open connections how many.
    pub(super) fn now(&self, measure: Measure) -> f64 {
        let last = self.points.back();
        match measure {
            Measure::Open => last.map_or(0.0, |point| point.of(measure)),
            _ => self.rates(measure).next_back().unwrap_or(0.0),
        }
    }

    /// The most of it that there was from one time to the next.
    pub(super) fn most(&self, measure: Measure) -> f64 {
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        match measure {
            Measure::Open => most(&mut self.points.iter().map(|point| point.of(measure))),
            _ => most(&mut self.rates(measure)),
        }
    }

    fn rates(&self, measure: Measure) -> impl DoubleEndedIterator<Item = f64> {
        let pairs = self.points.iter().zip(self.points.iter().skip(1));
        pairs.filter_map(move |(before, point)| {
            let time = point.at.saturating_sub(before.at).as_secs_f64();
            // Of a counter that fell there is no rate.
            (time > 0.0).then(|| (point.of(measure) - before.of(measure)).max(0.0) / time)
        })
    }

    /// The last [`SPAN`] in so many columns; `None` where nothing is known.
    pub(super) fn columns(&self, measure: Measure, columns: usize) -> Vec<Option<f64>> {
        let bounds = self.bounds(columns);
        let column = |(from, to): (f64, f64)| {
            let first = self.points.front()?.at.as_secs_f64();
            if to <= first {
                return None;
            }
            let from = from.max(first);
            if measure == Measure::Open {
                let within = self.points.iter().filter(|point| {
                    let at = point.at.as_secs_f64();
                    from <= at && at <= to
                });
                let most = within.map(|point| point.of(measure)).fold(0.0, f64::max);
                return Some(most.max(self.between(measure, to)));
            }
            let time = (to - from).max(1e-3);
            Some((self.between(measure, to) - self.between(measure, from)).max(0.0) / time)
        };
        bounds.into_iter().map(column).collect()
    }

    /// In which of those columns another process took over.
    pub(super) fn takeovers(&self, columns: usize) -> Vec<bool> {
        let bounds = self.bounds(columns).into_iter();
        let has = |(from, to)| {
            let mut takeovers = self.takeovers.iter().map(Duration::as_secs_f64);
            takeovers.any(|at| from < at && at <= to)
        };
        bounds.map(has).collect()
    }

    /// From when to when each column is, in the server's time; before it began the time is below zero.
    fn bounds(&self, columns: usize) -> Vec<(f64, f64)> {
        let now = self.points.back().map_or(0.0, |p| p.at.as_secs_f64());
        let wide = SPAN.as_secs_f64() / columns.max(1) as f64;
        let end = |left: usize| now - wide * left as f64;
        let columns = (0..columns).rev();
        columns.map(|left| (end(left + 1), end(left))).collect()
    }

    /// A count at some time, on the straight line between those before and after it.
    fn between(&self, measure: Measure, at: f64) -> f64 {
        let after = self.points.partition_point(|p| p.at.as_secs_f64() < at);
        let point = |index: usize| {
            let point = self.points.get(index)?;
            Some((point.at.as_secs_f64(), point.of(measure)))
        };
        let before = after.checked_sub(1).and_then(point);
        match (before, point(after)) {
            (Some((from, low)), Some((to, high))) if from < to => {
                low + (high - low) * (at - from) / (to - from)
            }
            (_, Some((_, value))) | (Some((_, value)), None) => value,
            (None, None) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::told;

    /// A status after so many seconds, with that many connections accepted and that many open.
    fn status(pid: u32, seconds: f64, accepted: u64, open: usize) -> Status {
        let mut status = told::status();
        status.pid = pid;
        status.counted_for = Duration::from_secs_f64(seconds);
        status.accepted = accepted;
        status.open = open;
        status
    }

    #[test]
    fn a_rate_is_the_difference_of_two_counts_by_the_servers_time_between_them() {
        let mut history = History::default();
        assert_eq!(history.now(Measure::Accepted), 0.0);
        history.remember(&status(1, 10.0, 100, 3), Serves::Still);
        assert_eq!(history.now(Measure::Accepted), 0.0, "one count is no rate");
        history.remember(&status(1, 12.0, 300, 5), Serves::Still);
        history.remember(&status(1, 13.0, 310, 4), Serves::Still);
        assert_eq!(history.now(Measure::Accepted), 10.0);
        assert_eq!(history.most(Measure::Accepted), 100.0);
        assert_eq!(history.now(Measure::Open), 4.0);
        assert_eq!(history.most(Measure::Open), 5.0);
    }

    #[test]
    fn the_same_time_twice_is_no_rate() {
        let mut history = History::default();
        history.remember(&status(1, 1.0, 0, 0), Serves::Still);
        history.remember(&status(1, 2.0, 5, 0), Serves::Still);
        history.remember(&status(1, 2.0, 6, 0), Serves::Still);
        assert_eq!(history.now(Measure::Accepted), 5.0);
    }

    #[test]
    fn counts_go_on_over_a_takeover_and_begin_anew_with_another_server() {
        let mut history = History::default();
        history.remember(&status(1, 10.0, 100, 0), Serves::Still);
        history.remember(&status(2, 11.0, 110, 0), Serves::Successor);
        assert_eq!(history.now(Measure::Accepted), 10.0, "no jump");
        assert_eq!(history.takeovers(300).iter().filter(|is| **is).count(), 1);
        history.remember(&status(3, 0.5, 7, 0), Serves::Other);
        assert_eq!(history.now(Measure::Accepted), 0.0);
        assert!(!history.takeovers(300).contains(&true));
    }

    #[test]
    fn who_answers_is_known_by_what_it_has_counted_in_the_time_that_has_passed() {
        let at = Duration::from_secs;
        let seen = Seen::of(&status(1, 10.0, 0, 0), at(100));
        let serves = |pid, seconds, asked| seen.serves(&status(pid, seconds, 0, 0), at(asked));
        assert_eq!(serves(1, 11.0, 101), Serves::Still);
        assert_eq!(serves(2, 11.0, 101), Serves::Successor);
        assert_eq!(serves(2, 10.0, 101), Serves::Successor, "not to the moment");
        assert_eq!(serves(3, 0.5, 101), Serves::Other);
        // Nobody asked for a minute, and half of that ago it was started.
        assert_eq!(serves(3, 30.0, 160), Serves::Other);
        assert_eq!(serves(1, 70.0, 160), Serves::Still);
        // An answer that was long in coming is of a time behind the question.
        assert_eq!(serves(1, 70.0, 101), Serves::Still);
        // Behind a keeper counters go on over a crash, and nothing else does.
        let mut after_a_crash = status(2, 11.0, 0, 0);
        after_a_crash.crashes = Some(1);
        assert_eq!(seen.serves(&after_a_crash, at(101)), Serves::Other);
    }

    #[test]
    fn a_column_is_what_came_in_its_time() {
        let mut history = History::default();
        history.remember(&status(1, 1000.0, 0, 1), Serves::Still);
        history.remember(&status(1, 1060.0, 60, 9), Serves::Still);
        history.remember(&status(1, 1120.0, 60, 2), Serves::Still);
        // Of five minutes a minute each: nothing is known of the first three.
        let rates = history.columns(Measure::Accepted, 5);
        assert_eq!(rates, [None, None, None, Some(1.0), Some(0.0)]);
        let open = history.columns(Measure::Open, 5);
        assert_eq!(open, [None, None, None, Some(9.0), Some(9.0)]);
        // What is older goes.
        history.remember(&status(1, 1500.0, 60, 2), Serves::Still);
        assert_eq!(history.points.len(), 2);
        assert_eq!(history.columns(Measure::Open, 0), []);
    }

    #[test]
    fn what_the_server_remembers_is_there_from_the_start() {
        let mut status = status(1, 100.0, 50, 5);
        status.samples = told::samples(&[(90, 0), (40, 50)]);
        let mut history = History::default();
        history.remember(&status, Serves::Still);
        assert_eq!(history.most(Measure::Accepted), 1.0);
        let columns = history.columns(Measure::Accepted, 30);
        assert_eq!(columns.iter().flatten().count(), 9);
    }
}
