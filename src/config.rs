//! Every setting: its unit, its default, and what `None` means. What contradicts is refused by
//! [`Server::bind`](crate::Server::bind).

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::OwnedFd;
#[cfg(control)]
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::address::network::{IpPrefix, Network};
use crate::error::Error;
use crate::handle::lifecycle::Lifecycle;
use crate::liveness::keepalive::Keepalive;
use crate::liveness::reap::SLOWEST_READER;
use crate::memory::{self, Memory};
use crate::os::descriptors::descriptors_for_connections;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
use crate::os::identity::Identity;
#[cfg(control)]
use crate::os::kept::{Kept, Stored};
use crate::parse::ParseError;
use crate::service::AnyService;

/// A server: what it listens on, and what belongs to the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to listen on; each with its own service, limits and deadlines.
    pub listen: Vec<Listen>,
    /// Threads that serve connections. `None` (default): one a core.
    pub workers: Option<NonZeroUsize>,
    /// How long a client has to go in a drain, from when its turn comes; who is not done then is cut off. Default 10 s;
    /// `None`: as long as it takes.
    pub drain_timeout: Option<Duration>,
    /// How long the server goes on accepting when it is told to drain: it [is ending](crate::Handle::is_ending) from the
    /// first moment, and whoever sends clients to it needs a while to notice. Default `None`: it stops at once.
    pub drain_delay: Option<Duration>,
    /// Over how long the turns of clients to go in a drain are spread, evenly and with jitter, so that they do not all come
    /// back somewhere at once. A drain takes `drain_delay`, `drain_spread` and `drain_timeout` together at the most.
    /// Default `None`: all at once.
    pub drain_spread: Option<Duration>,
    /// Most connections in all, over every listener. `None` (default): as many as the descriptor limit allows, less
    /// a reserve.
    pub max_conns: Option<NonZeroUsize>,
    /// The bound for all bytes that wait in this process: output, input that services left, what hubs have published,
    /// what is to be printed. Near it the high-water mark of each connection falls below [`Listen::buffer`]; beyond
    /// it nobody is read until there is room. At least 1 MiB. `None` (default): a quarter of what the machine, or the
    /// cgroup or the address space of this process, has, at most 1 GiB.
    pub memory: Option<NonZeroUsize>,
    /// How it is asked from other processes, and replaced by the next one. Default `None`: not at all.
    #[cfg(control)]
    pub control: Option<ControlSocket>,
    /// The process that stays when this one ends, and starts the next one. Default `None`: there is none.
    #[cfg(control)]
    pub keeper: Option<Keeper>,
    /// Whom this process is to run as, once it has its listeners and before it has a control socket: all threads of it,
    /// for good. A successor that is started as that user need not be root. Default `None`: as whoever started it.
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    pub identity: Option<Identity>,
    /// Where it tells of itself over HTTP. Default `None`: nowhere.
    #[cfg(metrics)]
    pub metrics: Option<Metrics>,
    /// Who is told what happens to the server. Default `()`: nobody.
    pub lifecycle: Arc<dyn Lifecycle>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            workers: None,
            drain_timeout: Some(Duration::from_secs(10)),
            drain_delay: None,
            drain_spread: None,
            max_conns: None,
            memory: None,
            #[cfg(control)]
            control: None,
            #[cfg(control)]
            keeper: None,
            #[cfg(all(target_os = "linux", not(standfast_portable)))]
            identity: None,
            #[cfg(metrics)]
            metrics: None,
            lifecycle: Arc::new(()),
        }
    }
}

impl Config {
    /// How many descriptors a connection may take.
    pub(crate) fn descriptors_each(&self) -> usize {
        let each = self.listen.iter().map(|listen| {
            // A program has the socket itself, but where TLS stands before it.
            let pair = listen.has_tls() && listen.service.has_pairs();
            listen.service.descriptors() + usize::from(pair)
        });
        each.max().unwrap_or(1)
    }

