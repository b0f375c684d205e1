//! Each way to lose a server, or not to get one: found in time, and said in one line with its reason.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use socket2::Socket;

use crate::support::clients::{reset, vanish};
use crate::support::connecting::{
    Connecting, Peer, Port, assert_gets, connect_command, seconds_behind,
};
use crate::support::peers::fill;
use crate::support::{cannot_run, lacks, now, output, pass, standfast};

/// What a connect that is not to be tried again says: one line.
#[track_caller]
fn refusal(to: &str, args: &[&str]) -> String {
    let args = [&["--reconnect", "never"], args].concat();
    let (code, stdout, stderr) = output(connect_command(to, &args));
    assert_eq!((code, &*stdout), (1, ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn a_reset_is_said_to_be_one() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &[]);
    let mut accepted = peer.accept();
    accepted.write_all(b"before it\n").unwrap();
    connecting.prints(b"before it\n");
    reset(accepted);
    let lost = connecting.says(&format!("lost {}: peer-reset (silent ", peer.address()));
    assert!(
        lost.contains(" s, up ") && lost.ends_with(" s, ECONNRESET)"),
        "{lost}"
    );
    peer.accept();
    connecting.connects(peer.address());
}

#[test]
fn lines_say_when_if_asked_to() {
    for flag in ["--timestamps", "-v"] {
        let peer = Peer::start();
        let mut connecting = Connecting::start(peer.address(), &[flag]);
        let mut accepted = Some(peer.accept());
        for what in ["connected to ", "lost ", "reconnecting in "] {
            let said = connecting.says(what);
            // Once it has seen that it is connected.
            if let Some(accepted) = accepted.take() {
                reset(accepted);
            }
            let (when, rest) = said.split_once(' ').unwrap();
            // 2026-11-28T14:46:29.123Z
            let digits = when.bytes().filter(u8::is_ascii_digit).count();
            assert!(
                digits == 17 && when.len() == 24 && when.ends_with('Z'),
                "{said}"
            );
            assert!(rest.starts_with(what), "{said}");
        }
    }
}

#[test]
fn bytes_in_flight_to_a_vanished_server_are_said_to_be_unacknowledged_and_when() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &["--dead-after", "5s"]);
    let mut accepted = peer.accept();
    connecting.types("one\n");
    assert_gets(&mut accepted, b"one\n");
    let vanished = vanish(&accepted);
    connecting.types("into the silence\n");
    let lost = connecting.says(&format!("lost {}: unacknowledged (silent ", peer.address()));
    let (least, most) = (4.7, vanished.heard.elapsed().as_secs_f64() + 0.1);
    let after = seconds_behind(&lost, "(silent ");
    assert!((least..=most).contains(&after), "{most} s: {lost}");
    // What the kernel had taken is gone with the connection; what comes now is not.
    let mut accepted = peer.accept();
    connecting.types("two\n");
    assert_gets(&mut accepted, b"two\n");
}

#[test]
fn a_silent_server_is_given_up_at_the_read_timeout() {
    let peer = Peer::start();
    let start = now();
    let mut connecting = Connecting::start(peer.address(), &["--read-timeout", "300ms"]);
    for round in 1..=3 {
        let _silent = peer.accept();
        let lost = connecting.says(&format!("lost {}: read-timeout (silent ", peer.address()));
        assert!(start.elapsed() >= round * Duration::from_millis(300));
        assert_eq!(seconds_behind(&lost, "(silent "), 0.3, "{lost}");
        connecting.says("reconnecting in ");
    }
}

#[test]
fn what_the_server_says_renews_the_read_timeout() {
    let peer = Peer::start();
    let args = ["--read-timeout", "2s", "--on-read-timeout", "exit"];
    let mut connecting = Connecting::start(peer.address(), &args);
    let mut accepted = peer.accept();
    let start = now();
    let mut last = start;
    while start.elapsed() < Duration::from_secs(3) {
        last = now();
        accepted.write_all(b".").unwrap();
        connecting.prints(b".");
        pass(Duration::from_millis(50));
    }
    assert_eq!(connecting.ends(), 4, "{:?}", connecting.lines);
    assert!(last.elapsed() >= Duration::from_secs(2));
}

#[test]
fn a_name_nobody_has_is_one_line_and_tried_again() {
    // A label may have 63 characters, so nobody has to be asked.
    let to = format!("{}.invalid:7000", "x".repeat(70));
    let said = refusal(&to, &[]);
    assert!(said.contains(&format!("cannot resolve {to}: ")), "{said}");
    let mut connecting = Connecting::start(&to, &["--max-retries", "2"]);
    assert_eq!(connecting.ends(), 3, "{:?}", connecting.lines);
    assert_eq!(connecting.said("cannot resolve "), 3);
}

#[test]
fn a_network_without_a_way_there_is_one_line() {
    if lacks(&["unshare", "ip"]) {
        return;
    }
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "sh",
        "-c",
        r#"ip link set lo up && exec "$@""#,
        "sh",
    ]);
    command.arg(standfast().get_program());
    command.args(["connect", "--reconnect", "never", "192.0.2.1:7000"]);
    let (code, _, stderr) = output(command);
    if stderr.contains("unshare") {
        return cannot_run(
            "a_network_without_a_way_there_is_one_line",
            "root, for namespaces",
        );
    }
    assert_eq!(code, 1, "{stderr}");
    assert_eq!(
        stderr,
        "standfast: cannot connect to 192.0.2.1:7000: Network is unreachable (os error 101)"
    );
}

#[test]
fn an_address_that_cannot_be_connected_to_is_one_line() {
    // The broadcast address of the loopback.
    let said = refusal("127.255.255.255:7000", &[]);
    assert!(
        said.contains("cannot connect to 127.255.255.255:7000: "),
        "{said}"
    );
}

/// A listener whose queue is full: it answers nobody any more. And who fills it.
fn full() -> (Peer, Vec<Socket>) {
    let peer = Port::new().listen_with(0);
    let queued = fill(peer.address());
    (peer, queued)
}

#[test]
fn a_server_that_does_not_answer_is_given_up_at_the_connect_timeout() {
    let (peer, _queued) = full();
    let to = peer.address().to_string();
    let start = now();
    let said = refusal(&to, &["--connect-timeout", "400ms"]);
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert_eq!(
        said,
        format!("standfast: cannot connect to {to}: no answer within 400ms")
    );
}

#[test]
fn a_server_that_does_not_answer_is_tried_again_until_it_does() {
    let (peer, queued) = full();
    let args = ["--connect-timeout", "300ms"];
    let mut connecting = Connecting::start(peer.address(), &args);
    connecting.types("at last\n");
    for _ in 0..2 {
        connecting.says("no answer within 300ms");
        connecting.says("reconnecting in ");
    }
    for _ in &queued {
        peer.accept();
    }
    // Those that were given up meanwhile may be in the queue, too.
    loop {
        let mut accepted = peer.accept();
        let mut first = [0];
        if matches!(accepted.read(&mut first), Ok(1)) {
            assert_gets(&mut accepted, b"t last\n");
            break;
        }
    }
}
