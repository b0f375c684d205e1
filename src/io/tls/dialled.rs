//! TLS of a connection that was dialled: its handshake, and what of its output is on the way.

use super::{Named, Sealed, Tls};
use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::dial::{Dial, DialError, TlsFault};
use crate::io::{Io, Is, Turn};
use crate::time::deadline::Moment;
use crate::tls::{DialTls, Greeted, LONGEST_RECORD, Refusal};

/// A connection on which a handshake with a server is under way.
#[derive(Debug)]
pub(crate) struct Shaking {
    io: Io,
    server: Endpoint,
    until: Moment,
    /// As whom the server has to show itself.
    name: String,
}

impl Shaking {
    /// What a server is spoken to with that is dialled so, if it is.
    pub(crate) fn by(dial: &Dial) -> Option<&DialTls> {
        dial.tls.as_ref()
    }

    /// Begins it, with a server that was dialled as `address`. It has until then.
    ///
    /// # Errors
    /// It cannot even begin.
    pub(crate) fn begin(
        tls: &DialTls,
        address: &Address,
        (mut io, server): (Io, Endpoint),
        until: Moment,
    ) -> Result<Self, DialError> {
        let greeting = match tls.greeting(address) {
            Ok(greeting) => greeting,
            Err(what) => {
                let fault = (TlsFault::Handshake, what);
                return Err(DialError::no_tls(address, server, String::new(), fault));
            }
        };
        let name = greeting.name().to_owned();
        io.pending().tls = Some(Tls::Greeting(Box::new(greeting)));
        Ok(Self {
            io,
            server,
            until,
            name,
        })
    }

    pub(crate) fn io(&mut self) -> &mut Io {
        &mut self.io
    }

    /// When it has to be done.
    pub(crate) fn until(&self) -> Moment {
        self.until
    }

    /// Goes on with it, as far as what has come allows. `None`: more is to come.
    pub(crate) fn advance(
        &mut self,
        buffer: &mut [u8],
        turn: &Turn<'_>,
    ) -> Option<Result<(), (TlsFault, String)>> {
        let outcome = self.io.greet(buffer, turn);
        if outcome.is_none() && self.until <= turn.known {
            let what = "its handshake did not end in time".to_owned();
            return Some(Err((TlsFault::Late, what)));
        }
        outcome
    }

    /// It failed so.
    pub(crate) fn into_error(self, address: &Address, fault: (TlsFault, String)) -> DialError {
        DialError::no_tls(address, self.server, self.name, fault)
    }

    /// It is done.
    pub(crate) fn into_parts(self) -> (Io, Endpoint) {
        (self.io, self.server)
    }
}

impl Io {
    /// The handshake with a server, as far as what has come allows. The first word is this side's.
    fn greet(
        &mut self,
        buffer: &mut [u8],
        turn: &Turn<'_>,
    ) -> Option<Result<(), (TlsFault, String)>> {
        let failed = |what: &str| Some(Err((TlsFault::Handshake, what.to_owned())));
        self.flush(turn);
        // What is left over is no more than is opened at once.
        let most = buffer.len().min(LONGEST_RECORD);
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        loop {
            let count = if self.is(Is::Readable) {
                self.receive(buffer, turn)
            } else {
                0
            };
            let came = buffer.get(..count).unwrap_or_default();
            let Some(Tls::Greeting(greeting)) = &mut self.pending().tls else {
                return failed("an error of this side: no handshake");
            };
            let mut out = Vec::new();
            let greeted = greeting.advance(came, &mut out);
            let bytes = greeting.waiting();
            super::count(bytes, &mut greeting.held, turn);
            if bytes > LONGEST_RECORD && turn.memory.is_full() && matches!(greeted, Greeted::Waits)
            {
                return failed("no memory for more of its handshake");
            }
            self.put(&out, turn);
            match greeted {
                Greeted::Waits => {}
                Greeted::Failed(Refusal { fault, what }) => return Some(Err((fault, what))),
                Greeted::Done(session, protocol) => {
                    let id = self.id();
                    let (version, cipher) = session.agreed();
                    if let Some(Tls::Greeting(greeting)) = self.pending().tls.take() {
                        let server = greeting.name();
                        log::debug!(id, server, version, cipher, protocol = protocol.as_deref(); "TLS session");
                        let named = Named {
                            asked: Some(greeting.name().into()),
                            client: None,
                        };
                        let sealed = Sealed::new(*session, greeting.into_rest(), named);
                        self.pending().tls = Some(Tls::Sealed(Box::new(sealed)));
                    }
                    // What was said so far is nobody's output.
                    let said = self.written + self.waiting_output() as u64;
                    if let Some(sealed) = self.sealed() {
                        sealed.overhead = said;
                    }
                    self.last_in = turn.now;
                    // It may be there already, be it a FIN.
                    self.set(Is::Readable, true);
                    return Some(Ok(()));
                }
            }
            if let Some(errno) = self.verdict().and_then(|verdict| verdict.errno) {
                let error = std::io::Error::from_raw_os_error(errno);
                return failed(&format!("lost in the handshake: {error}"));
            }
            if self.is_decided() || self.peer_fin() {
                return failed("it closed the connection in the handshake");
            }
            if !self.is(Is::Readable) {
                return None;
            }
        }
    }

    /// Bytes that the peer is not known to have, as far as they are its service's: with TLS at most so many. A FIN counts as
    /// one.
    pub(crate) fn unacknowledged(&self) -> u64 {
        let queued = crate::os::sys::unacknowledged(self.descriptor()).unwrap_or(0);
        match self.sealed_ref() {
            None => queued,
            Some(sealed) => {
                let queued = queued + self.waiting_output() as u64;
                queued.saturating_sub(sealed.goodbye)
            }
        }
    }

    /// Sends our FIN, behind a goodbye where there is TLS: now, or once what waits has left.
    pub(crate) fn half_close(&mut self, turn: &Turn<'_>) {
        if self.has_said_goodbye(turn) {
            self.send_fin(turn);
        } else {
            self.want_fin();
        }
    }
}
