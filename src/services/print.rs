//! What clients send goes to one output, line by line: `nc -lk` for many clients at once.
//!
//! Workers never write: they put whole lines into a bounded queue, and one thread writes it out. While the queue is
//! full the clients wait, each with what it sent, so a slow output slows them and nothing is lost or torn.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::address::endpoint::Peer;
use crate::handle::Handle;
use crate::memory::{Held, WaitingKind};
use crate::os::threads;
use crate::service::{Context, Exported, Patience, Service};

/// How many bytes may wait for the output before clients are slowed, or an eighth of the budget.
const QUEUE: usize = 1024 * 1024;

/// What an empty buffer may keep of its memory, bytes.
const KEEP: usize = 64 * 1024;

/// What a prefix takes at most: an IPv6 address with its scope and port.
const PREFIX: usize = 72;

/// How often a stop looks whether it has become urgent.
const GLANCE: Duration = Duration::from_millis(50);

/// How long to leave an output alone that takes nothing and does not block.
const RETRY: Duration = Duration::from_millis(10);

/// What clients send goes to one output: byte-exact per client, lines never interleaved. A line longer than the
/// connection's buffer goes in pieces, and what a client left without a line end goes out as it is.
///
/// When the output fails, as a closed pipe does, the server drains.
pub struct Print {
    queue: Arc<Queue>,
    prefix: bool,
    /// Taken by the writing thread when the server starts.
    output: Mutex<Option<Box<dyn Write + Send>>>,
    server: OnceLock<Handle>,
}

impl Print {
    /// Prints to `output`, usually [`std::io::stdout`]. With `prefix`, `PEER: ` stands before each line, and a line
    /// without an end gets one before another client's follows.
    pub fn new(output: impl Write + Send + 'static, prefix: bool) -> Self {
        Self {
            queue: Arc::default(),
            prefix,
            output: Mutex::new(Some(Box::new(output))),
            server: OnceLock::new(),
        }
    }
}

impl fmt::Debug for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Print")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// What waits for the output.
#[derive(Default)]
struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// What the writing thread's buffer takes, beside that.
    writing_takes: usize,
    /// Both, in the server's budget.
    held: Held,
    /// How many bytes may wait.
    most: usize,
    /// Whose line the last byte belongs to, if that has no end yet.
    open: Option<Peer>,
    /// A client was told to wait.
    waited_for: bool,
    /// The writing thread holds bytes that are not out yet.
    writing: bool,
    /// The output failed: everything is dropped.
    failed: bool,
    /// Something was dropped that somebody wanted.
    lost: bool,
    /// Nothing more comes.
    over: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writing thread: takes all that waits, writes it, tells the clients that there is room.
    fn write_out(&self, output: &mut dyn Write, server: &Handle) {
        let mut taken = Vec::new();
        // What a server had that this one has taken over from comes first.
        server.wait_until_alone();
        loop {
            let mut lines = self.lock();
            lines.writing = false;
            self.changed.notify_all();
            while lines.bytes.is_empty() && !lines.over {
                if std::mem::take(&mut lines.waited_for) {
                    // There was no memory for it, though nothing waits.
                    drop(lines);
                    thread::park_timeout(GLANCE);
                    server.resume();
                    lines = self.lock();
                    continue;
                }
                lines = self
                    .changed
                    .wait(lines)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if lines.bytes.is_empty() {
                return;
            }
            taken.clear();
            taken.shrink_to(KEEP);
            std::mem::swap(&mut taken, &mut lines.bytes);
            lines.writing_takes = taken.capacity();
            lines.count();
            lines.writing = true;
            let waited_for = std::mem::take(&mut lines.waited_for);
            drop(lines);
            if waited_for {
                server.resume();
            }
            if let Err(error) = write_all(output, &taken) {
                log::warn!(error:%; "cannot print, draining");
                let mut lines = self.lock();
                lines.failed = true;
                // A reader that has had enough is no fault of anybody's.
                lines.lost = error.kind() != ErrorKind::BrokenPipe;
                lines.writing = false;
                lines.bytes = Vec::new();
                self.changed.notify_all();
                drop(lines);
                server.resume();
                server.drain_at_once();
                return;
            }
        }
    }
}

/// Writes all of it, also to an output that somebody made non-blocking: a terminal or a pipe shared with others.
fn write_all(output: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::park_timeout(RETRY),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    loop {
        match output.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::park_timeout(RETRY),
            flushed => return flushed,
        }
    }
}

impl Lines {
    fn count(&mut self) {
        self.held.set(self.bytes.capacity() + self.writing_takes);
    }

