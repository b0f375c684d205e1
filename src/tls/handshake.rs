//! The handshake, by rustls: until the connection is a [`Session`].

use std::cell::RefCell;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::UnbufferedServerConnection;
use rustls::server::danger::ClientCertVerifier;
use rustls::unbuffered::UnbufferedStatus;
use rustls::{
    AlertDescription, CertificateError, Error, HandshakeKind, KeyLog, ProtocolVersion, ServerConfig,
};
use zeroize::Zeroizing;

use super::certificate;
use super::session::{self, Session};
use super::turn::Turn;
use crate::memory::Held;

/// The most that a client may say before this side has, bytes.
const LONGEST_HELLO: usize = 32 * 1024;

/// The most that a client may say in all, bytes: a certificate with its chain has room in a quarter of that.
const LONGEST: usize = 128 * 1024;

pub(super) type Secret = Zeroizing<Vec<u8>>;

thread_local! {
    /// What rustls tells of the connection that it works on to whoever serves all of them: the first traffic secrets, the
    /// client's first, and the name that the client asks for.
    static HEARD: RefCell<[Option<Secret>; 2]> = const { RefCell::new([None, None]) };
    static NAME: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the traffic secrets for the handshake that they come of.
#[derive(Debug)]
pub(super) struct Listener;

impl KeyLog for Listener {
    fn log(&self, label: &str, _random: &[u8], secret: &[u8]) {
        if let Some(place) = place(label) {
            let secret = Zeroizing::new(secret.to_vec());
            HEARD.with_borrow_mut(|heard| {
                if let Some(heard) = heard.get_mut(place) {
                    *heard = Some(secret);
                }
            });
        }
    }

    fn will_log(&self, label: &str) -> bool {
        place(label).is_some()
    }
}

fn place(label: &str) -> Option<usize> {
    match label {
        "CLIENT_TRAFFIC_SECRET_0" => Some(0),
        "SERVER_TRAFFIC_SECRET_0" => Some(1),
        _ => None,
    }
}

/// Forgets what was heard of a handshake that came to nothing.
pub(super) fn forget_heard() {
    HEARD.take();
}

/// What was heard since goes in the place of what `own` has.
pub(super) fn take_heard(own: &mut [Option<Secret>; 2]) {
    for (own, heard) in own.iter_mut().zip(HEARD.take()) {
        if heard.is_some() {
            *own = heard;
        }
    }
}

/// The client asks for that name.
pub(super) fn asked_for(name: &str) {
    NAME.set(Some(name.to_owned()));
}

/// What a handshake has led to, besides the session: for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) version: &'static str,
    pub(crate) cipher: &'static str,
    /// The name that the client asked for.
    pub(crate) name: Option<String>,
    /// The protocol that was agreed on.
    pub(crate) protocol: Option<String>,
    /// Whose certificate the client has shown.
    pub(crate) client: Option<String>,
    /// And who has signed it.
    pub(crate) issuer: Option<String>,
    pub(crate) resumed: bool,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// In a few words.
    pub(crate) what: &'static str,
    /// All that is known.
    pub(crate) detail: String,
}

/// What has become of a handshake.
#[derive(Debug)]
pub(crate) enum Step {
    /// More is to come of the client.
    Waits,
    /// It is done. What has come behind it is [left over](Handshake::into_rest).
    Done(Box<Session>, Facts),
    Failed(Failure),
}

impl Step {
    /// There is no session, for that reason.
    pub(crate) fn failed(what: &'static str) -> Self {
        failed(what, String::new())
    }
}

/// A handshake under way.
pub(crate) struct Handshake {
    /// `None` once it is done.
    connection: Option<UnbufferedServerConnection>,
    /// What has come, and was not used.
    input: Vec<u8>,
    /// So much of that rustls knows.
    offered: usize,
    /// All that has come, as long as nothing was said to it.
    hello: Option<Vec<u8>>,
    /// How much has come in all, bytes.
    came: usize,
    /// What waits here, for whoever counts it.
    pub(crate) held: Held,
    heard: [Option<Secret>; 2],
    name: Option<String>,
    /// Who looks at a certificate that was shown in another handshake, which a ticket brings back.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    _under_way: UnderWay,
}

