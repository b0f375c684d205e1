//! A line from one client goes to all others: what `ncat --broker` does, for thousands of them.
//!
//! Lines are gathered for a moment and stand in memory once (`feed.rs`, `block.rs`); each client has its place among
//! them, and gets what lies before it in one write. Who is too slow for that loses whole lines, or the connection, and
//! delays nobody. Who speaks faster than the workers can pass on is slowed.

#[cfg(control)]
mod after_crash;
mod block;
mod client;
mod cursor;
mod delivery;
mod feed;
mod journey;
#[cfg_attr(not(control), path = "no_ledger.rs")]
mod ledger;
#[cfg_attr(not(feature = "nats"), path = "no_nats.rs")]
mod nats;
mod options;
mod rounds;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::address::endpoint::Peer;
#[cfg(feature = "nats")]
use crate::error::Error;
use crate::handle::Handle;
use crate::inspect::NatsInfo;
use crate::liveness::close::CloseReason;
#[cfg(control)]
use crate::os::journal::Journal;
#[cfg(control)]
use crate::service::Left;
use crate::service::{Context, Exported, Patience, RoundStage, Service, Survive};
use crate::services::hub::block::LONGEST;
pub use crate::services::hub::client::HubClient;
use crate::services::hub::client::Place;
use crate::services::hub::feed::{Due, Feed, REMOTE, Said};
use crate::services::hub::journey::{Reader, SCHEMA, known};
use crate::services::hub::ledger::{Ledger, Stood};
use crate::services::hub::nats::Beyond;
#[cfg(feature = "nats")]
pub use crate::services::hub::nats::{Credentials, Foreign, NatsOptions};
pub use crate::services::hub::options::{HubOptions, Slow};
use crate::services::hub::rounds::Rounds;

/// The longest line, unless something else is asked for.
const LINE: usize = 64 * 1024;

/// How many times longer than asked for lines are gathered at most.
const LONGER: u32 = 10;

/// A line from one client goes to all others, across all workers, in one order.
///
/// A client's FIN ends its connection once it has got what was published before. An unfinished line is published with a
/// line end then; one of a client that is lost otherwise is not. With a drain what was published is delivered, too.
///
/// ```
/// use standfast::Listen;
/// use standfast::{services::Hub, services::hub::HubOptions};
///
/// let hub = Hub::new(HubOptions { history: 10, ..HubOptions::default() });
/// let listen = Listen {
///     read_timeout: None, // who only listens is silent
///     ..Listen::new("127.0.0.1:0".parse().unwrap(), hub)
/// };
/// ```
pub struct Hub {
    options: HubOptions,
    max_line: usize,
    /// What is published in one piece, bytes, unless a line is longer.
    piece: usize,
    /// How far ahead of the workers' rounds a sender may get, bytes.
    ahead: u64,
    feed: Arc<Feed>,
    /// Other machines' hubs, with the same feed.
    beyond: Beyond,
    server: OnceLock<Handle>,
    rounds: Rounds,
    /// Lines that clients lost, each counted for each client.
    lost: AtomicU64,
    /// Where each client stands, for the next server, should this one crash.
    ledger: OnceLock<Ledger>,
    /// When that was last said, in microseconds of [`Context::now`].
    said: AtomicU64,
}

impl Hub {
    /// A hub that nobody listens to yet.
    #[must_use]
    pub fn new(options: HubOptions) -> Self {
        let reach = options.buffer.max(1);
        let longest = (reach / 2).clamp(1, LONGEST);
        let max_line = options.max_line.unwrap_or_else(|| LINE.min(reach / 4));
        Self {
            max_line: max_line.clamp(1, longest),
            piece: (reach / 4).max(1),
            ahead: (reach / 2) as u64,
            feed: Arc::new(Feed::new(reach)),
            beyond: Beyond::default(),
            options,
            server: OnceLock::new(),
            rounds: Rounds::default(),
            lost: AtomicU64::new(0),
            ledger: OnceLock::new(),
            said: AtomicU64::new(0),
        }
    }

