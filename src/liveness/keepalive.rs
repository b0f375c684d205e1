//! The arithmetic of detection: from `--keepalive` and `--dead-after` to what the kernel and our own checks do.
//!
//! Pure: no socket is touched here; `sockopt.rs` applies the result and `reap.rs` judges by it.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use crate::parse::ParseError;

/// TCP keepalive: when a silent peer is first probed, how often again, and after how many unanswered probes the
/// kernel reports `ETIMEDOUT`. A field that is `None` keeps the system's value (`net.ipv4.tcp_keepalive_*`).
///
/// Keepalive alone finds only an *idle* vanished peer: the kernel does not probe while output is queued or in
/// flight. [`Listen::dead_after`](crate::Listen::dead_after) covers those states.
///
/// Too short an `idle` costs a packet each way per connection and `idle` seconds; a single retry takes one lost
/// packet for a vanished peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// `TCP_KEEPIDLE`, seconds of silence before the first probe. Default 60.
    pub idle: Option<NonZeroU32>,
    /// `TCP_KEEPINTVL`, seconds between unanswered probes. Default 10.
    pub interval: Option<NonZeroU32>,
    /// `TCP_KEEPCNT`, unanswered probes before the peer counts as vanished. Default 3.
    pub retries: Option<NonZeroU32>,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self::new(60, 10, 3)
    }
}

impl Keepalive {
    /// All three values; a zero means the system's.
    #[must_use]
    pub const fn new(idle: u32, interval: u32, retries: u32) -> Self {
        Self {
            idle: NonZeroU32::new(idle),
            interval: NonZeroU32::new(interval),
            retries: NonZeroU32::new(retries),
        }
    }

    /// The triple that finds an idle vanished peer within `bound`, with several probes in the second half, so
    /// that a short outage does not end a connection.
    ///
    /// # Errors
    /// A `bound` below [`DEAD_AFTER_LEAST`]: one probe would have to decide.
    pub fn within(bound: Duration) -> Result<Self, DetectionError> {
        if bound < DEAD_AFTER_LEAST {
            return Err(DetectionError::BoundTooShort(bound));
        }
        // The kernel's timers run up to an eighth late, so aim at 8/9 of the bound.
        let nominal = u32::try_from(bound.as_secs().saturating_mul(8) / 9).unwrap_or(u32::MAX);
        // TCP_KEEPIDLE goes up to 32767 s; a longer bound is met all the earlier. Half of it, and what eight do not divide.
        let nominal = nominal.min(2 * (32_767 - 3) + 3);
        let retries = if nominal >= 8 { 4 } else { nominal / 2 };
        let interval = (nominal / 8).max(1);
        Ok(Self::new(nominal - retries * interval, interval, retries))
    }

    /// Seconds of silence after which the kernel gives an idle peer up, by its own arithmetic.
    /// `None` while a field is the system's and so unknown here.
    fn nominal(self) -> Option<u64> {
        let idle = u64::from(self.idle?.get());
        let interval = u64::from(self.interval?.get());
        let retries = u64::from(self.retries?.get());
        Some(idle + interval * retries)
    }

    /// The same for connection number `nth` among many, with an idle time of its own, so that the probes of all do not leave
    /// at once, and with more retries, for some are lost nevertheless. Who vanished is found no later.
    ///
    /// A long idle time is a second to a quarter less. A short one leaves too few whole seconds for that, but below
    /// [`EXACT`] and [`FAIRLY_EXACT`] the kernel keeps apart what came apart, however late its timers are. So does the
    /// interval: of those whose probes were lost together a queue full comes through at each retry, and in two or three
    /// seconds the timer does not meet the rounded ones of the others (two with `CONFIG_HZ=250`, three with 1000).
    #[must_use]
    pub(crate) fn spread(self, nth: u64) -> Self {
        let (Some(idle), Some(interval), Some(retries)) = (self.idle, self.interval, self.retries)
        else {
            return self;
        };
        let idle = idle.get();
        let (least, most) = match idle {
            0..=EXACT => return self,
            3..8 => (EXACT, EXACT),
            8..32 => {
                let most = FAIRLY_EXACT.min(idle - 1);
                (most.div_ceil(2), most)
            }
            _ => (idle - idle / 4, idle - 1),
        };
        let own_idle = most - evenly(nth, most - least + 1);
        let time = (idle - own_idle).saturating_add(interval.get().saturating_mul(retries.get()));
        let soon = EXACT + u32::from(nth % 2 == 1);
        let own_interval = time.div_ceil(RETRIES_MOST).max(soon).min(interval.get());
        let own_retries = (time / own_interval).min(RETRIES_MOST);
        Self::new(own_idle, own_interval, own_retries)
    }

