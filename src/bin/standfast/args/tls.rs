//! TLS at the door, as typed and as meant.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use standfast::{ClientAuth, Tls, TlsSettings, TlsVersion};

use crate::Failure;
use crate::units::duration;

/// The oldest version that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Least {
    #[value(name = "1.2")]
    V12,
    #[value(name = "1.3")]
    V13,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Auth {
    /// A client that shows no certificate is refused.
    Required,
    /// One that shows none is served; one that shows a wrong one is refused.
    Optional,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TlsArgs {
    /// Clients speak TLS from the first byte: a file in PEM with the certificate and its chain. Repeatable, each with its
    /// --tls-key: a client gets the one for the name it asks for, or else the first. A restart takes the sessions
    /// along.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_cert: Vec<PathBuf>,

    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_key: Vec<PathBuf>,

    /// The oldest version that is spoken.
    #[arg(
        long,
        value_enum,
        value_name = "VERSION",
        default_value = "1.2",
        help_heading = "TLS"
    )]
    tls_min: Least,

    /// Protocols to agree on with clients that ask for one (ALPN), repeatable, the best first. A client that asks for
    /// others alone is refused. [default: none]
    #[arg(long, value_name = "NAME", help_heading = "TLS")]
    tls_alpn: Vec<String>,

    /// Clients have to show a certificate that one in this file, in PEM, has signed. [default: they are asked for none]
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_client_ca: Option<PathBuf>,

    /// Whether they have to, with --tls-client-ca.
    #[arg(long, value_enum, default_value = "required", help_heading = "TLS")]
    tls_client_auth: Auth,

    /// How long a handshake may take.
    #[arg(long, value_name = "DUR", value_parser = duration, default_value = "10s", help_heading = "TLS")]
    tls_handshake_timeout: Duration,

    /// How many handshakes may be under way at once: who comes beyond that is refused.
    #[arg(long, value_name = "N", default_value = "4096", help_heading = "TLS")]
    tls_handshakes: NonZeroUsize,
}

impl TlsArgs {
    /// Whether clients speak it.
    fn is_on(&self) -> bool {
        !self.tls_cert.is_empty() || !self.tls_key.is_empty()
    }

    /// What a listener needs for it, if its clients speak it.
    ///
    /// # Errors
    /// A file that is no use; a certificate without its key.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, Failure> {
        if !self.is_on() {
            let alone = [
                (!self.tls_alpn.is_empty(), "--tls-alpn"),
                (self.tls_client_ca.is_some(), "--tls-client-ca"),
            ];
            return match alone.iter().find(|(is_given, _)| *is_given) {
                Some((_, flag)) => Err(Failure::usage(format!(
                    "{flag} needs --tls-cert and --tls-key: without them there is no TLS"
                ))),
                None => Ok(None),
            };
        }
        let (certificates, keys) = (self.tls_cert.len(), self.tls_key.len());
        if certificates != keys {
            return Err(Failure::usage(format!(
                "--tls-cert is given {certificates} times and --tls-key {keys} times: each certificate needs its key"
            )));
        }
        let mut settings = TlsSettings::default();
        settings.certificates = self
            .tls_cert
            .iter()
            .cloned()
            .zip(self.tls_key.iter().cloned())
            .collect();
        settings.least = match self.tls_min {
            Least::V12 => TlsVersion::V12,
            Least::V13 => TlsVersion::V13,
        };
        settings.protocols.clone_from(&self.tls_alpn);
        settings.client_ca.clone_from(&self.tls_client_ca);
        settings.client_auth = match self.tls_client_auth {
            Auth::Required => ClientAuth::Required,
            Auth::Optional => ClientAuth::Optional,
        };
        settings.handshake_timeout = self.tls_handshake_timeout;
        settings.handshakes = self.tls_handshakes.get();
        let tls = Tls::new(&settings);
        tls.map(Some)
            .map_err(|error| Failure::usage(error.to_string()))
    }
}
