//! Why an attempt to connect failed: the word for it, and the line that says it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::error::TlsFault;

/// Why an attempt to connect failed: one line, with what the system said of each address.
#[derive(Debug)]
pub struct DialError {
    address: String,
    kind: DialErrorKind,
    /// What came of each address; `None` in the second: no answer.
    tried: Vec<(Option<Endpoint>, Option<io::Error>)>,
    within: Option<Duration>,
    /// No address of this host's can reach it.
    no_way: bool,
    tls: Option<Box<NoTls>>,
}

/// There was no TLS session.
#[derive(Debug)]
struct NoTls {
    /// As whom the server had to show itself.
    name: String,
    fault: TlsFault,
    what: String,
}

/// Why an attempt to connect failed, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DialErrorKind {
    /// The name means nothing, or has no address of the family asked for.
    Resolve,
    /// There, but nobody listens: ECONNREFUSED; of a Unix socket ENOENT, too.
    Refused,
    /// It was there, and took it back: ECONNRESET.
    Reset,
    /// No answer in time.
    TimedOut,
    /// The network says that there is no way: EHOSTUNREACH, ENETUNREACH.
    Unreachable,
    /// Something of this host's: no port or no descriptor is left, or the source is no address of its own.
    Local,
    /// The process that tried has been taken over from.
    Interrupted,
    /// Connected, and there was no TLS session.
    Tls,
    /// Connected, and one side does not believe the other's certificate: to try again is of no use.
    Certificate,
    /// Another error of the system.
    Other,
}

impl DialError {
    /// Why, in a word.
    #[must_use]
    pub fn kind(&self) -> DialErrorKind {
        self.kind
    }

    /// What was the matter, if it is that there was no TLS session.
    #[must_use]
    pub fn tls_fault(&self) -> Option<TlsFault> {
        self.tls.as_ref().map(|tls| tls.fault)
    }

    /// Connected to `server`, which was to show itself as `name`, and no TLS session.
    pub(crate) fn no_tls(
        address: &Address,
        server: Endpoint,
        name: String,
        (fault, what): (TlsFault, String),
    ) -> Self {
        Self {
            address: address.to_string(),
            kind: kind_without_tls(fault),
            tried: vec![(Some(server), None)],
            within: None,
            no_way: false,
            tls: Some(Box::new(NoTls { name, fault, what })),
        }
    }

    pub(crate) fn resolve(address: &Address, source: io::Error) -> Self {
        Self {
            address: address.to_string(),
            kind: DialErrorKind::Resolve,
            tried: vec![(None, Some(source))],
            within: None,
            no_way: false,
            tls: None,
        }
    }

    /// No address could be connected to: some `failed`, and the `silent` ones have not answered `within` the time.
    pub(crate) fn connect(
        address: &Address,
        failed: Vec<(Endpoint, io::Error)>,
        silent: impl Iterator<Item = Endpoint>,
        within: Option<Duration>,
    ) -> Self {
        let last = failed.last();
        let no_way = last.is_some_and(|(endpoint, error)| {
            error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && !has_way(endpoint)
        });
        let last = last.map(|(_, error)| kind_of(error));
        let failed = failed
            .into_iter()
            .map(|(endpoint, error)| (Some(endpoint), Some(error)));
        let answered = failed.len();
        let tried: Vec<_> = failed
            .chain(silent.map(|endpoint| (Some(endpoint), None)))
            .collect();
        let kind = last.filter(|_| tried.len() == answered);
        Self {
            address: address.to_string(),
            kind: kind.unwrap_or(DialErrorKind::TimedOut),
            tried,
            within,
            no_way,
            tls: None,
        }
    }

    /// Who tried has been taken over from.
    pub(crate) fn interrupted() -> Self {
        Self {
            address: "the upstream".to_owned(),
            kind: DialErrorKind::Interrupted,
            tried: Vec::new(),
            within: None,
            no_way: false,
            tls: None,
        }
    }

