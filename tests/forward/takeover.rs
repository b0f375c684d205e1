//! A relay succeeded by another process, with its pairs.

use std::io::Write;
use std::iter;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::forward::{assert_pair, pair};
use crate::support::clients::{Raised, Stream, unread, until_acknowledged};
use crate::support::connecting::{Peer, Port, assert_gets, assert_silent};
use crate::support::home::{Home, entry, number};
use crate::support::loading::{Loading, row};
use crate::support::{Began, Server, pass, read_to_fin, send_until_stuck, until};

/// A relay with a control socket, to `upstream`.
fn relay(home: &Home, upstream: SocketAddr, args: &[&str]) -> Server {
    let to = upstream.to_string();
    home.serve(&[&["forward", &to], args].concat())
}

/// Has another process take over from `relay`.
#[track_caller]
fn succeed(home: &Home, relay: &mut Server, upstream: SocketAddr, args: &[&str]) -> Server {
    let to = upstream.to_string();
    home.succeed(relay, &[&["forward", &to], args].concat())
}

#[test]
fn two_hundred_pairs_under_load_never_notice() {
    let home = Home::new();
    let upstream = Server::start(&["echo", "-q"]);
    let mut relay = relay(&home, upstream.address(), &["-q", "--workers", "2"]);
    // Not all that this machine can do: then no takeover would be had beside others that keep it busy.
    let args = ["-c", "200", "-r", "5000", "--workers", "2", "-T", "10m"];
    let mut loading = Loading::start(relay.address(), &args);
    loading.goes_on_with(200);
    for workers in ["1", "2", "3"] {
        relay = succeed(
            &home,
            &mut relay,
            upstream.address(),
            &["-q", "--workers", workers],
        );
        loading.goes_on_with(200);
    }
    loading.signal(rustix::process::Signal::INT);
    // Whether they were as many a second as that is no matter here.
    let (_, table) = loading.ends();
    let connections = "200 of 200 up at the end, 200 connects, 0 reconnects";
    assert_eq!(row(&table, "connections"), connections, "{table}");
    for none in ["failed", "ended", "bytes"] {
        let mut counts = row(&table, none).split(", ");
        assert!(counts.all(|count| count.starts_with("0 ")), "{table}");
    }
}

#[test]
fn a_pair_goes_on_with_the_number_and_the_counts_it_had() {
    let home = Home::new();
    let upstream = Peer::start();
    let mut relay = relay(&home, upstream.address(), &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    let before = home.json(&["list"]);
    let mut next = succeed(&home, &mut relay, upstream.address(), &[]);
    assert_pair(&mut client, &mut served);
    let after = home.json(&["list"]);
    let [before, after] = [&before, &after].map(|list| entry(list, &client));
    assert_eq!(before["id"], after["id"]);
    assert_eq!(number(&after["read"]), 20, "{after}");
    assert_eq!(number(&after["written"]), 20, "{after}");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"");
    drop(served);
    assert_eq!(read_to_fin(&mut client), b"");
    let closed = next.closed();
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    assert_eq!((closed.get("read"), closed.get("written")), ("20", "20"));
}

#[test]
fn what_waits_both_ways_arrives_once_and_in_order() {
    let home = Home::new();
    let upstream = Peer::start();
    let mut relay = relay(&home, upstream.address(), &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    let words = Stream::default().peek(1 << 20);
    let asked = send_until_stuck(&mut client, &words);
    let answered = send_until_stuck(&mut served, &words);
    let mut next = succeed(&home, &mut relay, upstream.address(), &[]);
    // Twice, with all of it still waiting.
    let _last = succeed(&home, &mut next, upstream.address(), &[]);
    for (stream, count) in [(&mut client, answered), (&mut served, asked)] {
        let mut got = vec![0; count];
        std::io::Read::read_exact(stream, &mut got).unwrap();
        let mut right = got.iter().enumerate();
        assert!(right.all(|(at, byte)| *byte == words[at % words.len()]));
    }
    assert_pair(&mut client, &mut served);
}

#[test]
fn half_closes_are_carried_over_those_that_could_not_be_passed_on_yet_included() {
    let home = Home::new();
    let upstream = Peer::start();
    let mut relay = relay(&home, upstream.address(), &[]);
    let (mut one, mut serves_one) = pair(&relay, &upstream);
    let (mut two, mut serves_two) = pair(&relay, &upstream);
    let (mut three, mut serves_three) = pair(&relay, &upstream);
    one.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut serves_one), b"");
    serves_two.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut two), b"");
    // Its FIN stands behind bytes that the upstream does not take.
    let words = [7; 65536];
    let sent = send_until_stuck(&mut three, &words);
    three.shutdown(Shutdown::Write).unwrap();
    pass(Duration::from_millis(100));
    let mut next = succeed(&home, &mut relay, upstream.address(), &[]);

    serves_one.write_all(b"one").unwrap();
    drop(serves_one);
    assert_eq!(read_to_fin(&mut one), b"one");
    two.write_all(b"two").unwrap();
    two.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut serves_two), b"two");
    assert_eq!(read_to_fin(&mut serves_three).len(), sent);
    serves_three.write_all(b"three").unwrap();
    drop(serves_three);
    assert_eq!(read_to_fin(&mut three), b"three");
    for _ in 0..3 {
        assert_eq!(next.closed().reason(), "peer-closed");
    }
}

