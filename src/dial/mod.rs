//! The engine's other door: from the name of a server to a connected socket, or to the reason why there is none.
//!
//! Whoever wants that, a client's link or a server's connection, goes the same way (`dialing.rs`): the name is resolved
//! (`resolve.rs`), then one attempt (`attempt.rs`) tries every address of the server, the next one as soon as the former
//! fails or has not answered for a while, and takes the first that answers (RFC 8305, "Happy Eyeballs"). When to dial,
//! and how often, is for the owner of the loop to say.

mod attempt;
pub(crate) mod backoff;
mod dialing;
mod error;
#[cfg(test)]
#[path = "../../tests/support/peers.rs"]
mod peers;
pub(crate) mod resolve;
pub(crate) mod upstream;

use std::net::IpAddr;
use std::time::Duration;

use crate::address::Address;
pub use crate::dial::backoff::Backoff;
pub use crate::dial::resolve::Family;
pub use crate::dial::upstream::Upstream;
use crate::error::Error;
use crate::liveness::keepalive::Keepalive;
#[cfg(feature = "tls")]
pub use crate::tls::{DialTls, DialTlsSettings};

pub use crate::error::TlsFault;
pub(crate) use attempt::Manner;
pub(crate) use dialing::{Dialed, Dialing};
pub use error::{DialError, DialErrorKind};

/// Whom to connect to, and how.
///
/// ```
/// use standfast::dial::Dial;
/// use std::time::Duration;
///
/// let dial = Dial {
///     connect_timeout: Some(Duration::from_secs(3)),
///     ..Dial::new("127.0.0.1:7000".parse().unwrap())
/// };
/// ```
#[derive(Clone, Debug)]
pub struct Dial {
    /// The server: a name or an address with a port, or a Unix socket.
    pub address: Address,
    /// Which addresses of a name are tried. Default: all.
    pub family: Family,
    /// The addresses of this host to come from, by turns: link `n` comes from number `n` modulo their count. Default
    /// none: the system chooses. More than one is for many connections to one server, for each has its own ports.
    pub sources: Vec<IpAddr>,
    /// Longest time for one attempt, the name's resolution and all of its addresses included. Default 10 s; `None`: as
    /// long as the system tries (about two minutes).
    pub connect_timeout: Option<Duration>,
    /// TCP keepalive (`SO_KEEPALIVE`): finds the idle vanished server. Default 60:10:3; `None`: off, and then nothing
    /// does.
    pub keepalive: Option<Keepalive>,
    /// The bound within which a vanished server is found in every state; at least 5 s. `None` (default): 1.125 times
    /// what `keepalive` needs, so 102 s.
    pub dead_after: Option<Duration>,
    /// `TCP_USER_TIMEOUT`. Default `None`: off. It cuts *living* servers that read slowly, too.
    pub user_timeout: Option<Duration>,
    /// The receive deadline: longest silence of the server, renewed by each byte read. Default `None`: it may be silent
    /// for ever.
    pub read_timeout: Option<Duration>,
    /// How long to wait before each retry.
    pub backoff: Backoff,
    /// How long a link must have been connected for the backoff to begin anew. Default 10 s.
    pub stable_after: Duration,
    /// Most retries in a row, without having been connected for `stable_after`. Default `None`: for ever.
    pub max_retries: Option<u32>,
    /// TLS from the first byte, within the connect timeout: whoever writes and reads sees what is within, and a half-close
    /// is a `close_notify` before the FIN. Default `None`: none. A server's certificate that is refused is
    /// [`DialErrorKind::Certificate`].
    #[cfg(feature = "tls")]
    pub tls: Option<DialTls>,
}

impl Dial {
    /// `address`, everything else by default.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            family: Family::Any,
            sources: Vec::new(),
            connect_timeout: Some(Duration::from_secs(10)),
            keepalive: Some(Keepalive::default()),
            dead_after: None,
            user_timeout: None,
            read_timeout: None,
            backoff: Backoff::default(),
            stable_after: Duration::from_secs(10),
            max_retries: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Checks what is asked.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::Config(text));
        match self.address {
            Address::Any(port) => {
                return refuse(format!(
                    ":{port} names no server: say which host, such as 127.0.0.1:{port}"
                ));
            }
            Address::Fd(_) | Address::Systemd(_) => {
                return refuse(format!(
                    "{} is for servers, not to connect to",
                    self.address
                ));
            }
            Address::Loopback(0) | Address::Host(_, 0) => {
                return refuse(format!("{}: nobody listens on port 0", self.address));
            }
            _ => {}
        }
        for (name, time) in [
            ("connect timeout", self.connect_timeout),
            ("read timeout", self.read_timeout),
        ] {
            if time.is_some_and(|time| time < Duration::from_millis(1)) {
                return refuse(format!("{name} below 1 ms: nobody could meet it"));
            }
        }
        if self.backoff.least > self.backoff.most {
            return refuse(format!(
                "backoff from {:?} to {:?}: the first is the shorter one",
                self.backoff.least, self.backoff.most
            ));
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            tls.name(&self.address).map_err(Error::Config)?;
        }
        for source in &self.sources {
            let other = match self.family {
                Family::V4 => source.is_ipv6(),
                Family::V6 => source.is_ipv4(),
                Family::Any => source.is_ipv4() != self.sources[0].is_ipv4(),
            };
            if other {
                return refuse(format!("{source} is of the other family"));
            }
        }
        Ok(())
    }

    /// Where link `id` comes from.
    pub(crate) fn source(&self, id: usize) -> Option<IpAddr> {
        let at = id.checked_rem(self.sources.len())?;
        self.sources.get(at).copied()
    }
}
