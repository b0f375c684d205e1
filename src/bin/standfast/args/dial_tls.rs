//! TLS towards a server, as typed and as meant: the flags of `connect` and `load`, and what those of others share with them.

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
        let typed = Typed {
            flag: "--tls",
            is_on: self.tls,
            ca: self.tls_ca.as_ref(),
            name: self.tls_name.as_ref(),
            certificate: self.tls_cert.as_ref(),
            key: self.tls_key.as_ref(),
            insecure: self.tls_insecure,
            protocols: &self.tls_alpn,
        };
        if let Some(tls) = typed.meant()? {
            crate::keep_keys_from_others(true);
            dial.tls = Some(tls);
        }
        Ok(())
    }
}

/// TLS towards servers as it was typed, whatever its flags begin with.
#[derive(Debug)]
pub(super) struct Typed<'a> {
    /// What turns it on. The other flags begin so, too.
    pub(super) flag: &'static str,
    pub(super) is_on: bool,
    pub(super) ca: Option<&'a PathBuf>,
    pub(super) name: Option<&'a String>,
    pub(super) certificate: Option<&'a PathBuf>,
    pub(super) key: Option<&'a PathBuf>,
    pub(super) insecure: bool,
    pub(super) protocols: &'a [String],
}

impl Typed<'_> {
    /// Which of those flags were given, by what stands behind the first one.
    pub(super) fn given(&self) -> [(bool, &'static str); 6] {
        [
            (self.ca.is_some(), "ca"),
            (self.name.is_some(), "name"),
            (self.certificate.is_some(), "cert"),
            (self.key.is_some(), "key"),
            (self.insecure, "insecure"),
            (!self.protocols.is_empty(), "alpn"),
        ]
    }

    /// `None`: without TLS.
    ///
    /// # Errors
    /// What contradicts, and files that are no use.
    pub(super) fn meant(&self) -> Result<Option<DialTls>, Failure> {
        let flag = self.flag;
        if !self.is_on {
            return match self.given().iter().find(|(is_given, _)| *is_given) {
                Some((_, other)) => Err(Failure::usage(format!(
                    "{flag}-{other} needs {flag}: without it there is no TLS"
                ))),
                None => Ok(None),
            };
        }
        let needs = |one, other| Failure::usage(format!("{flag}-{one} needs its {flag}-{other}"));
        let mut settings = DialTlsSettings::default();
        settings.certificate = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(needs("cert", "key")),
            (None, Some(_)) => return Err(needs("key", "cert")),
        };
        if self.insecure && self.ca.is_some() {
            return Err(Failure::usage(format!(
                "{flag}-insecure believes whoever answers, and {flag}-ca says whom to believe"
            )));
        }
        settings.ca = self.ca.cloned();
        settings.name = self.name.cloned();
        settings.insecure = self.insecure;
        settings.protocols = self.protocols.to_vec();
        let tls = DialTls::new(&settings).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Some(tls))
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
