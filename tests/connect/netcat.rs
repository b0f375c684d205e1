//! The two programs that this project grew from, as one command each, against a netcat that listens: one that asks once
//! and has every wait bounded, and one that holds on to a silent server and comes back to one that is gone.

use std::time::Duration;

use crate::support::clients::vanish;
use crate::support::connecting::{Connecting, Netcat, Peer, assert_gets, attempt, seconds_behind};
use crate::support::{cannot_run, now, shell};

const REQUEST: &str = "GET / HTTP/1.0\r\n\r\n";
const ANSWER: &str = "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nhi\n";

/// netcat-openbsd, which sends FIN at the end of its stdin.
fn openbsd(test: &str) -> Option<Netcat> {
    let netcat = Netcat::start("nc.openbsd", &["-n", "-l", "-v", "-N", "127.0.0.1", "0"]);
    if netcat.is_none() {
        cannot_run(test, "nc.openbsd");
    }
    netcat
}

/// netcat-traditional, which ends at the end of its stdin.
fn traditional(test: &str) -> Option<Netcat> {
    let args = ["-n", "-l", "-v", "-s", "127.0.0.1", "-q", "0"];
    let netcat = Netcat::start("nc.traditional", &args);
    if netcat.is_none() {
        cannot_run(test, "nc.traditional");
    }
    netcat
}

/// `printf REQUEST | standfast connect ARGS... HOST PORT`.
fn ask(netcat: &Netcat, args: &[&str]) -> Connecting {
    let (host, port) = (
        netcat.address.ip().to_string(),
        netcat.address.port().to_string(),
    );
    let args = [
        &["connect", "--connect-timeout", "10s"],
        args,
        &[&host, &port],
    ]
    .concat();
    Connecting::spawn(shell(r#"printf 'GET / HTTP/1.0\r\n\r\n' | "$@""#, &args))
}

/// Both netcats that are to be had.
fn both(test: &str) -> impl Iterator<Item = Netcat> {
    [openbsd(test), traditional(test)].into_iter().flatten()
}

#[test]
fn a_request_is_answered_by_whoever_types_at_netcat() {
    for mut netcat in both("a_request_is_answered_by_whoever_types_at_netcat") {
        // A netcat that listens ends as soon as the other side half-closes, answer or not.
        let mut asking = ask(&netcat, &["--read-timeout", "30s", "--no-half-close"]);
        netcat.process.prints(REQUEST.as_bytes());
        netcat.process.types(ANSWER);
        netcat.process.ends_stdin();
        assert_eq!(asking.ends(), 0, "{:?}", asking.lines);
        assert_eq!(asking.stdout_rest(), ANSWER.as_bytes());
    }
}

#[test]
fn a_request_is_answered_by_a_netcat_that_has_its_answer_ready() {
    for mut netcat in both("a_request_is_answered_by_a_netcat_that_has_its_answer_ready") {
        netcat.process.types(ANSWER);
        let mut asking = ask(&netcat, &["--read-timeout", "30s"]);
        netcat.process.prints(REQUEST.as_bytes());
        assert_eq!(asking.ends(), 0, "{:?}", asking.lines);
        assert_eq!(asking.stdout_rest(), ANSWER.as_bytes());
        assert_eq!(netcat.process.wait().code(), Some(0));
    }
}

#[test]
fn an_answer_that_does_not_come_is_not_waited_for_longer_than_asked() {
    for netcat in both("an_answer_that_does_not_come_is_not_waited_for_longer_than_asked") {
        let start = now();
        let args = [
            "--read-timeout",
            "300ms",
            "--on-read-timeout",
            "exit",
            "--no-half-close",
        ];
        let mut asking = ask(&netcat, &args);
        assert_eq!(asking.ends(), 4);
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert_eq!(asking.stdout_rest(), b"");
        let lost = asking.lines.last().unwrap();
        assert!(
            lost.contains(&format!("lost {}: read-timeout", netcat.address)),
            "{lost}"
        );
        assert_eq!(seconds_behind(lost, "(silent "), 0.3, "{lost}");
    }
}

#[test]
fn a_silent_netcat_is_waited_for_and_that_is_said_each_time() {
    let Some(mut netcat) = openbsd("a_silent_netcat_is_waited_for_and_that_is_said_each_time")
    else {
        return;
    };
    let args = [
        "--keepalive",
        "60:15:4",
        "--read-timeout",
        "200ms",
        "--on-read-timeout",
        "wait",
        "-v",
    ];
    let mut holding = Connecting::start(netcat.address, &args);
    let connected = holding.connects(netcat.address);
    assert!(connected.contains("60:15:4"), "{connected}");
    let start = now();
    let mut silence = 0.0;
    for _ in 0..5 {
        let said = holding.says("nothing received for ");
        assert!(said.contains("waiting on"), "{said}");
        let longer = seconds_behind(&said, " for ");
        assert!(longer > silence, "{longer} s after {silence} s");
        silence = longer;
    }
    assert!(start.elapsed() >= Duration::from_millis(4 * 200));
    netcat.process.types("here I am\n");
    holding.prints(b"here I am\n");
    // Silence begins anew.
    let begins_anew = |said: &String| seconds_behind(said, " for ") < silence;
    while !begins_anew(&holding.says("nothing received for ")) {}
    holding.types("good\n");
    netcat.process.prints(b"good\n");
    assert_eq!(holding.said("lost"), 0, "{:?}", holding.lines);
}

#[test]
fn a_vanished_server_is_found_by_keepalive_and_a_new_socket_is_made() {
    let peer = Peer::start();
    let args = [
        "--keepalive",
        "1:1:2",
        "--dead-after",
        "5s",
        "--read-timeout",
        "500ms",
        "--on-read-timeout",
        "wait",
        "-v",
    ];
    let mut holding = Connecting::start(peer.address(), &args);
    let mut first = peer.accept();
    let connected = holding.connects(peer.address());
    assert!(connected.contains("1:1:2"), "{connected}");
    holding.types("one\n");
    assert_gets(&mut first, b"one\n");
    let vanished = vanish(&first);
    holding.says("nothing received for ");
    let lost = holding.says(&format!("lost {}: keepalive-dead (silent ", peer.address()));
    let silence = vanished.heard.elapsed().as_secs_f64();
    assert!(lost.ends_with(" s, ETIMEDOUT)"), "{lost}");
    let after = seconds_behind(&lost, "(silent ");
    assert!(
        (2.9..=silence + 0.1).contains(&after),
        "{silence} s: {lost}"
    );
    assert_eq!(attempt(&holding.says("reconnecting in ")), 1);
    let mut second = peer.accept();
    holding.connects(peer.address());
    assert_ne!(first.peer_addr().unwrap(), second.peer_addr().unwrap());
    holding.types("two\n");
    assert_gets(&mut second, b"two\n");
}
