//! Every kind of stdout: one that is read slowly, closed, full, or not read at all.

use std::fmt::Display;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use crate::support::clients::Stream;
use crate::support::connecting::{Connecting, Peer, Port, assert_gets, connect_command};
use crate::support::{GUARD, Server, pass, read_to_fin, send_until_stuck, shell};

/// `connect`, whose stdout is a pipe that only the test reads.
fn into_a_pipe(to: impl Display + Copy, args: &[&str]) -> (Connecting, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = connect_command(&to.to_string(), args);
    command.stdin(Stdio::piped()).stdout(writer);
    (Connecting::launch(command), reader)
}

/// Reads to the end, and pauses after each piece.
fn read_slowly(mut pipe: PipeReader, pause: Duration) -> u64 {
    let mut stream = Stream::default();
    let mut buffer = vec![0; 65536];
    loop {
        match pipe.read(&mut buffer).unwrap() {
            0 => return stream.at,
            count => stream.verify(&buffer[..count]),
        }
        pass(pause);
    }
}

#[test]
fn a_slow_reader_of_stdout_gets_every_byte() {
    const COUNT: usize = 10 << 20;
    let server = Server::start(&[]);
    let (mut connecting, pipe) = into_a_pipe(server.address(), &[]);
    connecting.types(Stream::default().next(COUNT));
    connecting.ends_stdin();
    let got = read_slowly(pipe, Duration::from_millis(5));
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(got, COUNT as u64);
}

#[test]
fn everything_is_on_stdout_before_the_end() {
    const COUNT: usize = 1 << 20;
    let peer = Peer::start();
    let (mut connecting, pipe) = into_a_pipe(peer.address(), &[]);
    connecting.types("question");
    connecting.ends_stdin();
    let mut server = peer.accept();
    let sending = std::thread::spawn(move || {
        assert_eq!(read_to_fin(&mut server), b"question");
        server.write_all(&Stream::default().next(COUNT)).unwrap();
    });
    let got = read_slowly(pipe, Duration::from_millis(20));
    sending.join().unwrap();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(got, COUNT as u64);
}

/// Sends until the program is told by its stdout, and answers how it ended.
#[track_caller]
fn sent_until_the_end(connecting: &mut Connecting, server: &mut TcpStream) -> i32 {
    // The first write finds it out; the connection may be over before the second.
    while server.write_all(b"for nobody\n").is_ok() && connecting.is_running() {
        pass(Duration::from_millis(5));
    }
    connecting.ends()
}

#[test]
fn a_closed_stdout_ends_it_quietly() {
    let peer = Peer::start();
    let (mut connecting, mut pipe) = into_a_pipe(peer.address(), &[]);
    let mut server = peer.accept();
    connecting.connects(peer.address());
    server.write_all(b"for somebody\n").unwrap();
    assert_gets(&mut pipe, b"for somebody\n");
    drop(pipe);
    let code = sent_until_the_end(&mut connecting, &mut server);
    assert_eq!(code, 0, "{:?}", connecting.lines);
    assert_eq!(connecting.lines.len(), 1, "{:?}", connecting.lines);
}

#[test]
fn a_stdout_that_nobody_reads_any_more_ends_it_though_nothing_comes() {
    let peer = Peer::start();
    let (mut connecting, pipe) = into_a_pipe(peer.address(), &[]);
    let mut server = peer.accept();
    connecting.types("hello\n");
    assert_gets(&mut server, b"hello\n");
    drop(pipe);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.lines.len(), 1, "{:?}", connecting.lines);
    assert_eq!(read_to_fin(&mut server), b"");
}

