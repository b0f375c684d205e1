//! From the wish to be connected to what comes of it: the name is resolved, then an attempt made, both by one deadline.
//!
//! What follows is for the owner, a link or a connection with a far side: to adopt the socket, or to wait and dial anew.

use std::mem;
use std::os::fd::OwnedFd;

use super::attempt::{Attempt, Manner, Tried};
use super::{Dial, DialError};
use crate::address::endpoint::Endpoint;
use crate::dial::resolve::Found;
use crate::time::deadline::Moment;

/// On the way to a server.
#[derive(Debug)]
pub(crate) struct Dialing {
    /// `None` while the name is resolved.
    attempt: Option<Attempt>,
    /// When it ends.
    until: Moment,
}

/// What has come of dialling.
#[derive(Debug)]
pub(crate) enum Dialed {
    /// Nothing yet: the resolver wakes the loop.
    Resolving,
    /// Nothing yet: an event comes, or it is [`due`](Dialing::due).
    Pending,
    Connected(Endpoint, OwnedFd),
    Failed(DialError),
}

impl Dialing {
    /// Its time begins `now`.
    pub(crate) fn new(dial: &Dial, now: Moment) -> Self {
        Self {
            attempt: None,
            until: now.after_if(dial.connect_timeout),
        }
    }

    /// Whether there are sockets whose events are its own.
    pub(crate) fn is_resolved(&self) -> bool {
        self.attempt.is_some()
    }

    /// When all of it has to be done.
    pub(crate) fn until(&self) -> Moment {
        self.until
    }

    /// When [`advance`](Self::advance) is due, though no event has come.
    pub(crate) fn due(&self) -> Moment {
        self.attempt
            .as_ref()
            .map_or(self.until, |attempt| attempt.next().min(self.until))
    }