#[test]
fn a_client_that_waits_for_its_upstream_waits_on_in_the_new_process() {
    let home = Home::new();
    let port = Port::new();
    let address = port.address();
    let args = ["--upstream-wait", "1m"];
    let mut relay = relay(&home, address, &args);
    let mut client = relay.connect();
    client.write_all(b"early words").unwrap();
    until_acknowledged(&client);
    pass(Duration::from_millis(300));
    let mut next = succeed(&home, &mut relay, address, &args);
    assert_silent(&mut client, Duration::from_millis(300));
    let mut served = port.listen().accept();
    assert_gets(&mut served, b"early words");
    assert_pair(&mut client, &mut served);
    drop((client, served));
    assert_eq!(next.closed().reason(), "peer-closed");
}

#[test]
fn a_client_that_waits_for_its_upstream_waits_on_after_a_takeover_that_came_to_nothing() {
    for fault in ["abort-pre-copy", "abort-freeze", "hang-freeze"] {
        let home = Home::new();
        let port = Port::new();
        let address = port.address();
        let args = ["--upstream-wait", "1m"];
        let mut relay = relay(&home, address, &args);
        let mut client = relay.connect();
        client.write_all(b"early words").unwrap();
        until_acknowledged(&client);
        let to = address.to_string();
        let failed = home.faulty(&relay, &[&["forward", &to][..], &args].concat(), fault);
        relay.log_line("that it failed", |line| line.contains(" takeover failed"));
        drop(failed);
        let mut served = port.listen().accept();
        assert_gets(&mut served, b"early words");
        assert_pair(&mut client, &mut served);
        drop((client, served));
        assert_eq!(relay.closed().reason(), "peer-closed");
    }
}

/// More than could be sent while the server stands still.
#[test]
fn two_thousand_clients_that_wait_for_their_upstream_change_hands() {
    let home = Home::new();
    let port = Port::new();
    let address = port.address();
    let args = ["--upstream-wait", "10m", "-q"];
    let mut relay = relay(&home, address, &args);
    let mut clients: Vec<TcpStream> = (0..2000).map(|_| relay.connect()).collect();
    let _next = succeed(&home, &mut relay, address, &args);
    let upstream = port.listen_with(4096);
    let served: Vec<TcpStream> = clients.iter().map(|_| upstream.accept()).collect();
    for client in &mut clients {
        client.write_all(b"a word").unwrap();
    }
    until("each word has come", || {
        served.iter().all(|served| unread(served) == 6)
    });
}

#[test]
fn the_wait_for_an_upstream_does_not_begin_anew_with_a_takeover() {
    let home = Home::new();
    let port = Port::new();
    let args = ["--upstream-wait", "16s"];
    // Once more where a busy machine was not ready for a takeover before the wait was over.
    for _ in 0..5 {
        let mut relay = relay(&home, port.address(), &args);
        let _client = relay.connect();
        let began = Began::now();
        pass(Duration::from_secs(4));
        let mut next = succeed(&home, &mut relay, port.address(), &args);
        if relay.lines.iter().any(|line| line.contains(" closed ")) {
            continue;
        }
        let closed = next.closed();
        assert_eq!(closed.reason(), "upstream-failed", "{}", closed.line);
        let took = began.unhindered();
        // Begun anew it would have taken twenty at least.
        assert!(took < Duration::from_secs(20), "{took:?}");
        return;
    }
    panic!("no takeover before the wait was over");
}

/// Who waits keeps its turn, and the next one's follows.
#[test]
fn turns_go_on_behind_those_that_were_given() {
    let home = Home::new();
    let (one, two) = (Port::new(), Port::new());
    let (at_one, at_two) = (one.address().to_string(), two.address().to_string());
    let args = ["--balance", "round-robin", "--max-fails", "off"];
    let args = [&args[..], &["--upstream-wait", "1m", "--workers", "2"]].concat();
    let mut relay = home.serve(&[&["forward", &at_one, &at_two], &args[..]].concat());
    let at = relay.address().to_string();
    let mut clients: Vec<TcpStream> = (0..5).map(|_| relay.connect()).collect();
    until("all wait", || {
        home.json(&["list"]).as_array().unwrap().len() == clients.len()
    });
    let next = relay.replaced_by(1, || {
        let mut command = home.standfast(&["serve", "forward", &at_one, &at_two, "--replace"]);
        command.args(["-l", &at]).args(&args);
        command
    });
    // Both come up in the same moment.
    next.suspend();
    let (one, two) = (one.listen(), two.listen());
    next.resume();
    clients.push(next.connect());
    let mut served = [Vec::new(), Vec::new()];
    until("all are connected", || {
        for (served, upstream) in served.iter_mut().zip([&one, &two]) {
            served.extend(iter::from_fn(|| upstream.who_waits()));
        }
        served.iter().map(Vec::len).sum::<usize>() == clients.len()
    });
    // By turns; but one that was refused by the first just before they came up is the second's.
    assert!(served.iter().all(|served| served.len() >= 2), "{served:?}");
    for served in served.iter_mut().flatten() {
        served.write_all(b"served").unwrap();
    }
    for client in &mut clients {
        assert_gets(client, b"served");
    }
}

