//! Which upstream, when, and for how long a client waits for one.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::command_line::refusals::assert_usage;
use crate::forward::{assert_ended, assert_pair, assert_reset, pair, relay};
use crate::support::clients::{reset, until_acknowledged};
use crate::support::connecting::{Peer, Port, assert_gets, assert_silent};
use crate::support::loading::nobody;
use crate::support::peers::silent;
use crate::support::{Began, Server, now, pass, read_to_fin, until};

#[test]
fn a_client_waits_while_its_upstream_restarts_and_what_it_said_arrives() {
    let port = Port::new();
    let mut relay = relay(&[port.address()], &["-v"]);
    let mut client = relay.connect();
    client.write_all(b"early ").unwrap();
    assert_silent(&mut client, Duration::from_millis(700));
    client.write_all(b"words").unwrap();
    let upstream = port.listen();
    let mut served = upstream.accept();
    assert_gets(&mut served, b"early words");
    assert_pair(&mut client, &mut served);
    drop(client);
    assert_eq!(read_to_fin(&mut served), b"");
    drop(served);
    assert_eq!(relay.closed().reason(), "peer-closed");
}

/// As `echo question | nc -N` does.
#[test]
fn a_client_that_has_said_all_before_its_upstream_is_there_gets_its_answer() {
    let port = Port::new();
    let mut relay = relay(&[port.address()], &[]);
    let mut client = relay.connect();
    client.write_all(b"a question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_silent(&mut client, Duration::from_millis(400));
    let mut served = port.listen().accept();
    assert_eq!(read_to_fin(&mut served), b"a question");
    served.write_all(b"its answer").unwrap();
    drop(served);
    assert_eq!(read_to_fin(&mut client), b"its answer");
    assert_eq!(relay.closed().reason(), "peer-closed");
}

/// A megabyte is more than the relay takes while it has nowhere to send it.
#[test]
fn a_client_that_says_much_while_it_waits_is_stopped_and_loses_nothing() {
    let port = Port::new();
    let relay = relay(&[port.address()], &["--buffer", "64k"]);
    let client = relay.connect();
    let before = relay.resident();
    let sending = crate::support::clients::send_all(&client, 20_000_000);
    pass(Duration::from_millis(500));
    assert!(!sending.is_finished());
    assert!(relay.resident() < before + (2 << 20));
    let mut served = port.listen().accept();
    let got = crate::support::clients::Stream::default().read_to_fin(&mut served);
    assert_eq!(got, 20_000_000);
    sending.join().unwrap();
}

#[test]
fn an_upstream_that_never_comes_is_given_up_after_the_wait() {
    let port = Port::new();
    let address = port.address().to_string();
    let mut relay = relay(&[port.address()], &["--upstream-wait", "1s"]);
    let began = Began::now();
    let mut client = relay.connect();
    let closed = relay.closed();
    assert_eq!(closed.reason(), "upstream-failed", "{}", closed.line);
    assert!(
        closed.age() >= Duration::from_millis(990),
        "{}",
        closed.line
    );
    assert!(
        began.unhindered() < Duration::from_secs(4),
        "{}",
        closed.line
    );
    assert_ended(&mut client);
    // Somewhere it is said what was tried, and what the system said.
    let said = relay.lines.join("\n");
    assert!(said.contains(&address), "{said}");
    assert!(said.contains("refused"), "{said}");
    // It goes on for those who come.
    let upstream = port.listen();
    pair(&relay, &upstream);
}

#[test]
fn with_the_wait_off_each_upstream_is_tried_once() {
    let (one, two) = (Port::new(), Port::new());
    let addresses = [one.address(), two.address()];
    let mut relay = relay(&addresses, &["--upstream-wait", "off"]);
    let began = Began::now();
    let mut client = relay.connect();
    let closed = relay.closed();
    assert_eq!(closed.reason(), "upstream-failed", "{}", closed.line);
    assert!(
        began.unhindered() < Duration::from_secs(5),
        "{}",
        closed.line
    );
    assert_ended(&mut client);
}

#[test]
fn upstreams_are_tried_in_order() {
    let (first, second) = (Port::new(), Peer::start());
    let address = first.address();
    let args = ["--max-fails", "off"];
    let relay = relay(&[address, second.address()], &args);
    pair(&relay, &second);
    pair(&relay, &second);
    let first = first.listen();
    for _ in 0..3 {
        pair(&relay, &first);
    }
    drop(first);
    pair(&relay, &second);
}

#[test]
fn upstreams_take_turns_if_asked() {
    let upstreams: Vec<Peer> = (0..3).map(|_| Peer::start()).collect();
    let addresses: Vec<_> = upstreams.iter().map(Peer::address).collect();
    // With several workers, too, and no upstream is left out.
    let relay = relay(&addresses, &["--balance", "round-robin", "--workers", "2"]);
    let mut clients: Vec<TcpStream> = (0..12).map(|_| relay.connect()).collect();
    for upstream in &upstreams {
        for _ in 0..4 {
            upstream.accept().write_all(b"served").unwrap();
        }
    }
    for client in &mut clients {
        assert_gets(client, b"served");
    }
}

#[test]
fn one_whose_turn_it_is_but_that_is_down_is_passed_over() {
    let (down, one, two) = (Port::new(), Peer::start(), Peer::start());
    let addresses = [down.address(), one.address(), two.address()];
    let relay = relay(&addresses, &["--balance", "round-robin"]);
    let mut clients: Vec<TcpStream> = (0..9).map(|_| relay.connect()).collect();
    let mut served = 0;
    for upstream in [one, two] {
        for _ in 0..3 {
            upstream.accept().write_all(b"served").unwrap();
            served += 1;
        }
        std::thread::spawn(move || {
            loop {
                let mut more = upstream.accept();
                more.write_all(b"served").unwrap();
            }
        });
    }
    assert_eq!(served, 6);
    for client in &mut clients {
        assert_gets(client, b"served");
    }
}

#[test]
fn an_upstream_that_does_not_answer_is_passed_over_after_the_connect_timeout() {
    let ((_silent, first), second) = (silent(), Peer::start());
    let relay = relay(&[first, second.address()], &["--connect-timeout", "700ms"]);
    let (start, began) = (now(), Began::now());
    let mut client = relay.connect();
    let mut served = second.accept();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(650), "{took:?}");
    let took = began.unhindered();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_pair(&mut client, &mut served);
}

