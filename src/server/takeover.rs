//! A server that takes over from another, and its control socket.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use super::Server;
use super::journaled::Journaled;
use super::metrics::{self, Lent};
use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::config::{Config, ControlSocket, Listen, Replace};
use crate::control::{Client, Control, Desk, path};
use crate::error::Error;
use crate::handle::Shared;
use crate::handle::takeover::Common;
use crate::handoff::fault::may_fail;
use crate::handoff::take::{self, Giver, Taken};
use crate::inspect::ListenerInfo;
use crate::io::stats::Summary;
use crate::listen::accept::Acceptor;
use crate::listen::admission::Limit;
use crate::listen::listener::{self, Listener};
use crate::listen::settings::Settings;
use crate::memory::Memory;
use crate::os::descriptors::reserve_descriptors;
use crate::os::socket_file::{Permit, Place, SocketFile};
use crate::os::threads;
use crate::service::{AnyService, Exported, Survive};
use crate::wire::question::Hello;
use crate::wire::record::ListenerRecord;

/// Whom a control socket is for.
const FOR_THIS_USER: Permit = Permit {
    mode: Some(0o600),
    owner: None,
    group: None,
};

/// What a server knows of takeovers: the one it comes from, and what the next one needs.
#[derive(Default)]
pub(super) struct Part {
    /// The running server that gives, and where its control socket is.
    giver: Option<(Giver, PathBuf)>,
    /// It answers those that are passed on to it afterwards.
    giver_hears: bool,
    /// The paths of the listeners that are Unix sockets.
    files: Vec<Arc<SocketFile>>,
    /// Copies of the listening sockets with their paths, for a keeper, until it has them.
    pub(super) kept: Vec<(OwnedFd, Option<Arc<SocketFile>>)>,
    /// With a keeper, the listeners in order, and what becomes of their connections when this process crashes.
    pub(super) surviving: Vec<(ListenerRecord, Survive)>,
    /// With a keeper, the services that have a journal, until they get it.
    pub(super) journals: Vec<Journaled>,
    pub(super) desk: Option<Arc<Desk>>,
    /// Dropped last: with it goes what a successor takes for this one's end.
    control: Option<Control>,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("giver", &self.giver)
            .finish_non_exhaustive()
    }
}

impl Part {
    pub(super) fn of(listeners: &[Listener], config: &Config) -> io::Result<Self> {
        let is_kept = |one: &&Listener| config.keeper.is_some() && one.inherited_as.is_none();
        let kept = listeners.iter().filter(is_kept);
        let kept = kept.map(|one| Ok((one.socket.try_clone()?, one.file.clone())));
        let kept = kept.collect::<io::Result<_>>()?;
        let listed = listeners.iter().filter(|_| config.keeper.is_some());
        let surviving = listed.map(|listener| {
            let service = &listener.settings.service;
            let record = ListenerRecord {
                address: listener.address.clone(),
                service: service.name().to_owned(),
            };
            (record, service.survive())
        });
        let surviving = surviving.collect();
        let journals = match config.keeper {
            Some(_) => Journaled::of(listeners),
            None => Vec::new(),
        };
        let files = listeners
            .iter()
            .filter_map(|listener| listener.file.clone());
        let mut files: Vec<_> = files.collect();
        // One order on both sides of a takeover.
        files.sort_by(|one, other| one.path().cmp(other.path()));
        Ok(Self {
            files,
            kept,
            surviving,
            journals,
            ..Self::default()
        })
    }
}

/// Tells those of a server that a keeper has copies of what it listens with, if there is one.
pub(super) fn keep_in(config: &Config, acceptor: &mut Acceptor, shared: &Shared) {
    if let Some(keeper) = &config.keeper {
        acceptor.is_kept();
        shared.keep(keeper.pid, keeper.crashes);
    }
}

/// Has `shared` answer what connections have in common: of each service once, with all of its listeners.
pub(super) fn export_common(shared: &Shared, listeners: &[Listener]) {
    let mut services: Vec<(AnyService, Vec<u16>)> = Vec::new();
    for (at, listener) in (0..).zip(listeners) {
        let service = &listener.settings.service;
        match services.iter_mut().find(|(one, _)| one.is_same(service)) {
            Some((_, same)) => same.push(at),
            None => services.push((service.clone(), vec![at])),
        }
    }
    let services = services.into_iter();
    let common = services.map(|(service, listeners)| common(&service, listeners));
    // Once, at the start.
    let _ = shared.takeover.common.set(common.collect());
}

