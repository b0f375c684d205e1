//! How a process and its connection end, each by the other or by a limit.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;

use super::{children, exec, line, lives, local, script};
use crate::support::clients::{reset, until_acknowledged, vanish};
use crate::support::home::{Home, number, text};
use crate::support::{
    Began, Server, connect, now, read_to_fin, until, until_another_signal_counts,
};

/// A script that says its number and then does `what`.
fn says_pid(what: &str) -> String {
    format!("echo $$; {what}")
}

#[track_caller]
fn assert_no_children(server: &Server) {
    until("no process left, and no zombie", || {
        children(server).is_empty()
    });
}

#[test]
fn no_zombie_is_left_of_many() {
    let mut server = exec(&[], &["true"]);
    for _ in 0..100 {
        read_to_fin(&mut server.connect());
    }
    for _ in 0..100 {
        assert_eq!(server.closed().reason(), "service");
    }
    assert_no_children(&server);
    // Nor a descriptor, but for those of what is just being closed.
    let before = server.descriptors_at_rest();
    for _ in 0..20 {
        read_to_fin(&mut server.connect());
        server.closed();
    }
    until("as many descriptors as before", || {
        server.descriptors() <= before
    });
    assert!(server.drain().success());
}

#[test]
fn a_program_that_forks_and_leaves_leaves_the_connection_to_its_child() {
    let mut server = script(
        &[],
        "exec 3<&0; (read x; echo late $x; read y; echo later $y) <&3 & echo early; exec 3<&-",
    );
    let mut client = server.connect();
    assert_eq!(line(&mut client), "early");
    // The server lets go of it, and that is all that ends here.
    assert_eq!(server.closed().reason(), "service");
    client.write_all(b"one\n").unwrap();
    assert_eq!(line(&mut client), "late one");
    client.write_all(b"two\n").unwrap();
    assert_eq!(line(&mut client), "later two");
    assert_eq!(read_to_fin(&mut client), b"");
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    let mut server = exec(&[], &["sort"]);
    let mut client = server.connect();
    client.write_all(b"b\na\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"a\nb\n");
    assert_eq!(server.closed().reason(), "peer-closed");
}

#[test]
fn a_reset_is_told_as_such_whoever_hears_of_it_first() {
    let mut server = exec(&[], &["cat"]);
    for _ in 0..20 {
        let mut client = server.connect();
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        reset(client);
        let closed = server.closed();
        assert_eq!(closed.reason(), "peer-reset", "{}", closed.line);
        assert_eq!((closed.get("read"), closed.get("written")), ("1", "1"));
    }
    assert_no_children(&server);
}

#[test]
fn a_process_that_does_not_notice_its_client_s_end_is_told() {
    let mut server = script(&[], &says_pid("exec sleep 1000"));
    let mut client = server.connect();
    let pid = line(&mut client);
    reset(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "peer-reset", "{}", closed.line);
    // It may have something to finish, but not for ever.
    assert!(lives(&pid));
    until("it was ended", || !lives(&pid));
    assert_no_children(&server);
}

#[test]
fn a_client_that_vanishes_is_found_in_time_idle_and_with_output_waiting() {
    let mut server = script(
        &["--dead-after", "6s"],
        "while read x; do head -c $x /dev/zero; done",
    );
    let idle = server.connect();
    let mut busy = server.connect();
    // More than any buffer takes.
    busy.write_all(b"50000000\n").unwrap();
    busy.read_exact(&mut [0; 1000]).unwrap();
    crate::support::deafen(&busy);
    let gone = vanish(&idle);
    let reasons = [server.closed(), server.closed()];
    assert!(gone.at.unhindered() < Duration::from_secs(9), "in time");
    let mut reasons = reasons.each_ref().map(|closed| closed.reason());
    reasons.sort_unstable();
    assert_eq!(reasons, ["keepalive-dead", "unacknowledged"]);
    assert_no_children(&server);
}

#[test]
fn over_max_children_a_client_is_turned_away_until_there_is_room() {
    let mut server = exec(&["--max-children", "2"], &["cat"]);
    let mut two: Vec<TcpStream> = (0..2).map(|_| server.connect()).collect();
    for client in &mut two {
        client.write_all(b"in\n").unwrap();
        assert_eq!(line(client), "in");
    }
    let mut third = server.connect();
    third.write_all(b"may I?\n").unwrap();
    assert_eq!(read_to_fin(&mut third), b"");
    drop(third);
    let closed = server.closed();
    assert_eq!(closed.reason(), "limit");
    assert_eq!(closed.get("limit"), "max-children", "{}", closed.line);
    two.pop();
    assert_eq!(server.closed().reason(), "peer-closed");
    let mut third = server.connect();
    third.write_all(b"now\n").unwrap();
    assert_eq!(line(&mut third), "now");
}

#[test]
fn at_its_time_limit_a_process_is_asked_to_end_and_then_made_to() {
    let mut server = script(
        &["--exec-timeout", "300ms"],
        "trap 'echo asked; exit' TERM; echo up; while :; do sleep 0.05; done",
    );
    let mut polite = server.connect();
    let start = now();
    assert_eq!(read_to_fin(&mut polite), b"up\nasked\n");
    assert!(now() - start >= Duration::from_millis(300));
    assert_eq!(server.closed().reason(), "service");
    assert_no_children(&server);

    let mut server = script(
        &["--exec-timeout", "300ms"],
        "trap '' TERM; echo up; while :; do sleep 0.05; done",
    );
    let start = now();
    let mut stubborn = server.connect();
    stubborn.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut stubborn), b"up\n");
    assert!(now() - start >= Duration::from_millis(2300), "the grace");
    let closed = server.closed();
    assert_eq!(closed.reason(), "service", "{}", closed.line);
    assert_no_children(&server);
}