#[test]
fn a_header_is_sent_once() {
    let home = Home::new();
    let upstream = Peer::start();
    let args = ["--send-proxy", "v1"];
    let mut relay = relay(&home, upstream.address(), &args);
    let mut client = relay.connect();
    let mut served = upstream.accept();
    let (from, to) = (client.local_addr().unwrap(), relay.address());
    let header = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
        from.port(),
        to.port()
    );
    assert_gets(&mut served, header.as_bytes());
    let _next = succeed(&home, &mut relay, upstream.address(), &args);
    assert_pair(&mut client, &mut served);
}

#[test]
fn a_chain_of_takeovers_leaves_no_descriptor_behind() {
    let home = Home::new();
    let upstream = Peer::start();
    let mut relay = relay(&home, upstream.address(), &[]);
    let mut pairs: Vec<(TcpStream, TcpStream)> = (0..20).map(|_| pair(&relay, &upstream)).collect();
    let mut counts = Vec::new();
    for _ in 0..6 {
        relay = succeed(&home, &mut relay, upstream.address(), &[]);
        for (client, served) in &mut pairs {
            assert_pair(client, served);
        }
        counts.push(relay.descriptors_at_rest());
    }
    let (first, last) = (counts[0], counts[counts.len() - 1]);
    assert!(last <= first, "{counts:?}");
    // An upstream that leaves after it all ends its client.
    for (mut client, served) in pairs {
        drop(served);
        assert_eq!(read_to_fin(&mut client), b"");
        drop(client);
        assert_eq!(relay.closed().reason(), "peer-closed");
    }
}

#[test]
fn an_upstream_that_is_lost_after_a_takeover_is_told_apart_from_a_client() {
    let home = Home::new();
    let upstream = Peer::start();
    let mut relay = relay(&home, upstream.address(), &[]);
    let (mut client, served) = pair(&relay, &upstream);
    let (other, mut serves_other) = pair(&relay, &upstream);
    let mut next = succeed(&home, &mut relay, upstream.address(), &[]);
    crate::support::clients::reset(served);
    crate::forward::assert_reset(&mut client);
    assert_eq!(next.closed().reason(), "upstream-failed");
    crate::support::clients::reset(other);
    crate::forward::assert_reset(&mut serves_other);
    assert_eq!(next.closed().reason(), "peer-reset");
}

#[test]
fn an_attempt_that_is_under_way_is_made_anew_by_the_new_process() {
    let home = Home::new();
    let (_silent, first) = crate::support::peers::silent();
    let second = Peer::start();
    let (first, second_at) = (first.to_string(), second.address().to_string());
    let words = ["forward", &first, &second_at, "--connect-timeout", "2s"];
    let mut relay = home.serve(&words);
    let mut client = relay.connect();
    client.write_all(b"early").unwrap();
    until_acknowledged(&client);
    pass(Duration::from_millis(300));
    let at = relay.address().to_string();
    let _next = relay.replaced_by(1, || {
        let mut command = home.standfast(&["serve", "--replace", "-l", &at]);
        command.args(words);
        command
    });
    assert_eq!(relay.wait().code(), Some(0), "{:#?}", relay.lines);
    let mut served = second.accept();
    assert_gets(&mut served, b"early");
    assert_pair(&mut client, &mut served);
}

/// The relay changes hands again and again while everybody comes, talks, half-closes, resets and goes.
#[test]
fn clients_that_come_and_go_during_takeovers_get_their_answers() {
    let home = Home::new();
    let upstream = crate::support::loading::Peer::start(|_, mut stream| {
        let mut reading = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut reading, &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    });
    let mut relay = relay(&home, upstream.address, &["-q"]);
    let address = relay.address();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        let _over = Raised(&over);
        for number in 0..6_usize {
            let over = &over;
            threads.spawn(move || {
                let mut count = number;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut client = crate::support::connect(address);
                    let size = 1 + (count * 7919) % 300_000;
                    let sending = crate::support::clients::send_all(&client, size as u64);
                    let got = Stream::default().read_to_fin(&mut client);
                    assert_eq!(got, size as u64);
                    sending.join().unwrap();
                    count += 6;
                }
            });
        }
        for _ in 0..5 {
            pass(Duration::from_millis(200));
            relay = succeed(&home, &mut relay, upstream.address, &["-q"]);
        }
    });
}
