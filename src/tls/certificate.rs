//! What a certificate says of itself (X.509, RFC 5280): whose it is, who has signed it, for which names, and until when.
//!
//! That is for people alone: whether it is valid rustls says. What is not understood is left out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest text of a name, bytes: a client's may be as long as it likes.
const LONGEST: usize = 256;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 6;
const UTC_TIME: u8 = 23;
const GENERALIZED_TIME: u8 = 24;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const OCTETS: u8 = 4;
const BOOLEAN: u8 = 1;
/// In a subjectAltName.
const DNS: u8 = 0x82;
const IP: u8 = 0x87;

const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// What is told of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Such as `CN=alice, O=Acme`.
    pub(super) subject: String,
    pub(super) issuer: String,
    /// Hosts that it is for.
    pub(super) names: Vec<String>,
    pub(super) not_after: Option<SystemTime>,
}

/// `None`: it is no certificate.
pub(super) fn told(der: &[u8]) -> Option<Told> {
    let mut certificate = Der(Der(der).value(SEQUENCE)?);
    let mut body = Der(certificate.value(SEQUENCE)?);
    body.optional(VERSION);
    // The serial number, the algorithm.
    body.any()?;
    body.any()?;
    let issuer = name(body.value(SEQUENCE)?);
    let mut validity = Der(body.value(SEQUENCE)?);
    validity.any()?;
    let not_after = validity.any().and_then(|(tag, text)| time(tag, text));
    let subject = name(body.value(SEQUENCE)?);
    // The key.
    body.any()?;
    let mut names = Vec::new();
    while let Some((tag, value)) = body.any() {
        if tag == EXTENSIONS {
            names = alternative_names(value).unwrap_or_default();
        }
    }
    Some(Told {
        subject,
        issuer,
        names,
        not_after,
    })
}

/// What is left of a sequence of values, each behind its tag and its length (X.690).
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => {
                let (&[length], rest) = rest.split_first_chunk()?;
                (usize::from(length), rest)
            }
            0x82 => {
                let (length, rest) = rest.split_first_chunk()?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            0x83 => {
                let (&[a, b, c], rest) = rest.split_first_chunk()?;
                (u32::from_be_bytes([0, a, b, c]) as usize, rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, value))
    }

    fn value(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.any()
            .filter(|(tag, _)| *tag == wanted)
            .map(|(_, value)| value)
    }

    fn optional(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let value = ahead.value(wanted)?;
        *self = ahead;
        Some(value)
    }
}

