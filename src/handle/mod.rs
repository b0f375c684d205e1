//! The way into a running server from other threads.

pub(crate) mod beside;
pub(crate) mod ended;
pub(crate) mod lifecycle;
pub(crate) mod listing;
#[cfg(control)]
mod remains;
pub(crate) mod shown;
#[cfg_attr(not(control), path = "no_takeover.rs")]
pub(crate) mod takeover;
pub(crate) mod turning;
pub(crate) mod wanted;

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use mio::Waker;

use crate::address::endpoint::Endpoint;
use crate::handle::beside::Beside;
use crate::handle::ended::Ended;
use crate::handle::lifecycle::Lifecycle;
use crate::handle::listing::{Listing, Wish};
use crate::handle::takeover::{Call, Part};
use crate::handle::wanted::Wanted;
use crate::inspect::{
    ConnectionInfo, DescriptorInfo, ListenerInfo, Sample, Status, Takeover, UpstreamInfo,
};
use crate::io::Io;
use crate::io::chronicle::Chronicle;
use crate::io::stats::{Stats, Summary};
use crate::memory::Memory;
use crate::os::descriptors::{descriptor_limit, descriptors_open};
use crate::time::deadline::{Clock, Moment, NearestMoment};

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
        self.shared.resumed.fetch_add(1, Ordering::Release);
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
        let listeners = self.shared.listeners.iter();
        listeners.map(|one| one.address.clone()).collect()
    }

    /// Of each of the [addresses](Self::addresses), which of [`Config::listen`](crate::Config::listen) it is of.
    #[must_use]
    pub fn listens(&self) -> Vec<usize> {
        self.shared.listens.clone()
    }

    /// The server, its listeners and its counters.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let mut sum = Summary::default();
        let listeners = shared.listeners.iter().enumerate();
        let listeners: Vec<_> = listeners
            .map(|(at, listener)| {
                let counted = shared.counted(at);
                sum.merge(&counted);
                ListenerInfo {
                    accepted: counted.accepted,
                    open: shared.open_at(at),
                    closed: shown::closed_by_reason(&counted),
                    ..listener.clone()
                }
            })
            .collect();
        let upstreams = shared.upstreams.get();
        Status {
            pid: std::process::id(),
            keeper: shared.takeover.keeper(),
            crashes: shared.takeover.crashes(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: shared.uptime(),
            counted_for: shared.counted_for(),
            draining: shared.ordered() != Order::Run,
            accepting: !shared.closed.load(Ordering::Acquire),
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
            children: shared.children.get().and_then(|children| children()),
            memory: shared.memory.info(),
            upstreams: upstreams.map_or_else(Vec::new, |upstreams| upstreams()),
            listeners,
            takeover: shared.gave.get().or_else(|| shared.took.get()).cloned(),
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
        self.shared.wait_until_alone(|| false);
    }

    /// Whether the server was told to end, at once or not: from then on it is not ready, though it may accept for a while.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.shared.ordered() != Order::Run
    }

    /// Whether nobody is let in any more: workers may have ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
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
        let pid = self.shared.partner.load(Ordering::Acquire);
        (pid != 0).then_some(pid)
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

/// What a server was last told to do; never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    Run,
    Drain,
    DrainAtOnce,
    Stop,
}

