//! What is doubtful about settings, each by itself allowed.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Access;
use standfast::{Effective, Endpoint};

use crate::settings::{ListenerSettings, Settings, Sources};
use crate::units::{Bytes, Shown};

/// The shortest time in which a balancer that is widely used forgets an idle connection, without a word to either side:
/// AWS's Network Load Balancer, where nothing else is set.
const FORGETS: Duration = Duration::from_secs(350);

/// What the kernel has for a socket that has something to send and something unread, at least: a page each (tcp(7)).
const LEAST: u64 = 8 << 10;

/// In a line each.
pub(super) fn of(settings: &Settings, effective: &[Effective]) -> Vec<String> {
    let mut all = Vec::new();
    for (one, effective) in settings.listeners.iter().zip(effective) {
        let located = of_listener(one, effective).into_iter();
        all.extend(located.map(|(key, line)| place(&one.sources, key) + &line));
    }
    let whole = &settings.whole;
    if let Some(path) = &whole.args.process.log_file
        && let Err(error) = is_writable(path)
    {
        let at = place(&whole.sources, "log-file");
        let path = path.display();
        all.push(format!("{at}cannot write to the log file {path}: {error}"));
    }
    let allowed = standfast::process::descriptors_for_connections();
    if let Some(asked) = whole.args.max_conns
        && asked.get() > allowed
    {
        let at = place(&whole.sources, "max-conns");
        all.push(format!(
            "{at}max-conns {asked} is more than the descriptor limit leaves, {allowed}: raise that (ulimit -n, LimitNOFILE=)"
        ));
    }
    if let Some(asked) = whole.args.max_conns
        && let Some(most) = effective.first().and_then(|first| first.kernel?.most)
        && most / LEAST < asked.get() as u64
    {
        let at = place(&whole.sources, "max-conns");
        all.push(format!(
            "{at}the kernel has {} for all sockets of this host (net.ipv4.tcp_mem), which is not {} for each of {asked} \
             connections",
            Bytes(most),
            Bytes(LEAST)
        ));
    }
    all
}

/// Whether a file can be written to, or made, by who asks; it is neither.
fn is_writable(path: &Path) -> io::Result<()> {
    match OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or_else(|| Path::new("."));
            Ok(rustix::fs::access(
                folder,
                Access::WRITE_OK | Access::EXEC_OK,
            )?)
        }
        opened => opened.map(drop),
    }
}

/// Each with the key that it is about.
fn of_listener(one: &ListenerSettings, effective: &Effective) -> Vec<(&'static str, String)> {
    let args = &one.args;
    let mut all = Vec::new();
    let is_tcp = |address: &Endpoint| address.tcp().is_some();
    // Of an inherited socket it is not known.
    let tcp = effective.addresses.is_empty() || effective.addresses.iter().any(is_tcp);
    let first_probe = effective.keepalive.map(|triple| {
        let idle = triple.idle.map_or(0, u32::from);
        Duration::from_secs(idle.into())
    });
    // Who may not be idle for so long is not forgotten.
    let waits = effective.read_timeout.is_none_or(|wait| wait > FORGETS);
    if tcp && waits && first_probe.is_none_or(|first| first >= FORGETS) {
        let probes = first_probe.map_or_else(
            || "keepalive is off".to_owned(),
            |first| format!("keepalive asks for the first time after {}", Shown(first)),
        );
        all.push((
            "keepalive",
            format!(
                "a balancer in front may forget who is idle for {} (AWS NLB), and {probes}: that client is lost, and neither \
                 side told",
                Shown(FORGETS)
            ),
        ));
    }
    if tcp && effective.keepalive.is_none() && effective.read_timeout.is_none() {
        all.push((
            "keepalive",
            "keepalive and read-timeout are off: a vanished peer that is idle is kept for ever"
                .to_owned(),
        ));
    }
    if effective.dead_after.is_none() && effective.write_timeout.is_none() {
        all.push((
            "write-timeout",
            "dead-after and write-timeout are off: a vanished peer with output waiting is kept for ever".to_owned(),
        ));
    }
    if let Some(cut) = args.detection.user_timeout.into_option() {
        all.push((
            "user-timeout",
            format!(
                "user-timeout {} cuts living slow readers, who may acknowledge nothing for over a minute; dead-after finds \
                 the vanished without that",
                Shown(cut)
            ),
        ));
    }
    if let Some((longest, pause)) = effective.slow_probes {
        all.push((
            "mptcp",
            format!(
                "over MPTCP a peer that vanishes behind a closed window may be found later than dead-after says: \
                 net.ipv4.tcp_rto_max_ms is {}, more than {} (sysctl)",
                pause.as_millis(),
                longest.as_millis()
            ),
        ));
    }
    if args.mptcp && args.detection.user_timeout.into_option().is_some() {
        all.push((
            "user-timeout",
            "over MPTCP there is no user timeout: it holds for clients that come over TCP alone"
                .to_owned(),
        ));
    }
    if let (Some(read), Some(age)) = (effective.read_timeout, args.max_age.into_option())
        && age <= read
    {
        all.push((
            "max-age",
            format!(
                "max-age {} comes before read-timeout {}, which never applies",
                Shown(age),
                Shown(read)
            ),
        ));
    }
    if effective.backlog < args.backlog {
        all.push((
            "backlog",
            format!(
                "net.core.somaxconn is {}, below backlog {}: raise it (sysctl)",
                effective.backlog, args.backlog
            ),
        ));
    }
    all
}

/// Where `key` was set, to be put before a line.
fn place(sources: &Sources, key: &str) -> String {
    let origin = sources.shown(key).or_else(|| sources.table());
    origin.map_or_else(String::new, |origin| format!("{origin}: "))
}
