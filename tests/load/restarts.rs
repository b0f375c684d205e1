//! The server is killed, restarted, replaced, stopped, under load: what it is all for.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::home::{Home, seconds};
use crate::support::loading::{Loading, NOTHING_HAPPENED, connections_of, counts, nobody, row};
use crate::support::{Server, now, pass, until};

/// A server on an address that nothing connects from, so that its port is free when it comes back.
fn server_on(address: &str) -> Server {
    Server::start(&["-v", "-l", address])
}

/// Waits until `count` connections were opened.
fn opened(server: &mut Server, count: usize) {
    for _ in 0..count {
        server.log_line("an opening", |line| line.contains(" debug opened "));
    }
}

/// Kills a server while it owes something to each of `count` clients.
///
/// A process that dies closes its descriptors one after the other, on Linux the newest first: a client that comes back
/// at once may still be taken by its listener, and is lost a second time.
fn kill(mut server: Server, count: usize) -> String {
    let address = server.address();
    let owes = || {
        let waiting = connections_of(address);
        waiting.values().filter(|bytes| **bytes > 0).count() == count
    };
    // Stopped between a read and its write, it has all that one of them sends until it is answered.
    until("every client has sent something", || {
        server.suspend();
        let stopped = now();
        while !owes() {
            if stopped.elapsed() > Duration::from_millis(500) {
                server.resume();
                return false;
            }
            pass(Duration::from_millis(5));
        }
        true
    });
    server.signal(Signal::KILL);
    assert!(!server.wait().success());
    address.to_string()
}

#[test]
fn a_server_that_is_killed_and_restarted_costs_bytes_and_it_is_said() {
    let server = server_on("127.0.71.2:0");
    let args = ["-c", "8", "--pipeline", "4", "-T", "1m"];
    let args = [
        &args[..],
        &["--expect", "lost==0", "--expect", "ended_peer_reset >= 8"],
    ]
    .concat();
    let mut loading = Loading::start(server.address(), &args);
    loading.goes_on_with(8);
    let address = kill(server, 8);
    let mut server = server_on(&address);
    opened(&mut server, 8);
    loading.goes_on_with(8);
    loading.signal(Signal::INT);
    let (code, table) = loading.ends();
    assert_eq!(code, 1, "{table}");

    let ended = counts(&table, "ended");
    let lost = ended["peer-reset"];
    assert!(lost >= 8, "{table}");
    assert_eq!(lost, ended.values().sum::<u64>(), "{table}");
    let connections = format!(
        "8 of 8 up at the end, {} connects, {lost} reconnects",
        8 + lost
    );
    assert_eq!(row(&table, "connections"), connections);
    let messages = counts(&table, "messages");
    let bytes = counts(&table, "bytes");
    assert!(messages["sent"] > messages["echoed"], "{table}");
    let missing = messages["sent"] - messages["echoed"];
    // At most a window of each connection.
    assert!(missing <= lost * 4, "{table}");
    assert!(
        bytes["lost"] > 0 && bytes["lost"] <= missing * 64,
        "{table}"
    );
    let others = ["duplicated", "reordered", "corrupted"];
    assert_eq!(others.map(|name| bytes[name]), [0; 3], "{table}");
    // One line for what did not hold.
    let said = format!("standfast: expected lost == 0, but it is {}", bytes["lost"]);
    assert_eq!(loading.lines.last(), Some(&said));
    assert_eq!(loading.said("expected"), 1, "{:?}", loading.lines);
}

#[test]
fn while_the_server_is_away_refusals_are_counted_and_the_rate_is_made_up_for() {
    let server = server_on("127.0.71.3:0");
    // The window has room for all that becomes due in the meantime.
    let args = ["--json", "-c", "4", "-r", "400", "--pipeline", "6000"];
    // However slowly a busy machine echoes, that is no reason to end a connection.
    let patient = ["-T", "1m", "--read-timeout", "1m"];
    let mut loading = Loading::start(server.address(), &[&args[..], &patient].concat());
    loading.goes_on_with(4);
    let address = kill(server, 4);
    loading.goes_on_with(0);
    pass(Duration::from_millis(300));
    let mut server = server_on(&address);
    opened(&mut server, 4);
    loading.goes_on_with(4);
    let figures = loading.interrupted();
    assert!(figures.count("refused") > 0, "{figures:?}");
    let failed = ["refused", "connect_reset"].map(|name| figures.count(name));
    let failed: u64 = failed.iter().sum();
    assert_eq!(figures.count("failed"), failed, "{figures:?}");
    let ended = figures.ended_all_for("reset");
    assert!(ended >= 4, "{figures:?}");
    assert_eq!(figures.count("reconnects"), ended, "{figures:?}");
    assert_eq!(figures.count("up"), 4);
    assert_eq!(figures.count("unsent"), 0, "{figures:?}");
    let due = figures.number("seconds") * 400.0;
    let sent = figures.count("sent") as f64;
    assert!((sent - due).abs() <= 3.0, "{due} due: {figures:?}");
    // What came due while nobody was there is late.
    assert!(figures.number("max_ms") >= 290.0, "{figures:?}");
    let bytes = ["sent_bytes", "received_bytes"].map(|name| figures.count(name));
    assert_eq!(
        figures.faults(),
        [bytes[0] - bytes[1], 0, 0, 0],
        "{figures:?}"
    );
    assert!(bytes[0] > bytes[1]);
}

