//! What a server finds of the one before it, which was killed: its connections, each as it was, or why it cannot go on.

mod again;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::io::{Accounted, Io};
use crate::liveness::close::{self, CloseReason, Ending};
use crate::liveness::multipath;
use crate::os::descriptors::reserve_descriptors;
use crate::os::kept::Stored;
use crate::os::sys::mapping::Mapping;
use crate::os::threads;
use crate::service::Survive;
use crate::time::deadline::Moment;
use crate::vault::arena::{Arena, BUFFER};
use crate::vault::blocks;
use crate::vault::noted::{self, Noted};
use crate::vault::queue::{self, Entry, NAME, OWN, Socket};
use crate::vault::slot::Slot;
use crate::wire::line::shared_clock;
use crate::wire::record::{Arrival, ListenerRecord, Piece, Record};

/// What one worker has left.
#[derive(Debug)]
pub(crate) struct Former {
    /// No connection had a higher number.
    pub(crate) last_id: u64,
    pub(crate) found: Vec<Found>,
    /// For some of them somebody is to be dialled.
    pub(crate) dials: bool,
    /// Those on their way to another worker, which may have them by now.
    moving: Vec<Found>,
}

/// A connection that it had.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) socket: OwnedFd,
    /// The descriptors beside it.
    pub(crate) along: Vec<OwnedFd>,
    /// As in a takeover.
    pub(crate) arrival: Arrival,
    /// Its bytes that wait.
    pub(crate) output: Piece,
    pub(crate) input: Piece,
    /// Of the far side's output.
    pub(crate) far: Piece,
    /// It was just being served.
    pub(crate) in_step: bool,
    /// Why it cannot go on.
    pub(crate) amiss: Option<&'static str>,
    /// Somebody else has its socket, too.
    pub(crate) is_given_away: bool,
}

/// Makes room for the descriptors of what is stored there, in one step.
///
/// For a program's start, before it has threads: once it has, the system makes the program wait for up to some 10 ms.
pub fn make_room_for(stored: &[Arc<Stored>]) {
    let queues = stored.iter().filter(|one| one.name.starts_with(NAME));
    let queues = queues.filter_map(|one| match &one.descriptors[..] {
        [_, far] => Some(queue::waiting(far)),
        _ => None,
    });
    reserve_descriptors(queues.sum());
}

