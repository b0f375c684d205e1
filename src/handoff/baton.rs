//! What the old process's workers and its conversation with the new one have in common.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::control::line::{Line, now};
use crate::handoff::record::Message;

/// Messages that may be under way: descriptors in flight count against a limit of the sender's, and whatever the new
/// process has not taken in when the freeze begins makes that longer.
const UNDER_WAY: u32 = 4;

/// How long the workers may stand still. Past it the server goes on as if nothing had happened.
pub(crate) const FREEZE: Duration = Duration::from_millis(50);

/// How long the last word may take.
const TOLD: Duration = Duration::from_secs(1);

/// What a worker tells the conversation.
#[derive(Debug)]
pub(crate) enum Event {
    /// Worker 0 has sent the listeners.
    Announced,
    /// Everything it has was sent, and little has changed since.
    Copied,
    /// It stands still, and everything is sent.
    Frozen(Sum),
    /// It cannot go on.
    Failed(String),
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
    /// The server goes on.
    Resumed,
}

/// What all workers share during a takeover.
#[derive(Debug)]
pub(crate) struct Baton {
    pub(crate) line: Line,
    /// Messages sent by the workers, and taken in by the new process.
    sent: AtomicU32,
    taken: AtomicU32,
}

impl Baton {
    pub(crate) fn new(line: Line) -> Self {
        Self {
            line,
            sent: AtomicU32::new(0),
            taken: AtomicU32::new(0),
        }
    }

    pub(crate) fn under_way(&self) -> u32 {
        let sent = self.sent.load(Ordering::Acquire);
        sent.wrapping_sub(self.taken.load(Ordering::Acquire))
    }

    /// Whether another message may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.under_way() < UNDER_WAY
    }

    /// The new process has taken in `count` messages. Answers whether workers wait for that.
    pub(crate) fn taken(&self, count: u32) -> bool {
        self.taken.fetch_add(count, Ordering::AcqRel);
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
