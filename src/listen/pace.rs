//! Token buckets: when the next one may come. Pure: time comes in as an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::address::network::IpPrefix;
use crate::config::AcceptRate;
use crate::time::deadline::Moment;

/// An [`AcceptRate`], by the virtual scheduling of ATM's GCRA (ITU-T I.371, annex A): of a bucket one moment is all that is
/// kept, when the next one would come if all kept to the interval.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// From one to the next.
    interval: Duration,
    /// How much sooner than that they may come after a pause.
    ahead: Duration,
}

impl Schedule {
    fn of(rate: AcceptRate) -> Self {
        Self {
            interval: rate.interval(),
            ahead: rate.ahead(),
        }
    }

    /// From when on the next one may come.
    fn opens(self, next: Moment) -> Moment {
        next.before(self.ahead)
    }

    /// One comes, or is to.
    fn take(self, next: Moment, now: Moment) -> Moment {
        next.max(now).after(self.interval)
    }
}

/// The pace of those that come by one rate.
#[derive(Debug)]
pub(crate) struct Pace {
    schedule: Schedule,
    next: Moment,
}

impl Pace {
    pub(crate) fn of(rate: AcceptRate) -> Self {
        Self {
            schedule: Schedule::of(rate),
            next: Moment::at_start(),
        }
    }

    /// From when on one more may come.
    pub(crate) fn opens(&self) -> Moment {
        self.schedule.opens(self.next)
    }

    /// One comes.
    pub(crate) fn take(&mut self, now: Moment) {
        self.next = self.schedule.take(self.next, now);
    }
}

/// The most addresses that are kept apart, which takes 4 MiB: one beyond them comes as it likes, for it must not be delayed
/// by others.
const MOST: usize = 65_536;

/// So many are looked through only once there are twice as many.
const FEW: usize = 1024;

/// How long after a look through [`MOST`] of them there is none.
const REST: Duration = Duration::from_secs(1);

/// The pace of those that come from each address.
#[derive(Debug)]
pub(crate) struct Paces {
    schedule: Schedule,
    prefix: IpPrefix,
    table: Mutex<Table>,
}

/// Of each address that its bucket is not full of tokens again, when the next one would come.
#[derive(Debug)]
struct Table {
    next: HashMap<IpAddr, Moment>,
    /// With so many, those are forgotten whose bucket is full.
    crowded: usize,
    /// And not before then.
    rests: Moment,
}

impl Paces {
    pub(crate) fn new(rate: AcceptRate, prefix: IpPrefix) -> Self {
        Self {
            schedule: Schedule::of(rate),
            prefix,
            table: Mutex::new(Table {
                next: HashMap::new(),
                crowded: FEW,
                rests: Moment::at_start(),
            }),
        }
    }

    /// One has come from `ip`: when its turn is. Each has its own, in the order in which they came.
    pub(crate) fn turn_of(&self, ip: IpAddr, now: Moment) -> Moment {
        let mut table = self.table();
        let Some(next) = table.of(self.prefix.of(ip), now) else {
            return now;
        };
        let turn = self.schedule.opens(*next).max(now);
        *next = self.schedule.take(*next, now);
        turn
    }

    /// One has left before its turn.
    pub(crate) fn give_back(&self, ip: IpAddr) {
        if let Some(next) = self.table().next.get_mut(&self.prefix.of(ip)) {
            *next = next.before(self.schedule.interval);
        }
    }

