//! A server from its settings to its end: binds, starts the workers, waits for them, and sums up.

#[cfg(control)]
mod behind;
#[cfg(control)]
mod journaled;
#[cfg(control)]
mod kept;
#[cfg_attr(not(metrics), path = "no_metrics.rs")]
mod metrics;
#[cfg_attr(not(control), path = "no_takeover.rs")]
mod takeover;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Poll, Waker};

use crate::address::endpoint::Endpoint;
use crate::config::Config;
use crate::error::Error;
use crate::handle::shown::Shown;
use crate::handle::{Handle, Mailbox, Shared};
use crate::inspect::{Handshakes, ListenerInfo};
use crate::io::Terms;
use crate::io::stats::{Stats, Summary};
use crate::listen::accept::Acceptor;
use crate::listen::admission::Limit;
use crate::listen::listener::{self, Listener};
use crate::listen::origin::Origin;
use crate::listen::settings::Settings;
use crate::liveness::multipath;
use crate::memory::Memory;
use crate::os::fault::may_die;
use crate::os::threads;
use crate::service::AnyService;
use crate::time::deadline::{Clock, Moment};
use crate::worker::drain::{DrainTimes, Drained};
use crate::worker::{WAKER, Worker, listener_token};

/// A TCP server: listening from [`bind`](Server::bind) on, serving in [`run`](Server::run).
///
/// ```
/// use standfast::{Config, Listen, Server, services::Echo};
/// use std::io::{Read, Write};
///
/// let server = Server::bind(Config {
///     listen: vec![Listen::new("127.0.0.1:0".parse().unwrap(), Echo)],
///     ..Config::default()
/// })?;
/// let address = server.addresses()[0].tcp().unwrap();
/// let handle = server.handle();
/// let serving = std::thread::spawn(|| server.run());
///
/// let mut client = std::net::TcpStream::connect(address).unwrap();
/// client.write_all(b"hello").unwrap();
/// client.read_exact(&mut [0; 5]).unwrap();
/// drop(client);
///
/// handle.drain();
/// assert_eq!(serving.join().unwrap()?.accepted, 1);
/// # Ok::<(), standfast::Error>(())
/// ```
pub struct Server {
    handle: Handle,
    workers: Vec<Worker>,
    services: Vec<AnyService>,
    addresses: Vec<Endpoint>,
    stats: Vec<Vec<Arc<Stats>>>,
    clock: Clock,
    drain_times: DrainTimes,
    takeover: takeover::Part,
    metrics: Option<metrics::Part>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Opens all listeners, or takes them over, as the [settings](Config) have it. Clients can connect when this returns; they are served
    /// once [`run`](Self::run) runs. Who takes over has to run it at once: the running server serves on until that has
    /// everything, and gives up after 5 s without progress.
    ///
    /// # Errors
    /// Settings that contradict each other, an address that cannot be listened on, or no descriptors for the event
    /// loops; whatever keeps the takeover from happening, or the control socket. Nothing stays open then.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a server is made of its settings, once"
    )]
    pub fn bind(config: Config) -> Result<Self, Error> {
        let (mut server, lent) = Self::in_place(&config)?;
        server.open_metrics(&config, lent)?;
        // Its control socket is that user's: so are those who ask there.
        config.assume_identity()?;
        server.open_control(&config)?;
        Ok(server)
    }

    fn open(config: &Config) -> Result<Self, Error> {
        let max_conns = Self::max_conns(config);
        let total = Arc::new(Limit::new(max_conns));
        let memory = Memory::new(config.memory_limit()?);
        let mut listeners = Vec::new();
        let mut services = Vec::new();
        for listen in &config.listen {
            let settings = Arc::new(Settings::new(listen, &total, &memory)?);
            listeners.extend(listener::open(listen, &settings)?);
            services.push(listen.service.clone());
        }
        if listeners.is_empty() {
            return Err(Error::Config("nothing to listen on".to_owned()));
        }
        Self::start(listeners, services, config, &memory)
    }

    fn start(
        listeners: Vec<Listener>,
        services: Vec<AnyService>,
        config: &Config,
        memory: &Memory,
    ) -> Result<Self, Error> {
        let started = Self::with(listeners, services, config, memory, None);
        let mut server = started.map_err(|source| Error::Start {
            what: "make an event loop",
            source,
        })?;
        server.keep_connections(config, memory.limit());
        Ok(server)
    }

    fn with(
        listeners: Vec<Listener>,
        services: Vec<AnyService>,
        config: &Config,
        memory: &Memory,
        about: Option<&Handle>,
    ) -> io::Result<Self> {
        let drain_times = DrainTimes::of(config);
        let clock = Clock::start();
        let mut polls = Vec::new();
        let mut mailboxes = Vec::new();
        for _ in 0..config.workers().get() {
            let poll = Poll::new()?;
            let (mailbox, mail) = Mailbox::new(Waker::new(poll.registry(), WAKER)?);
            polls.push((poll, mail));
            mailboxes.push(mailbox);
        }
        let stats: Vec<Vec<Arc<Stats>>> = mailboxes
            .iter()
            .map(|_| listeners.iter().map(|_| Arc::default()).collect())
            .collect();
        let info = |listener: &Listener| ListenerInfo {
            address: listener.address.clone(),
            inherited_as: listener.inherited_as.clone(),
            service: listener.settings.service.name().to_owned(),
            accepted: 0,
            open: 0,
            closed: Vec::new(),
            tls: listener
                .settings
                .tls
                .as_ref()
                .map(|_| Handshakes::default()),
        };
        let upstreams = of_each_once(&services, |service| service.upstreams());
        let nats = of_each_once(&services, |service| service.nats());
        let children = of_each_once(&services, |service| service.children());
        let shown = Shown {
            listeners: listeners.iter().map(info).collect(),
            listens: listens(&listeners),
            stats: stats.clone(),
            upstreams: Box::new(move || upstreams().into_iter().flatten().collect()),
            nats: Box::new(move || nats().into_iter().flatten().collect()),
            children: Box::new(move || {
                let children = children().into_iter().flatten();
                children.reduce(|sum, count| sum + count)
            }),
        };
        // Kept from the beginning; a system that has none now says so when more is needed.
        memory.recover();
        for mailbox in &mailboxes {
            memory.wakes(Arc::clone(&mailbox.waker));
        }
        let shared = Shared::new(
            mailboxes,
            shown,
            clock,
            memory.clone(),
            Arc::clone(&config.lifecycle),
        );
        let shared = Arc::new(match about {
            Some(about) => shared.aside(about),
            None => shared,
        });
        takeover::export_common(&shared, &listeners);
        let addresses = listeners.iter().map(|listener| listener.address.clone());
        let addresses = addresses.collect();
        let takeover = takeover::Part::of(&listeners, config)?;
        let mut workers: Vec<_> = polls
            .into_iter()
            .enumerate()
            .map(|(index, (poll, mail))| {
                let origins = listeners
                    .iter()
                    .zip(&stats[index])
                    .map(|(listener, stats)| Origin {
                        address: listener.address.clone(),
                        settings: Arc::clone(&listener.settings),
                        multipath: multipath::is_multipath(&listener.socket),
                        stats: Arc::clone(stats),
                        terms: Arc::new(Terms::of_far_sides(
                            &listener.settings.limits,
                            listener.settings.service.has_pairs(),
                            memory.clone(),
                        )),
                    })
                    .collect();
                Worker::new(
                    index,
                    poll,
                    clock,
                    origins,
                    mail,
                    Arc::clone(&shared),
                    drain_times,
                )
            })
            .collect();
        let mut acceptor = Acceptor::new();
        for (at, listener) in listeners.into_iter().enumerate() {
            let stats = Arc::clone(&stats[0][at]);
            acceptor.add(
                workers[0].poll().registry(),
                listener_token(at),
                listener,
                stats,
            )?;
        }
        takeover::keep_in(config, &mut acceptor, &shared);
        if about.is_some() {
            acceptor.aside(metrics::RESERVE);
        }
        workers[0].accept_with(acceptor);
        Ok(Self {
            handle: Handle { shared },
            workers,
            services,
            addresses,
            stats,
            clock,
            drain_times,
            takeover,
            metrics: None,
        })
    }

    fn max_conns(config: &Config) -> usize {
        let allowed = config.connections_allowed();
        let asked = config.max_conns.map(usize::from);
        if let Some(asked) = asked.filter(|&asked| asked > allowed) {
            log::warn!(asked, allowed; "connection limit capped by the descriptor limit");
        }
        asked.map_or(allowed, |asked| asked.min(allowed))
    }

    /// Where it listens, with real ports, in the order of the settings.
    #[must_use]
    pub fn addresses(&self) -> &[Endpoint] {
        &self.addresses
    }

    /// The way in from other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until told to end by a [`Handle`], and answers what happened. If it takes over it takes the connections over
    /// first. When another process has taken over from it, it ends after those that it has taken over from itself.
    ///
    /// # Errors
    /// A thread that could not be started, or an event queue that failed. A takeover that came to nothing; the
    /// predecessor goes on then, as if nothing had happened.
    pub fn run(mut self) -> Result<Summary, Error> {
        self.give_journals();
        for service in &self.services {
            service.start(&self.handle);
        }
        // Before anything is taken over: what fails here fails in time.
        if let Some(metrics) = &mut self.metrics {
            metrics.start()?;
        }
        let (ways, threads) = self.threads()?;
        let taken = self.take()?;
        // From here on bytes are read that nobody else has.
        self.seal();
        if taken.is_none() {
            // What it serves from here on may be its end at once. Not before the former server's descriptors are given up: for a
            // user who is not root only so many are under way.
            self.keep();
        }
        for (way, worker) in ways.into_iter().zip(std::mem::take(&mut self.workers)) {
            // A thread waits for it, and for nothing else.
            let _ = way.send(worker);
        }
        let mut failed = None;
        match taken {
            // All of that is told, and another thread waits for the predecessor.
            Some(taken) => self.succeed(taken),
            None => {
                self.running();
                self.handle.shared.lifecycle.settled(&self.handle);
                become_alone(&self.handle);
            }
        }
        let mut summary = Summary::default();
        let mut over_at = None;
        for thread in threads {
            match thread.join() {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(ended))) => {
                    summary.cut += ended.cut;
                    over_at = over_at.max(ended.over_at);
                }
                Ok(Err(source)) => {
                    self.handle.stop();
                    failed = Some(Error::Start {
                        what: "poll for events",
                        source,
                    });
                }
                Err(_) => {
                    self.handle.stop();
                    let source = io::Error::other("panicked");
                    failed = Some(Error::Start {
                        what: "run a worker",
                        source,
                    });
                }
            }
        }
        // What another process goes on with may not be lost here: it waits for this one to have finished.
        let given = self.handle.shared.was_given();
        // One drain, one end: what the connections have used of its time the services do not get again.
        let over_at = over_at.unwrap_or_else(|| self.drain_times.over_at(self.clock.now()));
        let over_at = if given { Moment::NEVER } else { over_at };
        let left = || over_at.since(self.clock.now());
        summary.finished = true;
        for service in &self.services {
            summary.finished &= service.stop(left());
        }
        if given {
            // Who took over takes this one's end for the end of all before it.
            let handle = &self.handle;
            let shared = &handle.shared;
            shared.wait_until_alone(Duration::MAX, || handle.is_stopping());
        } else {
            summary.finished &= self.end_those_behind(left());
        }
        for stats in self.stats.iter().flatten() {
            summary.add(stats);
        }
        self.say_given(&mut summary);
        if let Some(metrics) = self.metrics.take() {
            metrics.end();
        }
        self.handle.shared.lifecycle.ended();
        failed.map_or(Ok(summary), Err)
    }

    /// It serves: tells whoever runs it, and whoever asks.
    fn running(&mut self) {
        may_die("unready");
        if let Some(metrics) = &mut self.metrics {
            metrics.serves();
        }
        self.handle.shared.lifecycle.running(&self.handle);
    }

    /// A thread for each worker, and the way to it.
    fn threads(&self) -> Result<(Vec<Sender<Worker>>, Vec<WorkerThread>), Error> {
        let mut ways = Vec::new();
        let mut threads = Vec::new();
        for index in 0..self.workers.len() {
            let (way, worker) = mpsc::channel::<Worker>();
            let name = match self.handle.shared.is_aside() {
                true => "metrics".to_owned(),
                false => format!("worker-{index}"),
            };
            let thread = threads::start(&name, move || {
                let worker = worker.recv().ok();
                worker.map(Worker::run).transpose()
            });
            threads.push(thread.map_err(|source| Error::Start {
                what: "start a thread",
                source,
            })?);
            ways.push(way);
        }
        Ok((ways, threads))
    }
}

