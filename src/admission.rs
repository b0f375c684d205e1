//! Who may come in: limits on the number of connections, in all and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits of one [`Listen`](crate::Listen), and how many connections count against them. Touched only when a
/// connection comes or goes.
#[derive(Debug)]
pub(crate) struct Admission {
    max_conns: usize,
    open: AtomicUsize,
    per_ip: Option<PerIp>,
}

#[derive(Debug)]
struct PerIp {
    max: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Admission {
    pub(crate) fn new(max_conns: usize, max_per_ip: Option<usize>) -> Self {
        Self {
            max_conns,
            open: AtomicUsize::new(0),
            per_ip: max_per_ip.map(|max| PerIp {
                max,
                open: Mutex::default(),
            }),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.max_conns
    }

    /// Counts a connection in, if the limits allow it. Only the accepting thread admits.
    pub(crate) fn admit(&self, ip: IpAddr) -> bool {
        if self.is_full() {
            return false;
        }
        if let Some(per_ip) = &self.per_ip {
            let mut open = per_ip.open.lock().unwrap_or_else(PoisonError::into_inner);
            let count = open.entry(ip).or_default();
            if *count >= per_ip.max {
                return false;
            }
            *count += 1;
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Counts a connection in that a former process admitted, whatever the limits.
    #[cfg(feature = "control")]
    pub(crate) fn count(&self, ip: IpAddr) {
        self.open.fetch_add(1, Ordering::Relaxed);
        if let Some(per_ip) = &self.per_ip {
            let mut open = per_ip.open.lock().unwrap_or_else(PoisonError::into_inner);
            *open.entry(ip).or_default() += 1;
        }
    }

    /// Counts an admitted connection out.
    pub(crate) fn release(&self, ip: IpAddr) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(per_ip) = &self.per_ip {
            let mut open = per_ip.open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = open.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&ip);
                }
            }
        }
    }
}

/// Descriptors kept free of connections: standard streams, event loops, listeners, logs, name look-ups.
const RESERVE: usize = 64;

/// How many connections the descriptor limit allows.
#[must_use]
pub fn descriptors_for_connections() -> usize {
    let limit = getrlimit(Resource::Nofile)
        .current
        .and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX).saturating_sub(RESERVE).max(1)
}

/// Raises the soft limit on descriptors to the hard one, and answers what it is now (`None`: unlimited).
///
/// For a program's start: the soft limit is low for the sake of programs that use select(2).
#[expect(clippy::must_use_candidate, reason = "raising it is the point")]
pub fn raise_descriptor_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
        .is_ok()
    {
        return maximum;
    }
    current
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

    #[test]
    fn the_limit_on_all_counts_those_that_are_there() {
        let admission = Admission::new(2, None);
        assert!(admission.admit(ONE) && admission.admit(ONE));
        assert!(admission.is_full() && !admission.admit(TWO));
        admission.release(ONE);
        assert!(admission.admit(TWO));
    }

    #[test]
    fn the_limit_on_one_address_leaves_the_others_alone() {
        let admission = Admission::new(9, Some(1));
        assert!(admission.admit(ONE));
        assert!(!admission.admit(ONE));
        assert!(admission.admit(TWO));
        admission.release(ONE);
        assert!(admission.admit(ONE));
        admission.release(ONE);
        admission.release(TWO);
        let per_ip = admission.per_ip.as_ref().unwrap();
        assert!(
            per_ip.open.lock().unwrap().is_empty(),
            "addresses that left are forgotten"
        );
    }
}
