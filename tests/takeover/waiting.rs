//! However much waits, and however fast more comes: a takeover can be had, and the freeze is no longer for it.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::clients::{Raised, Stream, connect_with_window};
use crate::support::home::{Home, entry, number};
use crate::support::{assert_echoes, until};

fn until_waiting(home: &Home, client: &TcpStream, bytes: usize) {
    until("output waits", || {
        number(&entry(&home.json(&["list"]), client)["waiting"]) >= bytes as u64
    });
}

#[test]
fn what_waits_crosses_before_the_freeze_however_long_that_takes() {
    // More than is copied in the second after which the freeze once began in any case.
    const COUNT: usize = 24 << 20;
    let home = Home::new();
    let args = ["--buffer", "32m"];
    let mut server = home.serve(&args);
    let bytes = Stream::default().next(COUNT);
    let mut clients = [(); 2].map(|()| connect_with_window(server.address(), 65536));
    for client in &mut clients {
        client.write_all(&bytes).unwrap();
    }
    for client in &clients {
        until_waiting(&home, client, COUNT / 2);
    }
    let next = home.succeed(&mut server, &args);
    for mut client in clients {
        Stream::default().read(&mut client, COUNT as u64);
        assert_echoes(&mut client, b"and on");
    }
    drop(next);
}

#[test]
fn who_makes_output_faster_than_it_can_be_copied_is_not_read_for_a_moment() {
    const BUFFER: usize = 4 << 20;
    let home = Home::new();
    let args = ["--buffer", "4m", "--workers", "1"];
    let mut server = home.serve(&args);
    let clients = [(); 2].map(|()| connect_with_window(server.address(), 65536));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let raised = Raised(&over);
        let threads: Vec<_> = clients
            .iter()
            .map(|client| {
                let over = &over;
                let sending = scope.spawn(move || {
                    let (mut stream, mut client) = (Stream::default(), client);
                    let mut sent = 0;
                    while !over.load(Ordering::Relaxed) {
                        client.write_all(&stream.next(1 << 20)).unwrap();
                        sent += 1 << 20;
                    }
                    client.shutdown(Shutdown::Write).unwrap();
                    sent
                });
                until_waiting(&home, client, BUFFER / 2);
                let mut reader = client.try_clone().unwrap();
                let reading = scope.spawn(move || Stream::default().read_to_fin(&mut reader));
                (sending, reading)
            })
            .collect();
        for _ in 0..2 {
            server = home.succeed(&mut server, &args);
        }
        drop(raised);
        for (sending, reading) in threads {
            assert_eq!(reading.join().unwrap(), sending.join().unwrap());
        }
    });
}

/// Were it filled to the brim, the first byte more would have all of it copied: with thousands of clients that took seconds.
#[test]
fn what_waits_has_as_much_room_after_a_takeover_as_before() {
    const COUNT: usize = 7 << 20;
    let home = Home::new();
    let args = ["--buffer", "8m"];
    let mut server = home.serve(&args);
    let mut client = connect_with_window(server.address(), 65536);
    client.write_all(&Stream::default().next(COUNT)).unwrap();
    let row = |key: &str| number(&entry(&home.json(&["list"]), &client)[key]);
    until("all is read", || row("read") == COUNT as u64);
    until_waiting(&home, &client, 1 << 20);
    let before = row("held");
    assert!(before > row("waiting"));
    for _ in 0..2 {
        server = home.succeed(&mut server, &args);
        assert_eq!(row("held"), before);
    }
    Stream::default().read(&mut client, COUNT as u64);
    assert_echoes(&mut client, b"and on");
}
