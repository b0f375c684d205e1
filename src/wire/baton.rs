//! What the old process's workers and its conversation with the new one have in common.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::line::{Line, now};
use crate::wire::pace::Pace;
use crate::wire::record::Message;

/// Messages that may be under way: descriptors in flight count against a limit of the sender's, and whatever the new
/// process has not taken in when the freeze begins makes that longer.
const UNDER_WAY: u32 = 4;

/// How long the workers may stand still. Past it the server goes on as if nothing had happened. (The fake of a unit test may
/// have to wait longer for a processor.)
pub(crate) const FREEZE: Duration = Duration::from_millis(if cfg!(test) { 1000 } else { 50 });

/// What is left to be sent may take so long in the freeze.
pub(crate) const FITS: Duration = Duration::from_micros(500);

/// How long the last word may take.
const TOLD: Duration = Duration::from_secs(1);

/// What a worker tells the conversation.
#[derive(Debug)]
pub(crate) enum Event {
    /// Worker 0 has sent the listeners.
    Announced,
    /// It stands still, and everything is sent.
    Frozen(Sum),
    /// It cannot go on, or not in time.
    Failed(Failure),
}

/// Why a freeze comes to nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It takes too long, in words: another may not.
    Late(String),
    /// There can be no takeover, in words.
    Over(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Over(why)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Late(late()),
            _ => Self::Over(lost(&error)),
        }
    }
}

impl Failure {
    pub(crate) fn into_words(self) -> String {
        let (Self::Late(why) | Self::Over(why)) = self;
        why
    }
}

/// What a worker has sent: how many connections, the sum of their numbers, and how many stay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) connections: u64,
    pub(crate) ids: u64,
    pub(crate) staying: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, id: u64) {
        self.connections += 1;
        self.ids = self.ids.wrapping_add(id);
    }

    pub(crate) fn take_away(&mut self, id: u64) {
        self.connections -= 1;
        self.ids = self.ids.wrapping_sub(id);
    }
}

/// How a freeze ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The connections are the new process's.
    Committed,
    /// The server goes on, and another freeze may follow.
    Thawed,
}

/// What becomes of a listener in a takeover, and of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// All of it goes to the new process.
    Goes,
    /// The listener does, where another service has it; its connections are drained here.
    GoesAlone,
    /// It is closed here.
    Stays,
}

/// What all workers share during a takeover.
#[derive(Debug)]
pub(crate) struct Baton {
    pub(crate) line: Line,
    /// By listener.
    fates: Vec<Fate>,
    /// Messages sent by the workers, and taken in by the new process.
    sent: AtomicU32,
    taken: AtomicU32,
    /// How fast the new process takes changes in.
    pace: Mutex<Pace>,
    /// How long each worker's changes would take if they were sent in a freeze, in microseconds; as good as for ever
    /// until it has sent everything once.
    left: Vec<AtomicU64>,
    /// More changes than can be copied: what makes them is held up.
    holding: AtomicBool,
    /// The new process took nothing in meanwhile: nothing is held up before it does.
    hung: AtomicBool,
}

impl Baton {
    pub(crate) fn new(line: Line, fates: Vec<Fate>, workers: usize) -> Self {
        Self {
            line,
            fates,
            sent: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            pace: Mutex::default(),
            left: (0..workers).map(|_| AtomicU64::new(u64::MAX)).collect(),
            holding: AtomicBool::new(false),
            hung: AtomicBool::new(false),
        }
    }

    /// What becomes of a listener, by its number.
    pub(crate) fn fate(&self, listener: u16) -> Fate {
        let fate = self.fates.get(usize::from(listener)).copied();
        fate.unwrap_or(Fate::Goes)
    }

