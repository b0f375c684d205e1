//! The handshake with a server that was dialled, by rustls: until the connection is a [`Session`].

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::UnbufferedStatus;
use rustls::{CertificateError, ClientConfig, Error, ProtocolVersion};

use super::certificate::Told;
use super::handshake::{self, Secret, plain_alert};
use super::session::{self, Session};
use super::trust;
use super::turn::Turn;
use crate::error::TlsFault;
use crate::memory::Held;

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) fault: TlsFault,
    /// All that is known, to go on behind a colon.
    pub(crate) what: String,
}

/// What has become of a handshake.
#[derive(Debug)]
pub(crate) enum Greeted {
    /// More is to come of the server.
    Waits,
    /// It is done, and that is the protocol that was agreed on. What has come behind it is [left
    /// over](Greeting::into_rest).
    Done(Box<Session>, Option<String>),
    Failed(Refusal),
}

/// A handshake under way.
pub(crate) struct Greeting {
    /// `None` once it is done.
    connection: Option<UnbufferedClientConnection>,
    /// What has come, and was not used.
    input: Vec<u8>,
    /// So much of that rustls knows.
    offered: usize,
    heard: [Option<Secret>; 2],
    /// As whom the server has to show itself.
    name: String,
    /// A whole record has come.
    has_answer: bool,
    /// A certificate was asked for, and there was none.
    had_none: bool,
    /// The memory of what has come.
    pub(crate) held: Held,
}

impl Greeting {
    /// # Errors
    /// What rustls says of the settings.
    pub(super) fn new(
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Error> {
        Ok(Self {
            name: name.to_str().into_owned(),
            connection: Some(UnbufferedClientConnection::new(Arc::clone(config), name)?),
            input: Vec::new(),
            offered: 0,
            heard: [None, None],
            has_answer: false,
            had_none: false,
            held: Held::default(),
        })
    }

    /// As whom the server has to show itself.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The memory of what has come, bytes.
    pub(crate) fn waiting(&self) -> usize {
        self.input.capacity()
    }

    /// What has come and belongs to the session.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.input
    }

    /// `bytes` have come of the server, or none to begin with. What is to be said goes behind what `out` holds, an alert if
    /// it failed. Whole records are offered, one more at a time, so that nothing behind the server's last word enters
    /// rustls.
    pub(crate) fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Greeted {
        // Of a handshake that has failed there may be something yet.
        handshake::forget_heard();
        trust::refused();
        trust::asked();
        self.input.extend_from_slice(bytes);
        let mut error = None;
        loop {
            let offered = self.input.get_mut(..self.offered).unwrap_or_default();
            let Some(connection) = &mut self.connection else {
                return own_error("a handshake that is over");
            };
            let UnbufferedStatus { discard, state } = connection.process_tls_records(offered);
            let turn = Turn::of(state, out);
            self.had_none |= trust::asked();
            handshake::take_heard(&mut self.heard);
            self.input.drain(..discard);
            self.offered -= discard;
            let waits = matches!(turn, Turn::Waits);
            match turn {
                Turn::GoesOn | Turn::Waits => {}
                Turn::Done => return self.done(),
                Turn::GivenUp => {
                    return failed(TlsFault::Handshake, "it gave the handshake up".to_owned());
                }
                Turn::Strange(what) => return own_error(&what),
                Turn::Refuses(found) => error = Some(found),
            }
            // An alert may be to be said: that comes next. Behind it rustls is not asked again, for it would meet the error
            // again.
            if let Some(error) = &error
                && !self.has_to_say()
            {
                return self.refused(error);
            }
            if !waits {
                continue;
            }
            match session::whole(self.input.get(self.offered..).unwrap_or_default(), 2048) {
                Ok(Some(record)) => {
                    self.offered += record;
                    self.has_answer = true;
                }
                Ok(None) => return Greeted::Waits,
                Err(fault) => {
                    out.extend_from_slice(&plain_alert(fault.alert));
                    return self.speaks_otherwise(fault.what);
                }
            }
        }
    }

