//! Each call does what its manual says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
#[cfg(all(target_os = "linux", not(standfast_portable)))]
use std::os::fd::AsFd;
use std::os::fd::IntoRawFd;

use super::*;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

#[test]
fn a_descriptor_is_adopted_and_a_closed_one_refused() {
    let (near, mut far) = pair();
    let mut adopted = TcpStream::from(adopt(near.into_raw_fd()).unwrap());
    adopted.write_all(b"x").unwrap();
    far.read_exact(&mut [0]).unwrap();
    assert_eq!(
        adopt(1_000_000).unwrap_err().raw_os_error(),
        Some(libc::EBADF)
    );
}

#[test]
#[cfg(control)]
fn a_copy_of_a_descriptor_is_another_of_the_same_socket() {
    let (near, mut far) = pair();
    let copy = duplicate(&near).unwrap();
    drop(near);
    assert!(!outlasts_exec(copy.as_raw_fd()));
    TcpStream::from(copy).write_all(b"x").unwrap();
    far.read_exact(&mut [0]).unwrap();
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn no_descriptor_but_the_first_three_outlasts_an_exec() {
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
    let (near, _far) = pair();
    fcntl_setfd(&near, FdFlags::empty()).unwrap();
    let before = fcntl_getfd(io::stderr()).unwrap();
    keep_descriptors().unwrap();
    assert_eq!(fcntl_getfd(&near).unwrap(), FdFlags::CLOEXEC);
    assert_eq!(fcntl_getfd(io::stderr()).unwrap(), before);
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn the_other_end_of_a_unix_socket_is_known() {
    let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
    let (user, process) = peer(near.as_fd()).unwrap();
    assert_eq!(user, rustix::process::geteuid().as_raw());
    assert_eq!(process.unwrap().get(), std::process::id());
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn connections_that_wait_for_a_listener_are_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(queued(listener.as_fd()).unwrap(), 0);
    let address = listener.local_addr().unwrap();
    let _waiting = [(); 3].map(|()| TcpStream::connect(address).unwrap());
    assert_eq!(queued(listener.as_fd()).unwrap(), 3);
    listener.accept().unwrap();
    assert_eq!(queued(listener.as_fd()).unwrap(), 2);
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn unacknowledged_bytes_are_counted() {
    let (mut near, _far) = pair();
    assert_eq!(unacknowledged(near.as_fd()).unwrap(), 0);
    near.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(n) = near.write(&[7; 65536]) {
        sent += n as u64;
    }
    let queued = unacknowledged(near.as_fd()).unwrap();
    assert!(
        0 < queued && queued <= sent,
        "{queued} of {sent} unacknowledged"
    );
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn what_is_sent_and_not_read_leaves_less_room() {
    let (tcp, _far) = pair();
    let (unix, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut sockets: [(_, Box<dyn Write>); 2] = [
        (tcp.as_fd(), Box::new(&tcp)),
        (unix.as_fd(), Box::new(&unix)),
    ];
    tcp.set_nonblocking(true).unwrap();
    unix.set_nonblocking(true).unwrap();
    for (fd, socket) in &mut sockets {
        let empty = send_room(*fd).unwrap();
        while socket.write(&[7; 65536]).is_ok() {}
        let full = send_room(*fd).unwrap();
        assert!(full < empty / 2, "{full} of {empty}");
    }
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn tcp_info_tells_how_long_the_peer_was_silent() {
    let (mut near, far) = pair();
    near.write_all(b"x").unwrap();
    far.peek(&mut [0]).unwrap();
    let info = tcp_info(far.as_fd()).unwrap();
    assert!(info.silence < Duration::from_secs(5), "{info:?}");
    assert_eq!((info.probes, info.retransmits), (0, 0));
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn tcp_info_counts_the_bytes_and_knows_who_has_sent_a_fin() {
    let (mut near, mut far) = pair();
    let journal = |socket: &TcpStream| tcp_info(socket.as_fd()).unwrap().journal;
    near.write_all(b"four").unwrap();
    far.read_exact(&mut [0; 4]).unwrap();
    far.write_all(b"answer").unwrap();
    near.read_exact(&mut [0; 6]).unwrap();
    assert_eq!((journal(&near).sent, journal(&near).received), (4, 6));
    assert_eq!((journal(&far).sent, journal(&far).received), (6, 4));
    assert_eq!(journal(&far).state, TcpState::Open);
    near.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    assert_eq!(journal(&far).state, TcpState::PeerFin);
    assert_eq!(journal(&far).received, 5, "the FIN counts as one");
    assert_eq!(journal(&near).state, TcpState::FinSent);
    far.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(near.read(&mut [0]).unwrap(), 0);
    assert_eq!(journal(&far).state, TcpState::Over);
    assert_eq!(journal(&far).acknowledged, 7, "the FIN counts as one");
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn a_port_is_chosen_when_the_destination_is_known() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )
    .unwrap();
    set_bind_address_no_port(socket.as_fd()).unwrap();
    let source: std::net::SocketAddr = "127.0.0.2:0".parse().unwrap();
    socket.bind(&source.into()).unwrap();
    let bound = || socket.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(bound(), source);
    let there = listener.local_addr().unwrap();
    socket.connect(&there.into()).unwrap();
    assert_ne!(bound().port(), 0);
}

#[test]
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn rto_max_is_set_and_read_back() {
    let (near, _far) = pair();
    match set_rto_max(near.as_fd(), Duration::from_millis(7000)) {
        Ok(()) => assert_eq!(rto_max(near.as_fd()).unwrap(), Duration::from_millis(7000)),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT)),
    }
}