#[test]
fn a_client_that_leaves_while_it_waits_is_let_go() {
    let port = Port::new();
    let mut relay = relay(&[port.address()], &["--upstream-wait", "1m"]);
    let before = relay.descriptors_at_rest();
    let began = Began::now();
    let client = relay.connect();
    pass(Duration::from_millis(200));
    reset(client);
    let closed = relay.closed();
    assert_eq!(closed.reason(), "peer-reset", "{}", closed.line);
    assert!(
        began.unhindered() < Duration::from_secs(5),
        "{}",
        closed.line
    );
    until("its descriptors closed", || relay.descriptors() == before);
}

#[test]
fn waiting_for_an_upstream_costs_nothing_and_attempts_are_spaced() {
    let port = Port::new();
    let relay = relay(&[port.address()], &["--upstream-wait", "1m"]);
    let mut clients: Vec<TcpStream> = (0..50).map(|_| relay.connect()).collect();
    for client in &mut clients {
        client.write_all(b"waiting").unwrap();
        until_acknowledged(client);
    }
    let spent = relay.cpu();
    pass(Duration::from_secs(2));
    let spent = relay.cpu() - spent;
    assert!(spent < Duration::from_millis(400), "{spent:?}");
    let upstream = port.listen_with(128);
    for _ in &clients {
        assert_gets(&mut upstream.accept(), b"waiting");
    }
}

#[test]
fn names_are_resolved() {
    let upstream = Peer::start();
    let to = format!("localhost:{}", upstream.address().port());
    let relay = Server::start(&["forward", &to]);
    pair(&relay, &upstream);
}

