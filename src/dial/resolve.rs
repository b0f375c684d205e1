//! From an address as written to the endpoints it means, without holding up the loop: the resolver of the system blocks,
//! so a name is looked up on a thread of its own.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

use mio::Waker;

use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::os::threads;
use crate::time::deadline::Moment;

/// Which addresses of a name are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// IPv4 and IPv6.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Family {
    fn has(self, endpoint: &Endpoint) -> bool {
        match (self, endpoint.tcp()) {
            (Self::Any, _) | (_, None) => true,
            (Self::V4, Some(address)) => address.is_ipv4(),
            (Self::V6, Some(address)) => address.is_ipv6(),
        }
    }
}

/// For how long an answer is good: links that are lost together ask together.
const FRESH: Duration = Duration::from_secs(1);

pub(crate) type Found = Result<Vec<Endpoint>, NotFound>;

/// What the system's resolver said against a name.
#[derive(Clone, Debug)]
pub(crate) struct NotFound {
    kind: io::ErrorKind,
    text: String,
}

impl From<io::Error> for NotFound {
    fn from(error: io::Error) -> Self {
        Self {
            kind: error.kind(),
            text: error.to_string(),
        }
    }
}

impl From<NotFound> for io::Error {
    fn from(found: NotFound) -> Self {
        Self::new(found.kind, found.text)
    }
}

/// Looks one address up, anew for each attempt to connect.
#[derive(Debug)]
pub(crate) struct Resolver {
    address: Address,
    family: Family,
    /// Tells the loop that an answer has come.
    waker: Arc<Waker>,
    /// The thread at work. It may hang for longer than anybody waits, so there is one at most.
    at_work: Option<Receiver<Found>>,
    /// The last answer, and when it came.
    known: Option<(Moment, Found)>,
}

impl Resolver {
    pub(crate) fn new(address: Address, family: Family, waker: Arc<Waker>) -> Self {
        Self {
            address,
            family,
            waker,
            at_work: None,
            known: None,
        }
    }

    /// The endpoints, if they are known now. Otherwise the waker is called when they are: [hear](Self::hear) them, and ask
    /// again then, in the same order. Who asks only when the answer is on its way comes behind those who wait for it.
    pub(crate) fn ask(&mut self, now: Moment) -> Option<Found> {
        if is_literal(&self.address) {
            return Some(look_up(&self.address, self.family));
        }
        if self.at_work.is_some() {
            return None;
        }
        if let Some((at, found)) = &self.known
            && now.since(*at) < FRESH
        {
            return Some(found.clone());
        }
        match self.start() {
            Ok(answer) => {
                self.at_work = Some(answer);
                None
            }
            Err(error) => Some(Err(error.into())),
        }
    }

    /// Takes the answer that has come, if one has. To be called when woken, asked for or not: later it would be taken
    /// for a fresh one.
    pub(crate) fn hear(&mut self, now: Moment) {
        let Some(answer) = &self.at_work else { return };
        match answer.try_recv() {
            Ok(found) => {
                self.at_work = None;
                self.known = Some((now, found));
            }
            Err(TryRecvError::Empty) => {}
            // It has panicked: as if it had never been asked.
            Err(TryRecvError::Disconnected) => self.at_work = None,
        }
    }

    fn start(&self) -> io::Result<Receiver<Found>> {
        let (sender, answer) = mpsc::channel();
        let (address, family, waker) = (self.address.clone(), self.family, Arc::clone(&self.waker));
        threads::start("resolver", move || {
            // Behind the answer, and behind a panic, too.
            let _wakes = Wakes(waker);
            let sender = sender;
            // Who asked may have gone.
            let _ = sender.send(look_up(&address, family));
        })?;
        Ok(answer)
    }
}

/// Wakes the loop when it is dropped.
struct Wakes(Arc<Waker>);

impl Drop for Wakes {
    fn drop(&mut self) {
        let _ = self.0.wake();
    }
}

fn look_up(address: &Address, family: Family) -> Found {
    let mut found = address.resolve()?;
    found.retain(|endpoint| family.has(endpoint));
    if found.is_empty() {
        let text = match family {
            Family::V4 => "it has no IPv4 address",
            Family::V6 => "it has no IPv6 address",
            Family::Any => "it has no address",
        };
        return Err(io::Error::new(io::ErrorKind::NotFound, text).into());
    }
    Ok(found)
}

/// Whether resolving it asks nobody.
fn is_literal(address: &Address) -> bool {
    match address {
        // With a scope (fe80::1%lo) it is no IpAddr; a name has no colon.
        Address::Host(host, _) => host.parse::<IpAddr>().is_ok() || host.contains(':'),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use mio::{Poll, Token};

    use super::*;

    fn resolver(address: &str, family: Family) -> (Resolver, Poll) {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        (Resolver::new(address.parse().unwrap(), family, waker), poll)
    }

    fn at(seconds: u64) -> Moment {
        Moment::at(Duration::from_secs(seconds))
    }

    /// Asks until there is an answer; woken by the thread.
    fn found(resolver: &mut Resolver, poll: &mut Poll, now: Moment) -> Found {
        let mut events = mio::Events::with_capacity(1);
        loop {
            if let Some(found) = resolver.ask(now) {
                return found;
            }
            poll.poll(&mut events, Some(Duration::from_secs(30)))
                .unwrap();
            assert!(!events.is_empty(), "never woken");
            resolver.hear(now);
        }
    }

    #[test]
    fn who_asks_when_the_answer_has_come_comes_behind_those_who_wait_for_it() {
        let (mut resolver, mut poll) = resolver("localhost:7", Family::V4);
        assert!(resolver.ask(at(5)).is_none(), "the first waits");
        let mut events = mio::Events::with_capacity(1);
        poll.poll(&mut events, Some(Duration::from_secs(30)))
            .unwrap();
        assert!(!events.is_empty(), "never woken");
        assert!(resolver.ask(at(5)).is_none(), "and so does the second");
        resolver.hear(at(5));
        assert!(resolver.ask(at(5)).is_some(), "until all are told");
    }

    #[test]
    fn a_literal_is_known_at_once() {
        for literal in ["127.0.0.1:7", "[::1]:7", "7", "unix:/x"] {
            let (mut resolver, _poll) = resolver(literal, Family::Any);
            assert_eq!(resolver.ask(at(0)).unwrap().unwrap().len(), 1, "{literal}");
        }
    }

    #[test]
    fn a_name_is_looked_up_by_a_thread_that_wakes_the_loop() {
        let (mut resolver, mut poll) = resolver("localhost:7", Family::V4);
        assert!(resolver.ask(at(5)).is_none());
        let endpoints = found(&mut resolver, &mut poll, at(5)).unwrap();
        assert_eq!(endpoints, ["127.0.0.1:7".parse().unwrap()]);
        // Fresh for a while, then looked up anew.
        assert!(
            resolver
                .ask(Moment::at(Duration::from_millis(5900)))
                .is_some()
        );
        assert!(resolver.ask(at(6)).is_none());
    }

    #[test]
    fn the_wrong_family_is_said() {
        let (mut resolver, _poll) = resolver("127.0.0.1:7", Family::V6);
        let error = resolver.ask(at(0)).unwrap().unwrap_err();
        assert_eq!(error.text, "it has no IPv6 address");
    }
}
