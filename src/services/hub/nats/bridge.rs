//! What the hub and the thread that speaks with the servers have in common: what is to be said, and what was heard.
//!
//! The thread reads the feed as a client does, and says all but what came from other hubs. What it hears waits here until a
//! worker passes it on, at the beginning of a round. So all that changes the feed happens in the hub's calls, and stands
//! still while a takeover has them stand still.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::heard::{Counted, Heard, Progress};
use super::options::{Foreign, NatsOptions};
use super::place::{HEADER, Origin, Place, Spot};
#[cfg(control)]
use super::remains::{Mark, Remains};
use super::remains::{note_name, note_passed};
use super::said::{Piece, Said};
use crate::handle::Handle;
use crate::inspect::NatsInfo;
use crate::os::journal::Notes;
use crate::services::hub::block::Block;
use crate::services::hub::cursor::Cursor;
use crate::services::hub::feed::Feed;
use crate::services::hub::journey::head;
use crate::time::deadline::Moment;

/// How often it is said that lines are missing.
const REMINDER: Duration = Duration::from_secs(60);

/// Hubs that are named with what of them is missing.
const NAMED: usize = 20;

/// See above.
#[derive(Debug)]
pub(super) struct Bridge {
    pub(super) options: NatsOptions,
    /// Lines that who connects gets: of the stream, to begin with.
    pub(super) history: usize,
    feed: Arc<Feed>,
    said: Mutex<Said>,
    heard: Mutex<Heard>,
    server: OnceLock<Handle>,
    /// What the stream had when this process began: passed on before the first client comes, unless it takes over.
    past: Mutex<Vec<Message>>,
    has_past: AtomicBool,
    /// Where what came of another process's feed begins.
    held: Mutex<Option<Cursor>>,
    /// Messages of the stream that have not come yet, by the word of the last one.
    lag: AtomicU64,
    /// A connection has come, or come back.
    pub(super) back: Notify,
    /// What was heard was passed on: there may be room for more.
    pub(super) room: Notify,
    /// Something may be to be said, or it is over.
    pub(super) news: Notify,
    /// The workers serve: before that another process speaks.
    serves: AtomicBool,
    connected: AtomicBool,
    /// Nothing more comes: what was said is to arrive.
    ending: AtomicBool,
    /// It has, at a server.
    reached: AtomicBool,
    /// A server says, when it is asked, how far it has come.
    answers: AtomicBool,
    over: AtomicBool,
    reminded: Mutex<Option<Moment>>,
    /// Where the next server finds the hub's name and how far it was in the stream, should this one crash.
    notes: OnceLock<Notes>,
    /// Something was said, or cannot be.
    spoken: Condvar,
}

/// A message as it comes, with the header that says where it belongs, if it has one.
pub(super) type Message = (Option<String>, Vec<u8>);

