//! A drain that takes its time: its delay, its spread, and what ends it.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::clients::assert_over;
use crate::support::home::{Home, refusal};
use crate::support::{
    Server, assert_echoes, connect, facts, listening, now, output, read_to_fin, restarted,
    send_until_stuck, until, until_another_signal_counts,
};

/// Its clients, as many of each of its two workers.
fn served(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    clients
}

fn state(home: &Home) -> (bool, bool) {
    let status = home.json(&["status"]);
    let told = |key: &str| status[key].as_bool().unwrap();
    (told("draining"), told("accepting"))
}

#[track_caller]
fn until_it_drains(home: &Home) {
    until("the drain", || state(home).0);
}

#[test]
fn in_its_delay_a_server_is_not_ready_but_accepts_and_serves() {
    const DELAY: Duration = Duration::from_secs(3);
    for command in [false, true] {
        let home = Home::new();
        let mut server = home.serve(&["--drain-delay", "3s", "--workers", "2"]);
        let mut clients = served(&server, 4);
        assert_eq!(state(&home), (false, true));
        let start = now();
        if command {
            home.answer(&["drain"]);
        } else {
            server.signal(Signal::TERM);
            until_it_drains(&home);
        }
        // Where this machine was too busy to look in time, the line below says when it stopped.
        if now() < start + DELAY {
            let seen = state(&home);
            assert!(seen.0);
            let mut newcomer = server.connect();
            if now() < start + DELAY {
                assert!(seen.1, "it accepts");
                assert_echoes(&mut newcomer, b"who comes now is served");
                assert_echoes(&mut clients[0], b"and who was there");
            }
            clients.push(newcomer);
        }
        let count = clients.len().to_string();
        server.log_line("its word", |line| line.contains("accepting no more"));
        assert!(start.elapsed() >= DELAY, "not before its time");
        for client in &mut clients {
            assert_eq!(read_to_fin(client), b"", "FIN, no reset");
        }
        drop(clients);
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(server.summary()["drain"], count);
    }
}

#[test]
fn who_keeps_a_server_company_in_its_spread_is_served_until_his_turn_comes() {
    const SPREAD: Duration = Duration::from_secs(4);
    const CLIENTS: u32 = 20;
    let home = Home::new();
    let mut server = home.serve(&["--drain-spread", "4s", "--workers", "2"]);
    let clients = served(&server, CLIENTS as usize);
    let start = now();
    server.signal(Signal::TERM);
    let served = |mut client: TcpStream| {
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            let mut byte = [0];
            let mut echoed = 0;
            while client.write_all(b"x").is_ok()
                && client.read(&mut byte).is_ok_and(|count| count > 0)
            {
                echoed += 1;
                crate::support::pass(Duration::from_millis(20));
            }
            (now(), echoed)
        })
    };
    let clients: Vec<_> = clients.into_iter().map(served).collect();
    let ends = clients.into_iter().map(|client| client.join().unwrap());
    let mut ends: Vec<(Instant, u32)> = ends.collect();
    ends.sort();
    for (nth, (end, _)) in (0..CLIENTS).zip(&ends) {
        let earliest = start + SPREAD * nth / CLIENTS;
        assert!(*end >= earliest, "{nth}: {:?} too soon", earliest - *end);
    }
    assert!(ends[CLIENTS as usize - 1].1 > ends[0].1, "{ends:?}");
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(server.summary()["drain"], CLIENTS.to_string());
}

