//! A table of all connections, asked for a batch at a time: however slowly it is read, no more than that waits.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

use crate::handle::{Mail, Shared};
use crate::inspect::ConnectionInfo;

/// Some of a worker's connections.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) connections: Vec<ConnectionInfo>,
    /// Where the next batch begins; `None`: there is none.
    pub(crate) next: Option<usize>,
}

/// A batch that is asked for.
#[derive(Debug)]
pub(crate) struct Wish {
    /// Where it begins: the first key.
    pub(crate) from: usize,
    /// One batch goes there.
    pub(crate) reply: SyncSender<Batch>,
}

/// How far it is.
pub(crate) struct Listing {
    shared: Arc<Shared>,
    worker: usize,
    from: usize,
}

impl Listing {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            worker: 0,
            from: 0,
        }
    }

    /// Asks for the next batch. `None`: all have been shown.
    pub(crate) fn ask(&self) -> Option<Receiver<Batch>> {
        let worker = self.shared.workers.get(self.worker)?;
        let (reply, batch) = mpsc::sync_channel(1);
        let from = self.from;
        worker.post(Mail::List(Wish { from, reply }));
        Some(batch)
    }

    /// What came of it; `None`: the worker has ended.
    pub(crate) fn told(&mut self, batch: Option<Batch>) -> Vec<ConnectionInfo> {
        let (connections, next) = match batch {
            Some(Batch { connections, next }) => (connections, next),
            None => (Vec::new(), None),
        };
        self.worker += usize::from(next.is_none());
        self.from = next.unwrap_or(0);
        connections
    }
}

impl Iterator for Listing {
    type Item = Vec<ConnectionInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.ask()?.recv();
        Some(self.told(batch.ok()))
    }
}
