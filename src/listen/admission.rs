//! Who may come in: limits on the number of connections, in all and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::address::network::IpPrefix;
use crate::config::AcceptRate;
use crate::io::Io;
use crate::io::door::Door;
use crate::listen::pace::Paces;
use crate::time::deadline::Moment;

/// The limits of one [`Listen`](crate::Listen), and how many connections count against them. Touched only when a
/// connection comes or goes.
#[derive(Debug)]
pub(crate) struct Admission {
    own: Limit,
    /// The whole server's.
    total: Arc<Limit>,
    per_ip: Option<PerIp>,
    prefix: IpPrefix,
    paces: Option<Paces>,
}

/// A limit, and how many connections count against it.
#[derive(Debug)]
pub(crate) struct Limit {
    max: usize,
    open: AtomicUsize,
}

impl Limit {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            open: AtomicUsize::new(0),
        }
    }

    fn is_reached(&self) -> bool {
        self.open.load(Ordering::SeqCst) >= self.max
    }
}

#[derive(Debug)]
struct PerIp {
    max: usize,
    prefix: IpPrefix,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Admission {
    pub(crate) fn new(
        own: Limit,
        total: Arc<Limit>,
        max_per_ip: Option<usize>,
        prefix: IpPrefix,
    ) -> Self {
        Self {
            own,
            total,
            per_ip: max_per_ip.map(|max| PerIp {
                max,
                prefix,
                open: Mutex::default(),
            }),
            prefix,
            paces: None,
        }
    }

    /// With a rate for each address.
    pub(crate) fn paced(self, rate: Option<AcceptRate>) -> Self {
        let paces = rate.map(|rate| Paces::new(rate, self.prefix));
        Self { paces, ..self }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.own.is_reached() || self.total.is_reached()
    }

    /// Counts a connection in, if the limits allow it; one without an address counts against no address. Only the
    /// accepting thread admits.
    ///
    /// # Errors
    /// Which limit is reached, by its flag's name.
    pub(crate) fn admit(&self, ip: Option<IpAddr>) -> Result<(), &'static str> {
        if self.is_full() {
            return Err("max-conns");
        }
        self.admit_from(ip)?;
        self.own.open.fetch_add(1, Ordering::SeqCst);
        self.total.open.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// A connection that counts already turns out to be from `ip`.
    ///
    /// # Errors
    /// That limit is reached, by its flag's name.
    pub(crate) fn admit_from(&self, ip: Option<IpAddr>) -> Result<(), &'static str> {
        if let Some(per_ip) = &self.per_ip
            && let Some(ip) = ip
        {
            let mut open = per_ip.open.lock().unwrap_or_else(PoisonError::into_inner);
            let count = open.entry(per_ip.prefix.of(ip)).or_default();
            if *count >= per_ip.max {
                return Err("max-conns-per-ip");
            }
            *count += 1;
        }
        Ok(())
    }

    /// Counts a connection in that a predecessor admitted, whatever the limits.
    pub(crate) fn count(&self, ip: Option<IpAddr>) {
        self.own.open.fetch_add(1, Ordering::SeqCst);
        self.total.open.fetch_add(1, Ordering::SeqCst);
        if let Some(per_ip) = &self.per_ip
            && let Some(ip) = ip
        {
            let mut open = per_ip.open.lock().unwrap_or_else(PoisonError::into_inner);
            *open.entry(per_ip.prefix.of(ip)).or_default() += 1;
        }
    }

    /// Counts an admitted connection out.
    fn release(&self, ip: Option<IpAddr>) {
        self.own.open.fetch_sub(1, Ordering::SeqCst);
        self.total.open.fetch_sub(1, Ordering::SeqCst);
        if let Some(per_ip) = &self.per_ip
            && let Some(ip) = ip
        {
            let mut open = per_ip.open.lock().unwrap_or_else(PoisonError::into_inner);
            let ip = per_ip.prefix.of(ip);
            if let Some(count) = open.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&ip);
                }
            }
        }
    }

    /// When a client that has come from `ip` may be served.
    pub(crate) fn turn_of(&self, ip: Option<IpAddr>, now: Moment) -> Moment {
        match (&self.paces, ip) {
            (Some(paces), Some(ip)) => paces.turn_of(ip, now),
            _ => now,
        }
    }

    /// A client came with a turn from another process.
    pub(crate) fn keep_turn(&self, ip: Option<IpAddr>, turn: Moment, now: Moment) {
        if let (Some(paces), Some(ip)) = (&self.paces, ip) {
            paces.keep_turn(ip, turn, now);
        }
    }

    /// A connection has ended, or left: what it counted as counts no more.
    pub(crate) fn leave(&self, io: &Io) {
        let ip = match io.door() {
            Some(Door::Header(_)) => None,
            _ => io.peer().ip(),
        };
        self.release(ip);
        if let (Some(Door::Turn(_)), Some(paces), Some(ip)) = (io.door(), &self.paces, ip) {
            paces.give_back(ip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)));
    const TWO: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)));

    fn admission(own: usize, total: usize, per_ip: Option<usize>) -> Admission {
        Admission::new(
            Limit::new(own),
            Arc::new(Limit::new(total)),
            per_ip,
            IpPrefix::default(),
        )
    }

    #[test]
    fn the_limit_of_the_server_counts_every_listener() {
        let total = Arc::new(Limit::new(1));
        let one = Admission::new(Limit::new(9), Arc::clone(&total), None, IpPrefix::default());
        let other = Admission::new(Limit::new(9), total, None, IpPrefix::default());
        assert_eq!(one.admit(ONE), Ok(()));
        assert!(other.is_full());
        assert_eq!(other.admit(ONE), Err("max-conns"));
        one.release(ONE);
        assert_eq!(other.admit(ONE), Ok(()));
    }

    #[test]
    fn the_limit_on_all_counts_those_that_are_there() {
        let admission = admission(2, 9, None);
        assert_eq!(
            (admission.admit(ONE), admission.admit(ONE)),
            (Ok(()), Ok(()))
        );
        assert!(admission.is_full());
        assert_eq!(admission.admit(TWO), Err("max-conns"));
        admission.release(ONE);
        assert_eq!(admission.admit(TWO), Ok(()));
    }

    #[test]
    fn the_limit_on_one_address_leaves_the_others_alone() {
        let admission = admission(9, 9, Some(1));
        assert_eq!(admission.admit(ONE), Ok(()));
        assert_eq!(admission.admit(ONE), Err("max-conns-per-ip"));
        assert_eq!(admission.admit(TWO), Ok(()));
        admission.release(ONE);
        assert_eq!(admission.admit(ONE), Ok(()));
        admission.release(ONE);
        admission.release(TWO);
        let per_ip = admission.per_ip.as_ref().unwrap();
        assert!(
            per_ip.open.lock().unwrap().is_empty(),
            "addresses that left are forgotten"
        );
    }
}
