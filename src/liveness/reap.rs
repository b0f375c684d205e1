//! The judgement over a connection: keep it until when, or end it for which reason. Pure.
//!
//! `io/progress.rs` gathers what is seen (one or two system calls, and only when a deadline fires), this file decides.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::liveness::close::{CloseReason, Ending, How};
use crate::liveness::keepalive::evenly;
use crate::os::sys::TcpInfo;
use crate::time::deadline::Moment;

/// What applies to each connection of a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest silence of a client: the read deadline.
    pub(crate) read_timeout: Option<Duration>,
    /// The bound within which a vanished peer must be found.
    pub(crate) dead_after: Option<Duration>,
    /// Longest time without an acknowledgement while output waits.
    pub(crate) write_timeout: Option<Duration>,
    /// Who reads so many bytes a second is given longer, if it needs that to show it.
    pub(crate) slowest_reader: Option<NonZeroU32>,
    /// Longest time that nothing moves on a half-closed connection, with no output waiting.
    pub(crate) half_close_timeout: Option<Duration>,
    /// Longest time that it may be connected.
    pub(crate) max_age: Option<Duration>,
    /// High-water mark of waiting output, bytes.
    pub(crate) buffer: usize,
}

/// How long connection `id` may last where `max_age` is the longest: up to a tenth less, another for each, so that those who
/// came together do not come back together.
#[inline]
pub(crate) fn lasts(max_age: Duration, id: u64) -> Duration {
    max_age - max_age / 10_240 * evenly(id, 1024)
}

/// What was seen of a connection's output when its deadline fired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Bytes in the outbox.
    pub(crate) outbox: usize,
    /// Bytes in the kernel's send queue, unacknowledged (`SIOCOUTQ`).
    pub(crate) queued: u64,
    /// `TCP_INFO`, where something is queued or it is `untold`, and the system tells.
    pub(crate) info: Option<TcpInfo>,
    /// The kernel says nothing by itself of a peer that has vanished: it is [multipath](super::multipath).
    pub(crate) untold: bool,
    /// Bytes of this connection the peer has acknowledged so far.
    pub(crate) taken: u64,
    /// What has to move: those, and with nothing waiting all that moves besides.
    pub(crate) moved: u64,
    /// One side has sent its FIN.
    pub(crate) half_closed: bool,
}

/// How far the peer had come, and since when it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) moved: u64,
    pub(crate) since: Moment,
}

/// The judgement over a connection's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing waits for the peer: no further look is needed until the next write.
    Quiet,
    /// Look again then.
    Wait(Moment),
    Reap(Ending),
}

/// The kernel counts silence in ticks of up to this length (`CONFIG_HZ` of 100): no use in looking sooner.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// Who reads as fast as that is alive by default, bytes a second.
pub(crate) const SLOWEST_READER: NonZeroU32 = NonZeroU32::new(50).unwrap();

/// A peer that has closed its window says nothing of what its program reads, until a good part of its receive buffer is
/// free: a sixteenth, or a whole segment of up to 64 KiB (`__tcp_select_window` in the kernel's `net/ipv4/tcp_output.c`).
/// The most that was seen read without a sign: 790 KB behind a buffer of 4 MiB, 128 KiB behind the default one.
const UNSEEN: u64 = 1 << 20;

/// A time in which nothing may stand still, how often to look, and what comes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stall {
    pub(crate) limit: Duration,
    look: Duration,
    pub(crate) reason: CloseReason,
}

/// What limits a connection that stands still. `waits`: output waits; of what came before the peer has taken so many
/// bytes.
///
/// While output waits it is for the peer to take it, half-closed or not; a slow reader is alive.
pub(crate) fn stall(limits: &Limits, waits: bool, half_closed: bool, taken: u64) -> Option<Stall> {
    if waits {
        let wait = limits.write_timeout?;
        let needed = limits
            .slowest_reader
            .map_or(0, |rate| taken.min(UNSEEN) / u64::from(rate.get()));
        return Some(Stall {
            limit: wait.max(Duration::from_secs(needed)),
            look: wait / 8,
            reason: CloseReason::WriteStall,
        });
    }
    let wait = limits.half_close_timeout.filter(|_| half_closed)?;
    Some(Stall {
        limit: wait,
        look: wait / 8,
        reason: CloseReason::HalfCloseTimeout,
    })
}

