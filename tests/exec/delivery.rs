//! What a program has written is delivered after its end, and the connection counts until then.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;

use super::takeover::words;
use super::{children, exec, line, lives, local, script};
use crate::support::clients::{narrow, reset, unread, vanish};
use crate::support::home::{Home, number};
use crate::support::{Server, leave_descriptors, pass, read_to_fin, row, until};

/// More than a client's window takes, and not more than the server's kernel does.
const ANSWER: usize = 200_000;
const ANSWER_TEXT: &str = "200000";

/// Waits until the process behind `client`, the only one, has written its answer and ended.
#[track_caller]
fn until_over(server: &Server, client: &TcpStream) {
    until("the answer comes", || unread(client) > 0);
    until("the processes ended", || children(server).is_empty());
}

/// The kernel does not go on with the connection of `client` alone.
#[track_caller]
fn assert_nothing_left(server: &Server, client: &TcpStream) {
    let (near, far) = (server.address(), client.local_addr().unwrap());
    until("no orphan", || row(near, far).is_none());
}

#[test]
fn input_after_a_program_s_end_takes_nothing_of_its_answer_along() {
    let mut server = exec(&[], &["head", "-c", ANSWER_TEXT, "/dev/zero"]);
    let mut client = narrow(server.address());
    until_over(&server, &client);
    client.write_all(b"after that").unwrap();
    let mut answer = vec![0; 1000];
    client.read_exact(&mut answer).unwrap();
    client.write_all(b"and while it reads").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client).len(), ANSWER - 1000);
    let closed = server.closed();
    assert_eq!(closed.reason(), "service", "{}", closed.line);
    assert_eq!(
        (closed.get("read"), closed.get("written")),
        ("28", ANSWER_TEXT)
    );
}

#[test]
fn the_same_on_a_unix_socket() {
    let home = Home::new();
    let (mut server, path) = local(&home, &[], "echo all; read x; echo of it");
    let mut client = UnixStream::connect(&path).unwrap();
    client
        .write_all(b"one line\nand more that nobody reads")
        .unwrap();
    until("the answer comes", || {
        rustix::io::ioctl_fionread(&client).unwrap() > 4
    });
    until("the process ended", || children(&server).is_empty());
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "all\nof it\n");
    drop(client);
    assert_eq!(server.closed().reason(), "service");
}

#[test]
fn who_does_not_read_the_answer_counts_among_the_connections() {
    let home = Home::new();
    let mut server = home.serve(&[
        "exec",
        "-l",
        "0",
        "-m",
        "3",
        "--",
        "head",
        "-c",
        ANSWER_TEXT,
        "/dev/zero",
    ]);
    let port = server.address().port().to_string();
    let mut three: Vec<TcpStream> = (0..3).map(|_| narrow(server.address())).collect();
    for client in &three {
        until_over(&server, client);
    }
    let mut fourth = server.connect();
    assert_eq!(read_to_fin(&mut fourth), b"");
    assert_eq!(server.closed().reason(), "limit");
    assert_eq!(number(&home.json(&["status", &port])["open"]), 3);
    for client in &mut three {
        assert_eq!(read_to_fin(client).len(), ANSWER);
    }
    drop(three);
    for _ in 0..3 {
        assert_eq!(server.closed().reason(), "service");
    }
}

#[test]
fn who_never_reads_the_answer_is_reset_at_the_write_timeout() {
    let mut server = exec(
        &["--write-timeout", "1s"],
        &["head", "-c", ANSWER_TEXT, "/dev/zero"],
    );
    let client = narrow(server.address());
    let closed = server.closed();
    assert_eq!(closed.reason(), "write-stall", "{}", closed.line);
    assert_nothing_left(&server, &client);
}

