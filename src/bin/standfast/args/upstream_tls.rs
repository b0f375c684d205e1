//! TLS towards the upstreams of `serve forward`, as typed. What that means is in `dial_tls.rs`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use standfast::dial::DialTls;

use crate::Failure;
use crate::args::dial_tls::Typed;

#[derive(Debug, clap::Args)]
pub(crate) struct UpstreamTlsArgs {
    /// Speak TLS with each upstream, 1.2 or 1.3, from the first byte; with --send-proxy behind the header. The connect
    /// timeout covers the handshake.
    #[arg(long, help_heading = "Forward")]
    upstream_tls: bool,

    /// Whom to believe: a file in PEM, with the authorities or the upstream's own certificate. [default: the system's]
    #[arg(long, value_name = "FILE", help_heading = "Forward")]
    upstream_tls_ca: Option<PathBuf>,

    /// The name that each upstream's certificate has to be for, and that it is asked for (SNI). [default: its host]
    #[arg(long, value_name = "NAME", help_heading = "Forward")]
    upstream_tls_name: Option<String>,

    /// A certificate with its chain, in PEM, for upstreams that ask for one. Needs --upstream-tls-key. A restart takes the
    /// one that is there by then.
    #[arg(long, value_name = "FILE", help_heading = "Forward")]
    upstream_tls_cert: Option<PathBuf>,

    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE", help_heading = "Forward")]
    upstream_tls_key: Option<PathBuf>,

    /// Believe whoever answers: against those who listen that is enough, against those who stand between it is nothing. It
    /// is said at each start.
    #[arg(long, conflicts_with = "upstream_tls_ca", help_heading = "Forward")]
    upstream_tls_insecure: bool,

    /// Protocols to offer to upstreams (ALPN), repeatable, the best first.
    #[arg(long, value_name = "NAME", help_heading = "Forward")]
    upstream_tls_alpn: Vec<String>,

    /// What it means, so that files are read once.
    #[arg(skip)]
    meant: OnceLock<Option<DialTls>>,
}

impl UpstreamTlsArgs {
    fn typed(&self) -> Typed<'_> {
        Typed {
            flag: "--upstream-tls",
            is_on: self.upstream_tls,
            ca: self.upstream_tls_ca.as_ref(),
            name: self.upstream_tls_name.as_ref(),
            certificate: self.upstream_tls_cert.as_ref(),
            key: self.upstream_tls_key.as_ref(),
            insecure: self.upstream_tls_insecure,
            protocols: &self.upstream_tls_alpn,
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.upstream_tls
    }

    /// Whom to believe; by default those whom the system does.
    pub(crate) fn ca(&self) -> Option<&Path> {
        self.upstream_tls_ca.as_deref()
    }

    /// Which flags were given.
    pub(super) fn given(&self) -> [(bool, &'static str); 7] {
        [
            (self.upstream_tls, "--upstream-tls"),
            (self.upstream_tls_ca.is_some(), "--upstream-tls-ca"),
            (self.upstream_tls_name.is_some(), "--upstream-tls-name"),
            (self.upstream_tls_cert.is_some(), "--upstream-tls-cert"),
            (self.upstream_tls_key.is_some(), "--upstream-tls-key"),
            (self.upstream_tls_insecure, "--upstream-tls-insecure"),
            (!self.upstream_tls_alpn.is_empty(), "--upstream-tls-alpn"),
        ]
    }

    /// `None`: without TLS.
    ///
    /// # Errors
    /// What contradicts, and files that are no use.
    pub(crate) fn meant(&self) -> Result<Option<DialTls>, Failure> {
        if let Some(meant) = self.meant.get() {
            return Ok(meant.clone());
        }
        let meant = self.typed().meant()?;
        Ok(self.meant.get_or_init(|| meant).clone())
    }
}

/// What is said of upstreams that are believed, whoever answers.
pub(crate) const INSECURE: &str = "--upstream-tls-insecure: whoever answers is believed";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        tls: UpstreamTlsArgs,
    }

    fn meant(line: &str) -> Result<Option<DialTls>, Failure> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().tls.meant()
    }

    #[test]
    fn what_goes_without_tls_or_against_it_is_refused() {
        for (line, hint) in [
            (
                "--upstream-tls-name x",
                "--upstream-tls-name needs --upstream-tls:",
            ),
            ("--upstream-tls --upstream-tls-ca /nowhere", "/nowhere"),
            (
                "--upstream-tls --upstream-tls-cert /x",
                "needs its --upstream-tls-key",
            ),
            (
                "--upstream-tls --upstream-tls-insecure --upstream-tls-name a..b",
                "a..b",
            ),
        ] {
            let refused = meant(line).unwrap_err();
            assert!(refused.line.contains(hint), "{line}: {refused}");
            assert_eq!(refused.code, 2, "{line}");
        }
        let both = "x --upstream-tls --upstream-tls-insecure --upstream-tls-ca /x";
        assert!(Line::try_parse_from(both.split_whitespace()).is_err());
        assert!(meant("").unwrap().is_none());
        let insecure = meant("--upstream-tls --upstream-tls-insecure").unwrap();
        assert!(insecure.is_some_and(|tls| tls.is_insecure()));
    }
}
