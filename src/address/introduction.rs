//! The PROXY protocol as a receiver: who the client is, as a proxy says it in front of everything else.
//!
//! Source: haproxy's `doc/proxy-protocol.txt`, versions 1 (text, section 2.1) and 2 (binary, 2.2). Pure, and nothing is
//! allocated. What it is sent as: `services/forward/proxy_header.rs`.
#![warn(clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest header that is taken, its TLVs included: nginx's limit, too. The specification wants 107 bytes for version 1
/// and recommends that version 2 fits into one segment of 536.
pub(crate) const LONGEST: usize = 4096;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Introduction {
    /// The beginning of a header.
    Torn,
    /// A header of so many bytes, and whom it names.
    Whole(usize, Named),
    /// No header, or a wrong one; in a word for the log.
    Wrong(&'static str),
}

/// Whom a header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The client, and what it had dialled.
    Ends(SocketAddr, SocketAddr),
    /// Nobody: the proxy does not know, or cannot say.
    Nobody,
    /// The connection is the proxy's own, as for a health check (`LOCAL`).
    Proxy,
}

const NONE: Introduction = Introduction::Wrong("none");
const INVALID: Introduction = Introduction::Wrong("invalid");
const TOO_LONG: Introduction = Introduction::Wrong("too-long");

/// The longest line of version 1, its end included.
const LONGEST_LINE: usize = 107;
const LINE: &[u8] = b"PROXY ";

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const FIXED: usize = 16;

impl Introduction {
    /// What `bytes`, the first of a connection, are: all that have come, or [`LONGEST`] of them.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match bytes.first() {
            None => Self::Torn,
            Some(b'P') => v1(bytes),
            Some(_) => v2(bytes),
        }
    }
}

/// Whether `bytes` begin with `all`, as far as they go; `None`: they do not.
fn begins(bytes: &[u8], all: &[u8]) -> Option<bool> {
    let common = bytes.len().min(all.len());
    (bytes.get(..common) == all.get(..common)).then_some(common == all.len())
}

fn v1(bytes: &[u8]) -> Introduction {
    match begins(bytes, LINE) {
        None => return NONE,
        Some(false) => return Introduction::Torn,
        Some(true) => {}
    }
    let most = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(end) = most.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if most.len() < LONGEST_LINE {
            Introduction::Torn
        } else {
            TOO_LONG
        };
    };
    match (most.get(end), most.get(end + 1)) {
        (Some(b'\r'), Some(b'\n')) => {}
        (Some(b'\r'), None) if most.len() < LONGEST_LINE => return Introduction::Torn,
        (Some(b'\r'), None) => return TOO_LONG,
        _ => return INVALID,
    }
    let line = most.get(LINE.len()..end).unwrap_or_default();
    let Ok(line) = str::from_utf8(line) else {
        return INVALID;
    };
    match named(line) {
        Some(named) => Introduction::Whole(end + 2, named),
        None => INVALID,
    }
}

/// Whom what stands behind `PROXY ` names; `None`: it is wrong.
fn named(line: &str) -> Option<Named> {
    let mut words = line.split(' ');
    let mut ends = match words.next()? {
        // Whatever follows is to be ignored.
        "UNKNOWN" => return Some(Named::Nobody),
        "TCP4" => [
            ip::<Ipv4Addr>(words.next()?)?,
            ip::<Ipv4Addr>(words.next()?)?,
        ],
        "TCP6" => [
            ip::<Ipv6Addr>(words.next()?)?,
            ip::<Ipv6Addr>(words.next()?)?,
        ],
        _ => return None,
    };
    for end in &mut ends {
        end.set_port(port(words.next()?)?);
    }
    let [client, dialled] = ends;
    let is_over = words.next().is_none();
    is_over.then_some(Named::Ends(client, dialled))
}

fn ip<T: FromStr + Into<IpAddr>>(text: &str) -> Option<SocketAddr> {
    let ip: T = text.parse().ok()?;
    Some(SocketAddr::new(ip.into(), 0))
}

/// "Heading zeroes are not permitted", nor is a sign.
fn port(text: &str) -> Option<u16> {
    let plain = text == "0" || text.starts_with(|first: char| matches!(first, '1'..='9'));
    plain.then(|| text.parse().ok())?
}

