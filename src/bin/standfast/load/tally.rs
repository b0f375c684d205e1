//! What was seen, in numbers that add up: over the connections of a worker, and over the workers.

use hdrhistogram::Histogram;
use standfast::CloseReason;
use standfast::dial::DialErrorKind;

use crate::Failure;
use crate::load::verify::Faults;

/// Reasons a connection of a client can end for, other than by our own doing.
pub(super) const REASONS: [CloseReason; 10] = [
    CloseReason::PeerClosed,
    CloseReason::PeerReset,
    CloseReason::KeepaliveDead,
    CloseReason::Unacknowledged,
    CloseReason::Unreachable,
    CloseReason::ReadTimeout,
    CloseReason::IoError,
    CloseReason::TlsTruncated,
    CloseReason::TlsAlert,
    CloseReason::TlsKeysUsedUp,
];

/// How many of those there are without TLS.
pub(super) const PLAIN: usize = 7;

/// Attempts to connect that failed, by what the system said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failed {
    pub(super) unresolved: u64,
    pub(super) refused: u64,
    pub(super) reset: u64,
    pub(super) timed_out: u64,
    pub(super) unreachable: u64,
    /// For want of something of this host: ports, descriptors, the source address.
    pub(super) local: u64,
    /// Connected, and no TLS session.
    pub(super) tls: u64,
    /// One side does not believe the other's certificate.
    pub(super) certificate: u64,
    pub(super) other: u64,
}

impl Failed {
    pub(super) fn count(&mut self, kind: DialErrorKind) {
        let counter = match kind {
            DialErrorKind::Resolve => &mut self.unresolved,
            DialErrorKind::Refused => &mut self.refused,
            DialErrorKind::Reset => &mut self.reset,
            DialErrorKind::TimedOut => &mut self.timed_out,
            DialErrorKind::Unreachable => &mut self.unreachable,
            DialErrorKind::Local => &mut self.local,
            DialErrorKind::Tls => &mut self.tls,
            DialErrorKind::Certificate => &mut self.certificate,
            _ => &mut self.other,
        };
        *counter += 1;
    }

    pub(super) fn all(&self) -> u64 {
        let answered = self.refused + self.reset;
        let silent = self.timed_out + self.unreachable;
        let without = self.tls + self.certificate;
        answered + silent + without + self.unresolved + self.local + self.other
    }
}

/// Counters of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Connected now.
    pub(super) up: u64,
    pub(super) connects: u64,
    /// Of those, after a loss.
    pub(super) reconnects: u64,
    pub(super) failed: Failed,
    /// By the order of [`REASONS`], and what else there may be.
    pub(super) ended: [u64; REASONS.len()],
    pub(super) ended_otherwise: u64,
    /// Connections to a peer that does not echo.
    pub(super) foreign: u64,
    /// Messages.
    pub(super) sent: u64,
    pub(super) echoed: u64,
    /// Some message came back just as it was sent.
    pub(super) is_proven: bool,
    /// Of those, while it was being sent, not in the time of grace after it.
    pub(super) echoed_in_time: u64,
    /// Messages that were due and never sent.
    pub(super) unsent: u64,
    /// Bytes.
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    pub(super) received_in_time: u64,
    pub(super) faults: Faults,
    /// Nanoseconds.
    pub(super) longest_gap: u64,
}

impl Tally {
    pub(super) fn ended(&mut self, reason: CloseReason) {
        match REASONS.iter().position(|known| *known == reason) {
            Some(at) => self.ended[at] += 1,
            None => self.ended_otherwise += 1,
        }
    }

    /// Connections lost, or given up.
    pub(super) fn all_ended(&self) -> u64 {
        self.ended.iter().sum::<u64>() + self.ended_otherwise + self.foreign
    }

    pub(super) fn ended_for(&self, reason: CloseReason) -> u64 {
        let known = REASONS.iter().zip(self.ended);
        known
            .filter(|(known, _)| **known == reason)
            .map(|(_, count)| count)
            .sum()
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.up += other.up;
        self.connects += other.connects;
        self.reconnects += other.reconnects;
        self.failed.unresolved += other.failed.unresolved;
        self.failed.refused += other.failed.refused;
        self.failed.reset += other.failed.reset;
        self.failed.timed_out += other.failed.timed_out;
        self.failed.unreachable += other.failed.unreachable;
        self.failed.local += other.failed.local;
        self.failed.tls += other.failed.tls;
        self.failed.certificate += other.failed.certificate;
        self.failed.other += other.failed.other;
        for (mine, others) in self.ended.iter_mut().zip(other.ended) {
            *mine += others;
        }
        self.ended_otherwise += other.ended_otherwise;
        self.foreign += other.foreign;
        self.sent += other.sent;
        self.echoed += other.echoed;
        self.is_proven |= other.is_proven;
        self.echoed_in_time += other.echoed_in_time;
        self.unsent += other.unsent;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.received_in_time += other.received_in_time;
        self.faults.lost += other.faults.lost;
        self.faults.duplicated += other.faults.duplicated;
        self.faults.reordered += other.faults.reordered;
        self.faults.corrupted += other.faults.corrupted;
        self.longest_gap = self.longest_gap.max(other.longest_gap);
    }
}

/// Latencies, in nanoseconds, to three digits.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Result<Self, Failure> {
        /// What takes longer counts as this.
        const MOST: u64 = 24 * 3600 * 1_000_000_000;
        let made = Histogram::new_with_bounds(1, MOST, 3);
        made.map(Self)
            .map_err(|error| Failure::failed(format!("cannot make a histogram: {error}")))
    }

    pub(super) fn record(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(super) fn clear(&mut self) {
        self.0.reset();
    }

    /// Milliseconds within which that share was answered; none if nothing was.
    pub(super) fn quantile_ms(&self, share: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| milliseconds(self.0.value_at_quantile(share)))
    }

    pub(super) fn most_ms(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| milliseconds(self.0.max()))
    }
}

/// To the microsecond.
pub(super) fn milliseconds(nanos: u64) -> f64 {
    let micros = nanos.div_ceil(1000);
    // Exact up to 2^53 microseconds, 285 years.
    micros as f64 / 1e3
}