#[test]
fn the_rest_of_its_group_is_made_to_end_as_well() {
    let mut server = script(
        &["--exec-timeout", "300ms"],
        "(trap '' TERM; echo up; while :; do sleep 0.05; done) & wait",
    );
    let start = now();
    let mut client = server.connect();
    assert_eq!(read_to_fin(&mut client), b"up\n");
    assert!(now() - start >= Duration::from_millis(2300), "the grace");
    drop(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "service", "{}", closed.line);
    assert_no_children(&server);
}

#[test]
fn a_silent_client_is_closed_and_its_process_ended() {
    let mut server = script(
        &["-i", "1s"],
        &says_pid("while read x; do echo $x; done; sleep 1000"),
    );
    let mut client = server.connect();
    let pid = line(&mut client);
    let start = now();
    // Bytes renew the deadline, though they pass the server by.
    while now() - start < Duration::from_millis(1500) {
        client.write_all(b"here\n").unwrap();
        assert_eq!(line(&mut client), "here");
        crate::support::pass(Duration::from_millis(100));
    }
    let last = now();
    assert_eq!(read_to_fin(&mut client), b"");
    assert!(now() - last >= Duration::from_millis(700));
    let closed = server.closed();
    assert_eq!(closed.reason(), "read-timeout", "{}", closed.line);
    until("its process was ended", || !lives(&pid));
    assert_no_children(&server);
}

#[test]
fn a_client_that_reads_nothing_is_reset_at_the_write_timeout() {
    let mut server = exec(&["--write-timeout", "1s"], &["cat", "/dev/zero"]);
    let client = server.connect();
    let closed = server.closed();
    assert_eq!(closed.reason(), "write-stall", "{}", closed.line);
    assert!(closed.age() >= Duration::from_secs(1));
    drop(client);
    assert_no_children(&server);
}

#[test]
fn an_operator_sees_and_kills_it() {
    let home = Home::new();
    let mut server = home.serve(&["exec", "-l", "0", "--", "cat"]);
    let port = server.address().port().to_string();
    let mut client = server.connect();
    client.write_all(b"hello\n").unwrap();
    assert_eq!(line(&mut client), "hello");
    let list = home.json(&["list", &port]);
    let entry = &list[0];
    assert_eq!((number(&entry["read"]), number(&entry["written"])), (6, 6));
    let id = number(&entry["id"]).to_string();
    home.answer(&["kill", &id, "--control", text(&home.socket_of(&server))]);
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(server.closed().reason(), "killed");
    assert_no_children(&server);
}

