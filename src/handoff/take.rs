//! The new process's side: asks for the baton, takes everything in, and answers for it from the commit on.

mod sealed;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::address::endpoint::Endpoint;
use crate::handle::past::Past;
use crate::handoff::fault::{fault, may_fail};
use crate::inspect::{Role, Takeover};
use crate::io::chronicle::Told;
use crate::io::stats::Counts;
use crate::os::socket_file::Place;
use crate::service::Exported;
use crate::wire::line::{Line, decode, now, shared_clock};
use crate::wire::question::Hello;
use crate::wire::record::{
    Arrival, LONGEST_AHEAD, LONGEST_COMMON, ListenerRecord, Message, PROTOCOL, Record, SCHEMA,
    Update,
};

/// How long the old process may leave us without a word.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the old process may take to make this one known: longer than it waits itself for a deaf service manager.
const TOLD: Duration = Duration::from_secs(12);

/// How often it is looked whether this process was told to end.
const GLANCE: Duration = Duration::from_millis(100);

/// More often nobody tells of the past: once ahead, and in each freeze there may be.
const MOST_PASTS: usize = 16;

/// Where connections are taken in: an event loop of this process, which serves none of them before the commit.
pub(crate) trait Taker {
    /// Takes a connection in, with its descriptor and those beside it. Answers its key.
    fn import(
        &mut self,
        arrival: &Arrival,
        socket: OwnedFd,
        along: Vec<OwnedFd>,
    ) -> Result<usize, String>;

    /// A connection taken in before, as it is now. Answers whether more of its bytes are to come.
    fn update(&mut self, key: usize, update: &Update) -> Result<bool, String>;

    /// A connection taken in has ended before the commit.
    fn forget(&mut self, key: usize);

    /// What the connections of these listeners have in common, or a part of that which goes ahead: each of their
    /// services gets it once.
    fn import_common(
        &self,
        listeners: &[u16],
        exported: &Exported,
        ahead: bool,
    ) -> Result<(), String>;

    /// What the TLS tickets of a listener of ours are sealed with.
    fn take_ticket_keys(&mut self, _listener: u16, _keys: &[u8]) {}

    /// The TLS session of a connection taken in, as it is now.
    fn take_session(&mut self, _key: usize, _saved: &[u8]) -> Result<(), String> {
        Ok(())
    }

    /// The same, of its far side's.
    fn take_far_session(&mut self, _key: usize, _saved: &[u8]) -> Result<(), String> {
        Ok(())
    }

    /// The time by which what is taken in next is told.
    fn look_at_the_clock(&mut self);

    /// The commit: from here on the connections are ours. Those of `first` are served at once; for the others an
    /// event tells.
    fn own(&mut self, first: impl Iterator<Item = usize>);
}

/// The old process, while it gives.
#[derive(Debug)]
pub(crate) struct Giver {
    line: Line,
    pid: u32,
    /// How long it may leave us without a word.
    patience: Duration,
    /// Our number of each of its listeners.
    pub(crate) listener_of: Vec<u16>,
}

/// What was taken over.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) line: Line,
    pub(crate) pid: u32,
    /// The control socket.
    pub(crate) control: Option<OwnedFd>,
    /// Of its path and of the listeners', in the old process's order: the lock, and what stands there.
    pub(crate) paths: Vec<(OwnedFd, Place)>,
    pub(crate) last_id: u64,
    connections: u64,
    staying: u64,
    /// What the old process had counted for each of its listeners, and for how long.
    pub(crate) counts: (Vec<Counts>, Duration, Told),
    /// Our number of each of those.
    pub(crate) listener_of: Vec<u16>,
    /// What the old process showed of the time before.
    pub(crate) past: Vec<Past>,
    /// Since when nobody serves, by the clock that both processes share.
    frozen_at: u64,
}

/// What this process says of itself.
pub(crate) fn hello(
    listeners: Vec<(Endpoint, String)>,
    services: Vec<u16>,
    reload: bool,
    max_conns: usize,
) -> Hello {
    let protocol = if fault("wrong-version") {
        PROTOCOL + 1
    } else {
        PROTOCOL
    };
    Hello {
        protocol,
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        max_conns: if fault("few-descriptors") {
            0
        } else {
            max_conns
        },
        network: network(),
        listeners,
        services,
        reload,
        past: true,
    }
}

