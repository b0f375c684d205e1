//! Why a server could not be started: by step, with the address, the system's word, and what to do.

use std::fmt;
use std::io;

use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::liveness::keepalive::DetectionError;
use crate::liveness::sockopt::{Refused, Unfit};
use crate::parse::ParseError;

/// Why a server could not be started. The system's word is the [`source`](std::error::Error::source).
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Settings that contradict each other.
    Config(String),
    /// Settings of detection that contradict each other.
    Detection(DetectionError),
    /// An address that means nothing on this host.
    Resolve {
        /// As it was written.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// An address that cannot be listened on.
    Bind {
        /// The address.
        address: Endpoint,
        /// What the system said.
        source: io::Error,
        /// Who holds it, where the system tells.
        holder: Option<String>,
    },
    /// A descriptor that is no listening TCP socket, or none.
    Inherit {
        /// As it was written.
        address: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A socket option the system refused.
    Option {
        /// The option and its value.
        option: String,
        /// What the system said.
        source: io::Error,
    },
    /// The control socket could not be opened.
    Control {
        /// Its path.
        path: std::path::PathBuf,
        /// What is in the way.
        source: io::Error,
    },
    /// The running server was not taken over; it goes on.
    TakeOver {
        /// Its control socket.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The event loop or a thread could not be had.
    Start {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// That `address` cannot be resolved, for the reason that comes.
    pub(crate) fn resolving(address: &Address) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Resolve {
            address: address.to_string(),
            source,
        }
    }

    /// What to do about it, where that can be said.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Bind {
                address, source, ..
            } => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    Some("stop that one, or choose another address".to_owned())
                }
                io::ErrorKind::AddrNotAvailable => Some(format!(
                    "{address} is no address of this host: `ip address` shows those, :PORT is all of them"
                )),
                io::ErrorKind::PermissionDenied => Some(
                    "ports below 1024 need root, CAP_NET_BIND_SERVICE, or a lower \
                     net.ipv4.ip_unprivileged_port_start"
                        .to_owned(),
                ),
                _ => None,
            },
            Self::Resolve { .. } => Some("is the name spelled right and known here?".to_owned()),
            Self::Start { source, .. } if source.raw_os_error() == Some(libc::EMFILE) => {
                Some("raise the descriptor limit (ulimit -n)".to_owned())
            }
            _ => None,
        }
    }

    /// Whether what was asked is wrong in itself, rather than refused by the system.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Config(_) | Self::Detection(_) => true,
            Self::Option { source, .. } => source.kind() == io::ErrorKind::InvalidInput,
            _ => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(what) => f.write_str(what),
            Self::Detection(error) => error.fmt(f),
            Self::Resolve { address, .. } => write!(f, "cannot resolve {address}"),
            Self::Bind {
                address,
                holder: Some(holder),
                ..
            } => {
                write!(f, "cannot listen on {address}, held by {holder}")
            }
            Self::Bind { address, .. } => write!(f, "cannot listen on {address}"),
            Self::Inherit { address, .. } => write!(f, "cannot listen on {address}"),
            Self::Option { option, .. } => write!(f, "cannot set {option}"),
            Self::Control { path, .. } => {
                write!(f, "cannot open the control socket {}", path.display())
            }
            Self::TakeOver { path, .. } => {
                write!(f, "cannot take over from the server at {}", path.display())
            }
            Self::Start { what, .. } => write!(f, "cannot {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(_) | Self::Detection(_) => None,
            Self::Resolve { source, .. }
            | Self::Bind { source, .. }
            | Self::Inherit { source, .. }
            | Self::Option { source, .. }
            | Self::Control { source, .. }
            | Self::TakeOver { source, .. }
            | Self::Start { source, .. } => Some(source),
        }
    }
}

impl From<DetectionError> for Error {
    fn from(error: DetectionError) -> Self {
        Self::Detection(error)
    }
}

/// A setting that was wrong as it was written.
impl From<ParseError> for Error {
    fn from(error: ParseError) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<Unfit> for Error {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Detection(error) => error.into(),
            Unfit::Untried(source) => Self::Start {
                what: "make a socket",
                source,
            },
            Unfit::Refused(Refused { option, source }) => Self::Option { option, source },
        }
    }
}

/// What was the matter where there was no TLS session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsFault {
    /// The server's certificate was signed by nobody who is trusted.
    UnknownIssuer,
    /// Its certificate is for other names.
    WrongName,
    /// Its certificate has expired.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// There is something else against its certificate.
    BadCertificate,
    /// The server wants a certificate of this side's, or another one.
    Ours,
    /// What it says is no TLS.
    NoTls,
    /// Not done within the connect timeout.
    Late,
    /// Something else: an alert, no version in common, an end that came too soon.
    Handshake,
}

impl TlsFault {
    /// In a word, for the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownIssuer => "unknown-issuer",
            Self::WrongName => "wrong-name",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::BadCertificate => "bad-certificate",
            Self::Ours => "own-certificate",
            Self::NoTls => "no-tls",
            Self::Late => "late",
            Self::Handshake => "handshake",
        }
    }

    /// Whether that alert says that what this side showed, or did not show, was the matter.
    pub(crate) fn is_of_ours(alert: &str) -> bool {
        matches!(
            alert,
            "NoCertificate"
                | "BadCertificate"
                | "UnsupportedCertificate"
                | "CertificateRevoked"
                | "CertificateExpired"
                | "CertificateUnknown"
                | "UnknownCA"
                | "AccessDenied"
                | "CertificateRequired"
        )
    }
}
