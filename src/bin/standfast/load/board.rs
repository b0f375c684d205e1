//! Where the workers put their counters each second, for the progress line.

use std::sync::Mutex;

use crate::Failure;
use crate::load::tally::{Latencies, Tally};

/// A place for each worker.
#[derive(Debug)]
pub(super) struct Board(Vec<Mutex<Posted>>);

/// What a worker last said.
#[derive(Debug)]
struct Posted {
    /// When, in the run's nanoseconds.
    at: u64,
    tally: Tally,
    /// Since somebody looked.
    latencies: Latencies,
}

impl Board {
    pub(super) fn new(workers: usize) -> Result<Self, Failure> {
        let empty = Latencies::new()?;
        let posted = || {
            Mutex::new(Posted {
                at: 0,
                tally: Tally::default(),
                latencies: empty.clone(),
            })
        };
        Ok(Self(std::iter::repeat_with(posted).take(workers).collect()))
    }

    /// Puts up what a worker has counted in all, and its latencies since it last did so.
    pub(super) fn post(&self, worker: usize, now: u64, tally: &Tally, latencies: &Latencies) {
        if let Some(Ok(mut posted)) = self.0.get(worker).map(Mutex::lock) {
            posted.at = now;
            posted.tally = *tally;
            posted.latencies.add(latencies);
        }
    }

    /// What all of them have counted, and when the last of them said so. Their latencies since the last look are in
    /// `latencies`. None while one of them has said nothing since `before`: then it is worth waiting for.
    pub(super) fn look(&self, before: u64, latencies: &mut Latencies) -> Option<(u64, Tally)> {
        let said = |posted: &Mutex<Posted>| posted.lock().map_or(before, |posted| posted.at);
        let at = self.0.iter().map(said).min().filter(|at| *at > before)?;
        latencies.clear();
        let mut all = Tally::default();
        for posted in &self.0 {
            if let Ok(mut posted) = posted.lock() {
                all.merge(&posted.tally);
                latencies.add(&posted.latencies);
                posted.latencies.clear();
            }
        }
        Some((at, all))
    }
}
