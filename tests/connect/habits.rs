//! What people type at nc and ncat means the same here.

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use crate::support::connecting::{
    Connecting, Peer, Port, assert_gets, assert_silent, connect_command,
};
use crate::support::home::Home;
use crate::support::{GUARD, now, output, pass, read_to_fin};

#[test]
fn z_only_connects_and_says_by_its_exit_code_whether_that_was_possible() {
    let port = Port::new();
    let to = port.address().to_string();
    let (code, _, stderr) = output(connect_command(&to, &["-z"]));
    assert_eq!((code, stderr.lines().count()), (1, 1), "{stderr}");
    let peer = port.listen();
    let mut connecting = Connecting::start(peer.address(), &["-z"]);
    connecting.types("not sent\n");
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(read_to_fin(&mut peer.accept()), b"");
}

#[test]
fn z_waits_for_a_server_if_it_is_to_reconnect() {
    let port = Port::new();
    let mut connecting = Connecting::start(port.address(), &["-z", "--reconnect", "always"]);
    connecting.says("cannot connect to ");
    connecting.says("reconnecting in ");
    let _peer = port.listen();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn w_ends_it_when_nothing_moves() {
    let peer = Peer::start();
    // Typed before it starts, so that the silence begins after it however long this test stands still.
    let (stdin, mut typed) = io::pipe().unwrap();
    typed.write_all(b"hello\n").unwrap();
    let mut command = connect_command(&peer.address().to_string(), &["-w", "0.5"]);
    command.stdin(stdin).stdout(Stdio::null());
    let start = now();
    let mut connecting = Connecting::launch(command);
    let mut server = peer.accept();
    assert_gets(&mut server, b"hello\n");
    assert_eq!(connecting.ends(), 4, "{:?}", connecting.lines);
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert_eq!(connecting.said("nothing sent or received for 0.5 s"), 1);
}

#[test]
fn w_ends_it_also_when_the_server_has_half_closed_and_stdin_gives_nothing() {
    let args = ["-w", "0.5", "--reconnect", "never"];
    let (mut connecting, server) = Connecting::connected(&args);
    server.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(connecting.ends(), 4, "{:?}", connecting.lines);
}

#[test]
fn w_does_not_end_it_while_stdin_is_sent_or_the_server_sends() {
    let (mut connecting, mut server) = Connecting::connected(&["-w", "2s"]);
    let start = now();
    while start.elapsed() < Duration::from_secs(3) {
        connecting.types(".");
        assert_gets(&mut server, b".");
        pass(Duration::from_millis(50));
    }
    let mut last = now();
    while start.elapsed() < Duration::from_secs(6) {
        last = now();
        server.write_all(b".").unwrap();
        connecting.prints(b".");
        pass(Duration::from_millis(50));
    }
    assert_eq!(connecting.ends(), 4, "{:?}", connecting.lines);
    assert!(last.elapsed() >= Duration::from_secs(2));
}

#[test]
fn u_is_the_path_of_a_unix_socket() {
    let home = Home::new();
    let path = home.join("server");
    let listener = UnixListener::bind(&path).unwrap();
    let path = path.display().to_string();
    let mut connecting = Connecting::start(&path, &["-U", "-N"]);
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(GUARD)).unwrap();
    connecting.types("hello\n");
    assert_gets(&mut server, b"hello\n");
    connecting.ends_stdin();
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn to_receive_only_leaves_stdin_alone() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &["--recv-only"]);
    connecting.types("never sent\n");
    for line in [&b"one\n"[..], b"two\n"] {
        let mut server = peer.accept();
        server.write_all(line).unwrap();
        connecting.prints(line);
        assert_silent(&mut server, Duration::from_millis(200));
    }
}

#[test]
fn to_send_only_forgets_what_the_server_sends_and_leaves_when_all_is_delivered() {
    let (mut connecting, mut server) = Connecting::connected(&["--send-only"]);
    server.write_all(b"not wanted\n").unwrap();
    connecting.types("wanted\n");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"wanted\n");
    // It does not wait for a server that never says that it is done.
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.stdout_rest(), b"");
}

#[test]
fn q_takes_fractions_of_a_second() {
    let start = now();
    let (mut connecting, mut server) = Connecting::connected(&["-n", "-q", "0.2"]);
    connecting.types("hello\n");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"hello\n");
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn a_zone_may_stand_behind_an_address_and_the_port_apart() {
    // Nobody is there, or there is no IPv6; but it is understood.
    let args = ["-n", "--reconnect", "never", "--connect-timeout", "10s"];
    let (code, _, stderr) = output(connect_command("fe80::1%lo 9", &args));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("to [fe80::1%lo]:9: "), "{stderr}");
}

#[test]
fn what_contradicts_it_is_refused() {
    for args in [
        &["-w", "3", "--read-timeout", "3"][..],
        &["-w", "3", "--connect-timeout", "3"],
        &["-w", "0"],
        &["-N", "--no-half-close"],
        &["--send-only", "--recv-only"],
        &["-z", "--send-only"],
    ] {
        let (code, _, stderr) = output(connect_command("127.0.0.1:9", args));
        assert_eq!((code, stderr.lines().count()), (2, 1), "{args:?}: {stderr}");
    }
    let (code, _, stderr) = output(connect_command("20-30", &["-z"]));
    assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
}
