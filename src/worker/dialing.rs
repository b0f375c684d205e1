//! A worker's far sides, from the wish for one to the connected socket: names are resolved on threads of their own, and
//! what the system says of an attempt comes as an event of the connection's second token.

use std::collections::HashMap;
use std::sync::Arc;

use mio::{Token, Waker};

use super::{BESIDE, Worker};
use crate::connection::Step;
use crate::dial::resolve::{Found, Resolver};
use crate::dial::upstream::Upstream;
use crate::dial::{Attempt, DialError, Manner, Progress};
use crate::io::marks::Mark;
use crate::io::{Dialing, Far};
use crate::time::deadline::Moment;

/// A resolver for each upstream there is.
#[derive(Debug)]
pub(super) struct Resolvers {
    waker: Arc<Waker>,
    by_number: HashMap<usize, Resolver>,
}

impl Resolvers {
    /// `waker`: tells the worker that a thread has an answer.
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self {
            waker,
            by_number: HashMap::new(),
        }
    }

    fn ask(&mut self, upstream: &Upstream, now: Moment) -> Option<Found> {
        let resolver = self.by_number.entry(upstream.number()).or_insert_with(|| {
            let address = upstream.address().clone();
            Resolver::new(address, upstream.family(), Arc::clone(&self.waker))
        });
        resolver.ask(now)
    }
}

/// What has come of an attempt for now.
enum Stage {
    /// Nothing yet.
    Pending,
    /// Waits for the name to be resolved.
    Resolving,
    Over(Result<(), DialError>),
}

impl Worker {
    /// Goes on with the far sides that it is time for.
    pub(super) fn dial(&mut self) {
        // Bounded: what fails at once, and is wanted again at once, waits for the next turn.
        for key in std::mem::take(&mut self.dials) {
            if let Some(stage) = self.advance_dial(key) {
                self.dialed(key, stage);
            }
        }
        self.wake_receivers();
    }

    /// A thread has resolved a name; it is not told which.
    pub(super) fn resolved(&mut self) {
        for resolver in self.resolvers.by_number.values_mut() {
            resolver.hear(self.now);
        }
        self.dials.append(&mut self.resolving);
    }

    fn advance_dial(&mut self, key: usize) -> Option<Stage> {
        let has_herd = self.has_herd();
        let connection = self.connections.get_mut(key)?;
        // The process that takes over dials anew: a far side that came up now would be in nobody's copy.
        let marks = &connection.io.marks;
        if marks.has(Mark::Closing) || marks.has(Mark::Copied) {
            return None;
        }
        let (now, known) = (self.now, self.horizon.known());
        let origin = &self.origins[usize::from(connection.io.listener)];
        let far = connection.io.pending.as_mut()?.far.as_deref_mut()?;
        #[cfg(control)]
        if matches!(far, Far::Interrupted) {
            return Some(Stage::Over(Err(DialError::interrupted())));
        }
        if let Far::Wanted { upstream, at } = far {
            if *at > now {
                return None;
            }
            *far = Far::Dialing(Dialing {
                until: now.after_if(upstream.connect_timeout()),
                upstream: upstream.clone(),
                attempt: None,
                readable: false,
            });
        }
        let Far::Dialing(dialing) = far else {
            return None;
        };
        let Dialing {
            upstream,
            attempt,
            until,
            readable,
        } = dialing;
        let attempt = match attempt {
            Some(attempt) => attempt,
            None => match self.resolvers.ask(upstream, now) {
                None if *until <= known => {
                    let error =
                        DialError::resolve_too_slow(upstream.address(), upstream.connect_timeout());
                    return Some(Stage::Over(Err(error)));
                }
                None => return Some(Stage::Resolving),
                Some(Err(found)) => {
                    let error = DialError::resolve(upstream.address(), found.into());
                    return Some(Stage::Over(Err(error)));
                }
                Some(Ok(addresses)) => attempt.insert(Attempt::new(addresses, *until)),
            },
        };
        let id = connection.io.id;
        let options = origin.settings.options;
        let options = if has_herd {
            options.in_herd(id)
        } else {
            options
        };
        let manner = Manner {
            options: &options,
            source: None,
            registry: self.poll.registry(),
            token: Token(BESIDE | key),
        };
        let given_up = match attempt.advance(manner, now) {
            Progress::Pending if *until > known => return Some(Stage::Pending),
            Progress::Connected(server, socket) => {
                let readable = *readable;
                if has_herd && server.tcp().is_some() {
                    self.herd.add(BESIDE | key, id, options.idle(), now);
                }
                let turn = origin.turn(now);
                connection.connected((&server, socket), readable, &origin.terms, &turn);
                return Some(Stage::Over(Ok(())));
            }
            Progress::Pending | Progress::Failed => {
                std::mem::replace(attempt, Attempt::new(Vec::new(), now))
            }
        };
        let within = upstream.connect_timeout();
        let error = given_up.into_error(upstream.address(), within);
        Some(Stage::Over(Err(error)))
    }

    fn dialed(&mut self, key: usize, stage: Stage) {
        match stage {
            Stage::Over(Ok(())) if self.pass_on(key) => {}
            Stage::Over(outcome) => self.step(key, |connection, service, turn, buffer| {
                if outcome.is_err() {
                    connection.io.pending().far = None;
                }
                connection.dialed(service, turn, outcome.as_ref().map(|&()| ()));
                connection.io.unpause_if_room(turn);
                connection.advance(service, turn, buffer)
            }),
            Stage::Resolving => {
                self.resolving.push(key);
                self.step(key, |_, _, _, _| Step::Rest);
            }
            Stage::Pending => self.step(key, |_, _, _, _| Step::Rest),
        }
    }
}
