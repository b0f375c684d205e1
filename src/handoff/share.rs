//! A worker's part of giving: its connections, copied while it serves and completed in the freeze.

mod sessions;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::connection::Connection;
use crate::handoff::carry::MOST_ALONG;
use crate::handoff::piece::piece;
use crate::io::Io;
use crate::io::marks::Mark;
use crate::listen::origin::Origin;
use crate::service::AnyService;
use crate::time::deadline::Moment;
use crate::wire::baton::{Baton, Event, Failure, Fate, Outcome, Sum, lost};
use crate::wire::line::now;
use crate::wire::pace::{self, Pace};
use crate::wire::record::{Arrival, DESCRIPTORS, ListenerRecord, Message, PIECE, Secret, Update};

/// Connections sent in a message, and so in a turn, while the server serves: live clients wait behind them.
const BATCH: usize = 64;

/// Records are gathered into messages of about this size.
const FULL: usize = 48 * 1024;

/// Beyond this, about, a large record waits for the next message: sizes are guessed, and one of more than
/// [`LONGEST`](crate::wire::record::LONGEST) is none.
const MOST: usize = 80 * 1024;

/// So long a freeze waits for handshakes of TLS that have begun: no other process can go on with them.
const SHAKING: Duration = Duration::from_secs(1);

/// The least room for bytes beside a record.
const LEAST: usize = 1024;

/// A record's size without its state, about.
const RECORD: usize = 64;

/// So many changed connections are not worth a message before the freeze, unless they have much to send.
const FEW: usize = 16;

/// So many ended connections go in a message, and fewer wait for the freeze.
const GONE: usize = 64;

/// One worker's share in a takeover.
#[derive(Debug)]
pub(crate) struct Giving {
    baton: Arc<Baton>,
    events: Sender<Event>,
    /// The worker's number.
    worker: usize,
    /// Connections below this key were sent, but for `added`.
    cursor: usize,
    /// Connections that came after the cursor had passed their key.
    added: Vec<usize>,
    /// Connections that have changed since they were sent, the first to do so first.
    changed: VecDeque<usize>,
    /// When it began.
    began: Instant,
    /// So much work is left of the pass that is under way: as much as there was when it began.
    pass: u64,
    /// How long what was left would have taken when that pass began.
    before: Option<Duration>,
    /// How fast this worker sends changes.
    pace: Pace,
    /// Connections that ended after they were sent, or were to be sent anew: the new process is to forget them.
    gone: Vec<u64>,
    /// Some of those may come anew: they are forgotten first.
    gone_first: bool,
    /// How far the bytes of each connection that has some were sent, by its number.
    bytes: HashMap<u64, Sent>,
    /// Nothing was worth a message.
    rests: bool,
    /// Changes do not become fewer: what makes more of them is held up.
    holding: bool,
    /// There was no room for the next message.
    blocked: bool,
    failed: bool,
    sum: Sum,
}

/// Positions in a connection's output and input: what lies before was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    output: u64,
    input: u64,
    far: u64,
}

/// A connection in a message: whether all of its bytes are sent with that, or how far they are.
struct Noted {
    key: usize,
    whole: bool,
    sent: Option<Sent>,
}

/// What [`Giving`] works on: a worker's connections.
pub(crate) struct Share<'a> {
    pub(crate) connections: &'a mut Slab<Connection>,
    pub(crate) origins: &'a [Origin],
    pub(crate) now: Moment,
}

impl Share<'_> {
    fn service(&self, connection: &Connection) -> &AnyService {
        let origin = &self.origins[usize::from(connection.io.listener)];
        &origin.settings.service
    }
}

impl Giving {
    /// What becomes of a listener, by its number.
    pub(crate) fn fate(&self, listener: usize) -> Fate {
        u16::try_from(listener).map_or(Fate::Goes, |listener| self.baton.fate(listener))
    }

    pub(crate) fn new(baton: Arc<Baton>, events: Sender<Event>, worker: usize) -> Self {
        Self {
            baton,
            events,
            worker,
            began: now(),
            cursor: 0,
            added: Vec::new(),
            changed: VecDeque::new(),
            pass: 0,
            before: None,
            pace: Pace::default(),
            gone: Vec::new(),
            gone_first: false,
            bytes: HashMap::new(),
            rests: false,
            holding: false,
            blocked: false,
            failed: false,
            sum: Sum::default(),
        }
    }