fn common(service: &AnyService, listeners: Vec<u16>) -> Common {
    // A service may have a handle: it is held weakly, or neither would ever be dropped.
    let [one, other] = [service.downgrade(), service.downgrade()];
    let formed = |exported: Exported| (exported.schema, exported.bytes);
    Common {
        listeners,
        ahead: Box::new(move |ahead| {
            let next = ask(one(), |service| service.export_ahead(ahead))?;
            Ok(next.map(|(part, ahead)| (formed(part), ahead)))
        }),
        rest: Box::new(move |ahead| {
            let rest = ask(other(), |service| service.export_common(ahead))?;
            Ok(rest.map(formed))
        }),
    }
}

/// Asks a service that may have gone, or panic.
fn ask<T>(
    service: Option<AnyService>,
    what: impl FnOnce(&AnyService) -> Option<T>,
) -> Result<Option<T>, String> {
    let Some(service) = service else {
        return Ok(None);
    };
    let answer = catch_unwind(AssertUnwindSafe(|| what(&service)));
    answer.map_err(|_| format!("{} panicked", service.name()))
}

/// One of the settings' addresses, beside a running server.
pub(super) enum Wanted {
    /// The running server has it.
    Theirs(ListenerInfo),
    /// It is new.
    New(Address),
    /// It listens already.
    Given(Arc<OwnedFd>),
}

impl Server {
    /// A server in the place of the running one, if that is asked for, and what that lends.
    pub(super) fn in_place(config: &Config) -> Result<(Self, Lent), Error> {
        let control = config.control.as_ref();
        let control = control.filter(|control| control.replace != Replace::Never);
        let Some(control) = control else {
            return Self::afresh(config);
        };
        if control.replace == Replace::Always && config.keeper.is_some() {
            // Who is not that user is not answered; a keeper, which stays who it is, has started this process.
            config.assume_identity()?;
        }
        let path = path_to_replace(config, control)?;
        let lent = metrics::lent(config, &path);
        let server = match Self::take_over(config, &path)? {
            Some(server) => server,
            None if control.replace == Replace::Always => {
                let source = io::ErrorKind::NotFound.into();
                return Err(Error::TakeOver { path, source });
            }
            None => return Self::afresh(config),
        };
        Ok((server, lent))
    }

