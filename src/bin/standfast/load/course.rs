//! What happened when: a run in steps, for the page.

use crate::load::seconds;
use crate::load::tally::{Latencies, Tally};

/// So many steps are joined, two and two.
const STEPS_MOST: usize = 1500;

/// What happened in a step of a run. Times are seconds since sending began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) from: f64,
    pub(super) to: f64,
    /// Connections at its end.
    pub(super) up: u64,
    pub(super) connects: u64,
    /// Connections that were lost or given up.
    pub(super) ended: u64,
    /// Attempts to connect that failed.
    pub(super) failed: u64,
    /// Messages that came back.
    pub(super) echoed: u64,
    /// Milliseconds; of joined steps the longer.
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) most: Option<f64>,
}

impl Step {
    pub(super) fn a_second(&self, count: u64) -> f64 {
        count as f64 / (self.to - self.from).max(1e-3)
    }

    fn join(&self, next: &Self) -> Self {
        let longer = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        Self {
            from: self.from,
            to: next.to,
            up: next.up,
            connects: self.connects + next.connects,
            ended: self.ended + next.ended,
            failed: self.failed + next.failed,
            echoed: self.echoed + next.echoed,
            p50: longer(self.p50, next.p50),
            p99: longer(self.p99, next.p99),
            most: longer(self.most, next.most),
        }
    }
}

/// The server was replaced by another process.
#[derive(Debug)]
pub(super) struct Restart {
    /// Seconds since sending began.
    pub(super) at: f64,
    pub(super) what: String,
}

#[derive(Debug, Default)]
pub(super) struct Course {
    pub(super) steps: Vec<Step>,
    pub(super) restarts: Vec<Restart>,
    before: Tally,
    /// How many looks a step has, and how many of them are in `step`.
    looks: usize,
    step: Option<(usize, Step)>,
}

impl Course {
    /// What all workers had counted at `at`, and their latencies since the last time. What was before `start` is not shown.
    pub(super) fn add(&mut self, at: u64, tally: &Tally, latencies: &Latencies, start: u64) {
        let before = std::mem::replace(&mut self.before, *tally);
        if at <= start {
            return;
        }
        let last = self
            .step
            .map(|(_, step)| step)
            .or_else(|| self.steps.last().copied());
        let now = Step {
            from: last.map_or(0.0, |last| last.to),
            to: seconds(at - start),
            up: tally.up,
            connects: tally.connects.saturating_sub(before.connects),
            ended: tally.all_ended().saturating_sub(before.all_ended()),
            failed: tally.failed.all().saturating_sub(before.failed.all()),
            echoed: tally.echoed.saturating_sub(before.echoed),
            p50: latencies.quantile_ms(0.5),
            p99: latencies.quantile_ms(0.99),
            most: latencies.most_ms(),
        };
        let (looks, step) = match self.step.take() {
            None => (1, now),
            Some((looks, step)) => (looks + 1, step.join(&now)),
        };
        if looks < self.looks {
            self.step = Some((looks, step));
            return;
        }
        self.steps.push(step);
        if self.steps.len() >= STEPS_MOST {
            let (pairs, _) = self.steps.as_chunks();
            self.steps = pairs.iter().map(|[one, next]| one.join(next)).collect();
            self.looks = self.looks.max(1) * 2;
        }
    }

    /// Nothing more comes.
    pub(super) fn close(&mut self) {
        self.steps.extend(self.step.take().map(|(_, step)| step));
    }

    /// The server was found to be another process.
    pub(super) fn restarted(&mut self, now: u64, start: u64, what: String) {
        if now > start {
            let at = seconds(now - start);
            self.restarts.push(Restart { at, what });
        }
    }

    /// How many seconds it has.
    pub(super) fn seconds(&self) -> f64 {
        self.steps.last().map_or(0.0, |step| step.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: u64 = 100_000_000;

    fn run(looks: u64) -> Course {
        let mut course = Course::default();
        let mut latencies = Latencies::new().unwrap();
        for nth in 0..=looks {
            latencies.clear();
            latencies.record((nth + 1) * 1_000_000);
            let tally = Tally {
                up: 3,
                connects: 3,
                echoed: nth * 7,
                ..Tally::default()
            };
            course.add(10 * TENTH + nth * TENTH, &tally, &latencies, 10 * TENTH);
        }
        course.close();
        course
    }

    #[test]
    fn a_step_has_what_happened_in_it() {
        let course = run(5);
        assert_eq!(course.steps.len(), 5);
        let second = course.steps[1];
        assert_eq!((second.from, second.to), (0.1, 0.2));
        assert_eq!((second.echoed, second.connects, second.up), (7, 0, 3));
        assert!((second.a_second(second.echoed) - 70.0).abs() < 1e-6);
        assert!((second.most.unwrap() - 3.0).abs() < 0.01);
    }

    #[test]
    fn a_long_run_has_longer_steps_and_loses_nothing() {
        let looks = 2 * STEPS_MOST as u64 + 201;
        let course = run(looks);
        assert!(course.steps.len() <= STEPS_MOST);
        assert_eq!(course.looks, 4, "joined twice");
        let shown: u64 = course.steps.iter().map(|step| step.echoed).sum();
        assert_eq!(shown, looks * 7);
        for pair in course.steps.windows(2) {
            assert_eq!(pair[0].to, pair[1].from);
        }
    }

    #[test]
    fn a_restart_stands_where_it_happened() {
        let mut course = Course::default();
        course.restarted(25 * TENTH, 10 * TENTH, "pid 1".to_owned());
        course.restarted(5 * TENTH, 10 * TENTH, "before".to_owned());
        assert_eq!(course.restarts.len(), 1);
        assert_eq!(course.restarts[0].at, 1.5);
    }
}