/// This process's network namespace, as the system names it; empty where it does not.
pub(crate) fn network() -> String {
    let link = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

impl Giver {
    /// Takes the listeners in, as the old process `pid` has them in its order.
    pub(crate) fn listeners(
        line: Line,
        pid: u32,
    ) -> io::Result<(Self, Vec<(ListenerRecord, OwnedFd)>)> {
        line.widen();
        let giver = Self {
            line,
            pid,
            patience: PATIENCE,
            listener_of: Vec::new(),
        };
        match giver.line.take(now() + PATIENCE).map_err(lost)? {
            (Message::Listeners(records), sockets) if records.len() == sockets.len() => {
                giver.say(&Message::Taken { work: 0, micros: 0 })?;
                Ok((giver, records.into_iter().zip(sockets).collect()))
            }
            _ => Err(giver.abort("listeners and their descriptors do not match")),
        }
    }

    /// Takes every connection in, until the commit. `place`: which worker takes the next one.
    /// `is_ending`: whether this process is told to end.
    ///
    /// # Errors
    /// Nothing is ours then; dropping what was taken in leaves the old process's connections alone.
    pub(crate) fn connections(
        self,
        workers: &mut [impl Taker],
        is_ending: impl Fn() -> bool,
        place: impl Fn() -> usize,
    ) -> io::Result<Taken> {
        let mut taking = Taking::new(workers, &self.listener_of);
        let mut bytes = Vec::new();
        let mut counts = (Vec::new(), Duration::ZERO, Told::default());
        let (mut past, mut last_shown) = (Vec::new(), Vec::new());
        // The number of the last connection, once everything is here.
        let mut prepared = None;
        loop {
            let sockets = self.next(&mut bytes, &is_ending)?;
            let began = now();
            let message = self.meaning(&bytes)?;
            for worker in &mut *taking.workers {
                worker.look_at_the_clock();
            }
            let mut work = 0;
            let taken = match message {
                Message::Connections(arrivals) => {
                    let taken = taking.add_all(arrivals, sockets, &place);
                    may_fail("pre-copy");
                    // As much rest as work: the old process's clients wait for the same processors.
                    std::thread::park_timeout(now().saturating_duration_since(began));
                    taken
                }
                Message::Updates(updates) => {
                    work = updates.iter().map(Update::work).sum();
                    taking.update_all(&updates)
                }
                Message::Common {
                    listeners,
                    ahead,
                    schema,
                    bytes,
                    left,
                } => taking.take_common(&listeners, ahead, schema, &bytes, left),
                Message::Counts {
                    listeners,
                    counted_for,
                    told,
                } => {
                    counts = (listeners, Duration::from_micros(counted_for), told);
                    Ok(())
                }
                // Each tells something new.
                Message::Past(shown) if shown == last_shown => {
                    Err("the same past twice".to_owned())
                }
                Message::Past(_) if past.len() >= MOST_PASTS => {
                    Err("too much of the past".to_owned())
                }
                Message::Past(shown) => {
                    past.push((began, Past::decode(&shown)));
                    last_shown = shown;
                    Ok(())
                }
                Message::Sessions(sessions) => taking.take_sessions(&sessions),
                Message::FarSessions(sessions) => taking.take_far_sessions(&sessions),
                Message::Tickets { listener, keys } => taking.take_ticket_keys(listener, &keys.0),
                Message::Gone(ids) => ids.into_iter().try_for_each(|id| taking.forget(id)),
                Message::Final {
                    connections,
                    sum,
                    last_id,
                } => {
                    may_fail("freeze");
                    let all = taking.is_all(connections, sum);
                    all.and_then(|()| taking.import_rest())
                        .map_err(|why| self.abort(&why))?;
                    prepared = Some(last_id);
                    self.say(&Message::Prepared)?;
                    if fault("abort-commit") || fault("hang-commit") {
                        // With the commit sent, and not read.
                        self.line.until_spoken_to(now() + PATIENCE)?;
                    }
                    may_fail("commit");
                    continue;
                }
                Message::Thaw => {
                    prepared = None;
                    taking.forget_rest();
                    taking.thaw_sessions();
                    self.say(&Message::Thaw)?;
                    continue;
                }
                Message::Commit {
                    frozen_at,
                    staying,
                    places,
                } if let Some(last_id) = prepared => {
                    let mut descriptors = sockets.into_iter();
                    may_fail("owned");
                    // From here on they are ours. A predecessor that hears nothing any more has ended.
                    let _ = self.say(&Message::Owned);
                    let past = past.into_iter();
                    return Ok(Taken {
                        past: past.map(|(at, one)| one.after(now() - at)).collect(),
                        connections: taking.own(),
                        counts,
                        listener_of: self.listener_of,
                        line: self.line,
                        pid: self.pid,
                        control: descriptors.next(),
                        paths: descriptors.zip(places).collect(),
                        last_id,
                        staying,
                        frozen_at,
                    });
                }
                _ => Err("the running server said something out of turn".to_owned()),
            };
            taken.map_err(|why| self.abort(&why))?;
            let micros = now().saturating_duration_since(began).as_micros();
            let micros = u64::try_from(micros).unwrap_or(u64::MAX);
            self.say(&Message::Taken { work, micros })?;
        }
    }

    /// Waits for the next message, unless this process is told to end before.
    fn next(&self, bytes: &mut Vec<u8>, is_ending: &impl Fn() -> bool) -> io::Result<Vec<OwnedFd>> {
        let patience = now() + self.patience;
        loop {
            match self.line.take_bytes(bytes, now() + GLANCE) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut && now() < patience => {}
                taken => return taken.map_err(lost),
            }
            if is_ending() {
                return Err(self.abort("the new process was told to end"));
            }
        }
    }

    /// What it says, unless that it gives up.
    fn meaning(&self, bytes: &[u8]) -> io::Result<Message> {
        match decode(bytes).map_err(lost)? {
            Message::Abort(why) => Err(invalid(&why)),
            message => Ok(message),
        }
    }

    fn say(&self, message: &Message) -> io::Result<()> {
        say(&self.line, message).map_err(lost)
    }

    /// Tells the old process why this one gives up, and answers it as an error.
    pub(crate) fn abort(&self, why: &str) -> io::Error {
        // It may have gone, which is as well.
        let _ = self.say(&Message::Abort(why.to_owned()));
        invalid(why)
    }
}

