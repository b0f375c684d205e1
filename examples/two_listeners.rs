//! Two services in one process, each with its own state, limits and deadlines:
//! `cargo run --example two_listeners`, then `nc` to either.

use std::time::Duration;

use standfast::services::Discard;
use standfast::{Config, Context, Error, Keepalive, Listen, Server, Service};

/// Answers each line with its number; a client that says nothing for a minute is let go.
struct Count;

impl Service for Count {
    /// Lines so far on this connection.
    type State = u64;

    fn open(&self, conn: &mut Context<'_>) -> u64 {
        conn.write(b"say something\n");
        0
    }

    fn input(&self, lines: &mut u64, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let mut used = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if line.ends_with(b"\n") {
                *lines += 1;
                conn.write(format!("line {lines}\n").as_bytes());
                used += line.len();
            }
        }
        used // an unfinished line comes again with its rest
    }
}

fn main() -> Result<(), Error> {
    let loopback = || "127.0.0.1:0".parse();
    let bound = Duration::from_secs(20);
    let count = Listen {
        read_timeout: Some(Duration::from_secs(60)),
        keepalive: Some(Keepalive::within(bound)?),
        dead_after: Some(bound),
        ..Listen::new(loopback()?, Count)
    };
    let discard = Listen {
        read_timeout: None,
        ..Listen::new(loopback()?, Discard)
    };
    let server = Server::bind(Config {
        listen: vec![count, discard],
        ..Config::default()
    })?;
    println!(
        "counting on {}, discarding on {}",
        server.addresses()[0],
        server.addresses()[1]
    );
    println!("{}", server.run()?);
    Ok(())
}