    /// The retries that are not too many with the idle time and the interval of any two of [`spread`](Self::spread)'s: who is
    /// accepted while a listener gets another keepalive has some of both.
    pub(crate) fn retries_between(self) -> Option<NonZeroU32> {
        let (idle, interval, retries) = (self.idle?.get(), self.interval?, self.retries?);
        let time = interval.get().saturating_mul(retries.get());
        let longest = (EXACT + 1).min(interval.get());
        if idle.saturating_add(time) > longest.saturating_mul(RETRIES_MOST) {
            return Some(retries);
        }
        NonZeroU32::new(time / longest)
    }

    /// The same with `TCP_USER_TIMEOUT` set, which takes the place of the retries: the first probe that is due after it is
    /// the end (`tcp_keepalive_timer` in the kernel's `net/ipv4/tcp_timer.c`).
    fn nominal_with(self, user_timeout: Duration) -> Option<u64> {
        let idle = u64::from(self.idle?.get());
        let interval = u64::from(self.interval?.get());
        let whole = user_timeout.as_secs() + u64::from(user_timeout.subsec_nanos() > 0);
        Some(idle.max(whole) + interval)
    }

    /// The same with `system`'s values in the fields that keep the system's.
    #[must_use]
    pub(crate) fn or(self, system: Self) -> Self {
        Self {
            idle: self.idle.or(system.idle),
            interval: self.interval.or(system.interval),
            retries: self.retries.or(system.retries),
        }
    }
}

/// One of so many shares for number `nth`: numbers in a row are spread evenly over them, and so are every second or third of
/// them (Fibonacci hashing; Knuth, The Art of Computer Programming, 6.4).
#[inline]
pub(crate) fn evenly(nth: u64, shares: u32) -> u32 {
    let fraction = nth.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    u32::try_from((fraction * u64::from(shares)) >> 32).unwrap_or(0)
}

impl fmt::Display for Keepalive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, field) in [self.idle, self.interval, self.retries].iter().enumerate() {
            if at > 0 {
                f.write_str(":")?;
            }
            if let Some(value) = field {
                write!(f, "{value}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Keepalive {
    type Err = ParseError;

    /// `IDLE:INTERVAL:RETRIES`; an empty field keeps the system's.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let field = |name: &str, text: &str| match text {
            "" => Ok(None),
            text => match text.parse::<u32>() {
                Ok(0) => Err(ParseError::new(format!(
                    "{name} is 0; leave it empty to keep the system's, or say off"
                ))),
                Ok(value) => Ok(NonZeroU32::new(value)),
                Err(_) => Err(ParseError::new(format!(
                    "{name} {text:?} is not a whole number"
                ))),
            },
        };
        let fields: Vec<&str> = text.split(':').collect();
        let &[idle, interval, retries] = fields.as_slice() else {
            return Err(ParseError::new(
                "expected IDLE:INTERVAL:RETRIES, such as 60:10:3, or off",
            ));
        };
        Ok(Self {
            idle: field("idle", idle.strip_suffix('s').unwrap_or(idle))?,
            interval: field("interval", interval.strip_suffix('s').unwrap_or(interval))?,
            retries: field("retries", retries)?,
        })
    }
}

/// Up to so many seconds a timer of the kernel is exact to 32 ms (64 with `CONFIG_HZ=1000`),
const EXACT: u32 = 2;

/// and up to so many to 256 ms (512): the levels of its timer wheel (`kernel/time/timer.c`).
const FAIRLY_EXACT: u32 = 16;

/// The most that `TCP_KEEPCNT` takes (`MAX_TCP_KEEPCNT` in the kernel's include/net/tcp.h).
const RETRIES_MOST: u32 = 127;

