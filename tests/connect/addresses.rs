//! Whom it connects to and from where: every form of address, families, sources, names with several addresses.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::process::Command;

use crate::support::connecting::{Connecting, Peer, Port, assert_gets, connect_command};
use crate::support::home::{Home, text};
use crate::support::peers::fill;
use crate::support::{GUARD, cannot_run, output, standfast};

/// Connects to `to` and says hello to `peer`, which answers; what it said of that.
#[track_caller]
fn assert_reaches(peer: &Peer, to: &str, args: &[&str]) -> String {
    let mut connecting = Connecting::start(to, args);
    let mut server = peer.accept();
    let said = connecting.connects(peer.address());
    connecting.types("hello\n");
    assert_gets(&mut server, b"hello\n");
    // Before its server, to whom it would come back.
    drop(connecting);
    said
}

/// Somebody who listens on the IPv6 loopback, if there is one.
fn on_ipv6(test: &str) -> Option<Peer> {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    if let Err(why) = std::net::TcpListener::bind(address) {
        cannot_run(test, &format!("IPv6 ({why})"));
        return None;
    }
    Some(Port::at(address).listen())
}

#[test]
fn every_form_of_an_address_is_understood() {
    let peer = Peer::start();
    let port = peer.address().port();
    for to in [
        format!("127.0.0.1:{port}"),
        format!("127.0.0.1 {port}"),
        format!("{port}"),
        format!("localhost:{port}"),
        format!("localhost {port}"),
    ] {
        assert_reaches(&peer, &to, &[]);
    }
}

#[test]
fn every_form_of_an_ipv6_address_is_understood() {
    let Some(peer) = on_ipv6("every_form_of_an_ipv6_address_is_understood") else {
        return;
    };
    let port = peer.address().port();
    for to in [
        format!("[::1]:{port}"),
        format!("[::1] {port}"),
        format!("::1 {port}"),
    ] {
        for args in [&[][..], &["-6"]] {
            assert_reaches(&peer, &to, args);
        }
    }
}

#[test]
fn a_family_that_was_asked_for_is_the_only_one_tried() {
    let peer = Peer::start();
    let to = format!("localhost:{}", peer.address().port());
    assert_reaches(&peer, &to, &["-4"]);
    let (code, _, stderr) = output(connect_command(&to, &["-6", "--reconnect", "never"]));
    assert_eq!(code, 1, "{stderr}");
    assert!(!stderr.contains("connected to"), "{stderr}");
}

#[test]
fn the_server_sees_the_source_that_was_asked_for() {
    let peer = Peer::start();
    let source = Ipv4Addr::new(127, 0, 0, 2);
    let args = ["-s", "127.0.0.2", "-v"];
    let mut connecting = Connecting::start(peer.address(), &args);
    for _ in 0..2 {
        let from = peer.dismiss();
        assert_eq!(from.ip(), IpAddr::V4(source));
        let said = connecting.connects(peer.address());
        assert!(said.contains(&from.to_string()), "{said}, from {from}");
    }
}

#[test]
fn a_source_that_is_no_address_of_this_host_is_one_line() {
    let port = Port::new();
    let to = port.address().to_string();
    let args = ["-s", "192.0.2.1", "--reconnect", "never"];
    let (code, _, stderr) = output(connect_command(&to, &args));
    assert_eq!((code, stderr.lines().count()), (1, 1), "{stderr}");
    assert!(
        stderr.contains("Cannot assign requested address"),
        "{stderr}"
    );
}

#[test]
fn verbose_says_from_where_and_what_finds_a_vanished_server() {
    for (args, wanted) in [
        (&["-v"][..], ["60:10:3", "102"]),
        (&["-v", "--keepalive", "20:5:2"], ["20:5:2", "34"]),
        (&["-v", "--dead-after", "30s"], [":", "30"]),
    ] {
        let (connecting, server) = Connecting::connected(args);
        let said = connecting.lines.last().unwrap();
        let from = server.peer_addr().unwrap().to_string();
        for wanted in [&from, wanted[0], wanted[1]] {
            assert!(said.contains(wanted), "{wanted} in: {said}");
        }
    }
    let (connecting, server) = Connecting::connected(&[]);
    let said = connecting.lines.last().unwrap();
    let to = server.local_addr().unwrap();
    assert_eq!(said, &format!("standfast: connected to {to}"));
}

/// Talks over `listener` to a program that connected to `to`, twice.
#[track_caller]
fn assert_talks_over(listener: &UnixListener, to: &str) {
    let mut connecting = Connecting::start(to, &["-v"]);
    for round in ["one\n", "two\n"] {
        listener.set_nonblocking(false).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(GUARD)).unwrap();
        connecting.connects(to);
        connecting.types(round);
        assert_gets(&mut server, round.as_bytes());
        server.write_all(round.as_bytes()).unwrap();
        connecting.prints(round.as_bytes());
        drop(server);
        connecting.says(&format!("lost {to}: peer-closed"));
    }
}

