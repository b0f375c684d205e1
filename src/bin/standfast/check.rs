//! `standfast check`: what the settings of `serve` really do, in words.

pub(crate) mod tls;
mod warnings;

use std::fmt::Display;
use std::net::IpAddr;
use std::process::ExitCode;

use standfast::memory::MemorySource;
use standfast::services::forward::{Balance, ForwardOptions};
use standfast::{Config, Effective, Listen, Network};

use crate::Failure;
use crate::args::{Full, ServeArgs, ServiceName};
use crate::logger;
use crate::serve;
use crate::service;
use crate::settings::{ListenerSettings, Settings, Sources};
use crate::stdout;
use crate::units::{Bytes, Setting, Shown, shown_or};

/// Prints the effective settings on stdout, where each came from, and what is doubtful about them.
pub(crate) fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    let log = logger::start(&logger::Settings {
        // No file is made for a question.
        file: None,
        ..serve::log(&settings.whole.args.process)
    })?;
    let descriptors = standfast::process::raise_descriptor_limit();
    let (config, effective) = serve::meant(settings)?;
    let mut table = Table::default();
    let each = settings
        .listeners
        .iter()
        .zip(&config.listen)
        .zip(&effective);
    for ((one, listen), effective) in each {
        if let Some(doubt) = service::doubt(&one.args) {
            logger::say(&doubt);
        }
        table.head(
            one.sources
                .table()
                .map(|origin| format!("[[listen]] {origin}")),
        );
        listener(one, listen, effective, &mut table)?;
        table.rest(&one.sources, &settings.whole.sources);
    }
    let first = settings.listeners.first();
    let table_of_file = first.and_then(|first| first.sources.table());
    table.head(table_of_file.map(|_| "the server".to_owned()));
    server(
        &settings.whole,
        &config,
        &effective,
        descriptors,
        &mut table,
    );
    table.rest(&settings.whole.sources, &Sources::default());
    let expires = config
        .listen
        .iter()
        .filter_map(|listen| listen.tls.as_ref());
    let expires = expires.flat_map(tls::doubts);
    let upstream = settings.listeners.iter();
    let upstream = upstream.map(|one| tls::upstream_doubts(&one.args.service.forward.tls));
    let upstream = upstream.collect::<Result<Vec<_>, _>>()?;
    for warning in warnings::of(settings, &effective)
        .into_iter()
        .chain(expires)
        .chain(upstream.into_iter().flatten())
    {
        table.line(&format!("warning: {warning}"));
    }
    drop(log);
    stdout::show(&table.text)?;
    Ok(ExitCode::SUCCESS)
}

/// What is printed.
#[derive(Debug, Default)]
struct Table {
    text: String,
    /// What a section has a row for.
    shown: Vec<String>,
}

impl Table {
    fn head(&mut self, head: Option<String>) {
        let Some(head) = head else { return };
        self.shown.clear();
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(&head);
    }

    fn row(&mut self, sources: &Sources, name: &str, value: &dyn Display, note: &str) {
        let value = value.to_string();
        let mut line = format!("{name:<20} {value:<16} {note}")
            .trim_end()
            .to_owned();
        if let Some(origin) = sources.shown(name.trim()) {
            line = format!("{line} ({origin})");
        }
        self.line(&line);
        self.shown.push(name.trim().to_owned());
    }

    /// What else was set, but for what `elsewhere` has.
    fn rest(&mut self, sources: &Sources, elsewhere: &Sources) {
        for (name, value) in sources.all() {
            if elsewhere.of(name).is_none() && !self.shown.iter().any(|shown| shown == name) {
                self.row(sources, name, &value, "");
            }
        }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }
}

