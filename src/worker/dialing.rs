//! A worker's far sides, from the wish for one to the connected socket, or to the TLS session there: what the system says
//! of an attempt comes as an event of the connection's second token. One end of a pair is there already, and has but to be
//! registered.

use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mio::Token;

use super::{FAR, Worker};
use crate::address::endpoint::Endpoint;
use crate::connection::Step;
use crate::dial::{DialError, Dialed, Dialing, Manner, TlsFault};
use crate::io::marks::Mark;
use crate::io::tls::Shaking;
use crate::io::{Far, Io};
use crate::liveness::close::{CloseReason, Ending};

impl Worker {
    /// Goes on with the far sides that it is time for.
    pub(super) fn dial(&mut self) {
        for key in self.dials.take() {
            if self.attach(key) {
                continue;
            }
            let connection = self.connections.get(key);
            let far = connection.and_then(|connection| connection.io.far());
            if let Some(Far::Shaking { .. }) = far {
                let outcome = self.shake_hands(key);
                self.come_of(key, outcome);
            } else if let Some(dialed) = self.advance_dial(key) {
                self.dialed(key, dialed);
            }
        }
        // Before any of them is read.
        self.flush_vault();
        self.wake_receivers();
    }

    /// The far side of that connection is there from the beginning: its events are told from now on. Answers whether it is.
    fn attach(&mut self, key: usize) -> bool {
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        let origin = &self.origins[usize::from(connection.io.listener)];
        let Some(up) = connection.io.attach(&origin.terms, self.now) else {
            return false;
        };
        let registry = self.poll.registry();
        let registered = up.io.register(registry, Token(FAR | key));
        self.step(key, |connection, serving| match registered {
            Ok(()) => connection.advance(serving),
            // Out of memory for it (epoll_ctl(2): ENOMEM, ENOSPC).
            Err(error) => Step::Close(connection.io.cut_off(Ending {
                errno: error.raw_os_error(),
                ..Ending::reset(CloseReason::IoError)
            })),
        });
        true
    }

    fn advance_dial(&mut self, key: usize) -> Option<Dialed> {
        let has_herd = self.has_herd();
        let connection = self.connections.get_mut(key)?;
        if connection.io.marks.has(Mark::Closing) {
            return None;
        }
        let (now, known) = (self.now, self.horizon.known());
        let origin = &self.origins[usize::from(connection.io.listener)];
        let id = connection.io.id();
        let far = connection.io.far_mut()?;
        if matches!(far, Far::Interrupted) {
            return Some(Dialed::Failed(DialError::interrupted()));
        }
        if let Far::Wanted {
            upstream,
            at,
            preface,
        } = far
        {
            if *at > now {
                return None;
            }
            *far = Far::Dialing {
                dialing: Dialing::new(upstream.dial(), now),
                upstream: upstream.clone(),
                readable: false,
                preface: mem::take(preface),
            };
        }
        let Far::Dialing {
            dialing, upstream, ..
        } = far
        else {
            return None;
        };
        let manner = Manner {
            options: &origin.settings.options.of_one(id, has_herd),
            source: None,
            registry: self.poll.registry(),
            token: Token(FAR | key),
        };
        let ask = || self.dials.ask(upstream, now);
        Some(dialing.advance(upstream.dial(), ask, manner, (now, known)))
    }

    fn dialed(&mut self, key: usize, dialed: Dialed) {
        let outcome = match dialed {
            Dialed::Resolving => {
                self.dials.wait_for_a_name(key);
                None
            }
            Dialed::Pending => None,
            Dialed::Connected(server, socket) => self.connected(key, (server, socket)),
            Dialed::Failed(error) => Some(Err(error)),
        };
        self.come_of(key, outcome);
    }

    /// What follows from the outcome, if there is one.
    fn come_of(&mut self, key: usize, outcome: Option<Result<(), DialError>>) {
        if matches!(outcome, Some(Ok(()))) && self.pass_on(key) {
            return;
        }
        let is_kept = self.vault.is_some();
        self.step(key, |connection, serving| {
            let Some(outcome) = outcome else {
                return Step::Rest;
            };
            if outcome.is_err() {
                connection.io.take_far();
            }
            connection.dialed(serving, outcome.as_ref().map(|&()| ()));
            connection.connected(serving, is_kept && outcome.is_ok())
        });
    }

    /// The socket is there. Answers what has come of it, unless a handshake is to follow.
    fn connected(
        &mut self,
        key: usize,
        (server, socket): (Endpoint, OwnedFd),
    ) -> Option<Result<(), DialError>> {
        let connection = self.connections.get_mut(key)?;
        let io = connection.io.reached((&server, socket), self.now);
        let Some(Far::Dialing {
            upstream,
            dialing,
            preface,
            ..
        }) = connection.io.take_far()
        else {
            return None;
        };
        let Some(tls) = Shaking::by(upstream.dial()) else {
            self.is_up(key, io);
            return Some(Ok(()));
        };
        let begun = Shaking::begin(tls, upstream.address(), (io, server), dialing.until());
        let mut shaking = match begun {
            Ok(shaking) => Box::new(shaking),
            Err(error) => return Some(Err(error)),
        };
        let origin = &self.origins[usize::from(connection.io.listener)];
        let turn = origin.terms.turn(self.now, self.horizon.known());
        shaking.io().put(&preface, &turn);
        connection.io.set_far(Far::Shaking { upstream, shaking });
        self.shake_hands(key)
    }

    /// Goes on with a handshake of TLS. Answers what has come of it, if it is over.
    fn shake_hands(&mut self, key: usize) -> Option<Result<(), DialError>> {
        let connection = self.connections.get_mut(key)?;
        if connection.io.marks.has(Mark::Closing) {
            return None;
        }
        let origin = &self.origins[usize::from(connection.io.listener)];
        let turn = origin.terms.turn(self.now, self.horizon.known());
        let (buffer, _) = self.buffer.bytes(true);
        let Some(Far::Shaking { shaking, .. }) = connection.io.far_mut() else {
            return None;
        };
        // A panic in there is the client's alone, as one of a service is.
        let outcome = catch_unwind(AssertUnwindSafe(|| shaking.advance(buffer, &turn)));
        let outcome = outcome.unwrap_or_else(|_| {
            let what = "an error of this server".to_owned();
            Some(Err((TlsFault::Handshake, what)))
        })?;
        let Some(Far::Shaking { upstream, shaking }) = connection.io.take_far() else {
            return None;
        };
        if let Err(fault) = outcome {
            return Some(Err(shaking.into_error(upstream.address(), fault)));
        }
        let (io, _) = shaking.into_parts();
        self.is_up(key, io);
        Some(Ok(()))
    }

    /// The far side is up, and nothing of it was read.
    fn is_up(&mut self, key: usize, io: Io) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let origin = &self.origins[usize::from(connection.io.listener)];
        connection.io.connected(io, &origin.terms);
        self.put_along_into_vault(key);
    }
}
