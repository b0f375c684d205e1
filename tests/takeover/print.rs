//! What `print` writes, over generations: to one stdout, in the order in which it came.

use std::fmt::Write as _;
use std::io::{self, PipeReader, Read, Write};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use crate::control::strangers::Caller;
use crate::support::home::{Home, entry, number};
use crate::support::{GUARD, Server, assert_echoes, connect, output, until};

/// `print` into a pipe that nobody reads yet. The first line is read.
fn printing(home: &Home) -> (Server, PipeReader) {
    let (reader, writer) = io::pipe().unwrap();
    let mut command = home.standfast(&["serve", "print", "-l", "0", "--drain-timeout", "off"]);
    command.stdin(Stdio::null()).stdout(writer);
    let mut server = Server::launch(command);
    let mut line = String::new();
    let mut byte = [0];
    while !line.ends_with('\n') {
        (&reader).read_exact(&mut byte).unwrap();
        line.push(byte[0].into());
    }
    server.addresses = vec![crate::support::listening(line.trim_end())];
    (server, reader)
}

/// 300 KB of lines of one client, more than a pipe holds: the server has read all of them.
fn fill(home: &Home, server: &Server) -> String {
    let mut lines = String::new();
    for number in 0..30_000 {
        writeln!(lines, "{number:09}").unwrap();
    }
    let mut client = server.connect();
    client.write_all(lines.as_bytes()).unwrap();
    until("all is read", || {
        number(&entry(&home.json(&["list"]), &client)["read"]) == lines.len() as u64
    });
    lines
}

#[test]
fn what_a_blocked_stdout_holds_up_comes_before_what_later_generations_get() {
    let home = Home::new();
    let (server, mut reader) = printing(&home);
    let address = server.address();
    let lines = fill(&home, &server);
    let _generations = [home.restart(&[]), home.restart(&[])];
    let mut other = connect(address);
    other.write_all(b"a line of another client\n").unwrap();
    until("it is read", || {
        number(&entry(&home.json(&["list"]), &other)["read"]) == 25
    });
    drop(other);
    let (way, printed) = mpsc::channel();
    thread::spawn(move || {
        let mut printed = Vec::new();
        let read = reader.read_to_end(&mut printed).map(|_| printed);
        let _ = way.send(read);
    });
    home.answer(&["drain"]);
    let printed = printed.recv_timeout(GUARD).unwrap().unwrap();
    let printed = String::from_utf8(printed).unwrap();
    let started = format!("listening on {address}\n");
    let expected = [&*lines, &started, &started, "a line of another client\n"].concat();
    let same = printed
        .bytes()
        .zip(expected.bytes())
        .take_while(|(one, other)| one == other);
    let at = same.count();
    assert!(
        printed == expected,
        "{} of {} bytes, different from {at} on",
        printed.len(),
        expected.len()
    );
}

#[test]
fn a_process_that_waits_for_its_predecessor_ends_at_once_when_told() {
    let home = Home::new();
    let (mut server, reader) = printing(&home);
    fill(&home, &server);
    let (second, _) = home.restart(&[]);
    let _third = home.restart(&[]);
    until("the second has ended", || {
        // A second signal counts half a second after the first.
        second.signal(rustix::process::Signal::TERM);
        second.has_ended()
    });
    drop(reader);
    assert!(server.wait().success(), "the first has nobody to print for");
}

#[test]
fn a_process_that_lingers_is_in_nobodys_way_when_its_successor_was_killed() {
    let home = Home::new();
    let (mut server, _reader) = printing(&home);
    fill(&home, &server);
    home.restart(&[]).0.signal(rustix::process::Signal::KILL);
    let address = server.address().to_string();
    until("nobody answers", || {
        output(home.standfast(&["status", &address])).0 == 1
    });
    assert!(server.is_running(), "it has something to print");
    let mut fresh = home.serve(&["-l", &address]);
    assert_echoes(&mut fresh.connect(), b"hello");
    assert_eq!(home.json(&["status"])["pid"], fresh.pid());
    assert!(fresh.drain().success());
}

#[test]
fn who_asks_a_process_that_was_taken_over_is_sent_on() {
    let home = Home::new();
    let (server, _reader) = printing(&home);
    // It stays for a while: what it has to print is not out.
    fill(&home, &server);
    // The server waits 5 s for a question: a busy machine may need longer for the restart.
    let mut generations = Vec::new();
    for question in [
        "\"status\"",
        "\"list\"",
        "\"drain\"",
        "{\"kill\":{\"id\":1}}",
        "\"restart\"",
    ] {
        let mut answer = None;
        while answer.is_none() {
            let mut early = Caller::connect(&home.socket_of(&server));
            generations.push(home.restart(&[]));
            early.say(question.as_bytes());
            answer = early.hear();
        }
        assert_eq!(answer.unwrap(), b"\"moved\"", "{question}");
    }
    assert_eq!(home.json(&["status"])["draining"], false);
}
