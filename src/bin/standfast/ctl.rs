//! `standfast status|list|kill|drain|stop|restart|reload`: talks to a running server over its control socket.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value as Json, json};
use standfast::Address;
use standfast::control::{Client, path};
use standfast::inspect::{ConnectionInfo, NatsInfo, Role, Status, Takeover};

use crate::Failure;
use crate::args::control::{Order, ServerArgs, TargetArgs};
use crate::units::Bytes;
use crate::{logger, stdout};

/// Asks the server that is meant.
pub(crate) fn run(order: &Order) -> Result<ExitCode, Failure> {
    let target = order.target();
    let client = find(&target.server)?;
    let failed = |error: io::Error| unanswered(&client, &error);
    let is_done = !matches!(order, Order::Status(_) | Order::List(_));
    let text = match order {
        Order::Status(_) => {
            let status = client.status().map_err(failed)?;
            if target.json {
                encoded(&status)?
            } else {
                status_table(&status)
            }
        }
        Order::List(_) => {
            let connections = client.connections().map_err(failed)?;
            if target.json {
                encoded(&connections)?
            } else {
                list_table(&connections)
            }
        }
        Order::Kill { id, .. } => done(
            target,
            client.kill(*id).map_err(failed)?,
            &format!("killed {id}"),
        ),
        Order::Drain(_) => done(target, client.drain().map_err(failed)?, "draining"),
        Order::Stop(_) => done(target, client.stop().map_err(failed)?, "stopping"),
        Order::Restart(_) | Order::Reload(_) => {
            let done = match order {
                Order::Reload(_) => "reloaded",
                _ => "restarted",
            };
            let former = client.status().map_err(failed)?.version;
            let takeover = client.restart();
            let takeover = takeover.map_err(|error| undone(&client, done, &error))?;
            let now = successor(&client, &takeover)?.version;
            if target.json {
                let mut answer = json!(takeover);
                answer["version"] = now.into();
                answer["former_version"] = former.into();
                format!("{answer}\n")
            } else {
                let (pid, told) = (takeover.pid, told(&takeover));
                format!("{done}: pid {pid}, version {now} (was {former}), {told}\n")
            }
        }
    };
    match stdout::show(&text) {
        // What was ordered is done, whoever can be told of it.
        Err(failure) if is_done => logger::say(&failure.to_string()),
        shown => shown?,
    }
    Ok(ExitCode::SUCCESS)
}

fn done(target: &TargetArgs, (): (), what: &str) -> String {
    if target.json {
        format!("{}\n", json!({ "done": what }))
    } else {
        format!("{what}\n")
    }
}

fn encoded(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))
}

/// The control socket that is meant: by path, by address, by port, or the only one there is.
pub(crate) fn find(named: &ServerArgs) -> Result<Client, Failure> {
    socket(named).map(|path| Client::at(path).within(named.timeout))
}

fn socket(named: &ServerArgs) -> Result<PathBuf, Failure> {
    if let Some(path) = &named.control {
        return Ok(path.clone());
    }
    let (candidates, meant) = match &named.server {
        None => (Client::candidates(None), "any address".to_owned()),
        Some(text) if text.contains('/') => return Ok(PathBuf::from(text)),
        Some(text) => match text.parse::<Address>() {
            Ok(Address::Loopback(port) | Address::Any(port)) => {
                (Client::candidates(Some(port)), format!("port {port}"))
            }
            _ => match text.parse() {
                Ok(endpoint) => return Ok(path::of(&endpoint)),
                Err(_) => {
                    return Err(Failure::usage(format!(
                        "{text:?} is no server: expected PORT, ADDRESS:PORT or the path of a control socket"
                    )));
                }
            },
        },
    };
    match candidates.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::failed(format!(
            "no server of this user on {meant}: none has a control socket in {}",
            path::folder().display()
        ))),
        several => Err(Failure::usage(format!(
            "several servers, say which: {}",
            listed(several)
        ))),
    }
}

/// The first of them, in one line.
fn listed(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 8;
    let shown = paths.iter().take(SHOWN);
    let shown: Vec<_> = shown.map(|path| path.display().to_string()).collect();
    let more = match paths.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}

