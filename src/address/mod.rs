//! Where to listen, as people write it.

pub(crate) mod endpoint;
pub(crate) mod introduction;
pub(crate) mod network;
pub(crate) mod ownership;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::address::endpoint::Endpoint;
use crate::address::ownership::Ownership;
use crate::parse::ParseError;

/// Where to listen.
///
/// | written | means |
/// |---|---|
/// | `7000` | 127.0.0.1, this host only |
/// | `:7000`, `*:7000` | every address of this host, IPv4 and IPv6 |
/// | `HOST:7000`, `[::1]:7000` | that address, or every address of that name |
/// | `unix:PATH`, `unix:PATH,mode=660,owner=USER,group=GROUP` | a Unix socket under that path, [whose it is](Ownership) |
/// | `unix:@NAME` | a Unix socket of that abstract name (unix(7), Linux) |
/// | `fd:3` | a listening socket this process inherited under that number |
/// | `systemd`, `systemd:NAME` | the sockets systemd passed, or those named so (`FileDescriptorName=`) |
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// This host only, IPv4.
    Loopback(u16),
    /// Every address of this host.
    Any(u16),
    /// A name or a literal address.
    Host(String, u16),
    /// A Unix socket under a path, and whose it is.
    Unix(PathBuf, Ownership),
    /// A Unix socket of an abstract name.
    Abstract(String),
    /// A descriptor that this process [was started with](crate::process::inherited::settle). For a listener of the program's own
    /// there is [`Listen::on`](crate::Listen::on).
    Fd(RawFd),
    /// What systemd passed (`sd_listen_fds(3)`), all or those of one name.
    Systemd(Option<String>),
}

impl Address {
    /// Whether it says whose a socket is to be: that is its listener's to say.
    #[must_use]
    pub fn is_owned(&self) -> bool {
        matches!(self, Self::Unix(_, ownership) if *ownership != Ownership::default())
    }

    /// The endpoints meant, as the host has them now. Empty for inherited sockets.
    pub(crate) fn resolve(&self) -> io::Result<Vec<Endpoint>> {
        let mut resolved: Vec<Endpoint> = match self {
            Self::Loopback(port) => vec![Endpoint::Tcp((Ipv4Addr::LOCALHOST, *port).into())],
            Self::Any(port) => vec![Endpoint::Tcp((Ipv6Addr::UNSPECIFIED, *port).into())],
            Self::Host(host, port) => (host.as_str(), *port)
                .to_socket_addrs()?
                .map(Endpoint::Tcp)
                .collect(),
            // Its place must not depend on where a successor is started.
            Self::Unix(path, _) => vec![Endpoint::Unix(std::path::absolute(path)?)],
            Self::Abstract(name) => vec![Endpoint::Abstract(name.clone())],
            Self::Fd(_) | Self::Systemd(_) => Vec::new(),
        };
        let mut seen = Vec::new();
        resolved.retain(|address| {
            let new = !seen.contains(address);
            seen.push(address.clone());
            new
        });
        Ok(resolved)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(port) => write!(f, "127.0.0.1:{port}"),
            Self::Any(port) => write!(f, ":{port}"),
            Self::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path, ownership) => {
                let path = Ownership::escaped(&path.to_string_lossy());
                write!(f, "unix:{path}{ownership}")
            }
            Self::Abstract(name) => write!(f, "unix:@{name}"),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
            Self::Systemd(None) => f.write_str("systemd"),
            Self::Systemd(Some(name)) => write!(f, "systemd:{name}"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        match address {
            // A scope (fe80::1%eth0) has no place in the bare address; its text form keeps it.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => {
                Self::Host(format!("{}%{}", v6.ip(), v6.scope_id()), v6.port())
            }
            _ => Self::Host(address.ip().to_string(), address.port()),
        }
    }
}

