//! What can be seen of a running server from outside: the server, its listeners, each of its connections.

use std::time::Duration;

use crate::address::endpoint::{Endpoint, Peer};
use crate::liveness::close::CloseReason;

/// A connection, as the table shows it.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its number.
    pub id: u64,
    /// Who is at the other end.
    pub peer: Peer,
    /// The proxy that says so, in a header of the PROXY protocol.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub via: Option<Peer>,
    /// The process that drains it, where it could not go along to the one that serves.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub behind: Option<u32>,
    /// The listener it came through.
    pub listener: Endpoint,
    /// The service of that listener.
    pub service: String,
    /// Since it was accepted.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub age: Duration,
    /// Since the last byte came.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub idle: Duration,
    /// Bytes read from the client.
    pub read: u64,
    /// Bytes the kernel took for the client.
    pub written: u64,
    /// Bytes that wait because the kernel would not take them, for the client or its far side.
    pub waiting: usize,
    /// Memory that those take, and what its service left of its input: the capacity of its buffers, bytes.
    #[cfg_attr(control, serde(default))]
    pub held: usize,
    /// Bytes the kernel took and the client has not acknowledged (`SIOCOUTQ`), where the system tells.
    pub unacknowledged: Option<u64>,
    /// Smoothed round-trip time (`TCP_INFO`), where the system tells.
    #[cfg_attr(control, serde(with = "seconds_if"))]
    pub round_trip: Option<Duration>,
    /// The deadline that comes next, unless it is renewed before.
    pub next_deadline: Option<NextDeadline>,
    /// The server that its far side is connected to.
    #[cfg_attr(control, serde(default))]
    pub upstream: Option<Endpoint>,
    /// Its TLS session.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub tls: Option<TlsInfo>,
    /// That of its far side.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub upstream_tls: Option<TlsInfo>,
}

/// A TLS session, as the table shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TlsInfo {
    /// `1.2` or `1.3`.
    pub version: String,
    /// As the registry names it.
    pub cipher: String,
    /// The name that the client asked for (SNI); of a far side the one that the server has shown itself by.
    pub name: Option<String>,
    /// Whose certificate the client has shown, such as `CN=alice, O=Acme`.
    pub client: Option<String>,
}

/// A deadline, and how long until it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct NextDeadline {
    /// Which.
    pub kind: DeadlineKind,
    /// How long until it comes.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub due_in: Duration,
}

/// Which deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    control,
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum DeadlineKind {
    /// The client's silence ends the connection.
    Read,
    /// Output waits, and nothing of it is acknowledged.
    Output,
    /// It is half-closed, and nothing moves.
    HalfClose,
    /// The client's FIN is awaited no longer.
    Linger,
    /// It has been connected for as long as it may.
    Age,
    /// The header of the PROXY protocol is awaited.
    ProxyHeader,
    /// At the door: until it has made the handshake of TLS.
    TlsHandshake,
    /// Its turn comes, and it is served: it came too soon after others of its address.
    Turn,
}

/// A listener, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ListenerInfo {
    /// Where it listens.
    pub address: Endpoint,
    /// As it was written, where the socket was inherited: `systemd`, `fd:3`; where it listens, if it was given.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub inherited_as: Option<String>,
    /// What it does with connections.
    pub service: String,
    /// Connections it has accepted.
    pub accepted: u64,
    /// Connections through it that are open.
    #[cfg_attr(control, serde(default))]
    pub open: u64,
    /// Connections through it that ended, as [`Status::closed`] has them.
    #[cfg_attr(control, serde(with = "reasons", default))]
    pub closed: Vec<(CloseReason, u64)>,
    /// Its handshakes, where its clients speak TLS.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub tls: Option<Handshakes>,
}

/// Handshakes of TLS that were done. Those that came to nothing have ended for [`CloseReason::TlsHandshake`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Handshakes {
    /// With certificates shown.
    pub full: u64,
    /// By a ticket of an earlier one.
    pub resumed: u64,
}

