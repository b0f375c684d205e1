//! What outlives a worker that is killed: its connections, how far each has come, and the bytes that wait for them.
//!
//! The kernel has the journal: how many bytes were read of a connection, and how many it has taken for it (`TCP_INFO`, `SIOCINQ`,
//! `SIOCOUTQ`). A worker is in the middle of one connection at the most; what it has read for that lies in its buffer, which is
//! a part of the vault, and a few stores say whose it is and where it begins. All others are at rest, and their slots say how
//! far they have come. So where the answer to a byte is that byte, or none, or what goes to the far side is that byte, nothing can be lost, doubled or guessed, and not
//! one system call is added to a message.
//!
//! | part | file |
//! |---|---|
//! | what stands where in memory | `arena.rs`, `slot.rs` |
//! | records, and output that waits | `blocks.rs` |
//! | what a record says | `noted.rs` |
//! | descriptors | `queue.rs`, `renewal.rs` |
//! | who goes from one worker to another | `moving.rs` |
//! | what a server finds of the one before it | `found.rs` |

mod again;
mod arena;
mod blocks;
pub(crate) mod found;
mod moving;
mod noted;
mod passing;
mod queue;
mod renewal;
mod slot;

use std::any::Any;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use crate::connection::Connection;
use crate::handle::lifecycle::Lifecycle;
use crate::io::marks::Mark;
use crate::io::{Io, Is};
use crate::os::fault::may_die;
use crate::os::sys::mapping::Mapping;
use crate::service::{AnyService, Survive};
use crate::time::deadline::{Clock, Moment};
use crate::vault::arena::{Arena, Clocks};
pub(crate) use crate::vault::arena::{BUFFER, fitting};
use crate::vault::blocks::{Beside, Blocks};
use crate::vault::noted::{Noted, Stance};
use crate::vault::queue::{Alone, Batch, NAME, Pair, name, stored};
use crate::vault::slot::Slot;
use crate::wire::line::shared_clock;
use crate::wire::record::ListenerRecord;

/// So many that have ended may wait among the living, whatever their number, or a quarter of its room where that is less.
const FEW_DEAD: usize = 256;

/// Fewer descriptors than that in a message are few: each message takes 5 KB of the kernel's, however few there are in it.
/// So many messages of that kind may wait, or as many as of those that have ended where that is less.
const FEW_TOGETHER: usize = 32;
const FEW_ALONE: usize = 128;

/// How long after a failure it is tried again, and how soon at first where others have too many descriptors under way: as a
/// rule it is the server before this one, which the keeper gives up in a moment.
const REST: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(10);

/// One worker's.
#[derive(Debug)]
pub(crate) struct Vault {
    worker: usize,
    arena: Arena,
    blocks: Blocks,
    keeper: Arc<dyn Lifecycle>,
    /// Connections whose descriptors are not there yet: their keys, and which is the first of those.
    unsent: Vec<(usize, u8)>,
    /// Connections that have come of another worker, whose vault has them until they are here.
    coming: Vec<Box<dyn Any + Send>>,
    /// How many are there of the connection of each key.
    there: Vec<u8>,
    /// Where descriptors wait: new ones go to the last.
    pairs: Vec<Pair>,
    /// Where few wait that came alone.
    alone: Alone,
    /// Those that live are being sent anew.
    renewal: Option<Renewal>,
    /// What the next pair is called.
    next: u64,
    /// Descriptors that are there of connections that live.
    living: usize,
    /// So many that have ended may wait among them, whatever their number.
    few: usize,
    /// When descriptors are sent again, after a failure, and how long after the next one.
    again: Moment,
    rest: Duration,
    /// Somebody else has the socket of a connection that has ended here, which is to end with them: when those that live are
    /// sent anew for that, and before when they are not.
    let_go: (Moment, Moment),
    told: bool,
}

/// Into new pairs, until every key below the capacity has had its turn; the former ones go then.
#[derive(Debug)]
struct Renewal {
    pairs: Vec<Pair>,
    cursor: usize,
    /// So many of the former ones, from the first on.
    former: usize,
}

