//! The services: echo, discard, print.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::support::Server;

#[test]
fn echo_sends_every_byte_back_before_its_fin() {
    let mut server = Server::start(&["echo"]);
    let mut client = server.connect();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut echoed = Vec::new();
    client.read_to_end(&mut echoed).unwrap();
    assert_eq!(echoed, b"hello");
    let closed = server.closed();
    assert_eq!(
        (closed.reason(), closed.get("read"), closed.get("written")),
        ("peer-closed", "5", "5")
    );
}
