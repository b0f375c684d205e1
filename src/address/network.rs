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

/// How many leading bits of an address tell one client from another, for IPv4 and for IPv6: `32:64` by default, for a user of
/// IPv6 has a /64 as a rule, and may take any of its addresses.
///
/// ```
/// use standfast::IpPrefix;
///
/// let prefix: IpPrefix = "24:48".parse().unwrap();
/// assert_eq!(prefix.to_string(), "24:48");
/// assert!("33:64".parse::<IpPrefix>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpPrefix {
    v4: u8,
    v6: u8,
}

impl IpPrefix {
    /// What `address` counts as: the first address of its range.
    pub(crate) fn of(self, address: IpAddr) -> IpAddr {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let kept = u32::MAX.checked_shl(32 - u32::from(self.v4)).unwrap_or(0);
                IpAddr::from((v4.to_bits() & kept).to_be_bytes())
            }
            IpAddr::V6(v6) => IpAddr::from(masked(v6.to_bits(), self.v6, 128).to_be_bytes()),
        }
    }
}

impl Default for IpPrefix {
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

impl FromStr for IpPrefix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bits =
            |text: &str, most: u8| text.parse().ok().filter(|bits| (1..=most).contains(bits));
        let parts = text.split_once(':');
        let parsed = parts.and_then(|(v4, v6)| {
            let (v4, v6) = (bits(v4, 32)?, bits(v6, 128)?);
            Some(Self { v4, v6 })
        });
        parsed.ok_or_else(|| {
            let what = "expected the bits of IPv4, 1 to 32, and of IPv6, 1 to 128, such as 32:64";
            ParseError::new(format!("{text}: {what}"))
        })
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.v4, self.v6)
    }
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
    fn addresses_of_one_prefix_count_as_one() {
        for (prefix, one, other, same) in [
            ("32:64", "10.0.0.1", "10.0.0.2", false),
            ("24:64", "10.0.0.1", "10.0.0.2", true),
            ("24:64", "10.0.0.1", "::ffff:10.0.0.2", true),
            ("32:64", "2001:db8::1", "2001:db8::ffff:0:0:1", true),
            ("32:64", "2001:db8::1", "2001:db8:0:1::1", false),
            ("1:1", "1.1.1.1", "127.1.1.1", true),
            ("1:128", "::1", "::2", false),
        ] {
            let prefix: IpPrefix = prefix.parse().unwrap();
            let [one, other] = [one, other].map(|ip| prefix.of(ip.parse().unwrap()));
            assert_eq!(one == other, same, "{prefix}: {one} {other}");
        }
        for text in [
            "", "32", "32:", "0:64", "33:64", "32:129", "32:64:1", "-1:2",
        ] {
            let error = text.parse::<IpPrefix>().unwrap_err();
            assert!(error.to_string().contains("such as 32:64"), "{error}");
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
