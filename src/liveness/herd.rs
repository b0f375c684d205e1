//! Keepalive where connections are many: their probes are kept from leaving at once.
//!
//! The kernel rounds its timers up by as much as an eighth, so connections that came in one burst, or were last heard of
//! together, are probed in the same millisecond. Loopback and the links of containers hold a thousand packets
//! (`net.core.netdev_max_backlog`) and drop the rest, and living peers count as vanished.
//!
//! So each of many has an idle time of its own ([`Keepalive::spread`]), which costs no system call: accepted ones inherit
//! it from their listener, which has another for every few ([`Rotation`]). Idle times count in whole seconds: short ones
//! differ too little, and those connections are probed once ahead of time, each at a moment of its own ([`Herd`]).
//!
//! [`Keepalive::spread`]: crate::liveness::keepalive::Keepalive::spread

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::deadline::Moment;

/// From how many connections on they are a herd.
const MANY: usize = 500;

/// Whether so many connections are a herd.
pub(crate) fn is_herd(connections: usize) -> bool {
    connections >= MANY
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

/// Below that idle time connections are probed ahead of time, too: timers are exact to less than a second there.
const SHORT: Duration = Duration::from_secs(32);

/// The shortest idle time there is. Set on a connection that was silent for longer, it has it probed at once.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);

/// How often some are probed: until the next time the kernel has looked at its timers.
const STEP: Duration = Duration::from_millis(15);

/// New connections of a herd with a short idle time, each until its turn comes.
#[derive(Debug, Default)]
pub(crate) struct Herd {
    waiting: VecDeque<Member>,
    /// So many of the first have just been probed.
    probed: usize,
    /// The most that have waited at a time since none did, and the shortest of their idle times.
    most: usize,
    idle: Duration,
    next: Option<Moment>,
}

/// A new connection of a herd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Where it was when it came.
    pub(crate) key: usize,
    /// Its number, for another may be there by now.
    pub(crate) id: u64,
    came: Moment,
}

/// What a member's turn brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// It gets the idle time [`AT_ONCE`].
    Probe(Member),
    /// It gets the idle time of its own, behind that.
    Settle(Member),
}

impl Herd {
    /// A connection has come, with that idle time.
    pub(crate) fn add(&mut self, key: usize, id: u64, idle: Option<Duration>, now: Moment) {
        let Some(idle) = idle.filter(|idle| *idle < SHORT) else {
            return;
        };
        self.idle = match self.next {
            Some(_) => self.idle.min(idle),
            None => idle,
        };
        self.waiting.push_back(Member { key, id, came: now });
        self.most = self.most.max(self.waiting.len());
        self.next.get_or_insert_with(|| now.after(AT_ONCE));
    }

    /// When the next are due.
    pub(crate) fn next(&self) -> Moment {
        self.next.unwrap_or(Moment::NEVER)
    }

    /// Those who are due, once [`next`](Self::next) has come: spread over the idle time, but for its beginning.
    pub(crate) fn due(&mut self, now: Moment) -> impl Iterator<Item = Due> {
        let steps = self.idle.saturating_sub(AT_ONCE).as_millis() / STEP.as_millis();
        let part = self.most / usize::try_from(steps).unwrap_or(0).max(1) + 1;
        let mut settle = std::mem::take(&mut self.probed);
        let silent = |member: &&Member| now.since(member.came) >= AT_ONCE;
        let due = self.waiting.iter().skip(settle).take(part);
        let probe = due.take_while(silent).count();
        let soon = now.after(STEP);
        let next = self.waiting.get(settle);
        self.next = next.map(|first| first.came.after(AT_ONCE).max(soon));
        std::iter::from_fn(move || {
            if settle > 0 {
                settle -= 1;
                return self.waiting.pop_front().map(Due::Settle);
            }
            if self.probed < probe {
                self.probed += 1;
                return self.waiting.get(self.probed - 1).copied().map(Due::Probe);
            }
            if self.waiting.is_empty() {
                // What they took is for bursts.
                *self = Self::default();
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_is_probed_evenly_over_the_idle_time() {
        let mut herd = Herd::default();
        assert_eq!(herd.next(), Moment::NEVER);
        for id in 0..18_000 {
            herd.add(7, id, Some(Duration::from_secs(5)), at(0));
        }
        let (mut probed, mut settled, mut last) = (0, 0, at(0));
        assert_eq!(herd.next(), at(1000));
        while herd.next() != Moment::NEVER {
            last = herd.next();
            let before = probed;
            for due in herd.due(last) {
                match due {
                    Due::Settle(member) => {
                        assert_eq!(member.id, settled);
                        settled += 1;
                    }
                    Due::Probe(member) => {
                        assert_eq!(member.id, probed);
                        probed += 1;
                    }
                }
            }
            // Whoever was probed in the step before.
            assert_eq!(settled, before);
            assert!(probed - before <= 69, "{} at once", probed - before);
        }
        assert_eq!((probed, settled), (18_000, 18_000));
        assert!(last > at(4800) && last <= at(5100), "{last:?}");
        assert_eq!(herd.waiting.capacity(), 0);
    }

    #[test]
    fn who_came_less_than_a_second_ago_is_left_alone() {
        let mut herd = Herd::default();
        let idle = Some(Duration::from_secs(5));
        herd.add(1, 1, idle, at(0));
        herd.add(2, 2, idle, at(900));
        let due: Vec<Due> = herd.due(at(1000)).collect();
        assert!(matches!(due[..], [Due::Probe(Member { id: 1, .. })]));
        let due: Vec<Due> = herd.due(herd.next()).collect();
        assert!(matches!(due[..], [Due::Settle(Member { id: 1, .. })]));
        assert_eq!(herd.next(), at(1900));
    }

    #[test]
    fn who_is_idle_for_long_is_not_probed_ahead_of_time() {
        let mut herd = Herd::default();
        herd.add(1, 2, Some(Duration::from_secs(60)), at(0));
        herd.add(1, 3, None, at(0));
        assert_eq!(herd.next(), Moment::NEVER);
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
}