/// Why the server does not answer.
pub(crate) fn unanswered(client: &Client, error: &io::Error) -> Failure {
    let path = client.path().display();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::failed(format!(
            "no server answers: there is no control socket {path}"
        )),
        io::ErrorKind::ConnectionRefused if !is_socket(client.path()) => {
            Failure::failed(format!("no server answers at {path}: that is no socket"))
        }
        io::ErrorKind::ConnectionRefused => Failure::failed(format!(
            "no server answers at {path}: it ended without taking its socket away"
        )),
        io::ErrorKind::Other => Failure::failed(error.to_string()),
        _ => Failure::failed(format!("cannot ask the server at {path}: {error}")),
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn undone(client: &Client, what: &str, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::Other {
        return Failure::failed(format!("not {what}, the server goes on: {error}"));
    }
    unanswered(client, error)
}

/// Who serves after a takeover: the process that has taken over, or one that has from it.
fn successor(client: &Client, takeover: &Takeover) -> Result<Status, Failure> {
    let (pid, path) = (takeover.pid, client.path().display());
    Err(Failure::failed(match client.status() {
        Ok(status) if status.pid == pid || status.takeover.is_some() => return Ok(status),
        Ok(status) => format!(
            "pid {pid} took over and has ended, all connections with it; pid {}, started afresh, serves now",
            status.pid
        ),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            format!("pid {pid} took over and does not answer at {path}: {error}")
        }
        Err(error) => format!(
            "pid {pid} took over and has ended, all connections with it: nobody serves at {path} ({error})"
        ),
    }))
}

/// What came of a takeover, in words.
fn told(takeover: &Takeover) -> String {
    let Takeover {
        connections,
        staying,
        ..
    } = takeover;
    let stay = match staying {
        0 => String::new(),
        some => format!(", {some} stay with the former process and are drained"),
    };
    let frozen = takeover.frozen_ms();
    let plural = if *connections == 1 { "" } else { "s" };
    format!("{connections} connection{plural} handed over{stay}, frozen for {frozen:.2} ms")
}

/// How a hub shares its feed with other machines: what is not as it should be stands there where it is not nothing.
fn beyond(nats: &NatsInfo) -> String {
    let state = if nats.connected { "connected" } else { "away" };
    let stream = nats.stream.as_ref();
    let stream = stream.map_or_else(String::new, |stream| format!(" stream={stream}"));
    let mut text = format!(
        "{} {state}{stream} said={} heard={} hubs={}",
        nats.subject, nats.said_lines, nats.heard_lines, nats.hubs
    );
    for (name, count) in [
        ("backlog", nats.backlog),
        ("lag", nats.lag),
        ("missed", nats.missed),
        ("lost", nats.lost),
        ("repeated", nats.again),
        ("foreign", nats.foreign),
        ("too-long", nats.too_long),
    ] {
        if count > 0 {
            // Writing into a string cannot fail.
            let _ = write!(text, " {name}={count}");
        }
    }
    text
}