    /// The bound for all bytes that wait.
    pub(crate) fn memory_limit(&self) -> Result<usize, Error> {
        match self.memory.map(usize::from) {
            None => Ok(Memory::usual()),
            Some(asked) if asked < memory::LEAST => Err(Error::Config(format!(
                "memory of {asked} bytes is too little to serve anybody: at least 1m"
            ))),
            Some(asked) => Ok(asked),
        }
    }

    /// Has the process be whom it is to run as.
    pub(crate) fn assume_identity(&self) -> Result<(), Error> {
        #[cfg(all(target_os = "linux", not(standfast_portable)))]
        if let Some(identity) = &self.identity {
            identity.assume().map_err(|source| Error::Start {
                what: "become another user",
                source,
            })?;
        }
        Ok(())
    }

    /// How many connections the descriptor limit allows.
    pub(crate) fn connections_allowed(&self) -> usize {
        #[cfg(metrics)]
        let beside = self.metrics.as_ref().map_or(0, |_| METRICS_DESCRIPTORS);
        #[cfg(not(metrics))]
        let beside = 0;
        #[cfg(control)]
        let beside = beside + self.vault_descriptors();
        (descriptors_for_connections().saturating_sub(beside) / self.descriptors_each().max(1))
            .max(1)
    }

    /// What its vaults take of them, and those of a server that crashed beside them: for many workers not most of all.
    #[cfg(control)]
    fn vault_descriptors(&self) -> usize {
        const EACH: usize = 16;
        let most = descriptors_for_connections() / 4;
        let keeper = self.keeper.as_ref();
        keeper.map_or(0, |_| most.min(EACH * self.workers().get()))
    }

    /// How many worker threads there are to be.
    pub(crate) fn workers(&self) -> NonZeroUsize {
        let workers = self
            .workers
            .or_else(|| std::thread::available_parallelism().ok());
        workers.unwrap_or(NonZeroUsize::MIN)
    }
}

