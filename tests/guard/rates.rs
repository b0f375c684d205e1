//! Clients of one address that come too fast: each is served in its turn, and nobody else waits for them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::{FRIEND, STRANGER, v4};
use crate::support::clients::{connect_from, reset};
use crate::support::connecting::assert_gets;
use crate::support::home::{Home, number};
use crate::support::{GUARD, Server, assert_echoes, facts, now, read_to_fin, until};

fn strangers(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut clients: Vec<_> = (0..count)
        .map(|_| connect_from(STRANGER, v4(server)))
        .collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("{at:03}").as_bytes()).unwrap();
    }
    clients
}

#[test]
fn a_crowd_of_one_address_is_served_in_turn_and_delays_nobody_else() {
    let mut server = Server::start(&["--accept-rate-per-ip", "10/s:2", "-v", "--workers", "1"]);
    // The server's first look at who is there may have begun before it said that it listens.
    assert_echoes(&mut connect_from(FRIEND, v4(&server)), b"first");
    let began = now();
    let mut crowd = strangers(&server, 8);
    // However many of the others wait.
    let mut other = connect_from(FRIEND, v4(&server));
    assert_echoes(&mut other, b"hello");
    server.log_line("they wait", |line| line.contains("at the door id=9"));
    for (at, client) in crowd.iter_mut().enumerate() {
        assert_gets(client, format!("{at:03}").as_bytes());
        let earliest = Duration::from_millis(100) * u32::try_from(at.saturating_sub(1)).unwrap();
        assert!(now() - began >= earliest, "{at}");
    }
    // In the order in which they came.
    server.log_line("the last is let in", |line| line.contains("let in id=9 "));
    let ids: Vec<u64> = server
        .lines
        .iter()
        .filter(|line| line.contains("let in") && line.contains("127.6.6.6"))
        .map(|line| facts(line)["id"].parse().unwrap())
        .collect();
    assert_eq!(ids.len(), 6, "{:?}", server.lines);
    assert!(ids.is_sorted(), "{ids:?}");
    assert!(server.drain().success());
    assert_eq!(server.summary()["accepted"], "10");
}

#[test]
fn who_waits_for_their_turn_is_seen_and_succeeded_and_keeps_their_place() {
    let home = Home::new();
    let flags = ["--accept-rate-per-ip", "1/s:1", "--ip-prefix", "8:64"];
    let mut server = home.serve(&flags);
    let port = server.address().port().to_string();
    let began = now();
    // So many that some wait yet when a busy machine has come to ask.
    let mut crowd = strangers(&server, 10);
    assert_gets(&mut crowd[0], b"000");
    // While they are asked somebody's turn may come.
    let at_door = || number(&home.json(&["status", &port])["at_door"]);
    let waiting = |row: &&serde_json::Value| row["next_deadline"]["kind"] == "turn";
    until("they wait, and are listed so", || {
        let before = at_door();
        let list = home.json(&["list", &port]);
        let listed = list.as_array().unwrap().iter().filter(waiting).count() as u64;
        listed > 0 && (at_door()..=before).contains(&listed)
    });
    let server = home.succeed(&mut server, &flags);
    let mut late = connect_from(FRIEND, v4(&server));
    late.write_all(b"late").unwrap();
    for (at, client) in crowd.iter_mut().enumerate().skip(1) {
        assert_gets(client, format!("{at:03}").as_bytes());
        assert!(now() - began >= Duration::from_millis(990) * u32::try_from(at).unwrap());
    }
    // A newcomer of the same addresses is behind them, but for the burst that a new process begins with.
    assert_gets(&mut late, b"late");
    assert!(now() - began >= Duration::from_millis(9900));
    assert_eq!(number(&home.json(&["status", &port])["at_door"]), 0);
}

#[test]
fn a_drain_serves_who_waits_for_their_turn() {
    let mut server = Server::start(&["--accept-rate-per-ip", "1/s:1", "--drain-timeout", "off"]);
    let mut crowd = strangers(&server, 40);
    assert_gets(&mut crowd[0], b"000");
    // One has said all it had to say.
    crowd[5].shutdown(Shutdown::Write).unwrap();
    let began = now();
    assert!(server.drain().success());
    for (at, client) in crowd.iter_mut().enumerate().skip(1) {
        assert_eq!(read_to_fin(client), format!("{at:03}").as_bytes());
    }
    assert!(now() - began < GUARD);
    assert_eq!(server.summary()["accepted"], "40");
}

#[test]
fn who_leaves_before_their_turn_leaves_it_to_others_of_their_address() {
    let mut server = Server::start(&["--accept-rate-per-ip", "1/s:1"]);
    let mut first = connect_from(STRANGER, v4(&server));
    assert_echoes(&mut first, b"first");
    for _ in 0..100 {
        reset(connect_from(STRANGER, v4(&server)));
    }
    for _ in 0..100 {
        assert_eq!(server.closed().reason(), "peer-reset");
    }
    // In a second or two, and not in a hundred.
    let mut next = connect_from(STRANGER, v4(&server));
    assert_echoes(&mut next, b"next");
}

#[test]
fn what_was_sent_and_ended_before_its_turn_is_served_whole() {
    let mut server = Server::start(&["print", "-l", "0", "--accept-rate-per-ip", "2/s:1"]);
    for word in ["one", "two", "three"] {
        let mut client = connect_from(STRANGER, v4(&server));
        client.write_all(format!("{word}\n").as_bytes()).unwrap();
    }
    for word in ["one", "two", "three"] {
        assert_eq!(server.stdout_line(), word);
    }
}

#[test]
fn clients_behind_a_proxy_have_a_rate_each() {
    let server = Server::start(&["--accept-proxy", "--accept-rate-per-ip", "2/s:1"]);
    let come = |address: &str| {
        let mut client = server.connect();
        let line = format!("PROXY TCP4 {address} 192.0.2.1 5 6\r\nhello");
        client.write_all(line.as_bytes()).unwrap();
        client
    };
    let began = now();
    let mut crowd: Vec<_> = (0..4).map(|_| come("192.0.2.1")).collect();
    let mut other = come("192.0.2.2");
    let mut came = [0; 5];
    other.read_exact(&mut came).unwrap();
    for client in &mut crowd {
        assert_gets(client, b"hello");
    }
    assert!(now() - began >= Duration::from_millis(1500));
}
