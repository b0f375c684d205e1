//! Accepting: a batch until there is no more, paused while there is no room or no descriptor.
//!
//! `worker/mod.rs` owns the [`Acceptor`] (worker 0 alone has one), `worker/placing.rs` places what it answers.

use std::io::{self, ErrorKind};
#[cfg(all(target_os = "linux", not(standfast_portable)))]
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::address::endpoint::{Endpoint, Peer};
use crate::config::WhenFull;
use crate::handle::Shared;
use crate::io::Io;
use crate::io::door::Door;
use crate::io::stats::Stats;
use crate::listen::listener::{Configure, Listener};
use crate::listen::pace::Pace;
use crate::listen::settings::Settings;
use crate::liveness::close::{CloseReason, Ending, Errno, Note, Obituary};
use crate::liveness::herd::{self, Accepted, Rotation};
use crate::liveness::multipath;
use crate::liveness::sockopt::{self, Refused};
use crate::os::socket_file::SocketFile;
use crate::os::sys;
use crate::time::deadline::Moment;

/// How many connections are accepted in a turn before those that are open get theirs.
const BATCH: usize = 256;

/// How long accepting pauses when the system has no descriptor or memory for it, unless a connection closes.
const PAUSE: Duration = Duration::from_millis(200);

/// How long the log is spared the next word about a lack that comes and goes.
const SAID: Duration = Duration::from_secs(60);

/// Who serves what is accepted.
pub(crate) trait Placing {
    /// Whether there is memory for one more.
    fn has_room(&mut self) -> bool;

    fn place(&mut self, io: Io);
}

/// The listeners, and whether they are accepted from.
#[derive(Debug)]
pub(crate) struct Acceptor {
    doors: Vec<Entrance>,
    /// Accepting is paused for a lack of the system's until then.
    paused: Option<Moment>,
    /// A lack of the system's has been said in the log, and not yet that it is over.
    said_pause: bool,
    /// When the log may be told again of a pause, and of a limit.
    pause_quiet_until: Moment,
    limit_quiet_until: Moment,
    /// Descriptors for the time when there is no other.
    reserve: Reserve,
    /// Whose log is another's: what goes on here is no news.
    quiet: bool,
    /// Another process was given copies of the listeners, and may have them yet.
    lent: bool,
}

/// Descriptors that are open for nothing but to be closed when a client needs one and there is no other.
#[derive(Debug, Default)]
struct Reserve {
    kept: Vec<OwnedFd>,
    size: usize,
}

impl Reserve {
    /// As many as there are to be, or to be had.
    fn fill(&mut self, from: BorrowedFd<'_>) {
        while self.kept.len() < self.size
            && let Ok(one) = rustix::io::fcntl_dupfd_cloexec(from, 0)
        {
            self.kept.push(one);
        }
    }
}

/// One listener.
#[derive(Debug)]
struct Entrance {
    number: u16,
    socket: OwnedFd,
    address: Endpoint,
    /// The path of a Unix socket, as long as the door is open.
    file: Option<Arc<SocketFile>>,
    settings: Arc<Settings>,
    stats: Arc<Stats>,
    configure: Configure,
    /// Its connections may have several paths; who comes over TCP has none of its options.
    multipath: bool,
    /// How fast they come in, if not as they come.
    pace: Option<Pace>,
    /// What it has for the connections of a herd.
    rotation: Rotation,
    /// Others may listen with it, too.
    inherited: bool,
    /// It is another process's, and none of this one's any more.
    given: bool,
    /// An edge said that connections wait, and no accept has said otherwise.
    ready: bool,
}

impl Entrance {
    /// The backlog is where connections wait while there is no room.
    fn holds_back(&self) -> bool {
        self.settings.when_full == WhenFull::Wait && self.settings.admission.is_full()
    }

    /// When the next one may come in.
    fn opens(&self) -> Moment {
        let pace = self.pace.as_ref();
        pace.map_or_else(Moment::at_start, Pace::opens)
    }

    /// Gives an accepted socket its options, those of connection number `id`: one of many or not.
    fn configure(
        &mut self,
        socket: &OwnedFd,
        id: u64,
        is_one_of_many: bool,
    ) -> Result<(), Refused> {
        let own = self.settings.options.of_one(id, is_one_of_many);
        if self.multipath {
            return own.give(socket, multipath::is_multipath(socket));
        }
        match self.configure {
            Configure::None => self.vary(socket, id, is_one_of_many),
            Configure::Queued => own.replace(socket),
            Configure::Each => own.apply(socket),
        }
    }

