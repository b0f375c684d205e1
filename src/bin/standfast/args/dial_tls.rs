//! TLS towards a server, as typed and as meant.

use std::path::PathBuf;

use standfast::dial::{Dial, DialError, DialTls, DialTlsSettings, TlsFault};

use crate::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct DialTlsArgs {
    /// Speak TLS from the first byte, 1.2 or 1.3. The connect timeout covers the handshake. A certificate that is refused, by
    /// either side, is final: it is not tried again.
    #[arg(long, alias = "ssl", help_heading = "TLS")]
    tls: bool,

    /// Whom to believe: a file in PEM, with the authorities or the server's own certificate. [default: the system's]
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_ca: Option<PathBuf>,

    /// The name that the server's certificate has to be for, and that it is asked for (SNI). [default: the host]
    #[arg(long, value_name = "NAME", help_heading = "TLS")]
    tls_name: Option<String>,

    /// A certificate with its chain, in PEM, for a server that asks for one. Needs --tls-key.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_cert: Option<PathBuf>,

    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_key: Option<PathBuf>,

    /// Believe whoever answers: against those who listen that is enough, against those who stand between it is nothing. It
    /// is said each time.
    #[arg(long, conflicts_with = "tls_ca", help_heading = "TLS")]
    tls_insecure: bool,

    /// Protocols to offer (ALPN), repeatable, the best first.
    #[arg(long, value_name = "NAME", help_heading = "TLS")]
    tls_alpn: Vec<String>,
}

impl DialTlsArgs {
    pub(super) fn is_on(&self) -> bool {
        self.tls
    }

    /// Has `dial` speak it, if that is asked for.
    ///
    /// # Errors
    /// What contradicts, and files that are no use.
    pub(super) fn mean(&self, dial: &mut Dial) -> Result<(), Failure> {
        if !self.tls {
            let alone = [
                (self.tls_ca.is_some(), "--tls-ca"),
                (self.tls_name.is_some(), "--tls-name"),
                (self.tls_cert.is_some(), "--tls-cert"),
                (self.tls_key.is_some(), "--tls-key"),
                (self.tls_insecure, "--tls-insecure"),
                (!self.tls_alpn.is_empty(), "--tls-alpn"),
            ];
            return match alone.iter().find(|(is_given, _)| *is_given) {
                Some((_, flag)) => Err(Failure::usage(format!(
                    "{flag} needs --tls: without it there is no TLS"
                ))),
                None => Ok(()),
            };
        }
        let mut settings = DialTlsSettings::default();
        settings.certificate = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::usage("--tls-cert needs its --tls-key")),
            (None, Some(_)) => return Err(Failure::usage("--tls-key needs its --tls-cert")),
        };
        settings.ca.clone_from(&self.tls_ca);
        settings.name.clone_from(&self.tls_name);
        settings.insecure = self.tls_insecure;
        settings.protocols.clone_from(&self.tls_alpn);
        let tls = DialTls::new(&settings).map_err(|error| Failure::usage(error.to_string()))?;
        crate::keep_keys_from_others(true);
        dial.tls = Some(tls);
        Ok(())
    }
}

/// What is said of a dial that believes whoever answers.
pub(crate) const INSECURE: &str = "--tls-insecure: whoever answers is believed";

/// Whether whoever answers is believed.
pub(crate) fn is_insecure(dial: &Dial) -> bool {
    dial.tls.as_ref().is_some_and(DialTls::is_insecure)
}

/// Why an attempt failed, and what to do about it.
pub(crate) fn with_hint(error: &DialError) -> String {
    let hint = match error.tls_fault() {
        Some(TlsFault::UnknownIssuer) => "; --tls-ca says whom to trust",
        Some(TlsFault::WrongName) => "; --tls-name says another name",
        Some(TlsFault::Expired) => "; it has to be renewed there",
        Some(TlsFault::NotYetValid) => "; one of the clocks is wrong",
        Some(TlsFault::Ours) => OURS,
        Some(TlsFault::NoTls) => "; without --tls it may work",
        _ => "",
    };
    format!("{error}{hint}")
}

/// What to do about a server that wants a certificate.
pub(crate) const OURS: &str = "; --tls-cert and --tls-key say what to show it";

#[cfg(test)]
mod tests {
    use crate::args::dial::DialArgs;
    use crate::args::typed;

    #[test]
    fn what_goes_without_tls_or_against_it_is_refused() {
        let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/tls/ca.pem");
        for (line, hint) in [
            ("1 --tls-ca /x", "--tls-ca needs --tls"),
            ("1 --tls-insecure", "--tls-insecure needs --tls"),
            ("1 --tls --tls-ca /nowhere", "/nowhere"),
            ("1 --tls --tls-cert /x", "needs its --tls-key"),
            ("1 --tls --tls-key /x", "needs its --tls-cert"),
            ("unix:/x --tls --tls-insecure", "is a Unix socket"),
            ("unix:@x --ssl --tls-insecure", "is a Unix socket"),
            ("1 --tls --tls-insecure --tls-name a..b", "a..b"),
        ] {
            let refused = typed::<DialArgs>(line).unwrap().meant().unwrap_err();
            assert!(refused.line.contains(hint), "{line}: {refused}");
            assert_eq!(refused.code, 2, "{line}");
        }
        let line = format!("1 --tls --tls-insecure --tls-ca {ca}");
        assert!(typed::<DialArgs>(&line).is_err(), "it contradicts itself");
        let line = format!("[::1]:1 --ssl --tls-ca {ca}");
        assert!(typed::<DialArgs>(&line).unwrap().meant().is_ok());
    }
}
