//! Who comes in, as typed and as meant.

use std::path::{Path, PathBuf};
use std::time::Duration;

use standfast::{AcceptProxy, AcceptRate, IpPrefix, Network, ParseError};

use crate::Failure;
use crate::text_file;
use crate::units::{Setting, duration};

/// More than that is no list of ranges.
const FILE_MOST: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct GuardArgs {
    /// Who is let in, repeatable: an address, a range such as 10.0.0.0/8, or @FILE with one of them a line (# begins a
    /// comment). The longest range that has an address decides, and --deny where both have it. [default: everybody]
    #[arg(long, value_name = "CIDR", value_parser = ranges, help_heading = "Who comes in")]
    allow: Vec<Ranges>,

    /// Who is not, likewise: ended at once, with reason denied. A restart reads files anew; who is connected stays.
    /// [default: nobody]
    #[arg(long, value_name = "CIDR", value_parser = ranges, help_heading = "Who comes in")]
    deny: Vec<Ranges>,

    /// What counts as one address for --max-conns-per-ip: leading bits of IPv4 and of IPv6, where a user has a /64.
    #[arg(long, value_name = "BITS:BITS", value_parser = ip_prefix, default_value = "32:64", help_heading = "Who comes in")]
    pub(crate) ip_prefix: IpPrefix,

    /// How many connections a listener lets in a second, and how many at once after a pause [BURST: N]. The others wait in
    /// the backlog. [default: off]
    #[arg(long, value_name = "N/s[:BURST]", value_parser = rate_or_off, default_value = "off", hide_default_value = true, help_heading = "Who comes in")]
    pub(crate) accept_rate: Setting<AcceptRate>,

    /// The same for one address. Who comes too soon after others of it is accepted, and served when it is its turn.
    /// [default: off]
    #[arg(long, value_name = "N/s[:BURST]", value_parser = rate_or_off, default_value = "off", hide_default_value = true, help_heading = "Who comes in")]
    pub(crate) accept_rate_per_ip: Setting<AcceptRate>,

    /// Clients come through proxies that say who they are, by the PROXY protocol, version 1 or 2. Who says nothing ends with
    /// reason bad-proxy-header.
    #[arg(long, help_heading = "Who comes in")]
    accept_proxy: bool,

    /// Who may say so, repeatable, as --allow: whoever else comes ends with reason bad-proxy-header. Implies
    /// --accept-proxy. [default: everybody]
    #[arg(long, value_name = "CIDR", value_parser = ranges, help_heading = "Who comes in")]
    accept_proxy_from: Vec<Ranges>,

    /// How long that may take, at least 3s.
    #[arg(long, value_name = "DUR", value_parser = duration, default_value = "5s", help_heading = "Who comes in")]
    proxy_timeout: Duration,
}

impl GuardArgs {
    /// The ranges that are let in.
    ///
    /// # Errors
    /// A file that cannot be read, or with what is no range in it; a list of none.
    pub(crate) fn allowed(&self) -> Result<Vec<Network>, Failure> {
        all_of_some(&self.allow, "--allow")
    }

    /// The proxies that say who their clients are.
    ///
    /// # Errors
    /// A file that cannot be read, or with what is no range in it; a list of none.
    pub(crate) fn proxies(&self) -> Result<Option<AcceptProxy>, Failure> {
        let from = all_of_some(&self.accept_proxy_from, "--accept-proxy-from")?;
        let mut proxies = AcceptProxy::default();
        proxies.timeout = self.proxy_timeout;
        proxies.from = from;
        let accepts = self.accept_proxy || !self.accept_proxy_from.is_empty();
        Ok(accepts.then_some(proxies))
    }

    /// The ranges that are kept out.
    ///
    /// # Errors
    /// A file that cannot be read, or with what is no range in it.
    pub(crate) fn denied(&self) -> Result<Vec<Network>, Failure> {
        all(&self.deny, "--deny")
    }
}

/// A range, or a file of them.
#[derive(Clone, Debug)]
enum Ranges {
    One(Network),
    Of(PathBuf),
}

fn ranges(text: &str) -> Result<Ranges, String> {
    match text.strip_prefix('@') {
        Some("") => Err("expected the name of a file after the @".to_owned()),
        Some(path) => Ok(Ranges::Of(path.into())),
        None => text
            .parse()
            .map(Ranges::One)
            .map_err(|error: ParseError| error.to_string()),
    }
}

fn ip_prefix(text: &str) -> Result<IpPrefix, String> {
    text.parse().map_err(|error: ParseError| error.to_string())
}

pub(super) fn rate_or_off(text: &str) -> Result<Setting<AcceptRate>, String> {
    if text == "off" {
        return Ok(Setting::Off);
    }
    let rate = text.parse().map(Setting::On);
    rate.map_err(|error: ParseError| error.to_string())
}

/// As [`all`], where none at all would be taken for everybody.
fn all_of_some(ranges: &[Ranges], flag: &str) -> Result<Vec<Network>, Failure> {
    let networks = all(ranges, flag)?;
    if networks.is_empty() && !ranges.is_empty() {
        return Err(Failure::usage(format!(
            "{flag} has no range in it: nobody could come in"
        )));
    }
    Ok(networks)
}

fn all(ranges: &[Ranges], flag: &str) -> Result<Vec<Network>, Failure> {
    let mut networks = Vec::new();
    for one in ranges {
        match one {
            Ranges::One(network) => networks.push(*network),
            Ranges::Of(path) => networks.extend(listed(path, flag)?),
        }
    }
    Ok(networks)
}

/// The ranges in a file, one a line.
fn listed(path: &Path, flag: &str) -> Result<Vec<Network>, Failure> {
    let shown = path.display();
    let text = text_file::read(path, FILE_MOST)
        .map_err(|error| Failure::usage(format!("cannot read {shown} for {flag}: {error}")))?;
    let mut networks = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let range = line.split('#').next().unwrap_or_default().trim();
        if range.is_empty() {
            continue;
        }
        let network = range.parse().map_err(|error: ParseError| {
            Failure::usage(format!("{shown}:{}: {error}, for {flag}", at + 1))
        })?;
        networks.push(network);
    }
    Ok(networks)
}