    /// Sees to it that connections of a herd inherit not all the same keepalive.
    fn vary(&mut self, accepted: &OwnedFd, id: u64, is_one_of_many: bool) -> Result<(), Refused> {
        let options = &self.settings.options;
        if self.address.tcp().is_none() || !sockopt::INHERITED || options.keepalive().is_none() {
            return Ok(());
        }
        let varied = if is_one_of_many {
            let listener = self.socket.as_fd();
            let queued = || sys::queued(listener).map_or(0, |queued| queued as usize);
            let Accepted { change, alike } = self.rotation.accepted(queued);
            let varied = change.map_or(Ok(()), |nth| options.vary(&listener, Some(nth)));
            if alike {
                varied.and_then(|()| options.vary(accepted, Some(id)))
            } else {
                varied
            }
        } else if self.rotation.is_over() {
            options.vary(&self.socket, None)
        } else {
            Ok(())
        };
        varied.map_err(Refused::named("keepalive"))
    }

    /// Counts and tells the end of a connection that no service has seen.
    fn turn_away(
        &self,
        id: u64,
        peer: Peer,
        reason: CloseReason,
        note: Option<Note>,
        now: Moment,
        shared: &Shared,
    ) {
        self.stats.closed(reason);
        let obituary = Obituary {
            id,
            peer,
            via: None,
            dialled: None,
            listener: &self.address,
            upstream: None,
            ending: &Ending::fin(reason),
            note,
            named: (None, None),
            age: Duration::ZERO,
            read: 0,
            written: 0,
        };
        obituary.log(shared.level());
        // Worker 0 accepts.
        shared.workers[0].ended.note(obituary, self.number, now);
    }

    fn deregister(&self, registry: &Registry) {
        let source = &mut SourceFd(&self.socket.as_raw_fd());
        if let Err(error) = registry.deregister(source) {
            log::debug!(error:%; "cannot deregister a listener");
        }
    }
}

impl Acceptor {
    pub(crate) fn new() -> Self {
        Self {
            doors: Vec::new(),
            paused: None,
            said_pause: false,
            pause_quiet_until: Moment::at_start(),
            limit_quiet_until: Moment::at_start(),
            reserve: Reserve::default(),
            quiet: false,
            lent: false,
        }
    }

    pub(crate) fn add(
        &mut self,
        registry: &Registry,
        token: Token,
        listener: Listener,
        stats: Arc<Stats>,
    ) -> io::Result<()> {
        let source = &mut SourceFd(&listener.socket.as_raw_fd());
        registry.register(source, token, Interest::READABLE)?;
        let pace = listener.settings.accept_rate.map(Pace::of);
        self.doors.push(Entrance {
            multipath: multipath::is_multipath(&listener.socket),
            number: u16::try_from(self.doors.len()).unwrap_or(u16::MAX),
            socket: listener.socket,
            address: listener.address,
            file: listener.file,
            settings: listener.settings,
            stats,
            configure: listener.configure,
            pace,
            rotation: Rotation::default(),
            inherited: listener.inherited_as.is_some(),
            given: false,
            // What came before the registration may have made its edge already.
            ready: true,
        });
        Ok(())
    }

    pub(crate) fn ready(&mut self, door: usize) {
        self.doors[door].ready = true;
    }

    /// A connection has closed somewhere: there may be room.
    pub(crate) fn retry(&mut self) {
        self.paused = None;
        self.keep();
    }

    /// Keeps so many descriptors for the time when there is no other, and says nothing in the log: for who answers
    /// questions about a server that has none left.
    pub(crate) fn aside(&mut self, descriptors: usize) {
        self.reserve.size = descriptors;
        self.quiet = true;
        self.keep();
    }

    fn keep(&mut self) {
        if let Some(door) = self.doors.first() {
            self.reserve.fill(door.socket.as_fd());
        }
    }

