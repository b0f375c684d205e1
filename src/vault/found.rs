//! What a server finds of the one before it, which was killed: its connections, each as it was, or why it cannot go on.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::io::{Accounted, Io};
use crate::liveness::close::CloseReason;
use crate::liveness::multipath;
use crate::os::kept::Stored;
use crate::os::sys::mapping::Mapping;
use crate::service::Survive;
use crate::time::deadline::Moment;
use crate::vault::arena::{Arena, BUFFER, Slot};
use crate::vault::queue::{self, Entry, OWN};
use crate::vault::{NAME, blocks};
use crate::wire::line::shared_clock;
use crate::wire::record::{Arrival, ListenerRecord, Piece, Record, Update};

/// What one worker has left.
#[derive(Debug)]
pub(crate) struct Former {
    pub(crate) listeners: Vec<ListenerRecord>,
    /// No connection had a higher number.
    pub(crate) last_id: u64,
    pub(crate) found: Vec<Found>,
}

/// A connection that it had.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) socket: OwnedFd,
    /// The descriptors beside it.
    pub(crate) along: Vec<OwnedFd>,
    /// As in a takeover; by the former server's number of the listener.
    pub(crate) arrival: Arrival,
    /// What comes behind that.
    pub(crate) update: Update,
    /// It was just being served.
    pub(crate) in_step: bool,
    /// Why it cannot go on.
    pub(crate) amiss: Option<&'static str>,
}

/// What the workers of a former server have left in `stored`. `survive`: what is to become of a listener's connections.
pub(crate) fn found(
    stored: &[Arc<Stored>],
    survive: impl Fn(&ListenerRecord) -> Survive,
) -> Vec<Former> {
    let mut workers: BTreeMap<usize, (Option<&OwnedFd>, Vec<&OwnedFd>)> = BTreeMap::new();
    for one in stored {
        let mut parts = one.name.split('-');
        let is_ours = parts.next() == Some(NAME);
        let worker = parts.next().and_then(|worker| worker.parse().ok());
        let Some(worker) = worker.filter(|_| is_ours) else {
            continue;
        };
        let entry = workers.entry(worker).or_default();
        match (parts.next(), &one.descriptors[..]) {
            (None, [arena]) => entry.0 = Some(arena),
            (Some(_), [_, far]) => entry.1.push(far),
            _ => {}
        }
    }
    let formers = workers.into_values().filter_map(|(arena, queues)| {
        let former = arena.map(|arena| Finding::of(arena)?.former(&queues, &survive))?;
        former
            .map_err(|error| log::error!(error = error.as_str(); "cannot go on with what the former server had"))
            .ok()
    });
    formers.collect()
}

/// A connection's descriptors, by their places.
type Sockets = BTreeMap<u8, OwnedFd>;

/// One worker's memory, while it is looked through.
struct Finding {
    arena: Arena,
    buffer: Mapping,
    listeners: Vec<ListenerRecord>,
    now: u64,
}

impl Finding {
    fn of(arena: &OwnedFd) -> Result<Self, String> {
        let file = arena.try_clone().map_err(|error| error.to_string())?;
        let (arena, listeners) = Arena::found(file)?;
        Ok(Self {
            buffer: arena.buffer().map_err(|error| error.to_string())?,
            arena,
            listeners,
            now: shared_clock(),
        })
    }

