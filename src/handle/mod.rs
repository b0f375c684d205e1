//! The way into a running server from other threads.

pub(crate) mod beside;
pub(crate) mod ended;
pub(crate) mod lifecycle;
pub(crate) mod listing;
mod mailbox;
#[cfg(control)]
pub(crate) mod past;
#[cfg(control)]
mod remains;
mod shared;
pub(crate) mod shown;
#[cfg_attr(not(control), path = "no_takeover.rs")]
pub(crate) mod takeover;
pub(crate) mod turning;
pub(crate) mod wanted;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crate::address::endpoint::Endpoint;
use crate::handle::listing::Listing;
use crate::handle::wanted::Wanted;
use crate::inspect::{ConnectionInfo, DescriptorInfo, Handshakes, ListenerInfo, Status};
use crate::io::stats::Summary;
use crate::memory::Memory;
use crate::os::descriptors::{descriptor_limit, descriptors_open};
use crate::time::deadline::Moment;

pub(crate) use mailbox::{Mail, Mailbox, Newcomer};
pub(crate) use shared::{Order, Shared};

/// A running server, from outside: cheap to clone, usable from every thread.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    /// Stops accepting, serves what has come, delivers what waits, and ends the server: after its drain delay, spread over its
    /// drain spread, each client within its drain timeout.
    pub fn drain(&self) {
        self.shared.order(Order::Drain);
    }

    /// The same without delay and spread, also while such a drain is under way: for a server that can serve nobody any more.
    pub fn drain_at_once(&self) {
        self.shared.order(Order::DrainAtOnce);
    }

    /// Ends the server at once; what is open is cut.
    pub fn stop(&self) {
        self.shared.order(Order::Stop);
    }

    /// Lets connections go on that their service [paused](crate::Context::pause).
    pub fn resume(&self) {
        self.shared.ordered.resumed.fetch_add(1, Ordering::Release);
        self.shared.wake_all();
    }

    /// Has [`Service::output`](crate::Service::output) called for every connection of the server, once, within that
    /// time: one call for all prompts that were made before it. From within a service's call this makes no system
    /// call for the worker it is made on.
    ///
    /// For a service that has output for many connections at once: each may say so, and they are called in one go.
    pub fn prompt(&self, within: Duration) {
        let moment = self.shared.clock.now().after(within);
        for worker in &self.shared.workers {
            worker.prompt(moment);
        }
    }

    /// How many threads serve.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.shared.workers.len()
    }

    /// Where it listens, with real ports, in the order of the settings.
    #[must_use]
    pub fn addresses(&self) -> Vec<Endpoint> {
        let listeners = self.shared.shown.listeners.iter();
        listeners.map(|one| one.address.clone()).collect()
    }

    /// Of each of the [addresses](Self::addresses), which of [`Config::listen`](crate::Config::listen) it is of.
    #[must_use]
    pub fn listens(&self) -> Vec<usize> {
        self.shared.shown.listens.clone()
    }

    /// The server, its listeners and its counters.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let mut sum = Summary::default();
        let listeners = shared.shown.listeners.iter().enumerate();
        let listeners: Vec<_> = listeners
            .map(|(at, listener)| {
                let counted = shared.counted(at);
                sum.merge(&counted);
                ListenerInfo {
                    accepted: counted.accepted,
                    open: shared.open_at(at),
                    closed: shown::closed_by_reason(&counted),
                    tls: listener.tls.map(|_| Handshakes {
                        full: counted.handshakes,
                        resumed: counted.resumptions,
                    }),
                    ..listener.clone()
                }
            })
            .collect();
        Status {
            pid: std::process::id(),
            keeper: shared.takeover.keeper(),
            crashes: shared.takeover.crashes(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: shared.uptime(),
            counted_for: shared.counted_for(),
            draining: shared.ordered() != Order::Run,
            accepting: !shared.accepting.closed.load(Ordering::Acquire),
            workers: shared.workers.len(),
            open: shared.open(),
            at_door: shared.at_door(),
            accepted: sum.accepted,
            read: sum.read,
            written: sum.written,
            closed: shown::closed_by_reason(&sum),
            accept_paused: shared.chronicle.is_paused(),
            accept_errors: shared.chronicle.accept_errors(),
            descriptors: descriptors_open()
                .zip(descriptor_limit())
                .map(|(used, limit)| DescriptorInfo { used, limit }),
            children: (shared.shown.children)(),
            memory: shared.memory.info(),
            upstreams: (shared.shown.upstreams)(),
            nats: (shared.shown.nats)(),
            listeners,
            takeover: shared.takeover.last().cloned(),
            predecessor: shared.predecessor(),
            takeovers: shared.chronicle.takeovers(),
            ended: shared.ended(),
            metrics: shared.metrics(),
            samples: shared.samples(),
        }
    }

    /// Every open connection, in batches as the workers come to it: they go on serving meanwhile. Ends when all have
    /// been shown, or the server has ended.
    pub fn connections(&self) -> impl Iterator<Item = Vec<ConnectionInfo>> + use<> {
        self.list()
    }

    /// The same, for somebody who may not wait for the end of it.
    pub(crate) fn list(&self) -> Listing {
        Listing::new(&self.shared)
    }

    /// Ends connection `id` with reason `killed`. Answers whether there was one.
    #[must_use]
    pub fn kill(&self, id: u64) -> bool {
        let found = self.kill_if(id, &Wanted::always());
        found.into_iter().any(|found| found)
    }

    /// The same, for somebody who may give up before a worker comes to it.
    pub(crate) fn kill_if(&self, id: u64, wanted: &Wanted) -> Receiver<bool> {
        let (reply, found) = mpsc::channel();
        for worker in &self.shared.workers {
            worker.post(Mail::Kill(id, wanted.clone(), reply.clone()));
        }
        found
    }

    /// The bound for all bytes that wait, and what is held of it. Whoever keeps bytes of clients beside the server counts
    /// them there.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.shared.memory.clone()
    }

    /// Its [keeper](crate::Config::keeper) has ended: this process is a server as any other.
    #[cfg(control)]
    pub fn keeper_ended(&self) {
        self.shared.keep_no_more();
    }

    /// Waits until this server is the only one: a process it was taken over from may have something to write yet.
    /// Returns at once if it was not taken over.
    pub fn wait_until_alone(&self) {
        self.shared.wait_until_alone(Duration::MAX, || false);
    }

    /// Whether the server was told to end, at once or not: from then on it is not ready, though it may accept for a while.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.shared.ordered() != Order::Run
    }

    /// Whether nobody is let in any more: workers may have ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.accepting.closed.load(Ordering::Acquire)
    }

    /// Whether another process has taken over from this server.
    pub(crate) fn was_taken_over(&self) -> bool {
        self.shared.was_given()
    }

    /// The time on the server's clock.
    pub(crate) fn now(&self) -> Moment {
        self.shared.clock.now()
    }

    /// The process that has copies of this one's sockets, or of which this one's are copies: at the other end of a
    /// takeover.
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    pub(crate) fn partner(&self) -> Option<u32> {
        self.shared.takeover.partner()
    }

    /// Whether the server was told to end at once.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.shared.ordered() == Order::Stop
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("ordered", &self.shared.ordered())
            .finish_non_exhaustive()
    }
}
