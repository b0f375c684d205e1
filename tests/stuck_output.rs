//! A stdout or a stderr that takes nothing, as that of a log collector that hangs or of a terminal after Ctrl-S: it keeps
//! a server from nothing. And one that was closed at the start.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::connecting::{Peer, assert_gets, connect_command};
use crate::support::home::{Home, text};
use crate::support::{
    Guarded, Server, assert_echoes, connect, facts, now, output, read_to_fin, shell, standfast,
    until, until_another_signal_counts,
};

/// A pipe that takes no more byte.
fn full() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    for size in [4096, 1] {
        while writer.write_all(&vec![b'x'; size]).is_ok() {}
    }
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// A server of `service` whose stdout takes nothing, and where that goes.
fn serve(home: &Home, args: &[&str]) -> (Server, PipeReader) {
    let (reader, writer) = full();
    let mut command = home.standfast(&["serve", "-l", "0"]);
    command.args(args).stdin(Stdio::null()).stdout(writer);
    let mut server = Server::launch(command);
    let line = server.log_line("the listener", |line| line.contains(" listening "));
    server
        .addresses
        .push(facts(&line)["listener"].parse().unwrap());
    (server, reader)
}

#[test]
fn with_a_stdout_that_takes_nothing_it_drains_and_ends() {
    let home = Home::new();
    for service in ["echo", "discard", "hub", "print"] {
        let (mut server, stdout) = serve(&home, &[service, "--drain-timeout", "1s"]);
        let mut client = server.connect();
        server.signal(Signal::TERM);
        assert_eq!(read_to_fin(&mut client), b"", "{service}");
        drop(client);
        assert_eq!(server.wait().code(), Some(0), "{service}");
        drop(stdout);
    }
}

#[test]
fn with_a_stdout_that_takes_nothing_a_second_signal_ends_it_at_once() {
    let home = Home::new();
    let (mut server, stdout) = serve(&home, &["print", "--drain-timeout", "off"]);
    let mut client = server.connect();
    client.write_all(b"for nobody to read\n").unwrap();
    server.signal(Signal::TERM);
    server.log_line("the drain", |line| line.contains(" draining "));
    until_another_signal_counts();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(1));
    let said =
        |line: &&String| line.contains(" error not all that was received could be passed on");
    assert_eq!(
        server.lines.iter().filter(said).count(),
        1,
        "{:?}",
        server.lines
    );
    drop(stdout);
}

#[test]
fn with_a_stdout_that_takes_nothing_the_manager_hears_that_it_is_ready() {
    let home = Home::new();
    let path = home.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(crate::support::GUARD))
        .unwrap();
    for service in ["echo", "print"] {
        let (stdout, writer) = full();
        let mut command = home.standfast(&["serve", "-l", "0", service]);
        command
            .env("NOTIFY_SOCKET", &path)
            .stdin(Stdio::null())
            .stdout(writer);
        let mut server = Server::launch(command);
        let mut said = [0; 256];
        let count = manager.recv(&mut said).unwrap();
        assert!(said[..count].starts_with(b"READY=1\n"), "{service}");
        assert_eq!(server.drain().code(), Some(0));
        manager.recv(&mut said).unwrap();
        drop(stdout);
    }
}

#[test]
fn with_a_stdout_that_takes_nothing_it_is_taken_over_from() {
    let home = Home::new();
    let (mut server, mut stdout) = serve(&home, &[]);
    let address = server.address();
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let mut generations = Vec::new();
    for _ in 0..2 {
        generations.push(home.restart(&[]));
        assert_echoes(&mut client, b"and on");
        assert_echoes(&mut connect(address), b"a new one");
    }
    drop(client);
    home.answer(&["drain"]);
    // With the last of them stderr ends.
    assert_eq!(server.wait().code(), Some(0));
    drop(generations);
    // None of them holds stdout any more.
    let mut said = Vec::new();
    stdout.read_to_end(&mut said).unwrap();
}

