//! Sizes, windows, rates: everything comes back, and is counted.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::home::{Home, number, text};
use crate::support::loading::{Figures, Loading, Peer, figures, load_command, output, row};
use crate::support::{Server, now, pass, until};

/// Loads `server` until it has read `bytes` more.
#[track_caller]
fn loaded(home: &Home, server: &Server, bytes: u64, args: &[&str]) -> Figures {
    let address = server.address().to_string();
    let read = || number(&home.json(&["status", &address])["read"]);
    let enough = read() + bytes;
    let args = [&["--json", "--quiet", "-T", "1m"], args].concat();
    let mut loading = Loading::start(&address, &args);
    until("the server has read enough", || read() >= enough);
    loading.interrupted()
}

#[test]
fn everything_comes_back_whatever_the_size_and_the_window() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut all = 0;
    for (size, bytes) in [
        ("1", 1),
        ("7", 7),
        ("64", 64),
        ("4k", 4096),
        ("1m", 1 << 20),
    ] {
        for pipeline in ["1", "4", "64"] {
            let args = ["-c", "2", "--size", size, "--pipeline", pipeline];
            let figures = loaded(&home, &server, 8 * bytes, &args);
            figures.assert_flawless(2, bytes);
            assert_eq!(figures.count("unsent"), 0, "{figures:?}");
            all += figures.count("received_bytes");
        }
    }
    assert!(server.drain().success());
    let summary = server.summary();
    let bytes = ["read", "written"].map(|key| summary[key].parse().ok());
    assert_eq!(bytes, [Some(all); 2]);
}

#[test]
fn workers_share_the_connections() {
    let home = Home::new();
    let server = home.serve(&["-q"]);
    for (connections, workers) in [(5, "2"), (2, "2"), (1, "4")] {
        let count = connections.to_string();
        let args = ["-c", &count, "--workers", workers, "--pipeline", "4"];
        let figures = loaded(&home, &server, 64_000, &args);
        figures.assert_flawless(connections, 64);
    }
}

#[test]
fn ipv6_and_unix_sockets_are_loaded_as_well() {
    let home = Home::new();
    let path = home.join("echo.sock");
    let address = format!("unix:{}", text(&path));
    let command = home.standfast(&["serve", "-q", "-l", "[::1]:0", "-l", &address]);
    let server = Server::spawn(command, 2);
    let tcp = server.address().to_string();
    for to in [&tcp, &address] {
        let mut loading = Loading::start(to, &["--json", "-c", "3", "-T", "1m"]);
        loading.goes_on_with(3);
        loading.interrupted().assert_flawless(3, 64);
    }
}

#[test]
fn a_rate_that_can_be_met_is_met_exactly() {
    let server = Server::start(&["-q"]);
    for workers in ["1", "2"] {
        let begun = now();
        // The window has room for all that is due: whatever this machine is busy with, everything is sent.
        let args = ["-r", "200", "-c", "4", "--pipeline", "64", "-T", "1s"];
        let figures = figures(
            server.address(),
            &[&args[..], &["--workers", workers]].concat(),
        );
        assert!(begun.elapsed() >= Duration::from_secs(1));
        figures.assert_flawless(4, 64);
        let sent = figures.count("sent");
        match workers {
            "1" => assert_eq!(sent, 200, "{figures:?}"),
            _ => assert!((198..=202).contains(&sent), "{figures:?}"),
        }
        assert_eq!(figures.count("unsent"), 0);
        assert_eq!(figures.number("asked_per_second"), 200.0);
        assert_eq!(figures.number("seconds"), 1.0);
        let quantiles = ["p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms"];
        let quantiles = quantiles.map(|name| figures.number(name));
        assert!(quantiles.is_sorted() && quantiles[0] > 0.0, "{figures:?}");
    }
}

#[test]
fn a_rate_may_be_a_fraction_or_have_a_suffix() {
    let server = Server::start(&["-q"]);
    for (rate, time, sent) in [
        ("2.5", "1s", 3),
        ("0.5", "1s", 1),
        ("0.5k", "200ms", 100),
        (".25", "500ms", 1),
    ] {
        let args = ["-r", rate, "-T", time, "--pipeline", "1000"];
        let figures = figures(server.address(), &args);
        figures.assert_flawless(1, 64);
        assert_eq!(figures.count("sent"), sent, "{rate}: {figures:?}");
        assert_eq!(figures.count("unsent"), 0, "{rate}: {figures:?}");
    }
}