/// When to look first after a write at `now`, the peer's last byte having come at `last_in`.
///
/// Not before the bound could be reached, and not before an acknowledgement had a chance to come.
pub(crate) fn first_look(limits: &Limits, now: Moment, last_in: Moment) -> Moment {
    let vanished = limits.dead_after.map_or(Moment::NEVER, |bound| {
        last_in.after(bound / 20 * 19).max(now.after(bound / 20))
    });
    let stalled = now.after_if(limits.write_timeout.map(|wait| wait / 8));
    vanished.min(stalled)
}

/// Judges `now` what waits for the peer, by what is `known` of it.
pub(crate) fn judge(
    limits: &Limits,
    (now, known): (Moment, Moment),
    seen: &Seen,
    progress: &mut Option<Progress>,
) -> Verdict {
    let waits = seen.outbox > 0 || seen.queued > 0;
    let asked = seen.info.filter(|_| seen.queued > 0 || seen.untold);
    if let (Some(bound), Some(info)) = (limits.dead_after, asked)
        && vanished(bound, info)
    {
        return Verdict::Reap(Ending {
            reason: if seen.queued > 0 {
                CloseReason::Unacknowledged
            } else {
                CloseReason::KeepaliveDead
            },
            how: How::Reset,
            errno: None,
            info: Some(info),
        });
    }
    let look = match limits.dead_after {
        Some(bound) if asked.is_some() || seen.outbox > 0 || seen.untold => {
            now.after(until_look(bound, asked))
        }
        _ => Moment::NEVER,
    };
    if !waits && !seen.half_closed {
        *progress = None;
        return match look {
            Moment::NEVER => Verdict::Quiet,
            look => Verdict::Wait(look),
        };
    }

    let stands = match progress {
        Some(stands) if stands.moved == seen.moved => *stands,
        _ => Progress {
            moved: seen.moved,
            since: now,
        },
    };
    *progress = Some(stands);
    let mut next = look;
    if let Some(stall) = stall(limits, waits, seen.half_closed, seen.taken) {
        let until = stands.since.after(stall.limit);
        if known >= until {
            let silent = seen
                .info
                .filter(|info| info.probes > 0 || info.retransmits > 0);
            return Verdict::Reap(Ending {
                info: silent,
                ..Ending::reset(stall.reason)
            });
        }
        // Acknowledgements make no event: look often enough to be late by an eighth at the most.
        next = next.min(until).min(now.after(stall.look));
    }
    Verdict::Wait(next)
}

/// How long it is until a peer of which that is known could have vanished: until the bound could be reached; past that, as
/// long as an answer needs.
fn until_look(bound: Duration, info: Option<TcpInfo>) -> Duration {
    let silence = info.map_or(Duration::ZERO, |info| info.silence);
    match (bound / 20 * 19).saturating_sub(silence) {
        Duration::ZERO => bound / 20,
        left => left.max(CLOCK_TICK),
    }
}

/// Whether a peer is gone: silent for nearly the bound, though it was asked in that time, or the kernel has given up every
/// path to it.
///
/// A living peer behind a closed window answers every probe, so it never shows a second unanswered one; a first
/// write after a long silence has not been retransmitted yet.
fn vanished(bound: Duration, info: TcpInfo) -> bool {
    let asked = info.retransmits >= 1 || info.probes >= 2 || info.flows == Some(0);
    info.silence >= bound / 20 * 19 && asked
}