fn status_table(status: &Status) -> String {
    let mut table = String::new();
    let mut row = |name: &str, value: &dyn std::fmt::Display| {
        // Writing into a string cannot fail.
        let _ = writeln!(table, "{name:<12} {value}");
    };
    row("pid", &status.pid);
    if let Some(keeper) = &status.keeper {
        row("keeper", keeper);
    }
    if let Some(crashes) = status.crashes.filter(|&crashes| crashes > 0) {
        row("crashes", &crashes);
    }
    row("version", &status.version);
    row("up", &short(status.uptime));
    row(
        "state",
        &match (status.draining, status.accepting) {
            (true, true) => "draining, accepting for a while yet",
            (true, false) => "draining",
            (false, _) => "serving",
        },
    );
    for listener in &status.listeners {
        row(
            "listening",
            &format!(
                "{} {} accepted={}",
                listener.address, listener.service, listener.accepted
            ),
        );
    }
    for upstream in &status.upstreams {
        let down = upstream
            .down_for
            .map(|time| format!("down for {}", short(time)));
        let state = down.unwrap_or_else(|| "up".to_owned());
        row("upstream", &format!("{} {state}", upstream.address));
    }
    for nats in &status.nats {
        row("nats", &beyond(nats));
    }
    if let Some(takeover) = &status.takeover {
        let side = match takeover.role {
            Role::Took => "from",
            _ => "to",
        };
        row(
            "takeover",
            &format!("{side} pid {}: {}", takeover.pid, told(takeover)),
        );
        if let Some(pid) = status.predecessor.filter(|_| takeover.staying > 0) {
            row(
                "behind",
                &format!("pid {pid} drains the connections that stayed, which list shows"),
            );
        }
    }
    if status.counted_for > status.uptime {
        let counted_for = short(status.counted_for);
        row("counted", &format!("for {counted_for}, over takeovers"));
    }
    row("workers", &status.workers);
    row("open", &status.open);
    if status.at_door > 0 {
        row("at the door", &status.at_door);
    }
    row("accepted", &status.accepted);
    row("read", &status.read);
    row("written", &status.written);
    let memory = &status.memory;
    let waiting = memory.waiting.iter().filter(|(_, bytes)| *bytes > 0);
    let waiting = waiting.map(|(kind, bytes)| format!(" {kind}={bytes}"));
    row(
        "waiting",
        &format!(
            "{} of {}{}",
            memory.held,
            Bytes(memory.limit as u64),
            waiting.collect::<String>()
        ),
    );
    for (reason, count) in &status.closed {
        row("closed", &format!("{reason} {count}"));
    }
    table
}

fn list_table(connections: &[ConnectionInfo]) -> String {
    const COLUMNS: usize = 17;
    const HEAD: [&str; COLUMNS] = [
        "ID", "PEER", "LISTENER", "SERVICE", "AGE", "IDLE", "READ", "WRITTEN", "WAITING",
        "UNACKED", "RTT", "NEXT", "IN", "UPSTREAM", "SNI", "CLIENT", "BEHIND",
    ];
    // For a while after some reloads alone, and where clients speak TLS.
    let is_shown = |column: usize| match column {
        14 | 15 => connections.iter().any(|one| one.tls.is_some()),
        16 => connections.iter().any(|one| one.behind.is_some()),
        _ => true,
    };
    let optional = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows = connections.iter().map(|connection| {
        let next = connection.next_deadline;
        let kind = next.and_then(|next| serde_json::to_value(next.kind).ok());
        [
            connection.id.to_string(),
            connection.peer.to_string(),
            connection.listener.to_string(),
            connection.service.clone(),
            short(connection.age),
            short(connection.idle),
            connection.read.to_string(),
            connection.written.to_string(),
            connection.waiting.to_string(),
            optional(connection.unacknowledged.map(|bytes| bytes.to_string())),
            optional(
                connection
                    .round_trip
                    .map(|time| format!("{:.2}ms", time.as_secs_f64() * 1e3)),
            ),
            optional(kind.as_ref().and_then(Json::as_str).map(str::to_owned)),
            optional(next.map(|next| short(next.due_in))),
            optional(connection.upstream.as_ref().map(ToString::to_string)),
            optional(connection.tls.as_ref().and_then(|tls| tls.name.clone())),
            optional(connection.tls.as_ref().and_then(|tls| tls.client.clone())),
            optional(connection.behind.map(|pid| pid.to_string())),
        ]
    });
    let rows: Vec<[String; COLUMNS]> = std::iter::once(HEAD.map(str::to_owned))
        .chain(rows)
        .collect();
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut table = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .filter(|(column, _)| is_shown(*column))
            .map(|(_, (cell, width))| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(table, "{}", cells.join("  ").trim_end());
    }
    table
}

/// A time in a table: `0.3s`, `42s`, `7m05s`, `3h02m`.
pub(crate) fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_servers_some_are_named() {
        let named = |count: usize| listed(&vec![PathBuf::from("/a.sock"); count]);
        assert_eq!(named(2), "/a.sock, /a.sock");
        assert!(named(8).ends_with(", /a.sock"));
        assert!(named(7081).ends_with(", /a.sock and 7073 more"));
    }

    #[test]
    fn times_are_short() {
        for (millis, text) in [
            (300, "0.3s"),
            (42_000, "42s"),
            (425_000, "7m05s"),
            (10_920_000, "3h02m"),
        ] {
            assert_eq!(short(Duration::from_millis(millis)), text);
        }
    }
}
