//! The PROXY protocol as a sender: what tells an upstream who the client is, as the first bytes of a connection to it.
//!
//! Source: haproxy's `doc/proxy-protocol.txt`, versions 1 (text) and 2 (binary). Pure, and nothing is allocated.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::address::endpoint::Peer;
use crate::parse::ParseError;

/// Which form of the PROXY protocol header an upstream is told about its client in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyHeader {
    /// One line of text: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443`.
    V1,
    /// Binary, 28 bytes for IPv4 and 52 for IPv6.
    V2,
}

impl ProxyHeader {
    /// The header for a connection of `client`, who had dialled `local`, an address of this host. Of a client without an
    /// address (a Unix socket), or of whom it is not known what it dialled, nothing is told: the upstream sees this host
    /// as its client.
    pub(crate) fn of(self, client: Peer, local: Option<SocketAddr>) -> Header {
        match self {
            Self::V1 => v1(client, local),
            Self::V2 => v2(client, local),
        }
    }
}

impl FromStr for ProxyHeader {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => Err(ParseError::new("expected v1 or v2")),
        }
    }
}

impl fmt::Display for ProxyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// A header, as it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    bytes: [u8; LONGEST],
    length: usize,
}

/// The longest line of version 1, its line end included; version 2 needs 52 for TCP.
const LONGEST: usize = 107;

