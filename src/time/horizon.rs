//! Up to when a loop knows what has happened on its descriptors: the time that deadlines are judged by. Pure.
//!
//! The clock says nothing of a peer. A process that stood still (stopped, frozen, starved), or whose turn took long, finds
//! its deadlines past, and unread the bytes that keep them. So a deadline has come when everything before it was told.

use std::time::Duration;

use crate::time::deadline::Moment;

/// How long a loop must have stood still for that to be worth a word.
const LONG: Duration = Duration::from_secs(1);

/// From which length on a turn is too long for what came in it to be told by when it began.
const BLUR: Duration = Duration::from_millis(100);

/// What a loop knows.
#[derive(Debug)]
pub(crate) struct Horizon {
    known: Moment,
    sweep: Option<Sweep>,
    /// When the last wait ended.
    turned: Moment,
}

/// More is ready than one wait tells. Readiness is told in the order in which it came (`ep_send_events` in the kernel's
/// fs/eventpoll.c), so what was there at the sweep's beginning comes before what has come since.
#[derive(Debug)]
struct Sweep {
    began: Moment,
    /// Events that may have been there then and were not told yet.
    left: usize,
}

/// A wait for events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) began: Moment,
    /// When it was to end, should nothing happen.
    pub(crate) until: Moment,
    pub(crate) ended: Moment,
    /// Events that were told. `None`: it was interrupted, and nobody was asked.
    pub(crate) told: Option<usize>,
    /// Events that would have been told at the most.
    pub(crate) most: usize,
    /// Descriptors that events may come from.
    pub(crate) descriptors: usize,
}

/// A time in which the loop stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) from: Moment,
    pub(crate) to: Moment,
    /// It was stopped at some time in between, nobody knows when: no deadline came meanwhile.
    pub(crate) at_most: bool,
}

impl Pause {
    pub(crate) fn length(self) -> Duration {
        self.to.since(self.from)
    }

    pub(crate) fn log(self) {
        let seconds = self.length().as_millis() as f64 / 1000.0;
        if self.at_most {
            log::warn!(at_most = seconds; "stood still: stopped, frozen, or traced");
        } else {
            log::warn!(seconds; "stood still: stopped, frozen, starved, or held up by what it calls");
        }
    }
}

impl Horizon {
    /// A loop that begins `now`.
    pub(crate) fn new(now: Moment) -> Self {
        Self {
            known: now,
            sweep: None,
            turned: now,
        }
    }

    /// What was to happen by then has happened, or will not.
    pub(crate) fn known(&self) -> Moment {
        self.known
    }

    /// The loop stood still for a reason of its own, until `now`.
    pub(crate) fn excuse(&mut self, now: Moment) {
        self.turned = now;
    }

    /// The turn that is over `now`, if it was long: what was read in it is noted as of its beginning, and may have come at
    /// its end.
    pub(crate) fn long_turn(&self, now: Moment) -> Option<Pause> {
        let turn = Pause {
            from: self.turned,
            to: now,
            at_most: true,
        };
        (turn.length() >= BLUR).then_some(turn)
    }

    /// A wait has ended. Answers whether the loop stood still for long in it, or in the turn before.
    pub(crate) fn waited(&mut self, wait: Wait) -> Option<Pause> {
        let known = match wait.told {
            None => None,
            Some(told) if told >= wait.most => self.sweep(wait),
            Some(told) => {
                self.sweep = None;
                // The kernel looks once more when the time is over.
                let in_vain = told == 0 && wait.until <= wait.ended;
                Some(if in_vain {
                    wait.until.max(wait.began)
                } else {
                    wait.began
                })
            }
        };
        if let Some(known) = known {
            self.known = self.known.max(known);
        }
        let turn = Pause {
            from: self.turned,
            to: wait.began,
            at_most: false,
        };
        let late = Pause {
            from: wait.until.max(wait.began),
            to: wait.ended,
            at_most: false,
        };
        // An idle loop does not wake to look at the clock: this is all that it knows.
        let interrupted = Pause {
            from: wait.began,
            to: wait.ended,
            at_most: true,
        };
        self.turned = wait.ended;
        let longer = if turn.length() > late.length() {
            turn
        } else {
            late
        };
        if longer.length() >= LONG {
            return Some(longer);
        }
        (wait.told.is_none() && interrupted.length() >= LONG).then_some(interrupted)
    }

