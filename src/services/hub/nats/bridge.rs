//! What the hub and the thread that speaks with the servers have in common: what is to be said, and what was heard.
//!
//! The thread reads the feed as a client does, and says all but what came from other hubs. What it hears waits here until a
//! worker passes it on, at the beginning of a round. So all that changes the feed happens in the hub's calls, and stands
//! still while a takeover has them stand still.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::heard::{Heard, Progress};
use super::options::{Foreign, NatsOptions};
use super::place::{HEADER, Origin, Place};
use super::said::{Piece, Said};
use crate::handle::Handle;
use crate::inspect::NatsInfo;
use crate::services::hub::feed::Feed;
use crate::time::deadline::Moment;

/// How often it is said that lines are missing.
const REMINDER: Duration = Duration::from_secs(60);

/// Hubs that are named with what of them is missing.
const NAMED: usize = 20;

/// See above.
#[derive(Debug)]
pub(super) struct Bridge {
    pub(super) options: NatsOptions,
    feed: Arc<Feed>,
    said: Mutex<Said>,
    heard: Mutex<Heard>,
    server: OnceLock<Handle>,
    /// Something may be to be said, or it is over.
    pub(super) news: Notify,
    /// The workers serve: before that another process speaks.
    serves: AtomicBool,
    connected: AtomicBool,
    over: AtomicBool,
    reminded: Mutex<Option<Moment>>,
    /// Something was said, or cannot be.
    spoken: Condvar,
}

impl Bridge {
    pub(super) fn new(options: NatsOptions, feed: &Arc<Feed>, max_line: usize) -> Self {
        let reach = options.buffer.max(1);
        Self {
            options,
            feed: Arc::clone(feed),
            said: Mutex::new(Said::new(drawn(), feed)),
            heard: Mutex::new(Heard::new(reach, max_line)),
            server: OnceLock::new(),
            news: Notify::new(),
            serves: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            over: AtomicBool::new(false),
            reminded: Mutex::new(None),
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
    /// The server that it is in.
    pub(super) fn start(&self, server: &Handle) {
        self.heard().count_in(&server.memory());
        let _ = self.server.set(server.clone());
        // The first round says that the workers serve.
        server.prompt(Duration::ZERO);
    }

    /// Has `publish` pass on what was heard, as far as it does. Between rounds of the hub's clients.
    pub(super) fn pass_on(&self, mut publish: impl FnMut(&[&[u8]]) -> bool) {
        let mut heard = self.heard();
        loop {
            if self.is_of_this_one(&mut heard) {
                continue;
            }
            match heard.pass_on(&mut publish) {
                Progress::Nothing | Progress::Full => return,
                Progress::Done => {}
                Progress::Missed(origin, lines) => self.say_missed(origin, lines, &heard),
            }
        }
    }

    /// Whether more was heard than was passed on.
    pub(super) fn is_waiting(&self) -> bool {
        self.heard().is_waiting()
    }

    /// The workers serve, and there may be something to be said.
    pub(super) fn serves(&self) {
        self.serves.store(true, Ordering::Release);
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

    /// All that another process needs to go on, with what waits passed on by `publish`.
    pub(super) fn pack(&self, publish: impl FnMut(&[&[u8]]) -> bool) -> Vec<u8> {
        self.pass_on(publish);
        let mut bytes = Vec::new();
        self.said().pack(&mut bytes);
        self.heard().pack(&mut bytes);
        bytes
    }

    /// Goes on with that; the feed has come. `None`: these bytes are none.
    pub(super) fn unpack(&self, mut bytes: &[u8]) -> Option<()> {
        let said = Said::unpack(&mut bytes, &self.feed)?;
        self.heard().unpack(&mut bytes)?;
        bytes.is_empty().then_some(())?;
        *self.said() = said;
        Some(())
    }

    /// The feed that has come was said by nobody, and what follows it is to be said.
    pub(super) fn begin(&self) {
        *self.said() = Said::new(drawn(), &self.feed);
    }

    /// Waits until all is said, while it can be, but no longer than `patience`.
    pub(super) fn say_all(&self, patience: Duration) {
        self.feed.seal();
        self.news.notify_one();
        let is_to_be_said = |said: &mut Said| {
            self.is_connected() && !self.is_given() && said.left(&self.feed).1 > 0
        };
        // Poisoned or not: what is left is counted next.
        let _ = self
            .spoken
            .wait_timeout_while(self.said(), patience, is_to_be_said);
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
            backlog: said.left(&self.feed).0,
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
        if origin != place.origin {
            return false;
        }
        heard.skip();
        let (left, _) = said.left(&self.feed);
        if end > place.byte + left {
            let ours = drawn();
            said.become_another(ours);
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
        self.said().said(piece);
        self.spoken.notify_all();
    }

    /// A message has come, with that header, if it had one. Without room it is left out: what is missing shows by the next one.
    pub(super) fn hear(&self, header: Option<&str>, payload: &[u8]) {
        let place = header.and_then(|header| header.parse().ok());
        let mut heard = self.heard();
        if place.is_none() && self.options.foreign == Foreign::Drop {
            heard.counted.foreign += 1;
            return;
        }
        heard.take(place, payload);
        drop(heard);
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
    Origin(RandomState::new().hash_one(std::process::id()))
}