impl Header {
    fn empty() -> Self {
        Self {
            bytes: [0; LONGEST],
            length: 0,
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Appends; what would not fit is left out, which the lengths of both forms rule out.
    fn push(&mut self, bytes: &[u8]) {
        let free = self.bytes.get_mut(self.length..).unwrap_or_default();
        let taken = bytes.len().min(free.len());
        if let (Some(free), Some(bytes)) = (free.get_mut(..taken), bytes.get(..taken)) {
            free.copy_from_slice(bytes);
            self.length += taken;
        }
    }
}

impl fmt::Write for Header {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Both ends of the client's connection in one family: IPv4 where both are, be it mapped into IPv6 (a listener of both),
/// else IPv6.
fn ends(client: Peer, local: Option<SocketAddr>) -> Option<(SocketAddr, SocketAddr)> {
    let (Peer::Tcp(client), Some(local)) = (client, local) else {
        return None;
    };
    let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    let (client, local) = (canonical(client), canonical(local));
    if client.is_ipv4() == local.is_ipv4() {
        return Some((client, local));
    }
    let wide = |end: SocketAddr| SocketAddr::new(IpAddr::V6(wide(end.ip())), end.port());
    Some((wide(client), wide(local)))
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Version 1 (section 2.1): `PROXY`, the family, both addresses, both ports, CR LF.
pub(crate) fn v1(client: Peer, local: Option<SocketAddr>) -> Header {
    let mut header = Header::empty();
    let Some((client, local)) = ends(client, local) else {
        header.push(b"PROXY UNKNOWN\r\n");
        return header;
    };
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    // Writing into a header cannot fail.
    let _ = fmt::Write::write_fmt(
        &mut header,
        format_args!(
            "PROXY {family} {} {} {} {}\r\n",
            client.ip(),
            local.ip(),
            client.port(),
            local.port()
        ),
    );
    header
}

/// What version 2 begins with (section 2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command LOCAL: the connection counts as this host's own.
const LOCAL: u8 = 0x20;
/// Version 2, command PROXY: the connection is relayed.
const PROXY: u8 = 0x21;

/// Version 2 (section 2.2): signature, version and command, family and protocol, length, addresses, ports.
pub(crate) fn v2(client: Peer, local: Option<SocketAddr>) -> Header {
    let mut header = Header::empty();
    header.push(&SIGNATURE);
    let ends = ends(client, local);
    // PROXY with AF_UNSPEC would say "relayed, for somebody of an unknown family", and is what the text of the
    // specification offers; haproxy resets such a connection, and says LOCAL itself (src/connection.c).
    let (command, family, length): (u8, u8, u16) = match ends {
        None => (LOCAL, 0x00, 0),
        Some((client, _)) if client.is_ipv4() => (PROXY, 0x11, 12),
        Some(_) => (PROXY, 0x21, 36),
    };
    header.push(&[command, family]);
    header.push(&length.to_be_bytes());
    if let Some((client, local)) = ends {
        for end in [client, local] {
            match end.ip() {
                IpAddr::V4(ip) => header.push(&ip.octets()),
                IpAddr::V6(ip) => header.push(&ip.octets()),
            }
        }
        header.push(&client.port().to_be_bytes());
        header.push(&local.port().to_be_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        Peer::Tcp(text.parse().unwrap())
    }

    fn line(client: &str, local: &str) -> String {
        let header = v1(peer(client), Some(local.parse().unwrap()));
        String::from_utf8(header.as_bytes().to_vec()).unwrap()
    }

    fn bytes(client: &str, local: &str) -> Vec<u8> {
        v2(peer(client), Some(local.parse().unwrap()))
            .as_bytes()
            .to_vec()
    }

    #[test]
    fn version_1_is_one_line() {
        assert_eq!(
            line("192.168.0.1:56324", "192.168.0.11:443"),
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
        );
        assert_eq!(
            line("[2001:db8::1]:56324", "[::1]:443"),
            "PROXY TCP6 2001:db8::1 ::1 56324 443\r\n"
        );
    }

    #[test]
    fn version_2_is_what_the_specification_draws() {
        let mut golden = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
        golden.extend([192, 168, 0, 1, 192, 168, 0, 11, 0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(bytes("192.168.0.1:56324", "192.168.0.11:443"), golden);

        let mut golden = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24".to_vec();
        golden.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        golden.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        golden.extend([0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(bytes("[2001:db8::1]:56324", "[::1]:443"), golden);
    }

    #[test]
    fn ipv4_through_a_listener_of_both_families_is_ipv4() {
        let plain = ("10.0.0.1:5", "10.0.0.2:7");
        for (client, local) in [
            ("[::ffff:10.0.0.1]:5", "[::ffff:10.0.0.2]:7"),
            // A peer is made canonical when it is accepted, what it dialled is not.
            ("10.0.0.1:5", "[::ffff:10.0.0.2]:7"),
        ] {
            assert_eq!(line(client, local), line(plain.0, plain.1));
            assert_eq!(bytes(client, local), bytes(plain.0, plain.1));
        }
    }

    #[test]
    fn ends_of_two_families_are_both_written_as_ipv6() {
        assert_eq!(
            line("10.0.0.1:5", "[2001:db8::2]:7"),
            "PROXY TCP6 ::ffff:10.0.0.1 2001:db8::2 5 7\r\n"
        );
        let mixed = bytes("10.0.0.1:5", "[2001:db8::2]:7");
        assert_eq!(mixed.len(), 52);
        assert_eq!(mixed[13], 0x21);
        assert_eq!(mixed[26..32], [0xff, 0xff, 10, 0, 0, 1]);
    }

    #[test]
    fn of_a_client_without_an_address_nothing_is_told() {
        let local = "10.0.0.2:7".parse().unwrap();
        for (client, local) in [
            (Peer::Unix(None), None),
            (Peer::Unix(None), Some(local)),
            (peer("10.0.0.1:5"), None),
        ] {
            assert_eq!(v1(client, local).as_bytes(), b"PROXY UNKNOWN\r\n");
            assert_eq!(
                v2(client, local).as_bytes(),
                b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
            );
        }
    }

    #[test]
    fn the_longest_line_fits() {
        let long = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        let line = line(long, long);
        assert_eq!(line.len(), 11 + 39 + 1 + 39 + 1 + 5 + 1 + 5 + 2);
        assert!(line.ends_with(" 65535 65535\r\n"));
        assert!(line.len() <= LONGEST);
    }

    #[test]
    fn versions_are_read_as_they_are_shown() {
        for version in [ProxyHeader::V1, ProxyHeader::V2] {
            assert_eq!(version.to_string().parse(), Ok(version));
        }
        for wrong in ["", "1", "V1", "v3"] {
            assert!(wrong.parse::<ProxyHeader>().is_err(), "{wrong}");
        }
    }
}