#[test]
fn a_drain_waits_until_the_processes_are_done() {
    let mut server = script(&[], "echo up; read x; echo you said $x");
    let address = server.address();
    let mut client = server.connect();
    assert_eq!(line(&mut client), "up");
    server.signal(Signal::TERM);
    until("it takes no more", || TcpStream::connect(address).is_err());
    client.write_all(b"so there\n").unwrap();
    assert_eq!(read_to_fin(&mut client), b"you said so there\n");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn at_the_drain_s_end_they_are_asked_to_end_and_reset() {
    let home = Home::new();
    let note = home.join("note");
    let what = format!(
        "trap 'echo asked > {}; echo last words >&2; exit' TERM; echo up; while :; do sleep 0.05; done",
        note.display()
    );
    let mut server = script(&["--drain-timeout", "500ms"], &what);
    let mut client = server.connect();
    assert_eq!(line(&mut client), "up");
    let start = now();
    assert_eq!(server.drain().code(), Some(1), "something was cut");
    assert!(now() - start >= Duration::from_millis(500));
    assert_eq!(
        client.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(std::fs::read_to_string(&note).unwrap(), "asked\n");
    assert!(server.lines.iter().any(|line| line.contains("last words")));
    assert_eq!(server.summary()["drain"], "1");
}

#[test]
fn a_second_signal_ends_them_at_once() {
    let mut server = script(
        &["--drain-timeout", "off"],
        &says_pid("trap '' TERM; while :; do sleep 0.05; done"),
    );
    let mut client = server.connect();
    let pid = line(&mut client);
    server.signal(Signal::TERM);
    server.log_line("the drain", |line| line.contains(" info draining "));
    until_another_signal_counts();
    let start = Began::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(1));
    assert!(start.unhindered() < Duration::from_secs(2), "no grace");
    assert!(!lives(&pid));
}

#[test]
fn starting_processes_holds_up_nobody_else() {
    let home = Home::new();
    let server = home.serve(&[
        "exec",
        "-l",
        "0",
        "--max-children",
        "off",
        "--workers",
        "1",
        "--",
        "cat",
    ]);
    let mut steady = server.connect();
    let address = server.address();
    let crowd = std::thread::spawn(move || (0..100).map(|_| connect(address)).collect::<Vec<_>>());
    for _ in 0..50 {
        steady.write_all(b"x\n").unwrap();
        assert_eq!(line(&mut steady), "x");
    }
    let crowd = crowd.join().unwrap();
    let status = home.json(&["status", &address.port().to_string()]);
    assert!(number(&status["open"]) > 1);
    drop(crowd);
}

/// The kernel counts a FIN as a byte, and once a reset has come it does not tell any more that there was one.
#[test]
fn a_fin_is_no_byte_whatever_follows_it() {
    for (program, read) in [
        // Reads to the end; is told of the error besides; or that alone; or nothing.
        ("cat", "11"),
        (
            "cat >/dev/null; sleep 0.1; echo answer; sleep 0.1; echo again",
            "11",
        ),
        ("sleep 0.1; yes", "0"),
        ("sleep 1000", "0"),
    ] {
        let mut server = script(&[], program);
        let mut client = server.connect();
        client.write_all(b"hello world").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        until_acknowledged(&client);
        reset(client);
        let closed = server.closed();
        assert_eq!(closed.get("read"), read, "{program}: {}", closed.line);
        // Which ends the program: it would outlive a server that is killed.
        assert!(server.drain().success());
    }
}

#[test]
fn a_reset_without_a_fin_takes_no_byte_away() {
    for program in ["cat", "sleep 1000", "sleep 0.1; yes"] {
        let mut server = script(&[], program);
        let mut client = server.connect();
        client.write_all(b"hello world").unwrap();
        until_acknowledged(&client);
        reset(client);
        let closed = server.closed();
        assert_eq!(closed.reason(), "peer-reset", "{program}: {}", closed.line);
        let read = closed.get("read");
        // Those that nobody has read are not.
        let expected = if program == "cat" { "11" } else { "0" };
        assert_eq!(read, expected, "{program}: {}", closed.line);
        assert!(server.drain().success());
    }
}

#[test]
fn the_client_of_a_unix_socket_that_is_gone_is_noticed() {
    let home = Home::new();
    let (mut server, path) = local(&home, &["--half-close-timeout", "1s"], "exec sleep 1000");
    drop(UnixStream::connect(&path).unwrap());
    let closed = server.closed();
    assert_eq!(closed.reason(), "half-close-timeout", "{}", closed.line);
    assert_no_children(&server);
}

#[test]
fn one_that_has_left_the_answer_unread_has_broken_off() {
    let home = Home::new();
    let (mut server, path) = local(
        &home,
        &["--half-close-timeout", "off"],
        "echo; exec sleep 1000",
    );
    let client = UnixStream::connect(&path).unwrap();
    until("the answer is there", || {
        rustix::io::ioctl_fionread(&client).unwrap() > 0
    });
    drop(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "peer-reset", "{}", closed.line);
    assert_no_children(&server);
}

#[test]
fn what_the_client_of_a_unix_socket_has_left_is_read_to_its_end() {
    let home = Home::new();
    let script = "while read x; do sleep 0.2; done; echo all >&2";
    let (mut server, path) = local(&home, &["--half-close-timeout", "4s"], script);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(&b"x\n".repeat(25)).unwrap();
    drop(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    assert!(server.lines.iter().any(|line| line.ends_with("line=all")));
}

#[test]
fn a_process_that_fails_is_told_of() {
    let mut server = script(&[], "exit 3");
    read_to_fin(&mut server.connect());
    server.log_line("its exit status", |line| {
        line.contains(" info a process has failed id=1 ") && line.ends_with(" status=3")
    });

    let mut server = script(&[], "kill -KILL $$");
    read_to_fin(&mut server.connect());
    server.log_line("the signal", |line| {
        line.contains(" warn a process was killed id=1 ") && line.ends_with(" signal=9")
    });

    // One that ends well is not, nor one that is ended.
    let mut server = script(&["--exec-timeout", "100ms"], "read x || exit 0; sleep 1000");
    let client = server.connect();
    client.shutdown(Shutdown::Write).unwrap();
    server.closed();
    let mut client = server.connect();
    client.write_all(b"go on\n").unwrap();
    server.closed();
    let said =
        |line: &&String| line.contains(" a process has ") || line.contains(" a process was ");
    assert_eq!(server.lines.iter().find(said), None);
}