    /// Whether what a client has sent may be added: there is room and memory. If not, it is to wait.
    fn takes(&mut self, prefix: bool, bytes: &[u8]) -> bool {
        if self.failed {
            return true;
        }
        let prefixes = if prefix {
            let ends = bytes.iter().filter(|&&byte| byte == b'\n');
            (ends.count() + 1) * PREFIX
        } else {
            0
        };
        let room = self.bytes.len() < self.most;
        let takes = room && self.bytes.try_reserve(bytes.len() + prefixes).is_ok();
        self.count();
        self.waited_for |= !takes;
        takes
    }

    /// Adds whole lines, or a piece of one, of `peer`.
    fn push(&mut self, peer: Peer, prefix: bool, bytes: &[u8]) {
        if self.failed {
            return;
        }
        if !prefix {
            return self.bytes.extend_from_slice(bytes);
        }
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.open != Some(peer) {
                if self.open.take().is_some() {
                    self.bytes.push(b'\n');
                }
                // Writing into a vector cannot fail.
                let _ = write!(self.bytes, "{peer}: ");
            }
            self.bytes.extend_from_slice(line);
            self.open = (!line.ends_with(b"\n")).then_some(peer);
        }
    }
}

impl Service for Print {
    /// How much of the input that is left was found to have no line end.
    type State = usize;

    fn name(&self) -> &'static str {
        "print"
    }

    fn patience(&self) -> Patience {
        Patience::with_silence()
    }

    fn start(&self, server: &Handle) {
        let output = self
            .output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut output) = output else { return };
        let memory = server.memory();
        let mut lines = self.queue.lock();
        lines.most = QUEUE.min(memory.limit() / 8);
        lines.held = memory.hold(WaitingKind::Stdout);
        drop(lines);
        let _ = self.server.set(server.clone());
        let (queue, handle) = (Arc::clone(&self.queue), server.clone());
        let writing = threads::start("print", move || queue.write_out(&mut *output, &handle));
        if let Err(error) = writing {
            log::error!(error:% = error; "cannot start the printing thread");
            let mut lines = self.queue.lock();
            lines.failed = true;
            lines.lost = true;
            drop(lines);
            server.drain();
        }
    }

    fn hears_out(&self) -> bool {
        true
    }

    fn open(&self, _: &mut Context<'_>) -> usize {
        0
    }

    fn export(&self, _: &usize) -> Option<Exported> {
        Some(Exported::default())
    }

    fn import(&self, _: &Exported) -> Result<usize, String> {
        Ok(0)
    }

    fn input(&self, searched: &mut usize, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let new = bytes.get(*searched..).unwrap_or_default();
        let whole = match new.iter().rposition(|&byte| byte == b'\n') {
            Some(last) => *searched + last + 1,
            None if bytes.len() >= conn.buffer() => bytes.len(),
            None => {
                *searched = bytes.len();
                return 0;
            }
        };
        let mut lines = self.queue.lock();
        if !lines.takes(self.prefix, &bytes[..whole]) {
            drop(lines);
            self.queue.changed.notify_all();
            conn.pause();
            return 0;
        }
        lines.push(conn.peer(), self.prefix, &bytes[..whole]);
        drop(lines);
        self.queue.changed.notify_all();
        *searched = 0;
        whole
    }

    fn end(&self, _: &mut usize, conn: &mut Context<'_>, rest: &[u8]) {
        let mut lines = self.queue.lock();
        if !rest.is_empty() && !lines.takes(self.prefix, rest) {
            drop(lines);
            self.queue.changed.notify_all();
            return conn.pause();
        }
        lines.push(conn.peer(), self.prefix, rest);
        drop(lines);
        self.queue.changed.notify_all();
        conn.finish();
    }

    fn stop(&self, patience: Duration) -> bool {
        let mut lines = self.queue.lock();
        if lines.open.take().is_some() && self.server.get().is_some_and(Handle::was_taken_over) {
            // The process that goes on begins with a line of its own.
            lines.bytes.push(b'\n');
        }
        lines.over = true;
        self.queue.changed.notify_all();
        let mut waited = Duration::ZERO;
        let urgent = || self.server.get().is_some_and(Handle::is_stopping);
        while (lines.writing || !lines.bytes.is_empty())
            && !lines.failed
            && waited < patience
            && !urgent()
        {
            let timeout;
            (lines, timeout) = self
                .queue
                .changed
                .wait_timeout(lines, GLANCE)
                .unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                waited += GLANCE;
            }
        }
        !lines.writing && lines.bytes.is_empty() && !lines.lost
    }
}
