//! What clients send goes to one output, line by line: `nc -lk` for many clients at once.
//!
//! Workers never write: they put whole lines into a bounded queue, and one thread writes it out. While the queue is
//! full the clients wait, each with what it sent, so a slow output slows them and nothing is lost or torn.
//!
//! Behind a keeper what is put into the queue stands in a journal, too, until it has been written: the next server goes on with that
//! after a crash. Beside bytes stands how much of their client's input had been printed with them, so that nothing is put there twice. What was
//! just being written, a piece of some KiB, is written again, for nobody knows how much of it has left: behind a line end, or a line
//! would be glued to a piece of itself.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::address::endpoint::Peer;
use crate::handle::Handle;
use crate::memory::{Held, WaitingKind};
use crate::os::fault::may_die;
use crate::os::journal::{Journal, Notes, Record};
use crate::os::threads;
#[cfg(control)]
use crate::service::Left;
use crate::service::{Context, Exported, Patience, Service, Survive};

/// How many bytes may wait for the output before clients are slowed, or an eighth of the budget.
const QUEUE: usize = 1024 * 1024;

/// What an empty buffer may keep of its memory, bytes.
const KEEP: usize = 64 * 1024;

/// What a prefix takes at most: an IPv6 address with its scope and port.
const PREFIX: usize = 72;

/// With a journal, what is written in one go and may come twice, bytes, unless one line alone is longer.
const PIECE: usize = 16 * 1024;

/// What a journal has room for beside what waits, bytes: what is just being added, and what stands before each piece.
#[cfg(control)]
const ROOM: usize = 256 * 1024;

/// The words of a journal: up to where the output has been written, and where that ends which is being written.
const WRITTEN: usize = 0;
const CLAIMED: usize = 1;

/// So many lines go into the queue at once, where each gets a prefix.
const LOT: usize = 1024;

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
    /// Up to where clients of the server before have been heard whose last words may come again.
    heard: Mutex<HashMap<u64, u64>>,
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
            heard: Mutex::default(),
        }
    }

    /// As much of some lines as goes into the queue at once: prefixes may be longer than the lines.
    fn lot<'a>(&self, lines: &'a [u8]) -> &'a [u8] {
        if !self.prefix {
            return lines;
        }
        let mut ends = lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let end = ends.nth(LOT - 1).map_or(lines.len(), |(end, _)| end + 1);
        &lines[..end]
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
    /// Where it stands for the next server, should this one crash.
    journal: Option<Journal>,
    /// The bytes that were ever added, and those of them that have been written, if there is a journal.
    end: u64,
    written: u64,
    /// A server was killed as it wrote what comes next.
    torn: bool,
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
            lines.written += taken.len() as u64;
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
            let torn = std::mem::take(&mut lines.torn);
            let (from, notes) = (lines.written, lines.notes());
            let waited_for = std::mem::take(&mut lines.waited_for);
            drop(lines);
            if waited_for {
                server.resume();
            }
            let written = match notes {
                Some(notes) => write_pieces(output, &taken, torn, from, &notes),
                None => write_all(output, &taken),
            };
            if let Err(error) = written {
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

/// As [`write_all`], in pieces, each of which is noted before it is written and after that: `from` is where they begin.
fn write_pieces(
    output: &mut dyn Write,
    mut bytes: &[u8],
    torn: bool,
    mut from: u64,
    notes: &Notes,
) -> io::Result<()> {
    if torn {
        write_all(output, b"\n")?;
    }
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(piece(bytes));
        bytes = rest;
        from += piece.len() as u64;
        notes.set(CLAIMED, from);
        may_die("print-claimed");
        write_all(output, piece)?;
        may_die("print-written");
        notes.set(WRITTEN, from);
    }
    Ok(())
}

