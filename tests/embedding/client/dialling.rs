//! Names and addresses, attempts that fail, retries.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Duration;

use socket2::SockRef;
use standfast::client::{Client, Next};
use standfast::dial::{Backoff, Dial, DialErrorKind, Family};
use standfast::{CloseReason, Keepalive};

use super::apart::{in_namespaces, name_server};
use super::{Quiet, Running, Server, Told, dial, prepared, unix_path};
use crate::support::peers::{refusing, silent_at};
use crate::support::{GUARD, cannot_run, now, pass};

#[test]
fn a_link_comes_back_when_its_server_does() {
    let (port, address) = refusing();
    let address = address.to_string();
    let client = Running::start(dial(&address), |script| script.next = Next::Retry);
    for attempt in 1..=3 {
        let (kind, text) = client.fails();
        assert_eq!(kind, DialErrorKind::Refused);
        assert_eq!(
            text,
            format!("cannot connect to {address}: Connection refused (os error 111)")
        );
        let told = client.hears();
        let Told::Retrying(number, wait) = told else {
            panic!("{told:?}");
        };
        assert_eq!(number, attempt);
        assert!(wait < Duration::from_millis(1 << (attempt - 1)), "{wait:?}");
    }
    port.listen(128).unwrap();
    let server = Server(port.into());
    let mut peer = server.accept();
    peer.write_all(b"back").unwrap();
    let connected = |told: &Told| matches!(told, Told::Connected);
    while !connected(&client.hears()) {}
    client.reads(b"back");
    drop(peer);
    assert_eq!(client.ends().reason, CloseReason::PeerClosed);
    server.accept();
}

#[test]
fn retries_end_and_then_the_link_is_gone() {
    let (_port, address) = refusing();
    let dial = Dial {
        max_retries: Some(2),
        ..dial(&address.to_string())
    };
    let client = Running::start(dial, |script| script.next = Next::Retry);
    for attempt in 1..=2 {
        client.fails();
        let told = client.hears();
        assert!(
            matches!(told, Told::Retrying(number, _) if number == attempt),
            "{told:?}"
        );
    }
    client.fails();
    let told = client.hears();
    assert!(matches!(told, Told::GaveUp(2)), "{told:?}");
    let (opened, live) = client.ask(|links| (links.opened(), links.live()));
    assert_eq!((opened, live), (1, 0));
}

/// Numbers of the first retries against a server that accepts and closes at once.
fn attempts_at_one_that_closes(stable_after: Duration) -> Vec<u32> {
    let server = Server::start();
    let dial = Dial {
        stable_after,
        ..server.dial()
    };
    let client = Running::start(dial, |script| script.next = Next::Retry);
    let attempt = |_| {
        drop(server.accept());
        client.connects();
        assert_eq!(client.ends().reason, CloseReason::PeerClosed);
        match client.hears() {
            Told::Retrying(attempt, _) => attempt,
            told => panic!("{told:?}"),
        }
    };
    (0..4).map(attempt).collect()
}

#[test]
fn the_backoff_grows_with_a_server_that_accepts_and_closes_at_once() {
    let attempts = attempts_at_one_that_closes(Duration::from_secs(60));
    assert_eq!(attempts, [1, 2, 3, 4]);
}

#[test]
fn the_backoff_begins_anew_after_a_stable_while() {
    assert_eq!(attempts_at_one_that_closes(Duration::ZERO), [1, 1, 1, 1]);
}

#[test]
fn retries_without_a_wait_let_the_client_go_on() {
    let none = Backoff {
        least: Duration::ZERO,
        most: Duration::ZERO,
    };
    // Fails within the call.
    let dial = Dial {
        backoff: none,
        ..dial(&format!("unix:{}", unix_path("none").display()))
    };
    let client = Running::start(dial, |script| script.next = Next::Retry);
    client.fails();
    assert_eq!(client.ask(|links| links.live()), 1);
}

#[test]
fn an_attempt_that_follows_at_once_is_not_charged_with_the_deadline_of_the_one_before() {
    // A name, and a failure that comes at once, on this side.
    let dial = Dial {
        sources: vec!["192.0.2.1".parse().unwrap()],
        connect_timeout: Some(Duration::from_millis(400)),
        ..dial("localhost:1")
    };
    let client = Running::start(dial, |script| script.next = Next::RetryNow);
    let end = now() + Duration::from_millis(900);
    while now() < end {
        let (kind, text) = client.fails();
        assert_eq!(kind, DialErrorKind::Local, "{text}");
    }
}