/// What the workers of a server have in common. Nothing here is touched by a read or a write.
pub(crate) struct Shared {
    order: AtomicU8,
    /// Raised by each `resume`.
    pub(crate) resumed: AtomicU64,
    /// The last connection's number.
    last_id: AtomicU64,
    /// The listeners are closed: no worker gets a connection any more.
    pub(crate) closed: AtomicBool,
    /// Accepting is paused for want of room: whoever closes a connection wakes the accepting worker.
    pub(crate) accept_waits: AtomicBool,
    /// Held while a connection gets its descriptor: the one that the control socket keeps for itself is none.
    pub(crate) descriptors: Arc<Mutex<()>>,
    /// Nobody is to be accepted: who comes now may be for another process to answer. Changes while `descriptors` is held.
    shut: AtomicBool,
    /// It answers questions about another server: what happens to its connections is of no interest.
    aside: bool,
    /// Who does that for this one.
    pub(crate) beside: OnceLock<Beside>,
    /// What is counted seldom.
    pub(crate) chronicle: Chronicle,
    /// The counters as they were, the oldest first: while somebody takes them.
    samples: Mutex<VecDeque<(Moment, Sample)>>,
    pub(crate) takeover: Part,
    /// The takeover this server came from, and the one it ended in.
    pub(crate) took: OnceLock<Takeover>,
    pub(crate) gave: OnceLock<Takeover>,
    /// The process at the other end of a takeover; 0 if there is none.
    partner: AtomicU32,
    /// It was told to end, or is just about to be.
    ends: AtomicBool,
    /// Whom it tells what happens to it.
    pub(crate) lifecycle: Arc<dyn Lifecycle>,
    /// What the services connect clients to.
    pub(crate) upstreams: OnceLock<Box<dyn Fn() -> Vec<UpstreamInfo> + Send + Sync>>,
    /// How many processes the services run, where one runs any.
    pub(crate) children: OnceLock<Box<dyn Fn() -> Option<usize> + Send + Sync>>,
    /// No process that was taken over from lives any more.
    alone: Mutex<bool>,
    /// That has changed, or what the server was told to do.
    alone_or_told: Condvar,
    pub(crate) workers: Vec<Mailbox>,
    /// What every listener is; its counters are elsewhere.
    listeners: Vec<ListenerInfo>,
    /// Which of the settings' each is of.
    listens: Vec<usize>,
    /// Each worker's counters, by listener.
    stats: Vec<Vec<Arc<Stats>>>,
    clock: Clock,
    started: Moment,
    pub(crate) memory: Memory,
    /// Until when the process stood still last, as far as a worker has noticed.
    pub(crate) stood_still: Mutex<Moment>,
}

/// What a worker finds in its mailbox.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A connection for it.
    Arrival(Newcomer),
    /// Show some connections.
    List(Wish),
    /// End the connection of this number, if that is still wanted; answers if it is here.
    Kill(u64, Wanted, Sender<bool>),
    /// Say that you turn.
    Ping(Sender<()>),
    /// Do your part in a takeover.
    Takeover(Call),
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) io: Io,
    /// What its service remembers of it, once it is connected; `None`: it was only accepted.
    pub(crate) state: Option<Box<dyn Any + Send>>,
}

/// The way to one worker.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(crate) waker: Arc<Waker>,
    mail: Sender<Mail>,
    /// Connections it has, those on their way to it included.
    pub(crate) open: AtomicUsize,
    /// Of those it has, connections that no service has heard of yet.
    pub(crate) at_door: AtomicUsize,
    /// Those of its connections that ended last.
    pub(crate) ended: Ended,
    /// When services have output for its connections.
    pub(crate) prompted: NearestMoment,
    /// Who looks into it.
    thread: OnceLock<ThreadId>,
}

impl Mailbox {
    pub(crate) fn new(waker: Waker) -> (Self, Receiver<Mail>) {
        let (mail, receiver) = mpsc::channel();
        (
            Self {
                waker: Arc::new(waker),
                mail,
                open: AtomicUsize::new(0),
                at_door: AtomicUsize::new(0),
                ended: Ended::default(),
                prompted: NearestMoment::never(),
                thread: OnceLock::new(),
            },
            receiver,
        )
    }

    /// Gives the worker a connection; it looks when it is woken. Gives it back if the worker is gone.
    pub(crate) fn send(&self, newcomer: Newcomer) -> Result<(), Newcomer> {
        self.mail
            .send(Mail::Arrival(newcomer))
            .map_err(|unsent| match unsent.0 {
                Mail::Arrival(newcomer) => newcomer,
                _ => unreachable!("what could not be sent is what was to be sent"),
            })
    }

    /// Asks the worker for something. One that has ended does not answer.
    pub(crate) fn post(&self, mail: Mail) {
        if self.mail.send(mail).is_ok() {
            self.wake();
        }
    }

    /// The worker's thread is this one.
    pub(crate) fn runs_on_this_thread(&self) {
        // Once, when it begins to run.
        let _ = self.thread.set(thread::current().id());
    }

    /// Services have output for the worker's connections, at `moment` at the latest. It looks at that before it
    /// waits, so only others need to wake it.
    fn prompt(&self, moment: Moment) {
        let is_nearer = self.prompted.bring_near(moment);
        if is_nearer && self.thread.get() != Some(&thread::current().id()) {
            self.wake();
        }
    }

