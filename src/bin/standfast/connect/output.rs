//! stdout: a thread of its own writes it, so that a reader which is slow slows the server and never the program. What
//! waits is bounded by whoever puts it here: it stops reading from the server when told that there is no room.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::PollFlags;
use rustix::io::write;
use standfast::client::Wake;
use standfast::process::{Allowance, threads};

use crate::{Failure, blocking, stdout};

/// Most bytes of one write, so that room is seen while a large batch is under way.
const PIECE: usize = 64 * 1024;

/// What waits for stdout, shared by the thread that writes and the one that receives.
#[derive(Debug)]
pub(crate) struct Output {
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// What is left of the batch that is being written.
    writing: usize,
    /// Somebody was told that there is no room.
    wants_room: bool,
    /// Nothing more comes.
    complete: bool,
    /// stdout takes no more.
    closed: bool,
    /// Why, until somebody has heard it.
    failure: Option<io::Error>,
    hurry: Hurry,
}

/// How long the end may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hurry {
    /// As long as stdout needs.
    #[default]
    Not,
    /// A bounded time.
    Soon,
    AtOnce,
}

impl State {
    fn len(&self) -> usize {
        self.waiting.len() + self.writing
    }
}

impl Output {
    /// At most about `most` bytes are to wait.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to write. The thread ends when all is out, or with the program.
    pub(crate) fn start(self: &Arc<Self>, wake: Wake) -> Result<(), Failure> {
        let failed = |error| Failure::failed(format!("cannot start to write stdout: {error}"));
        let (output, writing) = (Arc::clone(self), wake.clone());
        threads::start("stdout", move || {
            if let Err(error) = output.write_all(&writing) {
                output.fail(error, &writing);
            }
        })
        .map_err(failed)?;
        let output = Arc::clone(self);
        stdout::watch(move || output.fail(ErrorKind::BrokenPipe.into(), &wake)).map_err(failed)
    }

    /// stdout takes no more.
    fn fail(&self, error: io::Error, wake: &Wake) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        state.waiting = Vec::new();
        state.writing = 0;
        state.failure = Some(error);
        self.changed.notify_all();
        drop(state);
        wake.wake();
    }

    /// Puts `bytes` behind what waits. Answers whether there is room for more; if not, the loop is woken when there is.
    pub(crate) fn put(&self, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        if state.closed {
            return true;
        }
        state.waiting.extend_from_slice(bytes);
        state.wants_room = state.len() >= self.most;
        self.changed.notify_all();
        !state.wants_room
    }

    /// Whether there is room for more.
    pub(crate) fn has_room(&self) -> bool {
        !self.lock().wants_room
    }

    /// Why stdout takes no more, said once.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.lock().failure.take()
    }

    /// The end is to come soon, or at once.
    pub(crate) fn hurry(&self, at_once: bool) {
        let mut state = self.lock();
        state.hurry = if at_once { Hurry::AtOnce } else { Hurry::Soon };
        self.changed.notify_all();
    }

    /// Waits until all that was put here is written; when that is to be soon, no longer than `patience`. Answers how many
    /// bytes are left.
    ///
    /// # Errors
    /// What the system said of stdout.
    pub(crate) fn finish(&self, mut patience: Allowance) -> io::Result<usize> {
        let mut state = self.lock();
        state.complete = true;
        self.changed.notify_all();
        loop {
            if let Some(error) = state.failure.take() {
                return Err(error);
            }
            if state.len() == 0 || state.hurry == Hurry::AtOnce {
                return Ok(state.len());
            }
            if state.hurry == Hurry::Not {
                state = self.wait(state);
                continue;
            }
            let Some(piece) = patience.piece() else {
                return Ok(state.len());
            };
            let woken = self.changed.wait_timeout(state, piece);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write_all(&self, wake: &Wake) -> io::Result<()> {
        let mut opened = None;
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() {
                if state.complete {
                    return Ok(());
                }
                state = self.wait(state);
            }
            std::mem::swap(&mut state.waiting, &mut batch);
            state.writing = batch.len();
            drop(state);
            let stdout = match opened {
                Some(ref stdout) => stdout,
                None => &*opened.insert(stdout::open()?),
            };
            let mut left = batch.as_slice();
            while !left.is_empty() {
                let piece = &left[..left.len().min(PIECE)];
                let count = blocking::patiently(stdout, PollFlags::OUT, || write(stdout, piece))?;
                left = &left[count..];
                let mut state = self.lock();
                state.writing = left.len();
                if state.wants_room && state.len() <= self.most / 2 {
                    state.wants_room = false;
                    wake.wake();
                }
                if state.len() == 0 {
                    self.changed.notify_all();
                }
            }
            batch.clear();
        }
    }
}