#[test]
fn with_a_stderr_that_takes_nothing_it_serves_and_ends() {
    let home = Home::new();
    let (stderr, writer) = full();
    let mut command = home.standfast(&["serve", "-l", "0", "-v"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(writer);
    let mut child = command.spawn().unwrap();
    let mut line = [0; 64];
    let count = child.stdout.take().unwrap().read(&mut line).unwrap();
    let line = String::from_utf8_lossy(&line[..count]).into_owned();
    let address = crate::support::listening(line.trim_end());
    let mut client = connect(address);
    for _ in 0..100 {
        assert_echoes(&mut client, b"hello");
    }
    drop(client);
    home.answer(&["drain"]);
    until("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(stderr);
}

#[test]
fn with_a_stderr_that_takes_nothing_a_server_that_cannot_start_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (stderr, writer) = full();
    let mut command = standfast();
    let address = taken.local_addr().unwrap().to_string();
    command.args(["serve", "-l", &address]).stderr(writer);
    let mut child = command.spawn().unwrap();
    until("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(stderr);
}

/// `standfast ARGS...` ends at once, for its stdout, which `redirection` makes, takes nothing.
#[track_caller]
fn assert_refused(redirection: &str, args: &[&str]) {
    const SAID: &str = "standfast: cannot write to stdout: Bad file descriptor (os error 9); \
                        it is not open for writing: where nothing is wanted, >/dev/null";
    let (code, _, stderr) = output(shell(&format!(r#"exec "$@" {redirection}"#), args));
    assert_eq!((code, &*stderr), (1, SAID), "{redirection} {args:?}");
}

#[test]
fn a_stdout_that_was_closed_at_the_start_or_is_not_for_writing_is_told_at_once() {
    // It accepts, and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for redirection in [">&-", "1</dev/null"] {
        assert_refused(redirection, &["serve", "print", "-l", "0"]);
        assert_refused(redirection, &["check"]);
        assert_refused(redirection, &["connect", &address]);
        assert_refused(redirection, &["load", &address, "-T", "1h"]);
    }
    let sent = shell(r#"exec "$@" >&- </dev/null"#, &["connect", "-z", &address]);
    assert_eq!(output(sent).0, 0, "nothing is to be received");
}

#[test]
fn an_order_that_was_carried_out_is_no_failure_where_that_cannot_be_shown() {
    let home = Home::new();
    let mut server = home.serve(&["-l", "0"]);
    let socket = home.socket_of(&server);
    let closed = |order| shell(r#"exec "$@" >&-"#, &[order, "--control", text(&socket)]);
    assert_eq!(
        output(closed("status")).0,
        1,
        "what is asked for is not had"
    );
    let (code, _, stderr) = output(closed("drain"));
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("cannot write to stdout"), "{stderr}");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn who_means_to_print_nowhere_may() {
    // For writing, and for both as daemon(3) and Python open it.
    for nowhere in [">", "<>"] {
        let script = format!(r#"exec "$@" 1{nowhere}/dev/null"#);
        let mut command = shell(&script, &["serve", "print", "-l", "0"]);
        command.stdin(Stdio::null());
        let mut server = Server::launch(command);
        server.log_line("the listener", |line| line.contains(" listening "));
        assert_eq!(server.drain().code(), Some(0));
    }
}

/// What came in the turn in which it was held up came no earlier than that was over.
#[test]
fn with_a_stderr_that_takes_nothing_a_client_counts_its_wait_from_what_came() {
    const WAIT: Duration = Duration::from_millis(1500);
    let (stderr, writer) = full();
    let peer = Peer::start();
    let start = now();
    let mut command = connect_command(&peer.address().to_string(), &["-w", "1.5"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = command.stderr(writer).spawn().map(Guarded).unwrap();
    let mut server = peer.accept();
    server.write_all(b"news").unwrap();
    let mut stdout = client.0.stdout.take().unwrap();
    assert_gets(&mut stdout, b"news");
    let heard = start.elapsed();
    let mut status = None;
    until("it ends", || {
        status = client.0.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(4));
    // Held up for longer than it waits, it would end at once.
    assert!(heard >= WAIT, "{heard:?}");
    let took = start.elapsed();
    assert!(took >= heard.max(2 * WAIT), "{took:?}");
    drop(stderr);
}