/// Which of the settings' each listener is of: those of one stand together.
fn listens(listeners: &[Listener]) -> Vec<usize> {
    let mut of = 0;
    let each = listeners.iter().enumerate().map(|(at, listener)| {
        let before = at.checked_sub(1).and_then(|before| listeners.get(before));
        if before.is_some_and(|before| !Arc::ptr_eq(&before.settings, &listener.settings)) {
            of += 1;
        }
        of
    });
    each.collect()
}

/// Has every one of `services` asked, one that several listeners have once. One that panics says what is usual.
fn of_each_once<T: Default + 'static>(
    services: &[AnyService],
    ask: impl Fn(&AnyService) -> T + Copy + Send + Sync + 'static,
) -> impl Fn() -> Vec<T> + Send + Sync + 'static {
    let services = services.iter().enumerate();
    let each = services.clone().filter(|(at, service)| {
        let mut before = services.clone().take(*at);
        !before.any(|(_, one)| one.is_same(service))
    });
    // A service may have a handle: it is held weakly, or neither would ever be dropped.
    let weak: Vec<_> = each.map(|(_, service)| service.downgrade()).collect();
    move || {
        let services = weak.iter().filter_map(|weak| weak());
        let told = services.map(|service| {
            let told = catch_unwind(AssertUnwindSafe(|| ask(&service)));
            told.unwrap_or_default()
        });
        told.collect()
    }
}

/// A thread that runs a worker, once it gets one.
type WorkerThread = JoinHandle<io::Result<Option<Drained>>>;

/// No predecessor lives any more.
fn become_alone(handle: &Handle) {
    handle.shared.lifecycle.alone(handle);
    handle.shared.become_alone();
}
