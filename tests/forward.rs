//! `serve forward`: a relay between clients and upstreams, seen from both of its sides.

/// Upstreams that are down beside others.
mod health;
/// Upstreams or clients that are lost, and those who end them: what the other side notices, and the reason.
mod losses;
/// What happens to clients while a takeover is under way.
mod meanwhile;
/// In which order upstreams see clients.
mod order;
/// The headers, as real receivers read them.
mod receivers;
/// What goes through: bytes, half-closes, headers, deadlines, pressure.
mod relaying;
/// What a relay holds on to: descriptors, memory, the processor.
mod resources;
/// A relay succeeded by another process, with its pairs.
mod takeover;
/// Which upstream, when, and for how long a client waits for one.
mod upstreams;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::support::Server;
use crate::support::connecting::{Peer, assert_gets};

/// `serve forward UPSTREAM... ARGS...`
fn relay(upstreams: &[SocketAddr], args: &[&str]) -> Server {
    let upstreams: Vec<String> = upstreams.iter().map(ToString::to_string).collect();
    let mut words = vec!["forward"];
    words.extend(upstreams.iter().map(String::as_str));
    words.extend(args);
    Server::start(&words)
}

/// A client of the relay, and what the upstream has accepted for it; both have said a word to each other.
#[track_caller]
pub(crate) fn pair(relay: &Server, upstream: &Peer) -> (TcpStream, TcpStream) {
    let mut client = relay.connect();
    let mut served = upstream.accept();
    assert_pair(&mut client, &mut served);
    (client, served)
}

/// What one says the other hears, both ways.
#[track_caller]
pub(crate) fn assert_pair(client: &mut TcpStream, served: &mut TcpStream) {
    client.write_all(b"a question").unwrap();
    assert_gets(served, b"a question");
    served.write_all(b"its answer").unwrap();
    assert_gets(client, b"its answer");
}

/// Nothing comes any more, and what ends it is a reset.
#[track_caller]
fn assert_reset(stream: &mut TcpStream) {
    let read = stream.read(&mut [0; 64]).map_err(|error| error.kind());
    assert_eq!(read, Err(ErrorKind::ConnectionReset));
}

/// Nothing comes any more; whether by FIN or by reset is not what matters.
#[track_caller]
fn assert_ended(stream: &mut TcpStream) {
    let read = stream.read(&mut [0; 64]).map_err(|error| error.kind());
    assert!(
        matches!(read, Ok(0) | Err(ErrorKind::ConnectionReset)),
        "{read:?}"
    );
}
