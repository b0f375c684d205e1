//! Numbers the lines of each client, and goes on counting over a restart.
//!
//! Run it, connect with `nc 127.0.0.1 7001`, type some lines. Then change this file, run it again in another
//! terminal, and go on typing: the new process has taken over the listener, the connection and its count.
//!
//! ```text
//! cargo run --example line_numbers --no-default-features --features control
//! ```

use standfast::control::{ControlSocket, Replace};
use standfast::{Config, Context, Error, Exported, Listen, Server, Service};

/// Where the control socket is, by which the next process asks this one for its connections.
const CONTROL: &str = "/tmp/line-numbers.sock";

struct LineNumbers;

impl Service for LineNumbers {
    /// How many lines this client has sent.
    type State = u64;

    fn open(&self, conn: &mut Context<'_>) -> u64 {
        conn.write(b"each line comes back with its number\n");
        0
    }

    fn input(&self, lines: &mut u64, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let mut used = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            // Half a line comes again with its rest, unless it fills the buffer alone.
            if !line.ends_with(b"\n") && (used > 0 || bytes.len() < conn.buffer()) {
                break;
            }
            *lines += 1;
            conn.write(format!("{lines}: ").as_bytes());
            conn.write(line);
            used += line.len();
        }
        used
    }

    /// The bytes, and the number of their form: raise it when the form changes.
    fn export(&self, lines: &u64) -> Option<Exported> {
        Some(Exported {
            schema: 1,
            bytes: lines.to_be_bytes().to_vec(),
        })
    }

    fn import(&self, exported: &Exported) -> Result<u64, String> {
        match (exported.schema, exported.bytes.as_slice().try_into()) {
            (1, Ok(bytes)) => Ok(u64::from_be_bytes(bytes)),
            (schema, _) => Err(format!("a count of schema {schema}, this one reads 1")),
        }
    }
}

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "7001".to_owned());
    let control = args.next().unwrap_or_else(|| CONTROL.to_owned());
    let server = Server::bind(Config {
        listen: vec![Listen::new(address.parse()?, LineNumbers)],
        control: Some(ControlSocket {
            path: Some(control.into()),
            replace: Replace::IfRunning,
            ..ControlSocket::default()
        }),
        ..Config::default()
    })?;
    println!("listening on {}", server.addresses()[0]);
    println!("ended: {}", server.run()?);
    Ok(())
}