/// The most telling part first, as it stands last in there.
fn name(der: &[u8]) -> String {
    let mut parts = Vec::new();
    let mut all = Der(der);
    while let Some(mut set) = all.value(SET).map(Der) {
        while let Some(mut pair) = set.value(SEQUENCE).map(Der) {
            let (Some(kind), Some((_, value))) = (pair.value(OID), pair.any()) else {
                continue;
            };
            let kind = match kind {
                [0x55, 4, 3] => "CN",
                [0x55, 4, 5] => "serialNumber",
                [0x55, 4, 6] => "C",
                [0x55, 4, 7] => "L",
                [0x55, 4, 8] => "ST",
                [0x55, 4, 10] => "O",
                [0x55, 4, 11] => "OU",
                [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "emailAddress",
                [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "UID",
                [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
                _ => continue,
            };
            parts.push(format!("{kind}={}", escaped(&text(value))));
        }
    }
    parts.reverse();
    let mut told = parts.join(", ");
    while told.len() > LONGEST {
        told.pop();
    }
    told
}

/// As RFC 4514 has it: one part never looks as several.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let last = text.chars().count().saturating_sub(1);
    for (at, char) in text.chars().enumerate() {
        let is_special = match char {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => true,
            '#' => at == 0,
            ' ' => at == 0 || at == last,
            _ => false,
        };
        if is_special {
            escaped.push('\\');
        }
        escaped.push(char);
    }
    escaped
}

/// Nothing in it moves a cursor.
fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let harmless = |char: char| match char {
        char if char.is_control() => char::REPLACEMENT_CHARACTER,
        // They turn the direction of what is written around them.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
        char => char,
    };
    text.chars().map(harmless).collect()
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut all = Der(Der(extensions).value(SEQUENCE)?);
    while let Some(mut extension) = all.value(SEQUENCE).map(Der) {
        if extension.value(OID)? != SUBJECT_ALT_NAME {
            continue;
        }
        extension.optional(BOOLEAN);
        let mut list = Der(Der(extension.value(OCTETS)?).value(SEQUENCE)?);
        let mut names = Vec::new();
        while let Some((tag, value)) = list.any() {
            let address = |bytes: &[u8]| -> Option<IpAddr> {
                let v4 = <[u8; 4]>::try_from(bytes).map(|it| Ipv4Addr::from(it).into());
                let v6 = <[u8; 16]>::try_from(bytes).map(|it| Ipv6Addr::from(it).into());
                v4.or(v6).ok()
            };
            match tag {
                DNS => names.push(text(value)),
                IP => names.extend(address(value).map(|it| it.to_string())),
                _ => {}
            }
        }
        return Some(names);
    }
    None
}

/// `YYMMDDHHMMSSZ`, or with four digits for the year.
fn time(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| {
        let digit = |sum: u64, digit: &u8| 10 * sum + u64::from(digit - b'0');
        digits.iter().fold(0, digit)
    };
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_first_chunk::<2>()?;
            let year = number(year);
            (year + if year < 50 { 2000 } else { 1900 }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_first_chunk::<4>()?;
            (number(year), rest)
        }
        _ => return None,
    };
    let parts: Vec<u64> = rest.chunks(2).map(number).collect();
    let &[
        month @ 1..=12,
        day @ 1..=31,
        hour @ 0..=23,
        minute @ 0..=59,
        second @ 0..=60,
    ] = &parts[..]
    else {
        return None;
    };
    // Days since March of the year 0, in which every leap day is the last of its year.
    let (years, months) = match month {
        3.. => (year, month - 3),
        _ => (year.checked_sub(1)?, month + 9),
    };
    let days = 365 * years + years / 4 - years / 100 + years / 400;
    let days = days + (153 * months + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::seeded::Seeded;

    fn certificate(name: &str) -> CertificateDer<'static> {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = root.join("tests/support/tls").join(name);
        CertificateDer::from_pem_file(file).unwrap()
    }

    #[test]
    fn it_says_whose_it_is_and_for_which_names() {
        let server = told(&certificate("server.pem")).unwrap();
        assert!(server.names.contains(&"localhost".to_owned()), "{server:?}");
        assert!(server.issuer.starts_with("CN="), "{server:?}");
        assert!(server.not_after.unwrap() > UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        let client = told(&certificate("client.pem")).unwrap();
        assert!(client.subject.starts_with("CN="), "{client:?}");
    }

    #[test]
    fn one_part_never_looks_as_two() {
        let value = b"alice, O=Acme";
        let pair = [&[SEQUENCE, 20, OID, 3, 0x55, 4, 3, 12, 13][..], value].concat();
        let set = [&[SET, 22][..], &pair].concat();
        assert_eq!(name(&set), "CN=alice\\, O=Acme");
        assert_eq!(escaped(" a+b# \"c\" "), "\\ a\\+b# \\\"c\\\"\\ ");
        assert_eq!(escaped("#plain name."), "\\#plain name.");
    }

    #[test]
    fn times_are_read() {
        let seconds = |tag, text: &str| {
            let time = time(tag, text.as_bytes())?;
            Some(time.duration_since(UNIX_EPOCH).unwrap().as_secs())
        };
        for (tag, text, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "000229235959Z", Some(951_868_799)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", None),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (GENERALIZED_TIME, "00000101000000Z", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "7001010000000", None),
            (UTC_TIME, "7x0101000000Z", None),
            (UTC_TIME, "", None),
            (OID, "700101000000Z", None),
        ] {
            assert_eq!(seconds(tag, text), expected, "{text}");
        }
    }

    #[test]
    fn whatever_it_says_moves_no_cursor_and_is_short() {
        assert_eq!(text(b"a\x1b[2J\nb"), "a\u{fffd}[2J\u{fffd}b");
        let value = [
            &[SEQUENCE, 0x82, 2, 5, OID, 3, 0x55, 4, 3, 12, 0x82, 1, 252][..],
            &[b'x'; 508],
        ];
        let value = value.concat();
        let set = [&[SET, 0x82, 2, 9][..], &value].concat();
        let name = name(&set);
        assert!(name.len() <= LONGEST, "{name}");
    }

    #[test]
    fn what_is_damaged_is_no_more_than_wrong() {
        let mut random = Seeded::new(19);
        for name in ["server.pem", "client.pem", "rsa.pem"] {
            let whole = certificate(name).to_vec();
            for length in 0..whole.len() {
                let _ = told(&whole[..length]);
            }
            for _ in 0..20_000 {
                let mut bytes = whole.clone();
                for _ in 0..=random.below(3) {
                    let at = random.below(bytes.len());
                    bytes[at] = u8::try_from(random.below(256)).unwrap();
                }
                let _ = told(&bytes);
            }
        }
    }
}
