//! One attempt to reach a server: all of its addresses, the next one as soon as the former fails or has not answered for a
//! while, and the first that answers (RFC 8305, "Happy Eyeballs").

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::DialError;
use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::liveness::sockopt::{INTEREST, Refused, SocketOptions};
use crate::os::sys;
use crate::time::deadline::Moment;

/// How long an address has to answer before the next is tried beside it (RFC 8305, "Connection Attempt Delay").
const STAGGER: Duration = Duration::from_millis(250);

/// One attempt to reach a server.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Addresses not tried yet, the next one last.
    left: Vec<Endpoint>,
    under_way: Vec<(Endpoint, OwnedFd)>,
    failed: Vec<(Endpoint, io::Error)>,
    /// When the next address is tried, though none has failed.
    next: Moment,
    /// When the attempt ends.
    until: Moment,
}

/// What all connections of an attempt get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner<'a> {
    pub(crate) options: &'a SocketOptions,
    pub(crate) source: Option<IpAddr>,
    /// Where their events are told, and under which token.
    pub(crate) registry: &'a Registry,
    pub(crate) token: Token,
}

/// How an attempt stands.
#[derive(Debug)]
pub(super) enum Tried {
    Pending,
    Connected(Endpoint, OwnedFd),
    /// No address is left.
    Failed,
}

impl Attempt {
    pub(super) fn new(mut addresses: Vec<Endpoint>, until: Moment) -> Self {
        addresses.reverse();
        Self {
            left: addresses,
            under_way: Vec::new(),
            failed: Vec::new(),
            next: Moment::at_start(),
            until,
        }
    }

    /// When [`advance`](Self::advance) is due, though no event has come.
    pub(super) fn next(&self) -> Moment {
        self.next
    }

    /// Looks what has become of the addresses under way, and tries further ones if it is time.
    pub(super) fn advance(&mut self, manner: Manner<'_>, now: Moment) -> Tried {
        let mut at = 0;
        while let Some((_, socket)) = self.under_way.get(at) {
            match outcome(socket) {
                Ok(false) => at += 1,
                Ok(true) => {
                    let (endpoint, socket) = self.under_way.swap_remove(at);
                    return Tried::Connected(endpoint, socket);
                }
                Err(error) => {
                    let (endpoint, _) = self.under_way.remove(at);
                    self.failed.push((endpoint, error));
                    self.next = now;
                }
            }
        }
        while self.next <= now
            && let Some(endpoint) = self.left.pop()
        {
            match connect(&endpoint, manner) {
                Ok(socket) => {
                    self.under_way.push((endpoint, socket));
                    // So that each one left, and this one, has its share of a short time.
                    let tries = u32::try_from(self.left.len()).unwrap_or(u32::MAX);
                    let share = self.until.since(now) / tries.saturating_add(1);
                    self.next = now.after(STAGGER.min(share));
                }
                Err(error) => self.failed.push((endpoint, error)),
            }
        }
        if self.left.is_empty() {
            self.next = Moment::NEVER;
        }
        if self.left.is_empty() && self.under_way.is_empty() {
            Tried::Failed
        } else {
            Tried::Pending
        }
    }

    /// What it failed for; what is still under way has not answered `within` the time it had.
    pub(super) fn into_error(self, address: &Address, within: Option<Duration>) -> DialError {
        let silent = self.under_way.into_iter().map(|(endpoint, _)| endpoint);
        DialError::connect(address, self.failed, silent, within)
    }
}

/// Begins to connect: the outcome is told as write readiness.
fn connect(endpoint: &Endpoint, manner: Manner<'_>) -> io::Result<OwnedFd> {
    let socket = match endpoint {
        Endpoint::Tcp(address) => tcp(*address, manner)?,
        Endpoint::Unix(path) => unix(&SocketAddrUnix::new(path)?)?,
        Endpoint::Abstract(name) => unix(&abstract_name(name)?)?,
    };
    // Once and for all: nothing is queued here, so write readiness is asked for by a send that takes less.
    let interest = INTEREST | Interest::WRITABLE;
    manner
        .registry
        .register(&mut SourceFd(&socket.as_raw_fd()), manner.token, interest)?;
    Ok(socket)
}

/// Non-blocking from the start, where the system has that.
#[cfg(any(target_os = "linux", target_os = "android"))]
const STREAM: Type = Type::STREAM.nonblocking();
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const STREAM: Type = Type::STREAM;