fn v2(bytes: &[u8]) -> Introduction {
    if begins(bytes, SIGNATURE).is_none() {
        return NONE;
    }
    let Some((fixed, behind)) = bytes.split_first_chunk::<FIXED>() else {
        return Introduction::Torn;
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    // Nothing that is wrong is waited for, nor taken in.
    let address = match (command, family) {
        (0x21, 0x11) => Some(12),
        (0x21, 0x21) => Some(36),
        // LOCAL, whatever else stands there. Or PROXY, of a family without such addresses, or of datagrams.
        (0x20, _) | (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => None,
        _ => return INVALID,
    };
    if length < address.unwrap_or(0) {
        return INVALID;
    }
    if FIXED + length > LONGEST {
        return TOO_LONG;
    }
    let Some(behind) = behind.get(..length) else {
        return Introduction::Torn;
    };
    // What stands behind the addresses are TLVs, and none of this host's affair.
    let named = match address {
        None if command == 0x20 => Some(Named::Proxy),
        None => Some(Named::Nobody),
        Some(12) => v4(behind),
        Some(_) => v6(behind),
    };
    named.map_or(INVALID, |named| Introduction::Whole(FIXED + length, named))
}

/// Both addresses, then both ports: of the client, of what it had dialled.
fn v4(bytes: &[u8]) -> Option<Named> {
    let (client, bytes) = bytes.split_first_chunk::<4>()?;
    let (dialled, bytes) = bytes.split_first_chunk::<4>()?;
    let (client_port, bytes) = bytes.split_first_chunk::<2>()?;
    let (dialled_port, _) = bytes.split_first_chunk::<2>()?;
    Some(Named::Ends(
        SocketAddr::from((*client, u16::from_be_bytes(*client_port))),
        SocketAddr::from((*dialled, u16::from_be_bytes(*dialled_port))),
    ))
}

fn v6(bytes: &[u8]) -> Option<Named> {
    let (client, bytes) = bytes.split_first_chunk::<16>()?;
    let (dialled, bytes) = bytes.split_first_chunk::<16>()?;
    let (client_port, bytes) = bytes.split_first_chunk::<2>()?;
    let (dialled_port, _) = bytes.split_first_chunk::<2>()?;
    Some(Named::Ends(
        SocketAddr::from((*client, u16::from_be_bytes(*client_port))),
        SocketAddr::from((*dialled, u16::from_be_bytes(*dialled_port))),
    ))
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test that indexes wrongly fails")]
mod tests {
    use super::*;
    use crate::seeded::Seeded;

    fn header(command: u8, family: u8, behind: &[u8]) -> Vec<u8> {
        let length = u16::try_from(behind.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, behind].concat()
    }

    fn v4_ends() -> Vec<u8> {
        vec![192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 4, 1, 0xbb]
    }

    fn v6_ends() -> Vec<u8> {
        let mut ends = vec![0; 36];
        ends[0] = 0x20;
        ends[15] = 1;
        ends[32..].copy_from_slice(&[0xdc, 4, 1, 0xbb]);
        ends
    }

    /// Whole ones, and whom they name.
    fn whole() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let tlvs = |ends: Vec<u8>| [ends, vec![4, 0, 3, 1, 2, 3]].concat();
        let longest = vec![0; LONGEST - FIXED];
        let mut found = vec![
            (
                header(0x21, 0x11, &v4_ends()),
                Some("192.0.2.1:56324 192.0.2.2:443"),
            ),
            (
                header(0x21, 0x11, &tlvs(v4_ends())),
                Some("192.0.2.1:56324 192.0.2.2:443"),
            ),
            (
                header(0x21, 0x21, &v6_ends()),
                Some("[2000::1]:56324 [::]:443"),
            ),
            (
                header(0x21, 0x21, &tlvs(v6_ends())),
                Some("[2000::1]:56324 [::]:443"),
            ),
            (header(0x20, 0x11, &v4_ends()), Some("LOCAL")),
            (header(0x20, 0x00, b""), Some("LOCAL")),
            (header(0x20, 0xff, b"any"), Some("LOCAL")),
            (header(0x21, 0x00, b""), None),
            (header(0x21, 0x31, &[7; 216]), None),
            (header(0x20, 0x00, &longest), Some("LOCAL")),
        ];
        let lines = [
            (
                "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
                Some("192.0.2.1:56324 192.0.2.2:443"),
            ),
            (
                "PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n",
                Some("255.255.255.255:65535 0.0.0.0:0"),
            ),
            (
                "PROXY TCP6 2000::1 ::1 56324 443\r\n",
                Some("[2000::1]:56324 [::1]:443"),
            ),
            (
                "PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n",
                Some("[::ffff:10.0.0.1]:1 [::1]:2"),
            ),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN 192.0.2.1 192.0.2.2 56324 443\r\n", None),
            ("PROXY UNKNOWN any thing\t at all\r\n", None),
        ];
        found.extend(lines.map(|(line, client)| (line.as_bytes().to_vec(), client)));
        found
    }

    #[test]
    fn a_whole_header_names_the_client_and_ends_where_it_ends() {
        for (header, client) in whole() {
            let named = match client.map(|ends| ends.split_once(' ')) {
                None => Named::Nobody,
                Some(None) => Named::Proxy,
                Some(Some((client, dialled))) => {
                    Named::Ends(client.parse().unwrap(), dialled.parse().unwrap())
                }
            };
            let expected = Introduction::Whole(header.len(), named);
            assert_eq!(Introduction::of(&header), expected, "{header:?}");
            // What stands behind it is the service's, whatever it looks like.
            for behind in [&b"\r\n"[..], b"PROXY ", SIGNATURE, &[0; 9000]] {
                let both = [&header, behind].concat();
                let seen = &both[..both.len().min(LONGEST)];
                assert_eq!(Introduction::of(seen), expected, "{header:?}");
            }
        }
    }

    #[test]
    fn every_part_of_a_header_is_waited_for() {
        for (header, _) in whole() {
            for length in 0..header.len() {
                let part = &header[..length];
                assert_eq!(Introduction::of(part), Introduction::Torn, "{part:?}");
            }
        }
    }

    #[test]
    fn the_longest_line_is_taken_and_a_longer_one_is_not() {
        let line = |length: usize| {
            let mut line = b"PROXY UNKNOWN ".to_vec();
            line.resize(length - 2, b'x');
            [line, b"\r\n".to_vec()].concat()
        };
        assert_eq!(
            Introduction::of(&line(107)),
            Introduction::Whole(107, Named::Nobody)
        );
        assert_eq!(Introduction::of(&line(108)), TOO_LONG);
        assert_eq!(Introduction::of(&line(107)[..106]), Introduction::Torn);
        assert_eq!(Introduction::of(&line(108)[..107]), TOO_LONG);
        assert_eq!(Introduction::of(&line(200)[..107]), TOO_LONG);
    }

    #[test]
    fn what_is_wrong_is_wrong_at_once_and_not_guessed() {
        let v4 = v4_ends();
        let lines = [
            ("GET / HTTP/1.1\r\n", NONE),
            ("POST / HTTP/1.1\r\n", NONE),
            ("P\r\n", NONE),
            ("PROXY\r\n", NONE),
            ("PROXYTCP4", NONE),
            ("proxy TCP4", NONE),
            (" ", NONE),
            ("\n", NONE),
            ("\r\n\r\n\0\r\nQUIT\r", NONE),
            ("PROXY \r\n", INVALID),
            ("PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP 1.2.3.4 1.2.3.4 1 2\r\n", INVALID),
            ("PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP4\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", INVALID),
            ("PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4\t1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP4 ::1 ::1 1 2\r\n", INVALID),
            ("PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP6 [::1] ::1 1 2\r\n", INVALID),
            ("PROXY TCP6 fe80::1%1 ::1 1 2\r\n", INVALID),
            ("PROXY TCP4 localhost 1.2.3.4 1 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 70000\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4  2\r\n", INVALID),
            ("PROXY UNKNOWN\n", INVALID),
            ("PROXY UNKNOWN\r\r\n", INVALID),
            ("PROXY UNKNOWNS\r\n", INVALID),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", INVALID),
        ];
        let lines = lines.map(|(line, wrong)| (line.as_bytes().to_vec(), wrong));
        let headers = [
            (b"PROXY UNKNOWN \xff\r\n".to_vec(), INVALID),
            (header(0x22, 0x11, &v4), INVALID),
            (header(0x11, 0x11, &v4), INVALID),
            (header(0x31, 0x11, &v4), INVALID),
            (header(0x01, 0x11, &v4), INVALID),
            (header(0x21, 0x10, &v4), INVALID),
            (header(0x21, 0x13, &v4), INVALID),
            (header(0x21, 0x41, &v4), INVALID),
            (header(0x21, 0x11, &v4[..11]), INVALID),
            (header(0x21, 0x11, b""), INVALID),
            (header(0x21, 0x21, &v4), INVALID),
            (header(0x21, 0x11, &[0; LONGEST - FIXED + 1]), TOO_LONG),
            (header(0x20, 0x00, &[0; 65535])[..FIXED].to_vec(), TOO_LONG),
        ];
        for (bytes, wrong) in lines.into_iter().chain(headers) {
            let seen = &bytes[..bytes.len().min(LONGEST)];
            assert_eq!(Introduction::of(seen), wrong, "{}", bytes.escape_ascii());
        }
    }

    /// Seeded damage to whole headers, and garbage: what is said of a part holds when more has come, a whole one is not
    /// longer than what there is, and there is never a panic. `STANDFAST_FUZZ`: how many, for a long run.
    #[test]
    fn whatever_comes_is_judged_and_the_judgement_stays() {
        let rounds = std::env::var("STANDFAST_FUZZ").ok();
        let rounds = rounds.map_or(20_000, |rounds| rounds.parse().unwrap());
        let mut random = Seeded::new(11);
        let whole = whole();
        for _ in 0..rounds {
            let mut draw = |limit: usize| usize::try_from(random.below(limit as u64)).unwrap();
            let mut bytes = whole[draw(whole.len())].0.clone();
            for _ in 0..draw(4) {
                let at = draw(bytes.len());
                match draw(4) {
                    0 => bytes[at] = u8::try_from(draw(256)).unwrap(),
                    1 => bytes[at] ^= 1 << draw(8),
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, *b" \r\n0:."[draw(6)..].first().unwrap()),
                }
            }
            bytes.extend((0..draw(20)).map(|at| u8::try_from(at).unwrap()));
            let seen = &bytes[..bytes.len().min(LONGEST)];
            let judged = Introduction::of(seen);
            match judged {
                Introduction::Whole(length, _) => assert!((1..=seen.len()).contains(&length)),
                Introduction::Torn => assert!(seen.len() < LONGEST),
                Introduction::Wrong(_) => {}
            }
            let part = draw(seen.len());
            match Introduction::of(&seen[..part]) {
                Introduction::Torn => {}
                before => assert_eq!(before, judged, "{part} of {}", seen.escape_ascii()),
            }
        }
    }
}