    /// The name was not resolved within that time.
    pub(crate) fn resolve_too_slow(address: &Address, within: Option<Duration>) -> Self {
        Self {
            address: address.to_string(),
            kind: DialErrorKind::Resolve,
            tried: vec![(None, None)],
            within,
            no_way: false,
            tls: None,
        }
    }

    /// The number of the last error that the system gave.
    pub(crate) fn errno(&self) -> Option<i32> {
        let errors = self.tried.iter().rev();
        errors
            .filter_map(|(_, error)| error.as_ref())
            .find_map(io::Error::raw_os_error)
    }

    fn hint(&self) -> &'static str {
        match (self.kind, self.errno()) {
            (DialErrorKind::Local, Some(libc::EMFILE)) => {
                "; raise the descriptor limit (ulimit -n)"
            }
            (DialErrorKind::Local, Some(libc::EADDRNOTAVAIL)) if self.no_way => {
                "; this host has no address that could reach it"
            }
            (DialErrorKind::Local, Some(libc::EADDRNOTAVAIL)) => {
                "; all local ports to it are in use: widen net.ipv4.ip_local_port_range"
            }
            _ => "",
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.kind {
            DialErrorKind::Resolve => "resolve",
            _ => "connect to",
        };
        write!(f, "cannot {verb} {}: ", self.address)?;
        for (at, (endpoint, error)) in self.tried.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            // Of a single address that says no more than was asked, the name is enough.
            if let Some(endpoint) = endpoint
                && (self.tried.len() > 1 || endpoint.to_string() != self.address)
            {
                write!(f, "{endpoint} ")?;
            }
            if let Some(NoTls { name, what, .. }) = self.tls.as_deref() {
                write!(f, "no TLS with {name}: {what}")?;
                continue;
            }
            match (error, self.within) {
                (Some(error), _) => error.fmt(f)?,
                (None, Some(within)) => write!(f, "no answer within {within:?}")?,
                (None, None) => f.write_str("no answer")?,
            }
        }
        f.write_str(self.hint())
    }
}

impl std::error::Error for DialError {}

/// Whether this host has an address to reach `endpoint` from: what the system chooses for datagrams, whose ports are
/// others. Nothing is sent.
fn has_way(endpoint: &Endpoint) -> bool {
    let Endpoint::Tcp(address) = endpoint else {
        return true;
    };
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let tried = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address));
    tried.map_or_else(
        |error| error.raw_os_error() != Some(libc::EADDRNOTAVAIL),
        |()| true,
    )
}

fn kind_without_tls(fault: TlsFault) -> DialErrorKind {
    match fault {
        TlsFault::UnknownIssuer
        | TlsFault::WrongName
        | TlsFault::Expired
        | TlsFault::NotYetValid
        | TlsFault::BadCertificate
        | TlsFault::Ours => DialErrorKind::Certificate,
        TlsFault::Late => DialErrorKind::TimedOut,
        TlsFault::NoTls | TlsFault::Handshake => DialErrorKind::Tls,
    }
}
fn kind_of(error: &io::Error) -> DialErrorKind {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ENOENT) => DialErrorKind::Refused,
        Some(libc::ECONNRESET) => DialErrorKind::Reset,
        Some(libc::ETIMEDOUT) => DialErrorKind::TimedOut,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN) => {
            DialErrorKind::Unreachable
        }
        Some(
            libc::EADDRNOTAVAIL
            | libc::EADDRINUSE
            | libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EINVAL,
        ) => DialErrorKind::Local,
        None if error.kind() == io::ErrorKind::AddrNotAvailable => DialErrorKind::Local,
        _ => DialErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_port_left_is_told_what_to_do() {
        let endpoint = Endpoint::Tcp((Ipv4Addr::LOCALHOST, 9).into());
        let address = "127.0.0.1:9".parse().unwrap();
        let error = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        let error = DialError::connect(&address, vec![(endpoint, error)], std::iter::empty(), None);
        assert_eq!(error.kind(), DialErrorKind::Local);
        let said = error.to_string();
        assert!(
            said.ends_with("widen net.ipv4.ip_local_port_range"),
            "{said}"
        );
    }
}
