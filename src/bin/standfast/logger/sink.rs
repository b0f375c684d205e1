//! Where the lines of the log go, stderr or a file, and the one thread that writes them.
//!
//! A file is opened for appending, so that lines of two processes, as in a takeover, stand whole beside one another. What
//! cannot be written is dropped and counted: nobody waits for a log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use log::kv::Value;
use log::{Level, Record};
use rustix::event::PollFlags;
use standfast::memory::Held;

use super::line::Style;
use super::rate::Rates;
use crate::blocking::wait;

/// How often it is said at most what is missing.
const PERIOD: Duration = Duration::from_secs(1);

/// How long it is waited for room before it is looked whether the file is to be opened anew.
const GLANCE: Duration = Duration::from_millis(100);

/// What the thread is sent.
pub(super) enum Item {
    Line(Vec<u8>, Option<Held>),
    /// What is missing is to be said now.
    Account,
    /// There is something to look at.
    Wake,
    /// Whoever waits is to know that all before it is out.
    Flush(Sender<()>),
}

/// What the threads that log share with the one that writes.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Lines that found no room in the queue.
    pub(super) dropped: AtomicU64,
    /// The file is to be opened anew. Set by a signal.
    pub(super) reopens: Arc<AtomicBool>,
}

enum Out {
    Stderr(io::Stderr),
    File(File),
}

impl AsFd for Out {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stderr(stderr) => stderr.as_fd(),
            Self::File(file) => file.as_fd(),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr(stderr) => stderr.write(bytes),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file at `path`, to append to.
///
/// A FIFO is opened for reading, too: then it is there whether or not anybody reads it, and what it has no room for waits.
///
/// # Errors
/// What the system says.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let is_fifo = fs::metadata(path).is_ok_and(|of| of.file_type().is_fifo());
    OpenOptions::new()
        .read(is_fifo)
        .append(true)
        .create(!is_fifo)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

pub(super) struct Sink {
    out: Out,
    path: Option<PathBuf>,
    style: Style,
    shared: Arc<Shared>,
    rates: Option<Arc<Rates>>,
    /// The last line ends in its middle.
    is_torn: bool,
    /// Lines that could not be written, and why the last one could not.
    failed: u64,
    why: Option<String>,
    /// When it is to be said what is missing, if anything is.
    due: Option<Instant>,
}

impl Sink {
    /// # Errors
    /// A file that cannot be opened.
    pub(super) fn new(
        path: Option<&Path>,
        style: Style,
        shared: Arc<Shared>,
        rates: Option<Arc<Rates>>,
    ) -> io::Result<Self> {
        let file = path.map(open).transpose()?;
        Ok(Self {
            out: file.map_or_else(|| Out::Stderr(io::stderr()), Out::File),
            path: path.map(Path::to_owned),
            style,
            shared,
            rates,
            is_torn: false,
            failed: 0,
            why: None,
            due: None,
        })
    }

    pub(super) fn run(mut self, items: &Receiver<Item>) {
        loop {
            let now = now();
            if self.lacks_something() {
                let due = *self.due.get_or_insert(now + PERIOD);
                if due <= now {
                    self.account();
                    continue;
                }
            }
            let pause = self.due.map_or(Duration::from_secs(3600), |due| due - now);
            match items.recv_timeout(pause) {
                Ok(Item::Line(line, _held)) => self.write(&line),
                Ok(Item::Account) => self.account(),
                Ok(Item::Wake) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Item::Flush(done)) => {
                    self.account();
                    // Nobody may wait any more.
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.reopen_if_asked();
        }
    }

    fn lacks_something(&self) -> bool {
        let rates = self.rates.as_ref();
        self.failed > 0
            || self.shared.dropped.load(Ordering::Relaxed) > 0
            || rates.is_some_and(|rates| rates.has_left_out())
    }

    /// Says what is missing.
    fn account(&mut self) {
        self.due = None;
        let left_out = self.rates.as_ref().map(|rates| rates.take());
        for (reason, count) in left_out.into_iter().flatten() {
            let facts = [
                ("count", Value::from(count)),
                ("reason", Value::from(reason.as_str())),
            ];
            self.say(Level::Info, "log lines left out", &facts);
        }
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        let failed = std::mem::take(&mut self.failed);
        let why = self.why.take();
        if dropped + failed == 0 {
            return;
        }
        let slow = match self.out {
            Out::Stderr(_) => "stderr was too slow",
            Out::File(_) => "the log file was too slow",
        };
        let facts = [
            ("count", Value::from(dropped + failed)),
            ("why", Value::from(why.as_deref().unwrap_or(slow))),
        ];
        self.say(Level::Warn, "log lines dropped", &facts);
        if self.failed > 0 {
            // What says so is none of them.
            self.failed = dropped + failed;
        }
    }

    /// A line of this file's own, behind what waits.
    fn say(&mut self, level: Level, message: &str, facts: &[(&str, Value<'_>)]) {
        if level > log::max_level() {
            return;
        }
        let mut line = Vec::new();
        let record = self.style.write(
            &mut line,
            &Record::builder()
                .level(level)
                .target("standfast")
                .args(format_args!("{message}"))
                .key_values(&facts)
                .build(),
        );
        // Into memory.
        if record.is_ok() {
            self.write(&line);
        }
    }

    /// Writes a line, or counts it.
    fn write(&mut self, line: &[u8]) {
        let whole = match self.is_torn {
            true => &[b"\n", line].concat(),
            false => line,
        };
        let mut left = whole;
        while !left.is_empty() {
            match self.out.write(left) {
                Ok(count @ 1..) => left = &left[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Somebody made stderr non-blocking, or it is a FIFO that is full.
                    let waited = wait(&self.out, PollFlags::OUT, GLANCE);
                    if left.len() == whole.len() && self.reopen_if_asked() {
                        return self.write(line);
                    }
                    if waited.is_err() {
                        return self.failed("it cannot be waited for".to_owned());
                    }
                }
                // Nobody is left to tell.
                Err(error)
                    if error.kind() == ErrorKind::BrokenPipe
                        && matches!(self.out, Out::Stderr(_)) =>
                {
                    return;
                }
                Ok(_) => return self.failed("it takes nothing".to_owned()),
                Err(error) => {
                    self.is_torn |= left.len() < whole.len();
                    return self.failed(error.to_string());
                }
            }
        }
        self.is_torn = false;
    }

    fn failed(&mut self, why: String) {
        self.failed += 1;
        self.why = Some(why);
    }

    /// Answers whether it was another file from then on.
    fn reopen_if_asked(&mut self) -> bool {
        if !self.shared.reopens.swap(false, Ordering::Relaxed) {
            return false;
        }
        let Some(path) = self.path.clone() else {
            return false;
        };
        let shown = path.display().to_string();
        match open(&path) {
            Ok(file) => {
                self.out = Out::File(file);
                self.is_torn = false;
                let facts = [("path", Value::from(shown.as_str()))];
                self.say(Level::Info, "log file opened anew", &facts);
                true
            }
            Err(error) => {
                let error = error.to_string();
                let facts = [
                    ("path", Value::from(shown.as_str())),
                    ("error", Value::from(error.as_str())),
                ];
                let message = "cannot open the log file anew, going on with the one that is open";
                self.say(Level::Warn, message, &facts);
                false
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread is no loop of a server's, which have the clock"
)]
fn now() -> Instant {
    Instant::now()
}