impl Vault {
    /// An empty one of that worker of so many, of which the keeper has a copy.
    ///
    /// # Errors
    /// The system has no descriptors or no address space; or there is no keeper.
    pub(crate) fn new(
        (worker, workers): (usize, usize),
        listeners: &[ListenerRecord],
        (connections, waiting): (usize, usize),
        clock: Clock,
        keeper: &Arc<dyn Lifecycle>,
    ) -> io::Result<Self> {
        let clocks = Clocks {
            own: clock.now().number(),
            shared: shared_clock(),
        };
        // Half of a block may be empty, and each connection has one for its record.
        let blocks = waiting / (arena::BLOCK / 2) + connections;
        let arena = Arena::new(listeners, (connections, blocks), clocks)?;
        keeper.store(&format!("{NAME}-{worker}"), &[arena.file.as_fd()])?;
        let [pair, alone] = [0, 1].map(|number| stored(keeper, worker, number));
        Ok(Self {
            worker,
            arena,
            blocks: Blocks::default(),
            keeper: Arc::clone(keeper),
            unsent: Vec::new(),
            coming: Vec::new(),
            there: Vec::new(),
            pairs: vec![pair?],
            alone: Alone::new(alone?),
            renewal: None,
            next: 2,
            living: 0,
            few: FEW_DEAD.min(connections / workers.max(1) / 4),
            again: Moment::at_start(),
            rest: SOON,
            let_go: (Moment::NEVER, Moment::at_start()),
            told: false,
        })
    }

    /// What the worker is to read into.
    pub(crate) fn buffer(&self) -> io::Result<Mapping> {
        self.arena.buffer()
    }

    /// A connection is about to be read, served and written.
    #[inline]
    pub(crate) fn begin(&self, key: usize, io: &Io) {
        let far_read = io.far_io().map_or(0, |far| far.read);
        self.arena.begin_step(key, io.read, far_read);
        may_die("vault-begun");
    }

    /// It was: how it stands now is there, and its step is over.
    #[inline]
    pub(crate) fn settle(
        &mut self,
        key: usize,
        connection: &Connection,
        service: &AnyService,
        now: Moment,
    ) {
        if let Some((_, chain)) = self.arena.who(key) {
            if connection.io.is_withheld() {
                self.settle_to_be_given_again(key, connection, service, now);
                return self.arena.end_step();
            }
            if chain != 0 || !connection.io.is_plain() {
                self.settle_beside(key, connection, service, now);
            }
            may_die("vault-settled");
            let io = &connection.io;
            self.arena
                .note(key, io.read, io.written, io.last_in.number());
            may_die("vault-noted");
            if let Some(far) = io.far_io() {
                self.arena.note_far(key, far.read, far.written);
                may_die("vault-far-noted");
            }
        } else if connection.io.is_withheld() && connection.io.is(Is::GivenAway) {
            self.arrived_given_away(key, connection, service, now);
        }
        self.arena.end_step();
    }

    /// As [`settle`](Self::settle), of one that has something beside its slot, or had.
    fn settle_beside(
        &mut self,
        key: usize,
        connection: &Connection,
        service: &AnyService,
        now: Moment,
    ) {
        let io = &connection.io;
        // What of such a service's state there is stays the same.
        let is_told = matches!(
            service.survive(),
            Survive::Echo | Survive::Discard | Survive::Relay
        );
        let stance = Stance::of(io).filter(|_| is_told);
        if stance.is_some_and(|stance| self.blocks.says(key, &stance)) {
            return;
        }
        if self.has_nothing_beside(key, connection, service.survive()) {
            self.arena.set_chain(key, 0);
            return self.blocks.forget(&self.arena, key);
        }
        let record = match service.survive() {
            Survive::Fresh | Survive::State | Survive::Journal => {
                Self::export_to_be_given_again(connection, service, now)
            }
            _ => connection.export(service, now),
        };
        // What is ending otherwise ends with the process, too.
        match record {
            Some(record) => self.put_beside(key, connection, &Noted::of(io, now, record), stance),
            None => self.forget(key),
        }
    }