    fn has_to_say(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.wants_write())
    }

    /// The session, and nothing of rustls's any more.
    fn done(&mut self) -> Greeted {
        let [client, server] = mem::take(&mut self.heard).map(Option::unwrap_or_default);
        let agreed = self.connection.take().and_then(|connection| {
            let suite = connection.negotiated_cipher_suite()?.suite();
            let protocol = connection
                .alpn_protocol()
                .map(|it| String::from_utf8_lossy(it).into_owned());
            if !matches!(
                connection.protocol_version()?,
                ProtocolVersion::TLSv1_2 | ProtocolVersion::TLSv1_3
            ) {
                return None;
            }
            let (extracted, _) = connection.dangerous_into_kernel_connection().ok()?;
            let session = Session::of_handshake(suite, &extracted, (&client, &server))?;
            Some(Greeted::Done(Box::new(session.of_client()), protocol))
        });
        agreed.unwrap_or_else(|| own_error("no secrets"))
    }

    /// What has come is no record.
    fn speaks_otherwise(&self, what: &str) -> Greeted {
        let what = match what {
            "no TLS" if self.has_answer => "what it says is damaged",
            "no TLS" if self.input.starts_with(b"HTTP/") => "it speaks plain HTTP there",
            "no TLS" => "it speaks no TLS there",
            what => what,
        };
        failed(TlsFault::NoTls, what.to_owned())
    }

    /// What rustls says against the server, or the server against this side.
    fn refused(&self, error: &Error) -> Greeted {
        match error {
            Error::InvalidCertificate(error) => {
                self.certificate(error, &trust::refused().unwrap_or_default())
            }
            Error::AlertReceived(alert) => {
                let alert = alert.as_str().unwrap_or("an alert that is not known");
                if self.had_none {
                    let what = format!("it wants a certificate, and there is none ({alert})");
                    return failed(TlsFault::Ours, what);
                }
                let fault = match TlsFault::is_of_ours(alert) {
                    true => TlsFault::Ours,
                    false => TlsFault::Handshake,
                };
                failed(fault, format!("it refuses the handshake: {alert}"))
            }
            Error::PeerIncompatible(_) => failed(
                TlsFault::Handshake,
                format!("no version or cipher in common ({error})"),
            ),
            Error::InvalidMessage(_) if !self.has_answer => self.speaks_otherwise("no TLS"),
            error => failed(TlsFault::Handshake, error.to_string()),
        }
    }

    fn certificate(&self, error: &CertificateError, told: &Told) -> Greeted {
        type E = CertificateError;
        let days = |from: SystemTime, to: SystemTime| {
            let apart = to.duration_since(from).unwrap_or_default();
            apart.as_secs() / 86_400
        };
        let (fault, what) = match error {
            E::Expired | E::ExpiredContext { .. } => {
                let ago = told.not_after.map(|at| days(at, SystemTime::now()));
                let ago = ago.map_or_else(String::new, |days| format!(" {days} days ago"));
                let what = format!("its certificate expired{ago}");
                (TlsFault::Expired, what)
            }
            E::NotValidYet | E::NotValidYetContext { .. } => (
                TlsFault::NotYetValid,
                "its certificate is not valid yet by this host's clock".to_owned(),
            ),
            E::UnknownIssuer => {
                let by = match &*told.issuer {
                    "" => String::new(),
                    issuer if issuer == told.subject => format!(" ({issuer} by itself)"),
                    issuer => format!(" ({issuer})"),
                };
                let what = format!("its certificate was signed by nobody who is trusted{by}");
                (TlsFault::UnknownIssuer, what)
            }
            E::NotValidForName | E::NotValidForNameContext { .. } => {
                const MOST: usize = 5;
                let names = told.names.iter().take(MOST).map(String::as_str);
                let mut names = names.collect::<Vec<_>>().join(", ");
                if told.names.len() > MOST {
                    names.push_str(", ...");
                }
                let names = if names.is_empty() { "no host" } else { &names };
                let what = format!("its certificate is for {names}, not for {}", self.name);
                (TlsFault::WrongName, what)
            }
            E::Other(_) => (
                TlsFault::BadCertificate,
                format!("its certificate cannot be used: {error}"),
            ),
            error => (
                TlsFault::BadCertificate,
                format!("its certificate is not valid: {error}"),
            ),
        };
        failed(fault, what)
    }
}

fn failed(fault: TlsFault, what: String) -> Greeted {
    Greeted::Failed(Refusal { fault, what })
}

fn own_error(what: &str) -> Greeted {
    failed(
        TlsFault::Handshake,
        format!("an error of this side: {what}"),
    )
}

impl fmt::Debug for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Greeting")
            .field("name", &self.name)
            .field("input", &self.input.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
