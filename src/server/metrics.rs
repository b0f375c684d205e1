//! The metrics of a server: a server beside it, on threads of its own and with descriptors kept for it, whose service
//! tells of this one. Its socket goes to a process that takes over beside the takeover, which knows nothing of it.

use std::fmt;
use std::io;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Server;
use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::config::{Config, Listen, Metrics, WhenFull};
use crate::control::Client;
use crate::error::Error;
use crate::handle::Handle;
use crate::handle::beside::Beside;
use crate::listen::admission::Limit;
use crate::listen::listener::{self, Configure, Listener};
use crate::listen::settings::Settings;
use crate::memory::Memory;
use crate::metrics::{BUFFER, CLIENTS, PATIENCE, TURNED_AWAY, Teller};
use crate::os::kept::Kept;
use crate::os::threads;

/// The bound for what waits for its clients, bytes: a large answer for each of them.
const MEMORY: usize = 32 * 1024 * 1024;

/// Descriptors kept for clients that come when there are no others.
pub(super) const RESERVE: usize = 4;

/// How long the end of the server waits for those who are being answered.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a client may take to hang up, once it has its answer.
const LINGER: Duration = Duration::from_secs(2);

/// The server beside a server. Dropping it ends it.
pub(super) struct Part {
    handle: Handle,
    serves: Arc<AtomicBool>,
    /// It has sockets that another process answers at, until that is taken over.
    waits: bool,
    about: Handle,
    /// Before it runs.
    server: Option<Box<Server>>,
    begin: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").finish_non_exhaustive()
    }
}

/// Sockets of the process that is taken over from, at which it answers for now.
pub(super) type Lent = Vec<(Endpoint, OwnedFd)>;

impl Part {
    /// Opens the addresses of `metrics`, or takes those that are `lent`. Nobody is answered yet.
    pub(super) fn open(metrics: &Metrics, mut lent: Lent, about: &Handle) -> Result<Self, Error> {
        let serves = Arc::new(AtomicBool::new(false));
        let teller = Teller::new(about.clone(), metrics.hosts.clone(), Arc::clone(&serves));
        let first = metrics.addresses.first().cloned();
        let first = first.ok_or_else(|| Error::Config("no address for metrics".to_owned()))?;
        let listen = Listen {
            addresses: metrics.addresses.clone(),
            read_timeout: Some(PATIENCE),
            write_timeout: Some(PATIENCE),
            slowest_reader: None::<NonZeroU32>,
            half_close_timeout: Some(LINGER),
            when_full: WhenFull::Wait,
            backlog: 128,
            buffer: BUFFER,
            ..Listen::new(first, teller)
        };
        let memory = Memory::new(MEMORY);
        let total = Arc::new(Limit::new(CLIENTS + TURNED_AWAY));
        let settings = Arc::new(Settings::new(&listen, &total, &memory)?);
        let mut listeners = Vec::new();
        let mut waits = false;
        for address in &listen.addresses {
            if matches!(
                address,
                Address::Fd(_) | Address::Systemd(_) | Address::Unix(..) | Address::Abstract(_)
            ) {
                return Err(Error::Config(format!(
                    "{address} is no address for metrics: they are served over TCP"
                )));
            }
            let taken = matching(address, &mut lent)?;
            waits |= !taken.is_empty();
            if taken.is_empty() {
                listeners.extend(listener::open_one(address, &listen, &settings)?);
            }
            listeners.extend(taken.into_iter().map(|(address, socket)| Listener {
                socket,
                address,
                file: None,
                inherited_as: None,
                settings: Arc::clone(&settings),
                configure: Configure::OWN,
            }));
        }
        let failed = |source| Error::Start {
            what: "serve metrics",
            source,
        };
        let copies = listeners.iter().map(|one| {
            let copy = one.socket.try_clone().map_err(failed)?;
            Ok((one.address.clone(), copy))
        });
        let copies = copies.collect::<Result<Lent, Error>>()?;
        let config = Config {
            workers: Some(NonZeroUsize::MIN),
            drain_timeout: Some(LAST_WORDS),
            ..Config::default()
        };
        let services = vec![listen.service.clone()];
        let server = Server::with(listeners, services, &config, &memory, Some(about));
        let server = server.map_err(failed)?;
        let handle = server.handle();
        // Once, at the start.
        let _ = about.shared.beside.set(Beside::new(handle.clone(), copies));
        Ok(Self {
            handle,
            serves,
            waits,
            about: about.clone(),
            server: Some(Box::new(server)),
            begin: None,
            thread: None,
        })
    }