/// What the workers of a former server have left in `stored`. `goes_on`: this server's number of one of its listeners, and what
/// is to become of its connections; with none they are ended here.
pub(crate) fn found(
    stored: &[Arc<Stored>],
    goes_on: impl Fn(&ListenerRecord) -> Option<(u16, Survive)> + Sync,
) -> Vec<Former> {
    make_room_for(stored);
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
    let workers = workers.into_values().collect();
    let formers = threads::share("found", workers, |(arena, queues)| {
        let former = arena.map(|arena| Finding::of(arena)?.former(&queues, &goes_on))?;
        former
            .map_err(|error| log::error!(error = error.as_str(); "cannot go on with what the former server had"))
            .ok()
    });
    let mut formers: Vec<Former> = formers.into_iter().flatten().collect();
    if formers.iter().all(|former| former.moving.is_empty()) {
        return formers;
    }
    let there = formers.iter().flat_map(|former| &former.found);
    let there: HashSet<u64> = there.map(|one| one.arrival.record.id).collect();
    for former in &mut formers {
        let moving = std::mem::take(&mut former.moving).into_iter();
        let moving = moving.filter(|one| !there.contains(&one.arrival.record.id));
        former.found.extend(moving);
        former.dials = true;
    }
    formers
}

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
        goes_on: &impl Fn(&ListenerRecord) -> Option<(u16, Survive)>,
    ) -> Result<Former, String> {
        let mut sockets: Vec<Socket> = Vec::new();
        let moving: BTreeMap<u64, Vec<u8>> = self.arena.moving.each().collect();
        let mut sockets_moving: BTreeMap<u64, OwnedFd> = BTreeMap::new();
        for far in queues {
            sockets.reserve(queue::waiting(far));
            let looked = queue::look(far, |entry, socket| {
                let is_of = |id: u64| entry == Entry::new(entry.key, entry.place, id);
                let there = self.arena.who(entry.key as usize);
                if there.is_some_and(|(id, _)| is_of(id)) {
                    sockets.push((entry.key, entry.place, socket));
                } else if entry.place == OWN
                    && let Some(id) = moving.keys().find(|id| is_of(**id))
                {
                    sockets_moving.insert(*id, socket);
                }
            });
            if let Err(error) = looked {
                log::error!(error:%; "some of the former server's connections are lost");
            }
        }
        let each: Vec<Option<(u16, Survive)>> = self.listeners.iter().map(goes_on).collect();
        // Two who look see the same, in one order; of what is there twice, as while it is sent anew, the last counts.
        sockets.sort_by_key(|(key, place, _)| (*key, *place));
        let mut sockets = sockets.into_iter().peekable();
        let (mut found, mut dials) = (Vec::with_capacity(sockets.len()), false);
        while let Some((key, own, along)) = queue::next(&mut sockets) {
            if let Some(socket) = own
                && let Some(Ok(slot)) = self.arena.slot(key as usize)
                && let Some(goes_on) = each.get(usize::from(slot.listener))
            {
                let Some((ours, survive)) = *goes_on else {
                    self.end(&slot, &socket);
                    continue;
                };
                let mut one = self.connection(key as usize, &slot, (socket, along), survive);
                one.arrival.listener = ours;
                dials |= one.arrival.record.dialing;
                found.push(one);
            }
        }
        let moving = sockets_moving.into_iter().filter_map(|(id, socket)| {
            let mut found = self.on_its_way(moving.get(&id)?, socket)?;
            let (ours, survive) = (*each.get(usize::from(found.arrival.listener))?)?;
            found.arrival.listener = ours;
            (survive == Survive::Relay).then_some(found)
        });
        let moving = moving.collect();
        Ok(Former {
            moving,
            last_id: self.arena.last_id(),
            dials,
            found,
        })
    }

    /// A connection ends of a listener that this server does not have: its settings are others.
    fn end(&self, slot: &Slot, socket: &OwnedFd) {
        close::end_shared(socket, &Ending::reset(CloseReason::Crash));
        let listener = self.listeners.get(usize::from(slot.listener));
        let listener = listener.map(|it| it.address.to_string());
        let (id, peer) = (slot.id, slot.peer);
        log::error!(id, peer:%, listener = listener.as_deref(), reason:% = CloseReason::Crash, detail = "this server does not listen there, or with another service"; "closed");
    }

    /// One that was on its way to another worker.
    fn on_its_way(&self, record: &[u8], socket: OwnedFd) -> Option<Found> {
        let noted: Noted = postcard::from_bytes(record).ok()?;
        let passed = self.since(noted.at);
        let mut arrival = noted.arrival;
        arrival.age = arrival.age.saturating_add(passed);
        let record = &mut arrival.record;
        record.silence = record.silence.saturating_add(passed);
        noted::pass(record, passed);
        Some(Found {
            socket,
            along: Vec::new(),
            output: Piece::default(),
            input: Piece::default(),
            far: Piece::default(),
            arrival,
            in_step: false,
            amiss: None,
            is_given_away: false,
        })
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
        let step = self.arena.step().filter(|(at, ..)| *at == key);
        let mut found = Found {
            socket,
            along,
            arrival: self.plain(slot),
            output: Piece::default(),
            input: Piece::default(),
            far: Piece::default(),
            in_step: step.is_some(),
            amiss: None,
            is_given_away: false,
        };
        let step = step.map(|(_, read, far_read)| (read, far_read));
        let restored = self.noted(slot, &mut found).and_then(|noted| {
            if step.is_some() && noted.was_suspect && !found.arrival.record.given_away {
                return Err("its input has crashed the server twice");
            }
            match survive {
                Survive::Close => Err("its listener's service does not go on with it"),
                Survive::Relay => self.relay((key, slot), step, noted, &mut found),
                Survive::Fresh | Survive::State | Survive::Journal => {
                    self.given_again(slot, step, noted, (&mut found, survive))
                }
                Survive::Echo | Survive::Discard => {
                    self.answer(slot, step, noted, (&mut found, survive))
                }
            }
        });
        found.amiss = restored.err();
        // What came too early or too late to be noted is nobody's.
        if found.amiss.is_none() {
            found.along.truncate(found.arrival.along.into());
        }
        if found.along.len() < found.arrival.along.into() {
            found.amiss = found.amiss.or(Some("what stands beside it is not there"));
        }
        found
    }

    /// A connection of which its slot says everything.
    fn plain(&self, slot: &Slot) -> Arrival {
        Arrival {
            listener: slot.listener,
            peer: slot.peer,
            dialled: None,
            age: self.since(slot.opened),
            along: 0,
            record: Record {
                id: slot.id,
                silence: self.since(slot.last_in),
                read: slot.read,
                written: slot.written,
                input_at: slot.read,
                ..Record::default()
            },
        }
    }

    /// What its record says, if it has one, as it is now.
    ///
    /// # Errors
    /// Why that cannot be said.
    fn noted(&mut self, slot: &Slot, found: &mut Found) -> Result<Beside, &'static str> {
        let mut beside = Beside {
            outputs: [(slot.written, Vec::new()), (0, Vec::new())],
            input: Vec::new(),
            was_suspect: false,
            ahead: None,
        };
        if slot.chain == 0 {
            return Ok(beside);
        }
        let read = blocks::read(&mut self.arena, slot.chain)?;
        let noted: Noted =
            postcard::from_bytes(&read.record).map_err(|_| "its record cannot be read")?;
        if noted.arrival.record.id != slot.id || noted.arrival.listener != slot.listener {
            return Err("its record is another's");
        }
        beside = Beside {
            outputs: read.outputs,
            input: noted.input,
            was_suspect: read.suspect,
            ahead: Some((noted.ahead, noted.far_ahead)),
        };
        let passed = self.since(noted.at);
        let (age, silence) = (found.arrival.age, found.arrival.record.silence);
        found.arrival = noted.arrival;
        found.arrival.age = age;
        let record = &mut found.arrival.record;
        if !noted.stopped {
            record.silence = silence;
        }
        noted::pass(record, passed);
        if let Some(far) = &mut record.far {
            noted::pass(&mut far.1, passed);
        }
        Ok(beside)
    }

    /// How a connection stands each of whose bytes is answered by itself, or none.
    ///
    /// # Errors
    /// Why that cannot be said.
    fn answer(
        &mut self,
        slot: &Slot,
        step: Option<(u64, u64)>,
        beside: Beside,
        (found, survive): (&mut Found, Survive),
    ) -> Result<(), &'static str> {
        let record = &mut found.arrival.record;
        let was_open = !record.ended && record.finishing.is_none() && record.failed.is_none();
        let [output, _] = beside.outputs;
        let near = Side::of(record, output, (slot.read, slot.written))
            .counted(step.map(|_| account(&found.socket, false)))?;
        if near.takes_fin(record) {
            // Why, nobody has noted; as a rule the client had sent its own.
            end(record);
        }
        let came = Came {
            begun: step.map_or(slot.read, |(begun, _)| begun),
            read: near.read,
            ahead: -slot.skew.cast_signed(),
            buffer: self.buffer.bytes(),
        };
        let came = was_open.then_some(came);
        found.output = match survive {
            Survive::Echo => near.output(record, came)?,
            _ => Side { settled: 0, ..near }.output(record, None)?,
        };
        Ok(())
    }

    /// How both sides of a relay stand.
    ///
    /// # Errors
    /// Why that cannot be said.
    fn relay(
        &mut self,
        (key, slot): (usize, &Slot),
        step: Option<(u64, u64)>,
        beside: Beside,
        found: &mut Found,
    ) -> Result<(), &'static str> {
        let (ahead, far_ahead) = beside.ahead.ok_or("nobody had noted how it stands")?;
        let (far_cookie, far_read, far_written) = self.arena.far(key).unwrap_or_default();
        let (begun, far_begun) = step.unwrap_or((slot.read, far_read));
        let arrival = &mut found.arrival;
        let record = &mut arrival.record;
        let its = |socket: &&OwnedFd| rustix::net::sockopt::socket_cookie(socket) == Ok(far_cookie);
        let far_socket = found.along.first().filter(its);
        if record.far.is_some() && far_socket.is_none() {
            // The turn in which it came was the last one: nothing was read before it would have been found.
            if (slot.read, slot.written, far_read) != (slot.skew, 0, 0) {
                return Err("its far side is not there");
            }
            (record.far, record.dialing, arrival.along) = (None, true, 0);
        }
        let [output, far_output] = beside.outputs;
        let near = Side::of(record, output, (slot.read, slot.written))
            .counted(step.map(|_| account(&found.socket, false)))?;
        let is_open = record.finishing.is_none();
        let (Some((_, far)), Some(far_socket)) = (record.far.as_deref_mut(), far_socket) else {
            // Without one nothing is read, and nothing comes.
            if near.read != begun {
                return Err("it was read, and nobody knows for whom");
            }
            if near.takes_fin(record) {
                end(record);
            }
            found.output = near.output(record, None)?;
            return Ok(());
        };
        let upstream = Side::of(far, far_output, (far_read, far_written))
            .counted(step.map(|_| account(far_socket, true)))?;
        let (buffer, far_buffer) = self.buffer.bytes().split_at(BUFFER);
        let came = Came {
            begun,
            read: near.read,
            ahead: far_ahead,
            buffer,
        };
        let far_came = Came {
            begun: far_begun,
            read: upstream.read,
            ahead,
            buffer: far_buffer,
        };
        // What came otherwise was not passed on.
        let came = (is_open && !record.ended && far.failed.is_none()).then_some(came);
        let far_came = (is_open && record.failed.is_none()).then_some(far_came);
        // A FIN is passed on; any other is of an end that began in that step, and nobody has noted for which reason.
        let cut = upstream.takes_fin(far) && !near.has_ended();
        found.far = upstream.output(far, came)?;
        far.shifted = true;
        let cut = near.takes_fin(record) && !upstream.has_ended() || cut;
        found.output = near.output(record, far_came)?;
        record.shifted = true;
        if cut {
            end(record);
        }
        Ok(())
    }
}

