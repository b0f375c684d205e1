//! Who is let in, and for how long.

/// Real proxies.
mod fronts;
/// Clients that come through proxies.
mod proxies;
/// Clients of one address that come too fast.
mod rates;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::clients::connect_from;
use crate::support::home::{Home, entry, seconds, text};
use crate::support::{GUARD, Server, assert_echoes, connect, now, output, read_to_fin, shell};

const FRIEND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 6, 6, 6);

/// The server's IPv4 address, whatever it listens on.
fn v4(server: &Server) -> SocketAddr {
    SocketAddr::from((FRIEND, server.address().port()))
}

#[track_caller]
fn assert_denied(server: &mut Server, source: Ipv4Addr) {
    let mut denied = connect_from(source, v4(server));
    assert_eq!(read_to_fin(&mut denied), b"");
    let closed = server.closed();
    assert_eq!(closed.reason(), "denied", "{}", closed.line);
    assert_eq!(closed.get("peer"), denied.local_addr().unwrap().to_string());
}

#[test]
fn who_is_denied_ends_at_once_and_the_others_are_served() {
    // As IPv4 and as IPv4 mapped into IPv6.
    for listener in ["0", ":0"] {
        let flags = [
            "-l",
            listener,
            "--deny",
            "127.6.0.0/16",
            "--allow",
            "127.0.0.0/8",
        ];
        let mut server = Server::start(&flags);
        assert_denied(&mut server, STRANGER);
        assert_echoes(&mut connect_from(FRIEND, v4(&server)), b"hello");
        assert_eq!(server.closed().reason(), "peer-closed");
        assert!(server.drain().success());
        assert_eq!(server.summary()["denied"], "1");
    }
}

#[test]
fn no_service_sees_who_is_denied() {
    let flags = [
        "exec",
        "-l",
        "0",
        "--allow",
        "127.0.0.1",
        "--",
        "sh",
        "-c",
        "echo seen; echo seen >&2",
    ];
    let mut server = Server::start(&flags);
    assert_denied(&mut server, STRANGER);
    assert_eq!(read_to_fin(&mut connect(v4(&server))), b"seen\n");
    let _ = server.closed();
    let seen = server.lines.iter().filter(|line| line.contains("seen"));
    assert!(seen.count() <= 1, "{:?}", server.lines);
}

#[test]
fn clients_of_a_unix_socket_are_not_concerned() {
    let home = Home::new();
    let path = home.join("socket");
    let listener = format!("unix:{}", text(&path));
    let deny = ["--deny", "0.0.0.0/0", "--deny", "::/0"];
    let server = Server::start(&[&["--control", "off", "-l", &listener], &deny[..]].concat());
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(GUARD)).unwrap();
    client.write_all(b"hello").unwrap();
    let mut came = [0; 5];
    client.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"hello");
    drop(server);
}

#[test]
fn a_successor_reads_the_rules_anew_and_keeps_who_is_connected() {
    let home = Home::new();
    let path = home.join("deny");
    fs::write(&path, "# nobody yet\n").unwrap();
    let file = format!("@{}", text(&path));
    let mut server = home.serve(&["--deny", &file]);
    let mut before = connect_from(STRANGER, v4(&server));
    assert_echoes(&mut before, b"hello");
    fs::write(&path, "10.0.0.0/8\n127.6.6.6 # he\n\n").unwrap();
    let mut next = home.succeed(&mut server, &["--deny", &file]);
    assert_echoes(&mut before, b"who is connected stays");
    assert_denied(&mut next, STRANGER);
    assert_echoes(&mut connect_from(FRIEND, v4(&next)), b"and others come in");
}