    /// A hub that shares its feed with those on other machines that have the same subject. Waits for the servers, but no
    /// longer than [`NatsOptions::wait`]; whatever it hears from then on its clients get.
    ///
    /// # Errors
    /// Options that contradict each other, credentials that cannot be read, or that a server refuses. A server that cannot be
    /// reached is no error: the hub goes on trying.
    #[cfg(feature = "nats")]
    pub fn over_nats(options: HubOptions, nats: NatsOptions) -> Result<Self, Error> {
        if options.raw {
            let why = "what is passed on raw has no lines, which is what hubs say to one another";
            return Err(Error::Config(why.to_owned()));
        }
        let mut hub = Self::new(options);
        hub.beyond = Beyond::open(nats, &hub.feed, hub.max_line, hub.options.history)?;
        Ok(hub)
    }

    /// Publishes what other hubs have said, of the message with the mark `heard`, as far as there is nothing behind the position
    /// `limit` already.
    fn publish_remote(&self, lines: &[u8], heard: u64, limit: u64) -> bool {
        let said = Said {
            sender: REMOTE,
            bytes: lines,
            is_whole: false,
            heard,
        };
        self.feed.publish(&said, true, limit) != Due::Full
    }

    /// Whose lines a client does not get.
    fn own(&self, conn: &Context<'_>) -> Option<u64> {
        (!self.options.echo_self).then(|| conn.id())
    }

    fn is_source(&self, peer: Peer) -> bool {
        let sources = &self.options.sources;
        let listed = |ip| sources.iter().any(|network| network.contains(ip));
        sources.is_empty() || peer.ip().is_some_and(listed)
    }

    /// Publishes `bytes` of a client, whose input ends at `heard` with them: whole lines, or with `raw` a piece. Answers whether it did: not
    /// if there is something behind the position `limit` already.
    fn publish(&self, sender: u64, bytes: &[u8], heard: u64, limit: u64) -> bool {
        let at_once = self.options.flush.is_zero();
        let said = Said {
            sender,
            bytes,
            is_whole: self.options.raw,
            heard,
        };
        let due = self.feed.publish(&said, at_once, limit);
        if let Some(server) = self.server.get() {
            match due {
                Due::Known | Due::Full => {}
                Due::Soon => server.prompt(self.gathering_time()),
                Due::Now => server.prompt(Duration::ZERO),
            }
        }
        due != Due::Full
    }

    /// How long what is published now may wait for more. Workers that serve without a rest leave nothing of the
    /// processor to the clients, and fewer and larger writes are less work for both.
    fn gathering_time(&self) -> Duration {
        let flush = self.options.flush;
        flush.max(self.rounds.longest().min(flush * LONGER))
    }

    /// How much of `bytes` is published next: whole lines, as far as they are not too long. `searched` bytes are known
    /// to have no line end.
    fn portion(&self, bytes: &[u8], searched: usize) -> Portion {
        if self.options.raw {
            return Portion::Whole(bytes.len().min(self.piece));
        }
        let mut whole = 0;
        let mut from = searched;
        while whole < self.piece {
            let new = bytes.get(from..).unwrap_or_default();
            let end = new.iter().position(|&byte| byte == b'\n');
            let end = end.map_or(bytes.len(), |at| from + at);
            if end - whole >= self.max_line {
                if whole == 0 {
                    return Portion::TooLong;
                }
                break;
            }
            // Not more than a piece, unless one line alone is.
            if end == bytes.len() || whole > 0 && end >= self.piece {
                break;
            }
            whole = end + 1;
            from = whole;
        }
        if whole > 0 {
            Portion::Whole(whole)
        } else {
            Portion::Unfinished
        }
    }

    /// Up to where senders may get: so far ahead of what every client was offered. With one portion more nobody whose
    /// socket takes everything is beyond reach.
    fn limit(&self) -> u64 {
        let over = self.rounds.over();
        over.map_or(u64::MAX, |over| over.saturating_add(self.ahead))
    }

    /// As [`publish`](Self::publish), or has the client wait if the workers cannot follow. Answers whether it did publish.
    fn publish_or_wait(&self, conn: &mut Context<'_>, bytes: &[u8], heard: u64) -> bool {
        let ending = self.server.get().is_none_or(Handle::is_closed);
        let limit = if ending { u64::MAX } else { self.limit() };
        if self.publish(conn.id(), bytes, heard, limit) {
            return true;
        }
        // Said before the prompt: the end of the round that follows looks for it.
        self.rounds.are_waited_for();
        if let Some(server) = self.server.get() {
            server.prompt(Duration::ZERO);
        }
        conn.pause();
        false
    }
}