/// One service at one or several addresses, with its limits and deadlines.
///
/// ```
/// use standfast::{Listen, services::Echo};
/// use std::time::Duration;
///
/// let listen = Listen {
///     read_timeout: Some(Duration::from_secs(30)),
///     ..Listen::new("127.0.0.1:0".parse().unwrap(), Echo)
/// };
/// ```
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where to listen.
    pub addresses: Vec<Address>,
    /// Sockets that listen already, beside those of `addresses`. Each stays open as long as somebody has it.
    pub sockets: Vec<Arc<OwnedFd>>,
    /// What to do with the connections.
    pub service: AnyService,
    /// TCP keepalive (`SO_KEEPALIVE`): finds the idle vanished peer. Default 60:10:3; `None`: off, and then nothing
    /// does.
    pub keepalive: Option<Keepalive>,
    /// The bound within which a vanished peer is found in every state: idle, with data in flight, behind a closed
    /// window, half-closed. At least 5 s. `None` (default): 1.125 times what `keepalive` needs (the kernel's timers
    /// run up to an eighth late), so 102 s. Shorter finds the vanished sooner and forgives shorter outages.
    pub dead_after: Option<Duration>,
    /// `TCP_USER_TIMEOUT`, milliseconds precise: the kernel gives up when sent data stays unacknowledged this long.
    /// Default `None`: off. It cuts *living* slow readers too, and overrides the retries of `keepalive`:
    /// `dead_after` does neither. One that keeps an idle vanished peer beyond a `dead_after` that is given is refused;
    /// otherwise the bound is as much longer.
    pub user_timeout: Option<Duration>,
    /// The read deadline: longest silence of a client. Renewed by each byte read; stands still while we do not
    /// read. Default: what suits the service ([`Service::patience`](crate::Service::patience)), so 10 min for echo and
    /// discard, and `None` for print, exec, forward and hub; `None`: a client may be silent for ever.
    pub read_timeout: Option<Duration>,
    /// Write stall: longest time that output waits without any of it being acknowledged. Default 5 min; `None`: a client
    /// may stop reading for ever.
    pub write_timeout: Option<Duration>,
    /// Who reads so many bytes a second is alive, and has longer than `write_timeout` where it needs that to show it: a
    /// closed window opens only when a good part of what the client had taken is read, after up to 1 MiB. Default 50, so up
    /// to 5.8 h for who had taken as much. `None`: `write_timeout` is exact.
    pub slowest_reader: Option<NonZeroU32>,
    /// Longest time that nothing moves on a half-closed connection. Default: what suits the service, so 10 min for
    /// forward and exec, whose answers may take long, and else 60 s; `None`: for ever.
    pub half_close_timeout: Option<Duration>,
    /// Longest time that a client may be connected, after which what has come is served, the output delivered, and it ends with
    /// reason `max-age`; each up to a tenth sooner, so that they do not all come back at once. For clients that are to find
    /// their way to another server now and then. It goes on over takeovers. Default `None`: for ever.
    pub max_age: Option<Duration>,
    /// Who is let in, and who is not: the longest range that has an address decides, and of a range in both lists `deny`
    /// does. Who is in none is let in unless something is allowed. Who is not, ends at once with reason `denied`, and the
    /// service does not hear of it; clients of Unix sockets are not concerned, nor who is connected already when
    /// another process takes over. Default: everybody. Looked up once a connection, in a sorted table.
    pub allow: Vec<Network>,
    /// Who is kept out: see `allow`. Default: nobody.
    pub deny: Vec<Network>,
    /// Most connections at a time. `None` (default): as many as [`Config::max_conns`].
    pub max_conns: Option<NonZeroUsize>,
    /// Most connections at a time from one address. `None` (default): no limit.
    pub max_conns_per_ip: Option<NonZeroUsize>,
    /// What counts as one address. Default 32:64: an address of IPv4, a /64 of IPv6.
    pub ip_prefix: IpPrefix,
    /// How many connections are let in in a second, by each of its listeners; those over it wait in the backlog, and where
    /// that is full the kernel has them try again. What `allow` and the limits keep out is not counted. It begins
    /// anew with each process. `None` (default): as many as come.
    pub accept_rate: Option<AcceptRate>,
    /// The same for the connections from one address, as [`ip_prefix`](Self::ip_prefix) counts it, by all of its listeners
    /// together: who comes too soon after others is accepted, and no service hears of it before its turn. `None`
    /// (default): as many as come.
    pub accept_rate_per_ip: Option<AcceptRate>,
    /// Its clients come through proxies that say who they are, by the PROXY protocol: rules, limits, services and the log
    /// know who that is. Whoever says nothing ends with reason `bad-proxy-header`. `None` (default): clients come by
    /// themselves.
    pub accept_proxy: Option<AcceptProxy>,
    /// Its clients speak TLS: each begins with a handshake, and the service sees the plaintext. It is not for services that
    /// [give their sockets away](crate::Context::give_away), such as `exec`. A takeover carries the sessions along; behind a
    /// keeper a crash ends them. `None` (default): they do not.
    #[cfg(feature = "tls")]
    pub tls: Option<crate::tls::Tls>,
    /// What happens to a connection over a limit on all connections. Default: [`WhenFull::Close`].
    pub when_full: WhenFull,
    /// Clients may come over several paths (MPTCP, Linux 6.10): one that changes networks keeps its connection. One that
    /// comes over TCP is served as ever, and where the kernel has none, or `mptcp` of other processes that listened before,
    /// all are. Behind a closed window `dead_after` may be exceeded (`net.ipv4.tcp_rto_max_ms` bounds that), `user_timeout`
    /// does not hold, and a socket cannot be [given away](crate::Context::give_away). Default: no.
    pub mptcp: bool,
    /// Connections that may wait to be accepted: the argument of listen(2). Default 4096; the system caps it
    /// (`net.core.somaxconn`), and the server says so.
    pub backlog: u32,
    /// High-water mark of one connection's waiting output, in bytes. Default 256 KiB. Above it the client is not
    /// read from.
    pub buffer: usize,
}

impl Listen {
    /// `service` at one address, everything else by default.
    pub fn new(address: Address, service: impl Into<AnyService>) -> Self {
        Self {
            addresses: vec![address],
            ..Self::nowhere(service.into())
        }
    }

