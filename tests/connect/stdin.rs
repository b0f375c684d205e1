//! Every kind of stdin, and what its end means: after bytes the half-close and the wait for the server's FIN, without any
//! to receive only.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::clients::{Stream, reset, vanish};
use crate::support::connecting::{
    Connecting, Peer, Port, assert_gets, assert_silent, connect_command,
};
use crate::support::home::Home;
use crate::support::{Server, now, pass, read_to_fin, shell};

/// `connect` with `path` as its stdin.
fn reading(peer: &Peer, path: &Path) -> Connecting {
    let mut command = connect_command(&peer.address().to_string(), &[]);
    command.stdin(File::open(path).unwrap());
    command.stdout(Stdio::piped());
    Connecting::launch(command)
}

#[test]
fn the_end_of_stdin_is_a_half_close_and_the_answer_is_still_printed() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    connecting.types("question");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"question");
    server.write_all(b"answer").unwrap();
    connecting.prints(b"answer");
    server.write_all(b" and more").unwrap();
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.stdout_rest(), b" and more");
    assert_eq!(connecting.said("lost"), 0, "{:?}", connecting.lines);
}

#[test]
fn without_half_close_the_server_hears_no_end() {
    let (mut connecting, mut server) = Connecting::connected(&["--no-half-close"]);
    connecting.types("question");
    connecting.ends_stdin();
    assert_gets(&mut server, b"question");
    assert_silent(&mut server, Duration::from_millis(300));
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.stdout_rest(), b"answer");
}

#[test]
fn a_loss_after_the_end_of_stdin_is_a_failure() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    connecting.types("question");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"question");
    reset(server);
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    assert_eq!(connecting.said("peer-reset"), 1, "{:?}", connecting.lines);
    assert_eq!(connecting.said("reconnecting"), 0, "{:?}", connecting.lines);
}

#[test]
fn while_stdin_is_open_the_servers_fin_is_no_end() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &[]);
    peer.dismiss();
    connecting.says(&format!("lost {}: peer-closed", peer.address()));
    connecting.types("to the next one\n");
    let mut server = peer.accept();
    assert_gets(&mut server, b"to the next one\n");
}

#[test]
fn what_is_unsent_at_the_end_of_stdin_is_sent_to_whoever_comes() {
    let port = Port::new();
    let to = port.address();
    let mut connecting = Connecting::start(to, &[]);
    connecting.types("for later\n");
    connecting.ends_stdin();
    for _ in 0..4 {
        connecting.says("cannot connect to ");
    }
    let peer = port.listen();
    let mut server = peer.accept();
    assert_eq!(read_to_fin(&mut server), b"for later\n");
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn a_file_is_sent_and_its_end_is_the_end() {
    let home = Home::new();
    let (peer, path) = (Peer::start(), home.join("file"));
    let content = b"\0\x01\xff\r\nbinary\n".repeat(1000);
    std::fs::write(&path, &content).unwrap();
    let mut connecting = reading(&peer, &path);
    let mut server = peer.accept();
    assert!(read_to_fin(&mut server) == content);
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

/// `connecting`, whose stdin is at its end without a byte, receives only, and comes back.
#[track_caller]
fn assert_receives_only(mut connecting: Connecting, peer: &Peer) {
    for round in ["one\n", "two\n", "three\n"] {
        let mut server = peer.accept();
        connecting.connects(peer.address());
        server.write_all(round.as_bytes()).unwrap();
        connecting.prints(round.as_bytes());
        assert_silent(&mut server, Duration::from_millis(200));
        if round == "two\n" {
            reset(server);
        } else {
            drop(server);
        }
        connecting.says("lost ");
        connecting.says("reconnecting ");
    }
}

#[test]
fn with_dev_null_it_receives_only_and_comes_back() {
    let peer = Peer::start();
    let connecting = reading(&peer, Path::new("/dev/null"));
    assert_receives_only(connecting, &peer);
}

#[test]
fn with_an_empty_pipe_it_receives_only_and_comes_back() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &[]);
    connecting.ends_stdin();
    assert_receives_only(connecting, &peer);
}

