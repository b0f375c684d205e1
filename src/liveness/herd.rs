//! Keepalive where connections are many: their probes are kept from leaving at once.
//!
//! The kernel rounds its timers up by as much as an eighth, so connections that came in one burst, or were last heard of
//! together, are probed in the same millisecond. Loopback and the links of containers hold a thousand packets
//! (`net.core.netdev_max_backlog`) and drop the rest, and living peers count as vanished.
//!
//! So each of many has an idle time of its own ([`Keepalive::spread`]). It costs no system call where they are many already:
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
    use super::*;

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
}