    /// Accepts from a listener, out of descriptors with one that was kept.
    fn accept_one(&mut self, door: usize) -> io::Result<(OwnedFd, Peer)> {
        let listener = self.doors[door].socket.as_fd();
        match accept(listener) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
                    && self.reserve.kept.pop().is_some() =>
            {
                let accepted = accept(listener);
                if accepted.is_err() {
                    // The system looks for a descriptor before it looks for a client: nobody else is to have this one.
                    self.keep();
                }
                accepted
            }
            accepted => accepted,
        }
    }

    /// Whether connections wait in the backlog for others to close.
    pub(crate) fn holds_back(&self) -> bool {
        self.doors
            .iter()
            .any(|door| door.ready && door.holds_back())
    }

    /// When to go on: at once, at the end of a pause, when the rate allows, or when an event says so.
    pub(crate) fn next(&self) -> Moment {
        match self.paused {
            Some(until) => until,
            None => {
                let doors = self.doors.iter();
                let open = doors.filter(|door| door.ready && !door.holds_back());
                open.map(Entrance::opens).min().unwrap_or(Moment::NEVER)
            }
        }
    }

    /// Accepts a batch from each listener that has some waiting, and gives each admitted connection to `place`.
    pub(crate) fn accept(&mut self, now: Moment, shared: &Shared, placing: &mut impl Placing) {
        if self.paused.is_some_and(|until| now < until) {
            return;
        }
        self.paused = None;
        let mut holds_back = false;
        for at in 0..self.doors.len() {
            for _ in 0..BATCH {
                if !self.doors[at].ready || self.doors[at].opens() > now {
                    break;
                }
                if self.doors[at].holds_back() {
                    self.say(now, "connection limit reached, clients wait in the backlog");
                    holds_back = true;
                    break;
                }
                let accepted = if placing.has_room() {
                    let _alone = shared.accepting.descriptors.lock();
                    if shared.accepting.is_shut() {
                        // Until it wakes; and who never hears of that comes back to it.
                        self.paused = Some(now.after(PAUSE));
                        return;
                    }
                    self.accept_one(at)
                } else {
                    Err(io::Error::from_raw_os_error(libc::ENOMEM))
                };
                match accepted {
                    Ok((socket, peer)) => {
                        if let Some(io) = self.admit(at, socket, peer, now, shared) {
                            placing.place(io);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.doors[at].ready = false;
                        if self.doors[at].configure == Configure::Queued {
                            // What comes from here on inherits the listener's.
                            self.doors[at].configure = Configure::None;
                        }
                        self.resumed();
                        shared.chronicle.accepts(true);
                    }
                    Err(error) if is_of_the_connection(&error) => {
                        shared.chronicle.accept_failed(&error);
                        let listener = &self.doors[at].address;
                        log::debug!(listener:%, error:%; "accept failed");
                    }
                    // A lack of descriptors or memory; or the listener itself is broken.
                    Err(error) => {
                        shared.chronicle.accept_failed(&error);
                        shared.chronicle.accepts(false);
                        self.pause(now, &self.doors[at].address.clone(), &error);
                        shared.accepting.wait(true);
                        return;
                    }
                }
            }
        }
        shared.accepting.wait(holds_back);
    }

    /// Counts the connection in, or closes it with reason `denied` or `limit`.
    fn admit(
        &mut self,
        at: usize,
        socket: OwnedFd,
        peer: Peer,
        now: Moment,
        shared: &Shared,
    ) -> Option<Io> {
        let door = &mut self.doors[at];
        let id = shared.accepting.next_id();
        door.stats.accepted.add(1);
        let settings = &door.settings;
        let proxies = settings.proxies.as_ref();
        let access = proxies.map_or(&settings.access, |proxies| &proxies.trusted);
        if !peer.ip().is_none_or(|ip| access.lets_in(ip)) {
            let (reason, note) = match proxies {
                None => (CloseReason::Denied, None),
                Some(_) => (CloseReason::BadProxyHeader, Some(Note::Header("untrusted"))),
            };
            door.turn_away(id, peer, reason, note, now, shared);
            return None;
        }
        // Whose address it is, that is said at the door.
        let ip = peer.ip().filter(|_| proxies.is_none());
        if let Err(limit) = settings.admission.admit(ip) {
            door.turn_away(
                id,
                peer,
                CloseReason::Limit,
                Some(Note::Limit(limit)),
                now,
                shared,
            );
            self.say(now, "connection limit reached, closing what comes");
            return None;
        }
        let waits = match proxies {
            Some(proxies) => Some(Door::Header(now.after(proxies.timeout))),
            None => {
                let turn = Some(settings.admission.turn_of(ip, now));
                let turn = turn.filter(|turn| now < *turn).map(Door::Turn);
                turn.or_else(|| settings.handshake(now))
            }
        };
        if let Some(pace) = &mut door.pace {
            pace.take(now);
        }
        if let Err(refused) = door.configure(&socket, id, herd::is_herd(shared.open())) {
            // Gone already, or a system without the option: detection lacks, the connection lives.
            log::debug!(id, option = refused.option.as_str(), error:% = refused.source; "option refused");
        }
        let mut io = Io::new(socket, id, peer, door.number, now);
        if door.multipath {
            io.find_paths(&door.settings.limits, now);
            io.find_reset();
        }
        if let Some(waits) = waits {
            io.wait_at(waits, now);
        }
        Some(io)
    }

    fn pause(&mut self, now: Moment, listener: &Endpoint, error: &io::Error) {
        self.paused = Some(now.after(PAUSE));
        if !self.quiet && !self.said_pause && now >= self.pause_quiet_until {
            self.said_pause = true;
            self.pause_quiet_until = now.after(SAID);
            let errno = error.raw_os_error().map(|errno| Errno(errno).to_string());
            log::warn!(listener:%, errno = errno.as_deref(); "accepting paused, clients wait in the backlog");
        }
    }

    fn resumed(&mut self) {
        if std::mem::take(&mut self.said_pause) {
            log::info!("accepting resumed");
        }
    }

    fn say(&mut self, now: Moment, what: &'static str) {
        if !self.quiet && now >= self.limit_quiet_until {
            self.limit_quiet_until = now.after(SAID);
            log::warn!("{what}");
        }
    }

    /// Lets nobody in any more. What has been accepted by the system is taken first: closing would reset it.
    pub(crate) fn close(
        mut self,
        registry: &Registry,
        now: Moment,
        shared: &Shared,
        placing: &mut impl Placing,
    ) {
        self.paused = None;
        for door in &mut self.doors {
            door.ready = !door.given;
            if door.given {
                continue;
            }
            door.pace = None;
            door.deregister(registry);
            if let Some(file) = &door.file {
                file.withdraw();
            }
        }
        // A batch a turn is for the sake of others; here a bound is enough.
        for _ in 0..BATCH {
            if self.next() != Moment::at_start() {
                break;
            }
            self.accept(now, shared, placing);
        }
        for door in &self.doors {
            if self.lent && !door.inherited && !door.given {
                // A process that failed to take over and hangs would go on listening with its copy.
                let _ = rustix::net::shutdown(&door.socket, rustix::net::Shutdown::Both);
            }
        }
    }
}

