//! A server from its settings to its end: binds, starts the workers, waits for them, and sums up.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mio::{Poll, Waker};

use crate::accept::Acceptor;
use crate::admission::{self, Limit};
use crate::config::Config;
use crate::deadline::{Clock, Moment};
use crate::error::Error;
use crate::handle::{Handle, Mailbox, Shared};
use crate::listener::{self, Listener, Settings};
use crate::service::AnyService;
use crate::stats::{Stats, Summary};
use crate::worker::{Origin, WAKER, Worker, listener_token};

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
/// let address = server.addresses()[0];
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
#[derive(Debug)]
pub struct Server {
    handle: Handle,
    workers: Vec<Worker>,
    services: Vec<AnyService>,
    addresses: Vec<SocketAddr>,
    stats: Vec<Arc<Stats>>,
    clock: Clock,
    drain_timeout: Option<Duration>,
}

impl Server {
    /// Opens all listeners. Clients can connect when this returns; they are served once [`run`](Self::run) runs.
    ///
    /// # Errors
    /// Settings that contradict each other, an address that cannot be listened on, or no descriptors for the event
    /// loops; nothing stays open then.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a server is made of its settings, once"
    )]
    pub fn bind(config: Config) -> Result<Self, Error> {
        let allowed = admission::descriptors_for_connections();
        let asked = config.max_conns.map(usize::from);
        if let Some(asked) = asked.filter(|&asked| asked > allowed) {
            log::warn!(asked, allowed; "connection limit capped by the descriptor limit");
        }
        let max_conns = asked.map_or(allowed, |asked| asked.min(allowed));
        let total = Arc::new(Limit::new(max_conns));
        let mut listeners = Vec::new();
        let mut services = Vec::new();
        for listen in &config.listen {
            let settings = Arc::new(Settings::new(listen, &total)?);
            listeners.extend(listener::open(listen, &settings)?);
            services.push(listen.service.clone());
        }
        if listeners.is_empty() {
            return Err(Error::Config("nothing to listen on".to_owned()));
        }
        let workers = config
            .workers
            .or_else(|| thread::available_parallelism().ok());
        let workers = workers.unwrap_or(NonZeroUsize::MIN);
        Self::start(listeners, services, workers, config.drain_timeout).map_err(|source| {
            Error::Start {
                what: "make an event loop",
                source,
            }
        })
    }

    fn start(
        listeners: Vec<Listener>,
        services: Vec<AnyService>,
        workers: NonZeroUsize,
        drain_timeout: Option<Duration>,
    ) -> io::Result<Self> {
        let clock = Clock::start();
        let mut polls = Vec::new();
        let mut mailboxes = Vec::new();
        for _ in 0..workers.get() {
            let poll = Poll::new()?;
            let (mailbox, arrivals) = Mailbox::new(Waker::new(poll.registry(), WAKER)?);
            polls.push((poll, arrivals));
            mailboxes.push(mailbox);
        }
        let shared = Arc::new(Shared::new(mailboxes));
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.address).collect();
        let mut stats = Vec::new();
        let mut workers: Vec<_> = polls
            .into_iter()
            .enumerate()
            .map(|(index, (poll, arrivals))| {
                let origins: Vec<_> = listeners
                    .iter()
                    .map(|listener| Origin {
                        address: listener.address,
                        settings: Arc::clone(&listener.settings),
                        stats: Arc::default(),
                    })
                    .collect();
                stats.extend(origins.iter().map(|origin| Arc::clone(&origin.stats)));
                Worker::new(
                    index,
                    poll,
                    clock,
                    origins,
                    arrivals,
                    Arc::clone(&shared),
                    drain_timeout,
                )
            })
            .collect();
        let mut acceptor = Acceptor::new();
        for (at, listener) in listeners.into_iter().enumerate() {
            let stats = Arc::clone(&stats[at]);
            acceptor.add(
                workers[0].poll().registry(),
                listener_token(at),
                listener,
                stats,
            )?;
        }
        workers[0].accept_with(acceptor);
        Ok(Self {
            handle: Handle { shared },
            workers,
            services,
            addresses,
            stats,
            clock,
            drain_timeout,
        })
    }

    /// The addresses listened on, with their real ports, in the order of the settings.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The way in from other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until told to end by a [`Handle`], and answers what happened.
    ///
    /// # Errors
    /// A thread that could not be started, or an event queue that failed.
    pub fn run(self) -> Result<Summary, Error> {
        for service in &self.services {
            service.start(&self.handle);
        }
        let mut threads = Vec::new();
        let mut failed = None;
        for (index, worker) in self.workers.into_iter().enumerate() {
            let name = format!("worker-{index}");
            match thread::Builder::new().name(name).spawn(|| worker.run()) {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    failed = Some(Error::Start {
                        what: "start a thread",
                        source,
                    });
                    self.handle.stop();
                    break;
                }
            }
        }
        let mut summary = Summary::default();
        let mut drained_from = Moment::NEVER;
        for thread in threads {
            match thread.join() {
                Ok(Ok(ended)) => {
                    summary.cut += ended.cut;
                    drained_from = drained_from.min(ended.drained_from);
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
        // One drain, one timeout: what the connections have used of it the services do not get again.
        summary.finished = true;
        for service in &self.services {
            let used = self.clock.now().since(drained_from);
            let patience = self.drain_timeout.unwrap_or(Duration::MAX);
            summary.finished &= service.stop(patience.saturating_sub(used));
        }
        for stats in &self.stats {
            summary.add(stats);
        }
        failed.map_or(Ok(summary), Err)
    }
}