/// The shortest `dead_after`: below it a single probe would have to decide.
pub const DEAD_AFTER_LEAST: Duration = Duration::from_secs(5);

/// How a listener's connections find out that their peer has vanished: `keepalive` and `dead_after` made one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Detection {
    pub(crate) keepalive: Option<Keepalive>,
    /// The bound for every state, `None` without keepalive.
    pub(crate) dead_after: Option<Duration>,
}

impl Detection {
    /// Checks one against the other and fills in what was not said. `system` has the system's own triple.
    ///
    /// # Errors
    /// A bound too short, slower keepalive than the bound, a bound without keepalive, or a user timeout beyond the bound.
    pub(crate) fn resolve(
        keepalive: Option<Keepalive>,
        dead_after: Option<Duration>,
        user_timeout: Option<Duration>,
        system: Keepalive,
    ) -> Result<Self, DetectionError> {
        let Some(keepalive) = keepalive else {
            return match dead_after {
                Some(bound) => Err(DetectionError::BoundWithoutKeepalive(bound)),
                None => Ok(Self {
                    keepalive: None,
                    dead_after: None,
                }),
            };
        };
        let whole = keepalive.or(system);
        // Whole seconds, rounded up, of the nominal time and an eighth.
        let needed = whole
            .nominal()
            .map(|nominal| Duration::from_secs((nominal * 9).div_ceil(8)));
        let by_user_timeout = user_timeout.and_then(|wait| whole.nominal_with(wait));
        let by_user_timeout =
            by_user_timeout.map(|nominal| Duration::from_secs((nominal * 9).div_ceil(8)));
        let dead_after = match (dead_after, needed) {
            (Some(bound), _) if bound < DEAD_AFTER_LEAST => {
                return Err(DetectionError::BoundTooShort(bound));
            }
            (Some(bound), Some(needed)) if bound < needed => {
                return Err(DetectionError::KeepaliveTooSlow {
                    keepalive: whole,
                    needed,
                    bound,
                });
            }
            (Some(bound), _) if by_user_timeout.is_some_and(|needed| bound < needed) => {
                return Err(DetectionError::UserTimeoutTooLong {
                    user_timeout: user_timeout.unwrap_or_default(),
                    needed: by_user_timeout.unwrap_or_default(),
                    bound,
                });
            }
            (Some(bound), _) => Some(bound),
            (None, needed) => needed.map(|needed| {
                needed
                    .max(DEAD_AFTER_LEAST)
                    .max(by_user_timeout.unwrap_or_default())
            }),
        };
        Ok(Self {
            keepalive: Some(keepalive),
            dead_after,
        })
    }

    /// `TCP_RTO_MAX_MS` that makes the kernel ask a silent peer often enough: D/15, 1 s to 120 s.
    pub(crate) fn rto_max(self) -> Option<Duration> {
        let asked = self.dead_after? / 15;
        Some(asked.clamp(Duration::from_secs(1), RTO_MAX_DEFAULT))
    }
}

/// The kernel's own `TCP_RTO_MAX_MS` (`net.ipv4.tcp_rto_max_ms`).
pub(crate) const RTO_MAX_DEFAULT: Duration = Duration::from_secs(120);

/// Settings of detection that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DetectionError {
    /// `dead_after` below [`DEAD_AFTER_LEAST`].
    BoundTooShort(Duration),
    /// `dead_after` with keepalive off: nothing would find the idle one.
    BoundWithoutKeepalive(Duration),
    /// A user timeout that keeps the idle one longer than `dead_after`.
    UserTimeoutTooLong {
        /// What was asked.
        user_timeout: Duration,
        /// What it needs, the lateness of the kernel's timers included.
        needed: Duration,
        /// The bound.
        bound: Duration,
    },
    /// Keepalive that cannot find the idle one within `dead_after`.
    KeepaliveTooSlow {
        /// The triple, the system's values filled in.
        keepalive: Keepalive,
        /// What the triple needs, the lateness of the kernel's timers included.
        needed: Duration,
        /// What was asked.
        bound: Duration,
    },
}

