//! What `serve forward` is told, as typed and as meant.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::time::Duration;

use clap::ValueEnum;
use standfast::Address;
use standfast::dial::Backoff;
use standfast::services::forward::{Balance, ForwardOptions, ProxyHeader};

use crate::Failure;
use crate::args::dial::{OWNED, backoff};
use crate::args::upstream_tls::UpstreamTlsArgs;
use crate::units::{Setting, Shown, duration, duration_or_off};

/// Which upstream is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BalanceName {
    /// The first; the others are there for when it fails.
    InOrder,
    /// Each client begins with the one after that of the client before.
    RoundRobin,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ForwardArgs {
    /// How long one attempt to reach one upstream may take, finding its addresses included. [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, help_heading = "Forward")]
    pub(crate) connect_timeout: Option<Setting<Duration>>,

    /// How long a client waits while no upstream can be reached; off tries each once. [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, help_heading = "Forward")]
    pub(crate) upstream_wait: Option<Setting<Duration>>,

    /// How long to wait before all upstreams are tried again: anything from nothing to LEAST at first, which doubles up
    /// to MOST. [default: 100ms:1s]
    #[arg(long, value_name = "LEAST:MOST", value_parser = backoff, allow_hyphen_values = true, help_heading = "Forward")]
    pub(crate) backoff: Option<Backoff>,

    /// Which upstream is tried first. [default: in-order]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Forward")]
    pub(crate) balance: Option<BalanceName>,

    /// After so many attempts within --fail-timeout that all failed an upstream counts as down: it is tried last, but
    /// for one client now and then. off: each client tries it anew. [default: 1]
    #[arg(long, value_name = "N", value_parser = fails_or_off, allow_hyphen_values = true, help_heading = "Forward")]
    pub(crate) max_fails: Option<Setting<NonZeroU32>>,

    /// For how long failures count, and for how long an upstream that is down is left alone. [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = duration, allow_hyphen_values = true, help_heading = "Forward")]
    pub(crate) fail_timeout: Option<Duration>,

    /// Begin each connection to an upstream with a PROXY protocol header, which says who the client is: v1 (text) or v2
    /// (binary). Only for upstreams that expect it.
    #[arg(long, value_name = "VERSION", help_heading = "Forward")]
    pub(crate) send_proxy: Option<ProxyHeader>,

    #[command(flatten)]
    pub(crate) tls: UpstreamTlsArgs,
}

impl ForwardArgs {
    /// Which flags were given.
    pub(crate) fn given(&self) -> impl Iterator<Item = (bool, &'static str)> {
        let own = [
            (self.connect_timeout.is_some(), "--connect-timeout"),
            (self.upstream_wait.is_some(), "--upstream-wait"),
            (self.backoff.is_some(), "--backoff"),
            (self.balance.is_some(), "--balance"),
            (self.max_fails.is_some(), "--max-fails"),
            (self.fail_timeout.is_some(), "--fail-timeout"),
            (self.send_proxy.is_some(), "--send-proxy"),
        ];
        own.into_iter().chain(self.tls.given())
    }

    /// Whom to forward to and how, from the operands. The library refuses what nobody can
    /// be reached at.
    ///
    /// # Errors
    /// What is no address.
    pub(crate) fn upstreams(&self, operands: &[OsString]) -> Result<ForwardOptions, Failure> {
        let addresses: Result<Vec<_>, _> = operands.iter().map(|word| address(word)).collect();
        let mut upstreams = ForwardOptions::new(addresses?);
        if let Some(wait) = self.upstream_wait {
            upstreams.wait = wait.into_option();
            // No attempt is longer than what a client waits for all.
            let usual = upstreams.connect_timeout;
            upstreams.connect_timeout = usual.min(upstreams.wait).or(usual);
        }
        if let Some(timeout) = self.connect_timeout {
            upstreams.connect_timeout = timeout.into_option();
            if let (Some(Setting::On(wait)), Some(timeout)) =
                (self.upstream_wait, upstreams.connect_timeout)
                && wait < timeout
            {
                return Err(Failure::usage(format!(
                    "--connect-timeout {} is longer than --upstream-wait {}: one attempt would take longer than a client \
                     waits for all",
                    Shown(timeout),
                    Shown(wait)
                )));
            }
        }
        if let Some(backoff) = self.backoff {
            upstreams.backoff = backoff;
        }
        if let Some(balance) = self.balance {
            upstreams.balance = match balance {
                BalanceName::InOrder => Balance::InOrder,
                BalanceName::RoundRobin => Balance::RoundRobin,
            };
        }
        if let Some(most) = self.max_fails {
            upstreams.fails.max = most.into_option();
        }
        if let Some(timeout) = self.fail_timeout {
            upstreams.fails.timeout = timeout;
        }
        upstreams.send_proxy = self.send_proxy;
        upstreams.tls = self.tls.meant()?;
        Ok(upstreams)
    }
}