    fn former(
        mut self,
        queues: &[&OwnedFd],
        survive: &impl Fn(&ListenerRecord) -> Survive,
    ) -> Result<Former, String> {
        // In the order of the keys, so that two who look see the same.
        let mut sockets: BTreeMap<u32, Sockets> = BTreeMap::new();
        for far in queues {
            let looked = queue::look(far, |entry, socket| {
                if self.is_its(entry, &socket) {
                    let sockets = sockets.entry(entry.key).or_default();
                    sockets.insert(entry.place, socket);
                }
            });
            if let Err(error) = looked {
                log::error!(error:%; "some of the former server's connections are lost");
            }
        }
        let each: Vec<Survive> = self.listeners.iter().map(survive).collect();
        let found = sockets.into_iter().filter_map(|(key, mut sockets)| {
            let socket = sockets.remove(&OWN)?;
            let slot = self.arena.slot(key as usize)?.ok()?;
            let survive = *each.get(usize::from(slot.listener))?;
            let sockets = (socket, sockets.into_values().collect());
            Some(self.connection(key as usize, &slot, sockets, survive))
        });
        let found = found.collect();
        Ok(Former {
            last_id: self.arena.last_id(),
            listeners: self.listeners,
            found,
        })
    }

    /// Whether a descriptor is one of the connection that is in that slot.
    fn is_its(&self, entry: Entry, socket: &OwnedFd) -> bool {
        let key = entry.key as usize;
        let Some((cookie, _)) = self.arena.who(key) else {
            return false;
        };
        match entry.place {
            OWN => rustix::net::sockopt::socket_cookie(socket) == Ok(cookie),
            place => {
                let id = self.arena.id(key);
                id.is_some_and(|id| entry == Entry::new(entry.key, place, id))
            }
        }
    }

    /// Time since then, in microseconds.
    fn since(&self, moment: u64) -> u64 {
        let clocks = self.arena.clocks;
        let then = clocks.shared.wrapping_add(moment.wrapping_sub(clocks.own));
        self.now.saturating_sub(then) / 1000
    }

    fn connection(
        &mut self,
        key: usize,
        slot: &Slot,
        (socket, along): (OwnedFd, Vec<OwnedFd>),
        survive: Survive,
    ) -> Found {
        let step = self.arena.step().filter(|(at, _)| *at == key);
        let mut found = Found {
            socket,
            along,
            arrival: self.plain(slot),
            update: Update {
                record: self.plain(slot).record,
                output: Piece::default(),
                input: Piece::default(),
                far: Piece::default(),
            },
            in_step: step.is_some(),
            amiss: None,
        };
        let output = match survive {
            Survive::Close => Err("its listener's service does not go on with it"),
            _ => self.output(slot, step, &mut found, survive),
        };
        match output {
            Ok(output) => {
                let record = &mut found.arrival.record;
                record.output = output.len() as u64;
                record.input_at = record.read;
                found.update.output = Piece {
                    at: record.written,
                    bytes: output,
                };
            }
            Err(amiss) => found.amiss = Some(amiss),
        }
        // What came too early or too late to be noted is nobody's.
        found.along.truncate(found.arrival.along.into());
        if found.along.len() < found.arrival.along.into() {
            found.amiss = Some("what stands beside it is not there");
        }
        found.update.record = found.arrival.record.clone();
        found
    }

    /// A connection of which its slot says everything.
    fn plain(&self, slot: &Slot) -> Arrival {
        /// What may have been unacknowledged is looked at soon.
        const SOON: u64 = 1_000_000;
        Arrival {
            listener: slot.listener,
            peer: slot.peer,
            dialled: None,
            age: self.since(slot.opened),
            along: 0,
            record: Record {
                id: slot.id,
                silence: self.since(slot.last_in),
                shifted: false,
                read: slot.read,
                written: slot.written,
                output: 0,
                input_at: slot.read,
                input: 0,
                peer_fin: false,
                fin_wanted: false,
                fin_sent: false,
                ended: false,
                finishing: None,
                failed: None,
                progress: None,
                look_at: Some(SOON),
                linger: None,
                dialing: false,
                far: None,
                given_away: false,
                alarm: None,
                state_schema: 0,
                state: Vec::new(),
            },
        }
    }