/// Microseconds until it is looked whether what was sent is acknowledged.
const SOON: u64 = 1_000_000;

const TOO_MUCH: &str = "more was written than there was";

/// What a connection has beside its slot.
struct Beside {
    /// Its output that was noted, and its far side's, each with its position.
    outputs: [(u64, Vec<u8>); 2],
    /// Input that its service had left.
    input: Vec<u8>,
    was_suspect: bool,
    /// By how much its output was ahead of what was read of its far side, and the other way round.
    ahead: Option<(i64, i64)>,
}

/// It was ending.
fn end(record: &mut Record) {
    let reason = u8::try_from(CloseReason::PeerClosed as usize).ok();
    record.finishing = record.finishing.or(reason);
    record.ended = true;
}

/// How far a socket has come.
struct Side {
    read: u64,
    written: u64,
    /// Where its output ended when that was noted last; what waited of it, and the position of that.
    settled: u64,
    kept: (u64, Vec<u8>),
    /// The kernel's account, where nobody has noted how far it has come since.
    account: Option<Accounted>,
}

/// What was read that is output elsewhere: what of it is not noted there was just being read into `buffer`.
struct Came<'a> {
    /// The step began with so much read, and ended with so much.
    begun: u64,
    read: u64,
    /// What was read there goes to a position so much farther on.
    ahead: i64,
    buffer: &'a [u8],
}

