//! What is needed for TLS towards a server: whom to believe, as whom it has to show itself, and what is shown to it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;

use super::dialling::Greeting;
use super::handshake;
use super::settings::{CertificateInfo, TlsError, certified, provider, told_of, unusable};
use super::trust::{Nothing, Trust};
use crate::address::Address;

/// What [`DialTls`] is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DialTlsSettings {
    /// A file in PEM with the certificates of those who are believed, or with the server's own; by default the system's.
    pub ca: Option<PathBuf>,
    /// The name that the server's certificate has to be for, and that it is asked for (SNI); by default the host that is
    /// dialled.
    pub name: Option<String>,
    /// Files in PEM, shown to a server that asks for them: a certificate with its chain, and its private key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Whoever answers is believed: what is said is hidden from those who listen, but not from those who stand between.
    pub insecure: bool,
    /// What is offered to the server by ALPN (RFC 7301), the best first; by default none.
    pub protocols: Vec<String>,
}

/// TLS towards a server. Cheap to clone.
#[derive(Clone)]
pub struct DialTls {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    is_insecure: bool,
    /// What is shown to a server that asks.
    shown: Option<Arc<CertificateInfo>>,
}

impl DialTls {
    /// Reads the files that are named, or those of the system.
    ///
    /// # Errors
    /// Which file is no use, and why; a name that no certificate can be for; or that the system believes nobody.
    pub fn new(settings: &DialTlsSettings) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let trust = if settings.insecure {
            Trust::in_anybody(&provider)
        } else {
            Trust::new(settings.ca.as_deref(), &provider)?
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(unusable)?.dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::new(trust));
        let mut told = None;
        let mut config = match &settings.certificate {
            None => builder.with_client_cert_resolver(Arc::new(Nothing)),
            Some((file, key)) => {
                let certified = certified(file, key, &provider)?;
                told = Some(Arc::new(told_of(file, &certified)?));
                let shown = SingleCertAndKey::from(Arc::unwrap_or_clone(certified));
                builder.with_client_cert_resolver(Arc::new(shown))
            }
        };
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(handshake::Listener);
        // Tickets come behind the handshake, where nothing of rustls's is left.
        config.resumption = Resumption::disabled();
        let protocols = settings.protocols.iter();
        config.alpn_protocols = protocols.map(|it| it.clone().into_bytes()).collect();
        let name = settings.name.as_deref().map(named).transpose()?;
        Ok(Self {
            config: Arc::new(config),
            name,
            is_insecure: settings.insecure,
            shown: told,
        })
    }

    /// Whether whoever answers is believed.
    #[must_use]
    pub fn is_insecure(&self) -> bool {
        self.is_insecure
    }

    /// What is shown to a server that asks for a certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&CertificateInfo> {
        self.shown.as_deref()
    }

    /// The name that a server at that address has to show itself by. `None`: none is given, and that is the path of a Unix
    /// socket, or no name of a server's.
    #[must_use]
    pub fn name_of(&self, address: &Address) -> Option<String> {
        let name = self.name(address).ok()?;
        Some(name.to_str().into_owned())
    }

    /// The name that a server at that address has to show itself by.
    ///
    /// # Errors
    /// None can be: that is to be said.
    pub(crate) fn name(&self, address: &Address) -> Result<ServerName<'static>, String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = match address {
            Address::Loopback(_) => "127.0.0.1",
            Address::Host(host, _) => host,
            other => {
                return Err(format!(
                    "TLS is for TCP, and {other} is a Unix socket: say by which name its server has to show itself"
                ));
            }
        };
        // The zone of an address is this host's own affair.
        let (host, _) = host.split_once('%').unwrap_or((host, ""));
        named(host).map_err(|error| error.to_string())
    }

    /// A handshake with a server at that address.
    ///
    /// # Errors
    /// What rustls, or [`name`](Self::name), says of what is asked.
    pub(crate) fn greeting(&self, address: &Address) -> Result<Greeting, String> {
        let name = self.name(address)?;
        Greeting::new(&self.config, name).map_err(|error| error.to_string())
    }
}

impl fmt::Debug for DialTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialTls")
            .field("name", &self.name)
            .field("is_insecure", &self.is_insecure)
            .finish_non_exhaustive()
    }
}

fn named(name: &str) -> Result<ServerName<'static>, TlsError> {
    // In brackets an address stands in front of a port.
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let bare = if bare.parse::<IpAddr>().is_ok() {
        bare
    } else {
        name
    };
    ServerName::try_from(bare.to_owned())
        .map_err(|_| TlsError::new(None, format!("{name:?} is no name of a server's for TLS")))
}