/// What holds for the connections of one listener.
fn listener(
    settings: &ListenerSettings,
    listen: &Listen,
    effective: &Effective,
    table: &mut Table,
) -> Result<(), Failure> {
    let args = &settings.args;
    let mut row = |name: &str, value: &dyn Display, note: &str| {
        table.row(&settings.sources, name, value, note);
    };
    row("service", &args.service.service.as_str(), "");
    if let Some(upstreams) = service::upstreams(args)? {
        forward(&upstreams, &mut row);
        tls::upstream_rows(&upstreams, &args.service.forward.tls, &mut row);
    }
    for address in &args.addresses()? {
        row("listen", address, "");
    }
    for address in &effective.addresses {
        let note = if effective.absent.contains(address) {
            "refused: this host does not have it"
        } else {
            match address.tcp().map(|address| address.ip()) {
                Some(IpAddr::V6(ip)) if ip.is_unspecified() => {
                    "every address of this host, IPv4 and IPv6"
                }
                Some(IpAddr::V4(ip)) if ip.is_unspecified() => "every IPv4 address",
                _ => "",
            }
        };
        row("  resolved", address, note);
    }
    for address in &effective.absent {
        if !effective.addresses.contains(address) {
            row("  left out", address, "this host does not have it");
        }
    }
    match effective.keepalive {
        Some(keepalive) => {
            let seconds = |field: Option<std::num::NonZeroU32>| field.map_or(0, u32::from);
            let (idle, interval, retries) = (
                seconds(keepalive.idle),
                seconds(keepalive.interval),
                seconds(keepalive.retries),
            );
            row(
                "keepalive",
                &keepalive,
                &format!(
                    "first probe after {idle}s of silence, then every {interval}s; given up after {retries} unanswered"
                ),
            );
        }
        None => row(
            "keepalive",
            &"off",
            "a vanished peer that is idle is never found",
        ),
    }
    match effective.dead_after {
        Some(bound) => {
            row(
                "dead-after",
                &Shown(bound),
                "a vanished peer is found within this",
            );
            row("  idle", &"keepalive", "by the kernel: keepalive-dead");
            let asked = effective.rto_max.map_or_else(
                || "the kernel asks at its own pace, so it may be later".to_owned(),
                |longest| {
                    format!(
                        "the kernel asks at least every {} (TCP_RTO_MAX_MS)",
                        Shown(longest)
                    )
                },
            );
            row(
                "  output waiting",
                &Shown(bound / 20 * 19),
                &format!("of silence, asked and unanswered; {asked}"),
            );
        }
        None => row(
            "dead-after",
            &"off",
            "a vanished peer with output waiting is found by the write timeout only",
        ),
    }
    match args.detection.user_timeout {
        Setting::Off => row("user-timeout", &"off", ""),
        Setting::On(wait) => {
            row(
                "user-timeout",
                &Shown(wait),
                "TCP_USER_TIMEOUT: cuts living slow readers, and overrides the retries",
            );
        }
    }
    row(
        "read-timeout",
        &shown_or(effective.read_timeout, "off"),
        "of silence from the client: closed",
    );
    row(
        "write-timeout",
        &shown_or(effective.write_timeout, "off"),
        match effective.slowest_reader {
            Some(_) => {
                "without an acknowledgement while output waits: reset; longer where a slow reader needs it"
            }
            None => "without an acknowledgement while output waits: reset",
        },
    );
    if let Some(rate) = effective.slowest_reader {
        row(
            "  slowest reader",
            &format!("{rate} B/s"),
            "is never cut: it has up to 20 s for each KiB it had taken, at most 5.8 h",
        );
    }
    row(
        "half-close-timeout",
        &shown_or(effective.half_close_timeout, "off"),
        "half-closed, no output waiting and nothing moving: reset",
    );
    let age = "connected: served, delivered, closed; each up to a tenth sooner";
    match args.max_age {
        Setting::Off => row("max-age", &"off", ""),
        Setting::On(longest) => row("max-age", &Shown(longest), age),
    }
    let listed = |networks: &[Network]| match networks {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        many => format!("{} ranges", many.len()),
    };
    let otherwise = match (&*listen.allow, &*listen.deny) {
        ([], []) => "everybody is let in",
        ([], _) => "who is in none of them is let in",
        _ => "who is in none of them is denied",
    };
    row("allow", &listed(&listen.allow), otherwise);
    row("deny", &listed(&listen.deny), "");
    let full = match args.when_full {
        Full::Close => "over it: closed with reason limit",
        Full::Wait => "over it: left in the backlog",
    };
    row("max-conns", &effective.max_conns, full);
    match args.max_conns_per_ip {
        Setting::Off => row("max-conns-per-ip", &"off", ""),
        Setting::On(count) => row(
            "max-conns-per-ip",
            &count,
            "over it: closed with reason limit",
        ),
    }
    row(
        "ip-prefix",
        &args.guard.ip_prefix,
        "what counts as one address",
    );
    match args.guard.accept_rate {
        Setting::Off => row("accept-rate", &"off", ""),
        Setting::On(rate) => row("accept-rate", &rate, "over it: left in the backlog"),
    }
    match args.guard.accept_rate_per_ip {
        Setting::Off => row("accept-rate-per-ip", &"off", ""),
        Setting::On(rate) => row("accept-rate-per-ip", &rate, "over it: served in their turn"),
    }
    match &listen.accept_proxy {
        None => row("accept-proxy", &"off", ""),
        Some(proxies) => {
            row(
                "accept-proxy",
                &"on",
                "who does not say who the client is: reset",
            );
            let from = match &*proxies.from {
                [] => "everybody".to_owned(),
                from => listed(from),
            };
            row("accept-proxy-from", &from, "");
            row("proxy-timeout", &Shown(proxies.timeout), "for the header");
        }
    }
    tls::rows(listen.tls.as_ref(), &mut row);
    match (&effective.lacks_mptcp, args.mptcp) {
        (_, false) => row("mptcp", &"off", ""),
        (None, true) => row(
            "mptcp",
            &"on",
            "a client that changes networks keeps its connection",
        ),
        (Some(why), true) => row("mptcp", &"off", &format!("{why}: over TCP alone")),
    }
    let capped = if effective.backlog < args.backlog {
        "capped by net.core.somaxconn"
    } else {
        ""
    };
    row("backlog", &effective.backlog, capped);
    memory(args, effective, &mut row);
    Ok(())
}