impl Side {
    fn of(record: &Record, kept: (u64, Vec<u8>), (read, written): (u64, u64)) -> Self {
        Self {
            read,
            written,
            settled: record.output_end(),
            kept,
            account: None,
        }
    }

    /// It was just being served: so far it has come.
    ///
    /// # Errors
    /// The system does not say so.
    fn counted(self, account: Option<Option<Accounted>>) -> Result<Self, &'static str> {
        let Some(account) = account else {
            return Ok(self);
        };
        let account =
            account.ok_or("it was just being served, and the system keeps no account of it")?;
        Ok(Self {
            read: account.read,
            written: account.written,
            account: Some(account),
            ..self
        })
    }

    /// Whether a FIN was sent to it that is not noted. It is now.
    fn takes_fin(&self, record: &mut Record) -> bool {
        let sent = self.account.is_some_and(|account| account.fin_sent) && !record.fin_sent;
        record.fin_sent |= sent;
        record.fin_wanted |= sent;
        sent
    }

    /// Whether its own FIN had come by then.
    fn has_ended(&self) -> bool {
        self.account.is_some_and(|account| account.peer_fin)
    }

    /// Its output that is left, and in its record how far it has come.
    ///
    /// # Errors
    /// There is less of it than was written, or not all of it.
    fn output(&self, record: &mut Record, came: Option<Came<'_>>) -> Result<Piece, &'static str> {
        let end = match &came {
            _ if record.fin_sent => Some(self.written),
            Some(came) => came.read.checked_add_signed(came.ahead),
            None => Some(self.settled.max(self.written)),
        };
        let end = end.filter(|end| self.written <= *end).ok_or(TOO_MUCH)?;
        let bytes = self
            .bytes(end, came)
            .ok_or("some of its bytes are not there")?;
        (record.read, record.written) = (self.read, self.written);
        record.output = bytes.len() as u64;
        record.input_at = self.read;
        record.look_at = Some(record.look_at.map_or(SOON, |at| at.min(SOON)));
        Ok(Piece {
            at: self.written,
            bytes,
        })
    }

    /// From what was written on to that position.
    fn bytes(&self, end: u64, came: Option<Came<'_>>) -> Option<Vec<u8>> {
        let (mut at, mut output) = (self.written, Vec::new());
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
            let _ = take(&mut at, self.kept.0, &self.kept.1);
        }
        if at < end
            && let Some(came) = came
        {
            let length = usize::try_from(came.read.checked_sub(came.begun)?).ok()?;
            let bytes = came.buffer.get(..length)?;
            take(&mut at, came.begun.checked_add_signed(came.ahead)?, bytes)?;
        }
        (at == end).then_some(output)
    }
}

/// The kernel's of a socket.
fn account(socket: &OwnedFd, dialled: bool) -> Option<Accounted> {
    // What is counted of that are its first path's bytes.
    if multipath::is_multipath(socket) {
        return None;
    }
    let socket = socket.as_fd().try_clone_to_owned().ok()?;
    let nobody = crate::address::endpoint::Peer::Unix(None);
    let io = Io::new(socket, 0, nobody, 0, Moment::at_start());
    io.accounted(dialled, Moment::at_start())
}