    fn put_beside(
        &mut self,
        key: usize,
        connection: &Connection,
        record: &Noted,
        stance: Option<Stance>,
    ) {
        let io = &connection.io;
        let noted = postcard::to_stdvec(record).map_err(|_| blocks::Full);
        let noted = noted.and_then(|record| {
            let beside = Beside {
                record: &record,
                outputs: [io.output(), io.far_output()],
                stance,
                reached: Self::reached(connection),
            };
            self.blocks.note(&mut self.arena, key, &beside)
        });
        if noted.is_err() {
            self.forget(key);
            self.tell(&io::Error::other("there is no room for what waits"));
        }
    }

    pub(crate) fn has(&self, key: usize) -> bool {
        self.arena.who(key).is_some()
    }

    /// A connection whose service has heard of it, or is to; so much output waits for it, though it may not have come yet.
    pub(crate) fn arrived(
        &mut self,
        key: usize,
        connection: &Connection,
        waits: u64,
        (service, now): (&AnyService, Moment),
    ) {
        let (io, survive) = (&connection.io, service.survive());
        if survive == Survive::Close {
            return;
        }
        let slot = Slot {
            read: io.read,
            written: io.written,
            last_in: io.last_in.number(),
            chain: 0,
            id: io.id(),
            opened: io.opened().number(),
            skew: io.read.saturating_sub(io.written + waits),
            peer: io.peer(),
            listener: io.listener,
        };
        self.arena.set_last_id(slot.id);
        self.blocks.forget(&self.arena, key);
        self.put_far(key, io);
        if self.arena.put(key, &slot) {
            self.unsent.push((key, 0));
            if survive.is_given_again() {
                // As long as it says so the service has not come to an end with its greeting.
                let record = Noted::of(io, now, connection.export_unheard(now));
                self.put_beside(key, connection, &record, None);
            }
        } else {
            self.tell(&io::Error::other(
                "there are more connections than it has room for",
            ));
        }
    }

    fn put_far(&self, key: usize, io: &Io) {
        let Some(far) = io.far_io() else { return };
        if let Ok(cookie) = rustix::net::sockopt::socket_cookie(&far.socket) {
            self.arena.put_far(key, cookie, far.read, far.written);
        }
    }

    /// What stands beside a connection has come, all of it at once: it goes where its own descriptor is.
    pub(crate) fn came_along(&mut self, key: usize, io: &Io) {
        if self.arena.who(key).is_none() {
            return;
        }
        self.put_far(key, io);
        // Else that has yet to go, and takes it along.
        if self.there.get(key).is_some_and(|there| *there > 0) {
            self.unsent.push((key, 1));
        }
    }

    /// It was being served when a server crashed, with input of its own or without.
    pub(crate) fn suspect(
        &mut self,
        key: usize,
        had_input: bool,
        connection: &Connection,
        service: &AnyService,
        now: Moment,
    ) {
        if self.arena.who(key).is_some() {
            self.blocks
                .suspect(key, Self::reached(connection), had_input);
            self.settle_beside(key, connection, service, now);
        }
    }

    /// A connection has ended, or ends with the process.
    pub(crate) fn forget(&mut self, key: usize) {
        if self.arena.who(key).is_none() {
            return;
        }
        self.arena.clear(key);
        let there = self.there.get_mut(key).map(std::mem::take);
        self.living = self.living.saturating_sub(there.unwrap_or(0).into());
        if self.blocks.has(key) {
            self.blocks.forget(&self.arena, key);
        }
    }

    /// In each turn, once clients were let in: they are there from now on.
    pub(crate) fn flush(&mut self, connections: &mut Slab<Connection>, now: Moment) {
        // Whether they are here then or not: they are read from now on.
        let coming = std::mem::take(&mut self.coming);
        let lets_go = self.lets_go(now);
        if self.unsent.is_empty() && self.renewal.is_none() && !self.is_stale() && !lets_go {
            return;
        }
        if now < self.again {
            return;
        }
        if !coming.is_empty() {
            may_die("vault-coming");
        }
        let begun = if lets_go {
            self.begin_letting_go(now)
        } else {
            Ok(())
        };
        match begun.and_then(|()| self.send(connections)) {
            Ok(()) => self.rest = SOON,
            Err(error) => self.failed(&error, connections, now),
        }
    }