    /// How fast the new process takes changes in.
    pub(crate) fn pace(&self) -> Pace {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has sent everything once; so long what has changed since would take.
    pub(crate) fn set_left(&self, worker: usize, left: Duration) {
        if let Some(place) = self.left.get(worker) {
            let micros = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
            place.store(micros.min(u64::MAX - 1), Ordering::Release);
        }
    }

    /// How long the changes of all workers would take. `None`: one has not sent everything yet.
    pub(crate) fn left(&self) -> Option<Duration> {
        let mut sum = 0_u64;
        for left in &self.left {
            match left.load(Ordering::Acquire) {
                u64::MAX => return None,
                micros => sum = sum.saturating_add(micros),
            }
        }
        Some(Duration::from_micros(sum))
    }

    /// What one worker has left is little enough.
    pub(crate) fn is_little(&self, left: Duration) -> bool {
        let workers = u32::try_from(self.left.len()).unwrap_or(u32::MAX);
        left <= FITS / workers.max(1) / 2
    }

    /// The changes of a worker do not become fewer, however many are sent. Where all workers have sent everything once,
    /// what makes them is held up from here on, as long as the new process takes something in.
    pub(crate) fn hold(&self) {
        if self.left().is_some() && !self.hung.load(Ordering::Acquire) {
            self.holding.store(true, Ordering::Release);
        }
    }

    pub(crate) fn is_holding(&self) -> bool {
        self.holding.load(Ordering::Acquire)
    }

    /// Nothing is held up any more.
    pub(crate) fn release(&self) {
        self.holding.store(false, Ordering::Release);
    }

    /// Nothing is held up for a process that takes nothing in.
    pub(crate) fn give_way(&self) {
        self.hung.store(true, Ordering::Release);
        self.release();
    }

    pub(crate) fn under_way(&self) -> u32 {
        let sent = self.sent.load(Ordering::Acquire);
        sent.wrapping_sub(self.taken.load(Ordering::Acquire))
    }

    /// Whether another message may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.under_way() < UNDER_WAY
    }

    /// Whether another one may be sent of what connections have in common. The workers have the rest of the room: of that
    /// there may be no end.
    pub(crate) fn has_room_ahead(&self) -> bool {
        self.under_way() < UNDER_WAY / 2
    }

    /// The new process has taken in a message, which took it so long. Answers whether workers wait for that.
    pub(crate) fn taken(&self, work: u64, time: Duration) -> bool {
        if work > 0 {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.note(work, time);
        }
        self.taken.fetch_add(1, Ordering::AcqRel);
        self.hung.store(false, Ordering::Release);
        self.under_way() <= UNDER_WAY / 2
    }

    pub(crate) fn pass(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        until: Option<Instant>,
    ) -> io::Result<()> {
        let bytes = message
            .encode()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // Counted before it can be answered for.
        self.sent.fetch_add(1, Ordering::AcqRel);
        let passed = self.line.pass(&bytes, descriptors, until);
        if passed.is_err() {
            self.sent.fetch_sub(1, Ordering::AcqRel);
        }
        passed
    }

    /// Tells the new process that whoever watches over this one knows of it.
    pub(crate) fn say_told(&self) {
        let until = Some(now() + TOLD);
        if let Err(error) = self.pass(&Message::Told, &[], until) {
            log::debug!(error:%; "the new process does not hear that it is known");
        }
    }
}

/// Why the new process is heard no more, in words.
pub(crate) fn lost(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "the new process ended".to_owned(),
        io::ErrorKind::TimedOut => late(),
        _ => error.to_string(),
    }
}

/// The freeze has taken too long.
pub(crate) fn late() -> String {
    let limit = FREEZE.as_millis();
    format!("the new process was not ready within {limit} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_held_up_for_a_process_that_takes_something_in_and_for_no_other() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let line = Line::new(std::sync::Arc::new(near.into()), Duration::from_secs(1)).unwrap();
        let baton = Baton::new(line, Vec::new(), 1);
        baton.hold();
        assert!(!baton.is_holding(), "not everything was sent once");
        baton.set_left(0, FITS);
        baton.hold();
        assert!(baton.is_holding());
        baton.give_way();
        baton.hold();
        assert!(!baton.is_holding(), "it may hang");
        baton.taken(1, Duration::ZERO);
        baton.hold();
        assert!(baton.is_holding(), "it does not");
    }
}