impl FromStr for Address {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let port = |digits: &str| {
            digits
                .parse::<u16>()
                .map_err(|_| ParseError::new(format!("{digits:?} is not a port (0 to 65535)")))
        };
        if let Some(number) = text.strip_prefix("fd:") {
            return match number.parse() {
                Ok(fd) if fd >= 0 => Ok(Self::Fd(fd)),
                _ => Err(ParseError::new(format!(
                    "{number:?} is not a descriptor number"
                ))),
            };
        }
        if text.starts_with("unix:") {
            if text.starts_with("unix:@") {
                return match text.parse()? {
                    Endpoint::Abstract(name) => Ok(Self::Abstract(name)),
                    _ => Err(ParseError::new("expected unix:@NAME")),
                };
            }
            let (written, ownership) = Ownership::behind(text)?;
            return match written.parse()? {
                Endpoint::Unix(path) => Ok(Self::Unix(path, ownership)),
                _ => Err(ParseError::new("expected unix:PATH")),
            };
        }
        if text == "systemd" {
            return Ok(Self::Systemd(None));
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            return Ok(Self::Systemd(Some(name.to_owned())));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return port(text).map(Self::Loopback);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let Some((host, digits)) = rest.split_once("]:") else {
                return Err(ParseError::new("expected [IPV6]:PORT"));
            };
            let literal = host.split_once('%').map_or(host, |(literal, _)| literal);
            if literal.parse::<Ipv6Addr>().is_err() {
                return Err(ParseError::new(format!("{host:?} is not an IPv6 address")));
            }
            return Ok(Self::Host(host.to_owned(), port(digits)?));
        }
        match text.rsplit_once(':') {
            Some(("" | "*", digits)) => port(digits).map(Self::Any),
            Some((host, _)) if host.contains(':') => Err(ParseError::new(
                "an IPv6 address stands in brackets: [::1]:7000",
            )),
            Some((host, digits)) => Ok(Self::Host(host.to_owned(), port(digits)?)),
            None => Err(ParseError::forms(
                "expected PORT, :PORT, HOST:PORT, [IPV6]:PORT, unix:PATH, unix:@NAME, fd:N or systemd[:NAME]",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written() {
        for (text, address, shown) in [
            ("7000", Address::Loopback(7000), "127.0.0.1:7000"),
            (":7000", Address::Any(7000), ":7000"),
            ("*:7000", Address::Any(7000), ":7000"),
            ("0", Address::Loopback(0), "127.0.0.1:0"),
            (
                "localhost:80",
                Address::Host("localhost".into(), 80),
                "localhost:80",
            ),
            (
                "10.0.0.1:80",
                Address::Host("10.0.0.1".into(), 80),
                "10.0.0.1:80",
            ),
            ("[::1]:80", Address::Host("::1".into(), 80), "[::1]:80"),
            (
                "[fe80::1%lo]:80",
                Address::Host("fe80::1%lo".into(), 80),
                "[fe80::1%lo]:80",
            ),
            ("fd:3", Address::Fd(3), "fd:3"),
            (
                "unix:/x",
                Address::Unix("/x".into(), Ownership::default()),
                "unix:/x",
            ),
            (
                "unix:/x,mode=0660",
                Address::Unix(
                    "/x".into(),
                    Ownership {
                        mode: Some(0o660),
                        ..Ownership::default()
                    },
                ),
                "unix:/x,mode=660",
            ),
            ("unix:@x", Address::Abstract("x".into()), "unix:@x"),
            ("systemd", Address::Systemd(None), "systemd"),
            (
                "systemd:web",
                Address::Systemd(Some("web".into())),
                "systemd:web",
            ),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()), "{text}");
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_hint() {
        for (text, hint) in [
            ("", "expected PORT"),
            ("localhost", "expected PORT"),
            ("localhost:http", "\"http\" is not a port"),
            ("70000", "not a port"),
            (":-1", "not a port"),
            ("::1:80", "in brackets"),
            ("[::1]", "[IPV6]:PORT"),
            ("[localhost]:80", "not an IPv6 address"),
            ("unix:", "unix:PATH"),
            ("unix:@", "unix:@NAME"),
            ("fd:x", "not a descriptor"),
            ("fd:-1", "not a descriptor"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn a_literal_resolves_to_itself_once() {
        let address: Address = "127.0.0.1:5".parse().unwrap();
        let itself = "127.0.0.1:5".parse().unwrap();
        assert_eq!(address.resolve().unwrap(), [Endpoint::Tcp(itself)]);
    }
}
