//! What was counted: by worker and listener while the server runs, in one [`Summary`] when it ends.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::inspect::Takeover;
use crate::liveness::close::CloseReason;

/// A number that one thread raises and any may read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Only the worker that owns the counter calls this, so no locked instruction is needed.
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(count),
            Ordering::Relaxed,
        );
    }

    /// As [`add`](Self::add), of what was added before, be it by another worker to its own.
    pub(crate) fn take_away(&self, count: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_sub(count),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one worker for one listener.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Connections the worker has.
    pub(crate) open: Counter,
    pub(crate) accepted: Counter,
    pub(crate) read: Counter,
    pub(crate) written: Counter,
    /// Handshakes of TLS that were done: in full, and by a ticket.
    pub(crate) handshakes: Counter,
    pub(crate) resumptions: Counter,
    closed: [Counter; CloseReason::ALL.len()],
}

impl Stats {
    pub(crate) fn closed(&self, reason: CloseReason) {
        self.closed[reason as usize].add(1);
    }
}

/// What was counted for a listener, as it goes over to the next process; `closed` by the number of the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Counts {
    accepted: u64,
    read: u64,
    written: u64,
    closed: Vec<u64>,
    handshakes: u64,
    resumptions: u64,
}

#[cfg(control)]
impl Counts {
    /// So many connections ended, for that reason.
    pub(crate) fn closed(&mut self, reason: CloseReason, count: u64) {
        let at = reason as usize;
        if self.closed.len() <= at {
            self.closed.resize(at + 1, 0);
        }
        self.closed[at] += count;
    }
}

/// What a server did, from its start to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Connections accepted, those over a limit included.
    pub accepted: u64,
    /// Bytes read from clients.
    pub read: u64,
    /// Bytes written to clients.
    pub written: u64,
    /// Connections that were cut off because the end would not wait for them.
    pub cut: u64,
    /// Whether every service could finish what it still had to do.
    pub finished: bool,
    /// The takeover it ended in.
    pub takeover: Option<Takeover>,
    /// The process that took over ended before it could serve: nobody serves any more.
    pub in_vain: bool,
    pub(crate) handshakes: u64,
    pub(crate) resumptions: u64,
    closed: [u64; CloseReason::ALL.len()],
}

impl Summary {
    /// Connections that ended for `reason`.
    #[must_use]
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize]
    }

    /// Connections that ended.
    #[must_use]
    pub fn closed_in_all(&self) -> u64 {
        self.closed.iter().sum()
    }

    pub(crate) fn add(&mut self, stats: &Stats) {
        self.accepted += stats.accepted.value();
        self.read += stats.read.value();
        self.written += stats.written.value();
        self.handshakes += stats.handshakes.value();
        self.resumptions += stats.resumptions.value();
        for (sum, counter) in self.closed.iter_mut().zip(&stats.closed) {
            *sum += counter.value();
        }
    }

    /// Adds what was counted elsewhere.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.read += other.read;
        self.written += other.written;
        self.handshakes += other.handshakes;
        self.resumptions += other.resumptions;
        for (sum, count) in self.closed.iter_mut().zip(other.closed) {
            *sum += count;
        }
    }
}

impl Summary {
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            accepted: self.accepted,
            read: self.read,
            written: self.written,
            closed: self.closed.to_vec(),
            handshakes: self.handshakes,
            resumptions: self.resumptions,
        }
    }

    /// Goes on counting where another process ended.
    pub(crate) fn go_on(&mut self, counts: &Counts) {
        self.accepted += counts.accepted;
        self.read += counts.read;
        self.written += counts.written;
        self.handshakes += counts.handshakes;
        self.resumptions += counts.resumptions;
        for (sum, count) in self.closed.iter_mut().zip(&counts.closed) {
            *sum += count;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            accepted,
            read,
            written,
            ..
        } = self;
        write!(
            f,
            "accepted={accepted} closed={} read={read} written={written}",
            self.closed_in_all()
        )?;
        for reason in CloseReason::ALL {
            let count = self.closed(reason);
            if count > 0 {
                write!(f, " {reason}={count}")?;
            }
        }
        if let Some(takeover) = &self.takeover {
            write!(f, " frozen_ms={}", takeover.frozen_ms())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_order() {
        for (at, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{reason}");
        }
    }

    #[test]
    fn counting_goes_on_where_another_process_ended() {
        let stats = Stats::default();
        stats.accepted.add(2);
        stats.written.add(5);
        stats.closed(CloseReason::PeerClosed);
        let mut before = Summary::default();
        before.add(&stats);
        let mut after = Summary::default();
        after.add(&stats);
        after.go_on(&before.counts());
        assert_eq!(
            after.to_string(),
            "accepted=4 closed=2 read=0 written=10 peer-closed=2"
        );
    }

    #[test]
    fn a_summary_adds_up_and_names_only_what_happened() {
        let (one, two) = (Stats::default(), Stats::default());
        one.accepted.add(2);
        one.closed(CloseReason::PeerClosed);
        two.closed(CloseReason::ReadTimeout);
        two.read.add(7);
        let mut summary = Summary::default();
        summary.add(&one);
        summary.add(&two);
        assert_eq!(
            summary.to_string(),
            "accepted=2 closed=2 read=7 written=0 peer-closed=1 read-timeout=1"
        );
    }
}