    /// Some are not there: they are sent again after a while.
    fn failed(&mut self, error: &io::Error, connections: &Slab<Connection>, now: Moment) {
        let are_too_many = are_too_many(error);
        if !are_too_many {
            self.rest = REST;
        }
        if self.rest == REST {
            self.tell(error);
        }
        self.again = now.after(self.rest);
        self.rest = (self.rest * 2).min(REST);
        let arena = &self.arena;
        let went = |key: &usize| arena.who(*key).is_none();
        let frees = self.is_stale() || self.alone.keys.iter().any(went);
        if are_too_many && frees {
            self.begin_anew(connections);
        }
        // They may be many by then.
        self.unsent.sort_unstable();
        self.unsent.dedup();
        let arena = &self.arena;
        self.unsent.retain(|(key, _)| arena.who(*key).is_some());
    }

    /// All that has come is there; no connection has had a higher number than `last_id`, whether it lives or not.
    ///
    /// # Errors
    /// It is not, for want of descriptors, or because [too many](are_too_many) are under way: it is tried again.
    pub(crate) fn seal(
        &mut self,
        connections: &mut Slab<Connection>,
        last_id: u64,
    ) -> io::Result<()> {
        self.arena.set_last_id(last_id);
        self.send(connections)
    }

    fn send(&mut self, connections: &mut Slab<Connection>) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let mut batch = Batch::default();
            let mut from = self.unsent.len();
            while from > 0 && batch.add(&self.arena, connections, self.unsent[from - 1]) {
                from -= 1;
            }
            let alone = batch.entries.len() < FEW_TOGETHER;
            let full = match self.pairs.last_mut() {
                _ if alone => batch.put(&mut self.alone.pair)?,
                Some(pair) => batch.put(pair)?,
                None => true,
            };
            if full {
                let pair = self.new_pair()?;
                let pair = match alone {
                    true => std::mem::replace(&mut self.alone, Alone::new(pair)).pair,
                    false => pair,
                };
                self.pairs.push(pair);
                continue;
            }
            // They are lent no more.
            let sent = batch.entries;
            self.alone.messages += usize::from(alone && !sent.is_empty());
            for key in sent.into_iter().map(|entry| entry.key as usize) {
                self.is_there(key);
                if alone {
                    self.alone.keys.push(key);
                }
                if let Some(connection) = connections.get_mut(key) {
                    connection.io.marks.put(Mark::Shared, true);
                }
            }
            self.unsent.truncate(from);
            may_die("vault-sent");
        }
        if self.renewal.is_none() && self.alone.messages > FEW_ALONE.min(self.few) {
            self.put_together(connections)?;
        }
        if self.renewal.is_none() && self.is_stale() {
            self.begin_renewal()?;
        }
        self.renew(connections)
    }

    /// One more of its descriptors is there.
    fn is_there(&mut self, key: usize) {
        if self.there.len() <= key {
            self.there.resize(key + 1, 0);
        }
        self.there[key] = self.there[key].saturating_add(1);
        self.living += 1;
    }

    fn new_pair(&mut self) -> io::Result<Pair> {
        let pair = stored(&self.keeper, self.worker, self.next)?;
        self.next += 1;
        Ok(pair)
    }

    fn give_up(&self, pair: &Pair) {
        // A keeper that cannot hear it has them a little longer.
        let _ = self.keeper.give_up(&name(self.worker, pair.number));
    }

    /// Says once that something is lacking.
    fn tell(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.told, true) {
            log::warn!(error:%, worker = self.worker; "a crash would close some of the connections");
        }
    }
}

/// Whether that is for want of room among the descriptors of the user's that are under way (`ETOOMANYREFS`).
pub(crate) fn are_too_many(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}
