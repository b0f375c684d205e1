//! What a server's counters were a moment ago, for the next one to go on counting where this one has crashed.

use std::time::Duration;

use super::{Handle, Shared};
use crate::address::endpoint::Endpoint;
use crate::inspect::ListenerInfo;
use crate::io::chronicle::Told;
use crate::io::stats::Counts;
use crate::liveness::close::CloseReason;

/// The counters. In JSON, so that a later build may say more.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Remains {
    listeners: Vec<Left>,
    counted_for: Duration,
    told: Told,
}

/// Of one listener.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Left {
    address: Endpoint,
    open: u64,
    counts: Counts,
}

impl Handle {
    /// The counters as they are, for [`Keeper::remains`](crate::control::Keeper::remains) of the server after this one,
    /// if this one should crash.
    #[must_use]
    pub fn remains(&self) -> Vec<u8> {
        let shared = &self.shared;
        let counts = shared.counts().into_iter();
        let listeners = shared.shown.listeners.iter().zip(counts).enumerate();
        let listeners = listeners.map(|(at, (listener, counts))| Left {
            address: listener.address.clone(),
            open: shared.open_at(at),
            counts,
        });
        let remains = Remains {
            listeners: listeners.collect(),
            counted_for: shared.counted_for(),
            told: shared.chronicle.tell(),
        };
        // There is nothing in it that JSON could not say.
        serde_json::to_vec(&remains).unwrap_or_default()
    }
}

impl Shared {
    /// Goes on counting where a server crashed that has left `remains`: what it had open is gone, but for those `found`, by
    /// listener.
    pub(crate) fn go_on_after_a_crash(&self, remains: &[u8], found: &[u64]) {
        // One that crashed before it could say anything has lost nobody that anybody knows of.
        let before: Remains = serde_json::from_slice(remains).unwrap_or_default();
        let is_ours = |left: &Left| {
            let ours = |one: &ListenerInfo| one.address == left.address;
            self.shown.listeners.iter().position(ours)
        };
        let mut all = vec![Counts::default(); self.shown.listeners.len()];
        let mut lost = 0;
        for mut left in before.listeners {
            let at = is_ours(&left);
            let found = at.and_then(|at| found.get(at)).copied().unwrap_or(0);
            let gone = left.open.saturating_sub(found);
            lost += gone;
            left.counts.closed(CloseReason::Crash, gone);
            if let Some(counts) = at.and_then(|at| all.get_mut(at)) {
                *counts = left.counts;
            }
        }
        if lost > 0 || found.iter().all(|count| *count == 0) {
            log::error!(
                reason:% = CloseReason::Crash, connections = lost;
                "closed: those that the former server had a second before at the most"
            );
        }
        let ours: Vec<u16> = (0..).take(all.len()).collect();
        self.go_on_counting((all, before.counted_for, before.told), &ours, Vec::new());
    }
}
