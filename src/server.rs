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
#[cfg(feature = "control")]
use crate::control::{Client, Control};
use crate::deadline::{Clock, Moment};
use crate::error::Error;
use crate::handle::{Handle, Mailbox, Shared};
#[cfg(feature = "control")]
use crate::handoff::take::{self, Giver};
#[cfg(feature = "control")]
use crate::inspect::Takeover;
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
    stats: Vec<Vec<Arc<Stats>>>,
    clock: Clock,
    drain_timeout: Option<Duration>,
    /// What was taken over from a former process, which waits to hear that this one runs.
    #[cfg(feature = "control")]
    taken: Option<take::Taken>,
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
        let max_conns = Self::max_conns(&config);
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
        let workers = Self::workers(&config);
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
            let (mailbox, mail) = Mailbox::new(Waker::new(poll.registry(), WAKER)?);
            polls.push((poll, mail));
            mailboxes.push(mailbox);
        }
        let stats: Vec<Vec<Arc<Stats>>> = mailboxes
            .iter()
            .map(|_| listeners.iter().map(|_| Arc::default()).collect())
            .collect();
        let named = listeners
            .iter()
            .map(|listener| {
                (
                    listener.address,
                    listener.settings.service.name().to_owned(),
                )
            })
            .collect();
        let shared = Arc::new(Shared::new(mailboxes, named, stats.clone(), clock));
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.address).collect();
        let mut workers: Vec<_> = polls
            .into_iter()
            .enumerate()
            .map(|(index, (poll, mail))| {
                let origins = listeners
                    .iter()
                    .zip(&stats[index])
                    .map(|(listener, stats)| Origin {
                        address: listener.address,
                        settings: Arc::clone(&listener.settings),
                        stats: Arc::clone(stats),
                    })
                    .collect();
                Worker::new(
                    index,
                    poll,
                    clock,
                    origins,
                    mail,
                    Arc::clone(&shared),
                    drain_timeout,
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
        workers[0].accept_with(acceptor);
        Ok(Self {
            handle: Handle { shared },
            workers,
            services,
            addresses,
            stats,
            clock,
            drain_timeout,
            #[cfg(feature = "control")]
            taken: None,
        })
    }

    fn max_conns(config: &Config) -> usize {
        let allowed = admission::descriptors_for_connections();
        let asked = config.max_conns.map(usize::from);
        if let Some(asked) = asked.filter(|&asked| asked > allowed) {
            log::warn!(asked, allowed; "connection limit capped by the descriptor limit");
        }
        asked.map_or(allowed, |asked| asked.min(allowed))
    }

    fn workers(config: &Config) -> NonZeroUsize {
        let workers = config
            .workers
            .or_else(|| thread::available_parallelism().ok());
        workers.unwrap_or(NonZeroUsize::MIN)
    }

    /// Takes over from the server whose control socket is at `path`: its listeners and its live connections. It must
    /// not listen on more than `config` does. `None` if no server answers there.
    ///
    /// The connections are this process's when this returns; [`run`](Self::run) serves them.
    ///
    /// # Errors
    /// As [`bind`](Self::bind); and whatever keeps the takeover from happening. The other server goes on then, as if
    /// nothing had happened.
    #[cfg(feature = "control")]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a server is made of its settings, once"
    )]
    pub fn take_over(config: Config, path: &std::path::Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::TakeOver {
            path: path.to_owned(),
            source,
        };
        let client = Client::at(path.to_owned());
        take::may_fail("init");
        let status = match client.status() {
            Ok(status) => status,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                log::info!(path:% = path.display(), error:%; "no server to take over from");
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let max_conns = Self::max_conns(&config);
        let total = Arc::new(Limit::new(max_conns));
        let mut theirs: Vec<SocketAddr> = status
            .listeners
            .iter()
            .map(|listener| listener.address)
            .collect();
        let mut wanted = Vec::new();
        let mut services = Vec::new();
        for listen in &config.listen {
            let settings = Arc::new(Settings::new(listen, &total)?);
            for address in listener::resolve_all(listen)? {
                // Port 0 means the port that the running server was given.
                let same = |running: &SocketAddr| {
                    *running == address || address.port() == 0 && running.ip() == address.ip()
                };
                let running = theirs.iter().position(same).map(|at| theirs.remove(at));
                wanted.push((
                    running.unwrap_or(address),
                    running.is_some(),
                    listen,
                    Arc::clone(&settings),
                ));
            }
            services.push(listen.service.clone());
        }
        let hello = wanted
            .iter()
            .filter(|(_, running, ..)| *running)
            .map(|(address, _, _, settings)| (*address, settings.service.name().to_owned()))
            .collect();
        let line = client
            .take_over(take::hello(hello, max_conns))
            .map_err(failed)?;
        let (giver, mut given) = Giver::listeners(line).map_err(failed)?;
        let order: Vec<SocketAddr> = given.iter().map(|(record, _)| record.address).collect();
        let mut listener_of = vec![u16::MAX; order.len()];
        let mut listeners = Vec::new();
        for (address, running, listen, settings) in wanted {
            if !running {
                let bound = listener::bind(address, listen, &settings);
                listeners.push(bound.inspect_err(|error| {
                    giver.abort(&error.to_string());
                })?);
                continue;
            }
            let at = given
                .iter()
                .position(|(record, _)| record.address == address);
            let Some(at) = at else {
                return Err(failed(giver.abort("a listener did not come")));
            };
            let (record, socket) = given.remove(at);
            if let Some(number) = order.iter().position(|address| *address == record.address) {
                listener_of[number] = u16::try_from(listeners.len()).unwrap_or(u16::MAX);
            }
            listeners.push(listener::taken_over(socket, record.address, &settings));
        }
        let started = Self::start(
            listeners,
            services,
            Self::workers(&config),
            config.drain_timeout,
        );
        let mut server = started.map_err(|source| Error::Start {
            what: "make an event loop",
            source,
        })?;
        let shared = Arc::clone(&server.handle.shared);
        let taken = giver
            .connections(&mut server.workers, &listener_of, || shared.least_loaded(0))
            .map_err(failed)?;
        shared.continue_from(taken.last_id);
        let _ = shared.takeover.set(Takeover {
            connections: taken.connections,
            frozen: taken.frozen,
        });
        server.taken = Some(taken);
        Ok(Some(server))
    }

    /// Opens this server's control socket at `path`; it stands there until what this answers is dropped. After a
    /// [`take_over`](Self::take_over) it takes the place of the former process's.
    ///
    /// # Errors
    /// `AddrInUse` while another server has that path; `AlreadyExists` if something else than a socket stands there;
    /// and what the system says.
    #[cfg(feature = "control")]
    pub fn control(&mut self, path: &std::path::Path) -> io::Result<Control> {
        let lock = self.taken.as_mut().and_then(|taken| taken.lock.take());
        Control::open(path, &self.handle, lock)
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
        #[cfg(feature = "control")]
        if let Some(taken) = self.taken
            && failed.is_none()
            && let Err(error) = taken.running()
        {
            log::debug!(error:%; "the former process does not hear that this one runs");
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
        for stats in self.stats.iter().flatten() {
            summary.add(stats);
        }
        failed.map_or(Ok(summary), Err)
    }
}