#[test]
fn a_drain_ends_when_nobody_is_left() {
    let home = Home::new();
    let mut server = home.serve(&["--drain-spread", "1h", "--workers", "2"]);
    let clients = served(&server, 3);
    server.signal(Signal::TERM);
    until_it_drains(&home);
    drop(clients);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_delay_and_the_spread_at_once() {
    for slow in ["--drain-delay", "--drain-spread"] {
        let home = Home::new();
        let mut server = home.serve(&[slow, "1h", "--workers", "2"]);
        let mut clients = served(&server, 4);
        server.signal(Signal::TERM);
        until_it_drains(&home);
        until_another_signal_counts();
        server.signal(Signal::TERM);
        assert_eq!(server.wait().code(), Some(1), "something had to be cut");
        assert_eq!(server.summary()["cut"], "4");
        for client in &mut clients {
            assert_over(client);
        }
    }
}

#[test]
fn a_takeover_from_a_server_that_drains_is_refused_and_costs_nobody() {
    for slow in ["--drain-delay", "--drain-spread"] {
        let home = Home::new();
        let mut server = home.serve(&[slow, "1h", "--workers", "2"]);
        let mut clients = served(&server, 4);
        home.answer(&["drain"]);
        until_it_drains(&home);
        let (code, _, stderr) = restarted(|| home.standfast(&["restart"]));
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("the running server is ending"), "{stderr}");
        let (code, stdout, stderr) = output(home.successor(&server.addresses, &[]));
        assert_eq!((code, &*stdout), (1, ""), "{stderr}");
        assert!(stderr.contains("the running server is ending"), "{stderr}");
        for client in &mut clients {
            assert_echoes(client, b"still there");
        }
        if slow == "--drain-delay" {
            assert_echoes(&mut server.connect(), b"and comes in");
        }
        assert_eq!(state(&home), (true, slow == "--drain-delay"));
        home.answer(&["stop"]);
        assert_eq!(server.wait().code(), Some(1));
    }
}

/// How many sockets two processes have copies of.
fn shared_sockets(one: &Server, other: &Server) -> usize {
    let sockets = |server: &Server| -> HashSet<PathBuf> {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
        let links = folder.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .collect()
    };
    sockets(one).intersection(&sockets(other)).count()
}

#[test]
fn a_drain_calls_off_a_takeover_and_its_delay_begins() {
    for fault in ["hang-pre-copy", "hang-freeze"] {
        let home = Home::new();
        let mut server = home.serve(&["--drain-delay", "1h", "--workers", "2"]);
        let mut clients = served(&server, 4);
        let mut next = home.faulty(&server, &[], fault);
        until("it has the listener", || shared_sockets(&server, &next) > 0);
        home.answer(&["drain"]);
        server.log_line("its end", |line| line.contains("takeover failed"));
        let mut newcomer = server.connect();
        assert_echoes(&mut newcomer, b"comes in");
        for client in &mut clients {
            assert_echoes(client, b"still there");
        }
        assert_eq!(state(&home), (true, true));
        next.signal(Signal::KILL);
        let _ = next.wait();
        home.answer(&["stop"]);
        let _ = server.wait();
    }
}

#[test]
fn who_is_not_done_in_time_is_cut_and_that_is_said() {
    let mut server = Server::start(&["--drain-timeout", "1s", "--drain-spread", "100ms"]);
    let mut stuck = server.connect();
    send_until_stuck(&mut stuck, &[b'x'; 65536]);
    let start = now();
    server.signal(Signal::TERM);
    let line = server.log_line("the cut", |line| line.contains("a drain has to cut"));
    let said = facts(&line);
    assert_eq!([&*said["late"], &*said["left"]], ["1", "1"]);
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "not before its time"
    );
    assert_eq!(server.wait().code(), Some(1));
    assert_eq!(server.summary()["cut"], "1");
    drop(stuck);
}

#[test]
fn a_server_that_cannot_print_any_more_waits_for_no_delay() {
    let home = Home::new();
    let (stdout, writer) = std::io::pipe().unwrap();
    let mut command = home.standfast(&["serve", "print", "-l", "0", "--drain-delay", "1h"]);
    command.args(["--drain-spread", "1h"]).stdin(Stdio::null());
    let mut server = Server::launch({
        command.stdout(writer);
        command
    });
    let mut said = String::new();
    let mut stdout = BufReader::new(stdout);
    stdout.read_line(&mut said).unwrap();
    let client = connect(listening(said.trim_end()));
    drop(stdout);
    assert_eq!(server.wait().code(), Some(0));
    drop(client);
}

#[test]
fn check_says_when_a_drain_is_over_at_the_latest() {
    let home = Home::new();
    let slow = ["check", "--drain-delay", "5s", "--drain-spread", "30s"];
    assert!(home.answer(&slow).contains("the drain is over within 45s"));
    let off = [&slow[..], &["--drain-timeout", "off"]].concat();
    assert!(home.answer(&off).contains("lasts until the last is done"));
    let (code, said) = refusal(home.standfast(&["serve", "--drain-delay", "0"]));
    assert_eq!(code, 2, "{said}");
}
