//! The command line of `load` as meant: how many connections, what is sent on them, and when.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use standfast::Address;
use standfast::dial::Dial;

use crate::Failure;
use crate::args::LoadArgs;
use crate::load::SECOND;
use crate::load::control::nanos;

/// Handshakes under way at a time: more overflow a backlog of 4096, or a queue of the kernel's.
const UNDER_WAY: usize = 2000;

/// Connections that one source address gets. The search for a free port is slow beyond half of the range.
const PER_SOURCE: usize = 12_000;

/// Source addresses with `--churn`: the ports of closed connections stay taken for a while.
const CHURN_SOURCES: usize = 16;

/// Descriptors a process needs besides those of its connections, and those of a worker.
const OTHER_DESCRIPTORS: usize = 24;
const WORKER_DESCRIPTORS: usize = 8;

/// How long a run may be of which each fifth of a second is shown.
const FINE: Duration = Duration::from_secs(300);

/// Largest message.
const SIZE_MOST: usize = 64 << 20;

/// What the connections are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Messages and their echoes.
    Echo,
    /// The same, each on a connection of its own.
    Churn,
    /// Nothing but being there.
    Idle,
}

/// What is to be done, in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) mode: Mode,
    pub(super) connections: usize,
    /// Connections a second at the start.
    pub(super) connect_rate: Option<f64>,
    /// Messages a second; with churn, connections.
    pub(super) rate: Option<f64>,
    /// Bytes of a message.
    pub(super) size: u64,
    /// Messages outstanding on a connection, at most.
    pub(super) pipeline: u64,
    pub(super) verify: bool,
    pub(super) duration: Duration,
    /// Nanoseconds.
    pub(super) read_timeout: u64,
    pub(super) connect_timeout: Option<u64>,
    pub(super) workers: usize,
    /// Nanoseconds after which the workers put up their figures anew.
    pub(super) every: u64,
}

/// What of it one worker does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) number: usize,
    pub(super) connections: usize,
    pub(super) connect_rate: Option<f64>,
    pub(super) under_way: usize,
    pub(super) rate: Option<f64>,
    /// Nanoseconds by which its messages are later than the first worker's.
    pub(super) offset: u64,
}

impl Plan {
    /// What `args` ask for, and how to connect. `descriptors` is the limit of this process.
    pub(super) fn new(args: &LoadArgs, descriptors: Option<u64>) -> Result<(Self, Dial), Failure> {
        let mut dial = args.dial.meant()?;
        let connections = args.connections.get();
        let workers = args.workers.get().min(connections);
        let others = OTHER_DESCRIPTORS + workers * WORKER_DESCRIPTORS;
        let needed = connections.saturating_add(others);
        if let Some(limit) = descriptors
            && needed as u64 > limit
        {
            return Err(Failure::usage(format!(
                "{connections} connections are more than the descriptor limit of {limit} allows, {} at most: raise it (ulimit -n), or use several processes",
                limit.saturating_sub(others as u64)
            )));
        }
        let size = args.size.unwrap_or(64);
        if size > SIZE_MOST {
            return Err(Failure::usage(format!(
                "a message of {size} bytes is too large: at most 64m"
            )));
        }
        let mode = match (args.idle, args.churn) {
            (true, _) => Mode::Idle,
            (_, true) => Mode::Churn,
            _ => Mode::Echo,
        };
        // All of 127.0.0.0/8 may be come from.
        let is_here = loopback(&dial.address).is_some_and(|(ip, _)| ip.is_ipv4());
        if is_here && dial.sources.is_empty() {
            dial.sources = sources(mode, connections);
        }
        let read_timeout = args.read_timeout.unwrap_or(Duration::from_secs(10));
        let plan = Self {
            mode,
            connections,
            connect_rate: args.connect_rate.and_then(|rate| rate.per_second()),
            rate: args.rate.and_then(|rate| rate.per_second()),
            size: size as u64,
            pipeline: args.pipeline.unwrap_or(1).into(),
            verify: !args.no_verify,
            duration: args.duration,
            read_timeout: nanos(read_timeout),
            connect_timeout: dial.connect_timeout.map(nanos),
            workers,
            every: every(args),
        };
        Ok((plan, dial))
    }