    pub(crate) fn wake(&self) {
        // An eventfd whose counter is full is awake already.
        if let Err(error) = self.waker.wake()
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!(error:% = error; "cannot wake a worker");
        }
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
        listeners: Vec<ListenerInfo>,
        listens: Vec<usize>,
        stats: Vec<Vec<Arc<Stats>>>,
        clock: Clock,
        memory: Memory,
        lifecycle: Arc<dyn Lifecycle>,
    ) -> Self {
        Self {
            descriptors: Arc::default(),
            shut: AtomicBool::new(false),
            aside: false,
            beside: OnceLock::new(),
            chronicle: Chronicle::default(),
            samples: Mutex::default(),
            children: OnceLock::new(),
            lifecycle,
            memory,
            listeners,
            listens,
            stats,
            clock,
            started: clock.now(),
            stood_still: Mutex::new(Moment::at_start()),
            order: AtomicU8::new(Order::Run as u8),
            resumed: AtomicU64::new(0),
            last_id: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            accept_waits: AtomicBool::new(false),
            took: OnceLock::new(),
            gave: OnceLock::new(),
            partner: AtomicU32::new(0),
            ends: AtomicBool::new(false),
            takeover: Part::default(),
            upstreams: OnceLock::new(),
            alone: Mutex::new(false),
            alone_or_told: Condvar::new(),
            workers,
        }
    }

    /// Of a server that answers questions about another one.
    pub(crate) fn aside(self, about: &Handle) -> Self {
        Self {
            descriptors: Arc::clone(&about.shared.descriptors),
            aside: true,
            ..self
        }
    }

    /// Whether it answers questions about another server.
    pub(crate) fn is_aside(&self) -> bool {
        self.aside
    }

    /// Whether nobody is to be accepted for now; asked while `descriptors` is held.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
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
        match self.order.load(Ordering::Acquire) {
            0 => Order::Run,
            1 => Order::Drain,
            2 => Order::DrainAtOnce,
            _ => Order::Stop,
        }
    }

    fn order(&self, order: Order) {
        // Said first: an idle server ends as soon as it has the order.
        if !self.ends.swap(true, Ordering::AcqRel) {
            self.lifecycle.ending();
        }
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        // Whoever waits has looked at the order before this, and waits by now, or will look after it.
        drop(self.alone.lock());
        self.alone_or_told.notify_all();
        self.wake_all();
    }

    /// No process that was taken over from lives any more.
    pub(crate) fn become_alone(&self) {
        *self.alone.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.alone_or_told.notify_all();
    }

    /// The process that this one has taken over from, if it lives.
    fn predecessor(&self) -> Option<u32> {
        let alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let took = self.took.get().filter(|_| !*alone);
        took.map(|took| took.pid)
    }

    /// Waits for that, unless something is more `urgent`; that is looked at anew when the server is told something.
    pub(crate) fn wait_until_alone(&self, urgent: impl Fn() -> bool) {
        let alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |alone: &mut bool| !*alone && !urgent();
        let waited = self.alone_or_told.wait_while(alone, waiting);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn uptime(&self) -> Duration {
        self.clock.now().since(self.started)
    }

    /// For how long the counters have counted, in this process and those before it.
    pub(crate) fn counted_for(&self) -> Duration {
        self.takeover.counted_for() + self.uptime()
    }

    /// What this process and those before it counted for a listener.
    fn counted(&self, listener: usize) -> Summary {
        let mut sum = Summary::default();
        for stats in self.stats.iter().filter_map(|worker| worker.get(listener)) {
            sum.add(stats);
        }
        self.takeover.go_on(listener, &mut sum);
        sum
    }

    pub(crate) fn set_partner(&self, pid: Option<u32>) {
        self.partner.store(pid.unwrap_or(0), Ordering::Release);
    }

    /// Notes whether accepting waits for a connection to close.
    pub(crate) fn accept_waits(&self, waits: bool) {
        // Against a worker that counts a connection out and then looks here: one of the two sees the other.
        if self.accept_waits.load(Ordering::Relaxed) != waits {
            self.accept_waits.store(waits, Ordering::SeqCst);
        }
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
    fn at_door(&self) -> usize {
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
