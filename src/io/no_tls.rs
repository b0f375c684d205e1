//! TLS where there is none: without the feature `tls`.

use std::io::IoSlice;
use std::time::Duration;

use super::{Io, Turn};
use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::dial::{Dial, DialError, TlsFault};
use crate::inspect::TlsInfo;
use crate::io::door::Shaken;
use crate::liveness::close::CloseReason;
use crate::os::sys;
use crate::time::deadline::Moment;

/// TLS of a listener, which none has.
#[derive(Clone, Debug)]
pub(crate) enum Server {}

impl Server {
    pub(crate) fn handshake_timeout(&self) -> Duration {
        match *self {}
    }

    pub(crate) fn hold(&self, _held: bool) {
        match *self {}
    }

    pub(crate) fn ticket_keys(&self) -> Vec<u8> {
        match *self {}
    }

    pub(crate) fn take_ticket_keys(&self, _saved: &[u8]) {
        match *self {}
    }
}

/// TLS towards a server, which none is dialled with.
#[derive(Debug)]
pub(crate) enum Dialer {}

/// TLS of a connection, which none has.
#[derive(Debug)]
pub(crate) enum Tls {}

/// A connection on which a handshake with a server is under way, which there is none of.
#[derive(Debug)]
pub(crate) enum Shaking {}

impl Shaking {
    pub(crate) fn by(_: &Dial) -> Option<&Dialer> {
        None
    }

    pub(crate) fn begin(
        dialer: &Dialer,
        _: &Address,
        _: (Io, Endpoint),
        _: Moment,
    ) -> Result<Self, DialError> {
        match *dialer {}
    }

    pub(crate) fn io(&mut self) -> &mut Io {
        match *self {}
    }

    pub(crate) fn until(&self) -> Moment {
        match *self {}
    }

    pub(crate) fn advance(
        &mut self,
        _: &mut [u8],
        _: &Turn<'_>,
    ) -> Option<Result<(), (TlsFault, String)>> {
        match *self {}
    }

    pub(crate) fn into_error(self, _: &Address, _: (TlsFault, String)) -> DialError {
        match self {}
    }

    pub(crate) fn into_parts(self) -> (Io, Endpoint) {
        match self {}
    }
}

impl Io {
    #[inline]
    pub(crate) fn has_tls(&self) -> bool {
        false
    }

    pub(crate) fn tls_info(&self) -> Option<TlsInfo> {
        None
    }

    pub(crate) fn tls_issuer(&self) -> Option<&str> {
        None
    }

    pub(crate) fn named(&self) -> (Option<&str>, Option<&str>) {
        (None, None)
    }

    pub(crate) fn is_heard(&self) -> bool {
        false
    }

    pub(crate) fn held_sealed(&self) -> usize {
        0
    }

    pub(crate) fn unopened(&self) -> usize {
        0
    }

    #[inline]
    pub(crate) fn surcharge(&self) -> u64 {
        0
    }

    pub(crate) fn written_plain(&self) -> u64 {
        self.written
    }

    pub(crate) fn is_truncated(&self) -> bool {
        false
    }

    pub(crate) fn told_apart(&self, reason: CloseReason) -> CloseReason {
        reason
    }

    pub(crate) fn shake_hands(&mut self, tls: &Server, _: &mut [u8], _: &Turn<'_>) -> Shaken {
        match *tls {}
    }

    #[inline]
    pub(super) fn take_in_sealed(&mut self, _: &mut [u8], _: &Turn<'_>) -> usize {
        0
    }

    #[inline]
    pub(super) fn send_sealed(&mut self, _: &[u8], _: &Turn<'_>) -> usize {
        0
    }

    #[inline]
    pub(super) fn send_gathered(&mut self, _: &[IoSlice<'_>], _: &Turn<'_>) -> usize {
        0
    }

    #[inline]
    pub(super) fn write_sealed(&mut self, _: &[u8], _: &Turn<'_>) {}

    pub(crate) fn unacknowledged(&self) -> u64 {
        sys::unacknowledged(self.descriptor()).unwrap_or(0)
    }

    pub(crate) fn half_close(&mut self, turn: &Turn<'_>) {
        self.send_fin(turn);
    }

    #[inline]
    pub(crate) fn has_said_goodbye(&mut self, _: &Turn<'_>) -> bool {
        self.waiting_output() == 0
    }
}

#[cfg(control)]
pub(crate) fn has_come(_saved: &[u8]) -> bool {
    false
}

impl Io {
    pub(crate) fn has_heard_all(&self) -> bool {
        false
    }
}

/// In a takeover.
#[cfg(control)]
impl Io {
    pub(crate) fn saved_tls(&self, _is_frozen: bool) -> Option<Vec<u8>> {
        None
    }

    pub(crate) fn hello(&self) -> Option<&[u8]> {
        None
    }

    pub(crate) fn set_hello(&mut self, _hello: Vec<u8>) {}

    pub(crate) fn restore_tls(&mut self, _saved: &[u8]) -> Result<(), String> {
        Err("a TLS session, and this program has no TLS".to_owned())
    }

    pub(in crate::io) fn let_session_go(&mut self) {}

    pub(crate) fn is_shaking(&self) -> bool {
        false
    }
}
