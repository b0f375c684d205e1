//! What a server shows of itself beside its counters: what is open where, who ended last, and how the counters were.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Shared;
use super::ended::SHOWN;
use crate::address::endpoint::Endpoint;
use crate::inspect::{EndedInfo, ListenerInfo, NatsInfo, Sample, UpstreamInfo};
use crate::io::stats::{Stats, Summary};
use crate::liveness::close::CloseReason;
use crate::time::deadline::Moment;

/// What is shown of a server's listeners and services.
pub(crate) struct Shown {
    /// What every listener is; its counters are elsewhere.
    pub(crate) listeners: Vec<ListenerInfo>,
    /// Which of the settings' each is of.
    pub(crate) listens: Vec<usize>,
    /// Each worker's counters, by listener.
    pub(crate) stats: Vec<Vec<Arc<Stats>>>,
    /// What the services connect clients to.
    pub(crate) upstreams: Box<dyn Fn() -> Vec<UpstreamInfo> + Send + Sync>,
    /// The services' ways to other machines.
    pub(crate) nats: Box<dyn Fn() -> Vec<NatsInfo> + Send + Sync>,
    /// How many processes the services run, where one runs any.
    pub(crate) children: Box<dyn Fn() -> Option<usize> + Send + Sync>,
}

/// Of what was counted, the reasons that occurred.
pub(super) fn closed_by_reason(counted: &Summary) -> Vec<(CloseReason, u64)> {
    let reasons = CloseReason::ALL.into_iter();
    let closed = reasons.map(|reason| (reason, counted.closed(reason)));
    closed.filter(|&(_, count)| count > 0).collect()
}

impl Shared {
    /// Connections through a listener that are open.
    pub(super) fn open_at(&self, listener: usize) -> u64 {
        let workers = self
            .shown
            .stats
            .iter()
            .filter_map(|worker| worker.get(listener));
        let open = workers.map(|stats| stats.open.value());
        // One may change hands meanwhile.
        open.fold(0, u64::wrapping_add)
    }

    /// The connections that ended last, the last first.
    pub(super) fn ended(&self) -> Vec<EndedInfo> {
        let now = self.clock.now();
        let workers = self.workers.iter();
        let ended = workers.flat_map(|worker| worker.ended.show(&self.shown.listeners, now));
        let mut all: Vec<_> = self.takeover.ended_before(now).chain(ended).collect();
        all.sort_by_key(|one| one.ago);
        all.truncate(SHOWN);
        all
    }

    /// Where it is told of.
    pub(super) fn metrics(&self) -> Vec<Endpoint> {
        if let Some(beside) = self.beside.get() {
            return beside.handle.addresses();
        }
        Vec::new()
    }

    pub(super) fn samples(&self) -> Vec<Sample> {
        let now = self.clock.now();
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let ago = |(at, sample): &(Moment, Sample)| Sample {
            ago: now.since(*at),
            ..*sample
        };
        samples.iter().map(ago).collect()
    }

    /// Takes down the counters as they are, and forgets what they were more than `most` times ago.
    pub(crate) fn sample(&self, most: usize) {
        // Held meanwhile: what predecessors counted comes to the samples and to the counters at once.
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Summary::default();
        for listener in 0..self.shown.listeners.len() {
            sum.merge(&self.counted(listener));
        }
        let sample = Sample {
            ago: Duration::ZERO,
            open: self.open() as u64,
            accepted: sum.accepted,
            closed: sum.closed_in_all(),
            read: sum.read,
            written: sum.written,
        };
        while samples.len() >= most {
            samples.pop_front();
        }
        samples.push_back((self.clock.now(), sample));
    }
}
