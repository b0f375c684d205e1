//! The two ends of a connection: where a listener stands, and who came.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use socket2::SockAddr;

use crate::parse::ParseError;

/// Where a listener stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// An address and port of TCP.
    Tcp(SocketAddr),
    /// A Unix socket under a path. Shown as `unix:PATH`.
    Unix(PathBuf),
    /// A Unix socket of an abstract name (unix(7)). Shown as `unix:@NAME`.
    Abstract(String),
}

impl Endpoint {
    /// What the system says of a socket's own end, or of its peer's.
    pub(crate) fn of(address: &SockAddr) -> Option<Self> {
        match (address.as_socket(), address.as_pathname()) {
            (Some(address), _) => Some(Self::Tcp(address)),
            (_, Some(path)) => Some(Self::Unix(path.to_owned())),
            _ => abstract_name(address).map(Self::Abstract),
        }
    }

    /// The address and port, if it has some.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) | Self::Abstract(_) => None,
        }
    }

    /// Whether `wanted` means this one: port 0 means whatever port that address was given, and every address of this
    /// host is every IPv4 address where there is no IPv6.
    pub(crate) fn is_meant_by(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Tcp(this), Self::Tcp(wanted)) => {
                let every = this.ip().is_unspecified() && wanted.ip().is_unspecified();
                let ip = this.ip() == wanted.ip() || every && wanted.is_ipv6();
                ip && (this.port() == wanted.port() || wanted.port() == 0)
            }
            _ => self == wanted,
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn abstract_name(address: &SockAddr) -> Option<String> {
    let name = address.as_abstract_namespace()?;
    String::from_utf8(name.to_vec()).ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn abstract_name(_: &SockAddr) -> Option<String> {
    None
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.strip_prefix("unix:") {
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| ParseError::new(format!("{text:?} is no address"))),
            Some("" | "@") => Err(ParseError::new("expected unix:PATH or unix:@NAME")),
            Some(path) => Ok(match path.strip_prefix('@') {
                Some(name) => Self::Abstract(name.to_owned()),
                None => Self::Unix(path.into()),
            }),
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// Another address.
    Tcp(SocketAddr),
    /// A process of this host, by a Unix socket; its number, where the system tells. Shown as `unix:PID`.
    Unix(Option<NonZeroU32>),
}

impl Peer {
    /// Its address, if it has one. An IPv4 client of a dual-stack listener is an IPv4 client.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(match address.ip().to_canonical() {
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
            IpAddr::V6(_) => address,
        })
    }
}

/// A [`Peer`] as a connection keeps it: a third smaller, for there are many.
#[derive(Clone, Debug)]
pub(crate) enum PackedPeer {
    V4(SocketAddrV4),
    /// Its flow information is zero on a socket that does not send any (`inet6_getname` in the kernel's
    /// `net/ipv6/af_inet6.c`).
    V6 {
        ip: [u8; 16],
        port: u16,
        scope: u32,
    },
    Unix(Option<NonZeroU32>),
    /// A client that a proxy spoke for, that proxy, and what the client had dialled.
    Introduced(Box<(Peer, Peer, Option<SocketAddr>)>),
}

impl PackedPeer {
    /// `client`, who has dialled that, as `via`, who is at the other end of the socket, says.
    pub(crate) fn introduced(client: Peer, via: Peer, dialled: Option<SocketAddr>) -> Self {
        Self::Introduced(Box::new((client, via, dialled)))
    }

    pub(crate) fn get(&self) -> Peer {
        match *self {
            Self::V4(address) => Peer::Tcp(address.into()),
            Self::V6 { ip, port, scope } => {
                Peer::Tcp(SocketAddrV6::new(ip.into(), port, 0, scope).into())
            }
            Self::Unix(process) => Peer::Unix(process),
            Self::Introduced(ref both) => both.0,
        }
    }

    /// Who spoke for it.
    pub(crate) fn via(&self) -> Option<Peer> {
        match self {
            Self::Introduced(both) => Some(both.1),
            _ => None,
        }
    }

    /// What the client had dialled, as that one says.
    pub(crate) fn dialled(&self) -> Option<SocketAddr> {
        match self {
            Self::Introduced(both) => both.2,
            _ => None,
        }
    }
}

impl From<Peer> for PackedPeer {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Tcp(SocketAddr::V4(address)) => Self::V4(address),
            Peer::Tcp(SocketAddr::V6(address)) => Self::V6 {
                ip: address.ip().octets(),
                port: address.port(),
                scope: address.scope_id(),
            },
            Peer::Unix(process) => Self::Unix(process),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(Some(process)) => write!(f, "unix:{process}"),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

impl FromStr for Peer {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(format!("{text:?} is no peer"));
        match text.strip_prefix("unix") {
            None => text.parse().map(Self::Tcp).map_err(|_| wrong()),
            Some("") => Ok(Self::Unix(None)),
            Some(process) => {
                let process = process
                    .strip_prefix(':')
                    .and_then(|process| process.parse().ok());
                process
                    .map(|process| Self::Unix(Some(process)))
                    .ok_or_else(wrong)
            }
        }
    }
}

/// Both travel as the text they are shown as.
#[cfg(control)]
mod text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    macro_rules! as_text {
        ($type:ty) => {
            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.collect_str(self)
                }
            }

            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    String::deserialize(deserializer)?
                        .parse()
                        .map_err(D::Error::custom)
                }
            }
        };
    }

    as_text!(super::Endpoint);
    as_text!(super::Peer);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_they_are_shown() {
        for text in [
            "127.0.0.1:7000",
            "[::1]:7000",
            "unix:/run/x.sock",
            "unix:@name",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "unix:@", "7000"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn peers_are_read_as_they_are_shown() {
        for text in ["127.0.0.1:7000", "[::1]:7000", "unix:4711", "unix"] {
            assert_eq!(text.parse::<Peer>().unwrap().to_string(), text);
        }
        for text in ["", "unix:0", "unix:x", "unixx", "7000"] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_ipv4_client_of_a_dual_stack_listener_is_an_ipv4_client() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(Peer::from(mapped).to_string(), "10.0.0.1:5");
    }

    #[test]
    fn a_peer_is_unpacked_as_it_was() {
        for text in [
            "127.0.0.1:7000",
            "[::1]:7000",
            "[fe80::1%3]:7000",
            "unix:4711",
            "unix",
        ] {
            let peer: Peer = text.parse().unwrap();
            assert_eq!(PackedPeer::from(peer).get(), peer);
        }
        assert_eq!(size_of::<PackedPeer>(), 24);
    }

    #[test]
    fn a_peer_is_no_larger_than_its_address() {
        assert_eq!(size_of::<Peer>(), size_of::<SocketAddr>());
    }
}
