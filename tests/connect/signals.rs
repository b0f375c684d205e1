//! Signals: what was typed is sent if it can be, and what cannot is counted.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::clients::until_acknowledged;
use crate::support::connecting::{Connecting, Peer, Port, assert_gets, connect_command};
use crate::support::{now, read_to_fin, shell, until_another_signal_counts};

#[test]
fn with_nothing_unsent_each_signal_ends_it_well() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (mut connecting, mut server) = Connecting::connected(&[]);
        connecting.types("hello\n");
        assert_gets(&mut server, b"hello\n");
        server.write_all(b"hello yourself\n").unwrap();
        connecting.prints(b"hello yourself\n");
        connecting.signal(signal);
        assert_eq!(read_to_fin(&mut server), b"", "FIN, no reset");
        drop(server);
        assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
        assert_eq!(connecting.lines.len(), 1, "{:?}", connecting.lines);
    }
}

#[test]
fn a_server_that_does_not_answer_the_fin_does_not_hold_up_the_end() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    connecting.types("hello\n");
    assert_gets(&mut server, b"hello\n");
    connecting.signal(Signal::TERM);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(read_to_fin(&mut server), b"", "FIN, no reset");
}

#[test]
fn while_not_connected_with_nothing_unsent_a_signal_ends_it_well() {
    let port = Port::new();
    // It waits for a long time before it tries again.
    let mut connecting = Connecting::start(port.address(), &["--backoff", "1h:1h"]);
    connecting.says("reconnecting in ");
    connecting.signal(Signal::TERM);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.lines.len(), 2, "{:?}", connecting.lines);
}

#[test]
fn while_not_connected_unsent_bytes_are_counted_and_a_failure() {
    let port = Port::new();
    for (typed, said) in [("hello\n", "6 bytes"), ("\n", "1 byte ")] {
        let mut connecting = Connecting::start(port.address(), &[]);
        connecting.types(typed);
        connecting.until_read(typed.len());
        connecting.signal(Signal::TERM);
        assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
        let last = connecting.lines.last().unwrap();
        assert!(last.contains(said), "{last}");
        assert_eq!(connecting.said(" byte"), 1, "{:?}", connecting.lines);
    }
}

#[test]
fn unsent_bytes_are_sent_to_a_server_that_takes_them() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    let typed = b"0123456789abcdef".repeat(400_000);
    connecting.types(typed.clone());
    // So much that some of it waits, and the signal comes while it does.
    connecting.until_idle();
    // The server begins to take them while it is told.
    connecting.suspend();
    connecting.signal(Signal::TERM);
    let reading = std::thread::spawn(move || read_to_fin(&mut server));
    connecting.resume();
    let got = reading.join().unwrap();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert!(!got.is_empty() && typed.starts_with(&got));
    // All that it had read is there: the rest is in the pipe, was never typed, or was read as the signal came.
    let taken = connecting.taken();
    assert!(
        got.len() + 2 * 65536 + 4096 >= taken,
        "{} of {taken}",
        got.len()
    );
}

/// A program with unsent bytes and a server that takes nothing.
fn stuck() -> (Connecting, TcpStream) {
    let (connecting, server) = Connecting::connected(&[]);
    connecting.types(vec![b'x'; 20 << 20]);
    connecting.until_stuck();
    (connecting, server)
}

#[test]
fn a_server_that_takes_nothing_holds_up_the_end_for_two_seconds() {
    let (mut connecting, server) = stuck();
    let start = now();
    connecting.signal(Signal::TERM);
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    assert!(start.elapsed() >= Duration::from_millis(1900));
    assert_eq!(connecting.said(" bytes "), 1, "{:?}", connecting.lines);
    drop(server);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [
        (Signal::TERM, Signal::TERM),
        (Signal::INT, Signal::TERM),
        (Signal::HUP, Signal::INT),
    ] {
        let (mut connecting, server) = stuck();
        connecting.signal(first);
        until_another_signal_counts();
        connecting.signal(second);
        assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
        assert_eq!(connecting.said(" bytes "), 1, "{:?}", connecting.lines);
        drop(server);
    }
}

#[test]
fn what_came_from_the_server_is_on_stdout_before_a_signal_ends_it() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    let answer: Vec<u8> = (0..10_000_u32).flat_map(u32::to_be_bytes).collect();
    connecting.suspend();
    server.write_all(&answer).unwrap();
    until_acknowledged(&server);
    connecting.signal(Signal::TERM);
    connecting.resume();
    assert_eq!(read_to_fin(&mut server), b"");
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    let printed = connecting.stdout_rest();
    assert!(
        printed == answer,
        "{} of {} bytes",
        printed.len(),
        answer.len()
    );
}

#[test]
fn a_server_that_never_stops_talking_does_not_hold_up_the_end() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    let talking = std::thread::spawn(move || while server.write_all(&[b'x'; 65536]).is_ok() {});
    connecting.prints(&[b'x'; 1 << 20]);
    connecting.signal(Signal::TERM);
    let code = connecting.ends();
    // What stdout had no time for is a failure.
    let unwritten = connecting.said(" bytes not written to stdout");
    assert_eq!(code, i32::from(unwritten > 0), "{:?}", connecting.lines);
    talking.join().unwrap();
}

#[test]
fn a_stdout_that_is_not_read_holds_up_the_end_for_two_seconds() {
    let peer = Peer::start();
    let (pipe, writer) = std::io::pipe().unwrap();
    let mut command = connect_command(&peer.address().to_string(), &[]);
    command.stdin(Stdio::piped()).stdout(writer);
    let mut connecting = Connecting::launch(command);
    let mut server = peer.accept();
    connecting.connects(peer.address());
    server.write_all(&[b'x'; 200_000]).unwrap();
    until_acknowledged(&server);
    let start = now();
    connecting.signal(Signal::TERM);
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    assert!(start.elapsed() >= Duration::from_millis(1900));
    let said = connecting.said(" bytes not written to stdout");
    assert_eq!(said, 1, "{:?}", connecting.lines);
    drop(pipe);
}

#[test]
fn after_the_end_of_stdin_a_signal_ends_the_wait_for_the_server() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    connecting.types("question");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"question");
    connecting.signal(Signal::INT);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

/// SIGHUP does nothing to a program started by `command`; SIGTERM ends it.
#[track_caller]
fn assert_deaf_to_hangup(peer: &Peer, command: Command) {
    let mut connecting = Connecting::spawn(command);
    let mut server = peer.accept();
    connecting.connects(peer.address());
    for line in ["one\n", "two\n"] {
        connecting.signal(Signal::HUP);
        connecting.types(line);
        assert_gets(&mut server, line.as_bytes());
    }
    connecting.signal(Signal::TERM);
    assert_eq!(read_to_fin(&mut server), b"");
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn a_hangup_ignored_at_the_start_stays_ignored() {
    let peer = Peer::start();
    let to = peer.address().to_string();
    let command = shell(r#"trap '' HUP; exec "$@""#, &["connect", &to]);
    assert_deaf_to_hangup(&peer, command);
}

#[test]
fn nohup_keeps_it_alive() {
    let peer = Peer::start();
    let connect = connect_command(&peer.address().to_string(), &[]);
    let mut command = Command::new("nohup");
    command.arg(connect.get_program()).args(connect.get_args());
    assert_deaf_to_hangup(&peer, command);
}
