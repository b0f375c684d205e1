//! Hardly any address space is left (`RLIMIT_AS`), and somebody wants something: a table, a thread, a takeover.

use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::control::strangers::Caller;
use crate::support::home::Home;
use crate::support::{Server, assert_echoes, leave_address_space, output, until};

/// A server of one worker with some clients. Without heaps for each thread, for which the C library reserves address space
/// ahead.
fn with_clients(home: &Home, count: usize) -> (Server, Vec<TcpStream>) {
    let mut command = home.standfast(&["serve", "-l", "0", "--workers", "1"]);
    command.env("MALLOC_ARENA_MAX", "1");
    let server = Server::spawn(command, 1);
    let mut clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
    // They are accepted in that order; and every thread of the server's runs by the time it answers.
    if let Some(last) = clients.last_mut() {
        assert_echoes(last, b"all are there");
    }
    home.answer(&["status"]);
    (server, clients)
}

#[test]
fn a_table_that_nobody_reads_takes_no_memory() {
    let home = Home::new();
    let (mut server, mut clients) = with_clients(&home, 4000);
    // What is kept for need goes into the threads of those who ask.
    leave_address_space(&server, 64 << 10);
    let path = home.socket_of(&server);
    let mut asking: Vec<_> = (0..14).map(|_| Caller::connect(&path)).collect();
    asking.iter().for_each(|caller| caller.say(br#""list""#));
    let begun = asking.iter_mut().map(Caller::hear);
    assert_eq!(begun.flatten().count(), 14, "every table has begun");
    for client in clients.iter_mut().take(100) {
        assert_echoes(client, b"and is not read on");
    }
    drop(asking);
    leave_address_space(&server, 64 << 20);
    let table = home.answer(&["list"]);
    assert_eq!(table.lines().count(), 1 + clients.len());
    assert!(server.is_running());
}

#[test]
fn a_question_for_which_there_is_no_thread_ends_nothing() {
    let home = Home::new();
    let (mut server, mut clients) = with_clients(&home, 1);
    // A thread takes some memory before it begins, and some when it has begun.
    for pages in 0..160 {
        until("the server has something for need", || keeps(&server));
        leave_address_space(&server, pages * 4096);
        let (code, _, said) = output(home.standfast(&["status"]));
        assert!(server.is_running(), "with {pages} pages");
        assert_eq!((code, said.as_str()), (0, ""), "with {pages} pages");
    }
    assert_echoes(&mut clients[0], b"and it serves");
}

/// `standfast ARGS...` with less address space than it takes, a bit more each time until it has enough; what it says is told.
fn with_more_and_more(home: &Home, args: &[&str], mut refused: impl FnMut(&str)) {
    for kib in (least(home)..100 << 10).step_by(128) {
        let answer = limited(home, kib, args).output().unwrap();
        let said = String::from_utf8(answer.stderr).unwrap();
        let code = answer.status.code();
        if code == Some(0) {
            return;
        }
        let one = said.lines().count() == 1 && said.starts_with("standfast: ");
        assert!(
            one && code == Some(1),
            "{args:?} in {kib} KiB: {code:?}, {said}"
        );
        refused(&said);
    }
    panic!("{args:?}: never enough");
}

#[test]
fn a_command_for_which_there_is_no_memory_says_so_in_one_line() {
    let home = Home::new();
    let server = home.serve(&[]);
    let address = server.address().to_string();
    let mut words = String::new();
    let mut refused = |said: &str| words.push_str(said);
    let load = ["load", &address, "-c", "300", "-T", "100ms", "-q"];
    with_more_and_more(&home, &load, &mut refused);
    with_more_and_more(&home, &["check"], &mut refused);
    with_more_and_more(&home, &["connect", "-z", &address], &mut refused);
    assert!(words.contains("standfast: out of memory: "), "{words}");
}

#[test]
fn a_successor_for_which_there_is_no_memory_says_so_in_one_line_and_loses_nobody() {
    let home = Home::new();
    let (mut server, mut clients) = with_clients(&home, 300);
    let address = server.address().to_string();
    let args = ["serve", "--replace", "--workers", "1", "-l", &address];
    for (refused, kib) in (least(&home)..100 << 10).step_by(1024).enumerate() {
        let mut command = limited(&home, kib, &args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut next = Server::launch(command);
        until("one of the two has ended", || {
            !server.is_running() || !next.is_running()
        });
        if next.is_running() {
            assert_eq!(server.wait().code(), Some(0));
            for client in &mut clients {
                assert_echoes(client, b"and now with enough");
            }
            assert!(refused > 0);
            return;
        }
        let code = next.wait().code();
        let said: Vec<_> = next.lines.iter().filter(|line| !is_log(line)).collect();
        let one = said.len() == 1 && said[0].starts_with("standfast: ");
        assert!(one && code == Some(1), "in {kib} KiB: {code:?}, {said:?}");
        assert_echoes(&mut clients[0], b"and the old one goes on");
    }
    panic!("never enough");
}

/// So many KiB are needed before there is a program at all: with less the loader fails (ld.so(8)).
fn least(home: &Home) -> u32 {
    let mut runs = (8 << 10..100 << 10).step_by(1024).filter(|kib| {
        let mut command = limited(home, *kib, &["--version"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // Or says itself that it has no room.
        matches!(command.status().unwrap().code(), Some(0 | 1))
    });
    runs.next().unwrap()
}

/// Whether a line of stderr is the log's.
fn is_log(line: &str) -> bool {
    line.starts_with(|first: char| first.is_ascii_digit())
}

/// `standfast ARGS...` with that much address space.
fn limited(home: &Home, kib: u32, args: &[&str]) -> Command {
    let mut command = home.shell(&format!("ulimit -v {kib}; exec \"$@\""), args);
    // Without heaps for each thread, for which the C library reserves address space ahead.
    command.env("MALLOC_ARENA_MAX", "1");
    command
}

/// Whether it has address space in which nothing is, enough for a time of need.
fn keeps(server: &Server) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        rest.starts_with("---p") && rest.ends_with(" 0 ") && address(to) - address(from) >= 1 << 20
    })
}
