//! What the kernel takes for sockets, beside what waits in this process: how much it may, and whether it runs short.

use std::fs;
use std::time::Duration;

use crate::time::deadline::Moment;

/// How often it is looked whether the kernel runs short.
const EVERY: Duration = Duration::from_secs(10);

/// Memory that the kernel may take for TCP sockets (tcp(7)), bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelMemory {
    /// For what one socket sends (`tcp_wmem`).
    pub send: u64,
    /// For what one socket receives (`tcp_rmem`).
    pub receive: u64,
    /// From there on the kernel holds all sockets of the host short (`tcp_mem`). `None`: it does not tell, as in a network
    /// namespace.
    pub pressure: Option<u64>,
    /// For all sockets of the host.
    pub most: Option<u64>,
}

/// What the settings of this host are.
pub(crate) fn settings() -> Option<KernelMemory> {
    let [_, _, send] = three("/proc/sys/net/ipv4/tcp_wmem")?;
    let [_, _, receive] = three("/proc/sys/net/ipv4/tcp_rmem")?;
    let pages = three("/proc/sys/net/ipv4/tcp_mem");
    let bytes = |pages: u64| pages.saturating_mul(rustix::param::page_size() as u64);
    Some(KernelMemory {
        send,
        receive,
        pressure: pages.map(|[_, pressure, _]| bytes(pressure)),
        most: pages.map(|[_, _, most]| bytes(most)),
    })
}

fn three(file: &str) -> Option<[u64; 3]> {
    numbers(&fs::read_to_string(file).ok()?)
}

fn numbers(text: &str) -> Option<[u64; 3]> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some([next()?, next()?, next()?])
}

/// Pages that all TCP sockets of the host take now (/proc/net/sockstat).
fn taken(sockstat: &str) -> Option<u64> {
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_ascii_whitespace();
    words.find(|&word| word == "mem")?;
    words.next()?.parse().ok()
}

/// Looks now and then whether the kernel runs short of memory for TCP, and says so once.
#[derive(Debug)]
pub(crate) struct Pressure {
    next: Moment,
    said: bool,
}

impl Pressure {
    pub(crate) fn new() -> Self {
        Self {
            next: Moment::at_start(),
            said: false,
        }
    }

    pub(crate) fn look(&mut self, now: Moment) {
        if now < self.next {
            return;
        }
        self.next = now.after(EVERY);
        let sockstat = fs::read_to_string("/proc/net/sockstat").ok();
        let taken = sockstat.and_then(|text| taken(&text));
        let mem = three("/proc/sys/net/ipv4/tcp_mem");
        let (Some(taken), Some(mem)) = (taken, mem) else {
            // It does not tell, nor will it.
            self.next = Moment::NEVER;
            return;
        };
        if self.is_news(taken, mem) {
            let [_, pressure, most] = mem;
            log::warn!(
                pages = taken, pressure, most;
                "the kernel is short of memory for TCP: it slows all connections of this host"
            );
        }
    }

    /// Whether `taken` pages are worth a word. Once, until the kernel has relaxed (below the first number).
    fn is_news(&mut self, taken: u64, [low, pressure, _]: [u64; 3]) -> bool {
        if taken < low {
            self.said = false;
        }
        taken >= pressure && !std::mem::replace(&mut self.said, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_is_read() {
        assert_eq!(
            numbers("4096\t16384\t4194304\n"),
            Some([4096, 16384, 4_194_304])
        );
        assert_eq!(numbers("4096 16384"), None);
        let sockstat = "sockets: used 44\nTCP: inuse 19 orphan 7 tw 10259 alloc 19 mem 81\nUDP: inuse 0 mem 0\n";
        assert_eq!(taken(sockstat), Some(81));
        assert_eq!(taken("TCP: inuse 19\n"), None);
    }

    #[test]
    fn a_shortage_is_said_once_until_it_is_over() {
        let mut pressure = Pressure::new();
        let mem = [100, 200, 300];
        let said = [150, 199, 200, 250, 199, 300, 99, 150, 201].map(|at| pressure.is_news(at, mem));
        assert_eq!(
            said,
            [false, false, true, false, false, false, false, false, true]
        );
    }
}