#[test]
fn a_file_of_rules_that_cannot_be_read_is_refused_and_the_old_server_goes_on() {
    let home = Home::new();
    let path = home.join("deny");
    fs::write(&path, "127.6.6.6\n").unwrap();
    let file = format!("@{}", text(&path));
    let mut server = home.serve(&["--deny", &file]);
    let mkfifo = format!("rm '{0}'; mkfifo '{0}'", text(&path));
    for (spoil, why) in [
        (
            shell(
                &format!("echo 10.0.0.0/8 > '{0}'; echo nobody >> '{0}'", text(&path)),
                &[],
            ),
            ":2: nobody: expected",
        ),
        (
            shell(&format!("echo 10.1.0.0/8 > '{}'", text(&path)), &[]),
            ":1: 10.1.0.0/8: the address has bits",
        ),
        (
            shell(&format!("truncate -s 100M '{}'", text(&path)), &[]),
            "larger than 16 MiB",
        ),
        (shell(&mkfifo, &[]), "not a file"),
        (shell(&format!("rm '{}'", text(&path)), &[]), "No such file"),
    ] {
        let mut spoil = spoil;
        assert!(spoil.status().unwrap().success());
        let (code, _, stderr) = output(home.successor(&server.addresses, &["--deny", &file]));
        assert_eq!(code, 2, "{stderr}");
        assert!(
            stderr.contains(why) && stderr.contains(text(&path)),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert_denied(&mut server, STRANGER);
}

#[test]
fn a_list_of_nobody_lets_nobody_in_and_is_not_taken_for_everybody() {
    let home = Home::new();
    let path = home.join("allow");
    fs::write(&path, "127.0.0.1\n").unwrap();
    let file = format!("@{}", text(&path));
    let mut server = home.serve(&["--allow", &file]);
    assert_denied(&mut server, STRANGER);
    for nobody in ["", "# 127.0.0.1\n"] {
        fs::write(&path, nobody).unwrap();
        for flag in ["--allow", "--accept-proxy-from"] {
            let (code, _, stderr) = output(home.successor(&server.addresses, &[flag, &file]));
            let why = format!("standfast: {flag} has no range in it: nobody could come in");
            assert_eq!((code, stderr), (2, why));
        }
    }
    assert_denied(&mut server, STRANGER);
}

// How many, how fast.

#[test]
fn an_ipv6_user_is_one_address_whatever_they_take_of_their_prefix() {
    // All of 127.0.0.0/8 is one user here, as a /64 is by default.
    let flags = ["--max-conns-per-ip", "1", "--ip-prefix", "8:64"];
    let mut server = Server::start(&flags);
    let mut first = connect_from(FRIEND, v4(&server));
    assert_echoes(&mut first, b"hello");
    assert_eq!(read_to_fin(&mut connect_from(STRANGER, v4(&server))), b"");
    let closed = server.closed();
    assert_eq!(closed.get("limit"), "max-conns-per-ip", "{}", closed.line);
    drop(first);
    assert_eq!(server.closed().reason(), "peer-closed");
    assert_echoes(&mut connect_from(STRANGER, v4(&server)), b"there is room");
}

#[test]
fn over_its_rate_a_listener_leaves_clients_in_the_backlog_and_serves_all() {
    let began = now();
    let mut server = Server::start(&["--accept-rate", "10/s:2"]);
    let mut clients: Vec<_> = (0..7).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    // Two at once, and five a tenth of a second each.
    assert!(now() - began >= Duration::from_millis(500));
    assert!(server.drain().success());
    let ended = server.summary();
    assert_eq!(ended["accepted"], "7");
}

#[test]
fn a_drain_takes_those_that_wait_for_the_rate() {
    let mut server = Server::start(&["--accept-rate", "1/s:1", "--drain-timeout", "off"]);
    let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    assert_echoes(&mut clients[0], b"hello");
    for client in &mut clients {
        client.write_all(b"served").unwrap();
    }
    let drained = now();
    assert!(server.drain().success());
    assert!(now() - drained < GUARD);
    for client in &mut clients {
        assert_eq!(read_to_fin(client), b"served");
    }
}

#[test]
fn those_who_wait_for_the_rate_are_served_by_a_successor() {
    let home = Home::new();
    let flags = ["--accept-rate", "2/s:1"];
    let mut server = home.serve(&flags);
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    assert_echoes(&mut clients[0], b"hello");
    let next = home.succeed(&mut server, &flags);
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    drop(next);
}

// How long.

#[test]
fn at_its_age_a_busy_client_ends_in_order_with_all_its_answers() {
    let began = now();
    let mut server = Server::start(&["--max-age", "500ms"]);
    let mut client = server.connect();
    let (mut sent, mut came) = (0, 0);
    // It never stops asking: only its age can end it.
    loop {
        sent += usize::from(client.write_all(b"a").is_ok());
        match client.read(&mut [0; 64]) {
            Ok(0) => break,
            Ok(count) => came += count,
            Err(error) => panic!("no end in order: {error}"),
        }
    }
    assert!(now() - began >= Duration::from_millis(450));
    // The last may have met the end.
    assert!(sent - came <= 1, "{came} of {sent}");
    drop(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "max-age", "{}", closed.line);
}

#[test]
fn a_program_is_ended_at_its_age_and_what_it_wrote_delivered() {
    let script = "trap 'echo bye; exit' TERM; echo hello; while :; do sleep 0.05; done";
    let flags = [
        "exec",
        "-l",
        "0",
        "--max-age",
        "300ms",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut server = Server::start(&flags);
    assert_eq!(read_to_fin(&mut server.connect()), b"hello\nbye\n");
    assert_eq!(server.closed().reason(), "max-age");
}

#[test]
fn both_sides_of_a_relay_end_at_its_age() {
    let upstream = Server::start(&[]);
    let to = upstream.address().to_string();
    let mut relay = Server::start(&["forward", &to, "--max-age", "300ms"]);
    let mut client = relay.connect();
    assert_echoes(&mut client, b"hello");
    assert_eq!(read_to_fin(&mut client), b"");
    drop(client);
    assert_eq!(relay.closed().reason(), "max-age");
    let mut upstream = upstream;
    assert_eq!(upstream.closed().reason(), "peer-closed");
}

#[test]
fn age_counts_on_over_a_takeover() {
    let home = Home::new();
    let flags = ["-i", "off", "--max-age", "1h"];
    let mut server = home.serve(&flags);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let due_in = || {
        let list = home.json(&["list"]);
        let next = &entry(&list, &client)["next_deadline"];
        assert_eq!(next["kind"], "age", "{list}");
        seconds(&next["due_in"])
    };
    let before = due_in();
    assert!((3240.0..=3600.0).contains(&before), "{before}");
    let next = home.succeed(&mut server, &flags);
    let after = due_in();
    assert!(after < before, "{after} after {before}");
    drop(next);
}