    /// What worker `number` does.
    pub(super) fn share(&self, number: usize) -> Share {
        let connections = (self.connections - number).div_ceil(self.workers);
        let part = connections as f64 / self.connections as f64;
        let between = self.rate.map_or(0.0, |rate| number as f64 / rate);
        Share {
            number,
            connections,
            connect_rate: self.connect_rate.map(|rate| rate * part),
            under_way: (UNDER_WAY / self.workers).max(1),
            rate: self.rate.map(|rate| rate * part),
            offset: nanos(Duration::from_secs_f64(between)),
        }
    }
}

/// Each second, for the progress line; a page shows more of a run that is not too long for that.
fn every(args: &LoadArgs) -> u64 {
    match args.html {
        Some(_) if args.duration <= FINE => SECOND / 5,
        _ => SECOND,
    }
}

/// This host, where the target is that in numbers, and the port.
pub(super) fn loopback(address: &Address) -> Option<(IpAddr, u16)> {
    let (ip, port) = match address {
        Address::Loopback(port) => (Ipv4Addr::LOCALHOST.into(), *port),
        Address::Host(host, port) => (host.parse::<IpAddr>().ok()?, *port),
        _ => return None,
    };
    ip.is_loopback().then_some((ip, port))
}

/// As many addresses of this host as the connections need ports of. None: the system's choice will do.
fn sources(mode: Mode, connections: usize) -> Vec<IpAddr> {
    let count = connections.div_ceil(PER_SOURCE);
    let count = match mode {
        Mode::Churn => count.max(CHURN_SOURCES),
        Mode::Echo | Mode::Idle => count,
    };
    if count == 1 {
        return Vec::new();
    }
    let first = u32::from(Ipv4Addr::LOCALHOST) + 1;
    (first..)
        .take(count)
        .map(|ip| Ipv4Addr::from(ip).into())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::typed;

    fn meant(line: &str) -> Result<(Plan, Dial), Failure> {
        Plan::new(&typed(line).unwrap(), Some(20_000))
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for options in [
            "--idle --churn",
            "--idle --rate 5",
            "--idle --size 5",
            "--idle --pipeline 5",
            "--idle --no-verify",
            "--idle --read-timeout 5",
            "--churn --pipeline 2",
            "--churn --connect-rate 2",
            "-4 -6",
            "--pipeline 0",
            "--connections 0",
        ] {
            assert!(
                typed::<LoadArgs>(&format!("7000 {options}")).is_err(),
                "{options}"
            );
        }
        for (options, hint) in [
            ("-c 30000", "descriptor limit of 20000"),
            ("--size 65m", "at most 64m"),
            ("--size 1g", "at most 64m"),
        ] {
            let refused = meant(&format!("7000 {options}")).unwrap_err();
            assert!(refused.line.contains(hint), "{refused}");
            assert_eq!(refused.code, 2);
        }
    }

    #[test]
    fn the_shares_of_the_workers_are_the_whole() {
        for (connections, workers) in [(1, 1), (10, 3), (7, 7), (2, 5)] {
            let line = format!("7000 -c {connections} --workers {workers} -r 1000");
            let (plan, _) = meant(&line).unwrap();
            let shares: Vec<Share> = (0..plan.workers).map(|number| plan.share(number)).collect();
            let all: usize = shares.iter().map(|share| share.connections).sum();
            let rate: f64 = shares.iter().filter_map(|share| share.rate).sum();
            assert_eq!(all, connections);
            assert!((rate - 1000.0).abs() < 1e-6, "{rate}");
            assert!(shares.iter().all(|share| share.connections > 0));
        }
    }

    #[test]
    fn many_connections_to_this_host_come_from_several_addresses() {
        let sources = |line: &str| meant(line).unwrap().1.sources;
        assert!(sources("7000 -c 12000").is_empty());
        let two: Vec<IpAddr> = vec![[127, 0, 0, 2].into(), [127, 0, 0, 3].into()];
        assert_eq!(sources("7000 -c 12001"), two);
        assert_eq!(sources("127.0.0.1 7000 -c 18000"), two);
        assert_eq!(sources("7000 --churn").len(), CHURN_SOURCES);
        assert!(sources("[::1]:7000 -c 18000").is_empty());
        assert!(sources("10.0.0.1:7000 -c 18000").is_empty());
        let own: Vec<IpAddr> = vec![[127, 0, 0, 9].into()];
        assert_eq!(sources("7000 -c 18000 -s 127.0.0.9"), own);
    }
}
