//! What can be seen of a running server from outside: the server, its listeners, each of its connections.

use std::net::SocketAddr;
use std::time::Duration;

/// A connection, as the table shows it.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "control", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its number.
    pub id: u64,
    /// Who is at the other end.
    pub peer: SocketAddr,
    /// The listener it came through.
    pub listener: SocketAddr,
    /// The service of that listener.
    pub service: String,
    /// Since it was accepted.
    pub age: Duration,
    /// Since the last byte came.
    pub idle: Duration,
    /// Bytes read from the client.
    pub read: u64,
    /// Bytes the kernel took for the client.
    pub written: u64,
    /// Bytes that wait because the kernel would not take them.
    pub waiting: usize,
    /// Bytes the kernel took and the client has not acknowledged (`SIOCOUTQ`), where the system tells.
    pub unacknowledged: Option<u64>,
    /// Smoothed round-trip time (`TCP_INFO`), where the system tells.
    pub round_trip: Option<Duration>,
    /// The deadline that comes next, unless it is renewed before.
    pub next_deadline: Option<NextDeadline>,
}

/// A deadline, and how long until it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "control", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct NextDeadline {
    /// Which.
    pub kind: DeadlineKind,
    /// How long until it comes.
    pub due_in: Duration,
}

/// Which deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "control",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum DeadlineKind {
    /// The client's silence ends the connection.
    Read,
    /// It is looked whether output is acknowledged.
    Output,
    /// The client's FIN is awaited no longer.
    Linger,
}

/// A listener, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "control", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ListenerInfo {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it does with connections.
    pub service: String,
    /// Connections it has accepted.
    pub accepted: u64,
}

/// A server, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "control", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Since it started.
    pub uptime: Duration,
    /// It accepts nothing new.
    pub draining: bool,
    /// Threads that serve.
    pub workers: usize,
    /// Connections that are open.
    pub open: usize,
    /// Connections accepted.
    pub accepted: u64,
    /// Bytes read from clients.
    pub read: u64,
    /// Bytes written to clients.
    pub written: u64,
    /// Connections that ended, by reason; reasons that did not occur are left out.
    pub closed: Vec<(String, u64)>,
    /// What it listens on.
    pub listeners: Vec<ListenerInfo>,
    /// The takeover it came from, or ended in.
    pub takeover: Option<Takeover>,
}

/// A takeover, from either side.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "control", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Takeover {
    /// Connections that changed hands.
    pub connections: u64,
    /// How long nobody served, from the freeze to the commit.
    pub frozen: Duration,
}