    /// `service` on a socket that listens already, such as a [`TcpListener`](std::net::TcpListener), everything else by
    /// default.
    pub fn on(socket: impl Into<OwnedFd>, service: impl Into<AnyService>) -> Self {
        Self {
            sockets: vec![Arc::new(socket.into())],
            ..Self::nowhere(service.into())
        }
    }

    /// Whether its clients speak TLS.
    fn has_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        let has_tls = self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let has_tls = false;
        has_tls
    }

    fn nowhere(service: AnyService) -> Self {
        let patience = service.patience();
        Self {
            addresses: Vec::new(),
            sockets: Vec::new(),
            service,
            keepalive: Some(Keepalive::default()),
            dead_after: None,
            user_timeout: None,
            read_timeout: patience.read,
            write_timeout: Some(Duration::from_secs(300)),
            slowest_reader: Some(SLOWEST_READER),
            half_close_timeout: patience.half_close,
            max_age: None,
            allow: Vec::new(),
            deny: Vec::new(),
            max_conns: None,
            max_conns_per_ip: None,
            ip_prefix: IpPrefix::default(),
            accept_rate: None,
            accept_rate_per_ip: None,
            accept_proxy: None,
            #[cfg(feature = "tls")]
            tls: None,
            when_full: WhenFull::Close,
            mptcp: false,
            backlog: 4096,
            buffer: 256 * 1024,
        }
    }
}

/// Where a server tells of itself over HTTP/1.1: `/metrics`, `/healthz`, `/readyz` and `/status.json`.
///
/// It answers on a thread of its own, also while the workers hang and when there are no descriptors left. A process that
/// [takes over](ControlSocket::replace) and names the same address goes on answering there.
#[cfg(metrics)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings, given with `..Metrics::default()`"
)]
pub struct Metrics {
    /// Where, of TCP. Whoever can connect there can read it.
    pub addresses: Vec<Address>,
    /// Names by which clients may ask (`Host`), beside addresses and `localhost`: others are refused, since a page from
    /// elsewhere may have a name lead here (DNS rebinding). Default: none.
    pub hosts: Vec<String>,
}

/// Descriptors that the metrics may need: those of clients, and of an event loop.
#[cfg(metrics)]
const METRICS_DESCRIPTORS: usize = 96;

/// The control socket of a server: a path at which other processes of this user ask it, and the next server takes over.
#[cfg(control)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings, given with `..ControlSocket::default()`"
)]
pub struct ControlSocket {
    /// Where it stands while the server runs; the server does not start without. `None` (default): where
    /// [the first address](crate::control::path::of) has it, as the commands of `standfast` expect, if it can be had.
    pub path: Option<PathBuf>,
    /// What to do about a server that is running there.
    pub replace: Replace,
    /// The settings are a new edition of that server's, with the last word: an address that they do not name any more is
    /// given up, and another service may be at one. The connections of either are drained by that server, as are those of a
    /// listener that comes to share its service with one of another. Default: who is to be replaced has to be contained.
    pub reload: bool,
}

/// A process that stays: it has copies of the listening sockets, so that clients queue while no server runs, and starts
/// another server where one has crashed. How `standfast serve --keep` does that is no part of this library; the server tells
/// what there is to be kept by [`Lifecycle::keep`].
#[cfg(control)]
#[derive(Clone, Debug, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings, given with `..Keeper::default()`"
)]
pub struct Keeper {
    /// Its number.
    pub pid: u32,
    /// What it has of a server that has ended: a new one listens with them where its settings ask for their addresses, and
    /// closes the others. Who takes over from a running server has them from there.
    pub kept: Vec<Arc<Kept>>,
    /// How many servers it has seen crash.
    pub crashes: u64,
    /// Where one has just crashed, what that [left](crate::Handle::remains) of its counters: they go on from there, and what
    /// was open then has ended, by reason `crash`.
    pub remains: Option<Vec<u8>>,
    /// Where one has just crashed, what that has [stored](Lifecycle::store): the connections that it had go on from there. They
    /// are its only copies in this process, and are dropped once they have been looked at.
    pub stored: Vec<Arc<Stored>>,
}

