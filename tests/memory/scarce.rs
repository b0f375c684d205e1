//! Hardly any address space is left (`RLIMIT_AS`), and somebody wants something: a table, a thread, a takeover.

use std::net::TcpStream;

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