    /// Prepares to take over from the server whose control socket is at `path`. `None` if no server
    /// answers there.
    fn take_over(config: &Config, path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::TakeOver {
            path: path.to_owned(),
            source,
        };
        may_fail("init");
        let path = &absolute(path).map_err(failed)?;
        let client = Client::at(path.to_owned());
        let status = match client.status() {
            Ok(status) => status,
            Err(error) if is_nobody(&error) => {
                log::info!(path:% = path.display(), error:%; "no server to take over from");
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let Meant {
            wanted,
            services,
            memory,
        } = Meant::by(config, &status.listeners)?;
        reserve_descriptors(status.open.saturating_mul(config.descriptors_each()));
        let reload = config
            .control
            .as_ref()
            .is_some_and(|control| control.reload);
        let hello = hello(&wanted, reload, config.connections_allowed());
        let (line, pid, hears) = client.take_over(hello).map_err(failed)?;
        let (mut giver, given) = Giver::listeners(line, pid).map_err(failed)?;
        let given = given.into_iter();
        let given = given.map(|(record, socket)| (record.address, socket));
        let given = given.collect();
        let (listeners, order) =
            assemble(wanted, given, reload).map_err(|refused| match refused {
                Refused::Ours(error) => {
                    giver.abort(&error.to_string());
                    error
                }
                Refused::Theirs(why) => failed(giver.abort(&why)),
            })?;
        giver.listener_of = order;
        let mut server = Self::start(listeners, services, config, &memory)?;
        server.takeover.giver = Some((giver, path.to_owned()));
        server.takeover.giver_hears = hears;
        Ok(Some(server))
    }

    /// Opens this server's control socket, if it is to have one. After [`take_over`](Self::take_over) it is the
    /// predecessor's, which answers there until this one [runs](Self::run).
    pub(super) fn open_control(&mut self, config: &Config) -> Result<(), Error> {
        let Some(control) = &config.control else {
            return Ok(());
        };
        let usual = || self.addresses.first().map(path::of);
        let Some(path) = control.path.clone().or_else(usual) else {
            return Ok(());
        };
        match self.control_at(&path) {
            Err(source) if control.path.is_some() => Err(Error::Control { path, source }),
            // It is a convenience.
            Err(error) => {
                log::warn!(path:% = path.display(), error:%; "no control socket");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn control_at(&mut self, path: &Path) -> io::Result<()> {
        let path = &absolute(path)?;
        path::prepare(path)?;
        let inherits = matches!(&self.takeover.giver, Some((_, theirs)) if theirs == path);
        let file = if inherits {
            SocketFile::inheriting(path, FOR_THIS_USER)
        } else {
            SocketFile::claim(path, FOR_THIS_USER)?
        };
        let (control, desk) = Control::open(file, &self.takeover.files, &self.handle)?;
        if !inherits {
            desk.listen()?;
        }
        self.takeover.desk = Some(desk);
        self.takeover.control = Some(control);
        Ok(())
    }

    /// Where its [control socket](Config::control) stands, if it has one.
    #[must_use]
    pub fn control(&self) -> Option<&Path> {
        self.takeover.control.as_ref().map(Control::path)
    }

    /// Takes everything over from the predecessor, if there is one.
    pub(super) fn take(&mut self) -> Result<Option<(Taken, PathBuf, Sender<Taken>)>, Error> {
        let Some((giver, path)) = self.takeover.giver.take() else {
            return Ok(None);
        };
        let failed = |source| Error::Start {
            what: "start a thread",
            source,
        };
        let afterwards = self.afterwards().map_err(failed)?;
        let shared = &self.handle.shared;
        let place = || shared.least_loaded(0);
        let taken = giver.connections(&mut self.workers, || self.handle.is_ending(), place);
        let mut taken = taken.map_err(|source| Error::TakeOver {
            path: path.clone(),
            source,
        })?;
        let (counts, past) = (
            std::mem::take(&mut taken.counts),
            std::mem::take(&mut taken.past),
        );
        shared.go_on_counting(counts, &taken.listener_of, past);
        shared.continue_from(taken.last_id);
        shared.takeover.set_partner(Some(taken.pid));
        if let Some(worker) = self.workers.first() {
            worker.configure_listeners();
        }
        Ok(Some((taken, path, afterwards)))
    }

    /// The workers run: says so to the predecessor, takes the paths over, and tells whoever runs this server.
    pub(super) fn succeed(
        &mut self,
        (mut taken, path, afterwards): (Taken, PathBuf, Sender<Taken>),
    ) {
        may_fail("running");
        let takeover = taken.running();
        may_fail("serving");
        log::info!(
            pid = takeover.pid,
            connections = takeover.connections,
            staying = takeover.staying,
            frozen_ms = takeover.frozen_ms();
            "took over"
        );
        self.handle.shared.chronicle.took_over(&takeover);
        let _ = self.handle.shared.takeover.took.set(takeover);
        let paths = std::mem::take(&mut taken.paths);
        let part = &self.takeover;
        if let (Some(desk), true) = (&part.desk, part.giver_hears) {
            desk.follow(&taken.line, taken.pid);
        }
        self.inherit(taken.control.take(), paths, &path);
        self.keep();
        self.running();
        // The thread waits for it, and tells what comes after that.
        let _ = afterwards.send(taken);
    }

    /// A thread for what follows when the predecessor has told of this one, and when it has ended. It gets what was
    /// taken over; nothing follows if it does not.
    fn afterwards(&self) -> io::Result<Sender<Taken>> {
        let (way, taken) = mpsc::channel::<Taken>();
        let handle = self.handle.clone();
        threads::start("predecessor", move || {
            let Ok(taken) = taken.recv() else { return };
            taken.until_told();
            handle.shared.lifecycle.settled(&handle);
            taken.until_alone();
            super::become_alone(&handle);
        })?;
        Ok(way)
    }

    /// The paths are ours: at the control socket this process answers, those of listeners are in use.
    fn inherit(&self, control: Option<OwnedFd>, paths: Vec<(OwnedFd, Place)>, path: &Path) {
        let mut paths = paths.into_iter();
        if let (Some(control), Some((lock, place))) = (control, paths.next()) {
            match &self.takeover.desk {
                Some(desk) if desk.file.path() == path => {
                    desk.file.inherit(lock, place);
                    desk.answer_at(control);
                }
                // Nobody wants it any more: it is taken away.
                _ => SocketFile::inheriting(path, Permit::default()).inherit(lock, place),
            }
        }
        let inheriting = self
            .takeover
            .files
            .iter()
            .filter(|file| file.lend().is_none());
        for (file, (lock, place)) in inheriting.zip(paths) {
            file.inherit(lock, place);
        }
    }

    /// Adds the takeover this server ended in, once that is over and done.
    pub(super) fn say_given(&self, summary: &mut Summary) {
        let shared = &self.handle.shared;
        summary.takeover = shared
            .was_given()
            .then(|| shared.takeover.gave.wait().clone());
        let control = self.takeover.control.as_ref();
        summary.in_vain = control.is_some_and(Control::was_given_in_vain);
    }
}

/// The control socket of the server that is to be taken over from.
fn path_to_replace(config: &Config, control: &ControlSocket) -> Result<PathBuf, Error> {
    if let Some(path) = &control.path {
        return Ok(path.clone());
    }
    let effective = config.effective()?;
    let first = effective.first().and_then(|first| first.addresses.first());
    match first {
        Some(first) if first.tcp().is_none_or(|first| first.port() != 0) => Ok(path::of(first)),
        _ => Err(Error::Config(
            "which server is to be replaced? its control socket needs a path".to_owned(),
        )),
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// The settings, matched with listeners that there are already.
pub(super) struct Meant<'a> {
    pub(super) wanted: Vec<(Wanted, &'a Listen, Arc<Settings>)>,
    pub(super) services: Vec<AnyService>,
    pub(super) memory: Memory,
}

impl<'a> Meant<'a> {
    pub(super) fn by(config: &'a Config, listeners: &[ListenerInfo]) -> Result<Self, Error> {
        let memory = Memory::new(config.memory_limit()?);
        let total = Arc::new(Limit::new(Server::max_conns(config)));
        let mut wanted = Vec::new();
        let mut services = Vec::new();
        let mut theirs = Theirs::new(config, listeners);
        for listen in &config.listen {
            let settings = Arc::new(Settings::new(listen, &total, &memory)?);
            for one in theirs.compare(listen)? {
                wanted.push((one, listen, Arc::clone(&settings)));
            }
            services.push(listen.service.clone());
        }
        Ok(Self {
            wanted,
            services,
            memory,
        })
    }
}

/// The running server's listeners, while the settings' addresses are matched with them.
struct Theirs<'a> {
    listeners: &'a [ListenerInfo],
    /// Those that an address names with its port, or that one with port 0 has got: another one of port 0 gets the next.
    taken: Vec<bool>,
}

impl<'a> Theirs<'a> {
    fn new(config: &Config, listeners: &'a [ListenerInfo]) -> Self {
        let addresses = config.listen.iter().flat_map(|listen| &listen.addresses);
        // What cannot be resolved is told of when its turn comes.
        let named = addresses.filter_map(|address| address.resolve().ok());
        let sockets = config.listen.iter().flat_map(|listen| &listen.sockets);
        let sockets = sockets.filter_map(|socket| listener::named(socket));
        let named: Vec<Endpoint> = named.flatten().chain(sockets).collect();
        let taken = listeners.iter().map(|one| named.contains(&one.address));
        Self {
            listeners,
            taken: taken.collect(),
        }
    }

    /// What `listen` asks for, of what the running server has and beside it.
    fn compare(&mut self, listen: &Listen) -> Result<Vec<Wanted>, Error> {
        let mut wanted = Vec::new();
        for address in &listen.addresses {
            let written = address.to_string();
            let inherited = self.listeners.iter();
            let inherited = inherited.filter(|one| one.inherited_as.as_ref() == Some(&written));
            let before = wanted.len();
            wanted.extend(inherited.cloned().map(Wanted::Theirs));
            if wanted.len() > before {
                continue;
            }
            let resolved = address.resolve().map_err(|source| Error::Resolve {
                address: written,
                source,
            })?;
            let mut missing = resolved.is_empty();
            for endpoint in resolved {
                match self.find(&endpoint) {
                    Some(one) => wanted.push(Wanted::Theirs(one.clone())),
                    None => missing = true,
                }
            }
            // Of a name with several addresses those that the running server lacks were lacking at its start.
            if missing && wanted.len() == before {
                wanted.push(Wanted::New(address.clone()));
            }
        }
        for socket in &listen.sockets {
            let theirs = listener::named(socket).and_then(|endpoint| self.find(&endpoint));
            wanted.push(match theirs {
                Some(one) => Wanted::Theirs(one.clone()),
                None => Wanted::Given(Arc::clone(socket)),
            });
        }
        Ok(wanted)
    }

    fn find(&mut self, wanted: &Endpoint) -> Option<&'a ListenerInfo> {
        let named = self.listeners.iter().find(|one| one.address == *wanted);
        if named.is_some() {
            return named;
        }
        let mut free = self.listeners.iter().zip(&mut self.taken);
        let (one, taken) = free.find(|(one, taken)| !**taken && one.address.is_meant_by(wanted))?;
        *taken = true;
        Some(one)
    }
}

fn hello(wanted: &[(Wanted, &Listen, Arc<Settings>)], reload: bool, max_conns: usize) -> Hello {
    let (mut listeners, mut numbers) = (Vec::new(), Vec::new());
    let mut services: Vec<&AnyService> = Vec::new();
    for (one, _, settings) in wanted {
        let Wanted::Theirs(one) = one else { continue };
        let service = &settings.service;
        let known = services.iter().position(|it| it.is_same(service));
        let number = known.unwrap_or(services.len());
        if known.is_none() {
            services.push(service);
        }
        listeners.push((one.address.clone(), service.name().to_owned()));
        numbers.push(u16::try_from(number).unwrap_or(u16::MAX));
    }
    take::hello(listeners, numbers, reload, max_conns)
}

/// Why listeners could not be assembled.
pub(super) enum Refused {
    Ours(Error),
    Theirs(String),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

/// Our number of a listener that is none of ours.
pub(super) const NONE: u16 = u16::MAX;

/// The listeners as the settings want them, and our number of each of the predecessor's.
pub(super) fn assemble(
    wanted: Vec<(Wanted, &Listen, Arc<Settings>)>,
    given: Vec<(Endpoint, OwnedFd)>,
    reload: bool,
) -> Result<(Vec<Listener>, Vec<u16>), Refused> {
    let order: Vec<Endpoint> = given.iter().map(|(address, _)| address.clone()).collect();
    let mut given: Vec<Option<OwnedFd>> =
        given.into_iter().map(|(_, socket)| Some(socket)).collect();
    let mut listeners = Vec::new();
    for (one, listen, settings) in wanted {
        match one {
            Wanted::Theirs(info) => {
                let at = order.iter().position(|address| *address == info.address);
                let socket = at.and_then(|at| given.get_mut(at)?.take());
                let socket = socket.ok_or_else(|| {
                    Refused::Theirs(format!(
                        "{} did not come, or is asked for twice",
                        info.address
                    ))
                })?;
                listeners.push(listener::taken_over(socket, &info, &settings));
            }
            Wanted::Given(socket) => listeners.push(listener::given(&socket, &settings)?),
            Wanted::New(address) => {
                listeners.extend(listener::open_one(&address, listen, &settings)?);
            }
        }
    }
    let ours = |theirs: &Endpoint| {
        let at = listeners
            .iter()
            .position(|listener| listener.address == *theirs);
        match at.and_then(|at| u16::try_from(at).ok()) {
            Some(at) => Ok(at),
            // Its socket is the old process's alone, which sends nothing of it.
            None if reload => Ok(NONE),
            None => Err(Refused::Theirs(format!(
                "the new process does not listen on {theirs}"
            ))),
        }
    };
    let listener_of = order.iter().map(ours).collect::<Result<_, _>>()?;
    Ok((listeners, listener_of))
}