impl Taken {
    /// Tells the old process that this one serves, and answers how it went.
    pub(crate) fn running(&self) -> Takeover {
        let frozen = shared_clock().saturating_sub(self.frozen_at) / 1000;
        if let Err(error) = say(&self.line, &Message::Running { frozen }) {
            log::debug!(error:%; "the former process does not hear that this one runs");
        }
        Takeover {
            role: Role::Took,
            pid: self.pid,
            connections: self.connections,
            staying: self.staying,
            frozen: Duration::from_micros(frozen),
        }
    }

    /// Waits until whoever watches over the old process knows of this one; not for long.
    pub(crate) fn until_told(&self) {
        // It waits for a deaf one itself, less long than this. The end of the process is as good.
        let _ = self.line.take(now() + TOLD);
    }

    /// Waits until the old process has ended.
    pub(crate) fn until_alone(&self) {
        self.line.until_hung_up();
    }
}

fn say(line: &Line, message: &Message) -> io::Result<()> {
    let bytes = message.encode().map_err(|why| invalid(&why))?;
    line.pass(&bytes, &[], Some(now() + PATIENCE))
}

/// Why the old process is heard no more, in words.
fn lost(error: io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "it went on alone, see its log".to_owned(),
        io::ErrorKind::TimedOut => format!("it said nothing for {} s", PATIENCE.as_secs()),
        _ => return error,
    };
    io::Error::new(error.kind(), why)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// What has been taken in so far.
struct Taking<'a, T> {
    workers: &'a mut [T],
    listener_of: &'a [u16],
    /// Worker and key of each connection, by its number.
    places: HashMap<u64, (usize, usize)>,
    /// The sum of those numbers.
    sum: u64,
    /// Connections of whose bytes more are to come.
    incomplete: HashSet<u64>,
    /// Connections that have TLS, or whose far sides do.
    sealed: HashSet<u64>,
    /// Connections that are to be served first, in the order in which they came: they have something to do that no event
    /// tells of, as to be dialled for.
    first: BTreeSet<u64>,
    /// What has come of the common state that comes now.
    common: Vec<u8>,
    /// What has come of it in the freeze, with the listeners it is for.
    rest: Vec<(Vec<u16>, Exported)>,
}

impl<'a, T: Taker> Taking<'a, T> {
    fn new(workers: &'a mut [T], listener_of: &'a [u16]) -> Self {
        Self {
            workers,
            listener_of,
            places: HashMap::new(),
            sum: 0,
            incomplete: HashSet::new(),
            sealed: HashSet::new(),
            first: BTreeSet::new(),
            common: Vec::new(),
            rest: Vec::new(),
        }
    }