#[test]
fn a_server_that_comes_late_is_waited_for() {
    let address = nobody();
    let mut loading = Loading::start(address, &["--json", "-c", "3", "-T", "1m"]);
    let trouble = loading.says("cannot connect");
    assert!(
        trouble.contains(&format!("{address}: Connection refused")),
        "{trouble}"
    );
    let _server = server_on(&address.to_string());
    loading.goes_on_with(3);
    let figures = loading.interrupted();
    let counts = ["connects", "up", "reconnects", "ended"].map(|name| figures.count(name));
    assert_eq!(counts, [3, 3, 0, 0], "{figures:?}");
    assert!(figures.count("refused") > 0, "{figures:?}");
    assert!(figures.count("echoed") > 0, "{figures:?}");
    assert_eq!(figures.faults(), [0; 4]);
    assert_eq!(loading.said("cannot connect"), 1, "{:?}", loading.lines);
}

#[test]
fn a_server_that_is_replaced_under_load_hangs_up_on_nobody() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let address = server.address().to_string();
    let args = ["-c", "16", "--pipeline", "4", "--workers", "2", "-T", "1m"];
    let mut loading = Loading::start(
        &address,
        &[&args[..], &NOTHING_HAPPENED, &["--expect", "up==16"]].concat(),
    );
    loading.goes_on_with(16);
    for _ in 0..2 {
        let next = server.replaced_by(1, || {
            home.standfast(&["serve", "--replace", "-l", &address])
        });
        assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
        server = next;
        loading.goes_on_with(16);
    }
    loading.signal(Signal::INT);
    let (code, table) = loading.ends();
    assert_eq!(code, 0, "{table}\n{:?}", loading.lines);
    let connections = "16 of 16 up at the end, 16 connects, 0 reconnects";
    assert_eq!(row(&table, "connections"), connections);
    let bytes = "0 lost, 0 duplicated, 0 reordered, 0 corrupted";
    assert_eq!(row(&table, "bytes"), bytes);
    assert!(row(&table, "longest gap").ends_with(" ms"), "{table}");
    let messages = counts(&table, "messages");
    assert!(messages["sent"] > 0, "{table}");
    assert_eq!(messages["sent"], messages["echoed"], "{table}");
    // The last of the three serves connections that are as old as the first.
    let list = home.json(&["status", &address]);
    assert!(seconds(&list["uptime"]) > 0.0);
}

#[test]
fn a_server_that_stands_still_delays_all_that_becomes_due_meanwhile() {
    let server = Server::start(&["-q"]);
    // One message outstanding on each of four connections: a load that waits would have four late ones.
    let args = ["--json", "-c", "4", "-r", "500", "-T", "1m"];
    let mut loading = Loading::start(server.address(), &args);
    loading.goes_on_with(4);
    server.suspend();
    let stopped = now();
    pass(Duration::from_millis(500));
    server.resume();
    let most = stopped.elapsed();
    loading.goes_on_with(4);
    let figures = loading.interrupted();
    figures.assert_flawless(4, 64);
    assert!(most >= Duration::from_millis(500));
    for name in ["max_ms", "longest_gap_ms"] {
        assert!(figures.number(name) >= 450.0, "{name}: {figures:?}");
    }
    // 250 messages were late by 250 ms on average. Of fewer than 15,000, that is 1 % late by 200 ms.
    assert!(figures.count("echoed") < 15_000, "{figures:?}");
    assert!(figures.number("p99_ms") >= 200.0, "{figures:?}");
}