/// How a drain goes.
fn drain(config: &Config, row: &mut impl FnMut(&str, &dyn Display, &str)) {
    row(
        "drain-delay",
        &shown_or(config.drain_delay, "off"),
        "from the first signal: not ready, still accepting",
    );
    row(
        "drain-spread",
        &shown_or(config.drain_spread, "off"),
        "then: clients are asked to go, evenly over this",
    );
    let before = config.drain_delay.unwrap_or_default() + config.drain_spread.unwrap_or_default();
    let over = config.drain_timeout.map_or_else(
        || "the drain lasts until the last is done".to_owned(),
        |timeout| format!("the drain is over within {}", Shown(before + timeout)),
    );
    row(
        "drain-timeout",
        &shown_or(config.drain_timeout, "off"),
        &format!("for each to be done, else cut off; {over}"),
    );
}

/// What holds for all of them.
fn server(
    settings: &ListenerSettings,
    config: &Config,
    effective: &[Effective],
    descriptors: Option<u64>,
    table: &mut Table,
) {
    let mut row = |name: &str, value: &dyn Display, note: &str| {
        table.row(&settings.sources, name, value, note);
    };
    drain(config, &mut row);
    let descriptors = descriptors.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    row("descriptors", &descriptors, "");
    let workers = config
        .workers
        .or_else(|| std::thread::available_parallelism().ok());
    row("workers", &workers.map_or(1, usize::from), "");
    // It is the same for all.
    let Some(first) = effective.first() else {
        return;
    };
    let of = match first.memory_of {
        Some((bytes, source)) => {
            let whose = match source {
                MemorySource::Cgroup => "this cgroup",
                MemorySource::AddressSpace => "this process (RLIMIT_AS)",
                _ => "this machine",
            };
            format!(
                "a quarter of what {whose} has, {}, at most 1g; ",
                Bytes(bytes)
            )
        }
        None => String::new(),
    };
    row(
        "memory",
        &Bytes(first.memory as u64),
        &format!("{of}all that waits in this process; from half of it on marks fall"),
    );
    if let Some(kernel) = first.kernel
        && let (Some(most), Some(pressure)) = (kernel.most, kernel.pressure)
    {
        row(
            "  kernel, in all",
            &Bytes(most),
            &format!(
                "of this host, for all sockets (tcp_mem); slowed from {} on",
                Bytes(pressure)
            ),
        );
    }
}

