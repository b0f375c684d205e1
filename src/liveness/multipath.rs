//! Connections over several paths (MPTCP, RFC 8684): a client that changes networks keeps its connection.
//!
//! The kernel keeps one of which all paths are gone for a while, and says nothing of it, with data in flight or without;
//! so the [judgement](super::reap) asks it at every deadline how its peer is. `TCP_USER_TIMEOUT` and `TCP_RTO_MAX_MS` are
//! not to be had. A client that does not speak MPTCP has a TCP socket, with everything.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::address::endpoint::Endpoint;
use crate::liveness::keepalive::RTO_MAX_DEFAULT;

/// A socket to listen with.
///
/// # Errors
/// This kernel has none, or one that does not tell enough.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub(crate) fn socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP))?;
    crate::os::sys::multipath_info(socket.as_fd()).map_err(|error| match error.kind() {
        io::ErrorKind::Unsupported => io::Error::new(
            error.kind(),
            "this kernel does not tell when the peer was heard of (Linux 6.10)",
        ),
        _ => error,
    })?;
    Ok(socket)
}

#[cfg(not(all(target_os = "linux", not(standfast_portable))))]
pub(crate) fn socket(_: Domain) -> io::Result<Socket> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A socket to listen with at `address`: over TCP where it is not `wanted`, or not to be had, which one line says. Answers
/// whether it is one.
pub(crate) fn or_tcp(address: SocketAddr, wanted: bool) -> io::Result<(Socket, bool)> {
    let domain = Domain::for_address(address);
    if wanted {
        match socket(domain) {
            Ok(socket) => return Ok((socket, true)),
            Err(error) => log::warn!(address:%, error:%; "no MPTCP here, listening over TCP alone"),
        }
    }
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    Ok((socket, false))
}

/// Says so where a listener that was taken over is not as the settings want it.
pub(crate) fn compare(listener: &impl AsFd, address: &Endpoint, wanted: bool) {
    if wanted != is_multipath(listener) {
        log::warn!(address:%, mptcp = wanted; "a listener goes on as it was opened: mptcp changes with a new start");
    }
}

/// Why there is none for either family, if there is none.
pub(crate) fn lacks() -> Option<io::Error> {
    let either = socket(Domain::IPV4).or_else(|_| socket(Domain::IPV6));
    either.err()
}

/// Whether a socket is one, or may have such connections.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub(crate) fn is_multipath(socket: &impl AsFd) -> bool {
    let protocol = socket2::SockRef::from(socket).protocol();
    protocol.is_ok_and(|protocol| protocol == Some(Protocol::MPTCP))
}

#[cfg(not(all(target_os = "linux", not(standfast_portable))))]
pub(crate) fn is_multipath(_: &impl AsFd) -> bool {
    false
}

/// The longest pause between two window probes, which the whole host has for them: `net.ipv4.tcp_rto_max_ms`.
pub(crate) fn longest_pause() -> Duration {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_rto_max_ms");
    let millis = text.ok().and_then(|text| text.trim().parse().ok());
    millis.map_or(RTO_MAX_DEFAULT, Duration::from_millis)
}