    fn add_all(
        &mut self,
        arrivals: Vec<Arrival>,
        sockets: Vec<OwnedFd>,
        place: &impl Fn() -> usize,
    ) -> Result<(), String> {
        const AMISS: &str = "connections and their descriptors do not match";
        let mut sockets = sockets.into_iter();
        for mut arrival in arrivals {
            let socket = sockets.next().ok_or(AMISS)?;
            let along: Vec<OwnedFd> = sockets.by_ref().take(arrival.along.into()).collect();
            if along.len() != usize::from(arrival.along) {
                return Err(AMISS.to_owned());
            }
            // The old process's number of the listener becomes ours.
            let ours = self.listener_of.get(usize::from(arrival.listener));
            arrival.listener = *ours.ok_or("a connection of no listener")?;
            // One worker dials, so that upstreams see clients in their order.
            let at = if arrival.record.dialing { 0 } else { place() };
            let id = arrival.record.id;
            let worker = self.workers.get_mut(at).ok_or("no such worker")?;
            let key = worker.import(&arrival, socket, along)?;
            if self.places.insert(id, (at, key)).is_some() {
                return Err("the same connection twice".to_owned());
            }
            self.sum = self.sum.wrapping_add(id);
            let record = &arrival.record;
            if record.has_bytes() || record.is_promised() {
                self.incomplete.insert(id);
            }
            self.note(record);
        }
        match sockets.next() {
            None => Ok(()),
            Some(_) => Err(AMISS.to_owned()),
        }
    }

    fn update_all(&mut self, updates: &[Update]) -> Result<(), String> {
        for update in updates {
            let id = update.record.id;
            let &(at, key) = self.places.get(&id).ok_or(UNKNOWN)?;
            let worker = self.workers.get_mut(at).ok_or(UNKNOWN)?;
            if worker.update(key, update)? || update.record.is_promised() {
                self.incomplete.insert(id);
            } else {
                self.incomplete.remove(&id);
            }
            self.note(&update.record);
        }
        Ok(())
    }

    fn note(&mut self, record: &Record) {
        if record.sessions().next().is_some() {
            self.sealed.insert(record.id);
        }
        if record.has_to_be_served() {
            self.first.insert(record.id);
        } else {
            self.first.remove(&record.id);
        }
    }

    fn forget(&mut self, id: u64) -> Result<(), String> {
        let (at, key) = self.places.remove(&id).ok_or(UNKNOWN)?;
        self.sum = self.sum.wrapping_sub(id);
        self.incomplete.remove(&id);
        self.sealed.remove(&id);
        self.first.remove(&id);
        self.workers.get_mut(at).ok_or(UNKNOWN)?.forget(key);
        Ok(())
    }

    /// A piece of what the connections of these listeners have in common. With the last one it is the services'.
    fn take_common(
        &mut self,
        listeners: &[u16],
        ahead: bool,
        schema: u16,
        piece: &[u8],
        left: u64,
    ) -> Result<(), String> {
        self.common.extend_from_slice(piece);
        if self.common.len() > if ahead { LONGEST_AHEAD } else { LONGEST_COMMON } {
            return Err("more common state than there may be".to_owned());
        }
        if left > 0 {
            return Ok(());
        }
        let ours = listeners
            .iter()
            .map(|&theirs| self.listener_of.get(usize::from(theirs)).copied());
        let ours: Option<Vec<u16>> = ours.collect();
        let exported = Exported {
            schema,
            bytes: std::mem::take(&mut self.common),
        };
        let ours = ours.ok_or("common state of no listener")?;
        if !ahead {
            self.rest.push((ours, exported));
            return Ok(());
        }
        let worker = self.workers.first().ok_or("no worker")?;
        worker.import_common(&ours, &exported, true)
    }

    /// Gives the services the rest of what their connections have in common: all has come.
    fn import_rest(&mut self) -> Result<(), String> {
        let worker = self.workers.first().ok_or("no worker")?;
        let mut rest = self.rest.iter();
        rest.try_for_each(|(ours, exported)| worker.import_common(ours, exported, false))
    }

    /// It comes anew.
    fn forget_rest(&mut self) {
        self.common.clear();
        self.rest.clear();
    }

    /// Whether everything has come.
    fn is_all(&self, connections: u64, sum: u64) -> Result<(), String> {
        if self.places.len() as u64 != connections || self.sum != sum {
            return Err("connections were lost on the way".to_owned());
        }
        if !self.incomplete.is_empty() || !self.common.is_empty() {
            return Err("bytes were lost on the way".to_owned());
        }
        Ok(())
    }

    /// They are ours. Answers how many.
    fn own(self) -> u64 {
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let places = self.first.iter().filter_map(|id| self.places.get(id));
            worker.own(places.filter(|(at, _)| *at == index).map(|&(_, key)| key));
        }
        self.places.len() as u64
    }
}

const UNKNOWN: &str = "a connection that was never sent";

#[cfg(test)]
mod tests;
