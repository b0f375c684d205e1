//! A link's way to its server: the name is resolved, an attempt made, and what comes of that told.

use mio::Token;

use super::{Caller, Client};
use crate::address::endpoint::Peer;
use crate::client::engine::{Entry, State, Up};
use crate::dial::{Attempt, Dial, DialError, Manner, Progress};
use crate::io::Io;
use crate::io::Is;
use crate::liveness::herd;
use crate::time::deadline::slot;

impl<C: Caller> Client<C> {
    /// Begins an attempt as soon as the name is resolved.
    pub(super) fn dial(&mut self, key: usize) {
        let engine = &mut self.engine;
        let Some(Entry {
            state: state @ State::Resolving { .. },
            ..
        }) = engine.entries.get_mut(key)
        else {
            return;
        };
        let State::Resolving { until } = *state else {
            return;
        };
        match engine.resolver.ask(engine.now) {
            None => {
                engine.resolving.push(key);
                engine.deadlines.set(slot(key), until);
            }
            Some(Ok(addresses)) => {
                *state = State::Dialing {
                    attempt: Attempt::new(addresses, until),
                    until,
                };
                self.attempt(key);
            }
            Some(Err(found)) => {
                let error = DialError::resolve(&engine.dial.address, found.into());
                self.failed(key, &error);
            }
        }
    }

    /// Goes on with an attempt.
    pub(super) fn attempt(&mut self, key: usize) {
        let engine = &mut self.engine;
        let Some(Entry {
            link: Some(id),
            state: State::Dialing { attempt, until },
        }) = engine.entries.get_mut(key)
        else {
            return;
        };
        let has_herd = herd::is_herd(engine.live);
        let options = if has_herd {
            engine.options.in_herd(*id as u64)
        } else {
            engine.options
        };
        let manner = Manner {
            options: &options,
            source: engine.dial.source(*id),
            registry: engine.poll.registry(),
            token: Token(key),
        };
        match attempt.advance(manner, engine.now) {
            Progress::Pending if *until <= engine.horizon.known() => self.give_up(key),
            Progress::Pending => {
                let due = attempt.next().min(*until);
                engine.deadlines.set(slot(key), due);
            }
            Progress::Connected(server, socket) => {
                let peer = server.tcp().map_or(Peer::Unix(None), Peer::from);
                let mut io = Io::new(socket, *id as u64, peer, 0, engine.now);
                // What came with the connection, be it a FIN, made its edge before.
                io.set(Is::Readable, true);
                io.set(Is::ReadOn, true);
                log::debug!(id = *id, server:%; "connected");
                engine.deadlines.remove(slot(key));
                if has_herd && server.tcp().is_some() {
                    engine.herd.add(key, *id as u64, options.idle(), engine.now);
                }
                engine.entries[key].state = State::Up(Up::new(io, server));
                self.call(key, |caller, link| caller.connected(link));
                self.advance(key);
            }
            Progress::Failed => self.give_up(key),
        }
    }

    /// Ends an attempt that has failed, or had its time.
    fn give_up(&mut self, key: usize) {
        let Dial {
            address,
            connect_timeout,
            ..
        } = &self.engine.dial;
        let state = std::mem::replace(&mut self.engine.entries[key].state, State::Waiting);
        if let State::Dialing { attempt, .. } = state {
            let error = attempt.into_error(address, *connect_timeout);
            self.failed(key, &error);
        }
    }

    pub(super) fn failed(&mut self, key: usize, error: &DialError) {
        self.engine.entries[key].state = State::Waiting;
        if let Some(id) = self.engine.entries[key].link {
            let next = self.caller.failed(id, error);
            self.go_on(key, id, next);
        }
    }
}