    /// One has come from another process, where its turn was to be at `turn`: who comes now is behind it.
    pub(crate) fn keep_turn(&self, ip: IpAddr, turn: Moment, now: Moment) {
        if let Some(next) = self.table().of(self.prefix.of(ip), now) {
            let behind = turn.after(self.schedule.ahead + self.schedule.interval);
            *next = behind.max(*next);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// When the next one of `address` would come; `None`: there are too many addresses.
    fn of(&mut self, address: IpAddr, now: Moment) -> Option<&mut Moment> {
        if self.next.len() >= self.crowded && !self.next.contains_key(&address) {
            if self.rests <= now {
                self.forget(now);
            }
            if self.next.len() >= MOST {
                return None;
            }
        }
        Some(self.next.entry(address).or_insert_with(Moment::at_start))
    }

    /// Of an address whose bucket is full there is nothing to be known.
    fn forget(&mut self, now: Moment) {
        self.next.retain(|_, next| *next > now);
        let left = self.next.len();
        self.crowded = (2 * left).clamp(FEW, MOST);
        self.next.shrink_to(self.crowded);
        if left >= MOST / 2 {
            self.rests = now.after(REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    /// How many come in a turn at `now`.
    fn come(pace: &mut Pace, now: Moment) -> usize {
        let takes = std::iter::from_fn(|| (pace.opens() <= now).then(|| pace.take(now)));
        takes.take(1000).count()
    }

    #[test]
    fn a_burst_comes_at_once_and_then_one_an_interval() {
        let mut pace = Pace::of("10/s:3".parse().unwrap());
        let at = |time: u64| millis(60_000 + time);
        assert_eq!(come(&mut pace, at(0)), 3);
        assert_eq!(pace.opens(), at(100));
        assert_eq!(come(&mut pace, at(99)), 0);
        assert_eq!(come(&mut pace, at(100)), 1);
        assert_eq!(come(&mut pace, at(350)), 2);
        // However long the pause, a burst is all.
        assert_eq!(come(&mut pace, at(90_000)), 3);
    }

    #[test]
    fn in_the_long_run_it_is_the_rate_whatever_the_turns() {
        for step in [1, 7, 40, 250] {
            let mut pace = Pace::of("100/s".parse().unwrap());
            let turns =
                (0..10_000 / step).map(|turn| come(&mut pace, millis(60_000 + turn * step)));
            let count: usize = turns.sum();
            // Ten seconds and the burst.
            assert!((1075..=1101).contains(&count), "{count} by {step} ms");
        }
    }

    fn paces(rate: &str) -> Paces {
        Paces::new(rate.parse().unwrap(), IpPrefix::default())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn those_of_one_address_have_their_turns_in_order_and_delay_nobody_else() {
        let paces = paces("10/s:2");
        let now = millis(60_000);
        let turns: Vec<_> = (0..5).map(|_| paces.turn_of(ip("10.0.0.1"), now)).collect();
        let expected = [0, 0, 100, 200, 300].map(|wait| millis(60_000 + wait));
        assert_eq!(turns, expected);
        assert_eq!(paces.turn_of(ip("10.0.0.2"), now), now);
        // A /64 is one address.
        let turns =
            ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|it| paces.turn_of(ip(it), now));
        assert_eq!(turns, [now, now, millis(60_100)]);
        assert_eq!(paces.turn_of(ip("2001:db8:0:1::1"), now), now);
    }

    #[test]
    fn who_leaves_before_their_turn_leaves_it_to_the_next_one() {
        let paces = paces("10/s:1");
        let now = millis(60_000);
        let who = ip("10.0.0.1");
        for _ in 0..1000 {
            paces.turn_of(who, now);
        }
        for _ in 0..999 {
            paces.give_back(who);
        }
        assert_eq!(paces.turn_of(who, now), millis(60_100));
        paces.give_back(ip("10.0.0.9"));
    }

    #[test]
    fn who_comes_after_a_takeover_is_behind_those_that_waited() {
        for order in [[100, 200, 300], [300, 100, 200]] {
            let paces = paces("10/s:4");
            let now = millis(60_000);
            for wait in order {
                paces.keep_turn(ip("10.0.0.1"), millis(60_000 + wait), now);
            }
            assert_eq!(paces.turn_of(ip("10.0.0.1"), now), millis(60_400));
        }
    }

    #[test]
    fn an_attacker_with_any_number_of_addresses_takes_no_more_memory_and_delays_nobody() {
        let paces = paces("1/s:1");
        let now = millis(60_000);
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        for n in 0..200_000 {
            assert_eq!(paces.turn_of(address(n), now), now);
        }
        assert!(paces.table().next.len() <= MOST);
        // Those that are known are held to their rate, and the others come as they like.
        assert_eq!(paces.turn_of(address(7), now), millis(61_000));
        assert_eq!(paces.turn_of(address(199_999), now), now);
        // Once they are quiet they are forgotten.
        let later = millis(63_000);
        paces.turn_of(address(1 << 31), later);
        assert!(paces.table().next.len() < 10);
        assert!(paces.table().next.capacity() < MOST);
    }

    #[test]
    fn addresses_that_come_and_go_are_not_gathered() {
        let paces = paces("1000/s:1");
        for n in 0..100_000_u32 {
            let now = millis(60_000 + u64::from(n));
            paces.turn_of(IpAddr::from(n.to_be_bytes()), now);
        }
        assert!(paces.table().next.capacity() <= 4 * FEW);
    }
}
