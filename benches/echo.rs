//! Echo round trips through the library, beside a server of the standard library with a thread per connection:
//! `cargo bench`. Prints microseconds a round trip and the ratio; `scripts/bench/echo` measures CPU against a C server.
#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong here ends it with the line it happened on"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use standfast::services::Echo;
use standfast::{Config, Listen, Server};

const ROUNDS: u32 = 20_000;
const PAIRS: usize = 5;

fn main() {
    let server = Server::bind(Config {
        listen: vec![Listen::new("127.0.0.1:0".parse().unwrap(), Echo)],
        ..Config::default()
    })
    .unwrap();
    let ours = server.addresses()[0].tcp().unwrap();
    let handle = server.handle();
    let serving = thread::spawn(move || server.run());
    let threads = thread_per_connection();

    println!(
        "{:>6} {:>12} {:>20} {:>6}",
        "bytes", "standfast", "thread a connection", "ratio"
    );
    for size in [64, 4096, 65536] {
        // Interleaved, so that what else the machine does falls on both.
        let mut pairs: Vec<(f64, f64)> = (0..PAIRS)
            .map(|_| (round_trip(ours, size), round_trip(threads, size)))
            .collect();
        pairs.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let (ours, theirs) = pairs[PAIRS / 2];
        println!(
            "{size:>6} {ours:>9.2} us {theirs:>17.2} us {:>6.2}",
            ours / theirs
        );
    }
    handle.drain();
    serving.join().unwrap().unwrap();
}

/// Microseconds a round trip of `size` bytes over one connection.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn round_trip(address: SocketAddr, size: usize) -> f64 {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let (message, mut answer) = (vec![7; size], vec![0; size]);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        client.write_all(&message).unwrap();
        client.read_exact(&mut answer).unwrap();
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
}

fn thread_per_connection() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || {
                let mut buffer = vec![0; 65536];
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    if client.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