/// One of those under way, as long as it is there.
pub(super) struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    /// `None`: there are so many already.
    pub(super) fn among(all: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let one = Self(Arc::clone(all));
        // Given back by `one`, if it was too many.
        (all.fetch_add(1, Ordering::Relaxed) < most).then_some(one)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Handshake {
    /// # Errors
    /// What rustls says of the settings.
    pub(super) fn new(
        config: &Arc<ServerConfig>,
        verifier: Option<Arc<dyn ClientCertVerifier>>,
        under_way: UnderWay,
    ) -> Result<Self, Error> {
        Ok(Self {
            verifier,
            _under_way: under_way,
            connection: Some(UnbufferedServerConnection::new(Arc::clone(config))?),
            input: Vec::new(),
            offered: 0,
            hello: Some(Vec::new()),
            came: 0,
            held: Held::default(),
            heard: [None, None],
            name: None,
        })
    }

    /// All that has come, as long as nothing was said to it: another process may begin anew with that.
    pub(crate) fn hello(&self) -> Option<&[u8]> {
        self.hello.as_deref()
    }

    /// What has come and belongs to the session.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.input
    }

    /// The memory of what has come, bytes.
    pub(crate) fn waiting(&self) -> usize {
        self.input.capacity() + self.hello.as_ref().map_or(0, Vec::capacity)
    }

    /// `bytes` have come of the client. What is to be said goes behind what `out` holds, an alert if it failed.
    pub(crate) fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Step {
        // Of a handshake that has failed there may be something yet.
        forget_heard();
        NAME.take();
        self.input.extend_from_slice(bytes);
        self.came += bytes.len();
        if self.came > LONGEST {
            out.extend_from_slice(&plain_alert(AlertDescription::RecordOverflow));
            return failed("a handshake that is too long", String::new());
        }
        if let Some(hello) = &mut self.hello {
            hello.extend_from_slice(bytes);
            if hello.len() > LONGEST_HELLO {
                out.extend_from_slice(&plain_alert(AlertDescription::RecordOverflow));
                return failed("a hello that is too long", String::new());
            }
        }
        let from = out.len();
        let step = self.go_on(out);
        if out.len() > from {
            self.hello = None;
        }
        step
    }

    /// Offers whole records, one more at a time, so that nothing behind the client's last word ever enters rustls.
    fn go_on(&mut self, out: &mut Vec<u8>) -> Step {
        let mut error = None;
        loop {
            let offered = self.input.get_mut(..self.offered).unwrap_or_default();
            let Some(connection) = &mut self.connection else {
                return failed("an error of this server", String::new());
            };
            let UnbufferedStatus { discard, state } = connection.process_tls_records(offered);
            let turn = Turn::of(state, out);
            self.listen();
            self.input.drain(..discard);
            self.offered -= discard;
            let waits = matches!(turn, Turn::Waits);
            match turn {
                Turn::GoesOn | Turn::Waits => {}
                Turn::Done => return self.done(out),
                Turn::GivenUp => return failed("the client gave it up", String::new()),
                Turn::Strange(what) => return failed("an error of this server", what),
                Turn::Refuses(found) => error = Some(found),
            }
            // An alert may be to be said: that comes next. Behind it rustls is not asked again, for it would meet the error
            // again.
            if let Some(error) = &error
                && !self.has_to_say()
            {
                return failed(words(error), error.to_string());
            }
            if waits {
                match session::whole(self.input.get(self.offered..).unwrap_or_default(), 2048) {
                    Ok(Some(record)) => self.offered += record,
                    Ok(None) => return Step::Waits,
                    Err(fault) => {
                        // There are no keys yet, as far as an alert is concerned.
                        out.extend_from_slice(&plain_alert(fault.alert));
                        let what = if self.is_http() {
                            "plain HTTP"
                        } else {
                            fault.what
                        };
                        return failed(what, String::new());
                    }
                }
            }
        }
    }

    fn has_to_say(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.wants_write())
    }

    /// Takes what rustls has told meanwhile.
    fn listen(&mut self) {
        take_heard(&mut self.heard);
        if let Some(name) = NAME.take() {
            self.name = Some(name);
        }
    }

    /// The session, and nothing of rustls's any more.
    fn done(&mut self, out: &mut Vec<u8>) -> Step {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let [client, server] = mem::take(&mut self.heard).map(Option::unwrap_or_default);
        let agreed = self.connection.take().and_then(|connection| {
            let suite = connection.negotiated_cipher_suite()?.suite();
            let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
            let shown = connection.peer_certificates().unwrap_or_default();
            // rustls has looked at what was shown in this handshake, and at no other.
            let refused = self
                .verifier
                .as_ref()
                .filter(|_| resumed)
                .and_then(|verifier| refused(&**verifier, shown));
            let told = shown.first().and_then(|first| certificate::told(first));
            let (subject, issuer) = told.map(|told| (told.subject, told.issuer)).unzip();
            let facts = Facts {
                version: match connection.protocol_version()? {
                    ProtocolVersion::TLSv1_3 => "1.3",
                    _ => "1.2",
                },
                cipher: suite.as_str()?,
                name: self.name.take(),
                protocol: connection.alpn_protocol().map(text),
                client: subject,
                issuer,
                resumed,
            };
            let (extracted, _) = connection.dangerous_into_kernel_connection().ok()?;
            let mut session = Session::of_handshake(suite, &extracted, (&server, &client))?;
            if let Some(error) = refused {
                session.give_up(AlertDescription::CertificateUnknown, out);
                return Some(failed(words(&error), error.to_string()));
            }
            Some(Step::Done(Box::new(session), facts))
        });
        agreed.unwrap_or_else(|| failed("an error of this server", "no secrets".to_owned()))
    }

    fn is_http(&self) -> bool {
        let methods = [
            "GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH ", "CONNECT ", "PRI ",
        ];
        methods
            .iter()
            .any(|method| self.input.starts_with(method.as_bytes()))
    }
}

/// Why a client is refused that has shown this, if it is: its certificate may have expired since.
fn refused(verifier: &dyn ClientCertVerifier, shown: &[CertificateDer<'_>]) -> Option<Error> {
    match shown.split_first() {
        Some((end, between)) => verifier
            .verify_client_cert(end, between, UnixTime::now())
            .err(),
        None => verifier
            .client_auth_mandatory()
            .then_some(Error::NoCertificatesPresented),
    }
}

/// An alert that ends it, before there are keys.
pub(super) fn plain_alert(alert: AlertDescription) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, alert.into()]
}

/// An error in a few words.
fn words(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no client certificate",
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "an expired client certificate",
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "a client certificate of an unknown issuer"
        }
        Error::InvalidCertificate(_) => "a client certificate that is not valid",
        Error::PeerIncompatible(_) => "no version or cipher in common",
        Error::NoApplicationProtocol => "no protocol in common",
        Error::AlertReceived(alert) => alert.as_str().unwrap_or("an alert"),
        Error::DecryptError => "a record that was damaged",
        _ => "no TLS handshake",
    }
}

fn failed(what: &'static str, detail: String) -> Step {
    Step::Failed(Failure { what, detail })
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("input", &self.input.len())
            .finish_non_exhaustive()
    }
}