impl fmt::Display for DetectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BoundTooShort(bound) => write!(
                f,
                "dead-after {} s is too short: at least {} s, so that no single lost probe decides",
                bound.as_secs_f64(),
                DEAD_AFTER_LEAST.as_secs()
            ),
            Self::BoundWithoutKeepalive(bound) => write!(
                f,
                "dead-after {} s needs keepalive, which is off: nothing else finds a vanished peer that is idle",
                bound.as_secs_f64()
            ),
            Self::UserTimeoutTooLong {
                user_timeout,
                needed,
                bound,
            } => write!(
                f,
                "user-timeout {} s takes the place of keepalive's retries, so an idle vanished peer is found after up to \
                 {} s, longer than dead-after {} s: leave it out, for dead-after finds a vanished peer without it",
                user_timeout.as_secs_f64(),
                needed.as_secs(),
                bound.as_secs_f64()
            ),
            Self::KeepaliveTooSlow {
                keepalive,
                needed,
                bound,
            } => write!(
                f,
                "keepalive {keepalive} takes up to {} s to find an idle vanished peer, longer than dead-after {} s: \
                 leave keepalive out to have it derived",
                needed.as_secs(),
                bound.as_secs_f64()
            ),
        }
    }
}

impl std::error::Error for DetectionError {}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: Keepalive = Keepalive::new(7200, 75, 9);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_default_triple_bounds_at_102_seconds() {
        let detection = Detection::resolve(Some(Keepalive::default()), None, None, SYSTEM).unwrap();
        assert_eq!(detection.dead_after, Some(seconds(102)));
        assert_eq!(detection.rto_max(), Some(Duration::from_millis(6800)));
    }

    #[test]
    fn a_bound_alone_derives_the_measured_triples() {
        for (bound, idle, interval, retries) in [
            (5, 2, 1, 2),
            (10, 4, 1, 4),
            (20, 9, 2, 4),
            (30, 14, 3, 4),
            (60, 29, 6, 4),
        ] {
            assert_eq!(
                Keepalive::within(seconds(bound)),
                Ok(Keepalive::new(idle, interval, retries)),
                "for {bound} s"
            );
        }
    }

    #[test]
    fn the_longest_bound_asks_no_more_than_the_kernel_has() {
        for bound in [
            73_000,
            73_725,
            73_728,
            100_000,
            5_184_000,
            u64::from(u32::MAX),
        ] {
            let keepalive = Keepalive::within(seconds(bound)).unwrap();
            assert!(keepalive.idle.unwrap().get() <= 32_767, "{keepalive}");
        }
    }

    #[test]
    fn every_derived_triple_keeps_its_own_bound() {
        for bound in 5..5000 {
            let keepalive = Keepalive::within(seconds(bound)).unwrap();
            let detection =
                Detection::resolve(Some(keepalive), Some(seconds(bound)), None, SYSTEM).unwrap();
            assert_eq!(detection.dead_after, Some(seconds(bound)));
            assert!(
                keepalive.retries.unwrap().get() >= 2,
                "{keepalive} for {bound} s"
            );
        }
    }

    #[test]
    fn a_short_triple_still_gets_five_seconds() {
        let detection =
            Detection::resolve(Some(Keepalive::new(1, 1, 1)), None, None, SYSTEM).unwrap();
        assert_eq!(detection.dead_after, Some(DEAD_AFTER_LEAST));
        assert_eq!(detection.rto_max(), Some(seconds(1)));
    }

    #[test]
    fn the_probes_of_many_are_spread_and_none_is_found_later() {
        for (keepalive, idles) in [
            (Keepalive::default(), 45..60),
            (Keepalive::new(7200, 75, 9), 5400..7200),
            (Keepalive::new(400, 1, 100), 300..400),
            (Keepalive::new(29, 6, 4), 8..17),
            (Keepalive::new(10, 2, 3), 5..10),
            (Keepalive::new(8, 1, 3), 4..8),
            (Keepalive::new(6, 1, 3), 2..3),
            (Keepalive::new(3, 1, 2), 2..3),
            (Keepalive::new(2, 1, 2), 2..3),
            (Keepalive::new(1, 1, 2), 1..2),
        ] {
            let mut firsts = std::collections::BTreeSet::new();
            for nth in 0..5000 {
                let spread = keepalive.spread(nth);
                assert!(spread.nominal() <= keepalive.nominal(), "{spread}");
                assert!(spread.retries >= keepalive.retries, "{spread}");
                assert!(spread.retries.unwrap().get() <= RETRIES_MOST, "{spread}");
                let other = keepalive.spread(nth * 7 + 1);
                let between = keepalive.retries_between();
                assert!(
                    between >= keepalive.retries && between <= spread.retries,
                    "{spread}"
                );
                for interval in [spread.interval, other.interval] {
                    let mixed = Keepalive {
                        idle: other.idle,
                        interval,
                        retries: between,
                    };
                    assert!(mixed.nominal() <= keepalive.nominal(), "{mixed}");
                }
                firsts.insert(spread.idle.unwrap().get());
            }
            assert_eq!(firsts, idles.collect(), "{keepalive}");
        }
        let partly = Keepalive::new(60, 0, 3);
        assert_eq!(partly.spread(7), partly);
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(
            Detection::resolve(None, Some(seconds(10)), None, SYSTEM),
            Err(DetectionError::BoundWithoutKeepalive(seconds(10)))
        );
        assert_eq!(
            Detection::resolve(
                Some(Keepalive::new(60, 10, 3)),
                Some(seconds(60)),
                None,
                SYSTEM
            ),
            Err(DetectionError::KeepaliveTooSlow {
                keepalive: Keepalive::new(60, 10, 3),
                needed: seconds(102),
                bound: seconds(60),
            })
        );
        assert_eq!(
            Detection::resolve(Some(Keepalive::default()), Some(seconds(4)), None, SYSTEM),
            Err(DetectionError::BoundTooShort(seconds(4)))
        );
        assert_eq!(
            Keepalive::within(seconds(4)),
            Err(DetectionError::BoundTooShort(seconds(4)))
        );
    }

    #[test]
    fn a_user_timeout_moves_the_bound_or_contradicts_it() {
        let user_timeout = |wait| {
            let keepalive = Some(Keepalive::new(60, 10, 3));
            Detection::resolve(keepalive, None, Some(wait), SYSTEM)
                .unwrap()
                .dead_after
        };
        // The retries would have found it sooner; the kernel waits for the first probe after 300 s.
        assert_eq!(user_timeout(seconds(300)), Some(seconds(349)));
        assert_eq!(user_timeout(seconds(80)), Some(seconds(102)));
        let bounded = |wait| {
            let keepalive = Keepalive::within(seconds(10)).unwrap();
            Detection::resolve(Some(keepalive), Some(seconds(10)), Some(wait), SYSTEM)
        };
        assert_eq!(
            bounded(seconds(60)),
            Err(DetectionError::UserTimeoutTooLong {
                user_timeout: seconds(60),
                needed: seconds(69),
                bound: seconds(10),
            })
        );
        assert!(bounded(Duration::from_millis(6500)).is_ok());
        assert!(bounded(seconds(8)).is_err());
        let off = Detection::resolve(None, None, Some(seconds(60)), SYSTEM);
        assert_eq!(off.unwrap().dead_after, None);
    }

    #[test]
    fn an_empty_field_keeps_and_counts_the_systems() {
        let keepalive: Keepalive = "60::3".parse().unwrap();
        assert_eq!(keepalive, Keepalive::new(60, 0, 3));
        assert_eq!(keepalive.to_string(), "60::3");
        let detection = Detection::resolve(Some(keepalive), None, None, SYSTEM).unwrap();
        assert_eq!(
            detection.dead_after,
            Some(seconds((60 + 75 * 3) * 9 / 8 + 1))
        );
        assert_eq!(detection.keepalive, Some(keepalive));
    }

    #[test]
    fn what_is_no_triple_is_refused_with_a_hint() {
        for (text, hint) in [
            ("60", "IDLE:INTERVAL:RETRIES"),
            ("60:10", "IDLE:INTERVAL:RETRIES"),
            ("60:10:3:4", "IDLE:INTERVAL:RETRIES"),
            ("0:10:3", "idle is 0"),
            ("60:-1:3", "interval \"-1\""),
            ("60:10:x", "retries \"x\""),
        ] {
            let error = text.parse::<Keepalive>().unwrap_err();
            assert!(error.to_string().contains(hint), "{text}: {error}");
        }
    }
}
