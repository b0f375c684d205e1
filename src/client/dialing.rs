//! A link's way to its server: the name is resolved, an attempt made, and what comes of it told.

use mio::Token;

use super::{Caller, Client};
use crate::address::endpoint::{Endpoint, Peer};
use crate::client::engine::{Connected, Entry, State, state_of};
use crate::dial::{DialError, Dialed, Manner};
use crate::io::Io;
use crate::io::Is;
use crate::io::tls::Shaking;
use crate::liveness::herd;
use crate::time::deadline::slot;

impl<C: Caller> Client<C> {
    /// Goes on with dialling.
    pub(super) fn dial(&mut self, key: usize) {
        let engine = &mut self.engine;
        let Some(Entry {
            link: Some(id),
            state: State::Dialing(dialing),
        }) = engine.entries.get_mut(key)
        else {
            return;
        };
        let has_herd = herd::is_herd(engine.live);
        let manner = Manner {
            options: &engine.options.of_one(*id as u64, has_herd),
            source: engine.dial.source(*id),
            registry: engine.poll.registry(),
            token: Token(key),
        };
        let (now, known) = (engine.now, engine.horizon.known());
        let ask = || engine.resolver.ask(now);
        match dialing.advance(&engine.dial, ask, manner, (now, known)) {
            Dialed::Resolving => {
                engine.resolving.push(key);
                engine.deadlines.set(slot(key), dialing.due());
            }
            Dialed::Pending => engine.deadlines.set(slot(key), dialing.due()),
            Dialed::Connected(server, socket) => {
                let peer = server.tcp().map_or(Peer::Unix(None), Peer::from);
                let mut io = Io::new(socket, *id as u64, peer, 0, engine.now);
                // What came with the connection, be it a FIN, made its edge before.
                io.set(Is::Readable, true);
                io.set(Is::ReadOn, true);
                log::debug!(id = *id, server:%; "connected");
                let Some(dialer) = Shaking::by(&engine.dial) else {
                    return self.connected(key, io, server);
                };
                let until = dialing.until();
                match Shaking::begin(dialer, &engine.dial.address, (io, server), until) {
                    Ok(shaking) => {
                        engine.deadlines.set(slot(key), until);
                        engine.entries[key].state = State::Shaking(Box::new(shaking));
                        self.shake_hands(key);
                    }
                    Err(error) => self.failed(key, &error),
                }
            }
            Dialed::Failed(error) => self.failed(key, &error),
        }
    }

    fn connected(&mut self, key: usize, io: Io, server: Endpoint) {
        let engine = &mut self.engine;
        engine.deadlines.remove(slot(key));
        engine.entries[key].state = State::Up(Connected::new(io, server));
        self.call(key, |caller, link| caller.connected(link));
        self.advance(key);
    }

    /// Goes on with a handshake of TLS.
    pub(super) fn shake_hands(&mut self, key: usize) {
        let engine = &mut self.engine;
        let Some(State::Shaking(shaking)) = state_of(&mut engine.entries, key) else {
            return;
        };
        let turn = engine.terms.turn(engine.now, engine.horizon.known());
        let Some(outcome) = shaking.advance(&mut self.buffer, &turn) else {
            return engine.deadlines.set(slot(key), shaking.until());
        };
        engine.deadlines.remove(slot(key));
        let state = std::mem::replace(&mut engine.entries[key].state, State::Waiting);
        let State::Shaking(shaking) = state else {
            return;
        };
        match outcome {
            Ok(()) => {
                let (io, server) = shaking.into_parts();
                self.connected(key, io, server);
            }
            Err(fault) => {
                let error = shaking.into_error(&engine.dial.address, fault);
                self.failed(key, &error);
            }
        }
    }

    fn failed(&mut self, key: usize, error: &DialError) {
        self.engine.entries[key].state = State::Waiting;
        if let Some(id) = self.engine.entries[key].link {
            let next = self.caller.failed(id, error);
            self.go_on(key, id, next);
        }
    }
}
