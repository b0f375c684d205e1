//! Servers that do not answer, for whoever dials them: the library's own tests, and those here.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// A port that is kept from others, and on which nobody listens.
pub(crate) fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A listener whose backlog is full, so that it answers no more, and what fills it.
pub(crate) fn silent() -> (Vec<Socket>, SocketAddr) {
    let (listener, address) = refusing();
    listener.listen(0).unwrap();
    let mut sockets = vec![listener];
    loop {
        let filling = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let filled = filling.connect_timeout(&address.into(), Duration::from_millis(200));
        if filled.is_err() {
            return (sockets, address);
        }
        sockets.push(filling);
    }
}