    /// How the connection stands, and the output that is left of it.
    ///
    /// # Errors
    /// Why that cannot be said.
    fn output(
        &mut self,
        slot: &Slot,
        step: Option<(usize, u64)>,
        found: &mut Found,
        survive: Survive,
    ) -> Result<Vec<u8>, &'static str> {
        let (mut chain_at, mut chain) = (slot.written, Vec::new());
        let mut was_suspect = false;
        if slot.chain != 0 {
            let read = blocks::read(&mut self.arena, slot.chain);
            let (record, suspect, at, output) = read.map_err(|_| "its record was damaged")?;
            let arrival: Arrival =
                postcard::from_bytes(&record).map_err(|_| "its record cannot be read")?;
            if arrival.record.id != slot.id || arrival.listener != slot.listener {
                return Err("its record is another's");
            }
            was_suspect = suspect;
            let (age, silence) = (found.arrival.age, found.arrival.record.silence);
            found.arrival = arrival;
            found.arrival.age = age;
            found.arrival.record.silence = silence;
            (chain_at, chain) = (at, output);
        }
        let record = &mut found.arrival.record;
        let settled = record.output_end();
        let was_open = !record.ended && record.finishing.is_none() && record.failed.is_none();
        let begun = match step {
            Some(_) if was_suspect => return Err("its input has crashed the server twice"),
            Some((_, begun)) => {
                // Nobody has noted how far it came: the kernel knows.
                let account = account(&found.socket)
                    .ok_or("it was just being served, and the system keeps no account of it")?;
                (record.read, record.written) = (account.read, account.written);
                if account.fin_sent && !record.fin_sent {
                    // Why, nobody has noted either; as a rule the client had sent its own.
                    let reason = u8::try_from(CloseReason::PeerClosed as usize).ok();
                    record.finishing = record.finishing.or(reason);
                    (record.fin_sent, record.ended) = (true, true);
                }
                begun
            }
            None => {
                (record.read, record.written) = (slot.read, slot.written);
                slot.read
            }
        };
        if survive != Survive::Echo {
            return Ok(Vec::new());
        }
        let (read, written) = (record.read, record.written);
        let end = match was_open {
            true => read.checked_sub(slot.skew),
            // What came then was not answered.
            false => Some(settled.max(written)),
        };
        let end = end.filter(|end| written <= *end);
        let end = end.ok_or("more was written than there was")?;
        self.between(written..end, (chain_at, &chain), (begun, read, slot.skew))
            .ok_or("some of its bytes are not there")
    }

    /// The output at those positions: of the chain, and behind that of what was just being read, from `begun` on.
    fn between(
        &mut self,
        wanted: std::ops::Range<u64>,
        (chain_at, chain): (u64, &[u8]),
        (begun, read, skew): (u64, u64, u64),
    ) -> Option<Vec<u8>> {
        let (mut at, end) = (wanted.start, wanted.end);
        let mut output = Vec::new();
        let mut take = |at: &mut u64, from: u64, bytes: &[u8]| {
            let skip = usize::try_from(at.checked_sub(from)?).ok()?;
            let most = usize::try_from(end - *at).ok()?;
            let piece = bytes.get(skip..)?;
            let piece = piece.get(..most).unwrap_or(piece);
            output.extend_from_slice(piece);
            *at += piece.len() as u64;
            Some(())
        };
        if at < end {
            // There may be none of it there.
            let _ = take(&mut at, chain_at, chain);
        }
        if at < end {
            let length = usize::try_from(read.checked_sub(begun)?).ok()?;
            let bytes = self.buffer.bytes().get(..length.min(BUFFER + 1))?;
            take(&mut at, begun.checked_sub(skew)?, bytes)?;
        }
        (at == end).then_some(output)
    }
}

fn account(socket: &OwnedFd) -> Option<Accounted> {
    // What is counted of that are its first path's bytes.
    if multipath::is_multipath(socket) {
        return None;
    }
    let socket = socket.as_fd().try_clone_to_owned().ok()?;
    let nobody = crate::address::endpoint::Peer::Unix(None);
    let io = Io::new(socket, 0, nobody, 0, Moment::at_start());
    io.accounted(Moment::at_start())
}