    /// A wait has told as much as it may. Answers what is known from it.
    fn sweep(&mut self, wait: Wait) -> Option<Moment> {
        let sweep = self.sweep.get_or_insert(Sweep {
            began: wait.began,
            left: wait.descriptors,
        });
        sweep.left = sweep.left.saturating_sub(wait.most);
        if sweep.left > 0 {
            return None;
        }
        self.sweep.take().map(|sweep| sweep.began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    /// A wait of a loop over 3,000 descriptors.
    fn wait(began: u64, until: u64, ended: u64, told: Option<usize>) -> Wait {
        Wait {
            began: at(began),
            until: at(until),
            ended: at(ended),
            told,
            most: 1024,
            descriptors: 3000,
        }
    }

    fn known_after(waits: &[Wait]) -> Moment {
        let mut horizon = Horizon::new(at(0));
        for wait in waits {
            horizon.waited(*wait);
        }
        horizon.known()
    }

    #[test]
    fn a_wait_in_vain_shows_that_nothing_happened_until_its_end() {
        assert_eq!(known_after(&[wait(10, 500, 501, Some(0))]), at(500));
        // At once, the deadline being past.
        assert_eq!(known_after(&[wait(600, 500, 601, Some(0))]), at(600));
        // Without an end.
        let endless = Wait {
            until: Moment::NEVER,
            ..wait(10, 0, 700, Some(0))
        };
        assert_eq!(known_after(&[endless]), at(10));
    }

    #[test]
    fn what_happened_while_events_were_told_is_not_known() {
        assert_eq!(known_after(&[wait(10, 500, 499, Some(3))]), at(10));
    }

    #[test]
    fn after_an_interruption_nothing_is_known_before_the_next_wait() {
        let interrupted = wait(10, 500, 9000, None);
        assert_eq!(known_after(&[interrupted]), at(0));
        let next = wait(9001, 500, 9002, Some(7));
        assert_eq!(known_after(&[interrupted, next]), at(9001));
    }

    #[test]
    fn where_more_is_ready_than_a_wait_tells_it_is_known_after_all_that_was_ready() {
        let full = |began| wait(began, 0, began + 1, Some(1024));
        assert_eq!(known_after(&[full(10), full(20)]), at(0));
        assert_eq!(known_after(&[full(10), full(20), full(30)]), at(10));
        assert_eq!(
            known_after(&[full(10), full(20), full(30), full(40), full(50), full(60)]),
            at(40)
        );
        // Fewer: there is no more.
        assert_eq!(known_after(&[full(10), wait(20, 0, 21, Some(1))]), at(20));
    }

    #[test]
    fn it_never_goes_back() {
        let waits = [wait(10, 500, 501, Some(0)), wait(400, 600, 601, Some(1))];
        assert_eq!(known_after(&waits), at(500));
    }

    #[test]
    fn what_came_in_a_long_turn_may_have_come_at_its_end() {
        let mut horizon = Horizon::new(at(0));
        horizon.waited(wait(1, 500, 10, Some(1)));
        assert_eq!(horizon.long_turn(at(109)), None);
        let turn = horizon.long_turn(at(110)).unwrap();
        assert_eq!((turn.from, turn.to), (at(10), at(110)));
    }

    #[test]
    fn a_loop_that_wakes_late_or_turns_for_long_stood_still() {
        let pause = |from, to| {
            Some(Pause {
                from: at(from),
                to: at(to),
                at_most: false,
            })
        };
        let mut horizon = Horizon::new(at(0));
        assert_eq!(horizon.waited(wait(1, 500, 900, None)), None);
        assert_eq!(
            horizon.waited(wait(901, 2400, 5400, None)),
            pause(2400, 5400)
        );
        // Events in time.
        assert_eq!(horizon.waited(wait(5401, 9000, 8000, Some(1))), None);
        // A turn of 3 s.
        assert_eq!(
            horizon.waited(wait(11_000, 12_000, 11_001, Some(1))),
            pause(8000, 11_000)
        );
        horizon.excuse(at(20_000));
        assert_eq!(horizon.waited(wait(20_001, 0, 20_001, Some(0))), None);
        // Stopped at some time while nothing was to be done.
        let stopped = Pause {
            from: at(20_002),
            to: at(50_000),
            at_most: true,
        };
        assert_eq!(
            horizon.waited(wait(20_002, 90_000, 50_000, None)),
            Some(stopped)
        );
    }
}
