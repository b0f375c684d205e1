//! A worker's far sides, from the wish for one to the connected socket: what the system says of an attempt comes as an
//! event of the connection's second token. One end of a pair is there already, and has but to be registered.

use std::os::fd::OwnedFd;

use mio::Token;

use super::{FAR, Worker};
use crate::address::endpoint::Endpoint;
use crate::connection::Step;
use crate::dial::DialError;
use crate::dial::{Dialed, Dialing, Manner};
use crate::io::Far;
use crate::io::marks::Mark;
use crate::liveness::close::{CloseReason, Ending};

impl Worker {
    /// Goes on with the far sides that it is time for.
    pub(super) fn dial(&mut self) {
        for key in self.dials.take() {
            if self.attach(key) {
                continue;
            }
            if let Some(dialed) = self.advance_dial(key) {
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
        if let Far::Wanted { upstream, at } = far {
            if *at > now {
                return None;
            }
            *far = Far::Dialing {
                dialing: Dialing::new(upstream.dial(), now),
                upstream: upstream.clone(),
                readable: false,
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
            Dialed::Connected(server, socket) => {
                self.connected(key, (&server, socket));
                if self.pass_on(key) {
                    return;
                }
                Some(Ok(()))
            }
            Dialed::Failed(error) => Some(Err(error)),
        };
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

    fn connected(&mut self, key: usize, (server, socket): (&Endpoint, OwnedFd)) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let origin = &self.origins[usize::from(connection.io.listener)];
        let terms = &origin.terms;
        connection.io.connected((server, socket), terms, self.now);
        self.put_along_into_vault(key);
    }
}