    /// Goes on. `ask` is the resolver, asked until it knows the name; deadlines up to `known` are judged. Once that has
    /// answered `Connected` or `Failed`, it is over.
    pub(crate) fn advance(
        &mut self,
        dial: &Dial,
        ask: impl FnOnce() -> Option<Found>,
        manner: Manner<'_>,
        (now, known): (Moment, Moment),
    ) -> Dialed {
        let (address, within) = (&dial.address, dial.connect_timeout);
        let Self { attempt, until } = self;
        let attempt = match attempt {
            Some(attempt) => attempt,
            None => match ask() {
                None if *until <= known => {
                    return Dialed::Failed(DialError::resolve_too_slow(address, within));
                }
                None => return Dialed::Resolving,
                Some(Err(found)) => {
                    return Dialed::Failed(DialError::resolve(address, found.into()));
                }
                Some(Ok(addresses)) => attempt.insert(Attempt::new(addresses, *until)),
            },
        };
        match attempt.advance(manner, now) {
            Tried::Pending if *until > known => Dialed::Pending,
            Tried::Connected(server, socket) => Dialed::Connected(server, socket),
            Tried::Pending | Tried::Failed => {
                let given_up = mem::replace(attempt, Attempt::new(Vec::new(), *until));
                Dialed::Failed(given_up.into_error(address, within))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use mio::{Events, Poll, Token};

    use super::*;
    use crate::dial::peers::{refusing, silent};
    use crate::liveness::sockopt::SocketOptions;

    fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    /// Somebody who dials `server:7` within 3 s, at a time that is made up.
    struct Dialer {
        dial: Dial,
        dialing: Dialing,
        poll: Poll,
        options: SocketOptions,
    }

    impl Dialer {
        /// Begins at 10 s.
        fn start() -> Self {
            let dial = Dial {
                connect_timeout: Some(Duration::from_secs(3)),
                ..Dial::new("server:7".parse().unwrap())
            };
            Self {
                dialing: Dialing::new(&dial, at(10_000)),
                dial,
                poll: Poll::new().unwrap(),
                options: SocketOptions::resolve(None, None, None).unwrap(),
            }
        }

        fn advance(&mut self, now: u64, found: Option<Found>) -> Dialed {
            let manner = Manner {
                options: &self.options,
                source: None,
                registry: self.poll.registry(),
                token: Token(0),
            };
            let times = (at(now), at(now));
            self.dialing.advance(&self.dial, || found, manner, times)
        }

        /// What comes of it at that time; the kernel has as long as it needs.
        fn outcome(&mut self, now: u64, found: Option<Found>) -> Dialed {
            let mut dialed = self.advance(now, found);
            let mut events = Events::with_capacity(8);
            while let Dialed::Pending = dialed {
                let guard = Some(Duration::from_secs(30));
                self.poll.poll(&mut events, guard).unwrap();
                assert!(!events.is_empty(), "no event came");
                dialed = self.advance(now, None);
            }
            dialed
        }
    }

    fn error(dialed: Dialed) -> String {
        match dialed {
            Dialed::Failed(error) => format!("{:?}: {error}", error.kind()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_that_is_resolved_late_leaves_the_attempt_what_time_is_left() {
        let (_silent, address) = silent();
        let mut dialer = Dialer::start();
        assert!(matches!(dialer.advance(10_000, None), Dialed::Resolving));
        assert_eq!(dialer.dialing.due(), at(13_000));
        assert!(matches!(dialer.advance(12_900, None), Dialed::Resolving));
        assert!(!dialer.dialing.is_resolved());
        let found = Some(Ok(vec![address.into(), address.into()]));
        assert!(matches!(dialer.advance(12_950, found), Dialed::Pending));
        assert!(dialer.dialing.is_resolved());
        // The next address has its half of the time.
        assert_eq!(dialer.dialing.due(), at(12_975));
    }

    #[test]
    fn a_name_that_is_not_resolved_by_the_deadline_is_given_up() {
        let mut dialer = Dialer::start();
        assert!(matches!(dialer.advance(12_999, None), Dialed::Resolving));
        assert_eq!(
            error(dialer.advance(13_000, None)),
            "Resolve: cannot resolve server:7: no answer within 3s"
        );
    }

    #[test]
    fn a_name_that_means_nothing_is_said_as_the_resolver_said_it() {
        let mut dialer = Dialer::start();
        let unknown = io::Error::new(io::ErrorKind::NotFound, "Name or service not known");
        assert_eq!(
            error(dialer.advance(10_000, Some(Err(unknown.into())))),
            "Resolve: cannot resolve server:7: Name or service not known"
        );
    }

    #[test]
    fn a_server_that_refuses_is_given_up_at_once() {
        let (_refusing, address) = refusing();
        let mut dialer = Dialer::start();
        let dialed = dialer.outcome(10_000, Some(Ok(vec![address.into()])));
        assert_eq!(
            error(dialed),
            format!(
                "Refused: cannot connect to server:7: {address} Connection refused (os error 111)"
            )
        );
    }

    #[test]
    fn a_server_that_is_silent_is_given_up_at_the_deadline_and_not_before() {
        let (_silent, address) = silent();
        let mut dialer = Dialer::start();
        let found = Some(Ok(vec![address.into()]));
        assert!(matches!(dialer.advance(10_000, found), Dialed::Pending));
        assert_eq!(dialer.dialing.due(), at(13_000));
        assert!(matches!(dialer.advance(12_999, None), Dialed::Pending));
        assert_eq!(
            error(dialer.advance(13_000, None)),
            format!("TimedOut: cannot connect to server:7: {address} no answer within 3s")
        );
    }

    #[test]
    fn a_server_that_answers_is_connected() {
        let (listener, address) = refusing();
        listener.listen(9).unwrap();
        let mut dialer = Dialer::start();
        match dialer.outcome(10_000, Some(Ok(vec![address.into()]))) {
            Dialed::Connected(server, _) => assert_eq!(server, address.into()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_time_limit_nothing_ends_a_silent_one() {
        let (_silent, address) = silent();
        let mut dialer = Dialer::start();
        dialer.dial.connect_timeout = None;
        dialer.dialing = Dialing::new(&dialer.dial, at(10_000));
        assert_eq!(dialer.dialing.due(), Moment::NEVER);
        let found = Some(Ok(vec![address.into()]));
        assert!(matches!(dialer.advance(10_000, found), Dialed::Pending));
        assert!(matches!(dialer.advance(99_000, None), Dialed::Pending));
    }
}
