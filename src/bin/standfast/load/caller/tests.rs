//! One worker against servers of its own process.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use standfast::client::Client;
use standfast::dial::{Backoff, Dial};
use standfast::services::Echo;
use standfast::{Config, Handle, Listen, Server};

use super::*;
use crate::load::verify::Faults;

/// How long a test may hang.
const HANG: Duration = Duration::from_secs(60);

/// An echo server, which stops when it is dropped.
struct EchoServer {
    port: u16,
    handle: Handle,
    thread: Option<thread::JoinHandle<()>>,
}

impl EchoServer {
    fn start() -> Self {
        let listen = Listen::new("127.0.0.1:0".parse().unwrap(), Echo);
        let server = Server::bind(Config {
            listen: vec![listen],
            workers: std::num::NonZeroUsize::new(1),
            ..Config::default()
        });
        let server = server.unwrap();
        Self {
            port: server.addresses()[0].tcp().unwrap().port(),
            handle: server.handle(),
            thread: Some(thread::spawn(move || drop(server.run()))),
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn plan(mode: Mode) -> Plan {
    Plan {
        mode,
        connections: 5,
        connect_rate: None,
        rate: None,
        size: 13,
        pipeline: if mode == Mode::Churn { 1 } else { 3 },
        verify: true,
        duration: Duration::from_millis(300),
        read_timeout: 10 * SECOND,
        connect_timeout: Some(10 * SECOND),
        workers: 1,
        every: SECOND,
    }
}

/// Runs one worker; as the main thread does, it starts the sending when the connections are up.
fn run(plan: Plan, port: u16) -> (Tally, Latencies) {
    let control = Arc::new(Control::new());
    let board = Arc::new(Board::new(1).unwrap());
    let (sender, news) = mpsc::channel();
    let done = sender.clone();
    let worker = Worker::new(plan, plan.share(0), Arc::clone(&control), board, sender);
    // Whoever lost a connection is back well before the end.
    let backoff = Backoff {
        least: Duration::from_millis(1),
        most: Duration::from_millis(10),
    };
    let dial = Dial {
        backoff,
        ..Dial::new(format!("127.0.0.1:{port}").parse().unwrap())
    };
    let client = Client::new(dial, worker.unwrap()).unwrap();
    let wake = client.wake();
    let thread = thread::spawn(move || {
        let worker = client.run().unwrap();
        done.send(News::Done).unwrap();
        worker
    });
    match news.recv_timeout(HANG) {
        Ok(News::Settled { .. }) => control.start_for(plan.duration),
        other => panic!("{other:?}"),
    }
    wake.wake();
    let told = news.recv_timeout(HANG);
    assert!(matches!(told, Ok(News::Done)), "{told:?}");
    let worker = thread.join().unwrap();
    (worker.tally, worker.latencies)
}

#[test]
fn every_message_is_echoed_once() {
    let server = EchoServer::start();
    let (tally, latencies) = run(plan(Mode::Echo), server.port);
    assert_eq!((tally.connects, tally.up), (5, 5));
    assert!(tally.sent > 15);
    assert_eq!(tally.echoed, tally.sent);
    assert_eq!(tally.received_bytes, 13 * tally.sent);
    assert_eq!(tally.faults, Faults::default());
    assert_eq!(tally.all_ended(), 0);
    assert!(latencies.most_ms().is_some());
}

#[test]
fn a_rate_decides_how_many_are_sent() {
    let server = EchoServer::start();
    let rate = Some(1000.0);
    let (tally, _) = run(
        Plan {
            rate,
            ..plan(Mode::Echo)
        },
        server.port,
    );
    // 300 are due; a machine that stands still may keep some from being sent.
    assert_eq!(tally.sent + tally.unsent, 300);
    assert_eq!(tally.echoed, tally.sent);
}

#[test]
fn a_rate_nobody_can_reach_is_missed_aloud_and_in_time() {
    let server = EchoServer::start();
    let rate = Some(1e9);
    let (tally, _) = run(
        Plan {
            rate,
            ..plan(Mode::Echo)
        },
        server.port,
    );
    assert_eq!(tally.sent + tally.unsent, 300_000_000);
    assert!(tally.unsent > 0);
    assert_eq!(tally.echoed, tally.sent);
}

#[test]
fn churn_is_a_connection_for_each_message() {
    let server = EchoServer::start();
    let (tally, _) = run(plan(Mode::Churn), server.port);
    assert!(tally.echoed > 5);
    assert!(tally.sent <= tally.connects);
    assert_eq!((tally.reconnects, tally.all_ended()), (0, 0));
    let rate = Some(100.0);
    let (tally, _) = run(
        Plan {
            rate,
            ..plan(Mode::Churn)
        },
        server.port,
    );
    assert_eq!(tally.sent + tally.unsent, 30);
    assert_eq!(tally.echoed, tally.sent);
}

#[test]
fn idle_sends_nothing() {
    let server = EchoServer::start();
    let (tally, _) = run(plan(Mode::Idle), server.port);
    assert_eq!((tally.up, tally.sent_bytes, tally.all_ended()), (5, 0, 0));
}

#[test]
fn a_connection_that_gets_no_echo_is_given_up_and_made_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It takes all and says nothing.
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || std::io::copy(&mut stream.unwrap(), &mut std::io::sink()));
        }
    });
    let silent = Plan {
        read_timeout: SECOND / 10,
        ..plan(Mode::Echo)
    };
    let (tally, _) = run(silent, port);
    assert!(tally.ended_for(CloseReason::ReadTimeout) >= 5, "{tally:?}");
    assert_eq!((tally.echoed, tally.received_bytes), (0, 0));
    assert_eq!(tally.faults.lost, tally.sent_bytes);
    assert!(tally.longest_gap >= SECOND / 10);
}

#[test]
fn what_a_lost_connection_owed_is_lost_and_it_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Of each connection, it echoes one message and half of the next.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut bytes = [0; 39];
                let _ = stream.read_exact(&mut bytes);
                let _ = stream.write_all(&bytes[..20]);
            });
        }
    });
    let (tally, _) = run(plan(Mode::Echo), port);
    assert!(tally.reconnects > 0, "{tally:?}");
    // Who is back only after the end says nothing any more.
    let ended = tally.all_ended();
    assert_eq!(ended, tally.connects - tally.up);
    // Three, and a fourth if the echo of the first came before the end.
    assert!((3 * ended..=4 * ended).contains(&tally.sent));
    assert_eq!(tally.sent_bytes, 13 * tally.sent);
    assert_eq!(tally.echoed, ended);
    let lost = Faults {
        lost: tally.sent_bytes - 20 * ended,
        ..Faults::default()
    };
    assert_eq!(tally.faults, lost);
}
