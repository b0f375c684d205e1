//! Living slow readers live, and no answer is lost at a close.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::clients::{
    Raised, Stream, connect_with_window, send_all, unread, until_acknowledged,
};
use crate::support::{Server, connect, now, pass, until};

/// How clients read: so many bytes, then a pause of so many milliseconds.
const PATTERNS: [(usize, u64); 6] = [
    (1000, 500),
    (4 << 10, 1000),
    (16 << 10, 1000),
    (64 << 10, 1000),
    (64 << 10, 3000),
    (64 << 10, 6000),
];

/// Their receive buffers; `None`: the system's own, which it tunes up to megabytes.
const RECEIVE_BUFFERS: [Option<usize>; 3] = [Some(4 << 10), Some(64 << 10), None];

/// How long they read like that, with the server always having more for them.
const RUN: Duration = Duration::from_secs(120);

/// Every one of these was cut by `TCP_USER_TIMEOUT` of a few seconds, but for a single one.
#[test]
fn no_living_slow_reader_is_cut_and_every_byte_is_right() {
    let mut servers = [
        Server::start(&["echo"]),
        Server::start(&["echo", "--dead-after", "10s"]),
    ];
    let addresses = servers.each_ref().map(Server::address);
    let total = thread::scope(|clients| {
        let clients: Vec<_> = addresses
            .into_iter()
            .flat_map(|address| {
                PATTERNS.into_iter().flat_map(move |pattern| {
                    RECEIVE_BUFFERS.map(|buffer| (address, pattern, buffer))
                })
            })
            .map(|(address, pattern, buffer)| {
                clients.spawn(move || read_slowly(address, pattern, buffer))
            })
            .collect();
        assert_eq!(clients.len(), 36);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum::<u64>()
    });
    let mut written = 0;
    for server in &mut servers {
        for _ in 0..18 {
            let closed = server.closed();
            assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
            // It is counted from the accept, the run from a little before.
            assert!(
                closed.age() + Duration::from_secs(2) >= RUN,
                "{}",
                closed.line
            );
            written += closed.get("written").parse::<u64>().unwrap();
        }
    }
    assert_eq!(written, total);
}

/// Sends all the time and reads slowly for as long as the run takes, then the rest at once. Answers how many bytes
/// came back, all of them verified.
fn read_slowly(address: SocketAddr, (bytes, pause): (usize, u64), buffer: Option<usize>) -> u64 {
    let mut client = match buffer {
        Some(buffer) => connect_with_window(address, buffer),
        None => connect(address),
    };
    let began = now();
    let over = AtomicBool::new(false);
    thread::scope(|threads| {
        let raised = Raised(&over);
        let sender = client.try_clone().unwrap();
        let sending = threads.spawn(|| send_until(sender, &over));
        let mut echo = Stream::default();
        let mut piece = vec![0; bytes];
        while began.elapsed() < RUN {
            let got = client.read(&mut piece);
            let how = "bytes, milliseconds of pause, receive buffer";
            assert!(
                matches!(got, Ok(1..)),
                "{got:?} for {bytes}, {pause}, {buffer:?} ({how})"
            );
            echo.verify(&piece[..got.unwrap()]);
            pass(Duration::from_millis(pause));
        }
        drop(raised);
        let echoed = echo.read_to_fin(&mut client);
        assert_eq!(echoed, sending.join().unwrap());
        echoed
    })
}

/// Sends the stream as fast as it is taken, until told to end it. Answers how much it sent.
fn send_until(mut client: TcpStream, over: &AtomicBool) -> u64 {
    client
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut stream = Stream::default();
    while !over.load(Ordering::Relaxed) {
        match client.write(&stream.peek(16 << 10)) {
            Ok(sent) => stream.skip(sent),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "after {}", stream.at),
        }
    }
    client.shutdown(Shutdown::Write).unwrap();
    stream.at
}

const MEGABYTE: u64 = 1_000_000;

/// Under a capped `TCP_RTO_MAX_MS` the kernel would give up the answer of a server that closes too early.
#[test]
fn an_answer_is_not_lost_when_its_reader_pauses() {
    let mut server = Server::start(&["echo", "--dead-after", "10s"]);
    let mut client = connect_with_window(server.address(), 4096);
    let sender = send_all(&client, MEGABYTE);
    pass(Duration::from_secs(4));
    assert_eq!(Stream::default().read_to_fin(&mut client), MEGABYTE);
    sender.join().unwrap();
    drop(client);
    let closed = server.closed();
    assert_eq!(
        (closed.reason(), closed.get("written")),
        ("peer-closed", "1000000")
    );
}

/// A closed window that still answers is a sign of life, for longer than a vanished peer is given.
#[test]
fn a_reader_may_pause_for_longer_than_the_bound() {
    let server = Server::start(&["echo", "--dead-after", "5s"]);
    let mut client = connect_with_window(server.address(), 4096);
    let sender = send_all(&client, MEGABYTE);
    pass(Duration::from_secs(12));
    assert_eq!(Stream::default().read_to_fin(&mut client), MEGABYTE);
    sender.join().unwrap();
}

#[test]
fn an_answer_is_not_lost_when_the_server_drains_while_its_reader_pauses() {
    // Waiting in the kernel alone, and in the outbox and unread as well.
    thread::scope(|servers| {
        for buffer in ["256k", "1k"] {
            servers.spawn(move || {
                let mut server = Server::start(&[
                    "echo",
                    "--dead-after",
                    "10s",
                    "--drain-timeout",
                    "20s",
                    "--buffer",
                    buffer,
                ]);
                let mut client = connect_with_window(server.address(), 4096);
                let count = 60_000;
                client.write_all(&Stream::default().peek(count)).unwrap();
                until_acknowledged(&client);
                until("some of the echo is there", || unread(&client) > 0);
                server.signal(rustix::process::Signal::TERM);
                pass(Duration::from_secs(4));
                assert_eq!(Stream::default().read_to_fin(&mut client), count as u64);
                drop(client);
                let status = server.wait();
                assert_eq!(status.code(), Some(0), "{:?}", server.lines);
                assert_eq!(server.summary()["drain"], "1");
                assert_eq!(server.summary()["written"], count.to_string());
            });
        }
    });
}

#[test]
fn a_megabyte_is_not_lost_when_the_server_drains_while_its_reader_pauses() {
    let args = ["echo", "--dead-after", "10s", "--drain-timeout", "20s"];
    let mut server = Server::start(&args);
    let mut client = connect_with_window(server.address(), 4096);
    let sender = send_all(&client, MEGABYTE);
    sender.join().unwrap();
    until_acknowledged(&client);
    server.signal(rustix::process::Signal::TERM);
    pass(Duration::from_secs(4));
    assert_eq!(Stream::default().read_to_fin(&mut client), MEGABYTE);
    drop(client);
    assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
}
