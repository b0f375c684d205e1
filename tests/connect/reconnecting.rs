//! Coming back: to a server that was killed, to a port that refuses for a while, to one that closes at once for ever;
//! and when it may not.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::clients::reset;
use crate::support::connecting::{
    Connecting, Peer, Port, assert_gets, attempt, connect_command, seconds_behind,
};
use crate::support::home::Home;
use crate::support::{Server, now, output, pass};

/// A server of its own at the place of `port`, which may be started again.
fn serve(home: &Home, port: &Port) -> Command {
    home.standfast(&["serve", "-l", &port.address().to_string()])
}

#[test]
fn a_server_that_is_killed_and_started_again_gets_what_was_typed_meanwhile() {
    let (home, port) = (Home::new(), Port::new());
    let to = port.address();
    let mut server = Server::spawn(serve(&home, &port), 1);
    let mut connecting = Connecting::start(to, &[]);
    connecting.connects(to);
    for round in 0..3 {
        let line = format!("before {round}\n");
        connecting.types(line.clone());
        connecting.prints(line.as_bytes());
        server.signal(Signal::KILL);
        server.wait();
        connecting.says(&format!("lost {to}: "));
        let line = format!("meanwhile {round}\n");
        connecting.types(line.clone());
        connecting.says(&format!(
            "cannot connect to {to}: Connection refused (os error 111)"
        ));
        server = Server::spawn(serve(&home, &port), 1);
        connecting.connects(to);
        connecting.prints(line.as_bytes());
    }
    connecting.ends_stdin();
    assert_eq!(connecting.ends(), 0);
    assert_eq!(connecting.stdout_rest(), b"", "nothing twice");
}

#[test]
fn a_port_that_refuses_for_a_while_is_tried_until_it_listens() {
    let port = Port::new();
    let to = port.address();
    let mut connecting = Connecting::start(to, &[]);
    connecting.types("typed before there was anybody\n");
    for retry in 1..=5 {
        connecting.says(&format!(
            "cannot connect to {to}: Connection refused (os error 111)"
        ));
        assert_eq!(attempt(&connecting.says("reconnecting in ")), retry);
    }
    let peer = port.listen();
    let mut server = peer.accept();
    connecting.connects(to);
    assert_gets(&mut server, b"typed before there was anybody\n");
}

#[test]
fn a_server_that_closes_at_once_for_ever_is_tried_ever_more_rarely() {
    let peer = Peer::start();
    let args = ["--backoff", "100ms:400ms"];
    let mut connecting = Connecting::start(peer.address(), &args);
    let mut longest = 0.0_f64;
    let mut not_before = now();
    for retry in 1..=16 {
        let accepted = peer.accept();
        assert!(now() >= not_before, "retry {retry} came early");
        let closed = now();
        Peer::say_goodbye(accepted);
        connecting.connects(peer.address());
        connecting.says(&format!("lost {}: peer-closed", peer.address()));
        let said = connecting.says("reconnecting in ");
        assert_eq!(attempt(&said), retry);
        let wait = seconds_behind(&said, " in ");
        let ceiling = f64::from((1_u32 << (retry - 1).min(2)) * 100) / 1000.0;
        assert!(wait <= ceiling + 0.05, "{said}, at most {ceiling}");
        longest = longest.max(wait);
        // The number in the line is rounded.
        not_before = closed + Duration::from_secs_f64((wait - 0.05).max(0.0));
    }
    // Each of fourteen is above the first's ceiling with a probability of more than one half.
    assert!(longest > 0.1, "{longest}");
}

#[test]
fn nothing_is_left_behind_by_many_reconnects() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &["--backoff", "1ms:1ms"]);
    let mut descriptors = 0;
    for round in 0..300 {
        let accepted = peer.accept();
        connecting.connects(peer.address());
        if round == 10 {
            descriptors = connecting.descriptors();
        }
        if round % 2 == 0 {
            reset(accepted);
        }
    }
    peer.accept();
    connecting.connects(peer.address());
    let left = connecting.descriptors();
    assert!(left <= descriptors + 2, "{descriptors}, then {left}");
}