/// An upstream, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct UpstreamInfo {
    /// Where it is, as it was written.
    pub address: String,
    /// It could be reached when that was last tried, or that was never tried.
    pub up: bool,
    /// For how long it has counted as down.
    #[cfg_attr(control, serde(with = "seconds_if"))]
    pub down_for: Option<Duration>,
}

impl UpstreamInfo {
    /// The upstream at `address`; `down_for`: how long it has counted as down, if it does.
    #[must_use]
    pub fn new(address: String, down_for: Option<Duration>) -> Self {
        Self {
            address,
            up: down_for.is_none(),
            down_for,
        }
    }
}

/// A hub's way to those on other machines, as the status shows it. Its counters count over takeovers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct NatsInfo {
    /// The subject of their feed.
    pub subject: String,
    /// The stream that keeps it, if one does.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub stream: Option<String>,
    /// Messages of the stream that have not come yet.
    pub lag: u64,
    /// NATS can be reached.
    pub connected: bool,
    /// What it goes by to the others.
    pub origin: String,
    /// Lines of its clients that it has said to the others, and their bytes.
    pub said_lines: u64,
    /// See there.
    pub said_bytes: u64,
    /// Lines of others that it has passed on, and their bytes.
    pub heard_lines: u64,
    /// See there.
    pub heard_bytes: u64,
    /// Other hubs that have been heard of.
    pub hubs: usize,
    /// Lines that they have said, and that did not come.
    pub missed: u64,
    /// Of those, by whom; the most first, at most 20.
    pub missed_of: Vec<(String, u64)>,
    /// Messages that had come before, and were dropped.
    pub again: u64,
    /// Messages of whoever is no hub, passed on or dropped.
    pub foreign: u64,
    /// Lines of others that were too long, and were dropped.
    pub too_long: u64,
    /// Bytes that wait to be said.
    pub backlog: u64,
    /// Lines that were never said: too much waited.
    pub lost: u64,
}

/// A server, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// The process that stays when this one ends, and starts the next one, if there is one.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub keeper: Option<u32>,
    /// How many servers have crashed since the keeper started, where there is one.
    #[cfg_attr(control, serde(skip_serializing_if = "Option::is_none", default))]
    pub crashes: Option<u64>,
    /// Its version.
    pub version: String,
    /// Since the process started.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub uptime: Duration,
    /// For how long its counters have counted: since the first of the processes that took over from one another started.
    #[cfg_attr(control, serde(with = "seconds", default))]
    pub counted_for: Duration,
    /// It was told to end.
    pub draining: bool,
    /// It accepts connections: in a drain for its delay yet.
    #[cfg_attr(control, serde(default))]
    pub accepting: bool,
    /// Threads that serve.
    pub workers: usize,
    /// Connections that are open.
    pub open: usize,
    /// Of those, how many no service has heard of yet: their PROXY header or their turn is awaited.
    #[cfg_attr(control, serde(default))]
    pub at_door: usize,
    /// Connections accepted, by this process and those it has taken over from; so with all counters.
    pub accepted: u64,
    /// Bytes read from clients.
    pub read: u64,
    /// Bytes written to clients.
    pub written: u64,
    /// Connections that ended, by reason; reasons that did not occur are left out, or that only a newer server knows.
    #[cfg_attr(control, serde(with = "reasons"))]
    pub closed: Vec<(CloseReason, u64)>,
    /// What waits in it, and how much may.
    #[cfg_attr(control, serde(default))]
    pub memory: MemoryInfo,
    /// What it listens on.
    pub listeners: Vec<ListenerInfo>,
    /// What its services connect clients to.
    #[cfg_attr(control, serde(default))]
    pub upstreams: Vec<UpstreamInfo>,
    /// Its hubs' ways to those on other machines.
    #[cfg_attr(control, serde(skip_serializing_if = "Vec::is_empty", default))]
    pub nats: Vec<NatsInfo>,
    /// The takeover it came from, or ended in.
    pub takeover: Option<Takeover>,
    /// The process that was taken over from, as long as it lives: it has something to finish yet, such as to drain the
    /// connections that stayed with it.
    #[cfg_attr(control, serde(default))]
    pub predecessor: Option<u32>,
    /// All takeovers, counted over the processes.
    #[cfg_attr(control, serde(default))]
    pub takeovers: Takeovers,
    /// Accepting is paused for a lack of descriptors or memory.
    #[cfg_attr(control, serde(default))]
    pub accept_paused: bool,
    /// Accepts that failed, by the name of the error.
    #[cfg_attr(control, serde(default))]
    pub accept_errors: Vec<(String, u64)>,
    /// Its descriptors, where the system tells.
    #[cfg_attr(control, serde(default))]
    pub descriptors: Option<DescriptorInfo>,
    /// Processes that its services run, where one of them runs any.
    #[cfg_attr(control, serde(default))]
    pub children: Option<usize>,
    /// Where its metrics are.
    #[cfg_attr(control, serde(default))]
    pub metrics: Vec<Endpoint>,
    /// The connections that ended last, over takeovers, the last first; at most 100.
    #[cfg_attr(control, serde(default))]
    pub ended: Vec<EndedInfo>,
    /// The counters of the last minutes, the oldest first. Taken only where the server has a metrics address.
    #[cfg_attr(control, serde(default))]
    pub samples: Vec<Sample>,
}