fn tcp(address: SocketAddr, manner: Manner<'_>) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), STREAM, Some(Protocol::TCP))?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    socket.set_nonblocking(true)?;
    manner
        .options
        .apply(&socket)
        .map_err(|Refused { option, source }| {
            io::Error::new(source.kind(), format!("cannot set {option}: {source}"))
        })?;
    if let Some(source) = manner.source {
        // The port is chosen when the destination is known, so that the same one serves several (ip(7)). A system
        // without that has fewer connections from one address.
        let _ = sys::set_bind_address_no_port(socket.as_fd());
        socket
            .bind(&SocketAddr::new(source, 0).into())
            .map_err(|error| {
                let hint = match error.kind() {
                    io::ErrorKind::AddrNotAvailable => "; it is none of this host's addresses",
                    _ => "",
                };
                let said = format!("cannot come from {source}: {error}{hint}");
                io::Error::new(error.kind(), said)
            })?;
    }
    begin(
        socket
            .connect(&address.into())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    )?;
    Ok(socket.into())
}

fn unix(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    begin(rustix::net::connect(&socket, address))?;
    Ok(socket)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn abstract_name(name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn abstract_name(_: &str) -> io::Result<SocketAddrUnix> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this system has no abstract names",
    ))
}

/// A connection that is not there at once is under way. One to a Unix socket whose backlog is full is not: `EAGAIN`.
fn begin(answer: Result<(), Errno>) -> io::Result<()> {
    match answer {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether it is connected.
///
/// # Errors
/// What the system said against it.
fn outcome(socket: &OwnedFd) -> io::Result<bool> {
    let socket = SockRef::from(socket);
    let Ok(there) = socket.peer_addr() else {
        return match socket.take_error()? {
            Some(error) => Err(error),
            None => Ok(false),
        };
    };
    // Where nobody listens on a port of the ephemeral range, the system may choose just that port for our own end: the
    // socket is then connected with itself (simultaneous open, RFC 9293), and would keep the server from coming back.
    // Whom it was dialled as does not tell: 0.0.0.0 is this host, too.
    let here = socket.local_addr()?.as_socket();
    if here.is_some() && here == there.as_socket() {
        let _ = socket.set_linger(Some(Duration::ZERO));
        return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use mio::{Events, Poll};

    use super::*;
    use crate::dial::peers::{refusing, silent};
    use crate::time::deadline::Clock;

    /// What comes of an attempt with `within` for all of `addresses`, and after how long.
    fn attempt(addresses: &[SocketAddr], within: Duration) -> (Result<Endpoint, String>, Duration) {
        let (mut poll, clock) = (Poll::new().unwrap(), Clock::start());
        let options = SocketOptions::resolve(None, None, None).unwrap();
        let (mut events, began) = (Events::with_capacity(8), clock.now());
        let until = began.after(within);
        let addresses = addresses.iter().copied().map(Endpoint::Tcp).collect();
        let mut attempt = Attempt::new(addresses, until);
        loop {
            let now = clock.now();
            let manner = Manner {
                options: &options,
                source: None,
                registry: poll.registry(),
                token: Token(0),
            };
            let progress = attempt.advance(manner, now);
            let took = now.since(began);
            match progress {
                Tried::Connected(endpoint, _) => return (Ok(endpoint), took),
                Tried::Pending if now < until => {}
                _ => {
                    let server = Address::Host("server".to_owned(), 7);
                    let error = attempt.into_error(&server, Some(within));
                    return (Err(format!("{:?}: {error}", error.kind())), took);
                }
            }
            let due = attempt.next().min(until);
            poll.poll(&mut events, Some(due.since(now))).unwrap();
        }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn the_next_address_is_tried_as_soon_as_one_refuses() {
        let ((_refusing, first), (listener, second)) = (refusing(), refusing());
        listener.listen(9).unwrap();
        let (outcome, took) = attempt(&[first, second], LONG);
        assert_eq!(outcome, Ok(second.into()));
        assert!(took < LONG, "{took:?}");
    }

    #[test]
    fn the_next_address_is_tried_beside_one_that_is_silent() {
        let ((_silent, first), (listener, second)) = (silent(), refusing());
        listener.listen(9).unwrap();
        let (outcome, took) = attempt(&[first, second], LONG);
        assert_eq!(outcome, Ok(second.into()));
        assert!(STAGGER <= took && took < LONG, "{took:?}");
    }

    #[test]
    fn silence_ends_with_the_time_there_is() {
        let ((_silent, first), (_refusing, second)) = (silent(), refusing());
        let within = Duration::from_millis(600);
        let (outcome, took) = attempt(&[first, second], within);
        assert_eq!(
            outcome.unwrap_err(),
            format!(
                "TimedOut: cannot connect to server:7: {second} Connection refused (os error 111), \
                 {first} no answer within 600ms"
            )
        );
        assert!(within <= took, "{took:?}");
    }

    #[test]
    fn an_attempt_that_every_address_refuses_says_so_of_each() {
        let ((_one, first), (_two, second)) = (refusing(), refusing());
        let (outcome, _) = attempt(&[first, second], LONG);
        assert_eq!(
            outcome.unwrap_err(),
            format!(
                "Refused: cannot connect to server:7: {first} Connection refused (os error 111), \
                 {second} Connection refused (os error 111)"
            )
        );
    }
}