impl Bridge {
    pub(super) fn new(
        options: NatsOptions,
        feed: &Arc<Feed>,
        max_line: usize,
        history: usize,
    ) -> Self {
        let reach = options.buffer.max(1);
        let stream = stream_number(&options);
        Self {
            options,
            history,
            feed: Arc::clone(feed),
            said: Mutex::new(Said::new(drawn(), feed)),
            heard: Mutex::new(Heard::new(reach, max_line).of_stream(stream)),
            server: OnceLock::new(),
            past: Mutex::new(Vec::new()),
            has_past: AtomicBool::new(false),
            held: Mutex::new(None),
            lag: AtomicU64::new(0),
            back: Notify::new(),
            room: Notify::new(),
            news: Notify::new(),
            serves: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            reached: AtomicBool::new(false),
            answers: AtomicBool::new(false),
            over: AtomicBool::new(false),
            reminded: Mutex::new(None),
            notes: OnceLock::new(),
            spoken: Condvar::new(),
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the hub does.
impl Bridge {
    /// The server that it is in. What the stream had before goes to `publish`, if the feed has nothing.
    pub(super) fn start(&self, server: &Handle, publish: impl FnMut(&[u8], u64) -> bool) {
        let past = std::mem::take(&mut *self.past.lock().unwrap_or_else(PoisonError::into_inner));
        if self.feed.head() == (0, 0) && !past.is_empty() {
            let mut heard = self.heard();
            for (header, payload) in past {
                heard.take(header.and_then(|header| header.parse().ok()), &payload);
            }
            drop(heard);
            self.pass_on(publish);
            self.feed.seal();
            // It was said before this hub was there.
            self.heard().counted = Counted::default();
            self.has_past.store(true, Ordering::Release);
        }
        self.heard().count_in(&server.memory());
        let _ = self.server.set(server.clone());
        // The first round says that the workers serve.
        server.prompt(Duration::ZERO);
    }

    /// Another process's feed takes the place of this one's, which may have nothing but what the stream had.
    pub(super) fn make_way(&self) {
        if self.has_past.swap(false, Ordering::AcqRel) {
            self.feed.begin_at(0, 0);
        }
    }

    /// Has `publish` pass on what was heard, as far as it does. Between rounds of the hub's clients.
    pub(super) fn pass_on(&self, mut publish: impl FnMut(&[u8], u64) -> bool) {
        let mut heard = self.heard();
        if !heard.is_waiting() {
            return;
        }
        self.room.notify_one();
        loop {
            if !self.is_of_this_one(&mut heard) {
                match heard.pass_on(&mut publish) {
                    Progress::Nothing | Progress::Full => return,
                    Progress::Done => {}
                    Progress::Missed(origin, lines) => self.say_missed(origin, lines, &heard),
                }
            }
            self.note_passed(&heard);
        }
    }

    /// Notes how far the stream was passed on.
    fn note_passed(&self, heard: &Heard) {
        if let Some(notes) = self.notes.get()
            && let Some(mark) = heard.mark()
        {
            note_passed(notes, mark);
        }
    }

    fn note_name(&self, said: &Said) {
        if let Some(notes) = self.notes.get() {
            note_name(notes, said.place().origin);
        }
    }

    /// Whether more was heard than was passed on.
    pub(super) fn is_waiting(&self) -> bool {
        self.heard().is_waiting()
    }

    /// The workers serve, and there may be something to be said.
    pub(super) fn serves(&self) {
        if !self.serves.swap(true, Ordering::AcqRel) {
            *self.held() = None;
        }
        let reach = u64::try_from(self.options.buffer).unwrap_or(u64::MAX);
        let mut said = self.said();
        let lost = said.keep_within(&self.feed, reach);
        if lost > 0 && self.is_due() {
            let (_, _, lost) = said.counted();
            log::warn!(subject = self.subject(), lost, buffer = reach; "lines are lost to other hubs: more than --nats-buffer waits for NATS");
        }
        drop(said);
        self.news.notify_one();
    }

    pub(super) fn blocks_behind(&self, from: u64, most: usize) -> Option<Vec<Arc<Block>>> {
        self.said().blocks_behind(&self.feed, from, most)
    }

    /// Has what came of another process's feed stay, until this one serves.
    pub(super) fn hold(&self) {
        self.held().get_or_insert_with(|| self.feed.oldest_reader());
    }

    fn held(&self) -> MutexGuard<'_, Option<Cursor>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that another process needs to go on, with what waits passed on by `publish`.
    pub(super) fn pack(&self, publish: impl FnMut(&[u8], u64) -> bool) -> Vec<u8> {
        self.pass_on(publish);
        let mut bytes = stream_number(&self.options).to_le_bytes().to_vec();
        let mut said = self.said();
        if let Some(now) = self.server.get().map(Handle::now)
            && self.options.stream.is_none()
        {
            said.go_back(&self.feed, now);
        }
        said.pack(&mut bytes);
        drop(said);
        self.heard().pack(&mut bytes);
        bytes
    }

    /// Goes on with that; the feed has come. `None`: these bytes are none.
    pub(super) fn unpack(&self, mut bytes: &[u8]) -> Option<()> {
        let [stream] = head(&mut bytes)?;
        let said = Said::unpack(&mut bytes, &self.feed, self.held().as_ref())?;
        let mut heard = self.heard();
        let begins = heard.spot;
        heard.unpack(&mut bytes)?;
        if stream != stream_number(&self.options) {
            // How far another one was read says nothing of this one.
            heard.spot = begins;
        }
        self.note_passed(&heard);
        drop(heard);
        bytes.is_empty().then_some(())?;
        self.note_name(&said);
        *self.said() = said;
        Some(())
    }

    /// The feed that has come was said by nobody, and what follows it is to be said.
    pub(super) fn begin(&self) {
        let said = Said::new(drawn(), &self.feed);
        self.note_name(&said);
        *self.said() = said;
    }

    /// The same, of the feed of a server that has crashed and left that, if it is of one; the next one finds `notes`.
    #[cfg(control)]
    pub(super) fn go_on(&self, notes: Notes, remains: Option<Remains>) {
        let name = remains.and_then(|remains| remains.next_name());
        let said = Said::new(name.unwrap_or_else(drawn), &self.feed);
        note_passed(&notes, remains.map_or(Mark(0), |remains| remains.passed()));
        // Once: a hub is started by one server.
        let _ = self.notes.set(notes);
        self.note_name(&said);
        *self.said() = said;
        self.heard().remains = remains;
    }

    /// Waits until all is said, while it can be, but no longer than `patience`. Answers whether what was said has arrived, as far
    /// as that can be told.
    pub(super) fn say_all(&self, patience: Duration) -> bool {
        self.feed.seal();
        // A stream says of each message that it has it.
        let can_be_told = self.options.stream.is_none()
            && self.is_connected()
            && self.answers.load(Ordering::Acquire);
        let now = self.server.get().map(Handle::now);
        // What was said long ago has arrived by now, or has not.
        let is_recent = now.is_some_and(|now| self.said().was_recent(now));
        let reached = !can_be_told || !is_recent && self.left().1 == 0;
        self.reached.store(reached, Ordering::Release);
        self.ending.store(true, Ordering::Release);
        self.news.notify_one();
        let is_to_be_said = |said: &mut Said| {
            let is_under_way = !self.reached.load(Ordering::Acquire) || said.left(&self.feed).1 > 0;
            self.is_connected() && !self.is_given() && is_under_way
        };
        // Poisoned or not: what is left is counted next.
        let _ = self
            .spoken
            .wait_timeout_while(self.said(), patience, is_to_be_said);
        self.reached.load(Ordering::Acquire)
    }

    /// It is over: nothing more is said.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// Bytes and lines that were not said.
    pub(super) fn left(&self) -> (u64, u64) {
        self.said().left(&self.feed)
    }

    /// Whether another process goes on with it.
    pub(super) fn is_given(&self) -> bool {
        self.server.get().is_some_and(Handle::was_taken_over)
    }

    pub(super) fn info(&self) -> NatsInfo {
        let heard = self.heard();
        let missed = heard.missed().into_iter().take(NAMED);
        let missed = missed.map(|(origin, lines)| (origin.to_string(), lines));
        let (counted, missed_of, hubs) = (heard.counted, missed.collect(), heard.hubs());
        drop(heard);
        let said = self.said();
        let (lines, bytes, lost) = said.counted();
        NatsInfo {
            subject: self.options.subject.clone(),
            stream: self.options.stream.clone(),
            lag: self.lag.load(Ordering::Relaxed),
            connected: self.is_connected(),
            origin: said.place().origin.to_string(),
            said_lines: lines,
            said_bytes: bytes,
            heard_lines: counted.lines,
            heard_bytes: counted.bytes,
            hubs,
            missed: counted.missed,
            missed_of,
            again: counted.again,
            foreign: counted.foreign,
            too_long: counted.too_long,
            backlog: said.waiting(&self.feed),
            lost,
        }
    }

    /// Leaves the next message out if it is of this hub, and answers whether it was. If it is not of the process that this was
    /// taken over from, somebody else speaks as this hub, which goes by another name then.
    fn is_of_this_one(&self, heard: &mut Heard) -> bool {
        let Some((origin, end)) = heard.next() else {
            return false;
        };
        let mut said = self.said();
        let place = said.place();
        if !origin.is_kin_of(place.origin) {
            return false;
        }
        heard.skip();
        if origin != place.origin {
            // It has spoken like that before a crash.
            return true;
        }
        if end > place.byte + said.waiting(&self.feed) {
            let ours = drawn();
            said.become_another(ours);
            self.note_name(&said);
            log::warn!(subject = self.subject(), origin:% = origin, now:% = ours; "another hub says that it is this one: this one goes by another name");
        }
        true
    }

    fn say_missed(&self, origin: Origin, lines: u64, heard: &Heard) {
        if lines > 0 && self.is_due() {
            let all = heard.counted.missed;
            log::warn!(subject = self.subject(), origin:% = origin, missed = lines, all; "lines of another hub are missing");
        }
    }

    /// Whether a warning is due, of those that are not given time and again.
    fn is_due(&self) -> bool {
        let Some(now) = self.server.get().map(Handle::now) else {
            return true;
        };
        let mut reminded = self.reminded.lock().unwrap_or_else(PoisonError::into_inner);
        let due = reminded.is_none_or(|last| now.since(last) >= REMINDER);
        if due {
            *reminded = Some(now);
        }
        due
    }
}

/// What the thread does.
impl Bridge {
    pub(super) fn subject(&self) -> &str {
        &self.options.subject
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Release);
        self.spoken.notify_all();
        if connected {
            self.news.notify_one();
            self.back.notify_waiters();
        }
    }

    /// Whether this process speaks as the hub.
    pub(super) fn speaks(&self) -> bool {
        self.serves.load(Ordering::Acquire) && !self.is_given()
    }

    /// What is to be said next.
    pub(super) fn next(&self, most: usize) -> Option<Piece> {
        if !self.speaks() {
            return None;
        }
        self.said().next(&self.feed, most)
    }

    /// Where that would be.
    pub(super) fn place(&self) -> Place {
        self.said().place()
    }

    pub(super) fn note_said(&self, piece: &Piece) {
        if let Some(now) = self.server.get().map(Handle::now) {
            self.said().said(piece, now);
        }
        self.spoken.notify_all();
    }

    /// Whether a server answers who asks how far it has come: it may not be allowed.
    pub(super) fn set_answers(&self, answers: bool) {
        self.answers.store(answers, Ordering::Release);
    }

    /// All that there is to be said was, and it is to arrive.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire) && !self.reached.load(Ordering::Acquire)
    }

    /// A server has all that was said.
    pub(super) fn note_reached(&self) {
        // Not while somebody is about to wait for it.
        let said = self.said();
        self.reached.store(true, Ordering::Release);
        drop(said);
        self.spoken.notify_all();
    }

    /// The hub is being started: what the stream has may become its history.
    pub(super) fn is_new(&self) -> bool {
        self.server.get().is_none()
    }

    /// What the stream had, and where that ends.
    pub(super) fn begins_at(&self, spot: Spot, past: Vec<Message>) {
        self.heard().spot.get_or_insert(spot);
        if self.is_new() {
            *self.past.lock().unwrap_or_else(PoisonError::into_inner) = past;
        }
    }

    /// How far the stream was read that was made then and ends at `last` now.
    pub(super) fn sequence_in(&self, made: u64, last: u64) -> u64 {
        self.heard().sequence_in(made, last)
    }

    /// How far the stream was read.
    pub(super) fn heard_messages(&self) -> u64 {
        self.heard().spot.map_or(0, |spot| spot.sequence)
    }

    pub(super) fn set_lag(&self, messages: u64) {
        self.lag.store(messages, Ordering::Relaxed);
    }

    /// What stands at `spot` of the stream has come. Answers whether there was room for it.
    pub(super) fn hear_at(&self, spot: Spot, header: Option<&str>, payload: &[u8]) -> bool {
        let place = header.and_then(|header| header.parse().ok());
        let mut heard = self.heard();
        if place.is_none() && self.options.foreign == Foreign::Drop {
            if !heard.has(spot) {
                heard.counted.foreign += u64::from(!heard.is_known(spot.sequence));
                heard.spot = Some(spot);
            }
            return true;
        }
        let taken = heard.take_at(spot, place, payload);
        drop(heard);
        self.prompt();
        taken
    }

    /// A message has come, with that header, if it had one. Without room it is left out: what is missing shows by the next one.
    pub(super) fn hear(&self, header: Option<&str>, payload: &[u8]) {
        let place = header.and_then(|header| header.parse().ok());
        let mut heard = self.heard();
        if place.is_none() && self.options.foreign == Foreign::Drop {
            heard.counted.foreign += 1;
            return;
        }
        let mut taken = heard.take(place, payload);
        // As long as another process serves that hears it, too, what came first is what that has passed on.
        while !taken && !self.serves.load(Ordering::Acquire) && heard.is_waiting() {
            heard.skip();
            taken = heard.take(place, payload);
        }
        drop(heard);
        self.prompt();
    }

    fn prompt(&self) {
        if let Some(server) = self.server.get().filter(|_| self.speaks()) {
            server.prompt(Duration::ZERO);
        }
    }

    /// The headers of what stands at `place`, so many bytes.
    pub(super) fn headers(place: Place, length: usize) -> [(&'static str, String); 2] {
        let Place { origin, byte, .. } = place;
        let id = format!("{origin}-{byte}-{length}");
        [(HEADER, place.to_string()), ("Nats-Msg-Id", id)]
    }
}

/// A name that no other hub has.
fn drawn() -> Origin {
    Origin::first_of(RandomState::new().hash_one(std::process::id()))
}

/// What tells the stream and its subject from others: FNV-1a, which is the same in every process.
fn stream_number(options: &NatsOptions) -> u64 {
    let Some(stream) = &options.stream else {
        return 0;
    };
    let words = stream.bytes().chain(*b" ").chain(options.subject.bytes());
    words.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