/// A connection that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct EndedInfo {
    /// Its number.
    pub id: u64,
    /// How long ago it ended.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub ago: Duration,
    /// Who was at the other end.
    pub peer: Peer,
    /// The listener it came through.
    pub listener: Endpoint,
    /// The server that its far side was connected to.
    pub upstream: Option<Endpoint>,
    /// Why it ended. `None`: for a reason that only a newer server knows.
    #[cfg_attr(control, serde(with = "reason"))]
    pub reason: Option<CloseReason>,
    /// Which limit it was.
    pub limit: Option<String>,
    /// What came when everything had been said and delivered.
    pub late: Option<String>,
    /// What was wrong with its header of the PROXY protocol.
    pub header: Option<String>,
    /// Since it was accepted.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub age: Duration,
    /// Bytes read from the client.
    pub read: u64,
    /// Bytes written to the client.
    pub written: u64,
    /// The error the system gave, if it was one.
    pub errno: Option<String>,
    /// Probes that were not answered, where the kernel was asked.
    pub probes: Option<u8>,
    /// Retransmissions that were not acknowledged, where the kernel was asked.
    pub retransmits: Option<u8>,
    /// How long the peer had not been heard of, where the kernel was asked.
    #[cfg_attr(control, serde(with = "seconds_if"))]
    pub silent_for: Option<Duration>,
}

/// The counters of a server as they were at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Sample {
    /// How long ago.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub ago: Duration,
    /// Connections that were open.
    pub open: u64,
    /// Connections accepted until then.
    pub accepted: u64,
    /// Connections that had ended.
    pub closed: u64,
    /// Bytes read from clients.
    pub read: u64,
    /// Bytes written to clients.
    pub written: u64,
}

/// The descriptors of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DescriptorInfo {
    /// Those that are open.
    pub used: u64,
    /// How many may be: the soft limit.
    pub limit: u64,
}

/// Times that [`Takeovers::frozen_within`] counts by, in seconds.
pub const FREEZE_BOUNDS: [f64; 8] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1];

/// The takeovers of a server, over its processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Takeovers {
    /// Those by which it went over to another process.
    pub completed: u64,
    /// Those that could not be: the processes do not fit together, or another takeover was under way.
    pub refused: u64,
    /// Those that came to nothing; the old process went on.
    pub failed: u64,
    /// How long nobody served, all in all.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub frozen: Duration,
    /// Of those completed, how many were frozen at most as long as each of [`FREEZE_BOUNDS`].
    pub frozen_within: Vec<u64>,
    /// The last ones that were completed, the last at the end; at most 10.
    pub recent: Vec<PastTakeover>,
}

