//! Clients that behave badly, and the well-behaved one beside them, which gets each echo within a second.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::support::clients::{Bystander, Stream, connect_with_window, reset, send_all, unread};
use crate::support::{Server, assert_echoes, connect, now, pass, read_to_fin, shell, until};

/// What a server may need besides its settings: tables that grow, pages that the allocator keeps.
const SLACK: u64 = 24 << 20;

/// A server and the well-behaved client.
fn start(args: &[&str]) -> (Server, Bystander) {
    let server = Server::start(&[&["echo"], args].concat());
    let bystander = Bystander::start(server.address());
    (server, bystander)
}

/// Asserts that the bystander was served all the while, and that the server ends well, having had `clients` others.
fn finish(mut server: Server, bystander: Bystander, clients: u64) {
    assert_echoes(&mut server.connect(), b"a new client");
    bystander.assert_unhurt();
    assert_eq!(server.drain().code(), Some(0), "{:?}", server.lines.last());
    let summary = server.summary();
    assert_eq!(summary["accepted"], (clients + 2).to_string());
    assert_eq!(summary["accepted"], summary["closed"]);
}

/// Runs `client` `count` times, on eight threads.
fn burst(address: SocketAddr, count: u64, client: fn(SocketAddr)) {
    thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| (0..count / 8).for_each(|_| client(address)));
        }
    });
}

#[test]
fn clients_that_connect_and_close_are_counted_and_forgotten() {
    let (mut server, bystander) = start(&[]);
    burst(server.address(), 2000, |address| drop(connect(address)));
    for _ in 0..2000 {
        let closed = server.closed();
        assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    }
    finish(server, bystander, 2000);
}

#[test]
fn two_thousand_clients_that_connect_and_reset_are_counted_and_forgotten() {
    let (mut server, bystander) = start(&[]);
    burst(server.address(), 2000, |address| reset(connect(address)));
    for _ in 0..2000 {
        let closed = server.closed();
        closed.assert_error("peer-reset", "ECONNRESET");
    }
    finish(server, bystander, 2000);
}

#[test]
fn a_megabyte_and_a_fin_get_a_megabyte_and_a_fin() {
    let (server, bystander) = start(&[]);
    let mut client = server.connect();
    let sender = send_all(&client, 1 << 20);
    assert_eq!(Stream::default().read_to_fin(&mut client), 1 << 20);
    sender.join().unwrap();
    drop(client);
    finish(server, bystander, 1);
}

#[test]
fn a_fin_while_output_waits_loses_none_of_it() {
    let (server, bystander) = start(&["--buffer", "16k"]);
    let mut client = connect_with_window(server.address(), 4096);
    let sender = send_all(&client, 5 << 20);
    until("some of the echo is there", || unread(&client) > 0);
    // The outbox is full long before the FIN comes.
    pass(Duration::from_millis(500));
    assert_eq!(Stream::default().read_to_fin(&mut client), 5 << 20);
    sender.join().unwrap();
    drop(client);
    finish(server, bystander, 1);
}

#[test]
fn one_byte_at_a_time_comes_back_as_it_went() {
    let (server, bystander) = start(&[]);
    let mut client = server.connect();
    client.set_nodelay(true).unwrap();
    let mut sender = client.try_clone().unwrap();
    let sending = thread::spawn(move || {
        for byte in Stream::default().peek(20_000) {
            sender.write_all(&[byte]).unwrap();
        }
    });
    Stream::default().read(&mut client, 20_000);
    sending.join().unwrap();
    drop(client);
    finish(server, bystander, 1);
}

#[test]
fn a_sender_that_does_not_read_costs_its_buffer_and_no_more() {
    let (server, bystander) = start(&[]);
    let before = server.resident();
    let mut client = server.connect();
    let sender = send_all(&client, 64 << 20);
    until_stuck(&[&client]);
    assert!(!sender.is_finished(), "64 MB went somewhere");
    let grown = server.resident().saturating_sub(before);
    assert!(grown < (256 << 10) + (4 << 20), "grown by {grown} bytes");
    // Reading at last, it gets everything.
    assert_eq!(Stream::default().read_to_fin(&mut client), 64 << 20);
    sender.join().unwrap();
    drop(client);
    finish(server, bystander, 1);
}