#[test]
fn a_client_made_long_before_it_runs_has_its_whole_connect_timeout() {
    let server = Server::start();
    let dial = Dial {
        connect_timeout: Some(Duration::from_millis(200)),
        ..server.dial()
    };
    let (client, told, _asks) = prepared(dial, |script| {
        script.first(|links| {
            links.open();
        });
        script.connected = Box::new(|link| link.abort());
        script.first(|_| {});
        script.first(|links| links.end());
    });
    pass(Duration::from_millis(300));
    client.run().unwrap();
    let (_, first) = told.recv().unwrap();
    assert!(matches!(first, Told::Connected), "{first:?}");
}

#[test]
fn what_contradicts_itself_is_refused() {
    let refused = |dial: Dial| Client::new(dial, Quiet).unwrap_err().to_string();
    for address in [":7", "fd:3", "systemd", "127.0.0.1:0", "0"] {
        refused(dial(address));
    }
    let short = Dial {
        connect_timeout: Some(Duration::from_micros(999)),
        ..dial("7")
    };
    assert!(refused(short).contains("connect timeout below 1 ms"));
    let backwards = Dial {
        backoff: Backoff {
            least: Duration::from_secs(2),
            most: Duration::from_secs(1),
        },
        ..dial("7")
    };
    assert!(refused(backwards).contains("backoff"));
    let sources = |family, sources: &[&str]| Dial {
        family,
        sources: sources
            .iter()
            .map(|source| source.parse().unwrap())
            .collect(),
        ..dial("localhost:7")
    };
    let other = refused(sources(Family::V6, &["::1", "127.0.0.1"]));
    assert!(
        other.contains("127.0.0.1 is of the other family"),
        "{other}"
    );
    let other = refused(sources(Family::Any, &["127.0.0.1", "::1"]));
    assert!(other.contains("::1 is of the other family"), "{other}");
    let slow = Dial {
        keepalive: Some(Keepalive::new(60, 10, 3)),
        dead_after: Some(Duration::from_secs(20)),
        ..dial("7")
    };
    refused(slow);
}

#[test]
fn each_family_of_a_name() {
    for (family, local) in [(Family::V4, "127.0.0.1:0"), (Family::V6, "[::1]:0")] {
        let Ok(server) = TcpListener::bind(local) else {
            return cannot_run("each_family_of_a_name", "IPv6");
        };
        let port = server.local_addr().unwrap().port();
        let dial = Dial {
            family,
            ..dial(&format!("{}:{port}", server.local_addr().unwrap().ip()).replace("::1", "[::1]"))
        };
        let client = Running::start(dial, |_| {});
        client.connects();
    }
    let dial = Dial {
        family: Family::V6,
        ..dial("127.0.0.1:1")
    };
    let client = Running::start(dial, |_| {});
    let (kind, text) = client.fails();
    assert_eq!(kind, DialErrorKind::Resolve);
    assert_eq!(text, "cannot resolve 127.0.0.1:1: it has no IPv6 address");
}

