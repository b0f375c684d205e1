//! Whether it lives and is ready: while workers hang, in a drain, and without descriptors.

use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use rustix::process::Signal;
use standfast::{Config, Context, Metrics, Server, Service};

use super::{get, metrics, serve, value};
use crate::support::embedded::listen;
use crate::support::home::Home;
use crate::support::{assert_echoes, connect, leave_descriptors, until};

/// Hangs, once somebody has said something, until the other end of the channel is dropped.
struct Hangs(Mutex<Receiver<()>>);

impl Service for Hangs {
    type State = ();

    fn open(&self, _conn: &mut Context<'_>) {}

    fn input(&self, _state: &mut (), _conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let _ = self.0.lock().unwrap().recv();
        bytes.len()
    }
}

#[test]
fn a_worker_that_hangs_is_told_of_and_the_rest_goes_on() {
    let (lets_go, held) = mpsc::channel();
    let server = Server::bind(Config {
        listen: vec![listen(Hangs(Mutex::new(held)))],
        workers: NonZeroUsize::new(2),
        metrics: Some(Metrics {
            // Where nobody else gets its port when it is free.
            addresses: vec!["127.31.0.1:0".parse().unwrap()],
            hosts: Vec::new(),
        }),
        ..Config::default()
    })
    .unwrap();
    let at = server.metrics()[0].tcp().unwrap();
    let address = server.addresses()[0].tcp().unwrap();
    let handle = server.handle();
    let serving = thread::spawn(|| server.run());
    until("it to serve", || get(at, "/readyz").status == 200);
    let health = get(at, "/healthz");
    assert_eq!((health.status, &*health.body), (200, "the workers turn\n"));
    let mut client = connect(address);
    client.write_all(b"hang").unwrap();
    until("a worker that hangs", || get(at, "/healthz").status == 503);
    assert_eq!(get(at, "/healthz").body, "a worker hangs\n");
    assert_eq!(get(at, "/readyz").status, 200);
    let told = metrics(at);
    let connections = format!("standfast_connections{{listener=\"{address}\"}}");
    assert_eq!(value(&told, &connections), 1.0);
    drop(lets_go);
    until("it to turn again", || get(at, "/healthz").status == 200);
    handle.stop();
    serving.join().unwrap().unwrap();
    // A child of another test may hold a copy of the listener until it runs its program.
    until("nobody listens", || {
        let refused = std::net::TcpStream::connect(at).map_err(|error| error.kind());
        matches!(refused, Err(ErrorKind::ConnectionRefused))
    });
}

#[test]
fn from_the_first_moment_of_a_drain_it_is_not_ready_and_lives() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &["exec", "--drain-timeout", "30s", "--", "cat"]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    assert_eq!(value(&metrics(at), "standfast_children"), 1.0);
    assert_eq!(get(at, "/readyz").status, 200);
    server.signal(Signal::TERM);
    server.log_line("the drain", |line| line.contains(" draining"));
    until("it to be unready", || get(at, "/readyz").status == 503);
    assert_eq!(get(at, "/readyz").body, "draining\n");
    assert_eq!(get(at, "/healthz").status, 200);
    metrics(at);
    assert_echoes(&mut client, b"and the client goes on");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    assert!(server.wait().success());
}

#[test]
fn out_of_descriptors_it_answers_again_and_again_and_says_so() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &[]);
    // The client's is the highest number then: one that the server still gave up below it would count as left.
    server.descriptors_at_rest();
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    leave_descriptors(&server, 0);
    let mut waits = server.connect();
    waits.write_all(b"hello").unwrap();
    server.log_line("the pause", |line| line.contains("accepting paused"));
    for _ in 0..20 {
        let told = metrics(at);
        assert_eq!(value(&told, "standfast_accept_paused"), 1.0);
        assert!(value(&told, "standfast_accept_errors_total{errno=\"EMFILE\"}") >= 1.0);
        assert_eq!(get(at, "/healthz").status, 200);
    }
    let used = value(&metrics(at), "standfast_descriptors_used");
    let limit = value(&metrics(at), "standfast_descriptors_limit");
    assert!(used >= limit, "{used} of {limit}");
    drop(client);
    let mut echo = [0; 5];
    waits.read_exact(&mut echo).unwrap();
    // It has the last one: only then there is one for the next client.
    drop(waits);
    until("accepting to go on", || {
        value(&metrics(at), "standfast_accept_paused") == 0.0
    });
}
