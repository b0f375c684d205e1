//! What settings really do, on this host and this kernel, before anything is opened.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::address::endpoint::Endpoint;
use crate::config::{Config, Listen};
use crate::error::Error;
use crate::listen::admission::Limit;
use crate::listen::listener;
use crate::listen::settings::Settings;
use crate::liveness::keepalive::Keepalive;
use crate::liveness::multipath;
use crate::liveness::sockopt::{self, Unfit};
use crate::memory::{self, KernelMemory, Memory, MemorySource};

/// What the settings of a [`Listen`] come to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Effective {
    /// Where it listens, names resolved. Empty for inherited sockets.
    pub addresses: Vec<Endpoint>,
    /// What is meant besides, and this host does not have: addresses of IPv6 where there is none. It is left out, or
    /// refused where nothing else is left of an address.
    pub absent: Vec<Endpoint>,
    /// Keepalive, with the system's values where those are kept. `None`: off.
    pub keepalive: Option<Keepalive>,
    /// The bound within which a vanished peer is found. `None`: nothing finds it.
    pub dead_after: Option<Duration>,
    /// `TCP_RTO_MAX_MS`, the longest pause between retransmissions or window probes. `None`: the kernel's own.
    pub rto_max: Option<Duration>,
    /// The read deadline: as said, or what suits the service. `None`: off.
    pub read_timeout: Option<Duration>,
    /// The write timeout. `None`: off.
    pub write_timeout: Option<Duration>,
    /// Who reads so many bytes a second has longer. `None`: the write timeout is exact.
    pub slowest_reader: Option<NonZeroU32>,
    /// The half-close timeout, as the read deadline.
    pub half_close_timeout: Option<Duration>,
    /// Most connections, after the descriptor limit.
    pub max_conns: usize,
    /// The bound for all bytes that wait in the process.
    pub memory: usize,
    /// Where it was not said: what there is to have a part of, bytes, and what says so.
    pub memory_of: Option<(u64, MemorySource)>,
    /// The high-water mark of one connection, after the memory's share for one.
    pub buffer: usize,
    /// What the kernel may take for sockets beside that, where it tells.
    pub kernel: Option<KernelMemory>,
    /// Why there is no MPTCP, where it is asked for.
    pub lacks_mptcp: Option<String>,
    /// Over MPTCP, where it is asked for: the longest pause between two window probes that `dead_after` allows, and the one
    /// that this host has, which is longer: a peer that vanishes behind a closed window may be found later than that.
    pub slow_probes: Option<(Duration, Duration)>,
    /// The backlog, after the system's cap.
    pub backlog: u32,
}

impl Config {
    /// What these settings come to: one of each of [`listen`](Self::listen).
    ///
    /// # Errors
    /// As [`Server::bind`](crate::Server::bind), but for what only binding can show.
    pub fn effective(&self) -> Result<Vec<Effective>, Error> {
        let each = self.listen.iter();
        each.map(|listen| listen.effective(self)).collect()
    }
}

impl Listen {
    fn effective(&self, config: &Config) -> Result<Effective, Error> {
        let allowed = config.connections_allowed();
        let max_conns = config
            .max_conns
            .map_or(allowed, |asked| allowed.min(asked.get()));
        let memory = Memory::new(config.memory_limit()?);
        let settings = Settings::new(self, &Arc::new(Limit::new(max_conns)), &memory)?;
        let probe = sockopt::probe().map_err(Unfit::Untried)?;
        let (mut addresses, mut absent) = (Vec::new(), Vec::new());
        for address in &self.addresses {
            let resolved = address.resolve().map_err(Error::resolving(address))?;
            let (here, elsewhere) = listener::foresee(address, resolved, listener::is_elsewhere);
            addresses.extend(here);
            absent.extend(elsewhere);
        }
        addresses.extend(self.sockets.iter().filter_map(|it| listener::named(it)));
        let options = settings.options;
        let lacks_mptcp = self.mptcp.then(multipath::lacks).flatten();
        let has_mptcp = self.mptcp && lacks_mptcp.is_none();
        let slow_probes = has_mptcp.then(|| options.exceeded()).flatten();
        Ok(Effective {
            addresses,
            absent,
            keepalive: options.keepalive(),
            dead_after: options.detection.dead_after,
            rto_max: options
                .detection
                .rto_max()
                .filter(|_| !options.lacks_rto_max(&probe)),
            read_timeout: self.read_timeout,
            write_timeout: self.write_timeout,
            slowest_reader: self.slowest_reader.filter(|_| self.write_timeout.is_some()),
            half_close_timeout: self.half_close_timeout,
            max_conns: self
                .max_conns
                .map_or(max_conns, |asked| max_conns.min(asked.get())),
            memory: memory.limit(),
            memory_of: config.memory.map_or_else(memory::available, |_| None),
            buffer: settings.limits.buffer,
            kernel: memory::settings(),
            lacks_mptcp: lacks_mptcp.map(|error| error.to_string()),
            slow_probes,
            backlog: listener::somaxconn().map_or(self.backlog, |cap| cap.min(self.backlog)),
        })
    }
}
