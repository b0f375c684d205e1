//! The new process's side: asks for the baton, takes everything in, and answers for it from the commit on.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use mio::net::TcpStream;

use crate::connection::Connection;
use crate::control::wire::{Hello, Line, now};
use crate::deadline::Moment;
use crate::handoff::record::{ListenerRecord, Message, PROTOCOL, Record, SCHEMA};
use crate::service::AnyService;
use crate::worker::Worker;

/// How long the old process may leave us without a word.
const PATIENCE: Duration = Duration::from_secs(30);

/// The old process, while it gives.
#[derive(Debug)]
pub(crate) struct Giver {
    line: Line,
}

/// What was taken over.
#[derive(Debug)]
pub(crate) struct Taken {
    line: Line,
    /// The lock of the control socket.
    pub(crate) lock: Option<OwnedFd>,
    pub(crate) connections: u64,
    /// How long the old process's workers had stood still at the commit.
    pub(crate) frozen: Duration,
    pub(crate) last_id: u64,
}

/// What this process says of itself.
pub(crate) fn hello(listeners: Vec<(SocketAddr, String)>, max_conns: usize) -> Hello {
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
    }
}

/// This process's network namespace, as the system names it; empty where it does not.
pub(crate) fn network() -> String {
    let link = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// Faults that the tests put into the new process, one at a time, by the variable `STANDFAST_FAULT`.
pub(crate) fn fault(name: &str) -> bool {
    std::env::var_os("STANDFAST_FAULT").is_some_and(|fault| fault == name)
}

/// Dies or hangs, if that is the fault for this phase.
pub(crate) fn may_fail(phase: &str) {
    if fault(&format!("abort-{phase}")) {
        std::process::abort();
    }
    while fault(&format!("hang-{phase}")) {
        std::thread::park_timeout(Duration::from_secs(3600));
    }
}

impl Giver {
    /// Takes the listeners in, as the old process has them in its order.
    pub(crate) fn listeners(line: Line) -> io::Result<(Self, Vec<(ListenerRecord, TcpListener)>)> {
        line.widen();
        match line.take(now() + PATIENCE)? {
            (Message::Listeners(records), descriptors) if records.len() == descriptors.len() => {
                let sockets = descriptors.into_iter().map(TcpListener::from);
                Ok((Self { line }, records.into_iter().zip(sockets).collect()))
            }
            (Message::Abort(why), _) => Err(io::Error::other(why)),
            _ => Err(invalid("listeners and their descriptors do not match")),
        }
    }

    /// Takes every connection in, until the commit.
    ///
    /// `listener_of`: our number of each of the old process's listeners. `place`: which worker takes the next one.
    ///
    /// # Errors
    /// Nothing is ours then; dropping what was taken in leaves the old process's connections alone.
    pub(crate) fn connections(
        self,
        workers: &mut [Worker],
        listener_of: &[u16],
        place: impl Fn() -> usize,
    ) -> io::Result<Taken> {
        let mut taking = Taking {
            places: HashMap::new(),
            sum: 0,
            changed: vec![Vec::new(); workers.len()],
        };
        let last_id = loop {
            let (message, descriptors) = self.line.take(now() + PATIENCE)?;
            match message {
                Message::Connections(mut records) => {
                    if records.len() != descriptors.len() {
                        return Err(self.abort("connections and their descriptors do not match"));
                    }
                    for (record, descriptor) in records.iter_mut().zip(descriptors) {
                        renumber(record, listener_of).map_err(|why| self.abort(&why))?;
                        taking
                            .add(workers, place(), record, descriptor)
                            .map_err(|why| self.abort(&why))?;
                    }
                    may_fail("pre-copy");
                    self.say(&Message::Taken(1))?;
                }
                Message::Updates(mut records) => {
                    for record in &mut records {
                        renumber(record, listener_of)
                            .and_then(|()| taking.update(workers, record))
                            .map_err(|why| self.abort(&why))?;
                    }
                }
                Message::Piece {
                    id,
                    which,
                    at,
                    bytes,
                } => {
                    let (connection, ..) =
                        taking.find(workers, id).map_err(|why| self.abort(&why))?;
                    connection
                        .io
                        .take_piece(which, at, &bytes)
                        .map_err(|why| self.abort(&why))?;
                }
                Message::Gone(ids) => {
                    for id in ids {
                        taking.forget(workers, id).map_err(|why| self.abort(&why))?;
                    }
                }
                Message::Final {
                    connections,
                    sum,
                    last_id,
                } => {
                    may_fail("freeze");
                    if taking.places.len() as u64 != connections || taking.sum != sum {
                        return Err(self.abort("connections were lost on the way"));
                    }
                    break last_id;
                }
                _ => return Err(self.abort("something out of turn was said")),
            }
        };
        self.say(&Message::Prepared)?;
        match self.line.take(now() + PATIENCE)? {
            (Message::Commit { frozen_micros }, mut descriptors) if descriptors.len() == 1 => {
                // From here on they are ours.
                for (worker, changed) in workers.iter_mut().zip(taking.changed) {
                    worker.own(changed);
                }
                let lock = descriptors.pop();
                Ok(Taken {
                    line: self.line,
                    lock,
                    connections: taking.places.len() as u64,
                    frozen: Duration::from_micros(frozen_micros),
                    last_id,
                })
            }
            _ => Err(invalid("the running server went on")),
        }
    }

    fn say(&self, message: &Message) -> io::Result<()> {
        say(&self.line, message)
    }

    /// Tells the old process why this one gives up, and answers it as an error.
    pub(crate) fn abort(&self, why: &str) -> io::Error {
        // It may have gone, which is as well.
        let _ = self.say(&Message::Abort(why.to_owned()));
        invalid(why)
    }
}

impl Taken {
    /// Tells the old process that this one serves.
    pub(crate) fn running(&self) -> io::Result<()> {
        say(&self.line, &Message::Running)
    }
}

fn say(line: &Line, message: &Message) -> io::Result<()> {
    let bytes = message.encode().map_err(|why| invalid(&why))?;
    line.pass(&bytes, &[], Some(now() + PATIENCE))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// The old process's number of a listener becomes ours.
fn renumber(record: &mut Record, listener_of: &[u16]) -> Result<(), String> {
    let ours = listener_of.get(usize::from(record.listener));
    record.listener = *ours.ok_or("a connection of no listener")?;
    Ok(())
}

/// What has been taken in so far.
struct Taking {
    /// Worker and key of each connection, by its number.
    places: HashMap<u64, (usize, usize)>,
    sum: u64,
    /// By worker: connections that are to be served first.
    changed: Vec<Vec<usize>>,
}

impl Taking {
    fn add(
        &mut self,
        workers: &mut [Worker],
        at: usize,
        record: &Record,
        descriptor: OwnedFd,
    ) -> Result<(), String> {
        let worker = workers.get_mut(at).ok_or("no such worker")?;
        let key = worker.import(record, TcpStream::from_std(descriptor.into()))?;
        if self.places.insert(record.id, (at, key)).is_some() {
            return Err("the same connection twice".to_owned());
        }
        self.sum = self.sum.wrapping_add(record.id);
        Ok(())
    }

    fn find<'a>(
        &self,
        workers: &'a mut [Worker],
        id: u64,
    ) -> Result<(&'a mut Connection, &'a AnyService, Moment), String> {
        let &(at, key) = self
            .places
            .get(&id)
            .ok_or("a connection that was never sent")?;
        let worker = workers.get_mut(at).ok_or("no such worker")?;
        worker
            .imported(key)
            .ok_or_else(|| "a connection that was forgotten".to_owned())
    }

    fn update(&mut self, workers: &mut [Worker], record: &Record) -> Result<(), String> {
        let (connection, service, now) = self.find(workers, record.id)?;
        connection.update(record, service, now)?;
        if let Some(&(at, key)) = self.places.get(&record.id)
            && let Some(changed) = self.changed.get_mut(at)
        {
            changed.push(key);
        }
        Ok(())
    }

    fn forget(&mut self, workers: &mut [Worker], id: u64) -> Result<(), String> {
        let (at, key) = self
            .places
            .remove(&id)
            .ok_or("a connection that was never sent")?;
        self.sum = self.sum.wrapping_sub(id);
        workers.get_mut(at).ok_or("no such worker")?.forget(key);
        Ok(())
    }
}
