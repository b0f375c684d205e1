//! What goes through: bytes, half-closes, headers, deadlines, pressure.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use crate::forward::{assert_ended, assert_pair, pair, relay};
use crate::support::clients::{Stream, send_all};
use crate::support::connecting::{Connecting, Netcat, Peer, assert_gets, assert_silent};
use crate::support::home::{Home, text};
use crate::support::{
    Began, Server, cannot_run, connect, now, pass, read_to_fin, send_until_stuck, until,
};

const BULK: u64 = 50_000_000;

#[test]
fn every_byte_arrives_in_order_both_ways_at_once() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let mut client = relay.connect();
    let mut served = upstream.accept();
    thread::scope(|threads| {
        for end in [&mut client, &mut served] {
            let sending = send_all(end, BULK);
            threads.spawn(move || {
                assert_eq!(Stream::default().read_to_fin(end), BULK);
                sending.join().unwrap();
            });
        }
    });
    let closed = relay.closed();
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    let bulk = BULK.to_string();
    assert_eq!(
        (closed.get("read"), closed.get("written")),
        (&*bulk, &*bulk)
    );
}

#[test]
fn a_client_that_has_said_all_still_hears_the_answer() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    client.write_all(b"that is all").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"that is all");
    assert_silent(&mut client, Duration::from_millis(100));
    served.write_all(b"a late answer").unwrap();
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"a late answer");
    assert_eq!(relay.closed().reason(), "peer-closed");
}

#[test]
fn an_upstream_that_has_said_all_still_hears_the_client() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    served.write_all(b"that is all").unwrap();
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"that is all");
    assert_silent(&mut served, Duration::from_millis(100));
    client.write_all(b"a late word").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"a late word");
    assert_eq!(relay.closed().reason(), "peer-closed");
}

#[test]
fn an_upstream_that_speaks_first_is_heard() {
    let upstream = Peer::start();
    let relay = relay(&[upstream.address()], &[]);
    let mut client = relay.connect();
    upstream.accept().write_all(b"220 welcome\r\n").unwrap();
    assert_gets(&mut client, b"220 welcome\r\n");
}

#[test]
fn unix_sockets_are_relayed_to_and_from() {
    let home = Home::new();
    let (front, back) = (home.join("front"), home.join("back"));
    let upstream = UnixListener::bind(&back).unwrap();
    let (to, at) = (
        format!("unix:{}", text(&back)),
        format!("unix:{}", text(&front)),
    );
    let mut command = home.standfast(&["serve", "forward", &to, "-l", &at, "--send-proxy", "v1"]);
    command.stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped());
    let mut relay = Server::launch(command);
    assert_eq!(relay.stdout_line(), format!("listening on {at}"));
    let mut client = std::os::unix::net::UnixStream::connect(&front).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut served, _) = upstream.accept().unwrap();
    let mut got = String::new();
    served.read_to_string(&mut got).unwrap();
    assert_eq!(got, "PROXY UNKNOWN\r\nhello");
    served.write_all(b"goodbye").unwrap();
    drop(served);
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got, "goodbye");
    assert_eq!(relay.closed().reason(), "peer-closed");
}

#[test]
fn netcats_talk_through_it() {
    let flavours: [(&str, &[&str]); 2] = [
        ("nc.openbsd", &["-n", "-l", "-v", "127.0.0.1", "0"]),
        ("nc.traditional", &["-n", "-l", "-v", "-s", "127.0.0.1"]),
    ];
    for (flavour, args) in flavours {
        let Some(mut upstream) = Netcat::start(flavour, args) else {
            cannot_run("netcats_talk_through_it", flavour);
            continue;
        };
        let relay = relay(&[upstream.address], &[]);
        let port = relay.address().port().to_string();
        let mut command = std::process::Command::new(flavour);
        command.args(["127.0.0.1", &port]);
        let mut client = Connecting::spawn(command);
        client.types("from the client\n");
        upstream.process.prints(b"from the client\n");
        upstream.process.types("from the upstream\n");
        client.prints(b"from the upstream\n");
    }
}

// Headers.