#[test]
fn a_stdout_that_nobody_reads_any_more_ends_it_also_while_there_is_no_server() {
    let port = Port::new();
    let (mut connecting, pipe) = into_a_pipe(port.address(), &["--backoff", "1h:1h"]);
    connecting.says("cannot connect to ");
    drop(pipe);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn a_stdout_that_nobody_reads_any_more_is_no_success_while_bytes_are_not_delivered() {
    let peer = Peer::start();
    let (mut connecting, pipe) = into_a_pipe(peer.address(), &[]);
    let server = peer.accept();
    connecting.types(Stream::default().next(16 << 20));
    connecting.until_stuck();
    drop(pipe);
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    let last = connecting.lines.last().unwrap();
    assert!(last.ends_with(" bytes were not delivered"), "{last}");
    drop(server);
}

#[test]
fn a_full_disk_is_said_in_one_line() {
    let peer = Peer::start();
    let mut command = connect_command(&peer.address().to_string(), &[]);
    command.stdin(Stdio::piped());
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let mut connecting = Connecting::launch(command);
    let mut server = peer.accept();
    connecting.connects(peer.address());
    let code = sent_until_the_end(&mut connecting, &mut server);
    assert_eq!(code, 1, "{:?}", connecting.lines);
    let [_, said] = &connecting.lines[..] else {
        panic!("{:?}", connecting.lines);
    };
    assert!(
        said.contains("stdout") && said.contains("No space left on device"),
        "{said}"
    );
}

#[test]
fn a_full_disk_is_a_failure_also_when_the_server_is_done_already() {
    let peer = Peer::start();
    let mut command = connect_command(&peer.address().to_string(), &["--reconnect", "never"]);
    command.stdin(Stdio::piped());
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let mut connecting = Connecting::launch(command);
    let mut server = peer.accept();
    server.write_all(b"once\n").unwrap();
    drop(server);
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    assert_eq!(
        connecting.said("No space left on device"),
        1,
        "{:?}",
        connecting.lines
    );
}

#[test]
fn without_a_stdout_who_only_sends_does_that() {
    let peer = Peer::start();
    let to = peer.address().to_string();
    let args = ["connect", "--send-only", &to];
    let mut connecting = Connecting::spawn(shell(r#"exec "$@" >&-"#, &args));
    let mut server = peer.accept();
    connecting.types("hello\n");
    assert_gets(&mut server, b"hello\n");
    connecting.types("again\n");
    assert_gets(&mut server, b"again\n");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"");
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

/// `connect`, whose stdin and stdout are one socket, non-blocking, as another program may leave them.
#[test]
fn a_stdin_and_stdout_that_do_not_block_are_waited_for() {
    const COUNT: usize = 4 << 20;
    let server = Server::start(&[]);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut command = connect_command(&server.address().to_string(), &[]);
    command.stdin(OwnedFd::from(theirs.try_clone().unwrap()));
    command.stdout(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut connecting = Connecting::launch(command);
    connecting.connects(server.address());
    let spent = connecting.cpu();
    pass(Duration::from_millis(500));
    let spent = connecting.cpu() - spent;
    assert!(spent < Duration::from_millis(100), "{spent:?}");
    let mut typing = ours.try_clone().unwrap();
    let typing = std::thread::spawn(move || {
        typing.write_all(&Stream::default().next(COUNT)).unwrap();
        typing.shutdown(std::net::Shutdown::Write).unwrap();
    });
    ours.set_read_timeout(Some(GUARD)).unwrap();
    let (mut stream, mut buffer) = (Stream::default(), vec![0; 65536]);
    while stream.at < COUNT as u64 {
        let count = ours.read(&mut buffer).unwrap();
        stream.verify(&buffer[..count]);
        pass(Duration::from_millis(2));
    }
    typing.join().unwrap();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(stream.at, COUNT as u64);
    // Whoever shares them finds them as they were.
    let flags = rustix::fs::fcntl_getfl(&theirs).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn a_stdin_and_stdout_that_block_are_left_so() {
    let peer = Peer::start();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = connect_command(&peer.address().to_string(), &[]);
    command.stdin(OwnedFd::from(theirs.try_clone().unwrap()));
    command.stdout(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut connecting = Connecting::launch(command);
    let mut server = peer.accept();
    connecting.connects(peer.address());
    (&ours).write_all(b"question").unwrap();
    assert_gets(&mut server, b"question");
    server.write_all(b"answer").unwrap();
    assert_gets(&mut &ours, b"answer");
    let flags = rustix::fs::fcntl_getfl(&theirs).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    drop(connecting);
}

#[test]
fn a_stdout_that_is_not_read_slows_the_server_and_not_what_is_typed() {
    let peer = Peer::start();
    let (mut connecting, pipe) = into_a_pipe(peer.address(), &["--buffer", "64k"]);
    let mut server = peer.accept();
    connecting.connects(peer.address());
    let text = Stream::default().next(16 << 20);
    let sent = send_until_stuck(&mut server, &text) as u64;
    assert!(sent < 16 << 20, "{sent} bytes taken, and nobody reads");
    let resident = connecting.resident();
    assert!(resident < 32 << 20, "{resident} bytes");
    for line in ["still\n", "typing\n"] {
        connecting.types(line);
        assert_gets(&mut server, line.as_bytes());
    }
    let spent = connecting.cpu();
    pass(Duration::from_millis(500));
    let spent = connecting.cpu() - spent;
    assert!(spent < Duration::from_millis(100), "{spent:?}");
    // What had to wait comes when it is read.
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"");
    drop(server);
    assert_eq!(read_slowly(pipe, Duration::ZERO), sent);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn a_stdout_that_is_not_read_keeps_the_read_timeout_from_being_the_servers_fault() {
    let peer = Peer::start();
    let text = Stream::default().next(16 << 20);
    let args = ["--buffer", "64k", "--read-timeout", "2s"];
    let (mut connecting, pipe) = into_a_pipe(peer.address(), &args);
    let mut server = peer.accept();
    connecting.connects(peer.address());
    let sent = send_until_stuck(&mut server, &text) as u64;
    pass(Duration::from_millis(2500));
    drop(server);
    connecting.ends_stdin();
    let mut read = pipe.take(sent);
    let mut got = Vec::new();
    read.read_to_end(&mut got).unwrap();
    assert!(got == text[..got.len()] && got.len() as u64 == sent);
    connecting.says("lost ");
    assert_eq!(connecting.said("read-timeout"), 0, "{:?}", connecting.lines);
}
