//! Whom to connect to and how, as typed and as meant: what `connect` and `load` have in common.
#![expect(clippy::doc_markdown, reason = "these comments are the text of --help")]

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use standfast::Address;
use standfast::dial::{Backoff, Dial, Family};

use crate::Failure;
use crate::args::detection::DetectionArgs;
use crate::args::dial_tls::DialTlsArgs;
use crate::units::{Setting, duration, duration_or_off};

#[derive(Debug, clap::Args)]
pub(crate) struct DialArgs {
    /// Whom to connect to: HOST:PORT (every address of the name is tried), HOST PORT, PORT (this host), [::1]:PORT,
    /// unix:PATH, unix:@NAME (abstract).
    #[arg(value_name = "HOST:PORT")]
    pub(crate) host: String,

    /// The port, if it does not stand behind the host.
    #[arg(value_name = "PORT", hide = true)]
    pub(crate) port: Option<String>,

    /// The address is the path of a Unix socket: the same as unix:PATH.
    #[arg(short = 'U', conflicts_with = "port")]
    pub(crate) unix: bool,

    /// The address is a number: no name is looked up.
    #[arg(short, long)]
    pub(crate) numeric: bool,

    /// IPv4 only.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub(crate) ipv4: bool,

    /// IPv6 only.
    #[arg(short = '6', long)]
    pub(crate) ipv6: bool,

    /// The address of this host to connect from.
    #[arg(short, long, value_name = "ADDR")]
    pub(crate) source: Option<IpAddr>,

    /// How long one attempt to connect may take: finding the addresses of a name and trying them all.
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, default_value = "10s")]
    pub(crate) connect_timeout: Setting<Duration>,

    /// How long to wait before trying again: anything from nothing to LEAST before the first retry, which doubles with
    /// each one up to MOST.
    #[arg(long, value_name = "LEAST:MOST", value_parser = backoff, allow_hyphen_values = true, default_value = "500ms:30s")]
    pub(crate) backoff: Backoff,

    #[command(flatten)]
    pub(crate) tls: DialTlsArgs,

    #[command(flatten)]
    pub(crate) detection: DetectionArgs,
}

impl DialArgs {
    /// Whom to connect to and how. What else `Dial` has is left at its default.
    ///
    /// # Errors
    /// What is no address to connect to, and options that contradict it or each other.
    pub(crate) fn meant(&self) -> Result<Dial, Failure> {
        let address = if self.unix {
            address(&format!("unix:{}", self.host), None)?
        } else {
            address(&self.host, self.port.as_deref())?
        };
        if self.numeric
            && let Address::Host(host, _) = &address
            && literal_is_v6(&address).is_none()
        {
            return Err(Failure::usage(format!(
                "-n looks no name up, and {host:?} is one"
            )));
        }
        let family = self.family(&address)?;
        let mut dial = Dial::new(address);
        dial.family = family;
        dial.sources = self.source.into_iter().collect();
        dial.connect_timeout = self.connect_timeout.into_option();
        dial.backoff = self.backoff;
        dial.keepalive = self.detection.keepalive()?;
        dial.dead_after = self.detection.dead_after;
        dial.user_timeout = self.detection.user_timeout.into_option();
        if matches!(dial.address, Address::Unix(..) | Address::Abstract(_)) && self.tls.is_on() {
            let address = &dial.address;
            let line = format!("--tls is for TCP, and {address} is a Unix socket");
            return Err(Failure::usage(line));
        }
        self.tls.mean(&mut dial)?;
        Ok(dial)
    }

    /// The family that `-4`, `-6` and `-s` leave, which `address` must be able to have.
    fn family(&self, address: &Address) -> Result<Family, Failure> {
        let asked = match (self.ipv4, self.ipv6) {
            (true, _) => Some(("-4", false)),
            (_, true) => Some(("-6", true)),
            (false, false) => None,
        };
        let source = self
            .source
            .map(|source| (format!("-s {source}"), source.is_ipv6()));
        let said = match (asked, source) {
            (Some((flag, v6)), Some((source, other))) if v6 != other => {
                return Err(Failure::usage(format!(
                    "{flag} and {source} contradict each other"
                )));
            }
            (_, Some(source)) => Some(source),
            (Some((flag, v6)), None) => Some((flag.to_owned(), v6)),
            (None, None) => None,
        };
        let Some((said, v6)) = said else {
            return Ok(Family::Any);
        };
        match address {
            Address::Unix(..) | Address::Abstract(_) => Err(Failure::usage(format!(
                "{said} is for TCP, and {address} is a Unix socket"
            ))),
            _ if literal_is_v6(address).is_some_and(|literal| literal != v6) => {
                Err(Failure::usage(format!("{said} does not go with {address}")))
            }
            _ if v6 => Ok(Family::V6),
            _ => Ok(Family::V4),
        }
    }
}

/// Whether the address is IPv6, if it is one and not a name.
fn literal_is_v6(address: &Address) -> Option<bool> {
    match address {
        Address::Loopback(_) => Some(false),
        Address::Host(host, _) => host
            .contains(':')
            .then_some(true)
            .or_else(|| host.parse::<IpAddr>().ok().map(|ip| ip.is_ipv6())),
        _ => None,
    }
}

/// Whether that is an IPv6 address, with its zone or without.
fn is_v6(host: &str) -> bool {
    let (literal, _) = host.split_once('%').unwrap_or((host, ""));
    literal.parse::<Ipv6Addr>().is_ok()
}

/// Said of an address to connect to.
pub(super) const OWNED: &str = "mode, owner and group are for listening";