/// The reason for an error of the system on an established connection. `queued`: something waited for the peer.
pub(crate) fn reason_of(errno: i32, queued: bool) -> CloseReason {
    match errno {
        libc::ETIMEDOUT if queued => CloseReason::Unacknowledged,
        libc::ETIMEDOUT => CloseReason::KeepaliveDead,
        libc::ECONNRESET | libc::EPIPE => CloseReason::PeerReset,
        // What ICMP says, by icmp(7) and net/ipv4/icmp.c (icmp_err_convert).
        libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::ECONNREFUSED
        | libc::EHOSTDOWN
        | libc::ENETDOWN
        | libc::ENOPROTOOPT => CloseReason::Unreachable,
        _ => CloseReason::IoError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        read_timeout: None,
        buffer: 1000,
        dead_after: Some(Duration::from_secs(100)),
        write_timeout: Some(Duration::from_secs(300)),
        slowest_reader: None,
        half_close_timeout: Some(Duration::from_secs(60)),
        max_age: None,
    };

    #[test]
    fn those_who_came_together_do_not_end_together_and_none_late() {
        let hour = Duration::from_secs(3600);
        let mut ends: Vec<_> = (1..=100).map(|id| lasts(hour, id)).collect();
        ends.sort();
        assert!(ends[0] >= hour / 10 * 9 && ends[99] <= hour, "{ends:?}");
        // Spread over the tenth, without a gap.
        let gaps = ends.windows(2).map(|two| two[1] - two[0]);
        assert!(
            gaps.max().is_some_and(|gap| gap < hour / 10 / 20),
            "{ends:?}"
        );
        assert_eq!(lasts(Duration::MAX, 0), Duration::MAX);
    }

    fn at(seconds: u64) -> Moment {
        Moment::at(Duration::from_secs(seconds))
    }

    fn info(silence: u64, probes: u8, retransmits: u8) -> Option<TcpInfo> {
        Some(TcpInfo {
            silence: Duration::from_secs(silence),
            probes,
            retransmits,
            ..TcpInfo::default()
        })
    }

    fn queued(info: Option<TcpInfo>) -> Seen {
        Seen {
            outbox: 0,
            queued: 10,
            info,
            untold: false,
            taken: 5,
            moved: 5,
            half_closed: false,
        }
    }

    fn reason(verdict: Verdict) -> Option<CloseReason> {
        match verdict {
            Verdict::Reap(ending) => Some(ending.reason),
            _ => None,
        }
    }

    #[test]
    fn nothing_waiting_needs_no_further_look() {
        let mut progress = Some(Progress {
            moved: 1,
            since: at(0),
        });
        let seen = Seen {
            queued: 0,
            ..queued(None)
        };
        assert_eq!(
            judge(&LIMITS, (at(900), at(900)), &seen, &mut progress),
            Verdict::Quiet
        );
        assert_eq!(progress, None);
    }

    /// Its kernel keeps the connection for a client that may come back, and says nothing.
    #[test]
    fn over_several_paths_the_idle_peer_is_judged_too_and_looked_after() {
        let idle = |silence, probes, flows| Seen {
            queued: 0,
            untold: true,
            ..queued(info(silence, probes, 0).map(|info| TcpInfo {
                flows: Some(flows),
                ..info
            }))
        };
        let judged = |seen: Seen| judge(&LIMITS, (at(200), at(200)), &seen, &mut None);
        // Both paths answer nothing; the last of them was given up.
        for gone in [idle(95, 2, 2), idle(95, 0, 0)] {
            assert_eq!(reason(judged(gone)), Some(CloseReason::KeepaliveDead));
        }
        // It answers on one, however often the other was asked; or was not asked yet.
        assert_eq!(judged(idle(30, 9, 2)), Verdict::Wait(at(265)));
        assert_eq!(judged(idle(30, 0, 0)), Verdict::Wait(at(265)));
        assert_eq!(judged(idle(96, 1, 1)), Verdict::Wait(at(205)));
        let untold = Seen {
            info: None,
            ..idle(0, 0, 0)
        };
        assert_eq!(judged(untold), Verdict::Wait(at(295)));
        let queued = Seen {
            queued: 10,
            ..idle(95, 0, 0)
        };
        assert_eq!(reason(judged(queued)), Some(CloseReason::Unacknowledged));
    }

    #[test]
    fn a_silent_peer_that_was_asked_again_has_vanished() {
        for asked in [info(95, 0, 1), info(95, 2, 0), info(200, 15, 15)] {
            assert_eq!(
                reason(judge(&LIMITS, (at(95), at(95)), &queued(asked), &mut None)),
                Some(CloseReason::Unacknowledged),
                "{asked:?}"
            );
        }
    }

    #[test]
    fn a_living_closed_window_and_a_first_write_after_silence_are_no_verdict() {
        for living in [
            info(95, 1, 0),
            info(95, 0, 0),
            info(94, 2, 9),
            info(3, 15, 0),
        ] {
            let verdict = judge(&LIMITS, (at(95), at(95)), &queued(living), &mut None);
            assert!(
                matches!(verdict, Verdict::Wait(_)),
                "{living:?}: {verdict:?}"
            );
        }
    }

    #[test]
    fn the_next_look_is_when_the_bound_could_be_reached_but_not_at_once() {
        let far = Limits {
            write_timeout: None,
            half_close_timeout: None,
            ..LIMITS
        };
        let next = |seen| judge(&far, (at(1000), at(1000)), &queued(seen), &mut None);
        assert_eq!(next(info(15, 0, 0)), Verdict::Wait(at(1080)));
        assert_eq!(next(info(94, 0, 1)), Verdict::Wait(at(1001)));
        assert_eq!(next(info(96, 0, 0)), Verdict::Wait(at(1005)));
        assert_eq!(next(info(500, 0, 0)), Verdict::Wait(at(1005)));
    }

    #[test]
    fn a_stall_is_counted_from_the_last_acknowledgement() {
        let limits = Limits {
            dead_after: None,
            ..LIMITS
        };
        let mut progress = None;
        let mut seen = Seen {
            outbox: 99,
            ..queued(info(1, 0, 0))
        };
        assert_eq!(
            reason(judge(&limits, (at(10), at(10)), &seen, &mut progress)),
            None
        );
        assert_eq!(
            reason(judge(&limits, (at(309), at(309)), &seen, &mut progress)),
            None
        );
        seen.moved += 1;
        assert_eq!(
            reason(judge(&limits, (at(310), at(310)), &seen, &mut progress)),
            None
        );
        assert_eq!(
            reason(judge(&limits, (at(609), at(609)), &seen, &mut progress)),
            None
        );
        assert_eq!(
            reason(judge(&limits, (at(610), at(610)), &seen, &mut progress)),
            Some(CloseReason::WriteStall)
        );
    }

    #[test]
    fn a_stall_says_so_when_the_peer_is_silent_besides() {
        let limits = Limits {
            dead_after: None,
            ..LIMITS
        };
        let mut progress = Some(Progress {
            moved: 5,
            since: at(0),
        });
        let Verdict::Reap(ending) = judge(
            &limits,
            (at(300), at(300)),
            &queued(info(77, 3, 0)),
            &mut progress,
        ) else {
            panic!("not reaped");
        };
        assert_eq!(
            (ending.reason, ending.info),
            (CloseReason::WriteStall, info(77, 3, 0))
        );
    }

    #[test]
    fn half_closed_and_nothing_moving_ends_even_with_nothing_queued() {
        let seen = Seen {
            queued: 0,
            half_closed: true,
            ..queued(None)
        };
        let mut progress = None;
        assert_eq!(
            reason(judge(&LIMITS, (at(0), at(0)), &seen, &mut progress)),
            None
        );
        assert_eq!(
            reason(judge(&LIMITS, (at(59), at(59)), &seen, &mut progress)),
            None
        );
        assert_eq!(
            reason(judge(&LIMITS, (at(60), at(60)), &seen, &mut progress)),
            Some(CloseReason::HalfCloseTimeout)
        );
    }

    #[test]
    fn a_slow_reader_has_as_long_as_it_needs_to_show_that_it_reads() {
        let limits = Limits {
            dead_after: None,
            slowest_reader: NonZeroU32::new(50),
            ..LIMITS
        };
        for (taken, seconds) in [
            (0, 300),
            (15_000, 300),
            (128 << 10, 2621),
            // Behind a buffer of 4 MiB, or whatever it has taken before.
            (8_316_259, 20_971),
            (1 << 40, 20_971),
        ] {
            for half_closed in [false, true] {
                let seen = Seen {
                    outbox: 1 << 20,
                    taken,
                    half_closed,
                    ..queued(info(1, 0, 0))
                };
                let mut progress = None;
                let mut at_time = |seconds| {
                    let time = (at(seconds), at(seconds));
                    reason(judge(&limits, time, &seen, &mut progress))
                };
                assert_eq!(at_time(0), None);
                assert_eq!(at_time(seconds - 1), None, "{taken}, {half_closed}");
                assert_eq!(at_time(seconds), Some(CloseReason::WriteStall));
            }
        }
    }

    #[test]
    fn output_that_waits_is_not_limited_by_the_half_close_timeout() {
        let limits = Limits {
            dead_after: None,
            ..LIMITS
        };
        let seen = Seen {
            half_closed: true,
            ..queued(info(1, 0, 0))
        };
        let mut progress = None;
        for seconds in [0, 60, 299] {
            let time = (at(seconds), at(seconds));
            assert_eq!(reason(judge(&limits, time, &seen, &mut progress)), None);
        }
        let time = (at(300), at(300));
        assert_eq!(
            reason(judge(&limits, time, &seen, &mut progress)),
            Some(CloseReason::WriteStall)
        );
    }

    #[test]
    fn what_is_not_known_yet_is_not_judged() {
        let limits = Limits {
            dead_after: None,
            ..LIMITS
        };
        let seen = queued(info(1, 0, 0));
        let mut progress = None;
        assert_eq!(
            reason(judge(&limits, (at(0), at(0)), &seen, &mut progress)),
            None
        );
        // The process stood still: the clock is far ahead of what was heard.
        assert_eq!(
            reason(judge(&limits, (at(900), at(299)), &seen, &mut progress)),
            None
        );
        assert_eq!(
            reason(judge(&limits, (at(900), at(900)), &seen, &mut progress)),
            Some(CloseReason::WriteStall)
        );
    }

    #[test]
    fn everything_off_never_looks_again() {
        let off = Limits {
            dead_after: None,
            write_timeout: None,
            half_close_timeout: None,
            ..LIMITS
        };
        assert_eq!(
            judge(&off, (at(1), at(1)), &queued(info(900, 9, 9)), &mut None),
            Verdict::Wait(Moment::NEVER)
        );
        assert_eq!(first_look(&off, at(1), at(0)), Moment::NEVER);
    }

    #[test]
    fn the_first_look_waits_for_the_bound_and_for_an_answer() {
        let patient = Limits {
            write_timeout: None,
            ..LIMITS
        };
        assert_eq!(first_look(&patient, at(10), at(10)), at(105));
        // Written into a long silence: a twentieth for the answer.
        assert_eq!(first_look(&patient, at(400), at(10)), at(405));
        // Output can stall: an eighth of that.
        assert_eq!(
            first_look(&LIMITS, at(10), at(10)),
            Moment::at(Duration::from_millis(47_500))
        );
    }

    #[test]
    fn errors_of_the_system_have_their_reasons() {
        for (errno, waiting, expected) in [
            (libc::ETIMEDOUT, false, CloseReason::KeepaliveDead),
            (libc::ETIMEDOUT, true, CloseReason::Unacknowledged),
            (libc::EHOSTUNREACH, true, CloseReason::Unreachable),
            (libc::ENETUNREACH, true, CloseReason::Unreachable),
            (libc::ECONNREFUSED, false, CloseReason::Unreachable),
            (libc::ECONNRESET, false, CloseReason::PeerReset),
            (libc::EPIPE, true, CloseReason::PeerReset),
            (libc::EIO, true, CloseReason::IoError),
        ] {
            assert_eq!(reason_of(errno, waiting), expected, "errno {errno}");
        }
    }
}
