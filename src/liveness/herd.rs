//! Keepalive where connections are many: their probes are kept from leaving at once.
//!
//! The kernel rounds its timers up by as much as an eighth, so connections that came in one burst, or were last heard of
//! together, are probed in the same millisecond. Loopback and the links of containers hold a thousand packets
//! (`net.core.netdev_max_backlog`) and drop the rest, and living peers count as vanished.
//!
//! So each of many has an idle time of its own, and is soon probed again ([`Keepalive::spread`]). It costs no system call where they are many already:
//! accepted ones inherit it from their listener, which has another for every few ([`Rotation`]); those who were there before,
//! and who come in that moment, are given theirs. It is the kernel that keeps the times: a worker that is late for anything
//! changes nothing.
//!
//! [`Keepalive::spread`]: crate::liveness::keepalive::Keepalive::spread

use std::time::Duration;

use crate::time::deadline::Moment;

/// From how many connections on they are a herd.
const MANY: usize = 500;

/// Whether so many connections are a herd.
pub(crate) fn is_herd(connections: usize) -> bool {
    connections >= MANY
}

/// Behind the beginning some come that were accepted before it.
const JOINING: Duration = Duration::from_millis(100);

/// A worker's connections, while all workers' are many: the first of them came before that.
#[derive(Debug, Default)]
pub(crate) struct Herd {
    began: Option<Moment>,
}

/// Who gets a keepalive of its own now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joins {
    Nobody,
    /// The one that has just come,
    Newcomer,
    /// and all that are there.
    All,
}

impl Herd {
    /// One more came, and all workers have so many now.
    pub(crate) fn grown(&mut self, connections: usize, now: Moment) -> Joins {
        match self.began {
            None if is_herd(connections) => {
                self.began = Some(now);
                Joins::All
            }
            Some(began) if now.since(began) < JOINING => Joins::Newcomer,
            // Not at once: their number goes up and down.
            Some(_) if connections < MANY / 2 => {
                self.began = None;
                Joins::Nobody
            }
            _ => Joins::Nobody,
        }
    }
}

/// How many connections in a row may have the same idle time.
const FEW: usize = 64;

/// How many may have it that came while nobody was accepted.
const LUMP: usize = 128;

/// What a listener has for the next connections of a herd.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    /// It has had so many others than its own.
    nth: u64,
    /// So many more come before it gets another.
    left: usize,
    /// How many waited in its queue when it got the last one.
    queue: usize,
    /// So many of the next came while it had one and the same.
    alike: usize,
}

/// What one more connection asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// The listener gets the keepalive of that number.
    pub(crate) change: Option<u64>,
    /// What it inherited too many others have, too.
    pub(crate) alike: bool,
}

impl Rotation {
    /// One more connection was accepted. `queue` tells how many wait behind it: they have what the listener had before.
    pub(crate) fn accepted(&mut self, queue: impl FnOnce() -> usize) -> Accepted {
        let mut change = None;
        if self.left == 0 {
            let queue = queue();
            if queue > self.queue + LUMP {
                self.alike = queue;
            }
            self.queue = queue;
            self.left = FEW;
            self.nth += 1;
            change = Some(self.nth);
        }
        self.left -= 1;
        let alike = self.alike > 0;
        self.alike -= usize::from(alike);
        Accepted { change, alike }
    }