fn fails_or_off(text: &str) -> Result<Setting<NonZeroU32>, String> {
    match text {
        "off" => Ok(Setting::Off),
        "0" => Err("0 would count nothing; for that say off".to_owned()),
        _ => text
            .parse()
            .map(Setting::On)
            .map_err(|_| "expected a whole number, or off".to_owned()),
    }
}

/// One upstream.
fn address(typed: &OsStr) -> Result<Address, Failure> {
    let forms = "expected HOST:PORT, PORT, [IPV6]:PORT, unix:PATH or unix:@NAME";
    let why = match typed.to_str().map(str::parse::<Address>) {
        Some(Ok(Address::Any(port))) => {
            format!(
                "it names no server; to listen there: -l :{port}; to relay to this host: {port}"
            )
        }
        Some(Ok(address)) if address.is_owned() => OWNED.to_owned(),
        Some(Ok(address)) => return Ok(address),
        // The library names the forms for listening, too.
        Some(Err(why)) if !why.lists_forms() => why.to_string(),
        _ => forms.to_owned(),
    };
    Err(Failure::usage(format!(
        "cannot forward to {typed:?}: {why}"
    )))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        operands: Vec<OsString>,
        #[command(flatten)]
        forward: ForwardArgs,
    }

    fn meant(line: &str) -> Result<ForwardOptions, Failure> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).unwrap();
        line.forward.upstreams(&line.operands)
    }

    #[test]
    fn every_form_of_upstream_is_read_in_order() {
        let upstreams = meant("80 localhost:81 [::1]:82 unix:/x unix:@x").unwrap();
        let shown: Vec<_> = upstreams.addresses.iter().map(Address::to_string).collect();
        assert_eq!(
            shown,
            [
                "127.0.0.1:80",
                "localhost:81",
                "[::1]:82",
                "unix:/x",
                "unix:@x"
            ]
        );
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_hint() {
        for (typed, hint) in [
            ("localhost", "expected HOST:PORT, PORT,"),
            ("localhost:http", "\"http\" is not a port"),
            ("::1:80", "in brackets"),
            (":80", "to listen there: -l :80"),
            ("*:80", "to listen there: -l :80"),
        ] {
            let refused = meant(typed).unwrap_err();
            assert!(refused.line.contains(hint), "{typed}: {refused}");
            assert_eq!(refused.code, 2, "{typed}");
        }
    }

    #[test]
    fn flags_change_what_they_name() {
        let upstreams = meant(
            "80 --connect-timeout 3s --upstream-wait off --backoff 1s:1m --balance round-robin --send-proxy v2 \
             --max-fails 3 --fail-timeout 1m",
        )
        .unwrap();
        assert_eq!(upstreams.connect_timeout, Some(Duration::from_secs(3)));
        assert_eq!(upstreams.wait, None);
        assert_eq!(upstreams.backoff.most, Duration::from_secs(60));
        assert_eq!(upstreams.balance, Balance::RoundRobin);
        assert_eq!(upstreams.send_proxy, Some(ProxyHeader::V2));
        assert_eq!(upstreams.fails.max, NonZeroU32::new(3));
        assert_eq!(upstreams.fails.timeout, Duration::from_secs(60));

        let plain = meant("80").unwrap();
        assert_eq!(plain.connect_timeout, Some(Duration::from_secs(10)));
        assert_eq!(plain.wait, Some(Duration::from_secs(10)));
        assert_eq!(plain.balance, Balance::InOrder);
        assert_eq!(plain.send_proxy, None);
        assert_eq!(plain.fails.max, NonZeroU32::new(1));
        assert_eq!(plain.fails.timeout, Duration::from_secs(10));
        let off = meant("80 --max-fails off").unwrap();
        assert_eq!(off.fails.max, None);
    }
}
