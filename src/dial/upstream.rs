//! Whom a server's connections may be connected to: what [`Context::dial`](crate::Context::dial) is given.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::address::Address;
use crate::dial::Dial;
use crate::error::Error;

/// Whom a server's connections may be connected to: a name or an address with a port, or a Unix socket. Made once, and
/// cheap to clone.
///
/// A name is resolved anew for each attempt, on a thread of its own; answers of the last second are shared by the
/// connections of a worker.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    number: usize,
    dial: Dial,
}

impl Upstream {
    /// `connect_timeout`: longest time for one attempt, the name's resolution and all of its addresses included. `None`:
    /// as long as the system tries (about two minutes).
    ///
    /// # Errors
    /// An address that nobody can be reached at: port 0, `:PORT`, an inherited socket; a timeout below 1 ms.
    pub fn new(address: Address, connect_timeout: Option<Duration>) -> Result<Self, Error> {
        Self::of(Dial {
            connect_timeout,
            ..Dial::new(address)
        })
    }

    /// The same server, which is spoken to with TLS from the first byte: its handshake is within the timeout, and a
    /// service sees what is within. A server's certificate that is refused is
    /// [`DialErrorKind::Certificate`](crate::dial::DialErrorKind::Certificate).
    ///
    /// # Errors
    /// A Unix socket, where no name is given that its certificate is to be for.
    #[cfg(feature = "tls")]
    pub fn with_tls(self, tls: crate::tls::DialTls) -> Result<Self, Error> {
        Self::of(Dial {
            tls: Some(tls),
            ..self.0.dial.clone()
        })
    }

    /// # Errors
    /// What is wrong with that.
    pub(crate) fn of(dial: Dial) -> Result<Self, Error> {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        dial.check()?;
        Ok(Self(Arc::new(Inner {
            number: LAST.fetch_add(1, Ordering::Relaxed),
            dial,
        })))
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.0.dial.address
    }

    /// Which of all there are in this process.
    pub(crate) fn number(&self) -> usize {
        self.0.number
    }

    pub(crate) fn dial(&self) -> &Dial {
        &self.0.dial
    }

    /// Whether it is spoken to with TLS.
    pub(crate) fn has_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.0.dial.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(self.address()).finish()
    }
}