/// Where to connect to, from one word or from host and port. The library refuses what is for listening only.
fn address(host: &str, port: Option<&str>) -> Result<Address, Failure> {
    let typed = match port {
        Some(port) if is_v6(host) => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let has_port = port.is_some() && host.contains(':') && !typed.starts_with('[');
    let forms = "expected HOST:PORT, HOST PORT, PORT, [IPV6]:PORT, unix:PATH or unix:@NAME";
    let why = match typed.parse::<Address>() {
        Ok(address) if address.is_owned() => OWNED.to_owned(),
        Ok(address) if !has_port => return Ok(address),
        // The library names the forms for listening, too.
        Err(why) if !has_port && !why.lists_forms() => why.to_string(),
        _ => forms.to_owned(),
    };
    Err(Failure::usage(format!(
        "cannot connect to {typed:?}: {why}"
    )))
}

/// `LEAST:MOST`, two durations.
pub(crate) fn backoff(text: &str) -> Result<Backoff, String> {
    let Some((least, most)) = text.split_once(':') else {
        return Err("expected LEAST:MOST, such as 500ms:30s".to_owned());
    };
    let positive = |text: &str| {
        if text == "off" || text.chars().all(|c| c == '0') && !text.is_empty() {
            Err("some wait must be left, such as 1ms".to_owned())
        } else {
            duration(text)
        }
    };
    let backoff = Backoff {
        least: positive(least)?,
        most: positive(most)?,
    };
    if backoff.least > backoff.most {
        return Err(format!("{least} is longer than {most}"));
    }
    Ok(backoff)
}

#[cfg(test)]
mod tests {
    use standfast::Keepalive;

    use super::*;
    use crate::args::typed;

    fn meant(line: &str) -> Result<Dial, Failure> {
        typed::<DialArgs>(line).unwrap().meant()
    }

    #[test]
    fn every_form_of_address_is_read() {
        for (typed, shown) in [
            ("7000", "127.0.0.1:7000"),
            ("localhost:80", "localhost:80"),
            ("localhost 80", "localhost:80"),
            ("10.0.0.1 80", "10.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[::1] 80", "[::1]:80"),
            ("::1 80", "[::1]:80"),
            ("fe80::1%lo 80", "[fe80::1%lo]:80"),
            ("-U /x", "unix:/x"),
            ("-U @x", "unix:@x"),
            ("-n ::1 80", "[::1]:80"),
            ("-n 127.0.0.1:80", "127.0.0.1:80"),
            ("-n 80", "127.0.0.1:80"),
            ("unix:/x", "unix:/x"),
            ("unix:@x", "unix:@x"),
        ] {
            assert_eq!(meant(typed).unwrap().address.to_string(), shown, "{typed}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_hint() {
        for (typed, hint) in [
            ("localhost", "expected HOST:PORT, HOST PORT"),
            ("localhost http", "\"http\" is not a port"),
            ("localhost:80 90", "expected HOST:PORT, HOST PORT"),
            ("unix:/x 90", "expected HOST:PORT, HOST PORT"),
            ("fd:3 7", "expected HOST:PORT, HOST PORT"),
            ("::1:80", "in brackets"),
            ("-n localhost 80", "\"localhost\" is one"),
        ] {
            let refused = meant(typed).unwrap_err();
            assert!(refused.line.contains(hint), "{typed}: {refused}");
            assert_eq!(refused.code, 2, "{typed}");
        }
    }

    #[test]
    fn a_source_decides_the_family() {
        let family = |line| meant(line).unwrap().family;
        assert!(matches!(family("localhost:1"), Family::Any));
        assert!(matches!(family("localhost:1 -4"), Family::V4));
        assert!(matches!(family("localhost:1 -6"), Family::V6));
        assert!(matches!(family("localhost:1 -s 127.0.0.2"), Family::V4));
        assert!(matches!(family("localhost:1 -s ::1 -6"), Family::V6));
        assert!(matches!(family("[fe80::1%lo]:1 -s ::1"), Family::V6));
        let dial = meant("1 -s 127.0.0.2").unwrap();
        assert_eq!(dial.sources, ["127.0.0.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "localhost:1 -4 -s ::1",
            "localhost:1 -6 -s 127.0.0.1",
            "127.0.0.1:1 -6",
            "1 -6",
            "1 -s ::1",
            "[::1]:1 -4",
            "[::1]:1 -s 127.0.0.1",
            "[fe80::1%lo]:1 -4",
            "unix:/x -4",
            "unix:/x -s 127.0.0.1",
            "1 --dead-after 4s",
        ] {
            assert_eq!(meant(line).unwrap_err().code, 2, "{line}");
        }
        assert!(typed::<DialArgs>("1 -4 -6").is_err());
    }

    #[test]
    fn a_bound_alone_derives_keepalive() {
        let dial = meant("1 --dead-after 10s").unwrap();
        assert_eq!(dial.keepalive, Some(Keepalive::new(4, 1, 4)));
        assert_eq!(meant("1 --keepalive off").unwrap().keepalive, None);
        assert_eq!(meant("1").unwrap().keepalive, Some(Keepalive::default()));
    }

    #[test]
    fn backoff_is_two_durations_in_order() {
        let read = backoff("1s:1m").unwrap();
        assert_eq!(read.least, Duration::from_secs(1));
        assert_eq!(read.most, Duration::from_secs(60));
        for wrong in ["1s", "0:1s", "2s:1s", "1s:off", ":", "off", "1s:1m:1h"] {
            assert!(backoff(wrong).is_err(), "{wrong}");
        }
    }
}