    /// Worker 0 sends the listeners, before any connection.
    pub(crate) fn send_listeners(&mut self, origins: &[Origin], sockets: &[BorrowedFd<'_>]) {
        let records = origins.iter().map(|origin| ListenerRecord {
            address: origin.address.clone(),
            service: origin.settings.service.name().to_owned(),
        });
        let message = Message::Listeners(records.collect());
        let passed = self.baton.pass(&message, sockets, None);
        let passed = passed.and_then(|()| self.send_tickets(origins));
        match passed {
            Ok(()) => self.tell(Event::Announced),
            Err(error) => self.fail(&error),
        }
    }

    /// What clients resume their TLS sessions by.
    fn send_tickets(&self, origins: &[Origin]) -> io::Result<()> {
        for (listener, origin) in (0_u16..).zip(origins) {
            if let Some(tls) = &origin.settings.tls
                && self.baton.fate(listener) != Fate::Stays
            {
                let keys = Secret(tls.ticket_keys().to_vec());
                self.baton
                    .pass(&Message::Tickets { listener, keys }, &[], None)?;
            }
        }
        Ok(())
    }

    /// A connection came.
    pub(crate) fn arrived(&mut self, key: usize) {
        if key < self.cursor {
            self.added.push(key);
        }
    }

    /// A connection that was sent has changed. Answers whether it was held up and is not any more: what came meanwhile
    /// has made its event.
    #[inline]
    pub(crate) fn changed(&mut self, key: usize, io: &mut Io) -> bool {
        if let Some(pending) = &mut io.pending
            && std::mem::take(&mut pending.copy_anew)
        {
            // What was sent is of no use: it comes anew, as if it had not been sent.
            self.take_back(io);
            self.added.push(key);
            return io.marks.put(Mark::Held, false);
        }
        if !io.marks.put(Mark::Changed, true) {
            self.changed.push_back(key);
        }
        let held = self.holding && io.holds_bytes();
        io.marks.put(Mark::Held, held) && !held
    }

    /// Whether what makes changes is held up for a moment: they do not become fewer, however many are sent.
    #[inline]
    pub(crate) fn is_holding(&self) -> bool {
        self.holding
    }

    /// Whether what was held up is not any more, from here on: the new process takes nothing in.
    pub(crate) fn lets_go(&mut self) -> bool {
        let over = self.holding && !self.baton.is_holding();
        self.holding &= !over;
        over
    }

    /// A connection that was sent has ended.
    pub(crate) fn ended(&mut self, id: u64) {
        self.gone.push(id);
    }

    /// What was sent of a connection is to be forgotten. It may be sent anew.
    fn take_back(&mut self, io: &mut Io) {
        io.marks.put(Mark::Copied, false);
        io.marks.put(Mark::Changed, false);
        self.gone.push(io.id());
        self.gone_first = true;
    }

    /// Whether more is to be sent at once, rather than after the new process has taken something in.
    pub(crate) fn is_pressing(&self) -> bool {
        !self.failed && !self.rests && !self.blocked && self.baton.has_room()
    }

    /// Pre-copy: one message, and no waiting; as many as there is room for while changes are held up.
    pub(crate) fn advance(&mut self, share: &mut Share<'_>) {
        self.blocked = false;
        if !self.holding && self.baton.is_holding() {
            self.hold(share);
        }
        while !self.failed && self.baton.has_room() {
            match self.send_next(share) {
                Ok(sent) => self.rests = !sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(error) => self.fail(&error),
            }
            if self.rests || self.blocked || !self.holding {
                break;
            }
        }
    }

    /// Whoever has bytes waiting is not read for a moment: more would wait.
    fn hold(&mut self, share: &mut Share<'_>) {
        self.holding = true;
        for (_, connection) in &mut *share.connections {
            let io = &mut connection.io;
            let held = io.marks.has(Mark::Copied) && io.holds_bytes();
            io.marks.put(Mark::Held, held);
        }
    }

    /// Sends one message, if there is one worth sending; answers whether there was.
    fn send_next(&mut self, share: &mut Share<'_>) -> io::Result<bool> {
        if self.gone_first {
            self.send_gone(None)?;
            return Ok(true);
        }
        if self.send_connections(share, None)? {
            return Ok(true);
        }
        if self.gone.len() >= GONE {
            self.send_gone(None)?;
            return Ok(true);
        }
        if self.pass == 0 && !self.begin_pass(share) {
            return Ok(false);
        }
        let began = now();
        let work = self.send_changed(share, None)?;
        self.pace.note(work, now().saturating_duration_since(began));
        Ok(true)
    }

    /// Begins to send what has changed up to here, if that is worth it; answers whether it is. Says how much is left.
    fn begin_pass(&mut self, share: &Share<'_>) -> bool {
        let work = self.changed.len() as u64 * pace::RECORD + self.unsent(share);
        let left = self.pace.time_for(work) + self.baton.pace().time_for(work);
        let worth = self.changed.len() > FEW || !self.baton.is_little(left);
        let shown = left;
        let waits = self.began.elapsed() < SHAKING && share.is_shaking();
        let left = if waits { left.max(SHAKING) } else { left };
        match self.before {
            // All bytes that wait are to be sent first.
            None if worth => {}
            None => self.baton.set_left(self.worker, left),
            Some(before) => {
                self.baton.set_left(self.worker, left);
                if worth && shown > before / 2 {
                    self.baton.hold();
                }
            }
        }
        // Where nothing is worth a message, the next pass has no other one before it.
        self.before = Some(if worth { shown } else { Duration::MAX });
        self.pass = if worth { work } else { 0 };
        worth
    }

    /// Bytes that the changed connections have and that were not sent.
    fn unsent(&self, share: &Share<'_>) -> u64 {
        let connections = self.changed.iter();
        let connections = connections.filter_map(|&key| share.connections.get(key));
        let unsent = connections.map(|connection| {
            let io = &connection.io;
            let sent = self.bytes.get(&io.id()).copied().unwrap_or_default();
            let behind = |(start, front, back): (u64, &[u8], &[u8]), sent: u64| {
                (start + (front.len() + back.len()) as u64).saturating_sub(sent.max(start))
            };
            behind(io.output(), sent.output)
                + behind(io.input(), sent.input)
                + behind(io.far_output(), sent.far)
        });
        unsent.sum()
    }

    /// A conversation that has ended does not want to know.
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn fail(&mut self, error: &io::Error) {
        self.failed = true;
        self.tell(Event::Failed(Failure::Over(lost(error))));
    }

    /// Sends one message of connections not sent before; answers whether there were any.
    fn send_connections(
        &mut self,
        share: &mut Share<'_>,
        until: Option<Instant>,
    ) -> io::Result<bool> {
        let mut keys = Vec::new();
        let mut arrivals = Vec::new();
        let mut size = 0;
        let (mut cursor, mut added) = (self.cursor, 0);
        let end = share.connections.capacity();
        let most = if until.is_some() { DESCRIPTORS } else { BATCH };
        let mut count = 0;
        while count + MOST_ALONG < most && size < FULL {
            let (key, next) = if cursor < end {
                (cursor, (cursor + 1, added))
            } else if let Some(&key) = self.added.get(added) {
                (key, (cursor, added + 1))
            } else {
                break;
            };
            let connection = share.connections.get(key);
            if let Some(connection) = connection
                && !connection.io.marks.has(Mark::Copied)
                && self.baton.fate(connection.io.listener) == Fate::Goes
                && let Some(record) = share.export(connection, until.is_some())
            {
                let more = RECORD + record.state.len() + record.sealed();
                if !fits(size, more) {
                    break;
                }
                size += more;
                count += 1 + connection.io.travels_along().count();
                keys.push(key);
                arrivals.push(Arrival::of(&connection.io, share.now, record));
                // At once: a key may stand twice among those that came.
                share.connections[key].io.marks.put(Mark::Copied, true);
            }
            (cursor, added) = next;
        }
        let descriptors: Vec<BorrowedFd<'_>> = keys
            .iter()
            .flat_map(|&key| {
                let io = &share.connections[key].io;
                std::iter::once(io.descriptor()).chain(io.travels_along())
            })
            .collect();
        let ids: Vec<u64> = arrivals.iter().map(|arrival| arrival.record.id).collect();
        let passed = if keys.is_empty() {
            Ok(())
        } else {
            let message = Message::Connections(arrivals);
            self.baton.pass(&message, &descriptors, until)
        };
        for (&key, &id) in keys.iter().zip(&ids) {
            let io = &mut share.connections[key].io;
            let copied = passed.is_ok();
            io.marks.put(Mark::Copied, copied);
            if copied {
                io.marks.put(Mark::Shared, true);
                self.sum.add(id);
            }
            // Its bytes are sent with its next record.
            let changed = copied && io.holds_bytes();
            io.marks.put(Mark::Changed, changed);
            if changed {
                self.changed.push_back(key);
            }
        }
        passed?;
        self.cursor = cursor;
        self.added.drain(..added);
        Ok(!keys.is_empty())
    }

    /// Sends one message of what has changed on connections that were sent; answers how much work that was.
    fn send_changed(&mut self, share: &mut Share<'_>, until: Option<Instant>) -> io::Result<u64> {
        let mut updates: Vec<Update> = Vec::new();
        // What is to be noted once the message is on its way.
        let mut done = Vec::new();
        let mut size = 0;
        let mut looked_at = 0;
        while size < FULL
            && let Some(&key) = self.changed.get(looked_at)
        {
            looked_at += 1;
            // A key may stand there for a connection that has ended, and another have it now.
            let Some(connection) = share
                .connections
                .get(key)
                .filter(|found| found.io.marks.has(Mark::Changed))
            else {
                continue;
            };
            let io = &connection.io;
            let Some(record) = share.export(connection, until.is_some()) else {
                // It was sent, and cannot leave any more: the new process is to forget it.
                self.take_back(&mut share.connections[key].io);
                continue;
            };
            let before = self.bytes.get(&io.id()).copied().unwrap_or_default();
            let beside = record.state.len() + record.sealed();
            if !fits(size, RECORD + beside + 3 * LEAST) {
                looked_at -= 1;
                break;
            }
            // However large the state, some of the bytes go along: it comes to an end.
            let room = PIECE.saturating_sub(size + beside).max(LEAST);
            let (output, output_end) = piece(io.output(), before.output, room);
            let room = room.saturating_sub(output.bytes.len());
            let (input, input_end) = piece(io.input(), before.input, room);
            let room = room.saturating_sub(input.bytes.len());
            let (far, far_end) = piece(io.far_output(), before.far, room);
            let whole_far = record
                .far
                .as_ref()
                .is_none_or(|far| far_end >= far.1.output_end());
            let bytes = output.bytes.len() + input.bytes.len() + far.bytes.len();
            size += RECORD + beside + bytes;
            done.push(Noted {
                key,
                // Past the end, if output that was sent has been given up since.
                whole: output_end >= record.output_end()
                    && input_end >= record.input_end()
                    && whole_far,
                sent: io.holds_bytes().then_some(Sent {
                    output: output_end,
                    input: input_end,
                    far: far_end,
                }),
            });
            updates.push(Update {
                record,
                output,
                input,
                far,
            });
            share.connections[key].io.marks.put(Mark::Changed, false);
        }
        let work = updates.iter().map(Update::work).sum();
        let passed = if updates.is_empty() {
            Ok(())
        } else {
            self.baton.pass(&Message::Updates(updates), &[], until)
        };
        self.changed.drain(..looked_at);
        for Noted { key, whole, sent } in done {
            let io = &mut share.connections[key].io;
            if passed.is_err() || !whole {
                // Behind the others: one that makes more than can be copied would never let them have their turn.
                io.marks.put(Mark::Changed, true);
                self.changed.push_back(key);
            }
            match sent {
                _ if passed.is_err() => {}
                Some(sent) => drop(self.bytes.insert(io.id(), sent)),
                None => drop(self.bytes.remove(&io.id())),
            }
        }
        passed?;
        self.pass = match self.changed.is_empty() {
            true => 0,
            false => self.pass.saturating_sub(work),
        };
        Ok(work)
    }

    /// Freeze: everything that the new process does not know yet. Then stands still until the outcome is known; `None`:
    /// there is nobody any more who would tell.
    pub(crate) fn freeze(
        &mut self,
        share: &mut Share<'_>,
        until: Instant,
        outcome: &Receiver<Outcome>,
    ) -> Option<Outcome> {
        let event = match self.send_rest(share, until) {
            Ok(()) => {
                let open = share.connections.len() as u64;
                self.sum.staying = open.saturating_sub(self.sum.connections);
                Event::Frozen(self.sum)
            }
            Err(error) => Event::Failed(error.into()),
        };
        self.tell(event);
        outcome.recv().ok()
    }

    /// The freeze came too late: what has changed since is sent as before.
    pub(crate) fn thaw(&mut self) {
        self.holding = false;
        self.rests = false;
        self.before = None;
        self.pass = 0;
    }

    fn send_rest(&mut self, share: &mut Share<'_>, until: Instant) -> io::Result<()> {
        let until = Some(until);
        self.send_sessions(share, until)?;
        while self.gone_first {
            self.send_gone(until)?;
        }
        while self.send_connections(share, until)? {}
        while !self.changed.is_empty() {
            self.send_changed(share, until)?;
        }
        while !self.gone.is_empty() {
            self.send_gone(until)?;
        }
        Ok(())
    }

    /// Sends one message of connections that have ended.
    fn send_gone(&mut self, until: Option<Instant>) -> io::Result<()> {
        let from = self.gone.len().saturating_sub(GONE);
        let gone = self.gone.split_off(from);
        let message = Message::Gone(gone);
        let passed = self.baton.pass(&message, &[], until);
        let Message::Gone(gone) = message else {
            return passed;
        };
        match passed {
            Ok(()) => {
                for id in gone {
                    self.sum.take_away(id);
                    self.bytes.remove(&id);
                }
            }
            Err(_) => self.gone.extend(gone),
        }
        self.gone_first &= !self.gone.is_empty();
        passed
    }
}

/// Whether `more` goes into a message with `size`, bytes: into one of its own in any case.
fn fits(size: usize, more: usize) -> bool {
    size == 0 || size + more <= MOST
}
