//! Connections that are only held, or made anew for each message; and many of them.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::home::{Home, number};
use crate::support::loading::{Loading, Peer, connections_of, figures, load_command, output, row};
use crate::support::{Server, cannot_run, now, shell, until};

#[test]
fn idle_connections_are_held_and_say_nothing() {
    let mut server = Server::start(&[]);
    let begun = now();
    let args = ["--idle", "-c", "50", "-T", "300ms"];
    let figures = figures(server.address(), &args);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    figures.assert_unbroken(50);
    for name in ["sent", "echoed", "unsent", "sent_bytes", "received_bytes"] {
        assert_eq!(figures.count(name), 0, "{name}");
    }
    assert_eq!(figures.faults(), [0; 4]);
    assert!(figures.0["p99_ms"].is_null(), "{figures:?}");
    assert!(server.drain().success());
    let summary = server.summary();
    let told = ["accepted", "read", "peer-closed"].map(|key| &*summary[key]);
    assert_eq!(told, ["50", "0", "50"], "no reset at the end");
}

#[test]
fn idle_connections_that_the_server_drains_are_reported_by_reason() {
    let mut server = Server::start(&["-q"]);
    let args = ["--idle", "-c", "5", "-T", "1m"];
    let mut loading = Loading::start(server.address(), &[&args[..], &["--json"]].concat());
    loading.goes_on_with(5);
    // It has ended when all have answered its FIN.
    assert!(server.drain().success());
    let figures = loading.failed();
    // One that comes back before the listener is closed is let in, and drained, too.
    let ended = figures.ended_all_for("ended_peer_closed");
    assert!((5..=10).contains(&ended), "{figures:?}");
    assert_eq!((figures.count("connects"), figures.count("up")), (ended, 0));
    assert_eq!(loading.said("no connection was up at the end"), 1);
    assert_eq!(figures.count("failed"), figures.count("refused"));
    assert_eq!(figures.faults(), [0; 4], "{figures:?}");
}

#[test]
fn idle_connections_that_are_killed_are_reported_by_reason_and_made_anew() {
    let home = Home::new();
    let server = home.serve(&["-q"]);
    let address = server.address().to_string();
    let mut loading = Loading::start(&address, &["--idle", "-c", "5", "-T", "1m"]);
    loading.goes_on_with(5);
    for entry in home.json(&["list", &address]).as_array().unwrap() {
        home.answer(&["kill", &number(&entry["id"]).to_string(), &address]);
    }
    let accepted = || number(&home.json(&["status", &address])["accepted"]);
    until("all are back", || accepted() == 10);
    loading.goes_on_with(5);
    loading.signal(Signal::INT);
    let (code, table) = loading.ends();
    assert_eq!(code, 0, "{table}");
    let connections = "5 of 5 up at the end, 10 connects, 5 reconnects";
    assert_eq!(row(&table, "connections"), connections);
    let ended = row(&table, "ended");
    assert!(
        ended.starts_with("0 peer-closed, 5 peer-reset, 0 "),
        "{ended}"
    );
    // What has no meaning here has no row.
    for name in ["messages", "bytes", "throughput", "latency", "longest gap"] {
        assert!(!table.contains(name), "{table}");
    }
}

#[test]
fn connections_are_made_at_the_rate_asked_for() {
    let server = Server::start(&["-q"]);
    let begun = now();
    let args = ["--idle", "-c", "11", "--connect-rate", "20", "-T", "1ms"];
    figures(server.address(), &args).assert_unbroken(11);
    // The first at once, ten more at 50 ms each.
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

#[test]
fn churn_makes_a_connection_for_each_message() {
    let mut server = Server::start(&["-q"]);
    for workers in ["1", "2"] {
        let args = ["--churn", "-c", "4", "-T", "500ms", "--workers", workers];
        let figures = figures(server.address(), &args);
        let (connects, sent) = (figures.count("connects"), figures.count("sent"));
        assert!(sent > 0 && sent <= connects, "{figures:?}");
        // Those that were connected when it ended have sent nothing.
        assert!(connects - sent <= 4, "{figures:?}");
        assert_eq!(figures.count("echoed"), sent, "{figures:?}");
        let troubles = ["reconnects", "failed", "ended"].map(|name| figures.count(name));
        assert_eq!(troubles, [0; 3], "{figures:?}");
        assert_eq!(figures.faults(), [0; 4]);
    }
    assert!(server.drain().success());
}

#[test]
fn churn_at_a_rate_makes_so_many_a_second() {
    // As many at a time as there are in all: none has to wait for another.
    let args = ["--churn", "-c", "50", "-r", "50", "-T", "1s"];
    let mut tries = 0;
    let (mut server, figures) = loop {
        let server = Server::start(&[]);
        let begun = now();
        let figures = figures(server.address(), &[&args[..], &["--size", "10k"]].concat());
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(1));
        let counts = ["connects", "sent", "echoed", "unsent"].map(|name| figures.count(name));
        let [connects, sent, echoed, unsent] = counts;
        assert_eq!(
            (sent, echoed, connects + unsent),
            (connects, connects, 50),
            "{figures:?}"
        );
        if unsent == 0 {
            break (server, figures);
        }
        // Nothing but a machine that stood still keeps it from a rate as low as that.
        tries += 1;
        assert!(tries < 10, "{figures:?}");
    };
    assert_eq!(figures.count("sent_bytes"), 50 * 10240);
    assert_eq!(figures.faults(), [0; 4]);
    assert!(server.drain().success());
    let summary = server.summary();
    let told = ["accepted", "read", "peer-closed"].map(|key| &*summary[key]);
    assert_eq!(told, ["50", "512000", "50"]);
}