#[test]
fn an_upstream_is_told_who_its_client_is_before_anything_else() {
    for version in ["v1", "v2"] {
        let upstream = Peer::start();
        let relay = relay(&[upstream.address()], &["--send-proxy", version]);
        let mut client = relay.connect();
        client.write_all(b"hello").unwrap();
        let mut served = upstream.accept();
        let (from, to) = (client.local_addr().unwrap(), relay.address());
        let header = match version {
            "v1" => format!(
                "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
                from.port(),
                to.port()
            )
            .into_bytes(),
            _ => {
                let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
                header.extend([127, 0, 0, 1, 127, 0, 0, 1]);
                header.extend(from.port().to_be_bytes());
                header.extend(to.port().to_be_bytes());
                header
            }
        };
        assert_gets(&mut served, &header);
        assert_gets(&mut served, b"hello");
        assert_pair(&mut client, &mut served);
    }
}

#[test]
fn an_ipv4_client_of_a_listener_of_both_families_is_announced_as_one() {
    let upstream = Peer::start();
    let relay = relay(&[upstream.address()], &["--send-proxy", "v1", "-l", ":0"]);
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], relay.address().port()));
    let client = connect(to);
    let port = client.local_addr().unwrap().port();
    let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} {}\r\n", to.port());
    assert_gets(&mut upstream.accept(), header.as_bytes());
}

#[test]
fn an_ipv6_client_is_announced_to_an_ipv4_upstream() {
    if TcpListener::bind("[::1]:0").is_err() {
        return cannot_run("an_ipv6_client_is_announced_to_an_ipv4_upstream", "IPv6");
    }
    let upstream = Peer::start();
    let args = ["--send-proxy", "v1", "-l", "[::1]:0"];
    let relay = relay(&[upstream.address()], &args);
    let client = relay.connect();
    let port = client.local_addr().unwrap().port();
    let header = format!("PROXY TCP6 ::1 ::1 {port} {}\r\n", relay.address().port());
    assert_gets(&mut upstream.accept(), header.as_bytes());
}

// Deadlines.

#[test]
fn bytes_of_either_side_renew_the_read_deadline() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["-i", "1500ms"]);
    for who in ["client", "upstream"] {
        let (mut client, mut served) = pair(&relay, &upstream);
        for _ in 0..12 {
            pass(Duration::from_millis(300));
            let (from, to) = match who {
                "client" => (&mut client, &mut served),
                _ => (&mut served, &mut client),
            };
            from.write_all(b".").unwrap();
            assert_gets(to, b".");
        }
        let silent = now();
        let closed = relay.closed();
        assert_eq!(closed.reason(), "read-timeout", "{who}: {}", closed.line);
        assert!(
            closed.age() >= Duration::from_millis(3600 + 1400),
            "{}",
            closed.line
        );
        assert!(silent.elapsed() >= Duration::from_millis(1300), "{who}");
        assert_ended(&mut client);
        assert_ended(&mut served);
    }
}

#[test]
fn a_half_closed_pair_on_which_nothing_moves_is_ended() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--half-close-timeout", "1s"]);
    let (client, mut served) = pair(&relay, &upstream);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"");
    let closed = relay.closed();
    assert_eq!(closed.reason(), "half-close-timeout", "{}", closed.line);
    assert!(
        closed.age() >= Duration::from_millis(950),
        "{}",
        closed.line
    );
    assert_ended(&mut served);
}

#[test]
fn a_half_closed_pair_goes_on_as_long_as_bytes_move() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--half-close-timeout", "1s"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"");
    for _ in 0..10 {
        pass(Duration::from_millis(300));
        served.write_all(b"more").unwrap();
        assert_gets(&mut client, b"more");
    }
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    assert_eq!(relay.closed().reason(), "peer-closed");
}

/// The upstream has said all, and takes what the client says in pauses: nothing moves then, on either side.
#[test]
fn a_client_that_uploads_to_a_slow_upstream_after_its_fin_is_not_cut() {
    let upstream = Peer::start();
    let args = ["--half-close-timeout", "1s", "--buffer", "64k"];
    let mut relay = relay(&[upstream.address()], &args);
    let (mut client, mut served) = pair(&relay, &upstream);
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    let sent = send_until_stuck(&mut client, b"and so on, ");
    pass(Duration::from_secs(3));
    assert!(relay.closed_so_far().is_empty(), "{:?}", relay.lines);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served).len(), sent);
    assert_eq!(relay.closed().reason(), "peer-closed");
}

