//! The way into a running server from other threads.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use mio::Waker;

use crate::io::Io;

/// A running server, from outside: cheap to clone, usable from every thread.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    /// Stops accepting, serves what has come, delivers what waits, and ends the server within its drain timeout.
    pub fn drain(&self) {
        self.shared.order(Order::Drain);
    }

    /// Ends the server at once; what is open is cut.
    pub fn stop(&self) {
        self.shared.order(Order::Stop);
    }

    /// Lets connections go on whose service [waits](crate::Context::wait).
    pub fn resume(&self) {
        self.shared.resumed.fetch_add(1, Ordering::Release);
        self.shared.wake_all();
    }

    /// Whether the server was told to end at once.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.shared.ordered() == Order::Stop
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("ordered", &self.shared.ordered())
            .finish_non_exhaustive()
    }
}

/// What a server was last told to do; never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    Run,
    Drain,
    Stop,
}

/// What the workers of a server have in common. Nothing here is touched by a read or a write.
#[derive(Debug)]
pub(crate) struct Shared {
    order: AtomicU8,
    /// Raised by each `resume`.
    pub(crate) resumed: AtomicU64,
    /// The last connection's number.
    last_id: AtomicU64,
    /// The listeners are closed: no worker gets a connection any more.
    pub(crate) closed: AtomicBool,
    /// Accepting is paused for want of room: whoever closes a connection wakes the accepting worker.
    pub(crate) accept_waits: AtomicBool,
    pub(crate) workers: Vec<Mailbox>,
}

/// The way to one worker.
#[derive(Debug)]
pub(crate) struct Mailbox {
    waker: Waker,
    arrivals: Sender<Io>,
    /// Connections it has, those on their way to it included.
    pub(crate) open: AtomicUsize,
}

impl Mailbox {
    pub(crate) fn new(waker: Waker) -> (Self, Receiver<Io>) {
        let (arrivals, receiver) = mpsc::channel();
        (
            Self {
                waker,
                arrivals,
                open: AtomicUsize::new(0),
            },
            receiver,
        )
    }

    /// Gives the worker an accepted connection; it looks when it is woken. Gives it back if the worker is gone.
    pub(crate) fn send(&self, io: Io) -> Result<(), Io> {
        self.arrivals.send(io).map_err(|unsent| unsent.0)
    }

    pub(crate) fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            // An eventfd whose counter is full is awake already.
            if error.kind() != io::ErrorKind::WouldBlock {
                log::error!(error:% = error; "cannot wake a worker");
            }
        }
    }
}

impl Shared {
    pub(crate) fn new(workers: Vec<Mailbox>) -> Self {
        Self {
            order: AtomicU8::new(Order::Run as u8),
            resumed: AtomicU64::new(0),
            last_id: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            accept_waits: AtomicBool::new(false),
            workers,
        }
    }

    pub(crate) fn ordered(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Run,
            1 => Order::Drain,
            _ => Order::Stop,
        }
    }

    fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.wake_all();
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Notes whether accepting waits for a connection to close.
    pub(crate) fn accept_waits(&self, waits: bool) {
        // Against a worker that counts a connection out and then looks here: one of the two sees the other.
        if self.accept_waits.load(Ordering::Relaxed) != waits {
            self.accept_waits.store(waits, Ordering::SeqCst);
        }
    }

    pub(crate) fn wake_all(&self) {
        for worker in &self.workers {
            worker.wake();
        }
    }

    /// The worker with the fewest connections; the asking one, unless another has fewer.
    pub(crate) fn least_loaded(&self, asking: usize) -> usize {
        let open = |at: usize| self.workers[at].open.load(Ordering::Relaxed);
        (0..self.workers.len()).fold(
            asking,
            |best, at| if open(at) < open(best) { at } else { best },
        )
    }
}