#[test]
fn no_message_is_sent_before_it_is_due() {
    let (sender, arrivals) = mpsc::channel();
    let sender = Mutex::new(sender);
    let peer = Peer::answering(64, move |got| {
        let _ = sender.lock().unwrap().send(now());
        got.bytes
    });
    let begun = now();
    let args = ["-r", "20", "-c", "2", "--pipeline", "20", "-T", "1s"];
    figures(peer.address, &args).assert_flawless(2, 64);
    let arrivals: Vec<_> = arrivals.try_iter().collect();
    assert_eq!(arrivals.len(), 20);
    for (number, arrival) in (0..).zip(&arrivals) {
        let due = begun + Duration::from_millis(50) * number;
        assert!(
            *arrival >= due,
            "message {number}: {:?} early",
            due - *arrival
        );
    }
}

#[test]
fn a_rate_nobody_can_reach_is_said() {
    let peer = Peer::answering(64, |got| {
        pass(Duration::from_millis(20));
        got.bytes
    });
    let args = ["-r", "1000", "-T", "500ms"];
    let counted = figures(peer.address, &args);
    let sent = counted.count("sent");
    assert!((1..=26).contains(&sent), "{counted:?}");
    assert_eq!(counted.count("unsent"), 500 - sent);
    assert_eq!(counted.count("echoed"), sent);
    assert_eq!(counted.faults(), [0; 4]);

    let quiet = [&args[..], &["--quiet"]].concat();
    let (code, table, stderr) = output(load_command(peer.address, &quiet));
    assert_eq!((code, &*stderr), (0, ""));
    let said = row(&table, "rate");
    let (said, unsent) = said.split_once("/s: ").unwrap();
    assert!(said.starts_with("asked 1000/s, reached "), "{said}");
    let unsent = unsent.strip_suffix(" messages were never sent").unwrap();
    let unsent: u64 = unsent.parse().unwrap();
    assert!((474..500).contains(&unsent), "{unsent}");

    let expecting = [&quiet[..], &["--expect", "unsent==0"]].concat();
    let (code, _, stderr) = output(load_command(peer.address, &expecting));
    assert_eq!(code, 1);
    assert!(
        stderr.starts_with("standfast: expected unsent == 0, but it is 4"),
        "{stderr}"
    );
}

#[test]
fn without_verification_bytes_are_only_counted() {
    let home = Home::new();
    let server = home.serve(&["-q"]);
    let args = ["-c", "2", "--pipeline", "4", "--no-verify"];
    loaded(&home, &server, 64_000, &args).assert_flawless(2, 64);

    // Of this peer's every message nothing is right but the length.
    let peer = Peer::answering(64, |got| vec![0; got.bytes.len()]);
    let args = ["--json", "-T", "1m", "--no-verify"];
    let mut loading = Loading::start(peer.address, &args);
    peer.until_answered(100);
    loading.interrupted().assert_flawless(1, 64);

    // And here the length is wrong: bytes beyond the echo.
    let peer = Peer::answering(64, |got| match got.number {
        10 => [&got.bytes[..], &[0; 5]].concat(),
        _ => got.bytes,
    });
    let mut loading = Loading::start(peer.address, &args);
    peer.until_answered(100);
    let figures = loading.interrupted();
    let (sent, received) = (figures.count("sent_bytes"), figures.count("received_bytes"));
    assert_eq!(received, sent + 5, "{figures:?}");
    assert_eq!(figures.count("corrupted"), 0, "{figures:?}");
}

#[test]
fn at_the_end_echoes_are_awaited_as_long_as_they_come() {
    // It echoes 13 MB a second, and is never silent; of 64 MB outstanding the kernels have a few on their way.
    let peer = Peer::start(|_, mut stream| {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
            pass(Duration::from_millis(5));
        }
    });
    let args = ["--size", "4m", "--pipeline", "16", "-T", "100ms"];
    let figures = figures(
        peer.address,
        &[&args[..], &["--read-timeout", "2s"]].concat(),
    );
    figures.assert_unbroken(1);
    assert!(figures.count("sent_bytes") > 0, "{figures:?}");
    assert_eq!(figures.faults(), [0; 4], "{figures:?}");
}
