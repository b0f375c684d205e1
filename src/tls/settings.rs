//! What a listener needs for TLS: certificates, keys, and what is asked of clients.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, InconsistentKeys, RootCertStore, ServerConfig};

use zeroize::Zeroizing;

use super::handshake::{self, Handshake};
use super::tickets::Tickets;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The oldest version that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "older ones are broken, and a newer one is no least"
)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V12,
    /// TLS 1.3 (RFC 8446).
    V13,
}

/// Whether a client has to show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is nothing between")]
pub enum ClientAuth {
    /// One that shows none is refused.
    #[default]
    Required,
    /// One that shows none is served; one that shows a wrong one is refused.
    Optional,
}

/// What [`Tls`] is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsSettings {
    /// Files in PEM: a certificate with its chain, and its private key. The first is shown to clients that ask for no
    /// name, or for one that none of them has.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// The oldest version that is spoken; [`TlsVersion::V12`] by default.
    pub least: TlsVersion,
    /// What is offered to clients that ask for a protocol by ALPN (RFC 7301), the best first; by default none.
    pub protocols: Vec<String>,
    /// A file in PEM with the certificates that a client's has to come of; by default clients are asked for none.
    pub client_ca: Option<PathBuf>,
    /// Whether a client has to show one then.
    pub client_auth: ClientAuth,
    /// How long a handshake may take; 10 s by default.
    pub handshake_timeout: Duration,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            least: TlsVersion::default(),
            protocols: Vec::new(),
            client_ca: None,
            client_auth: ClientAuth::default(),
            handshake_timeout: HANDSHAKE_TIMEOUT,
        }
    }
}

/// TLS at the door of a listener. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Built>);

struct Built {
    config: Arc<ServerConfig>,
    tickets: Arc<Tickets>,
    handshake_timeout: Duration,
    is_held: AtomicBool,
}

impl Tls {
    /// Reads the files that are named.
    ///
    /// # Errors
    /// Which file is no use, and why; or that there is none.
    pub fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let keys = settings.certificates.iter();
        let keys = keys.map(|(certificate, key)| certified(certificate, key, &provider));
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err(TlsError::new(
                None,
                "TLS needs a certificate and its key".to_owned(),
            ));
        }
        let versions: &[_] = match settings.least {
            TlsVersion::V12 => &[&TLS13, &TLS12],
            TlsVersion::V13 => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(versions).map_err(unusable)?;
        let builder = match &settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    let added = roots.add(certificate);
                    added.map_err(|error| TlsError::new(Some(file), error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match settings.client_auth {
                    ClientAuth::Required => verifier,
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| TlsError::new(Some(file), error.to_string()))?,
                )
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Names(keys)));
        let tickets = Arc::new(Tickets::new().ok_or_else(|| {
            TlsError::new(
                None,
                "TLS needs random bytes, and the system has none".to_owned(),
            )
        })?);
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(handshake::Listener);
        config.ticketer = Arc::clone(&tickets) as _;
        config.ignore_client_order = true;
        config.alpn_protocols = settings
            .protocols
            .iter()
            .map(|protocol| protocol.clone().into_bytes())
            .collect();
        Ok(Self(Arc::new(Built {
            config: Arc::new(config),
            tickets,
            handshake_timeout: settings.handshake_timeout,
            is_held: AtomicBool::new(false),
        })))
    }

    pub(crate) fn handshake(&self) -> Result<Handshake, rustls::Error> {
        Handshake::new(&self.0.config)
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        self.0.handshake_timeout
    }

    /// Whether no handshake is to begin.
    pub(crate) fn is_held(&self) -> bool {
        self.0.is_held.load(Ordering::Relaxed)
    }

    /// No handshake is to begin, or those that come may again: once this side has spoken, no other process can go on with one.
    pub(crate) fn hold(&self, held: bool) {
        self.0.is_held.store(held, Ordering::Relaxed);
    }

    /// What tickets are sealed with.
    pub(crate) fn ticket_key(&self) -> [u8; 32] {
        *self.0.tickets.key()
    }

    /// Goes on with the tickets of the process that had the clients before.
    pub(crate) fn take_ticket_key(&self, key: [u8; 32]) {
        self.0.tickets.set_key(Zeroizing::new(key));
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// ring's, in the order in which they are chosen here. Of TLS 1.2 `ChaCha20` comes first: the keys of AES are used up after
/// 2^24 records, and that version has no new ones.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    let rank = |suite: CipherSuite| match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 2,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => 3,
        _ => 4,
    };
    provider
        .cipher_suites
        .sort_by_key(|suite| rank(suite.suite()));
    provider
}

/// The certificates of a listener, the one for all other names first.
#[derive(Debug)]
struct Names(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name();
        if let Some(name) = asked {
            handshake::asked_for(name);
        }
        let asked = asked.and_then(|name| ServerName::try_from(name).ok());
        let is_for = |key: &&Arc<CertifiedKey>| {
            let certificate = key.end_entity_cert().ok();
            let certificate = certificate.and_then(|it| ParsedCertificate::try_from(it).ok());
            match (certificate, &asked) {
                (Some(certificate), Some(name)) => verify_server_name(&certificate, name).is_ok(),
                _ => false,
            }
        };
        let named = self.0.iter().find(is_for).filter(|_| self.0.len() > 1);
        named.or_else(|| self.0.first()).cloned()
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|error| TlsError::new(Some(file), in_pem(&error)))?;
    if found.is_empty() {
        return Err(TlsError::new(Some(file), "no certificate in it".to_owned()));
    }
    Ok(found)
}

fn certified(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        TlsError::new(
            Some(key),
            match error {
                pem::Error::NoItemsFound => "no private key in it".to_owned(),
                error => in_pem(&error),
            },
        )
    })?;
    warn_if_readable(key);
    let end = chain.first().map(ParsedCertificate::try_from);
    if let Some(Err(error)) = end {
        return Err(TlsError::new(Some(certificate), error.to_string()));
    }
    let certified = CertifiedKey::from_der(chain, private, provider);
    certified.map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::new(
            Some(key),
            format!("it is not the key of {}", certificate.display()),
        ),
        error => TlsError::new(Some(key), error.to_string()),
    })
}

/// Says it where everybody on this machine can read a private key.
fn warn_if_readable(key: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(key).map_or(0, |file| file.permissions().mode());
        if mode & 0o004 != 0 {
            log::warn!(file:% = key.display(); "everybody on this machine can read this private key: chmod 600 it");
        }
    }
}

fn in_pem(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "no certificate in it".to_owned(),
        error => format!("not in PEM: {error}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unusable(error: rustls::Error) -> TlsError {
    TlsError::new(None, format!("TLS: {error}"))
}

/// Why there can be no TLS: in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    file: Option<PathBuf>,
    what: String,
}

impl TlsError {
    fn new(file: Option<&Path>, what: String) -> Self {
        Self {
            file: file.map(Path::to_owned),
            what,
        }
    }

    /// The file that is no use.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "cannot use {} for TLS: {}", file.display(), self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl Error for TlsError {}
