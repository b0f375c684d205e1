//! The old process's side: each worker's share ([`Giving`]), and the conversation that brings it about ([`give`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::connection::Connection;
use crate::control::wire::{Hello, Line, now};
use crate::deadline::Moment;
use crate::handle::{Handle, Mail};
use crate::handoff::record::{
    DESCRIPTORS, ListenerRecord, Message, PIECE, PROTOCOL, Record, SCHEMA, Which,
};
use crate::inspect::Takeover;
use crate::service::AnyService;
use crate::worker::Origin;

/// Messages with descriptors that may be under way: descriptors in flight count against a limit of the sender's.
const UNDER_WAY: u32 = 16;

/// Such messages one worker sends in a turn: live clients wait behind them.
const MESSAGES_A_TURN: usize = 2;

/// Records are gathered into messages of about this size.
const FULL: usize = 48 * 1024;

/// How long the pre-copy may take, while the server serves.
const PRE_COPY: Duration = Duration::from_secs(30);

/// How long the workers may stand still. Past it the server goes on as if nothing had happened.
const FREEZE: Duration = Duration::from_millis(50);

/// How long the new process may take to say that it runs; the connections are its own by then.
const RUNNING: Duration = Duration::from_secs(10);

/// What a worker tells the conversation.
#[derive(Debug)]
pub(crate) enum Event {
    /// Worker 0 has sent the listeners.
    Announced,
    /// Everything it has was sent once.
    Copied,
    /// It stands still, and everything is sent.
    Frozen { connections: u64, sum: u64 },
    /// It cannot go on.
    Failed(String),
}

/// How a freeze ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The connections are the new process's.
    Committed,
    /// The server goes on.
    Resumed,
}

/// What all workers share during a takeover.
#[derive(Debug)]
pub(crate) struct Baton {
    line: Line,
    /// Messages with descriptors sent, and taken in by the new process.
    sent: AtomicU32,
    taken: AtomicU32,
}

impl Baton {
    fn under_way(&self) -> u32 {
        self.sent
            .load(Ordering::Acquire)
            .wrapping_sub(self.taken.load(Ordering::Acquire))
    }
}

/// One worker's share in a takeover.
#[derive(Debug)]
pub(crate) struct Giving {
    baton: Arc<Baton>,
    events: Sender<Event>,
    /// Connections below this key were sent, but for `added`.
    cursor: usize,
    /// Connections that came after the cursor had passed their key.
    pub(crate) added: Vec<usize>,
    /// Connections that have changed since they were sent.
    pub(crate) changed: Vec<usize>,
    /// Numbers of connections that ended after they were sent.
    pub(crate) gone: Vec<u64>,
    announced: bool,
    connections: u64,
    sum: u64,
}

/// What [`Giving`] works on: a worker's connections.
pub(crate) struct Share<'a> {
    pub(crate) connections: &'a mut Slab<Connection>,
    pub(crate) origins: &'a [Origin],
    pub(crate) now: Moment,
}

impl Share<'_> {
    fn service(&self, connection: &Connection) -> &AnyService {
        &self.origins[usize::from(connection.io.listener)]
            .settings
            .service
    }
}

impl Giving {
    pub(crate) fn new(baton: Arc<Baton>, events: Sender<Event>) -> Self {
        Self {
            baton,
            events,
            cursor: 0,
            added: Vec::new(),
            changed: Vec::new(),
            gone: Vec::new(),
            announced: false,
            connections: 0,
            sum: 0,
        }
    }

