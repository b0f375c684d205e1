//! Servers that do not answer, for whoever dials them: the library's own tests, and those here.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// A port that is kept from others, and on which nobody listens.
pub(crate) fn refusing() -> (Socket, SocketAddr) {
    refusing_at(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn refusing_at(address: SocketAddr) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A listener whose backlog is full, so that it answers no more, and what fills it.
pub(crate) fn silent() -> (Vec<Socket>, SocketAddr) {
    silent_at(SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// The same at `address`.
pub(crate) fn silent_at(address: SocketAddr) -> (Vec<Socket>, SocketAddr) {
    let (listener, address) = refusing_at(address);
    listener.listen(0).unwrap();
    let mut sockets = fill(address);
    sockets.push(listener);
    (sockets, address)
}

/// Fills the backlog of 0 at `address`, for as long as what this answers is kept.
pub(crate) fn fill(address: SocketAddr) -> Vec<Socket> {
    let mut filling = Vec::new();
    loop {
        assert!(filling.len() < 100, "a backlog of 0 has no end");
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let filled = socket.connect_timeout(&address.into(), Duration::from_millis(200));
        if filled.is_err() {
            return filling;
        }
        filling.push(socket);
    }
}
