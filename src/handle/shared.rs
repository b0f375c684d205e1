//! What the threads of a server have in common.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::handle::Handle;
use crate::handle::beside::Beside;
use crate::handle::lifecycle::Lifecycle;
use crate::handle::mailbox::Mailbox;
use crate::handle::shown::Shown;
use crate::handle::takeover::Succession;
use crate::inspect::Sample;
use crate::io::chronicle::Chronicle;
use crate::io::stats::Summary;
use crate::memory::Memory;
use crate::time::deadline::{Clock, Moment};

/// What the workers of a server have in common. Nothing here is touched by a read or a write.
pub(crate) struct Shared {
    pub(super) ordered: Ordered,
    alone: Alone,
    pub(crate) accepting: Accepting,
    pub(crate) takeover: Succession,
    pub(super) shown: Shown,
    /// What is counted seldom.
    pub(crate) chronicle: Chronicle,
    /// The counters as they were, the oldest first: while somebody takes them.
    pub(super) samples: Mutex<VecDeque<(Moment, Sample)>>,
    /// It answers questions about another server: what happens to its connections is of no interest.
    aside: bool,
    /// Who does that for this one.
    pub(crate) beside: OnceLock<Beside>,
    /// Whom it tells what happens to it.
    pub(crate) lifecycle: Arc<dyn Lifecycle>,
    pub(crate) workers: Vec<Mailbox>,
    pub(crate) memory: Memory,
    pub(super) clock: Clock,
    started: Moment,
    /// Until when the process stood still last, as far as a worker has noticed.
    pub(crate) stood_still: Mutex<Moment>,
}

/// What a server was last told to do; never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    Run,
    Drain,
    DrainAtOnce,
    Stop,
}

/// What the server was told.
#[derive(Default)]
pub(super) struct Ordered {
    /// An [`Order`].
    last: AtomicU8,
    /// It was told to end, or is just about to be.
    ends: AtomicBool,
    /// Raised by each `resume`.
    pub(super) resumed: AtomicU64,
}

/// Whether a process that was taken over from lives, for those who wait for its end.
#[derive(Default)]
struct Alone {
    is: Mutex<bool>,
    /// That has changed, or what the server was told to do.
    or_told: Condvar,
}

impl Alone {
    fn is(&self) -> MutexGuard<'_, bool> {
        self.is.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server was told something. Whoever waits has looked at that before this, and waits by now, or will look after it.
    fn look_again(&self) {
        drop(self.is());
        self.or_told.notify_all();
    }
}

/// Whom the server lets in, as far as its threads have to agree.
#[derive(Default)]
pub(crate) struct Accepting {
    /// The last connection's number.
    pub(super) last_id: AtomicU64,
    /// The listeners are closed: no worker gets a connection any more.
    pub(crate) closed: AtomicBool,
    /// It is paused for want of room: whoever closes a connection wakes the accepting worker.
    waits: AtomicBool,
    /// Held while a connection gets its descriptor: the one that the control socket keeps for itself is none.
    pub(crate) descriptors: Arc<Mutex<()>>,
    /// Nobody is to be accepted: who comes now may be for another process to answer. Changes while `descriptors` is held.
    pub(super) shut: AtomicBool,
}