/// The client takes what the upstream says in pauses: that the upstream is silent meanwhile cannot be known.
#[test]
fn a_client_that_downloads_slowly_outlasts_the_read_deadline() {
    let upstream = Peer::start();
    let args = ["--read-timeout", "1s", "--buffer", "64k"];
    let mut relay = relay(&[upstream.address()], &args);
    let (mut client, mut served) = pair(&relay, &upstream);
    let sent = send_until_stuck(&mut served, b"and so on, ");
    pass(Duration::from_secs(3));
    assert!(relay.closed_so_far().is_empty(), "{:?}", relay.lines);
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client).len(), sent);
}

// Pressure.

/// What may wait between two ends: the buffers of three sockets that the kernel tunes up, and our own.
const MOST_BETWEEN: usize = 40 << 20;

/// Sends until nothing more is taken, then has the other end read all of it.
#[track_caller]
fn assert_stops_and_goes_on(relay: &Server, from: &mut TcpStream, to: &mut TcpStream) {
    let before = relay.resident();
    let words = Stream::default().peek(1 << 20);
    let sent = send_until_stuck(from, &words);
    assert!(sent < MOST_BETWEEN, "{sent} bytes wait");
    let grown = relay.resident().saturating_sub(before);
    assert!(grown < 4 << 20, "by {grown} bytes");
    let spent = relay.cpu();
    pass(Duration::from_millis(500));
    let spent = relay.cpu() - spent;
    assert!(spent < Duration::from_millis(100), "{spent:?} for waiting");
    from.shutdown(Shutdown::Write).unwrap();
    let (mut got, mut buffer) = (0, vec![0; 65536]);
    loop {
        let count = to.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        for &byte in &buffer[..count] {
            assert_eq!(byte, words[got % words.len()], "at {got}");
            got += 1;
        }
    }
    assert_eq!(got, sent);
}

#[test]
fn a_client_that_does_not_read_stops_its_upstream() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    assert_stops_and_goes_on(&relay, &mut served, &mut client);
    drop(client);
    assert_eq!(relay.closed().reason(), "peer-closed");
}

#[test]
fn an_upstream_that_does_not_read_stops_its_client() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    assert_stops_and_goes_on(&relay, &mut client, &mut served);
    drop(served);
    assert_eq!(relay.closed().reason(), "peer-closed");
}

/// Neither reads what the other sends, so that the relay is full both ways; other pairs go on.
#[test]
fn a_pair_that_is_stuck_both_ways_delays_nobody_and_loses_nothing() {
    let upstream = Peer::start();
    let relay = relay(&[upstream.address()], &["--workers", "1"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    let words = Stream::default().peek(1 << 20);
    let asked = send_until_stuck(&mut client, &words);
    let answered = send_until_stuck(&mut served, &words);
    let (mut other, mut serves_other) = pair(&relay, &upstream);
    let began = Began::now();
    for _ in 0..100 {
        assert_pair(&mut other, &mut serves_other);
    }
    assert!(began.unhindered() < Duration::from_secs(10));
    for (stream, count) in [(&mut client, answered), (&mut served, asked)] {
        let mut got = vec![0; count];
        stream.read_exact(&mut got).unwrap();
        let right = got.iter().enumerate();
        let mut right = right.map(|(at, byte)| *byte == words[at % words.len()]);
        assert!(right.all(|right| right));
    }
    assert_pair(&mut client, &mut served);
}

#[test]
fn a_pair_whose_ends_leave_at_once_loses_nothing_of_either() {
    let upstream = Peer::start();
    let relay = relay(&[upstream.address()], &[]);
    for _ in 0..200 {
        let mut client = relay.connect();
        client.write_all(b"a question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut served = upstream.accept();
        served.write_all(b"its answer").unwrap();
        served.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(&mut served), b"a question");
        assert_eq!(read_to_fin(&mut client), b"its answer");
    }
    until("no descriptor more than before", || {
        relay.descriptors() < 40
    });
}