#[test]
fn with_a_closed_stdin_it_receives_only_and_comes_back() {
    let peer = Peer::start();
    let to = peer.address().to_string();
    let args = ["connect", "--backoff", "10ms:100ms", &to];
    let connecting = Connecting::spawn(shell(r#"exec "$@" <&-"#, &args));
    assert_receives_only(connecting, &peer);
}

#[test]
fn a_stdin_that_cannot_be_read_is_said_in_one_line() {
    let peer = Peer::start();
    let mut connecting = reading(&peer, Path::new("/"));
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    let said: Vec<_> = connecting.lines.iter().collect();
    let stdin = said.iter().filter(|line| line.contains("stdin")).count();
    assert_eq!(stdin, 1, "{said:?}");
    assert!(
        said.iter().any(|line| line.contains("Is a directory")),
        "{said:?}"
    );
}

/// `connect` at a terminal of its own, whose keys are this process's stdin and whose screen its stdout.
fn at_a_terminal(peer: &Peer) -> Connecting {
    let mut command = Command::new("script");
    let standfast = env!("CARGO_BIN_EXE_standfast");
    let line = format!("exec {standfast} connect {}", peer.address());
    command.args(["-q", "-e", "-c", &line, "/dev/null"]);
    Connecting::spawn(command)
}

/// Waits until the screen shows `text`.
#[track_caller]
fn shows(terminal: &mut Connecting, text: &str) {
    loop {
        if terminal.stdout_line().contains(text) {
            return;
        }
    }
}

#[test]
fn at_a_terminal_lines_go_out_as_they_are_typed_and_control_d_is_the_end() {
    let peer = Peer::start();
    let mut terminal = at_a_terminal(&peer);
    let mut server = peer.accept();
    shows(&mut terminal, "standfast: connected to ");
    for line in ["hello\n", "again\n"] {
        terminal.types(line);
        assert_gets(&mut server, line.as_bytes());
    }
    terminal.types("\x04");
    assert_eq!(read_to_fin(&mut server), b"");
    server.write_all(b"goodbye\n").unwrap();
    shows(&mut terminal, "goodbye");
    drop(server);
    assert_eq!(terminal.wait().code(), Some(0));
}

#[test]
fn at_a_terminal_control_c_ends_it() {
    let peer = Peer::start();
    let mut terminal = at_a_terminal(&peer);
    let mut server = peer.accept();
    shows(&mut terminal, "standfast: connected to ");
    terminal.types("hello\n");
    assert_gets(&mut server, b"hello\n");
    terminal.types("\x03");
    assert_eq!(read_to_fin(&mut server), b"");
    drop(server);
    assert_eq!(terminal.wait().code(), Some(0));
}

#[test]
fn to_quit_at_once_everything_is_sent_and_nothing_waited_for() {
    let (mut connecting, mut server) = Connecting::connected(&["-q", "0"]);
    let question = b"0123456789abcdef".repeat(10_000);
    connecting.types(question.clone());
    connecting.ends_stdin();
    assert!(read_to_fin(&mut server) == question);
    // The server never says that it is done.
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn to_quit_after_a_while_the_answer_is_waited_for_that_long() {
    let (mut connecting, mut server) = Connecting::connected(&["-q", "1s"]);
    let start = now();
    connecting.types("question");
    connecting.ends_stdin();
    assert_gets(&mut server, b"question");
    server.write_all(b"answer").unwrap();
    connecting.prints(b"answer");
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn to_quit_after_a_while_also_ends_one_that_receives_only() {
    let (mut connecting, mut server) = Connecting::connected(&["-q", "300ms"]);
    let start = now();
    connecting.ends_stdin();
    server.write_all(b"what there is").unwrap();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(connecting.stdout_rest(), b"what there is");
}

#[test]
fn to_quit_waits_for_a_server_to_send_it_to() {
    let port = Port::new();
    let mut connecting = Connecting::start(port.address(), &["-q", "0"]);
    connecting.types("question");
    connecting.ends_stdin();
    for _ in 0..3 {
        connecting.says("cannot connect to ");
    }
    let peer = port.listen();
    let mut server = peer.accept();
    assert_eq!(read_to_fin(&mut server), b"question");
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn to_quit_is_a_failure_if_what_was_sent_did_not_arrive() {
    let (mut connecting, mut server) = Connecting::connected(&["-q", "0", "--dead-after", "5s"]);
    connecting.types("one\n");
    assert_gets(&mut server, b"one\n");
    vanish(&server);
    connecting.types("into the silence\n");
    connecting.ends_stdin();
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    assert_eq!(
        connecting.said("17 bytes were not delivered"),
        1,
        "{:?}",
        connecting.lines
    );
    drop(server);
}

#[test]
fn a_terabyte_of_nothing_is_not_read_while_the_server_does_not_take_it() {
    let peer = Peer::start();
    let mut command = connect_command(&peer.address().to_string(), &[]);
    command.stdin(File::open("/dev/zero").unwrap());
    command.stdout(Stdio::piped());
    let mut connecting = Connecting::launch(command);
    let server = peer.accept();
    connecting.connects(peer.address());
    connecting.until_idle();
    let (resident, spent) = (connecting.resident(), connecting.cpu());
    assert!(resident < 32 << 20, "{resident} bytes");
    pass(Duration::from_millis(500));
    let spent = connecting.cpu() - spent;
    assert!(spent < Duration::from_millis(100), "{spent:?}");
    drop(server);
}

#[test]
fn what_echo_gets_comes_back_identical() {
    let home = Home::new();
    let (server, sent, got) = (Server::start(&[]), home.join("sent"), home.join("got"));
    let content = Stream::default().next(10 << 20);
    std::fs::write(&sent, &content).unwrap();
    let mut command = connect_command(&server.address().to_string(), &[]);
    command.stdin(File::open(&sent).unwrap());
    command.stdout(File::create(&got).unwrap());
    let mut connecting = Connecting::launch(command);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert!(std::fs::read(&got).unwrap() == content);
}