/// What is to be done with input.
enum Portion {
    /// So many bytes are published.
    Whole(usize),
    /// The line is not complete yet.
    Unfinished,
    TooLong,
}

impl Service for Hub {
    type State = HubClient;

    fn name(&self) -> &'static str {
        "hub"
    }

    fn patience(&self) -> Patience {
        Patience::with_silence()
    }

    fn start(&self, server: &Handle) {
        let _ = self.server.set(server.clone());
        self.feed.count_in(server.memory());
        self.rounds.are_of(server.workers());
        let publish = |lines: &[u8], heard| self.publish_remote(lines, heard, u64::MAX);
        self.beyond.start(server, publish);
    }

    fn open(&self, conn: &mut Context<'_>) -> HubClient {
        let cursor = self.feed.reader(self.options.history);
        let stood = Stood {
            position: cursor.position(),
            line: cursor.line(),
            end: 0,
        };
        let mut client = HubClient::at(Place::Here(cursor));
        if let Some(ledger) = self.ledger.get() {
            client.entry = ledger.enter(conn.id(), &stood);
        }
        self.deliver(&mut client, conn);
        client
    }

    fn input(&self, client: &mut HubClient, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let speaks = client
            .speaks
            .get_or_insert_with(|| self.is_source(conn.peer()));
        if !*speaks || client.cut {
            return bytes.len();
        }
        let at = conn.input_at(bytes.len());
        let mut used = 0;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            match self.portion(rest, client.searched) {
                Portion::Whole(count) => {
                    let heard = at + (used + count) as u64;
                    if !self.publish_or_wait(conn, &rest[..count], heard) {
                        return used;
                    }
                    client.searched = 0;
                    used += count;
                }
                Portion::Unfinished => {
                    client.searched = rest.len();
                    return used;
                }
                Portion::TooLong => {
                    log::warn!(id = conn.id(), peer:% = conn.peer(), max_line = self.max_line; "disconnected: a line is too long");
                    client.cut = true;
                    conn.finish();
                    return bytes.len();
                }
            }
        }
        used
    }

    fn end(&self, client: &mut HubClient, conn: &mut Context<'_>, rest: &[u8]) {
        if client.speaks.unwrap_or(false) && !client.cut {
            let whole = rest.iter().rposition(|&byte| byte == b'\n');
            let (lines, unfinished) = rest.split_at(whole.map_or(0, |last| last + 1));
            let short = lines
                .split_inclusive(|&byte| byte == b'\n')
                .all(|line| line.len() <= self.max_line);
            let at = conn.input_at(rest.len());
            let mut said = 0;
            while let Some(left) = lines.get(said..).filter(|left| short && !left.is_empty())
                && let Portion::Whole(count) = self.portion(left, 0)
            {
                said += count;
                let heard = at + said as u64;
                self.publish(conn.id(), &left[..count], heard, u64::MAX);
            }
            // What a client that is lost wanted to say nobody knows.
            if short && !unfinished.is_empty() && conn.has_peer_finished() {
                let last = [unfinished, b"\n"].concat();
                self.publish(conn.id(), &last, at + rest.len() as u64, u64::MAX);
            }
        }
        self.feed.seal();
        client.until.get_or_insert_with(|| self.feed.end());
        self.leave(client, conn);
    }

    fn output(&self, client: &mut HubClient, conn: &mut Context<'_>) {
        match client.until {
            Some(_) => self.leave(client, conn),
            None => self.deliver(client, conn),
        }
    }

    fn round(&self, worker: usize, stage: RoundStage) {
        if matches!(stage, RoundStage::Begins | RoundStage::GoesOn) {
            self.beyond
                .pass_on(|lines, heard| self.publish_remote(lines, heard, self.limit()));
            // A client that is asked late in a round gets what came meanwhile, too.
            self.feed.seal();
        }
        let is_over = self.rounds.note(worker, stage, self.feed.end());
        if stage == RoundStage::Begins {
            self.beyond.notice();
        } else if self.beyond.is_waiting()
            && self.feed.end() <= self.limit()
            && let Some(server) = self.server.get()
        {
            server.prompt(Duration::ZERO);
        }
        if is_over
            && self.feed.end() <= self.limit()
            && self.rounds.have_waited()
            && let Some(server) = self.server.get()
        {
            server.resume();
        }
    }

    fn over(&self, client: &mut HubClient, conn: &mut Context<'_>, _: CloseReason) {
        if let Some(ledger) = self.ledger.get() {
            ledger.leave(client.entry, conn.id());
        }
    }

    fn survive(&self) -> Survive {
        Survive::Journal
    }

    #[cfg(control)]
    fn journal_room(&self, _: usize) -> usize {
        after_crash::room(self.options.buffer)
    }

    #[cfg(control)]
    fn keep_journal(&self, journal: Journal, left: Option<Left>) {
        let notes = journal.notes();
        let (ledger, lost, remains) = after_crash::go_on(&self.feed, journal, left);
        self.beyond.go_on(notes, remains);
        self.lost.store(lost, Ordering::Relaxed);
        // Once: a hub is started by one server.
        let _ = self.ledger.set(ledger);
    }

    #[cfg(control)]
    fn arrived(&self, client: &mut HubClient, conn: &mut Context<'_>) {
        if let Some(ledger) = self.ledger.get() {
            after_crash::arrives(client, ledger, conn);
        }
    }

    #[cfg(control)]
    fn reopen(&self, conn: &mut Context<'_>) -> HubClient {
        let own = self.own(conn);
        let found = self.ledger.get();
        let found = found.and_then(|ledger| after_crash::client(&self.feed, ledger, conn, own));
        let Some(mut client) = found else {
            return self.open(conn);
        };
        self.deliver(&mut client, conn);
        client
    }

    fn nats(&self) -> Option<NatsInfo> {
        self.beyond.info()
    }

    fn export(&self, client: &HubClient) -> Option<Exported> {
        Some(Exported {
            schema: SCHEMA,
            bytes: client.reader().pack(),
        })
    }

    fn import(&self, exported: &Exported) -> Result<HubClient, String> {
        known(exported)?;
        Ok(HubClient::of(Reader::unpack(&exported.bytes)?))
    }

    fn export_ahead(&self, ahead: u64) -> Option<(Exported, u64)> {
        let further = |most| self.beyond.blocks_behind(ahead, most);
        let (bytes, ahead) = journey::pack_ahead(&self.feed, ahead, further)?;
        let schema = SCHEMA;
        Some((Exported { schema, bytes }, ahead))
    }

    fn import_ahead(&self, exported: &Exported) -> Result<(), String> {
        known(exported)?;
        self.beyond.make_way();
        journey::unpack_ahead(&exported.bytes, &self.feed, || self.beyond.hold())
    }

    fn export_common(&self, ahead: u64) -> Option<Exported> {
        // First: what waits of it is published with that.
        let publish = |lines: &[u8], heard| self.publish_remote(lines, heard, u64::MAX);
        let beyond = self.beyond.pack(publish);
        let further = |most| self.beyond.blocks_behind(ahead, most);
        let lost = self.lost.load(Ordering::Relaxed);
        let feed = journey::pack(&self.feed, ahead, lost, further);
        Some(journey::joined(beyond.as_deref(), feed))
    }

    fn import_common(&self, exported: &Exported) -> Result<(), String> {
        let (beyond, feed) = journey::split(exported)?;
        self.beyond.make_way();
        let lost = journey::unpack(feed, &self.feed, || self.beyond.hold())?;
        self.beyond.unpack(beyond)?;
        self.lost.store(lost, Ordering::Relaxed);
        if let Some(server) = self.server.get() {
            // Who is behind gets the rest as soon as the workers run.
            server.prompt(Duration::ZERO);
        }
        Ok(())
    }

    fn stop(&self, patience: Duration) -> bool {
        let lost = self.lost.load(Ordering::Relaxed);
        let goes_on = self.server.get().is_some_and(Handle::was_taken_over);
        if lost > 0 && !goes_on {
            log::info!(lost; "slow clients have lost lines in all");
        }
        self.beyond.stop(patience)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