#[test]
fn who_vanishes_with_the_answer_undelivered_is_found_in_time() {
    let mut server = script(&["--dead-after", "6s"], "read x; head -c 200000 /dev/zero");
    let mut client = narrow(server.address());
    client.write_all(b"go\n").unwrap();
    until_over(&server, &client);
    let gone = vanish(&client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "unacknowledged", "{}", closed.line);
    assert!(gone.at.unhindered() < Duration::from_secs(9), "in time");
    assert_nothing_left(&server, &client);
}

#[test]
fn a_drain_waits_until_the_answer_is_delivered() {
    let mut server = exec(&[], &["head", "-c", ANSWER_TEXT, "/dev/zero"]);
    let mut client = narrow(server.address());
    client.read_exact(&mut [0; 1000]).unwrap();
    until_over(&server, &client);
    server.signal(Signal::TERM);
    server.log_line("the drain", |line| line.contains(" info draining "));
    assert_eq!(read_to_fin(&mut client).len(), ANSWER - 1000);
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_drain_that_ends_before_says_that_something_was_cut() {
    let mut server = exec(
        &["--drain-timeout", "500ms"],
        &["head", "-c", ANSWER_TEXT, "/dev/zero"],
    );
    let mut client = narrow(server.address());
    client.read_exact(&mut [0; 1000]).unwrap();
    until_over(&server, &client);
    assert_eq!(server.drain().code(), Some(1));
    assert_eq!(server.summary()["drain"], "1");
}

#[test]
fn who_holds_the_socket_after_the_program_s_end_keeps_it_whatever_group_it_is_in() {
    // In a session of its own: of the program's group nobody is left.
    let mut server = script(
        &[],
        "exec 3<&0; setsid sh -c 'echo $$; read x; echo late $x; read y; echo later $y' <&3 & exec 3<&- <&-",
    );
    let mut client = server.connect();
    let pid = line(&mut client);
    let said = server.log_line("whose it is", |line| {
        line.contains(" info a process has left its connection ")
    });
    assert!(said.contains(&format!("holder={pid}")), "{said}");
    assert_eq!(server.closed().reason(), "service");
    client.write_all(b"one\n").unwrap();
    assert_eq!(line(&mut client), "late one");
    client.write_all(b"two\n").unwrap();
    assert_eq!(line(&mut client), "later two");
    assert_eq!(read_to_fin(&mut client), b"");
    until("it ended", || !lives(&pid));
}

/// To look who has a socket takes a descriptor.
#[test]
fn where_there_is_no_descriptor_to_look_with_nobody_loses_a_connection() {
    let mut server = script(
        &["-v"],
        "exec 3<&0; setsid sh -c 'read x; echo late $x' <&3 & echo $$; exec sleep 1000 3<&- <&-",
    );
    let mut client = server.connect();
    let pid = line(&mut client);
    // The program may speak before the server has its pidfd.
    server.log_line("its start", |line| {
        line.contains(" debug started a process")
    });
    leave_descriptors(&server, 0);
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    server.log_line("that it cannot see", |line| {
        line.contains(" warn cannot see in /proc whether a connection is somebody's yet")
    });
    assert_eq!(server.closed().reason(), "service");
    client.write_all(b"one\n").unwrap();
    assert_eq!(line(&mut client), "late one");
    assert_eq!(read_to_fin(&mut client), b"");
}

#[test]
fn who_is_left_without_the_socket_does_not_keep_the_client_waiting() {
    assert_left_without_the_socket(&[]);
}

/// It may look into those of its own user alone, and there are others.
#[test]
fn who_is_left_without_the_socket_is_known_to_a_server_without_privileges() {
    let flags = ["--user", "nobody", "--control", "off"];
    let is_root = rustix::process::geteuid().is_root();
    assert_left_without_the_socket(if is_root { &flags } else { &[] });
}

#[track_caller]
fn assert_left_without_the_socket(flags: &[&str]) {
    let mut server = script(flags, "sleep 1000 <&- >&- 2>&- & echo $!");
    let mut client = server.connect();
    let pid = line(&mut client);
    client.write_all(b"input that nobody reads").unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    drop(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "service", "{}", closed.line);
    assert!(lives(&pid), "it is left alone");
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn a_half_closed_client_gets_its_answer_whole() {
    let mut server = script(&[], "cat >/dev/null; head -c 200000 /dev/zero");
    let mut client = narrow(server.address());
    client.write_all(b"all there is").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    until_over(&server, &client);
    pass(Duration::from_millis(100));
    assert_eq!(read_to_fin(&mut client).len(), ANSWER);
    let closed = server.closed();
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    assert_eq!(
        (closed.get("read"), closed.get("written")),
        ("12", ANSWER_TEXT)
    );
}

/// What the client of a program sends that was ended for its silence, between the bytes of the answer; and how that went.
#[track_caller]
fn assert_delivered_despite_input(client: &mut TcpStream) {
    client.write_all(b"late").unwrap();
    client.read_exact(&mut [0; 1000]).unwrap();
    client.write_all(b"and later").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(client).len(), ANSWER - 1000);
}

#[test]
fn input_after_a_read_deadline_takes_nothing_of_the_answer_along() {
    let mut server = script(&["-i", "1s"], "head -c 200000 /dev/zero; exec sleep 1000");
    let mut client = narrow(server.address());
    until_over(&server, &client);
    assert_delivered_despite_input(&mut client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "read-timeout", "{}", closed.line);
    assert_eq!(closed.get("written"), ANSWER_TEXT);
}

#[test]
fn what_a_program_says_when_it_is_asked_to_end_for_a_silent_client_arrives() {
    let mut server = script(
        &["-i", "1s"],
        "trap 'echo asked; exit' TERM; echo up; while :; do sleep 0.05; done",
    );
    assert_eq!(read_to_fin(&mut server.connect()), b"up\nasked\n");
    assert_eq!(server.closed().reason(), "read-timeout");
}

#[test]
fn a_process_that_is_ended_for_a_silent_client_goes_along_in_a_takeover() {
    let home = Home::new();
    let script =
        "trap 'echo $$ asked >&2' TERM; head -c 200000 /dev/zero; while :; do sleep 0.05; done";
    let flags = ["-i", "1s"];
    let mut server = home.serve(&words(&flags, script));
    let mut client = narrow(server.address());
    let asked = server.log_line("that it is to end", |line| line.contains(" asked\""));
    let pid = asked.split_once("line=\"").unwrap().1;
    let pid = pid.split(' ').next().unwrap();
    let mut next = home.succeed(&mut server, &words(&flags, script));
    until("it was ended", || !lives(pid));
    assert_delivered_despite_input(&mut client);
    let closed = next.closed();
    assert_eq!(closed.reason(), "read-timeout", "{}", closed.line);
    assert_eq!(closed.get("written"), ANSWER_TEXT);
    drop(client);
    assert!(next.drain().success());
}

#[test]
fn who_has_the_socket_of_a_silent_client_s_program_loses_it_with_that() {
    let mut server = script(
        &["-i", "1s"],
        "exec 3<&0; setsid sh -c 'echo $$; read x || exit' <&3 & exec sleep 1000 3<&- <&- >&-",
    );
    let mut client = server.connect();
    let holder = line(&mut client);
    server.log_line("whose it is", |line| {
        line.contains(&format!("holder={holder}"))
    });
    assert_eq!(read_to_fin(&mut client), b"");
    assert_eq!(server.closed().reason(), "read-timeout");
    until("it ended", || !lives(&holder));
}

#[test]
fn a_client_that_is_lost_while_its_program_is_ended_for_its_silence_is_no_other_end() {
    let mut server = script(
        &["-i", "1s"],
        "trap 'echo asked >&2' TERM; while :; do sleep 0.05; done",
    );
    let client = server.connect();
    server.log_line("that it is to end", |line| line.ends_with("line=asked"));
    reset(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "read-timeout", "{}", closed.line);
    until("the process was ended", || children(&server).is_empty());
}