impl Accepting {
    pub(crate) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether nobody is to be accepted for now; asked while `descriptors` is held.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
    }

    /// Notes whether it waits for a connection to close.
    pub(crate) fn wait(&self, waits: bool) {
        // Against a worker that counts a connection out and then looks here: one of the two sees the other.
        if self.waits.load(Ordering::Relaxed) != waits {
            self.waits.store(waits, Ordering::SeqCst);
        }
    }

    /// A connection has closed. Answers whether accepting has waited for that.
    pub(crate) fn has_waited(&self) -> bool {
        self.waits.swap(false, Ordering::SeqCst)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("order", &self.ordered())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        workers: Vec<Mailbox>,
        shown: Shown,
        clock: Clock,
        memory: Memory,
        lifecycle: Arc<dyn Lifecycle>,
    ) -> Self {
        Self {
            ordered: Ordered::default(),
            alone: Alone::default(),
            accepting: Accepting::default(),
            takeover: Succession::default(),
            shown,
            chronicle: Chronicle::default(),
            samples: Mutex::default(),
            aside: false,
            beside: OnceLock::new(),
            lifecycle,
            workers,
            memory,
            clock,
            started: clock.now(),
            stood_still: Mutex::new(Moment::at_start()),
        }
    }

    /// Of a server that answers questions about another one.
    pub(crate) fn aside(self, about: &Handle) -> Self {
        Self {
            accepting: Accepting {
                descriptors: Arc::clone(&about.shared.accepting.descriptors),
                ..self.accepting
            },
            aside: true,
            ..self
        }
    }

    /// Whether it answers questions about another server.
    pub(crate) fn is_aside(&self) -> bool {
        self.aside
    }

    /// At which level the log has what happens to connections.
    pub(crate) fn level(&self) -> log::Level {
        if self.aside {
            log::Level::Debug
        } else {
            log::Level::Info
        }
    }

    pub(crate) fn ordered(&self) -> Order {
        match self.ordered.last.load(Ordering::Acquire) {
            0 => Order::Run,
            1 => Order::Drain,
            2 => Order::DrainAtOnce,
            _ => Order::Stop,
        }
    }

    pub(super) fn order(&self, order: Order) {
        // Said first: an idle server ends as soon as it has the order.
        if !self.ordered.ends.swap(true, Ordering::AcqRel) {
            self.lifecycle.ending();
        }
        self.ordered.last.fetch_max(order as u8, Ordering::AcqRel);
        self.alone.look_again();
        self.wake_all();
    }

    /// How often connections were resumed.
    pub(crate) fn resumed(&self) -> u64 {
        self.ordered.resumed.load(Ordering::Acquire)
    }

    /// No process that was taken over from lives any more.
    pub(crate) fn become_alone(&self) {
        self.takeover.set_partner(None);
        *self.alone.is() = true;
        self.alone.or_told.notify_all();
    }

    /// The process that this one has taken over from, if it lives.
    pub(crate) fn predecessor(&self) -> Option<u32> {
        self.takeover.took().filter(|_| !*self.alone.is())
    }

    /// Waits until none does, for no longer than the `bound`, and unless something is more `urgent`; that is looked at anew
    /// when the server is told something.
    pub(crate) fn wait_until_alone(&self, bound: Duration, urgent: impl Fn() -> bool) {
        let waiting = |alone: &mut bool| !*alone && !urgent();
        let alone = self.alone.is();
        let waited = self.alone.or_told.wait_timeout_while(alone, bound, waiting);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn uptime(&self) -> Duration {
        self.clock.now().since(self.started)
    }

    /// For how long the counters have counted, in this process and those before it.
    pub(crate) fn counted_for(&self) -> Duration {
        self.takeover.counted_for() + self.uptime()
    }

    /// What this process and those before it counted for a listener.
    pub(super) fn counted(&self, listener: usize) -> Summary {
        let mut sum = Summary::default();
        for stats in self
            .shown
            .stats
            .iter()
            .filter_map(|worker| worker.get(listener))
        {
            sum.add(stats);
        }
        self.takeover.go_on(listener, &mut sum);
        sum
    }

    pub(crate) fn wake_all(&self) {
        for worker in &self.workers {
            worker.wake();
        }
    }

    /// Connections that are open, or on their way to a worker.
    pub(crate) fn open(&self) -> usize {
        let workers = self.workers.iter();
        workers
            .map(|worker| worker.open.load(Ordering::Relaxed))
            .sum()
    }

    /// Connections that no service has heard of yet.
    pub(super) fn at_door(&self) -> usize {
        let workers = self.workers.iter();
        workers
            .map(|worker| worker.at_door.load(Ordering::Relaxed))
            .sum()
    }

    /// The worker with the fewest connections; the asking one, unless another has fewer.
    pub(crate) fn least_loaded(&self, asking: usize) -> usize {
        let open = |at: usize| self.workers[at].open.load(Ordering::Relaxed);
        let fewer = |best, at| if open(at) < open(best) { at } else { best };
        (0..self.workers.len()).fold(asking, fewer)
    }
}