#[test]
fn a_connection_that_was_stable_makes_the_backoff_begin_anew() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &["--stable-after", "3s"]);
    for retry in 1..=3 {
        peer.dismiss();
        assert_eq!(attempt(&connecting.says("reconnecting in ")), retry);
    }
    for retry in [1, 2] {
        let accepted = peer.accept();
        if retry == 1 {
            pass(Duration::from_millis(3200));
        }
        drop(accepted);
        assert_eq!(attempt(&connecting.says("reconnecting in ")), retry);
    }
}

#[test]
fn retries_that_are_used_up_are_exit_code_3() {
    let port = Port::new();
    for retries in [0, 1, 3] {
        let retries_arg = retries.to_string();
        let args = ["--max-retries", &retries_arg];
        let mut connecting = Connecting::start(port.address(), &args);
        assert_eq!(connecting.ends(), 3, "{:?}", connecting.lines);
        assert_eq!(connecting.said("cannot connect to "), retries + 1);
        assert_eq!(connecting.said("reconnecting in "), retries);
        let last = connecting.lines.last().unwrap();
        assert!(
            last.contains(&format!("gave up after {retries} retr")),
            "{last}"
        );
        assert_eq!(connecting.said("gave up"), 1);
    }
}

#[test]
fn retries_are_counted_over_connections_that_did_not_last() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &["--max-retries", "2"]);
    for _ in 0..3 {
        peer.dismiss();
    }
    assert_eq!(connecting.ends(), 3, "{:?}", connecting.lines);
    assert_eq!(connecting.said("connected to "), 3);
}

#[test]
fn on_loss_the_first_attempt_has_to_succeed() {
    let port = Port::new();
    let args = ["--reconnect", "on-loss"];
    let (code, stdout, stderr) = output(connect_command(&port.address().to_string(), &args));
    assert_eq!((code, &*stdout), (1, ""));
    let to = port.address();
    assert_eq!(
        stderr,
        format!("standfast: cannot connect to {to}: Connection refused (os error 111)")
    );
}

#[test]
fn on_loss_it_comes_back_once_it_was_connected_however_long_that_takes() {
    let (home, port) = (Home::new(), Port::new());
    let to = port.address();
    let mut server = Server::spawn(serve(&home, &port), 1);
    let mut connecting = Connecting::start(to, &["--reconnect", "on-loss"]);
    connecting.connects(to);
    connecting.types("hello\n");
    connecting.prints(b"hello\n");
    server.signal(Signal::KILL);
    server.wait();
    connecting.says("lost ");
    for _ in 0..3 {
        connecting.says("cannot connect to ");
    }
    let _server = Server::spawn(serve(&home, &port), 1);
    connecting.connects(to);
    connecting.types("hello\n");
    connecting.prints(b"hello\n");
}

#[test]
fn never_means_one_attempt_and_one_connection() {
    let port = Port::new();
    let (code, _, stderr) = output(connect_command(
        &port.address().to_string(),
        &["--reconnect", "never"],
    ));
    assert_eq!((code, stderr.lines().count()), (1, 1), "{stderr}");

    let peer = port.listen();
    let mut closed = Connecting::start(peer.address(), &["--reconnect", "never"]);
    drop(peer.accept());
    closed.ends_stdin();
    assert_eq!(closed.ends(), 0, "the server's FIN: {:?}", closed.lines);

    let mut lost = Connecting::start(peer.address(), &["--reconnect", "never"]);
    let accepted = peer.accept();
    lost.connects(peer.address());
    reset(accepted);
    lost.says("peer-reset");
    assert_eq!(lost.ends(), 1, "a loss: {:?}", lost.lines);
    for ended in [closed, lost] {
        assert_eq!(ended.said("reconnecting"), 0, "{:?}", ended.lines);
    }
}