#[test]
fn unix_sockets_are_servers_too() {
    let path = unix_path("path");
    let name = format!("standfast-client-{}", std::process::id());
    let by_name = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    for (address, listener) in [
        (
            format!("unix:{}", path.display()),
            UnixListener::bind(&path).unwrap(),
        ),
        (
            format!("unix:@{name}"),
            UnixListener::bind_addr(&by_name).unwrap(),
        ),
    ] {
        let client = Running::start(dial(&address), |script| {
            script.connected = Box::new(move |link| {
                assert_eq!(link.server().to_string(), address);
                assert!(link.local().is_err());
                link.send(b"hello");
            });
        });
        client.connects();
        let (mut peer, _) = listener.accept().unwrap();
        let mut came = [0; 5];
        peer.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"hello");
        peer.write_all(b"abc").unwrap();
        client.reads(b"abc");
        drop(peer);
        assert_eq!(client.ends().reason, CloseReason::PeerClosed);
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_unix_server_that_closes_unread_bytes_resets() {
    let path = unix_path("reset");
    let listener = UnixListener::bind(&path).unwrap();
    let address = format!("unix:{}", path.display());
    let client = Running::start(dial(&address), |_| {});
    client.connects();
    let (peer, _) = listener.accept().unwrap();
    client.with(0, |link| link.send(b"unread"));
    drop(peer);
    let over = client.ends();
    std::fs::remove_file(path).unwrap();
    assert_eq!(over.reason, CloseReason::PeerReset, "{over:?}");
}

#[test]
fn a_unix_server_with_a_full_backlog_fails_an_attempt_and_one_that_is_not_there_refuses() {
    let path = unix_path("full");
    let address = format!("unix:{}", path.display());
    let client = Running::start(dial(&address), |_| {});
    assert_eq!(client.fails().0, DialErrorKind::Refused);
    client.end();

    let listener = UnixListener::bind(&path).unwrap();
    let socket = SockRef::from(&listener);
    socket.listen(0).unwrap();
    let filling = UnixStream::connect(&path).unwrap();
    let client = Running::start(dial(&address), |script| script.next = Next::Retry);
    let (_, text) = client.fails();
    assert!(
        text.starts_with(&format!(
            "cannot connect to {address}: Resource temporarily unavailable"
        )),
        "{text}"
    );
    // Room again.
    listener.accept().unwrap();
    drop(filling);
    while !matches!(client.hears(), Told::Connected) {}
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_name_server_that_never_answers_is_waited_for_no_longer_than_said() {
    if !in_namespaces(
        module_path!(),
        "a_name_server_that_never_answers_is_waited_for_no_longer_than_said",
    ) {
        return;
    }
    let _silent = UdpSocket::bind("127.0.0.1:53").unwrap();
    let dial = Dial {
        connect_timeout: Some(Duration::from_millis(300)),
        ..dial("slow.test:7000")
    };
    let client = Running::start(dial, |script| script.next = Next::RetryNow);
    for _ in 0..4 {
        let began = now();
        let (kind, text) = client.fails();
        assert_eq!(
            (kind, text.as_str()),
            (
                DialErrorKind::Resolve,
                "cannot resolve slow.test:7000: no answer within 300ms"
            )
        );
        let took = began.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")));
    let resolvers = names.filter(|name| name.as_ref().is_ok_and(|name| name == "resolver\n"));
    assert_eq!(resolvers.count(), 1);
    client.end();
}

#[test]
fn an_answer_that_came_while_nobody_asked_is_not_taken_for_a_fresh_one() {
    if !in_namespaces(
        module_path!(),
        "an_answer_that_came_while_nobody_asked_is_not_taken_for_a_fresh_one",
    ) {
        return;
    }
    let (late, answered) = mpsc::channel();
    name_server(move |asked| {
        if asked == 0 {
            pass(Duration::from_secs(1));
            late.send(()).unwrap();
            // Where the server was.
            vec![[127, 0, 0, 9]]
        } else {
            vec![[127, 0, 0, 1]]
        }
    });
    let server = Server::start();
    let dial = Dial {
        connect_timeout: Some(Duration::from_millis(500)),
        ..dial(&format!("moves.test:{}", server.address().port()))
    };
    let client = Running::start(dial, |_| {});
    assert_eq!(client.fails().0, DialErrorKind::Resolve);
    answered.recv_timeout(GUARD).unwrap();
    // For longer than links that are lost together share an answer.
    pass(Duration::from_millis(1500));
    client.ask(|links| links.open());
    client.connects();
}

#[test]
fn all_addresses_of_a_name_are_tried_within_the_connect_timeout() {
    if !in_namespaces(
        module_path!(),
        "all_addresses_of_a_name_are_tried_within_the_connect_timeout",
    ) {
        return;
    }
    name_server(|_| (1..=4).map(|last| [127, 0, 1, last]).collect());
    let port = Server::start().address().port();
    let name = format!("many.test:{port}");
    let addresses: Vec<SocketAddr> = name.to_socket_addrs().unwrap().collect();
    let [silents @ .., last] = addresses.as_slice() else {
        panic!("no addresses");
    };
    assert_eq!(silents.len(), 3);
    let _silents: Vec<_> = silents.iter().copied().map(silent_at).collect();
    let server = Server(TcpListener::bind(last).unwrap());
    let dial = Dial {
        connect_timeout: Some(Duration::from_millis(600)),
        ..dial(&name)
    };
    let client = Running::start(dial, |_| {});
    client.connects();
    server.accept();
}

#[test]
fn a_link_is_never_connected_with_itself() {
    if !in_namespaces(module_path!(), "a_link_is_never_connected_with_itself") {
        return;
    }
    // The one port there is for connections to come from.
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000").unwrap();
    for host in ["127.0.0.1", "127.0.0.5", "[::1]", "0.0.0.0", "[::]"] {
        let client = Running::start(dial(&format!("{host}:40000")), |_| {});
        let (kind, text) = client.fails();
        assert_eq!(kind, DialErrorKind::Refused, "{text}");
        assert_eq!(
            text,
            format!("cannot connect to {host}:40000: Connection refused (os error 111)")
        );
    }
    // So the server can come back.
    TcpListener::bind("127.0.0.1:40000").unwrap();
}
