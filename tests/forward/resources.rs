//! What a relay holds on to: descriptors, memory, the processor.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::forward::{assert_ended, assert_pair, pair, relay};
use crate::support::clients::{connect_with_window, reset, until_acknowledged};
use crate::support::connecting::{Peer, Port};
use crate::support::loading::Peer as Answering;
use crate::support::{Server, assert_echoes, leave_descriptors, pass, until};

/// Echoes to whoever comes.
fn echo() -> Answering {
    Answering::start(|_, mut stream| {
        let mut reading = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut reading, &mut stream);
    })
}

#[test]
fn a_thousand_clients_that_come_and_go_leave_nothing() {
    let upstream = echo();
    let mut relay = relay(&[upstream.address], &["-q"]);
    assert_echoes(&mut relay.connect(), b"the first");
    pass(Duration::from_millis(200));
    let before = relay.descriptors_at_rest();
    for round in 0..10 {
        let mut clients: Vec<TcpStream> = (0..100).map(|_| relay.connect()).collect();
        for client in &mut clients {
            assert_echoes(client, b"hello");
        }
        for (number, client) in clients.into_iter().enumerate() {
            // By FIN, by reset, and with an answer under way.
            match (number + round) % 3 {
                0 => drop(client),
                1 => reset(client),
                _ => {
                    let mut client = client;
                    client.write_all(&[7; 10_000]).unwrap();
                    drop(client);
                }
            }
        }
    }
    until("as many descriptors as before", || {
        relay.descriptors() <= before
    });
    assert!(relay.is_running());
    assert!(relay.drain().success());
}

/// Acknowledgements make no event: they are looked for in pauses that grow.
#[test]
fn waiting_for_a_client_that_does_not_read_is_no_work() {
    let upstream = Peer::start();
    let relay = relay(&[upstream.address()], &["-q", "--workers", "1"]);
    let client = connect_with_window(relay.address(), 4096);
    let mut served = upstream.accept();
    served.write_all(&[7; 200_000]).unwrap();
    until_acknowledged(&served);
    reset(served);
    // It was looked for often at first.
    pass(Duration::from_secs(2));
    let looks = relay.wakes();
    pass(Duration::from_secs(2));
    let looks = relay.wakes() - looks;
    // Every 10 ms that would be 200.
    assert!(looks < 60, "{looks} turns for nothing");
    drop(client);
}

#[test]
fn clients_that_give_up_waiting_leave_nothing() {
    let port = Port::new();
    let relay = relay(&[port.address()], &["-q", "--upstream-wait", "1m"]);
    drop(relay.connect());
    pass(Duration::from_millis(200));
    let before = relay.descriptors_at_rest();
    for _ in 0..10 {
        let clients: Vec<TcpStream> = (0..50).map(|_| relay.connect()).collect();
        pass(Duration::from_millis(50));
        clients.into_iter().for_each(reset);
    }
    until("as many descriptors as before", || {
        relay.descriptors() <= before
    });
    let upstream = port.listen();
    until("nobody is dialled for who has left", || {
        let mut client = relay.connect();
        let mut served = upstream.accept();
        client.write_all(b"x").is_ok() && std::io::Read::read(&mut served, &mut [0]).is_ok()
    });
}

#[test]
fn idle_pairs_and_half_closed_ones_cost_no_time() {
    let upstream = Peer::start();
    let relay = relay(&[upstream.address()], &[]);
    let _idle: Vec<_> = (0..20).map(|_| pair(&relay, &upstream)).collect();
    let _half: Vec<_> = (0..20)
        .map(|number| {
            let (client, served) = pair(&relay, &upstream);
            let end = if number % 2 == 0 { &client } else { &served };
            end.shutdown(std::net::Shutdown::Write).unwrap();
            (client, served)
        })
        .collect();
    pass(Duration::from_millis(100));
    let spent = relay.cpu();
    pass(Duration::from_secs(1));
    let spent = relay.cpu() - spent;
    assert!(spent < Duration::from_millis(50), "{spent:?}");
}

/// A pair needs two descriptors: with one left, its client is accepted and nobody can be dialled for it.
#[test]
fn without_a_descriptor_for_the_upstream_the_client_waits_or_is_told() {
    let upstream = echo();
    let mut relay = relay(&[upstream.address], &["--upstream-wait", "2s"]);
    assert_echoes(&mut relay.connect(), b"the first");
    relay.closed();
    pass(Duration::from_millis(200));
    leave_descriptors(&relay, 3);
    let mut clients: Vec<TcpStream> = (0..3).map(|_| relay.connect()).collect();
    let spent = relay.cpu();
    pass(Duration::from_millis(700));
    let spent = relay.cpu() - spent;
    assert!(spent < Duration::from_millis(300), "{spent:?}: it spins");
    assert!(relay.is_running());
    // Whoever lost goes; then there is room again.
    for client in &mut clients {
        let _ = client.write_all(b"hello");
    }
    drop(clients);
    until("it serves again", || serves(&relay));
}

fn serves(relay: &Server) -> bool {
    let mut client = relay.connect();
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut echoed = [0; 5];
    client.write_all(b"hello").is_ok()
        && std::io::Read::read_exact(&mut client, &mut echoed).is_ok()
        && echoed == *b"hello"
}

#[test]
fn an_upstream_that_accepts_and_closes_ends_the_client_and_is_not_dialled_again() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let mut client = relay.connect();
    drop(upstream.accept());
    assert_ended(&mut client);
    drop(client);
    assert_eq!(relay.closed().reason(), "peer-closed");
    let (mut client, mut served) = pair(&relay, &upstream);
    assert_pair(&mut client, &mut served);
}
