//! An echo server inside a program of one's own: `cargo run --example echo`, then `nc 127.0.0.1 PORT`.

use standfast::{Config, Context, Error, Listen, Server, Service};

struct Echo;

impl Service for Echo {
    type State = ();

    fn open(&self, _conn: &mut Context<'_>) {}

    fn input(&self, _state: &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        conn.write(bytes);
        bytes.len()
    }
}

fn main() -> Result<(), Error> {
    let listen = Listen::new("127.0.0.1:0".parse()?, Echo);
    let server = Server::bind(Config {
        listen: vec![listen],
        ..Config::default()
    })?;
    println!("listening on {}", server.addresses()[0]);
    println!("{}", server.run()?);
    Ok(())
}
