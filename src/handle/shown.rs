//! What a server shows of itself beside its counters: what is open where, who ended last, and how the counters were.

#[cfg(control)]
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Shared;
use super::ended::SHOWN;
use crate::address::endpoint::Endpoint;
use crate::inspect::{EndedInfo, ListenerInfo, Sample, UpstreamInfo};
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

/// What a server shows of the time before, as it goes over to the next process. For people to look at: a process that cannot
/// read it goes on without, and so does one that is not sent any.
#[cfg(control)]
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Past {
    /// The last first.
    #[serde(default)]
    ended: Vec<EndedInfo>,
    #[serde(default)]
    samples: Vec<Sample>,
}

#[cfg(control)]
impl Past {
    /// The most of it, bytes: as much of the ends as finds room there, the last ones.
    const MOST: usize = 64 * 1024;

    fn encode(mut self) -> Vec<u8> {
        loop {
            let bytes = serde_json::to_vec(&self).unwrap_or_default();
            if bytes.len() <= Self::MOST || self.ended.is_empty() {
                return bytes;
            }
            self.ended.truncate(self.ended.len() / 2);
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let past: serde_json::Result<Self> = serde_json::from_slice(bytes);
        past.unwrap_or_else(|error| {
            log::debug!(error:%; "what the former process showed cannot be read");
            Self::default()
        })
    }

    /// So much later.
    pub(crate) fn after(mut self, time: Duration) -> Self {
        for one in &mut self.ended {
            one.ago = one.ago.saturating_add(time);
        }
        for one in &mut self.samples {
            one.ago = one.ago.saturating_add(time);
        }
        self
    }
}

#[cfg(control)]
impl Shared {
    /// What is shown here, for the next process; but for ends that are `told` of.
    pub(crate) fn past(&self, told: &mut HashSet<u64>) -> Vec<u8> {
        let past = Past {
            samples: self.samples(),
            ..self.past_since(told)
        };
        past.encode()
    }

    /// The ends that are not `told` of, if there are any.
    pub(crate) fn past_rest(&self, told: &mut HashSet<u64>) -> Option<Vec<u8>> {
        Some(self.past_since(told))
            .filter(|past| !past.ended.is_empty())
            .map(Past::encode)
    }

    fn past_since(&self, told: &mut HashSet<u64>) -> Past {
        let ended = self.ended().into_iter();
        Past {
            ended: ended.filter(|one| told.insert(one.id)).collect(),
            samples: Vec::new(),
        }
    }

    /// Goes on with what a predecessor showed: its samples, where they are taken here, and its ends, which are answered.
    pub(super) fn go_on_showing(
        &self,
        past: Vec<Past>,
        samples: &mut VecDeque<(Moment, Sample)>,
    ) -> Vec<(Moment, EndedInfo)> {
        let now = self.clock.now();
        // Taken before it was known what a predecessor had counted.
        samples.clear();
        let mut ended = Vec::new();
        for past in past {
            ended.extend(past.ended.into_iter().map(|one| (now.before(one.ago), one)));
            if !self.metrics().is_empty() {
                samples.extend(
                    past.samples
                        .into_iter()
                        .map(|one| (now.before(one.ago), one)),
                );
            }
        }
        ended
    }
}
