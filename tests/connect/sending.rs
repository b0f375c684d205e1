//! What is sent beside what is typed: heartbeats, and CR LF for LF.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use crate::support::connecting::{Connecting, Peer, assert_gets, assert_silent};
use crate::support::{now, pass, read_to_fin};

#[test]
fn a_heartbeat_is_an_empty_line_when_nothing_was_sent() {
    let peer = Peer::start();
    let start = now();
    let _connecting = Connecting::start(peer.address(), &["--heartbeat", "300ms"]);
    let mut server = peer.accept();
    for beat in 1..=4 {
        assert_gets(&mut server, b"\n");
        assert!(start.elapsed() >= beat * Duration::from_millis(300));
    }
}

#[test]
fn a_heartbeat_may_have_a_text_and_colons_in_it() {
    let (_connecting, mut server) = Connecting::connected(&["--heartbeat", "50ms:PING a:b"]);
    for _ in 0..3 {
        assert_gets(&mut server, b"PING a:b\n");
    }
}

#[test]
fn a_heartbeat_ends_as_lines_do() {
    let (_connecting, mut server) = Connecting::connected(&["--heartbeat", "50ms:PING", "-C"]);
    for _ in 0..3 {
        assert_gets(&mut server, b"PING\r\n");
    }
    let (_connecting, mut server) = Connecting::connected(&["--heartbeat", "50ms", "-C"]);
    assert_gets(&mut server, b"\r\n\r\n");
}

/// Reads until `end` has come, behind however many heartbeats.
fn read_to(server: &mut TcpStream, end: &[u8]) {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        read.extend(byte);
    }
}

#[test]
fn a_heartbeat_never_stands_inside_a_line() {
    let (connecting, mut server) = Connecting::connected(&["--heartbeat", "100ms:PING"]);
    assert_gets(&mut server, b"PING\n");
    connecting.types("half a");
    read_to(&mut server, b"half a");
    assert_silent(&mut server, Duration::from_millis(500));
    connecting.types(" line\n");
    assert_gets(&mut server, b" line\nPING\nPING\n");
}

#[test]
fn what_is_typed_puts_the_heartbeat_off() {
    let (connecting, mut server) = Connecting::connected(&["--heartbeat", "2s:PING"]);
    for _ in 0..30 {
        connecting.types("word\n");
        assert_gets(&mut server, b"word\n");
        pass(Duration::from_millis(100));
    }
    let last = now();
    connecting.types("the last\n");
    assert_gets(&mut server, b"the last\nPING\n");
    assert!(last.elapsed() >= Duration::from_secs(2));
}

#[test]
fn a_heartbeat_goes_on_after_the_end_of_stdin_only_if_something_can_be_sent() {
    let (mut connecting, mut server) = Connecting::connected(&["--heartbeat", "100ms:PING"]);
    connecting.types("all\n");
    connecting.ends_stdin();
    let sent = String::from_utf8(read_to_fin(&mut server)).unwrap();
    assert!(sent.ends_with("all\n"), "{sent:?}");
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);

    let peer = Peer::start();
    let mut receiving = Connecting::start(peer.address(), &["--heartbeat", "100ms:PING"]);
    receiving.ends_stdin();
    for _ in 0..2 {
        let mut server = peer.accept();
        assert_gets(&mut server, b"PING\nPING\n");
    }
}

#[test]
fn a_line_that_the_lost_server_got_half_of_does_not_hold_up_the_heartbeat_of_the_next() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &["--heartbeat", "100ms:PING"]);
    let mut first = peer.accept();
    connecting.types("half a");
    read_to(&mut first, b"half a");
    drop(first);
    connecting.says("lost ");
    assert_gets(&mut peer.accept(), b"PING\nPING\n");
}

#[test]
fn with_crlf_each_line_ends_with_cr_lf_and_none_with_two() {
    let (mut connecting, mut server) = Connecting::connected(&["-C"]);
    connecting.types("one\ntwo\r\n\n\rthree");
    assert_gets(&mut server, b"one\r\ntwo\r\n\r\n\rthree");
    // Over the border of two reads.
    connecting.types("\r");
    assert_gets(&mut server, b"\r");
    connecting.types("\n");
    assert_gets(&mut server, b"\n");
    connecting.types("\n");
    assert_gets(&mut server, b"\r\n");
    connecting.types("end");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"end");
}

#[test]
fn without_crlf_bytes_are_left_alone() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    let bytes: Vec<u8> = (0..=255).collect();
    let bytes = [&b"a\nb\r\nc\r\r\n\n"[..], &bytes].concat();
    connecting.types(bytes.clone());
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), bytes);
}
