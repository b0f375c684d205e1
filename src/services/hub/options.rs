//! What a hub is told to do.

use std::time::Duration;

use crate::address::network::Network;

/// What a [`Hub`](super::Hub) does.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// How far behind a client may be, in bytes, before `slow` says what becomes of it; as much of what was published
    /// stays in memory, once for all clients. Default 256 KiB.
    pub buffer: usize,
    /// Senders get their own lines, too. Default: no.
    pub echo_self: bool,
    /// How long lines are gathered into one write for each client. Default 20 ms; zero: not at all, which costs a
    /// write for each client and line. Where one write for each client takes the workers longer than that, as long as
    /// that takes, but at most ten times as long as said.
    pub flush: Duration,
    /// Who connects gets that many lines of before, as far as they are in the buffer. Default 0.
    pub history: usize,
    /// The longest line, its end included, in bytes; who sends a longer one is closed. At most half the buffer.
    /// `None` (default): 64 KiB, or a quarter of the buffer if that is less.
    pub max_line: Option<usize>,
    /// What is read at once is passed on at once, line or not, and never torn either. Default: no.
    pub raw: bool,
    /// What becomes of a client that is too slow. Default: [`Slow::DropOldest`].
    pub slow: Slow,
    /// Who may speak; what others send is read and forgotten. Clients of a Unix socket are in no network. Default:
    /// empty, which means everybody.
    pub sources: Vec<Network>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            buffer: 256 * 1024,
            echo_self: false,
            flush: Duration::from_millis(20),
            history: 0,
            max_line: None,
            raw: false,
            slow: Slow::DropOldest,
            sources: Vec::new(),
        }
    }
}

/// What becomes of a client that is further behind than the buffer reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Slow {
    /// It loses the oldest lines it has not got, never a part of one.
    #[default]
    DropOldest,
    /// It is reset, with reason `service`.
    Disconnect,
}
