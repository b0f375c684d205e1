//! Whom to believe that is a server, and what to do where it asks for a certificate.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate::{self, Told};
use super::settings::{TlsError, certificates};

thread_local! {
    /// The last certificate that was refused here.
    static REFUSED: RefCell<Option<Told>> = const { RefCell::new(None) };
    /// A server has asked for a certificate where there is none.
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// What the certificate says of itself that was refused last, if one was since that was asked.
pub(super) fn refused() -> Option<Told> {
    REFUSED.take()
}

/// Whether a server has asked for a certificate where there is none, since that was asked.
pub(super) fn asked() -> bool {
    ASKED.take()
}

/// There is no certificate to show.
#[derive(Debug)]
pub(super) struct Nothing;

impl ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        ASKED.set(true);
        None
    }

    fn has_certs(&self) -> bool {
        // So that it is asked.
        true
    }
}

/// By whom a server has to be vouched for. Whoever it is, it has the key of the certificate that it shows.
#[derive(Debug)]
pub(super) struct Trust {
    /// `None`: by nobody.
    roots: Option<Roots>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Roots {
    chains: Arc<WebPkiServerVerifier>,
    /// Certificates that are believed themselves.
    own: Vec<CertificateDer<'static>>,
}

impl Trust {
    pub(super) fn in_anybody(provider: &Arc<CryptoProvider>) -> Self {
        Self {
            roots: None,
            provider: Arc::clone(provider),
        }
    }

    /// Those in `file`, or whom the system believes.
    ///
    /// # Errors
    /// It is no use; or the system believes nobody.
    pub(super) fn new(
        file: Option<&Path>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let own = match file {
            Some(file) => {
                let own = certificates(file)?;
                for certificate in own.iter().cloned() {
                    let added = roots.add(certificate);
                    added.map_err(|error| TlsError::new(Some(file), error.to_string()))?;
                }
                own
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    let why = found.errors.first();
                    let why = why.map_or_else(String::new, |error| format!(" ({error})"));
                    let what = format!("TLS: the system has no roots to believe{why}");
                    return Err(TlsError::new(None, what));
                }
                Vec::new()
            }
        };
        let chains =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let chains = chains
            .build()
            .map_err(|error| TlsError::new(file, error.to_string()))?;
        Ok(Self {
            roots: Some(Roots { chains, own }),
            provider: Arc::clone(provider),
        })
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(Roots { chains, own }) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let verdict = match chains.verify_server_cert(end, between, name, ocsp, now) {
            // One that is an authority, too, as `openssl req -x509` makes them, is to webpki no server's. Its time was
            // looked at before; its name was not.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if own.contains(end) => {
                ParsedCertificate::try_from(end)
                    .and_then(|it| verify_server_name(&it, name))
                    .and_then(|()| is_in_time(end))
                    .map(|()| ServerCertVerified::assertion())
            }
            verdict => verdict,
        };
        if verdict.is_err() {
            REFUSED.set(certificate::told(end));
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

fn is_in_time(certificate: &[u8]) -> Result<(), Error> {
    let until = certificate::told(certificate).and_then(|told| told.not_after);
    match until {
        Some(until) if until > SystemTime::now() => Ok(()),
        _ => Err(CertificateError::Expired.into()),
    }
}