#[test]
fn churn_that_is_not_answered_is_given_up() {
    let peer = Peer::answering(64, |got| match got.connection % 2 {
        0 => got.bytes,
        _ => Vec::new(),
    });
    let args = ["--churn", "--json", "-T", "1m", "--read-timeout", "100ms"];
    let mut loading = Loading::start(peer.address, &args);
    peer.until_answered(8);
    let figures = loading.interrupted();
    let ended = figures.ended_all_for("timed_out");
    assert!(ended >= 3, "{figures:?}");
    assert!(figures.count("echoed") >= 3, "{figures:?}");
    let lost = figures.count("sent") - figures.count("echoed");
    assert_eq!(figures.faults(), [lost * 64, 0, 0, 0], "{figures:?}");
}

#[test]
fn more_connections_than_descriptors_are_refused_in_one_line() {
    let server = Server::start(&["-q"]);
    let address = server.address().to_string();
    let limited = |connections| {
        let script = "ulimit -n 128; exec \"$@\"";
        let args = [
            "load",
            &address,
            "--idle",
            "-T",
            "1ms",
            "-q",
            "-c",
            connections,
        ];
        output(shell(script, &args))
    };
    for connections in ["128", "1000", "18446744073709551615"] {
        let (code, stdout, stderr) = limited(connections);
        assert_eq!((code, &*stdout), (2, ""), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("standfast: "), "{stderr}");
        let named = stderr.contains(connections) && stderr.contains("limit of 128");
        assert!(named, "{stderr}");
    }
    // What it says is possible is.
    let (_, _, stderr) = limited("1000");
    let (before, _) = stderr.split_once(" at most").unwrap();
    let most = before.rsplit(' ').next().unwrap();
    let (code, table, stderr) = limited(most);
    assert_eq!((code, &*stderr), (0, ""));
    let up = format!("{most} of {most} up at the end, {most} connects, 0 reconnects");
    assert_eq!(row(&table, "connections"), up);
    assert!(row(&table, "failed").starts_with("0 refused, "), "{table}");
}

#[test]
fn more_connections_than_one_address_has_ports_come_from_several() {
    const TEST: &str = "more_connections_than_one_address_has_ports_come_from_several";
    const CONNECTIONS: usize = 13_000;
    let descriptors = standfast::process::raise_descriptor_limit().unwrap_or(u64::MAX);
    if descriptors < CONNECTIONS as u64 + 200 {
        return cannot_run(TEST, "13200 descriptors (ulimit -Hn)");
    }
    let server = Server::start(&["-q"]);
    let address = server.address();
    let count = CONNECTIONS.to_string();
    let args = ["--idle", "--keepalive", "off", "-T", "1m", "--json", "-c"];
    let mut loading = Loading::start(address, &[&args[..], &[&count]].concat());
    loading.goes_on_with(CONNECTIONS);
    until("each address has half of them", || {
        let clients = connections_of(address);
        let from = |source: [u8; 4]| {
            let theirs = clients
                .keys()
                .filter(|client| client.ip().octets() == source);
            theirs.count()
        };
        let halves = [from([127, 0, 0, 2]), from([127, 0, 0, 3])];
        halves == [CONNECTIONS / 2; 2]
    });
    let figures = loading.interrupted();
    assert_eq!(figures.count("connects"), CONNECTIONS as u64, "{figures:?}");
    assert_eq!(figures.count("up"), CONNECTIONS as u64, "{figures:?}");
}

#[test]
fn connections_come_from_the_address_asked_for() {
    let server = Server::start(&["-q"]);
    let args = ["--idle", "-c", "3", "-T", "1m", "-s", "127.0.71.9"];
    let mut loading = Loading::spawn(load_command(server.address(), &args));
    loading.goes_on_with(3);
    until("three connections from there", || {
        let clients = connections_of(server.address());
        clients.len() == 3
            && clients
                .keys()
                .all(|client| client.ip().octets() == [127, 0, 71, 9])
    });
}