    /// Starts its thread, before anything is taken over: what fails here fails in time. Who asks at a new address hears
    /// from now on that the server is not ready.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        let (begin, begun) = mpsc::channel();
        let run = move || {
            if begun.recv().is_ok()
                && let Err(error) = server.run()
            {
                log::error!(error:%; "metrics are served no more");
            }
        };
        let thread = threads::start("metrics-server", run).map_err(|source| Error::Start {
            what: "start a thread",
            source,
        })?;
        self.thread = Some(thread);
        if !self.waits {
            // The thread waits for it.
            let _ = begin.send(());
        }
        self.begin = Some(begin);
        Ok(())
    }

    /// The server serves: it has what it takes over, and the former process answers nobody any more.
    pub(super) fn serves(&mut self) {
        self.serves.store(true, Ordering::Release);
        if let Some(begin) = self.begin.take().filter(|_| self.waits) {
            let _ = begin.send(());
        }
        for address in self.handle.addresses() {
            log::info!(address:%; "metrics");
        }
    }

    /// The server has ended: who is there yet gets an answer.
    pub(super) fn end(mut self) {
        if self.about.is_stopping() {
            self.handle.stop();
        }
        self.handle.drain();
        if let Some(thread) = self.thread.take() {
            // Its own words are in the log.
            let _ = thread.join();
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(self.begin.take());
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(beside) = self.about.shared.beside.get() {
            beside.close(self.about.was_taken_over());
        }
    }
}

/// Those of the `lent` sockets that `address` means.
fn matching(address: &Address, lent: &mut Lent) -> Result<Lent, Error> {
    let resolved = address.resolve().map_err(Error::resolving(address))?;
    let is_meant = |of: &Endpoint| {
        resolved
            .iter()
            .any(|wanted| match (wanted.tcp(), of.tcp()) {
                (Some(wanted), Some(of)) if wanted.port() == 0 => wanted.ip() == of.ip(),
                _ => wanted == of,
            })
    };
    Ok(lent.extract_if(.., |(of, _)| is_meant(of)).collect())
}

/// Of the sockets that a keeper has, those that are no listeners' at `ours`.
pub(super) fn kept(config: &Config, ours: &[Endpoint]) -> Lent {
    let kept = config.keeper.iter().flat_map(|keeper| &keeper.kept);
    let kept = kept.filter_map(|kept| {
        let address = listener::named(&kept.socket)?;
        let copy = kept.socket.try_clone().ok()?;
        (!ours.contains(&address)).then_some((address, copy))
    });
    kept.collect()
}

/// Sockets of the server whose control socket is at `path`, if it lends any, and they are wanted.
pub(super) fn lent(config: &Config, path: &Path) -> Lent {
    if config.metrics.is_none() {
        return Lent::new();
    }
    let lent = std::path::absolute(path).and_then(|path| Client::at(path).metrics());
    lent.unwrap_or_else(|error: io::Error| {
        // There is no such server, or none that has any.
        log::debug!(error:%; "no metrics to go on with");
        Lent::new()
    })
}

impl Server {
    /// Copies of its sockets, for a keeper.
    pub(super) fn kept_beside(&self) -> Vec<io::Result<Kept>> {
        let Some(beside) = self.handle.shared.beside.get() else {
            return Vec::new();
        };
        beside.lend(|sockets| {
            let copies = sockets.iter().map(|(_, socket)| socket.try_clone());
            copies.map(|copy| Kept::new(copy?, None)).collect()
        })
    }

    pub(super) fn open_metrics(&mut self, config: &Config, lent: Lent) -> Result<(), Error> {
        if let Some(metrics) = &config.metrics {
            self.metrics = Some(Part::open(metrics, lent, &self.handle)?);
        }
        Ok(())
    }

    /// Where its [metrics](Config::metrics) are, with real ports, if it tells of itself anywhere.
    #[must_use]
    pub fn metrics(&self) -> Vec<Endpoint> {
        self.handle.status().metrics
    }
}
