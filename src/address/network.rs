//! A range of addresses, as people write it: `10.0.0.0/8`, `fd00::/8`, or one address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::parse::ParseError;

/// A range of IP addresses in CIDR notation (RFC 4632, RFC 4291).
///
/// ```
/// use standfast::Network;
///
/// let network: Network = "192.168.7.0/24".parse().unwrap();
/// assert!(network.contains("192.168.7.99".parse().unwrap()));
/// // As a listener for IPv6 shows the same client.
/// assert!(network.contains("::ffff:192.168.7.99".parse().unwrap()));
/// assert!(!network.contains("192.168.8.1".parse().unwrap()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    first: IpAddr,
    /// Leading bits that all its addresses have in common.
    prefix: u8,
}

impl Network {
    /// Whether `address` is one of them. An IPv4 address mapped into IPv6 is that IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.first.is_ipv4() == address.is_ipv4()
            && masked(bits(self.first), self.prefix, self.width())
                == masked(bits(address), self.prefix, self.width())
    }

    /// Leading bits that all its addresses have in common.
    pub(crate) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Its first address and its last, as numbers.
    pub(crate) fn range(&self) -> (u128, u128) {
        let first = bits(self.first);
        let rest = u32::from(self.width() - self.prefix);
        let last = 1_u128.checked_shl(rest).map_or(u128::MAX, |size| size - 1);
        (first, first | last)
    }

    /// Whether it is of IPv4 addresses.
    pub(crate) fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    fn width(&self) -> u8 {
        width(self.first)
    }
}

impl FromStr for Network {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let first: IpAddr = address
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .map_err(|_| {
                let what = "expected an address or a range, such as 10.0.0.0/8";
                ParseError::new(format!("{text}: {what}"))
            })?;
        let width = width(first);
        let prefix = match prefix {
            None => width,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|&prefix| prefix <= width)
                .ok_or_else(|| {
                    let what = format!("expected 0 to {width} bits after the slash");
                    ParseError::new(format!("{text}: {what}"))
                })?,
        };
        if masked(bits(first), prefix, width) != bits(first) {
            return Err(ParseError::new(format!(
                "{text}: the address has bits beyond the first {prefix}"
            )));
        }
        Ok(match first.to_canonical() {
            // Clients are known by the IPv4 address, whatever the listener shows.
            first @ IpAddr::V4(_) if width == 128 => Self {
                first,
                prefix: prefix - (128 - 32),
            },
            _ => Self { first, prefix },
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// An address as a number.
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The first `prefix` of the `width` bits.
fn masked(bits: u128, prefix: u8, width: u8) -> u128 {
    // Shifting by all bits is none at all, so that is asked first.
    let rest = u32::from(width - prefix);
    bits.checked_shr(rest)
        .and_then(|kept| kept.checked_shl(rest))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_what_they_say() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("10.1.2.2/31", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("[::1]", "::1", "::2"),
            ("127.0.0.0/8", "::ffff:127.1.2.3", "::1"),
            ("::ffff:127.0.0.0/104", "127.1.2.3", "128.0.0.1"),
            ("::ffff:0:0/96", "::ffff:10.0.0.1", "::1"),
            ("::ffff:10.1.2.3", "10.1.2.3", "10.1.2.2"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network}");
            assert!(!network.contains(outside.parse().unwrap()), "{network}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused_in_words() {
        for (text, why) in [
            ("", "expected an address"),
            ("localhost", "expected an address"),
            ("10.0.0.0/33", "0 to 32 bits"),
            ("::/129", "0 to 128 bits"),
            ("10.0.0.0/", "0 to 32 bits"),
            ("10.0.0.0/-1", "0 to 32 bits"),
            ("10.0.0.1/8", "beyond the first 8"),
            ("::1/0", "beyond the first 0"),
            ("::ffff:127.0.0.0/95", "beyond the first 95"),
            ("::ffff:127.0.0.1/104", "beyond the first 104"),
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }
}