/// What may wait, here and in the kernel.
fn memory(args: &ServeArgs, effective: &Effective, row: &mut impl FnMut(&str, &dyn Display, &str)) {
    let bound = effective.memory as u64;
    let buffer = effective.buffer as u64;
    let capped = if effective.buffer < args.buffer {
        ", capped to an eighth of memory"
    } else {
        ""
    };
    row(
        "buffer",
        &Bytes(buffer),
        &format!("high-water mark of what waits for one connection{capped}"),
    );
    // Of one connection, and what all have in common; the capacity of buffers stays within the mark.
    let (each, what, common) = match args.service.service {
        ServiceName::Echo => (buffer, "its output", 0),
        ServiceName::Forward => (2 * buffer, "output each way", 0),
        ServiceName::Print => (buffer, "a line that has no end yet", 2 << 20),
        // Of a line of one byte and its end the account is ten times as large.
        ServiceName::Hub => (
            buffer,
            "a line that has no end yet",
            11 * args.buffer as u64,
        ),
        ServiceName::Discard | ServiceName::Exec => (0, "nothing", 0),
    };
    row("  each", &Bytes(each), &format!("at most: {what}"));
    let connections = effective.max_conns as u64;
    let wanted = each.saturating_mul(connections).saturating_add(common);
    let most = wanted.min(bound);
    let why = if wanted > bound {
        format!(
            "at most: {connections} connections would have {}, memory bounds them",
            Bytes(wanted)
        )
    } else {
        format!("at most, of {connections} connections")
    };
    row("  in all", &Bytes(most), &why);
    let Some(kernel) = effective.kernel else {
        return;
    };
    let sockets = match args.service.service {
        ServiceName::Forward => 2,
        _ => 1,
    };
    let each = (kernel.send + kernel.receive) * sockets;
    row(
        "  kernel, each",
        &Bytes(each),
        "beside that, at most, for the sockets of a connection (tcp_wmem, tcp_rmem)",
    );
    if let Some(most) = kernel.most {
        let enough = most / each.max(1);
        row(
            "  kernel, at most",
            &enough,
            "connections at their most, by what the kernel has for all sockets (tcp_mem)",
        );
    }
}

/// Whom `forward` relays to, and how it gets there.
fn forward(upstreams: &ForwardOptions, row: &mut impl FnMut(&str, &dyn Display, &str)) {
    for address in &upstreams.addresses {
        row("  upstream", address, "");
        match ForwardOptions::new(vec![address.clone()]).resolve() {
            Ok(resolved) => {
                for endpoint in resolved {
                    if endpoint.to_string() != address.to_string() {
                        row("    resolved", &endpoint, "now; anew for each client");
                    }
                }
            }
            Err(error) => row("    resolved", &"no", &Failure::from(error).line),
        }
    }
    let (balance, first) = match upstreams.balance {
        Balance::RoundRobin => ("round-robin", "each client begins with the next one"),
        _ => ("in-order", "the first that can be reached"),
    };
    row("  balance", &balance, first);
    row(
        "  connect-timeout",
        &shown_or(upstreams.connect_timeout, "off"),
        "for one attempt at one of them",
    );
    let note = match upstreams.wait {
        Some(_) => "a client waits while none can be reached; then upstream-failed",
        None => "each is tried once; then upstream-failed",
    };
    row("  upstream-wait", &shown_or(upstreams.wait, "off"), note);
    match upstreams.fails.max {
        Some(most) => {
            row(
                "  max-fails",
                &most,
                "and an upstream counts as down: it is tried last",
            );
            let note = "failures count for this long, and one client tries it again then";
            row("  fail-timeout", &Shown(upstreams.fails.timeout), note);
        }
        None => row(
            "  max-fails",
            &"off",
            "each client tries one that is down anew",
        ),
    }
    if let Some(version) = upstreams.send_proxy {
        row(
            "  send-proxy",
            &version,
            "each upstream is told who its client is",
        );
    }
}