/// A takeover that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct PastTakeover {
    /// When, in seconds since 1970.
    pub at: u64,
    /// The process that took over.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Connections that changed hands.
    pub connections: u64,
    /// Connections that could not.
    pub staying: u64,
    /// How long nobody served.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub frozen: Duration,
}

/// What waits in a server: the capacity of its buffers, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MemoryInfo {
    /// The bound for all of it.
    pub limit: usize,
    /// All of it.
    pub held: usize,
    /// Of that, what is of each kind.
    pub waiting: Vec<(String, usize)>,
    /// The high-water mark of a connection now, where its listener's buffer is not less; `None` as long as only that one counts.
    pub mark: Option<usize>,
}

/// A takeover, from either side.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Takeover {
    /// Whether this server gave or took.
    pub role: Role,
    /// The other process.
    pub pid: u32,
    /// Connections that changed hands.
    pub connections: u64,
    /// Connections that could not leave: the predecessor drains them.
    pub staying: u64,
    /// How long nobody served: from the freeze until the new process ran.
    #[cfg_attr(control, serde(with = "seconds"))]
    pub frozen: Duration,
}

impl Takeover {
    /// [`frozen`](Self::frozen) in milliseconds, as the log has it.
    #[must_use]
    pub fn frozen_ms(&self) -> f64 {
        self.frozen.as_micros() as f64 / 1e3
    }
}

/// A side of a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(
    control,
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum Role {
    /// It gave its connections to another process.
    Gave,
    /// It took another process's connections over.
    Took,
}

/// Reasons by their names; those that this version does not know are left out.
#[cfg(control)]
mod reasons {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::CloseReason;

    type Counts = [(CloseReason, u64)];

    pub(super) fn serialize<S: Serializer>(counts: &Counts, to: S) -> Result<S::Ok, S::Error> {
        let named = counts
            .iter()
            .map(|(reason, count)| (reason.as_str(), count));
        named.collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(CloseReason, u64)>, D::Error> {
        let named = Vec::<(String, u64)>::deserialize(from)?.into_iter();
        let known = named.filter_map(|(name, count)| {
            let mut all = CloseReason::ALL.into_iter();
            Some((all.find(|reason| reason.as_str() == name)?, count))
        });
        Ok(known.collect())
    }
}

/// A reason by its name.
#[cfg(control)]
mod reason {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::CloseReason;

    #[expect(clippy::ref_option, reason = "serde asks for it so")]
    pub(super) fn serialize<S: Serializer>(
        reason: &Option<CloseReason>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        reason.map(CloseReason::as_str).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<CloseReason>, D::Error> {
        let name = Option::<String>::deserialize(from)?;
        let mut all = CloseReason::ALL.into_iter();
        Ok(name.and_then(|name| all.find(|reason| reason.as_str() == name)))
    }
}

/// A duration as seconds, to the microsecond: what people and machines read.
#[cfg(control)]
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_micros() as f64 / 1e6)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(from)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}

/// The same where there may be none.
#[cfg(control)]
mod seconds_if {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde asks for it so")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::seconds::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(from)?;
        let time = seconds.map(Duration::try_from_secs_f64).transpose();
        time.map_err(serde::de::Error::custom)
    }
}

#[cfg(all(test, control))]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_by_name_and_those_of_a_newer_server_are_left_out() {
        #[derive(serde::Serialize, serde::Deserialize)]
        struct Told(#[serde(with = "reasons")] Vec<(CloseReason, u64)>);

        let all = CloseReason::ALL.map(|reason| (reason, 7)).to_vec();
        let told = serde_json::to_string(&Told(all.clone())).unwrap();
        assert!(told.starts_with(r#"[["peer-closed",7],"#), "{told}");
        let newer = told.replace("[[", r#"[["bored",1],["#);
        assert_eq!(serde_json::from_str::<Told>(&newer).unwrap().0, all);
    }
}