/// For a process that takes over.
impl Acceptor {
    /// Another process has copies of the listeners, whoever serves: closing them here does not close them.
    pub(crate) fn is_kept(&mut self) {
        self.lent = true;
    }

    /// The listeners, to be lent to another process.
    pub(crate) fn lend(&mut self) -> Vec<BorrowedFd<'_>> {
        self.lent = true;
        self.doors.iter().map(|door| door.socket.as_fd()).collect()
    }

    /// Gives the listeners that were taken over this process's options.
    pub(crate) fn configure(&self) {
        let taken = self.doors.iter();
        for door in taken.filter(|door| door.configure == Configure::Queued) {
            if let Err(refused) = door.settings.options.give(&door.socket, door.multipath) {
                log::debug!(option = refused.option.as_str(), error:% = refused.source; "option refused");
            }
        }
    }

    /// Another process has the listeners: they are let go of here, and nothing is done to them. All but those that stay,
    /// by their numbers: they are [closed](Self::close).
    pub(crate) fn let_go(
        mut self,
        stays: impl Fn(usize) -> bool,
        registry: &Registry,
        now: Moment,
        shared: &Shared,
        placing: &mut impl Placing,
    ) {
        for (at, door) in self.doors.iter_mut().enumerate() {
            if !stays(at) {
                door.given = true;
                door.deregister(registry);
                if let Some(file) = &door.file {
                    file.give();
                }
            }
        }
        self.close(registry, now, shared, placing);
    }
}

/// Accepts one connection: non-blocking, and no child of this process gets it.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Peer)> {
    use rustix::net::{SocketFlags, acceptfrom_with};

    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, from) = acceptfrom_with(listener, flags)?;
    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
    let peer = from.map_or_else(
        || {
            let process = sys::peer(socket.as_fd()).ok();
            Peer::Unix(process.and_then(|(_, process)| process))
        },
        Peer::from,
    );
    Ok((socket, peer))
}

#[cfg(not(all(target_os = "linux", not(standfast_portable))))]
fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Peer)> {
    let (socket, from) = socket2::SockRef::from(&listener).accept()?;
    socket.set_nonblocking(true)?;
    let peer = from.as_socket().map_or(Peer::Unix(None), Peer::from);
    Ok((socket.into(), peer))
}

/// Whether an error of accept(2) is that of the connection that was to be accepted: the next one may do.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::EPERM
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
        )
    )
}
