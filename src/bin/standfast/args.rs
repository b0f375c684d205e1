//! The command line as typed. What it means is for `serve.rs` and `check.rs` to say.
#![expect(
    clippy::doc_markdown,
    rustdoc::broken_intra_doc_links,
    reason = "these comments are the text of --help"
)]

mod connect;
#[cfg(control)]
pub(crate) mod control;
mod detection;
mod dial;
pub(crate) mod dial_tls;
mod exec;
mod forward;
mod guard;
mod hub;
mod load;
#[cfg(feature = "nats")]
pub(crate) mod nats;
pub(crate) mod netcat;
mod process;
mod service;
mod tls;
#[cfg(top)]
pub(crate) mod top;
pub(crate) mod upstream_tls;

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use standfast::Address;

use crate::Failure;
pub(crate) use crate::args::connect::{BufferPolicy, ConnectArgs, OnReadTimeout, Reconnect};
#[cfg(control)]
use crate::args::control::Order;
use crate::args::detection::DetectionArgs;
use crate::args::guard::GuardArgs;
pub(crate) use crate::args::load::LoadArgs;
use crate::args::netcat::NetcatArgs;
pub(crate) use crate::args::process::ProcessArgs;
use crate::args::service::ServiceArgs;
pub(crate) use crate::args::service::ServiceName;
use crate::args::tls::TlsArgs;
#[cfg(top)]
use crate::args::top::TopArgs;
use crate::units::{Setting, duration_or_off, size};

/// What `line` comes to, of these arguments alone.
#[cfg(test)]
pub(crate) fn typed<A: clap::Args>(line: &str) -> Result<A, clap::Error> {
    let words = std::iter::once("x").chain(line.split_whitespace());
    let command = A::augment_args(clap::Command::new("x"));
    A::from_arg_matches(&command.try_get_matches_from(words)?)
}

/// A TCP listening server that holds on to its clients and lets go of the dead ones.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Listen and serve. Prints `listening on ADDRESS` on stdout once it accepts; logs on stderr.
    Serve(ServeArgs),
    /// Print what the given serve flags really do on this host, and exit.
    Check(ServeArgs),
    /// Connect stdin and stdout to a server, and reconnect when the connection is lost.
    Connect(ConnectArgs),
    /// Send messages to an echo server on many connections, and see what comes back: a restart shows in the figures.
    Load(LoadArgs),
    /// Ask a running server.
    #[cfg(control)]
    #[command(flatten)]
    Control(Order),
    /// Watch a running server in this terminal: rates, listeners, why connections end, and each connection. Ends by q.
    #[cfg(top)]
    Top(TopArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
    Logfmt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Full {
    /// Accept and close, with reason limit.
    Close,
    /// Leave in the backlog until there is room.
    Wait,
}

/// Durations: a plain number is seconds; suffixes ms s m h d; off disables. Sizes take k m g.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Durations: a plain number is seconds; suffixes ms s m h d; off disables. Sizes take k m g.

Signals: the first SIGTERM, SIGINT or SIGHUP drains (after --drain-delay stops accepting, serves what has come, delivers what
waits, closes), and so do SIGPWR and SIGRTMIN+3; a second one, half a second later or more, ends at once. Under
nohup a SIGHUP is ignored; with --config it does not drain, but reloads. SIGUSR2 restarts, as the command restart
does; SIGUSR1 opens --log-file anew.
Exit codes: 0 done, 1 failed or had to cut connections off, 2 asked wrongly.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,

    /// Where to listen, repeatable: PORT (this host only), :PORT (every address, IPv4 and IPv6), HOST:PORT,
    /// [::1]:PORT, unix:PATH[,mode=660][,owner=USER][,group=GROUP], unix:@NAME (abstract), fd:N (inherited), systemd[:NAME]. Port 0 takes a free one.
    /// [default: 127.0.0.1:7000]
    #[arg(short, long = "listen", alias = "address", value_name = "ADDR")]
    listen: Vec<Address>,

    #[command(flatten)]
    netcat: NetcatArgs,

    #[command(flatten)]
    pub(crate) detection: DetectionArgs,

    #[command(flatten)]
    pub(crate) guard: GuardArgs,

    #[command(flatten)]
    pub(crate) tls: TlsArgs,

    /// The read deadline: a client silent for this long is closed. [default: echo and discard 10m,
    /// the others off: who is silent is not gone, and those that are, are found by --dead-after]
    #[arg(short = 'i', long, alias = "idle-timeout", value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, help_heading = "Deadlines")]
    pub(crate) read_timeout: Option<Setting<Duration>>,

    /// Write stall: a client that acknowledges nothing for this long, while output waits, is reset. [default: 5m, or as
    /// long as one needs that reads 50 bytes a second]
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, help_heading = "Deadlines")]
    pub(crate) write_timeout: Option<Setting<Duration>>,

    /// A half-closed connection on which nothing moves for this long, with no output waiting, is reset. [default: forward and exec 10m, the
    /// others 60s]
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, help_heading = "Deadlines")]
    pub(crate) half_close_timeout: Option<Setting<Duration>>,

    /// The longest that a client may be connected: then what has come is served, the output delivered, and it is closed.
    /// Each up to a tenth sooner, so that they do not all come back at once. exec: the program is ended first.
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, default_value = "off", help_heading = "Deadlines")]
    pub(crate) max_age: Setting<Duration>,

    /// Most connections at a time. [default: from the descriptor limit]
    #[arg(short, long, value_name = "N", value_parser = count, allow_hyphen_values = true, help_heading = "Limits")]
    pub(crate) max_conns: Option<NonZeroUsize>,

    /// Most connections at a time from one address, or off.
    #[arg(long, value_name = "N", value_parser = count_or_off, allow_hyphen_values = true, default_value = "off", help_heading = "Limits")]
    pub(crate) max_conns_per_ip: Setting<NonZeroUsize>,

    /// What happens to a connection over max-conns.
    #[arg(long, value_enum, default_value = "close", help_heading = "Limits")]
    pub(crate) when_full: Full,

    /// Clients may come over several paths (MPTCP): one that changes networks keeps its connection. Who comes over TCP is
    /// served as ever; where the kernel has no MPTCP, all are. Not for exec.
    #[arg(long, help_heading = "Limits")]
    pub(crate) mptcp: bool,

    /// Connections that may wait to be accepted.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_hyphen_values = true, default_value = "4096", help_heading = "Limits")]
    pub(crate) backlog: u32,

    /// High-water mark of one connection's waiting output: above it the client is not read from.
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true, default_value = "256k", help_heading = "Limits")]
    pub(crate) buffer: usize,

    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

impl ServeArgs {
    /// Where to listen.
    ///
    /// # Errors
    /// What contradicts `-4` or `-6`, or has no such address.
    pub(crate) fn addresses(&self) -> Result<Vec<Address>, Failure> {
        let mut addresses = self.listen.clone();
        addresses.extend(self.netcat.addresses());
        if addresses.is_empty() {
            addresses.push(Address::Loopback(7000));
        }
        self.netcat.of_family(addresses)
    }

    /// Whether it was said where.
    pub(crate) fn says_where(&self) -> bool {
        !self.listen.is_empty() || self.netcat.addresses().next().is_some()
    }
}

fn count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "expected a whole number, at least 1".to_owned())
}

fn count_or_off(text: &str) -> Result<Setting<NonZeroUsize>, String> {
    match text {
        "off" => Ok(Setting::Off),
        "0" => Err("0 would let nobody in; for no limit say off".to_owned()),
        _ => text
            .parse()
            .map(Setting::On)
            .map_err(|_| "expected a whole number, or off".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