/// How much of `bytes` is written at once: whole lines, for after a crash all of it comes again, and one line at least.
fn piece(bytes: &[u8]) -> usize {
    let is_end = |byte: &u8| *byte == b'\n';
    let (most, rest) = bytes.split_at(bytes.len().min(PIECE));
    match most.iter().rposition(is_end) {
        Some(last) => last + 1,
        None => {
            let end = rest.iter().position(is_end);
            end.map_or(bytes.len(), |end| most.len() + end + 1)
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
        let room = self.bytes.len() < self.most && self.has_room(bytes.len() + prefixes);
        let takes = room && self.bytes.try_reserve(bytes.len() + prefixes).is_ok();
        self.count();
        self.waited_for |= !takes;
        takes
    }

    /// Whether its journal, if there is one, has room for so many bytes more.
    fn has_room(&mut self, bytes: usize) -> bool {
        self.journal.as_mut().is_none_or(|journal| {
            let written = journal.noted(WRITTEN);
            journal.has_room(bytes, 1, written)
        })
    }

    fn notes(&self) -> Option<Notes> {
        self.journal.as_ref().map(Journal::notes)
    }

    /// Adds whole lines, or a piece of one, of a client, whose input ends at `heard` with them.
    fn push(&mut self, conn: &Context<'_>, heard: u64, prefix: bool, bytes: &[u8]) {
        if self.failed {
            return;
        }
        let from = self.bytes.len();
        self.add(conn.peer(), prefix, bytes);
        self.note(conn.id(), heard, from);
        may_die("print-noted");
    }

    /// What was added from there on stands in the journal.
    fn note(&mut self, sender: u64, heard: u64, from: usize) {
        let (Some(journal), bytes) = (&mut self.journal, &self.bytes[from..]) else {
            return;
        };
        if bytes.is_empty() {
            return;
        }
        let record = Record {
            position: self.end,
            line: 0,
            sender,
            heard,
            is_whole: false,
        };
        self.end += bytes.len() as u64;
        let written = journal.noted(WRITTEN);
        journal.append(&record, bytes, written);
    }

    fn add(&mut self, peer: Peer, prefix: bool, bytes: &[u8]) {
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

#[cfg(control)]
impl Lines {
    /// What a server before had not written is to be written. Answers up to where its clients had been heard.
    fn go_on_from(&mut self, left: Left, prefix: bool) -> HashMap<u64, u64> {
        let Left {
            mut journal,
            living,
        } = left;
        let (written, claimed) = (journal.noted(WRITTEN), journal.noted(CLAIMED));
        let mut heard = HashMap::new();
        let (mut is_line, mut stands) = (true, true);
        for (record, bytes) in journal.records() {
            if living.contains(&record.sender) {
                heard.insert(record.sender, record.heard);
            }
            is_line = bytes.last().map_or(is_line, |&last| last == b'\n');
            self.end = record.position + bytes.len() as u64;
            let known = usize::try_from(written.saturating_sub(record.position));
            let rest = bytes.get(known.unwrap_or(usize::MAX)..);
            self.bytes.extend_from_slice(rest.unwrap_or_default());
            if let Some(journal) = &mut self.journal {
                stands &= journal.append(&record, &bytes, written);
            }
        }
        if !stands {
            log::warn!(
                "there is no room for all that is still to be printed: another crash before that loses some of it"
            );
        }
        self.end = self.end.max(written);
        self.written = self.end - self.bytes.len() as u64;
        self.torn = claimed > written;
        if let Some(notes) = self.notes() {
            // It stays so until that is written.
            notes.set(WRITTEN, written);
            notes.set(CLAIMED, claimed);
        }
        if prefix && !is_line {
            // Whose that was nobody knows.
            let from = self.bytes.len();
            self.bytes.push(b'\n');
            self.note(0, 0, from);
        }
        heard
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

    fn survive(&self) -> Survive {
        Survive::Journal
    }

    #[cfg(control)]
    fn journal_room(&self, buffer: usize) -> usize {
        // What waits, and as much that is being written.
        let waits = buffer.saturating_mul(2).saturating_add(QUEUE);
        waits.saturating_mul(2).saturating_add(ROOM)
    }

    #[cfg(control)]
    fn keep_journal(&self, journal: Journal, left: Option<Left>) {
        let mut lines = self.queue.lock();
        lines.journal = Some(journal);
        if let Some(left) = left {
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) =
                lines.go_on_from(left, self.prefix);
        }
    }

    #[cfg(control)]
    fn reopen(&self, conn: &mut Context<'_>) -> usize {
        let heard = self.heard.lock();
        let heard = heard
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&conn.id());
        conn.skip_input(heard.unwrap_or(0));
        0
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
        let at = conn.input_at(bytes.len());
        let mut used = 0;
        while used < whole {
            let lot = self.lot(&bytes[used..whole]);
            let mut lines = self.queue.lock();
            let takes = lines.takes(self.prefix, lot);
            if takes {
                used += lot.len();
                lines.push(conn, at + used as u64, self.prefix, lot);
            }
            drop(lines);
            self.queue.changed.notify_all();
            if !takes {
                conn.pause();
                break;
            }
        }
        if used > 0 {
            *searched = 0;
        }
        used
    }

    fn end(&self, _: &mut usize, conn: &mut Context<'_>, rest: &[u8]) {
        let mut lines = self.queue.lock();
        if !rest.is_empty() && !lines.takes(self.prefix, rest) {
            drop(lines);
            self.queue.changed.notify_all();
            return conn.pause();
        }
        let heard = conn.input_at(rest.len()) + rest.len() as u64;
        lines.push(conn, heard, self.prefix, rest);
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
