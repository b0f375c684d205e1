//! Who of a worker's connections is to be dialled for, and the names that are resolved for them on threads of their own.

use std::collections::HashMap;
use std::sync::Arc;

use mio::Waker;

use crate::dial::resolve::{Found, Resolver};
use crate::dial::upstream::Upstream;
use crate::time::deadline::Moment;

/// Connections on the way to a far side.
#[derive(Debug)]
pub(super) struct Dials {
    /// Those that are to be dialled for, or may be further on.
    next: Vec<usize>,
    /// Those that wait for a name.
    resolving: Vec<usize>,
    /// A resolver for each upstream there is, by its number.
    resolvers: HashMap<usize, Resolver>,
    waker: Arc<Waker>,
}

impl Dials {
    /// `waker`: tells the worker that a thread has an answer.
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self {
            next: Vec::new(),
            resolving: Vec::new(),
            resolvers: HashMap::new(),
            waker,
        }
    }

    pub(super) fn push(&mut self, key: usize) {
        self.next.push(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// Those whose time has come. Bounded: what fails at once, and is wanted again at once, waits for the next turn.
    pub(super) fn take(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.next)
    }

    /// It waits for a name.
    pub(super) fn wait_for_a_name(&mut self, key: usize) {
        self.resolving.push(key);
    }

    /// A thread has resolved a name; it is not told which.
    pub(super) fn resolved(&mut self, now: Moment) {
        for resolver in self.resolvers.values_mut() {
            resolver.hear(now);
        }
        // They have waited for it: before those who ask only now.
        self.next.splice(0..0, self.resolving.drain(..));
    }

    /// The answer, if there is one yet.
    pub(super) fn ask(&mut self, upstream: &Upstream, now: Moment) -> Option<Found> {
        let resolver = self.resolvers.entry(upstream.number()).or_insert_with(|| {
            let address = upstream.address().clone();
            Resolver::new(address, upstream.dial().family, Arc::clone(&self.waker))
        });
        resolver.ask(now)
    }
}