#[test]
fn a_unix_socket_is_connected_to() {
    let home = Home::new();
    let path = home.join("socket");
    let to = format!("unix:{}", text(&path));
    let mut early = Connecting::start(&to, &[]);
    early.says(&format!("cannot connect to {to}: No such file"));
    drop(early);
    assert_talks_over(&UnixListener::bind(&path).unwrap(), &to);
}

#[test]
fn an_abstract_socket_is_connected_to() {
    let name = format!("standfast-test-{}", std::process::id());
    let address = UnixAddress::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    assert_talks_over(&listener, &format!("unix:@{name}"));
}

/// `standfast connect ARGS... TO` on a host where `name.test` has `addresses`. Needs to be root.
fn where_a_name_has(addresses: &[IpAddr], home: &Home, to: &str, args: &[&str]) -> Option<Command> {
    let lines: String = addresses
        .iter()
        .map(|address| format!("{address} name.test\n"))
        .collect();
    let hosts = home.join("hosts");
    fs::write(&hosts, lines).unwrap();
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "mount", "--version"]);
    if !probe.status().is_ok_and(|status| status.success()) {
        return None;
    }
    let script = r#"mount --bind "$0" /etc/hosts && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, text(&hosts)]);
    command.arg(standfast().get_program());
    command
        .args(["connect", "--backoff", "10ms:100ms"])
        .args(args)
        .arg(to);
    Some(command)
}

/// Ports of several addresses, all with the same number.
fn same_port(addresses: [Ipv4Addr; 2]) -> [Port; 2] {
    let first = Port::at((addresses[0], 0).into());
    let number = first.address().port();
    [first, Port::at((addresses[1], number).into())]
}

const TWO: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];

#[test]
fn every_address_of_a_name_is_tried() {
    for listening in [0, 1] {
        let home = Home::new();
        let mut ports = same_port(TWO).map(Some);
        let to = format!("name.test:{}", ports[0].as_ref().unwrap().address().port());
        let peer = ports[listening].take().unwrap().listen();
        let Some(command) = where_a_name_has(&TWO.map(IpAddr::V4), &home, &to, &[]) else {
            return cannot_run("every_address_of_a_name_is_tried", "root, for namespaces");
        };
        let mut connecting = Connecting::spawn(command);
        let mut server = peer.accept();
        connecting.connects(peer.address());
        connecting.types("hello\n");
        assert_gets(&mut server, b"hello\n");
        assert_eq!(connecting.said("cannot"), 0, "{:?}", connecting.lines);
    }
}

#[test]
fn when_no_address_of_a_name_answers_each_is_told_in_the_line() {
    let home = Home::new();
    let ports = same_port(TWO);
    let to = format!("name.test:{}", ports[0].address().port());
    let args = ["--reconnect", "never"];
    let Some(command) = where_a_name_has(&TWO.map(IpAddr::V4), &home, &to, &args) else {
        return cannot_run(
            "when_no_address_of_a_name_answers_each_is_told_in_the_line",
            "root, for namespaces",
        );
    };
    let (code, _, stderr) = output(command);
    assert_eq!((code, stderr.lines().count()), (1, 1), "{stderr}");
    for port in &ports {
        let refused = format!("{} Connection refused", port.address());
        assert!(stderr.contains(&refused), "{refused} in: {stderr}");
    }
    assert!(
        stderr.contains(&format!("cannot connect to {to}: ")),
        "{stderr}"
    );
}

#[test]
fn an_address_that_does_not_answer_does_not_hold_up_the_next() {
    for listening in [0, 1] {
        let home = Home::new();
        let mut ports = same_port(TWO).map(Some);
        let to = format!("name.test:{}", ports[0].as_ref().unwrap().address().port());
        let peer = ports[listening].take().unwrap().listen();
        let deaf = ports[1 - listening].take().unwrap().listen_with(0);
        let _queued = fill(deaf.address());
        let args = ["--connect-timeout", "20s"];
        let Some(command) = where_a_name_has(&TWO.map(IpAddr::V4), &home, &to, &args) else {
            return cannot_run(
                "an_address_that_does_not_answer_does_not_hold_up_the_next",
                "root, for namespaces",
            );
        };
        let mut connecting = Connecting::spawn(command);
        peer.accept();
        connecting.connects(peer.address());
        assert_eq!(connecting.said("cannot"), 0, "{:?}", connecting.lines);
    }
}

#[test]
fn a_host_without_ipv6_has_no_address_to_reach_one_from() {
    let script =
        r#"ip link set lo up && echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 && exec "$@""#;
    let within = |what: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh"]).args(what);
        command
    };
    let possible = within(&["true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return cannot_run(
            "a_host_without_ipv6_has_no_address_to_reach_one_from",
            "root, for namespaces, and ip(8)",
        );
    }
    let program = standfast().get_program().to_str().unwrap().to_owned();
    let (code, _, stderr) = output(within(&[
        &program,
        "connect",
        "--reconnect",
        "never",
        "[::1]:9",
    ]));
    assert_eq!(code, 1, "{stderr}");
    let said = "cannot connect to [::1]:9: Cannot assign requested address (os error 99); \
                this host has no address that could reach it";
    assert!(stderr.ends_with(said), "{stderr}");
}
