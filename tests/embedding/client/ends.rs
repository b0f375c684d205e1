//! How a connected link ends: by its server, by the network, by its owner.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use standfast::client::Next;
use standfast::dial::Dial;
use standfast::{CloseReason, Keepalive};

use super::{Running, Server, Told, fill, looks_late};
use crate::support::clients::{Stream, reset, until_acknowledged, vanish, window};
use crate::support::{now, pass, read_to_fin, until};

#[test]
fn bytes_and_fin_that_come_before_the_client_looks_are_both_noticed() {
    let (server, mut kept) = (Server::start(), None);
    let client = Running::start(server.dial(), |script| {
        kept = Some(looks_late(script, server, |peer| {
            peer.write_all(b"421 too busy\r\n").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
        }));
    });
    client.connects();
    client.reads(b"421 too busy\r\n");
    assert_eq!(client.ends().reason, CloseReason::PeerClosed);
}

#[test]
fn after_the_servers_fin_an_owner_may_go_on_to_send_until_it_leaves() {
    let server = Server::start();
    let client = Running::start(server.dial(), |script| script.goes_on = true);
    client.connects();
    let mut peer = server.accept();
    peer.write_all(b"all I say").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    client.reads(b"all I say");
    assert!(matches!(client.hears(), Told::HalfClosed));
    assert_eq!(client.with(0, |link| link.send(b"one")), 3);
    assert_eq!(client.with(0, |link| link.send(b", two")), 5);
    client.with(0, |link| link.leave());
    assert_eq!(read_to_fin(&mut peer), b"one, two");
    // Told once, and over as soon as everything has arrived.
    let over = client.ends();
    assert_eq!(over.reason, CloseReason::Service);
    assert_eq!((over.read, over.written, over.unacknowledged), (9, 8, 0));
}

#[test]
fn after_the_servers_fin_a_reset_of_what_is_sent_is_told() {
    let server = Server::start();
    let client = Running::start(server.dial(), |script| script.goes_on = true);
    client.connects();
    drop(server.accept());
    assert!(matches!(client.hears(), Told::HalfClosed));
    assert_eq!(client.with(0, |link| link.send(b"anybody?")), 8);
    let over = client.ends();
    assert_eq!(over.reason, CloseReason::PeerReset);
    assert_eq!(over.unacknowledged, 8);
}

#[test]
fn bytes_then_fin_then_reset_are_one_end() {
    let server = Server::start();
    let client = Running::start(server.dial(), |_| {});
    client.connects();
    let mut peer = server.accept();
    peer.write_all(b"bytes").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    reset(peer);
    let mut read = 0;
    let over = loop {
        match client.hears() {
            Told::Input(bytes) => read += bytes.len(),
            Told::Ended(over) => break over,
            told => panic!("{told:?}"),
        }
    };
    assert!(
        matches!(
            over.reason,
            CloseReason::PeerClosed | CloseReason::PeerReset
        ),
        "{over:?}"
    );
    assert_eq!((over.read, read), (5, 5));
    assert_eq!(client.ask(|links| links.live()), 0);
}

#[test]
fn a_send_that_finds_the_reset_first_tells_the_same_reason() {
    let server = Server::start();
    let client = Running::start(server.dial(), |_| {});
    client.connects();
    let mut peer = server.accept();
    peer.write_all(b"last").unwrap();
    until_acknowledged(&peer);
    client.reads(b"last");
    client.ask(move |links| {
        // Within one turn: no event has told of it.
        reset(peer);
        let mut link = links.link(0).unwrap();
        assert_eq!(link.send(b"x"), 0);
        assert_eq!(link.send(b"y"), 0);
    });
    let over = client.ends();
    assert_eq!(
        (over.reason, over.errno, over.read),
        (CloseReason::PeerReset, Some(libc::ECONNRESET), 4)
    );
}

