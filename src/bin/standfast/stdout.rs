//! stdout: what a command has to show there, what a server says of itself, and what it prints.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use standfast::process::{Allowance, threads};

use crate::blocking::write_whole;
use crate::{Failure, blocking};

/// How long the end of a server waits for its first words to be out, which nobody may have read.
const PATIENCE: Duration = Duration::from_secs(1);

/// stdout, unbuffered, and without the standard library's tolerance of a closed one.
///
/// # Errors
/// `EBADF` if it was closed when this process was started, where the runtime has put `/dev/null` since, or is only for
/// reading.
pub(crate) fn open() -> io::Result<File> {
    let stdout = io::stdout();
    let reads_only = fcntl_getfl(&stdout)? & OFlags::RWMODE == OFlags::RDONLY;
    if reads_only || standfast::process::inherited::stdout_was_closed() {
        return Err(Errno::BADF.into());
    }
    Ok(stdout.as_fd().try_clone_to_owned()?.into())
}

/// Refuses to begin what would have nowhere to go.
///
/// # Errors
/// As [`open`].
pub(crate) fn check() -> Result<(), Failure> {
    open().map(drop).map_err(|error| failed(&error))
}

/// Shows `text`. A reader that has had enough is no fault of anybody's.
///
/// # Errors
/// What else the system said.
pub(crate) fn show(text: &str) -> Result<(), Failure> {
    match open().and_then(|stdout| write_whole(&stdout, text.as_bytes())) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(&error)),
        _ => Ok(()),
    }
}

/// Calls `gone` when nobody reads stdout any more, be there something to write or not: a pipe whose reader has ended, a
/// connection that was reset. A terminal that hung up says so by SIGHUP, and whoever ignores that wants to go on.
///
/// # Errors
/// No thread to wait with: it blocks in poll(2), which alone can tell.
pub(crate) fn watch(gone: impl FnOnce() + Send + 'static) -> io::Result<()> {
    if io::stdout().is_terminal() {
        return Ok(());
    }
    threads::start("stdout watch", move || {
        // POLLERR is told whether asked for or not. Without it this is a file, to which nothing of it applies, or a hang-up,
        // after which bytes may still be read.
        let told = blocking::until(&io::stdout(), PollFlags::empty());
        if told.is_ok_and(|told| told.contains(PollFlags::ERR)) {
            gone();
        }
    })?;
    Ok(())
}

/// Why stdout could not be written to, in one line.
pub(crate) fn failed(error: &io::Error) -> Failure {
    let hint = match Errno::from_io_error(error) {
        Some(Errno::BADF) => "; it is not open for writing: where nothing is wanted, >/dev/null",
        _ => "",
    };
    Failure::failed(format!("cannot write to stdout: {error}{hint}"))
}

/// A server's first words.
static GREETING: Greeting = Greeting {
    state: Mutex::new(State::Unsaid),
    changed: Condvar::new(),
};

struct Greeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unsaid,
    UnderWay,
    /// Out, or never to be: whoever closed stdout does not want to know.
    Over,
}

impl Greeting {
    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.changed.notify_all();
    }

    /// Waits while the words are under way, for at most `bound`.
    fn wait(&self, bound: Duration) {
        let mut bound = Allowance::new(bound);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while *state == State::UnderWay
            && let Some(piece) = bound.piece()
        {
            let waited = self.changed.wait_timeout(state, piece);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Says a server's first words, on a thread of its own: a stdout that takes nothing, as that of a log collector that
/// hangs or of a terminal after Ctrl-S, keeps the server from nothing.
pub(crate) fn greet(words: String) {
    GREETING.set(State::UnderWay);
    let speaking = threads::start("greeting", move || {
        let _ = open().and_then(|stdout| write_whole(&stdout, words.as_bytes()));
        GREETING.set(State::Over);
    });
    if let Err(error) = speaking {
        log::warn!(error:%; "cannot say on stdout where it listens");
        GREETING.set(State::Over);
    }
}

/// Waits, within bounds, until a server's first words are out.
pub(crate) fn until_greeted() {
    GREETING.wait(PATIENCE);
}

/// stdout for a service that prints: what it prints comes after the server's first words.
#[derive(Debug)]
pub(crate) struct Print(File);

impl Print {
    /// # Errors
    /// As [`open`].
    pub(crate) fn open() -> Result<Self, Failure> {
        match open() {
            Ok(stdout) => Ok(Self(stdout)),
            Err(error) => Err(failed(&error)),
        }
    }
}

impl Write for Print {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Of several listeners that print, one at a time writes all of its lines.
        static TURN: Mutex<()> = Mutex::new(());
        GREETING.wait(Duration::MAX);
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        write_whole(&self.0, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
