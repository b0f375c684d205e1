//! stdin: a thread of its own reads it and puts what it reads where it waits for the server; while that is full it
//! does not read. What waits, and what is dropped, is for `outgoing.rs` to say.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::PollFlags;
use rustix::io::read;
use standfast::client::Wake;
use standfast::process::threads;

use crate::connect::line_ends::LineEnds;
use crate::connect::outgoing::Outgoing;
use crate::{Failure, blocking};

/// Most bytes of one read.
const CHUNK: usize = 64 * 1024;

/// stdin and what of it waits for the server, shared by the thread that reads and the one that sends.
#[derive(Debug)]
pub(crate) struct Input {
    state: Mutex<State>,
    /// There is room again, or nothing more is wanted.
    changed: Condvar,
}

/// How stdin stands.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) outgoing: Outgoing,
    /// Bytes that were read and found no room yet.
    in_hand: usize,
    /// Bytes that were read, in all.
    pub(crate) given: u64,
    /// Why it could not be read to its end.
    pub(crate) failure: Option<io::Error>,
    /// Nothing more is to be read: a signal came.
    pub(crate) stopped: bool,
    /// A second one came.
    pub(crate) urgent: bool,
}

impl State {
    /// Bytes that were read and not given to the kernel.
    pub(crate) fn unsent(&self) -> u64 {
        (self.outgoing.len() + self.in_hand) as u64
    }
}

impl Input {
    pub(crate) fn new(outgoing: Outgoing) -> Self {
        Self {
            state: Mutex::new(State {
                outgoing,
                in_hand: 0,
                given: 0,
                failure: None,
                stopped: false,
                urgent: false,
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits has become less, or may be dropped now.
    pub(crate) fn has_moved(&self) {
        self.changed.notify_all();
    }

    /// Nothing more is read. What was read is still to be sent, if there is time for it.
    pub(crate) fn stop(&self, at_once: bool) {
        let mut state = self.lock();
        state.stopped = true;
        state.urgent |= at_once;
        self.changed.notify_all();
    }

    /// Starts to read, at most `most` bytes at a time. The thread ends with stdin or with the program.
    pub(crate) fn start(
        self: &Arc<Self>,
        most: usize,
        crlf: bool,
        wake: Wake,
    ) -> Result<(), Failure> {
        let input = Arc::clone(self);
        threads::start("stdin", move || {
            let ended = input.read_all(most.min(CHUNK), crlf, &wake);
            let mut state = input.lock();
            state.failure = ended.err();
            state.outgoing.end();
            drop(state);
            wake.wake();
        })
        .map_err(|error| Failure::failed(format!("cannot start to read stdin: {error}")))?;
        Ok(())
    }

    fn read_all(&self, most: usize, crlf: bool, wake: &Wake) -> io::Result<()> {
        let mut ends = crlf.then(LineEnds::default);
        let (mut chunk, mut converted) = (vec![0; most], Vec::new());
        let stdin = io::stdin().lock();
        loop {
            let wanted = self
                .changed
                .wait_while(self.lock(), |state| {
                    !state.outgoing.takes_more() && !state.stopped
                })
                .is_ok_and(|state| !state.stopped);
            if !wanted {
                return Ok(());
            }
            let count = blocking::patiently(&stdin, PollFlags::IN, || read(&stdin, &mut *chunk))?;
            if count == 0 {
                return Ok(());
            }
            let mut bytes = &chunk[..count];
            if let Some(ends) = &mut ends {
                ends.convert(bytes, &mut converted);
                bytes = &converted;
            }
            self.put(bytes, wake);
        }
    }

    /// Puts all of `bytes` where they wait, as there is room.
    fn put(&self, mut bytes: &[u8], wake: &Wake) {
        let mut state = self.lock();
        if state.stopped {
            // Read after the end was asked for.
            return;
        }
        state.given += bytes.len() as u64;
        loop {
            let was_empty = state.outgoing.len() == 0;
            let taken = state.outgoing.push(bytes);
            bytes = &bytes[taken..];
            state.in_hand = bytes.len();
            if was_empty && taken > 0 {
                // What waits already was announced, or waits for the kernel or for a connection.
                wake.wake();
            }
            if bytes.is_empty() {
                return;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// How many bytes stdin holds: those in a pipe, and the rest of a file (`FIONREAD`). Where that cannot be known, none.
pub(crate) fn unread() -> u64 {
    rustix::io::ioctl_fionread(io::stdin().as_fd()).unwrap_or(0)
}