#[test]
fn what_a_server_is_owed_after_its_fin_arrives_while_the_link_goes_on() {
    let server = Server::start();
    let client = Running::start(server.dial(), |script| script.next = Next::RetryNow);
    client.connects();
    let mut first = server.accept();
    let sent = client.with(0, fill);
    first.shutdown(Shutdown::Write).unwrap();
    let over = client.ends();
    assert_eq!((over.reason, over.written), (CloseReason::PeerClosed, sent));
    assert!(over.unacknowledged > 0, "{over:?}");
    client.connects();
    let mut second = server.accept();
    assert_eq!(client.with(0, |link| link.send(b"second")), 6);
    // The first has everything, and its FIN; the link is told nothing of that.
    assert_eq!(Stream::default().read_to_fin(&mut first), sent);
    drop(first);
    let mut came = [0; 6];
    second.read_exact(&mut came).unwrap();
    second.write_all(b"still here").unwrap();
    client.reads(b"still here");
}

/// A vanished server is found within five seconds, an idle one after three by the kernel's ticks.
fn watched(server: &Server) -> Dial {
    Dial {
        keepalive: Some(Keepalive::new(1, 1, 2)),
        dead_after: Some(Duration::from_secs(5)),
        ..server.dial()
    }
}

#[test]
fn an_idle_server_that_turns_deaf_is_found_and_dialled_anew() {
    let server = Server::start();
    let client = Running::start(watched(&server), |script| script.next = Next::RetryNow);
    client.connects();
    let peer = server.accept();
    let vanished = vanish(&peer);
    let over = client.ends();
    let took = vanished.at.unhindered();
    assert_eq!(
        (over.reason, over.errno),
        (CloseReason::KeepaliveDead, Some(libc::ETIMEDOUT))
    );
    assert!(took < Duration::from_millis(6500), "{took:?}");
    // Three seconds by the kernel's ticks.
    assert!(over.noticed > Duration::from_millis(2900), "{over:?}");
    assert!(
        over.noticed < over.age + Duration::from_millis(20),
        "{over:?}"
    );
    client.connects();
    server.accept();
}

#[test]
fn a_server_that_turns_deaf_with_bytes_on_their_way_is_found() {
    let server = Server::start();
    let client = Running::start(watched(&server), |script| script.next = Next::RetryNow);
    client.connects();
    let peer = server.accept();
    let vanished = vanish(&peer);
    // From the owner's share of the turn: nothing else arms the look.
    assert_eq!(client.with(0, |link| link.send(b"anybody there?")), 14);
    let over = client.ends();
    assert_eq!(over.reason, CloseReason::Unacknowledged);
    assert_eq!((over.written, over.unacknowledged), (14, 14));
    assert!(over.noticed >= Duration::from_millis(4740), "{over:?}");
    let took = vanished.at.unhindered();
    assert!(took < Duration::from_millis(6500), "{took:?}");
    client.connects();
    server.accept();
}

#[test]
fn bytes_that_came_before_a_paused_links_server_vanished_are_heard() {
    let server = Server::start();
    let client = Running::start(watched(&server), |script| {
        script.connected = Box::new(|link| link.pause());
    });
    client.connects();
    let mut peer = server.accept();
    peer.write_all(b"last words").unwrap();
    vanish(&peer);
    client.with(0, |link| link.send(b"anybody there?"));
    pass(Duration::from_secs(7));
    client.with(0, |link| link.resume());
    client.reads(b"last words");
    let over = client.ends();
    assert_eq!((over.reason, over.read), (CloseReason::Unacknowledged, 10));
}

#[test]
fn a_half_closed_link_still_hears() {
    let server = Server::start();
    let client = Running::start(server.dial(), |_| {});
    client.connects();
    let mut peer = server.accept();
    let after = client.with(0, |link| {
        link.send(b"request");
        link.half_close();
        link.half_close();
        link.send(b"too late")
    });
    assert_eq!(after, 0);
    assert_eq!(read_to_fin(&mut peer), b"request");
    peer.write_all(b"answer").unwrap();
    client.reads(b"answer");
    drop(peer);
    let over = client.ends();
    assert_eq!((over.reason, over.written), (CloseReason::PeerClosed, 7));
}

#[test]
fn a_left_server_is_heard_out_and_ends_the_wait() {
    let server = Server::start();
    let client = Running::start(server.dial(), |_| {});
    client.connects();
    let mut peer = server.accept();
    client.with(0, |link| {
        link.send(b"?");
        link.leave();
    });
    assert_eq!(read_to_fin(&mut peer), b"?");
    peer.write_all(b"answer").unwrap();
    drop(peer);
    client.reads(b"answer");
    let over = client.ends();
    assert_eq!((over.reason, over.read), (CloseReason::Service, 6));
}

