//! How far the workers have come with what was published: who speaks faster than they pass on is slowed by that.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::service::RoundStage;

/// The rounds of all workers.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    served: OnceLock<Box<[Served]>>,
    /// A sender waits for them.
    waited_for: AtomicBool,
}

/// How far the clients of a worker have been served.
#[derive(Debug, Default)]
struct Served {
    /// Up to there in the round that is under way.
    begun: AtomicU64,
    /// Up to there each of them, as far as its socket took it.
    over: AtomicU64,
    /// How long the last round took, in microseconds.
    took: AtomicU64,
}

impl Rounds {
    /// There are so many workers.
    pub(super) fn are_of(&self, workers: usize) {
        // Once: a hub is started by one server.
        let _ = self
            .served
            .set((0..workers).map(|_| Served::default()).collect());
    }

    fn each(&self) -> &[Served] {
        self.served.get().map_or(&[], |served| served)
    }

    /// The longest of the last ones.
    pub(super) fn longest(&self) -> Duration {
        let took = self.each().iter();
        let took = took.map(|round| round.took.load(Ordering::Relaxed));
        Duration::from_micros(took.max().unwrap_or(0))
    }

    /// Up to where every client has been served, as far as its socket took it. `None`: nobody serves any.
    pub(super) fn over(&self) -> Option<u64> {
        let over = self.each().iter();
        over.map(|round| round.over.load(Ordering::Acquire)).min()
    }

    /// A worker has come so far with a round, while what was published ends there. Answers whether one is over for which a
    /// sender may wait.
    pub(super) fn note(&self, worker: usize, stage: RoundStage, end: u64) -> bool {
        let Some(round) = self.each().get(worker) else {
            return false;
        };
        match stage {
            RoundStage::GoesOn => return false,
            RoundStage::Begins => {
                round.begun.store(end, Ordering::Relaxed);
                return false;
            }
            RoundStage::Over { took } => {
                round.took.store(micros(took), Ordering::Relaxed);
                let begun = round.begun.load(Ordering::Relaxed);
                round.over.store(begun, Ordering::SeqCst);
            }
            RoundStage::Gone => round.over.store(u64::MAX, Ordering::SeqCst),
        }
        self.waited_for.load(Ordering::SeqCst)
    }

    /// A sender waits, and says so before it prompts for the round that looks for it.
    pub(super) fn are_waited_for(&self) {
        self.waited_for.store(true, Ordering::SeqCst);
    }

    /// Whether a sender has waited; none does now.
    pub(super) fn have_waited(&self) -> bool {
        self.waited_for.swap(false, Ordering::SeqCst)
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
