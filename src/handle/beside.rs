//! A server that answers questions about this one.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Handle;
use crate::address::endpoint::Endpoint;

/// That server, and the sockets it does that at: to be lent to a process that takes over.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(super) handle: Handle,
    sockets: Mutex<Vec<(Endpoint, OwnedFd)>>,
    lent: AtomicBool,
}

impl Beside {
    pub(crate) fn new(handle: Handle, sockets: Vec<(Endpoint, OwnedFd)>) -> Self {
        Self {
            handle,
            sockets: Mutex::new(sockets),
            lent: AtomicBool::new(false),
        }
    }

    /// Has `take` have the sockets.
    pub(crate) fn lend<T>(&self, take: impl FnOnce(&[(Endpoint, OwnedFd)]) -> T) -> T {
        self.lent.store(true, Ordering::Release);
        take(&self.sockets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets go of them: they are another process's by now, or nobody's.
    pub(crate) fn close(&self, given: bool) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, socket) in sockets.drain(..) {
            if self.lent.load(Ordering::Acquire) && !given {
                // A process that failed to take over and hangs would go on listening with its copy.
                let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
            }
        }
    }
}
