//! What a listener needs for TLS: certificates, keys, and what is asked of clients.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, InconsistentKeys, RootCertStore, ServerConfig};

use zeroize::Zeroizing;

use super::certificate;
use super::handshake::{self, Handshake, UnderWay};
use super::tickets::Tickets;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many of them may be under way at once.
const HANDSHAKES: usize = 4096;

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
    /// How many handshakes may be under way at once: who comes beyond that is refused. 4096 by default.
    pub handshakes: usize,
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
            handshakes: HANDSHAKES,
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
    handshakes: usize,
    under_way: Arc<AtomicUsize>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    certificates: Vec<CertificateInfo>,
    is_held: AtomicBool,
}

/// A certificate that is shown to clients: what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateInfo {
    /// The file that it was read from.
    pub file: PathBuf,
    /// The hosts that it is for.
    pub names: Vec<String>,
    /// Who has signed it, such as `CN=E7, O=Let's Encrypt, C=US`.
    pub issuer: String,
    /// How many certificates are in the file.
    pub chain: usize,
    /// When it is no longer valid, where that is understood.
    pub not_after: Option<SystemTime>,
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
        let mut verifier_of_all: Option<Arc<dyn ClientCertVerifier>> = None;
        let mut asked = Vec::new();
        let builder = match &settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                asked.push(settings.client_auth as u8);
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    asked.extend_from_slice(&certificate.len().to_be_bytes());
                    asked.extend_from_slice(&certificate);
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
                let verifier =
                    verifier.map_err(|error| TlsError::new(Some(file), error.to_string()))?;
                verifier_of_all = Some(Arc::clone(&verifier));
                builder.with_client_cert_verifier(verifier)
            }
        };
        let told = keys.iter().zip(&settings.certificates);
        let told = told.map(|(key, (file, _))| told_of(file, key));
        let told = told.collect::<Result<Vec<_>, _>>()?;
        let tickets = Tickets::new(&asked, since_boot);
        let tickets = Arc::new(tickets.ok_or_else(|| {
            TlsError::new(
                None,
                "TLS needs random bytes, and the system has none".to_owned(),
            )
        })?);
        let mut config = builder.with_cert_resolver(Arc::new(Names(keys)));
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(handshake::Listener);
        config.ticketer = Arc::clone(&tickets) as _;
        // By tickets alone: nothing of an ended session is kept here.
        config.session_storage = Arc::new(NoServerSessionStorage {});
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
            handshakes: settings.handshakes,
            under_way: Arc::default(),
            verifier: verifier_of_all,
            certificates: told,
            is_held: AtomicBool::new(false),
        })))
    }

    /// The certificates that clients are shown, the one for all other names first.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateInfo] {
        &self.0.certificates
    }

    /// `None`: there are as many under way as may be.
    pub(crate) fn handshake(&self) -> Option<Result<Handshake, rustls::Error>> {
        let under_way = UnderWay::among(&self.0.under_way, self.0.handshakes)?;
        let verifier = self.0.verifier.clone();
        Some(Handshake::new(&self.0.config, verifier, under_way))
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
    pub(crate) fn ticket_keys(&self) -> Zeroizing<Vec<u8>> {
        self.0.tickets.save()
    }

    /// Goes on with the tickets of the process that had the clients before.
    pub(crate) fn take_ticket_keys(&self, saved: &[u8]) {
        if self.0.tickets.restore(saved).is_none() {
            log::warn!("no client resumes the TLS session that it had with the former process");
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// ring's, in the order in which they are chosen here. Of TLS 1.2 `ChaCha20` comes first: the keys of AES are used up after
/// 2^24 records, and that version has no new ones.
pub(super) fn provider() -> CryptoProvider {
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

pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|error| TlsError::new(Some(file), in_pem(&error)))?;
    if found.is_empty() {
        return Err(TlsError::new(Some(file), "no certificate in it".to_owned()));
    }
    Ok(found)
}

pub(super) fn certified(
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

/// Whatever the clock is set to; time asleep counts.
fn since_boot() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = ClockId::Monotonic;
    clock_gettime(clock).try_into().unwrap_or_default()
}

/// # Errors
/// No client would have it any more.
pub(super) fn told_of(file: &Path, key: &CertifiedKey) -> Result<CertificateInfo, TlsError> {
    let first = key.cert.first();
    let told = first
        .and_then(|first| certificate::told(first))
        .unwrap_or_default();
    let over = told
        .not_after
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    if let Some(over) = over {
        let days = over.as_secs() / 86_400;
        let what = format!("it has expired, {days} days ago");
        return Err(TlsError::new(Some(file), what));
    }
    Ok(CertificateInfo {
        file: file.to_owned(),
        names: told.names,
        issuer: told.issuer,
        chain: key.cert.len(),
        not_after: told.not_after,
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
pub(super) fn unusable(error: rustls::Error) -> TlsError {
    TlsError::new(None, format!("TLS: {error}"))
}

/// Why there can be no TLS: in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    file: Option<PathBuf>,
    what: String,
}

impl TlsError {
    pub(super) fn new(file: Option<&Path>, what: String) -> Self {
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
