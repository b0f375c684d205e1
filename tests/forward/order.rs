//! Upstreams see clients in the order in which they came, whichever worker serves them.

use std::io::Write;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};

use standfast::services::Forward;
use standfast::services::forward::ForwardOptions;
use standfast::{Context, Service};

use crate::forward::{assert_pair, relay};
use crate::support::connecting::{Peer, Port, assert_gets};
use crate::support::embedded::{Embedded, listen};
use crate::support::home::{Home, number};
use crate::support::peers::silent;
use crate::support::{GUARD, connect, until};

/// What a client sends stops its worker, until the test says otherwise or has gone.
struct Stopper(Mutex<Receiver<()>>);

impl Service for Stopper {
    type State = ();

    fn open(&self, conn: &mut Context<'_>) {
        conn.write(b"open");
    }

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        conn.write(b"stop");
        let goes_on = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = goes_on.recv_timeout(2 * GUARD);
        bytes.len()
    }
}

/// Of two workers the second one stands still, and has one client: of those that come now each second one is for it.
#[test]
fn a_client_is_dialled_for_when_it_comes_though_its_worker_is_busy() {
    let (go_on, stopped) = channel();
    let upstream = Peer::start();
    let to = upstream.address().to_string().parse().unwrap();
    let forward = Forward::new(ForwardOptions::new(vec![to])).unwrap();
    let stopper = Stopper(Mutex::new(stopped));
    let server = Embedded::start_all(vec![listen(forward), listen(stopper)]);
    // Dropped before the server, should this fail.
    let go_on = go_on;
    let mut stoppers = [connect(server.addresses[1]), connect(server.addresses[1])];
    for client in &mut stoppers {
        assert_gets(client, b"open");
    }
    stoppers[1].write_all(b"x").unwrap();
    assert_gets(&mut stoppers[1], b"stop");
    let mut pairs = Vec::new();
    for _ in 0..6 {
        let client = server.connect();
        // One that comes out of order would not be accepted for here, but after the busy worker goes on.
        pairs.push((client, upstream.accept()));
    }
    go_on.send(()).unwrap();
    for (client, served) in &mut pairs {
        assert_pair(client, served);
    }
    // Every second one has changed hands, and is served there.
    drop(go_on);
    stoppers[0].write_all(b"x").unwrap();
    assert_gets(&mut stoppers[0], b"stop");
}

/// Many come at once, and all workers get some: the one that waits longest is the first for the upstream.
#[test]
fn upstreams_see_clients_in_the_order_in_which_they_came() {
    let upstream = Port::new().listen_with(128);
    let relay = relay(
        &[upstream.address()],
        &["--workers", "4", "--send-proxy", "v1"],
    );
    let to = relay.address();
    let clients: Vec<_> = (0..100).map(|_| connect(to)).collect();
    for client in &clients {
        let from = client.local_addr().unwrap().port();
        let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {}\r\n", to.port());
        assert_gets(&mut upstream.accept(), header.as_bytes());
    }
}

/// All wait for one that does not answer, and the new process has another one.
#[test]
fn clients_that_wait_are_dialled_for_in_their_order_after_a_takeover() {
    let home = Home::new();
    let ((_silent, silent), upstream) = (silent(), Port::new().listen_with(64));
    let words = ["forward", &silent.to_string(), "--connect-timeout", "1m"];
    let mut relay = home.serve(&[&words[..], &["--workers", "2"]].concat());
    let mut clients: Vec<_> = (0_u8..20).map(|_| relay.connect()).collect();
    until("all wait", || {
        number(&home.json(&["status"])["open"]) == clients.len() as u64
    });
    let to = upstream.address().to_string();
    let _next = home.succeed(&mut relay, &["forward", &to, "--workers", "3"]);
    for (number, client) in (0_u8..).zip(&mut clients) {
        let mut served = upstream.accept();
        client.write_all(&[number]).unwrap();
        assert_gets(&mut served, &[number]);
    }
}