    /// Worker 0 sends the listeners, before any connection.
    pub(crate) fn send_listeners<'a>(
        &mut self,
        listeners: impl Iterator<Item = (SocketAddr, &'a str, BorrowedFd<'a>)>,
    ) {
        let (records, descriptors): (Vec<_>, Vec<_>) = listeners
            .map(|(address, service, fd)| {
                (
                    ListenerRecord {
                        address,
                        service: service.to_owned(),
                    },
                    fd,
                )
            })
            .unzip();
        let message = Message::Listeners(records);
        let until = now() + FREEZE;
        let sent = encoded(&message)
            .and_then(|bytes| self.baton.line.pass(&bytes, &descriptors, Some(until)));
        match sent {
            // A conversation that has ended does not want to know.
            Ok(()) => drop(self.events.send(Event::Announced)),
            Err(error) => self.fail(&error),
        }
    }

    /// A connection came.
    pub(crate) fn arrived(&mut self, key: usize) {
        if key < self.cursor {
            self.added.push(key);
        }
    }

    /// Whether more is to be sent at once, rather than after the new process has taken something in.
    pub(crate) fn is_pressing(&self) -> bool {
        !self.announced && self.baton.under_way() < UNDER_WAY
    }

    /// Pre-copy: a few messages, and no waiting.
    pub(crate) fn advance(&mut self, share: &mut Share<'_>) {
        for _ in 0..MESSAGES_A_TURN {
            if self.baton.under_way() >= UNDER_WAY {
                return;
            }
            match self.send_connections(share, None) {
                Ok(true) => {}
                Ok(false) => {
                    if !self.announced {
                        self.announced = true;
                        // A conversation that has ended does not want to know.
                        let _ = self.events.send(Event::Copied);
                    }
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.fail(&error),
            }
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.announced = true;
        let _ = self.events.send(Event::Failed(error.to_string()));
    }

    /// Sends one message of connections not sent before; answers whether there may be more.
    fn send_connections(
        &mut self,
        share: &mut Share<'_>,
        until: Option<Instant>,
    ) -> io::Result<bool> {
        let mut keys = Vec::new();
        let mut records: Vec<Record> = Vec::new();
        let mut size = 0;
        let (mut cursor, mut added) = (self.cursor, 0);
        let end = share.connections.capacity();
        while keys.len() < DESCRIPTORS && size < FULL {
            let key = if cursor < end {
                cursor += 1;
                cursor - 1
            } else if let Some(&key) = self.added.get(added) {
                added += 1;
                key
            } else {
                break;
            };
            if let Some(connection) = share.connections.get(key)
                && !connection.io.copied
                && let Some(record) = connection.export(share.service(connection), share.now)
            {
                size += 80 + record.state.len();
                keys.push(key);
                records.push(record);
            }
        }
        if keys.is_empty() {
            self.cursor = cursor;
            self.added.drain(..added);
            return Ok(false);
        }
        let sum = records
            .iter()
            .fold(0_u64, |sum, record| sum.wrapping_add(record.id));
        let (count, message) = (
            records.len() as u64,
            encoded(&Message::Connections(records))?,
        );
        let descriptors: Vec<BorrowedFd<'_>> = keys
            .iter()
            .filter_map(|&key| Some(share.connections.get(key)?.io.descriptor()))
            .collect();
        self.baton.line.pass(&message, &descriptors, until)?;
        self.baton.sent.fetch_add(1, Ordering::AcqRel);
        self.cursor = cursor;
        self.added.drain(..added);
        self.connections += count;
        self.sum = self.sum.wrapping_add(sum);
        for key in keys {
            if let Some(connection) = share.connections.get_mut(key) {
                connection.io.copied = true;
                // Its bytes are sent at the freeze.
                connection.io.changed = connection.io.holds_bytes();
                if connection.io.changed {
                    self.changed.push(key);
                }
            }
        }
        Ok(true)
    }

    /// Freeze: everything that the new process does not know yet. Then stands still until the outcome is known.
    pub(crate) fn freeze(
        &mut self,
        share: &mut Share<'_>,
        until: Instant,
        outcome: &Receiver<Outcome>,
    ) -> Outcome {
        let event = match self.send_rest(share, until) {
            Ok(()) => Event::Frozen {
                connections: self.connections,
                sum: self.sum,
            },
            Err(error) => Event::Failed(error.to_string()),
        };
        let _ = self.events.send(event);
        outcome.recv().unwrap_or(Outcome::Resumed)
    }

    fn send_rest(&mut self, share: &mut Share<'_>, until: Instant) -> io::Result<()> {
        let until = Some(until);
        if !self.gone.is_empty() {
            for gone in self.gone.chunks(1024) {
                self.baton
                    .line
                    .pass(&encoded(&Message::Gone(gone.to_vec()))?, &[], until)?;
            }
            self.connections -= self.gone.len() as u64;
            self.sum = self
                .gone
                .iter()
                .fold(self.sum, |sum, &id| sum.wrapping_sub(id));
            self.gone.clear();
        }
        while self.send_connections(share, until)? {}
        let mut updates = Vec::new();
        let mut size = 0;
        for key in std::mem::take(&mut self.changed) {
            let Some(connection) = share.connections.get(key) else {
                continue;
            };
            let Some(record) = connection.export(share.service(connection), share.now) else {
                // It was sent, and cannot leave any more: the new process is to forget it.
                self.baton.line.pass(
                    &encoded(&Message::Gone(vec![connection.io.id]))?,
                    &[],
                    until,
                )?;
                self.connections -= 1;
                self.sum = self.sum.wrapping_sub(connection.io.id);
                if let Some(connection) = share.connections.get_mut(key) {
                    connection.io.copied = false;
                }
                continue;
            };
            size += 80 + record.state.len();
            updates.push(record);
            if size >= FULL {
                self.send_updates(&mut updates, until)?;
                size = 0;
            }
            if connection.io.holds_bytes() {
                self.send_updates(&mut updates, until)?;
                size = 0;
                self.send_bytes(connection, until)?;
            }
        }
        self.send_updates(&mut updates, until)
    }

    fn send_updates(
        &mut self,
        updates: &mut Vec<Record>,
        until: Option<Instant>,
    ) -> io::Result<()> {
        if updates.is_empty() {
            return Ok(());
        }
        self.baton.line.pass(
            &encoded(&Message::Updates(std::mem::take(updates)))?,
            &[],
            until,
        )
    }

    fn send_bytes(&self, connection: &Connection, until: Option<Instant>) -> io::Result<()> {
        let io = &connection.io;
        let (front, back) = io.outbox_bytes();
        let mut at = io.written;
        for piece in front.chunks(PIECE).chain(back.chunks(PIECE)) {
            let message = Message::Piece {
                id: io.id,
                which: Which::Outbox,
                at,
                bytes: piece.to_vec(),
            };
            self.baton.line.pass(&encoded(&message)?, &[], until)?;
            at += piece.len() as u64;
        }
        let mut at = 0;
        for piece in io.kept_bytes().chunks(PIECE) {
            let message = Message::Piece {
                id: io.id,
                which: Which::Kept,
                at,
                bytes: piece.to_vec(),
            };
            self.baton.line.pass(&encoded(&message)?, &[], until)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

fn encoded(message: &Message) -> io::Result<Vec<u8>> {
    message
        .encode()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Compares what the new process is with what this one has.
pub(crate) fn compare(hello: &Hello, handle: &Handle, network: &str) -> Result<(), String> {
    if hello.protocol != PROTOCOL || hello.schema != SCHEMA {
        return Err(format!(
            "standfast {} speaks takeover {}.{}, the running one {PROTOCOL}.{SCHEMA}",
            hello.version, hello.protocol, hello.schema
        ));
    }
    if hello.network != network {
        return Err("the new process is in another network namespace".to_owned());
    }
    let status = handle.status();
    if status.draining {
        return Err("the running server is ending".to_owned());
    }
    for listener in &status.listeners {
        let same = hello
            .listeners
            .iter()
            .find(|(address, _)| *address == listener.address);
        match same {
            None => {
                return Err(format!(
                    "the new process does not listen on {}",
                    listener.address
                ));
            }
            Some((_, service)) if *service != listener.service => {
                return Err(format!(
                    "{} is served by {}, the new process has {service} there",
                    listener.address, listener.service
                ));
            }
            Some(_) => {}
        }
    }
    if status.open > hello.max_conns {
        return Err(format!(
            "{} connections are open, the new process may have {}",
            status.open, hello.max_conns
        ));
    }
    Ok(())
}

/// Gives this server to the process at the other end of `line`: from the pre-copy to `running`.
///
/// # Errors
/// In words, why it was not given; the server goes on as if nothing had happened.
pub(crate) fn give(line: Line, handle: &Handle, lock: BorrowedFd<'_>) -> Result<Takeover, String> {
    line.widen();
    let baton = Arc::new(Baton {
        line,
        sent: AtomicU32::new(0),
        taken: AtomicU32::new(0),
    });
    let (events, told) = mpsc::channel();
    let workers = &handle.shared.workers;
    let share = || Mail::Give(Giving::new(Arc::clone(&baton), events.clone()));
    // The listeners come first: the connections name them.
    workers[0].post(share());
    let announced = match told.recv_timeout(PRE_COPY) {
        Ok(Event::Announced) => Ok(()),
        Ok(Event::Failed(why)) => Err(why),
        Ok(_) | Err(_) => Err("the listeners could not be sent".to_owned()),
    };
    for worker in &workers[1..] {
        worker.post(share());
    }
    drop(events);
    let given = announced
        .and_then(|()| pre_copy(&baton, handle, &told))
        .and_then(|()| freeze(&baton, handle, &told, lock));
    if given.is_err() {
        for worker in workers {
            worker.post(Mail::Keep);
        }
    }
    let given = given?;
    let _ = handle.shared.takeover.set(given.clone());
    // The new process serves from the commit on; its word only ends this one's waiting.
    let until = now() + RUNNING;
    loop {
        match baton.line.take(until) {
            Ok((Message::Running, _)) => break,
            Ok(_) => {}
            Err(error) => {
                log::error!(error:%; "the new process took the connections over and does not say that it runs");
                break;
            }
        }
    }
    Ok(given)
}

/// Waits until every worker has sent everything once and the new process has taken it in.
fn pre_copy(baton: &Baton, handle: &Handle, told: &Receiver<Event>) -> Result<(), String> {
    let end = now() + PRE_COPY;
    let mut copying = handle.shared.workers.len();
    loop {
        while let Ok(event) = told.try_recv() {
            match event {
                Event::Failed(why) => return Err(why),
                Event::Copied => copying -= 1,
                Event::Announced | Event::Frozen { .. } => {}
            }
        }
        if copying == 0 && baton.under_way() == 0 {
            return Ok(());
        }
        if handle.is_ending() {
            return Err("the running server was told to end".to_owned());
        }
        match baton.line.take(now() + Duration::from_millis(5)) {
            Ok((Message::Taken(count), _)) => {
                baton.taken.fetch_add(count, Ordering::AcqRel);
                handle.shared.wake_all();
            }
            Ok((Message::Abort(why), _)) => return Err(why),
            Ok(_) => return Err("the new process said something out of turn".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                if now() >= end {
                    return Err(format!(
                        "the new process did not take everything in within {} s",
                        PRE_COPY.as_secs()
                    ));
                }
            }
            Err(error) => return Err(lost(&error)),
        }
    }
}

fn lost(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "the new process ended".to_owned(),
        io::ErrorKind::TimedOut => format!(
            "the new process was not ready within {} ms",
            FREEZE.as_millis()
        ),
        _ => error.to_string(),
    }
}

/// Stops the workers, has them send the rest, and commits; whatever goes wrong before that, they resume.
fn freeze(
    baton: &Baton,
    handle: &Handle,
    told: &Receiver<Event>,
    lock: BorrowedFd<'_>,
) -> Result<Takeover, String> {
    let start = now();
    let until = start + FREEZE;
    let workers = &handle.shared.workers;
    let mut outcomes: Vec<Sender<Outcome>> = Vec::new();
    let (mut connections, mut sum) = (0_u64, 0_u64);
    // Worker 0 first: what it has handed to the others is in their mailboxes when they are asked.
    let mut stop = |from: usize, to: usize| -> Result<(), String> {
        for worker in &workers[from..to] {
            let (outcome, known) = mpsc::channel();
            outcomes.push(outcome);
            worker.post(Mail::Freeze(until, known));
        }
        for _ in from..to {
            loop {
                let left = until.saturating_duration_since(now()) + Duration::from_millis(10);
                match told.recv_timeout(left) {
                    Ok(Event::Frozen {
                        connections: count,
                        sum: part,
                    }) => {
                        connections += count;
                        sum = sum.wrapping_add(part);
                        break;
                    }
                    Ok(Event::Failed(why)) => return Err(why),
                    Ok(Event::Announced | Event::Copied) => {}
                    Err(_) => {
                        return Err(format!(
                            "the workers did not stop within {} ms",
                            FREEZE.as_millis()
                        ));
                    }
                }
            }
        }
        Ok(())
    };
    let stopped = stop(0, 1).and_then(|()| stop(1, workers.len()));
    let frozen = stopped.and_then(|()| {
        let last_id = handle.shared.last_id();
        pass(
            baton,
            &Message::Final {
                connections,
                sum,
                last_id,
            },
            &[],
            until,
        )?;
        loop {
            match baton.line.take(until) {
                Ok((Message::Prepared, _)) => break,
                Ok((Message::Taken(_), _)) => {}
                Ok((Message::Abort(why), _)) => return Err(why),
                Ok(_) => return Err("the new process said something out of turn".to_owned()),
                Err(error) => return Err(lost(&error)),
            }
        }
        if handle.is_ending() {
            return Err("the running server was told to end".to_owned());
        }
        let frozen = now().saturating_duration_since(start);
        let frozen_micros = u64::try_from(frozen.as_micros()).unwrap_or(u64::MAX);
        // Once this is in the queue, no connection is touched here any more.
        pass(baton, &Message::Commit { frozen_micros }, &[lock], until)?;
        Ok(frozen)
    });
    let outcome = if frozen.is_ok() {
        Outcome::Committed
    } else {
        Outcome::Resumed
    };
    if frozen.is_ok() {
        handle.shared.given();
    }
    for worker in outcomes {
        // A worker that has failed has gone on already.
        let _ = worker.send(outcome);
    }
    Ok(Takeover {
        connections,
        frozen: frozen?,
    })
}

fn pass(
    baton: &Baton,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
    until: Instant,
) -> Result<(), String> {
    let bytes = message.encode()?;
    baton
        .line
        .pass(&bytes, descriptors, Some(until))
        .map_err(|error| lost(&error))
}