#[test]
fn a_name_that_does_not_resolve_fails_the_client_and_is_said() {
    let upstream = Peer::start();
    let second = upstream.address().to_string();
    let mut relay = Server::start(&["forward", "nosuch.invalid:80", "--upstream-wait", "500ms"]);
    let mut client = relay.connect();
    let closed = relay.closed();
    assert_eq!(closed.reason(), "upstream-failed", "{}", closed.line);
    assert_ended(&mut client);
    let said: Vec<_> = relay.lines.iter().collect();
    let naming = said.iter().filter(|line| line.contains("nosuch.invalid"));
    assert!((1..=3).contains(&naming.count()), "{said:?}");
    // Another one takes its place, if there is one.
    let relay = Server::start(&["forward", "nosuch.invalid:80", &second]);
    pair(&relay, &upstream);
}

#[test]
fn an_upstream_that_is_down_does_not_fill_the_log() {
    let port = Port::new();
    let mut relay = relay(&[port.address()], &["--upstream-wait", "2s"]);
    let clients: Vec<TcpStream> = (0..20).map(|_| relay.connect()).collect();
    for _ in &clients {
        assert_eq!(relay.closed().reason(), "upstream-failed");
    }
    // One line for each that ended, and a few for what became of the upstream.
    assert!(relay.lines.len() <= 2 * 20 + 5, "{:#?}", relay.lines);
}

// What is refused.

#[test]
fn what_cannot_be_forwarded_to_is_refused() {
    assert_usage(&["forward"], "no upstream");
    assert_usage(&["forward", ":80"], "names no server");
    assert_usage(&["forward", "127.0.0.1:0"], "port 0");
    assert_usage(&["forward", "fd:3"], "for servers");
    assert_usage(&["forward", "host"], "expected HOST:PORT");
    assert_usage(
        &["forward", "80", "--upstream-wait", "0"],
        "to turn it off say off",
    );
    assert_usage(&["forward", "80", "--max-fails", "0"], "for that say off");
    assert_usage(&["forward", "80", "--fail-timeout", "0"], "at once");
    assert_usage(
        &["forward", "80", "--backoff", "2s:1s"],
        "2s is longer than 1s",
    );
}

#[test]
fn a_relay_to_itself_is_refused() {
    let free = nobody();
    let (port, here) = (free.port(), free.to_string());
    let every = format!(":{port}");
    let named = format!("localhost:{port}");
    let local = format!("127.0.0.1:{port}");
    for (upstream, listen) in [(&here, &here), (&local, &every), (&named, &every)] {
        let said = "this server itself listens there";
        assert_usage(&["forward", upstream, "-l", listen], said);
        // Also among others.
        assert_usage(&["forward", "127.0.0.1:9", upstream, "-l", listen], said);
    }
}

/// A loop that cannot be seen at start, for it goes over another relay, ends when there are no descriptors left, or
/// sooner, and does not take the server down.
#[test]
fn a_loop_over_another_relay_is_survived() {
    let port = Port::new();
    let back = port.address();
    let args = ["--max-conns", "50", "--upstream-wait", "off"];
    let first = relay(&[back], &args);
    drop(port);
    let listen = back.to_string();
    let to = first.address().to_string();
    let second = Server::start(&[&["forward", &to, "-l", &listen], &args[..]].concat());
    let mut client = first.connect();
    assert_ended(&mut client);
    for mut server in [first, second] {
        assert!(server.is_running());
    }
}

#[test]
fn a_client_whose_upstream_resets_at_once_is_reset() {
    // One that resets before the relay has seen it connected is none: another one is dialled.
    let upstream = crate::support::loading::Peer::start(|_, stream| reset(stream));
    let mut relay = relay(&[upstream.address], &[]);
    for _ in 0..20 {
        let mut client = relay.connect();
        assert_reset(&mut client);
        let closed = relay.closed();
        assert_eq!(closed.reason(), "upstream-failed", "{}", closed.line);
    }
}

#[test]
fn an_ipv6_upstream_is_reached() {
    let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else {
        return crate::support::cannot_run("an_ipv6_upstream_is_reached", "IPv6");
    };
    let relay = relay(&[listener.local_addr().unwrap()], &[]);
    let mut client = relay.connect();
    let (mut served, _) = listener.accept().unwrap();
    assert_pair(&mut client, &mut served);
}
