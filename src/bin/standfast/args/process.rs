//! What belongs to the process, whatever its listeners do, as typed. A configuration file has it at its top alone.
#![expect(clippy::doc_markdown, reason = "these comments are the text of --help")]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction;
use standfast::AcceptRate;
#[cfg(metrics)]
use standfast::Address;

#[cfg(control)]
use crate::args::control::{ControlPath, control_path};
use crate::args::guard::rate_or_off;
use crate::args::{LogFormat, count};
use crate::units::{Setting, duration_or_off, size};

#[derive(Debug, clap::Args)]
pub(crate) struct ProcessArgs {
    /// How long a client has to go in a drain; who is not done then is cut off. It counts from when the client is asked
    /// to, so a drain takes the delay, the spread and this at the most.
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, default_value = "10s", help_heading = "Deadlines")]
    pub(crate) drain_timeout: Setting<Duration>,

    /// How long to go on accepting when told to drain, already not ready (status, /readyz), until those who send clients
    /// here have noticed.
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, default_value = "off", help_heading = "Deadlines")]
    pub(crate) drain_delay: Setting<Duration>,

    /// Ask clients to go in a drain one after another over this time, and not all at once: they do not come back all at
    /// once elsewhere.
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, default_value = "off", help_heading = "Deadlines")]
    pub(crate) drain_spread: Setting<Duration>,

    /// The bound for all bytes that wait in this process. Near it the high-water mark of each connection falls; beyond it
    /// nobody is read until there is room. [default: a quarter of what the machine or the cgroup has, at most 1g]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true, help_heading = "Limits")]
    pub(crate) memory: Option<usize>,

    /// Threads that serve. [default: the cores]
    #[arg(long, value_name = "N", value_parser = count, allow_hyphen_values = true, help_heading = "Limits")]
    pub(crate) workers: Option<NonZeroUsize>,

    /// Whom to run as once the addresses are listened on, a name or a number: with the user's first group and all others it
    /// is in, and without a capability. Only root can. The control socket, and a path that is listened on, are that user's.
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// The group instead of the user's first one; without --user the one group that is left.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,

    /// Settings from a TOML file: the long flags without their dashes, and any number of [[listen]] tables, each with its
    /// own service and limits. A flag goes before a variable STANDFAST_..., that before the file. SIGHUP and the command
    /// reload have it read anew, by a process that takes over.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Take over from the server that runs at the same control path: its listeners and its live connections. This one
    /// must listen on at least the same addresses, with the same service, but by --config, which has the last word. Start
    /// afresh if there is none.
    #[cfg(control)]
    #[arg(long)]
    pub(crate) replace: bool,

    /// Restart when the file of this program has changed, as `cargo build` changes it, and the new one answers --version:
    /// it takes over, clients stay connected. One that does not run changes nothing. This process stays in front.
    #[cfg(control)]
    #[arg(long)]
    pub(crate) watch: bool,

    /// Have a small process stay in front that serves nobody: it keeps the addresses open, so that clients queue while no
    /// server runs, and starts another server when one crashes. Its process id stays the same over restarts. Connections of
    /// echo and discard outlive a crash, too; those of other services end with the server.
    #[cfg(control)]
    #[arg(long)]
    pub(crate) keep: bool,

    /// The same, and when that process is killed the server drains, where it would go on by itself.
    #[cfg(control)]
    #[arg(long)]
    pub(crate) keep_or_end: bool,

    /// The control socket, for status, list, kill, drain, stop and restart, or off. [default: standfast/ADDRESS-PORT.sock in
    /// XDG_RUNTIME_DIR, else /run/user/UID, else /tmp/standfast-UID]
    #[cfg(control)]
    #[arg(long, value_name = "PATH", value_parser = control_path)]
    pub(crate) control: Option<ControlPath>,

    /// Tell of the server over HTTP at this address, PORT, :PORT or HOST:PORT: /metrics, /healthz, /readyz,
    /// /status.json, and / to look at. A process that takes over goes on there.
    #[cfg(metrics)]
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<Address>,

    /// A name by which clients may ask for it, repeatable: by an address and by localhost they may anyway.
    #[cfg(metrics)]
    #[arg(long, value_name = "NAME", requires = "metrics")]
    pub(crate) metrics_host: Vec<String>,

    /// How log lines look.
    #[arg(long, value_enum, default_value = "text", help_heading = "Log")]
    pub(crate) log_format: LogFormat,

    /// Log to this file, and not to stderr. SIGUSR1 has it opened anew, as logrotate wants it; a takeover, too. What it
    /// does not take, as on a full disk, is dropped and counted.
    #[arg(long, value_name = "PATH", help_heading = "Log")]
    pub(crate) log_file: Option<PathBuf>,

    /// Log so many ends of connections a second, of each reason, and so many at once after a pause [BURST: N]. The log
    /// says how many were left out, at most once a second; they count as ever. [default: off, every one is logged]
    #[arg(long, value_name = "N/s[:BURST]", value_parser = rate_or_off, allow_hyphen_values = true, default_value = "off", hide_default_value = true, help_heading = "Log")]
    pub(crate) log_rate: Setting<AcceptRate>,

    /// Log more: debug; twice: trace. RUST_LOG is honoured.
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet", help_heading = "Log")]
    pub(crate) verbose: u8,

    /// Log only warnings and errors.
    #[arg(short, long, help_heading = "Log")]
    pub(crate) quiet: bool,
}