/// Whether a server takes over from a running one: its listeners and its live connections. It must listen on all that the
/// running one listens on.
#[cfg(control)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth way")]
pub enum Replace {
    /// No: it fails where the running one has its addresses.
    #[default]
    Never,
    /// If there is one.
    IfRunning,
    /// Yes: it fails where there is none.
    Always,
}

/// How the PROXY protocol, version 1 or 2, is spoken to a listener.
///
/// A connection that its proxy has opened for itself (`LOCAL`), or for nobody it can name (`UNKNOWN`), is the proxy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptProxy {
    /// Who may say who the client is; nobody else is served. Empty (default): everybody. Clients of Unix sockets may.
    pub from: Vec<Network>,
    /// How long the header may take. Default 5 s, at least 3 s.
    pub timeout: Duration,
}

impl Default for AcceptProxy {
    fn default() -> Self {
        Self {
            from: Vec::new(),
            timeout: Duration::from_secs(5),
        }
    }
}

/// How many a second, and how many at once after a pause: a token bucket.
///
/// ```
/// use standfast::AcceptRate;
///
/// let rate: AcceptRate = "100/s:20".parse().unwrap();
/// assert_eq!((rate.per_second.get(), rate.burst.get()), (100, 20));
/// assert_eq!("100".parse::<AcceptRate>().unwrap().burst.get(), 100);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a rate has no third part")]
pub struct AcceptRate {
    /// How many in a second, in the long run.
    pub per_second: NonZeroU32,
    /// How many at once, where none came for a while.
    pub burst: NonZeroU32,
}

impl AcceptRate {
    /// From one to the next.
    #[must_use]
    pub fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second.get()
    }

    /// How much sooner than that they may come after a pause.
    #[must_use]
    pub fn ahead(self) -> Duration {
        self.interval() * (self.burst.get() - 1)
    }
}

impl FromStr for AcceptRate {
    type Err = ParseError;

    /// `N`, `N/s`, `N/s:BURST`; without a burst it is N.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (rate, burst) = match text.split_once(':') {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let rate = rate.strip_suffix("/s").unwrap_or(rate);
        let count = |text: &str| {
            text.parse::<NonZeroU32>().map_err(|_| {
                let what =
                    "expected so many a second, with a burst or not, such as 100/s or 100/s:20";
                ParseError::new(format!("{text}: {what}"))
            })
        };
        let per_second = count(rate)?;
        let burst = burst.map_or(Ok(per_second), count)?;
        Ok(Self { per_second, burst })
    }
}

impl fmt::Display for AcceptRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s:{}", self.per_second, self.burst)
    }
}

/// What happens to a connection over the limit on all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// It is accepted and closed, with reason `limit`: the client learns at once.
    #[default]
    Close,
    /// It is left in the backlog until there is room: the client waits.
    Wait,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::forward::ForwardOptions;
    use crate::services::hub::HubOptions;
    use crate::services::{Echo, Forward, Hub, Print};

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            "10/m",
            "10/s:",
            "10:0",
            "10/s:2:3",
            "ten",
            "4294967296",
        ] {
            let error = text.parse::<AcceptRate>().unwrap_err();
            assert!(error.to_string().contains("100/s"), "{text}: {error}");
        }
    }

    #[test]
    fn a_listener_begins_with_the_deadlines_that_suit_its_service() {
        let address = || "127.0.0.1:0".parse::<Address>().unwrap();
        let minutes = |count: u64| Some(Duration::from_secs(60 * count));
        let upstreams = ForwardOptions::new(vec!["127.0.0.1:7".parse().unwrap()]);
        let print: AnyService = Print::new(Vec::new(), false).into();
        for (service, read, half_close) in [
            (Echo.into(), minutes(10), minutes(1)),
            (print, None, minutes(1)),
            (Hub::new(HubOptions::default()).into(), None, minutes(1)),
            (Forward::new(upstreams).unwrap().into(), None, minutes(10)),
        ] {
            let listen = Listen::new(address(), service);
            assert_eq!(listen.read_timeout, read, "{:?}", listen.service.name());
            assert_eq!(listen.half_close_timeout, half_close);
        }
    }
}
