//! Listeners that the program made itself, and descriptors that are not the server's to take.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use standfast::control::{ControlSocket, Replace};
use standfast::services::{Discard, Echo};
use standfast::{Address, Config, Error, Listen, Server};

use crate::support::embedded::Embedded;
use crate::support::home::Home;
use crate::support::{assert_echoes, connect, until};

#[test]
fn a_listener_that_the_program_made_is_served_with_who_came_before() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut early = connect(address);
    let server = Embedded::start(Listen::on(listener, Echo));
    assert_eq!(server.addresses, [address]);
    assert_echoes(&mut early, b"hello");
    drop((early, server));
    until("nobody listens any more", || {
        TcpListener::bind(address).is_ok()
    });
}

#[test]
fn a_path_that_the_program_made_stays_the_programs() {
    let home = Home::new();
    let path = home.join("s.sock");
    let server = Embedded::start(Listen::on(UnixListener::bind(&path).unwrap(), Echo));
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    drop((client, server));
    assert!(path.exists());
}

#[test]
fn a_given_listener_is_taken_over_by_its_address_and_as_one_that_is_given_again() {
    let home = Home::new();
    let start = |listen: Listen, replace| {
        let server = Server::bind(Config {
            listen: vec![listen],
            control: Some(ControlSocket {
                path: Some(home.join("c.sock")),
                replace,
                ..ControlSocket::default()
            }),
            ..Config::default()
        })
        .unwrap();
        (server.handle(), thread::spawn(|| server.run().unwrap()))
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (_, old) = start(
        Listen::on(listener.try_clone().unwrap(), Discard),
        Replace::Never,
    );
    let (_, by_address) = start(Listen::new(address.into(), Discard), Replace::Always);
    assert_eq!(old.join().unwrap().takeover.unwrap().connections, 0);
    let (handle, given) = start(Listen::on(listener, Discard), Replace::Always);
    assert_eq!(by_address.join().unwrap().takeover.unwrap().connections, 0);
    let _client = connect(address);
    until("the client is accepted", || handle.status().accepted == 1);
    handle.stop();
    given.join().unwrap();
}

#[test]
fn what_does_not_listen_is_refused_by_its_address() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let refused = Server::bind(Config {
        listen: vec![Listen::on(socket, Echo)],
        ..Config::default()
    });
    let refused = refused.unwrap_err();
    assert_eq!(refused.to_string(), format!("cannot listen on {address}"));
}

#[test]
fn a_descriptor_of_the_programs_own_is_not_taken_from_it() {
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    // As many a library opens its own.
    fcntl_setfd(&own, FdFlags::empty()).unwrap();
    let refused = Server::bind(Config {
        listen: vec![Listen::new(Address::Fd(own.as_raw_fd()), Echo)],
        ..Config::default()
    });
    fcntl_setfd(&own, FdFlags::CLOEXEC).unwrap();
    let refused = refused.map(|server| server.addresses().to_vec());
    assert!(
        matches!(&refused, Err(Error::Inherit { source, .. }) if source.kind() == ErrorKind::Unsupported),
        "{refused:?}"
    );
    assert!(own.local_addr().is_ok());
}