/// The kernel's buffers are kept small on the clients' side, or it would need gigabytes for both.
#[test]
fn a_thousand_senders_that_do_not_read_cost_their_buffers_and_no_more() {
    standfast::process::raise_descriptor_limit();
    const CLIENTS: usize = 1000;
    const BUFFER: u64 = 64 << 10;
    let (mut server, bystander) = start(&["--buffer", "64k"]);
    let before = server.resident();
    let clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| narrow_client(server.address()))
        .collect();
    let block = vec![7; 64 << 10];
    let mut sent = vec![0_usize; CLIENTS];
    // All of them send whatever is taken, until nobody gets rid of a byte any more.
    let mut moved = now();
    while moved.elapsed() < Duration::from_secs(2) {
        for (mut client, sent) in clients.iter().zip(&mut sent) {
            match client.write(&block) {
                Ok(count) => {
                    *sent += count;
                    moved = now();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        pass(Duration::from_millis(5));
    }
    assert!(
        sent.iter().all(|&sent| sent > 100_000 && sent < 64 << 20),
        "{sent:?}"
    );
    let grown = server.resident().saturating_sub(before);
    let bound = CLIENTS as u64 * BUFFER + SLACK;
    assert!(grown <= bound, "grown by {grown} bytes, beyond {bound}");
    assert!(server.closed_so_far().is_empty(), "nobody is cut for it");
    clients.into_iter().for_each(reset);
    for _ in 0..CLIENTS {
        let closed = server.closed();
        assert_eq!(closed.reason(), "peer-reset", "{}", closed.line);
    }
    finish(server, bystander, CLIENTS as u64);
}

/// A client that makes both kernels' buffers for it small: a narrow window, and segments of half a kilobyte.
fn narrow_client(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_send_buffer_size(32 << 10).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// Waits until what the clients have to read stays the same for a while.
fn until_stuck(clients: &[&TcpStream]) {
    let waiting = || clients.iter().map(|client| unread(client)).sum::<u64>();
    let (mut last, mut since) = (waiting(), now());
    until("nothing moves", || {
        if waiting() != last {
            (last, since) = (waiting(), now());
        }
        last > 0 && since.elapsed() > Duration::from_secs(1)
    });
}

/// Urgent data is bytes like all others, in their place; it needs an edge of its own to be noticed.
#[test]
fn urgent_data_is_echoed_in_its_place() {
    let (server, bystander) = start(&[]);
    let mut client = server.connect();
    let mut sent = Vec::new();
    for round in 0..200_usize {
        let plain = Stream::default().peek(round * 37 % 5000);
        client.write_all(&plain).unwrap();
        sent.extend_from_slice(&plain);
        let urgent = [b'!'; 3];
        let count = SockRef::from(&client).send_out_of_band(&urgent).unwrap();
        sent.extend_from_slice(&urgent[..count]);
        // Read to the last byte now and then, so that the mark is met at the end, in the middle, and alone.
        if round % 3 == 0 {
            let mut echo = vec![0; sent.len()];
            client.read_exact(&mut echo).unwrap();
            assert_eq!(echo, sent, "round {round}");
            sent.clear();
        }
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), sent);
    drop(client);
    finish(server, bystander, 1);
}

/// Both ways of saying that the house is full; the server's own limit on descriptors is what makes it so.
#[test]
fn a_flood_beyond_the_descriptor_limit_hurts_nobody_inside() {
    standfast::process::raise_descriptor_limit();
    thread::scope(|servers| {
        for when_full in ["close", "wait"] {
            servers.spawn(move || flood(when_full));
        }
    });
}

fn flood(when_full: &str) {
    let script = "ulimit -n 200; exec \"$@\"";
    let args = ["serve", "echo", "-l", "0", "--when-full", when_full];
    let mut server = Server::spawn(shell(script, &args), 1);
    let bystander = Bystander::start(server.address());
    let mut first = server.connect();
    assert_echoes(&mut first, b"inside before the flood");
    let flood: Vec<TcpStream> = (0..1000).map(|_| connect(server.address())).collect();
    let (cpu, began) = (server.cpu(), now());
    pass(Duration::from_secs(2));
    assert_echoes(&mut first, b"and still");
    // A bystander's echoes are some work; a loop that spins would be all of a core.
    let (used, passed) = (server.cpu().saturating_sub(cpu), began.elapsed());
    assert!(used < passed / 2, "{used:?} of CPU in {passed:?}");
    drop(flood);
    // Whoever comes after the flood is served.
    until("there is room again", || {
        let mut client = connect(server.address());
        let mut echo = [0; 2];
        client.write_all(b"hi").is_ok() && client.read_exact(&mut echo).is_ok() && &echo == b"hi"
    });
    bystander.assert_unhurt();
    drop(first);
    assert_eq!(server.drain().code(), Some(0));
    let summary = server.summary();
    assert_eq!(summary["accepted"], summary["closed"]);
    assert_eq!(summary.contains_key("limit"), when_full == "close");
}