#[test]
fn a_left_server_that_never_closes_is_waited_for_one_second() {
    let server = Server::start();
    let client = Running::start(server.dial(), |_| {});
    client.connects();
    let mut peer = server.accept();
    let left = now();
    client.with(0, |link| {
        assert_eq!(link.send(b"last words"), 10);
        link.leave();
        // It may be said twice, and nothing more is sent.
        link.leave();
    });
    let over = client.ends();
    let waited = left.elapsed();
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    assert_eq!(
        (over.reason, over.written, over.unacknowledged),
        (CloseReason::Service, 10, 0)
    );
    assert_eq!(read_to_fin(&mut peer), b"last words");
}

#[test]
fn a_left_server_that_goes_on_sending_is_waited_for_one_second() {
    let server = Server::start();
    let client = Running::start(server.dial(), |script| {
        script.input = Some(Box::new(|_, _| {}));
    });
    client.connects();
    let mut peer = server.accept();
    let sending = thread::spawn(move || while peer.write_all(&[0; 65536]).is_ok() {});
    let left = now();
    client.with(0, |link| link.leave());
    let over = client.ends();
    let waited = left.elapsed();
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    assert_eq!(over.reason, CloseReason::Service);
    sending.join().unwrap();
}

#[test]
fn a_paused_link_that_is_left_hears_the_server_out() {
    let server = Server::start();
    let client = Running::start(server.dial(), |script| {
        script.connected = Box::new(|link| link.pause());
    });
    client.connects();
    let mut peer = server.accept();
    client.with(0, |link| link.leave());
    assert_eq!(read_to_fin(&mut peer), b"");
    peer.write_all(b"goodbye").unwrap();
    drop(peer);
    client.reads(b"goodbye");
    assert_eq!(client.ends().reason, CloseReason::Service);
}

#[test]
fn an_aborted_link_resets_its_server() {
    let server = Server::start();
    let client = Running::start(server.dial(), |_| {});
    client.connects();
    let mut peer = server.accept();
    client.with(0, |link| link.abort());
    assert_eq!(client.ends().reason, CloseReason::Service);
    let error = peer.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn nothing_more_is_heard_of_an_aborted_link() {
    let (server, mut kept) = (Server::start(), None);
    let client = Running::start(server.dial(), |script| {
        script.connected = Box::new(|link| link.abort());
        kept = Some(looks_late(script, server, |peer| {
            peer.write_all(b"hello").unwrap();
        }));
    });
    client.connects();
    assert_eq!(client.ends().reason, CloseReason::Service);
}

#[test]
fn what_was_sent_arrives_after_the_client_has_ended() {
    let server = Server::start();
    let client = Running::start(server.dial(), |_| {});
    client.connects();
    let mut peer = server.accept();
    let sent = client.with(0, fill);
    client.end();
    assert_eq!(Stream::default().read_to_fin(&mut peer), sent);
}

#[test]
fn what_was_sent_arrives_though_the_client_ends_with_unread_input() {
    let server = Server::start();
    let client = Running::start(server.dial(), |script| {
        script.connected = Box::new(|link| link.pause());
    });
    client.connects();
    let mut peer = server.accept();
    peer.write_all(b"unread").unwrap();
    until_acknowledged(&peer);
    let sent = client.with(0, fill);
    client.end();
    assert_eq!(Stream::default().read_to_fin(&mut peer), sent);
}

#[test]
fn what_was_sent_arrives_though_much_is_unread_at_the_end() {
    const MUCH: usize = 600 << 10;
    let server = Server::start();
    let client = Running::start(server.dial(), |_| {});
    client.connects();
    let mut peer = server.accept();
    // Its kernel widens the window with what its owner reads, at a pace that depends on the machine.
    until("a wide window", || {
        peer.write_all(&vec![b'x'; 1 << 20]).unwrap();
        until_acknowledged(&peer);
        window(&peer) >= MUCH
    });
    client.with(0, |link| link.pause());
    peer.write_all(&vec![b'x'; MUCH]).unwrap();
    until_acknowledged(&peer);
    let sent = client.with(0, fill);
    client.end();
    assert_eq!(Stream::default().read_to_fin(&mut peer), sent);
}