    /// They are many no more. Answers whether the listener had another's keepalive.
    pub(crate) fn is_over(&mut self) -> bool {
        std::mem::take(self).nth > 0
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::liveness::keepalive::Keepalive;

    #[test]
    fn who_was_there_before_they_were_many_joins_them() {
        let at = |millis| Moment::at(Duration::from_millis(millis));
        let mut herd = Herd::default();
        assert_eq!(herd.grown(499, at(0)), Joins::Nobody);
        assert_eq!(herd.grown(500, at(10)), Joins::All);
        assert_eq!(herd.grown(501, at(10)), Joins::Newcomer);
        assert_eq!(herd.grown(502, at(109)), Joins::Newcomer);
        assert_eq!(herd.grown(503, at(110)), Joins::Nobody);
        // They join once, be they now more and now less than that.
        assert_eq!(herd.grown(499, at(200)), Joins::Nobody);
        assert_eq!(herd.grown(500, at(300)), Joins::Nobody);
        assert_eq!(herd.grown(249, at(400)), Joins::Nobody);
        assert_eq!(herd.grown(500, at(500)), Joins::All);
    }

    #[test]
    fn a_listener_gets_another_keepalive_for_every_few() {
        let mut rotation = Rotation::default();
        let changes = (0..1000).map(|_| rotation.accepted(|| 100));
        let changes: Vec<u64> = changes.filter_map(|accepted| accepted.change).collect();
        assert_eq!(changes, (1..=16).collect::<Vec<u64>>());
        assert!(rotation.is_over());
        assert!(!rotation.is_over());
    }

    #[test]
    fn those_who_came_while_nobody_was_accepted_are_alike() {
        let mut rotation = Rotation::default();
        let mut queue = 3000;
        let mut alike = 0;
        for _ in 0..5000 {
            alike += usize::from(rotation.accepted(|| queue).alike);
            queue = queue.saturating_sub(1);
        }
        assert_eq!(alike, 3000);
    }

    /// When a timer of the kernel fires that is to after `wait` ticks: `calc_wheel_index` in `kernel/time/timer.c`.
    fn fires(now: u64, wait: u64) -> u64 {
        let level = match wait {
            0..63 => 0,
            63..504 => 3,
            504..4032 => 6,
            4032..32_256 => 9,
            32_256..258_048 => 12,
            258_048..2_064_384 => 15,
            _ => 18,
        };
        (((now + wait) >> level) + 1) << level
    }

    /// The most of 18,000 connections that came within a second whose probes leave in the same tick.
    fn most_at_once(keepalive: Keepalive, rounds: usize) -> usize {
        let mut leaving = std::collections::BTreeMap::new();
        for nth in 0..18_000 {
            let idle = u64::from(keepalive.spread(nth).idle.unwrap().get()) * 250;
            let mut at = 1000 + nth / 72;
            for _ in 0..rounds {
                at = fires(at, idle);
                *leaving.entry(at).or_insert(0) += 1;
            }
        }
        leaving.into_values().max().unwrap()
    }

    /// How many of so many living connections that came within a second are given up in so many seconds, where a thousand
    /// packets pass in a tick and the others are lost.
    fn given_up(hz: u64, keepalive: Keepalive, connections: u64) -> usize {
        let ticks = |seconds: Option<NonZeroU32>| u64::from(seconds.unwrap().get()) * hz;
        let mut due: std::collections::BTreeMap<u64, Vec<(u64, u64)>> = Default::default();
        for nth in 0..connections {
            let came = 1000 + nth * hz / connections;
            let first = fires(came, ticks(keepalive.spread(nth / 64).idle));
            due.entry(first).or_default().push((nth, 0));
        }
        let mut given_up = 0;
        while let Some((now, probes)) = due.pop_first() {
            if now > 200 * hz {
                break;
            }
            let mut passed = 0;
            for (nth, lost) in probes {
                let own = keepalive.spread(nth / 64);
                if lost == u64::from(own.retries.unwrap().get()) {
                    given_up += 1;
                    continue;
                }
                passed += 1;
                let again = fires(now, ticks(own.interval));
                let next = if passed > 1000 {
                    (again, lost + 1)
                } else {
                    // It was answered: the timer goes on for what is left of the idle time (`tcp_keepalive_timer`).
                    let left = ticks(own.idle).saturating_sub(again - now);
                    (
                        if left > 0 {
                            fires(again, left)
                        } else {
                            again + 1
                        },
                        0,
                    )
                };
                due.entry(next.0).or_default().push((nth, next.1));
            }
        }
        given_up
    }

    #[test]
    fn of_a_burst_none_is_given_up_for_probes_that_are_lost() {
        for hz in [100, 250, 300, 1000] {
            for (idle, interval, retries) in [(7200, 75, 9), (60, 10, 3), (30, 5, 3)] {
                let keepalive = Keepalive::new(idle, interval, retries);
                assert_eq!(given_up(hz, keepalive, 18_000), 0, "{keepalive}, {hz} Hz");
            }
        }
        // And of both ends of 18,000, where both are on this host.
        for (idle, interval, retries) in [(60, 10, 3), (30, 5, 3), (6, 1, 3)] {
            let keepalive = Keepalive::new(idle, interval, retries);
            assert_eq!(given_up(250, keepalive, 36_000), 0, "{keepalive}");
        }
    }

    #[test]
    fn of_a_burst_within_a_second_few_probes_leave_in_one_tick() {
        for idle in 2..8 {
            let most = most_at_once(Keepalive::new(idle, 1, 3), 5);
            assert!(most <= 600, "{most} for {idle} s");
        }
        for idle in 8..32 {
            let most = most_at_once(Keepalive::new(idle, 2, 3), 1);
            // Both workers' timers are the same processor's at worst.
            assert!(most <= 1500, "{most} for {idle} s");
        }
    }
}
