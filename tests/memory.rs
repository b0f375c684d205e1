//! The budget for all that waits: who gets how much of it, and what happens near its end.

mod scarce;

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use serde_json::Value;
use socket2::SockRef;

use crate::support::clients::{Stream, connect_with_window, reset};
use crate::support::home::{Home, entry, number, refusal};
use crate::support::{Server, assert_echoes, leave_address_space, output, send_until_stuck, until};

const MIB: u64 = 1 << 20;

/// What the status says of the memory. A server that has no memory for the thread that answers is asked again.
fn memory(home: &Home) -> Value {
    let mut memory = Value::Null;
    until("the status is answered", || {
        let (code, answer, _) = output(home.standfast(&["status", "--json"]));
        if code == 0 {
            memory = serde_json::from_str::<Value>(&answer).unwrap()["memory"].clone();
        }
        code == 0
    });
    memory
}

/// Clients that send without end and never read, until nothing moves any more.
fn hogs(home: &Home, server: &Server, count: usize) -> Vec<TcpStream> {
    let mut hogs: Vec<_> = (0..count)
        .map(|_| {
            let hog = connect_with_window(server.address(), 4096);
            hog.set_nonblocking(true).unwrap();
            hog
        })
        .collect();
    let mut before = None;
    until("what waits stays the same", || {
        let mut moved = false;
        for hog in &mut hogs {
            while hog.write(&[b'x'; 65536]).is_ok() {
                moved = true;
            }
        }
        let held = number(&memory(home)["held"]);
        before.replace(held) == Some(held) && !moved && held > 0
    });
    hogs
}

#[test]
fn what_waits_for_those_who_never_read_is_bounded_and_others_are_served() {
    let home = Home::new();
    let server = home.serve(&["--memory", "1m", "--workers", "2"]);
    let mark = memory(&home)["mark"].clone();
    assert_eq!(mark, Value::Null, "each listener's buffer is it as yet");
    let hogs = hogs(&home, &server, 24);
    let memory = memory(&home);
    assert!(number(&memory["mark"]) < 256 << 10, "{memory}");
    let held = number(&memory["held"]);
    assert_eq!(number(&memory["limit"]), MIB);
    assert!(held <= MIB, "{memory}");
    assert!(held > MIB / 2, "it is used: {memory}");
    let list = home.json(&["list"]);
    let holds = hogs.iter().map(|hog| number(&entry(&list, hog)["held"]));
    assert_eq!(holds.sum::<u64>(), held, "{list}");
    let mut quick = server.connect();
    for round in 0..100_usize {
        assert_echoes(&mut quick, &[b'q'; 3000][..30 * (round + 1)]);
    }
    let table = home.answer(&["status"]);
    let waiting = table.lines().find(|line| line.starts_with("waiting"));
    assert!(
        waiting.is_some_and(|line| line.contains(" of 1m output=")),
        "{table}"
    );
}

#[test]
fn who_was_not_read_for_want_of_memory_is_read_once_there_is_some() {
    let home = Home::new();
    let server = home.serve(&["--memory", "1m", "--workers", "2"]);
    let hogs = hogs(&home, &server, 24);
    let mut late = connect_with_window(server.address(), 4096);
    late.set_nonblocking(true).unwrap();
    let mut stream = Stream::default();
    let mut push = |late: &mut TcpStream| {
        while let Ok(count) = late.write(&stream.peek(16 << 10)) {
            stream.skip(count);
        }
        stream.at
    };
    let read = |late: &TcpStream| number(&entry(&home.json(&["list"]), late)["read"]);
    let mut before = None;
    until("it is not read any more", || {
        let now = (push(&mut late), read(&late));
        before.replace(now) == Some(now)
    });
    let before = read(&late);
    hogs.into_iter().for_each(reset);
    // Nothing new comes of it, and it reads nothing.
    until("it is read again", || read(&late) >= before + 64 * 1024);
    let sent = push(&mut late);
    late.set_nonblocking(false).unwrap();
    late.shutdown(Shutdown::Write).unwrap();
    // Through a window that small it would take a minute.
    SockRef::from(&late).set_recv_buffer_size(4 << 20).unwrap();
    assert_eq!(Stream::default().read_to_fin(&mut late), sent);
    drop(late);
    until("nothing is held", || number(&memory(&home)["held"]) == 0);
}

#[test]
fn half_a_line_of_everybody_is_bounded_too() {
    let home = Home::new();
    let server = home.serve(&["print", "--memory", "1m", "--workers", "2"]);
    let mut clients: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.set_nonblocking(true).unwrap();
        let _ = client.write(&[b'x'; 50_000]);
    }
    let mut before = 0;
    until("what waits stays the same", || {
        let held = number(&memory(&home)["waiting"][1][1]);
        std::mem::replace(&mut before, held) == held && held > 0
    });
    assert!(before > MIB / 2 && before <= MIB, "{before}");
}

#[test]
fn what_waits_counts_in_the_process_that_takes_over() {
    let home = Home::new();
    let mut server = home.serve(&["--memory", "2m"]);
    let hogs = hogs(&home, &server, 4);
    let before = memory(&home);
    let address = server.address().to_string();
    let _next = server.replaced_by(1, || {
        home.standfast(&["serve", "--replace", "--memory", "1m", "-l", &address])
    });
    let status = home.json(&["status"]);
    let after = &status["memory"];
    assert_eq!(number(&after["limit"]), MIB, "{status}\n{:?}", server.lines);
    let waiting = |list: &Value| -> u64 {
        hogs.iter()
            .map(|hog| number(&entry(list, hog)["waiting"]))
            .sum()
    };
    let waiting = waiting(&home.json(&["list"]));
    let held = number(&after["held"]);
    assert!(held >= waiting && waiting > 0, "{before} {after}");
}

#[test]
fn too_little_memory_to_serve_anybody_is_refused() {
    let home = Home::new();
    for command in ["serve", "check"] {
        let (code, line) = refusal(home.standfast(&[command, "--memory", "1000k"]));
        assert_eq!(code, 2);
        assert!(line.contains("at least 1m"), "{line}");
    }
}

#[test]
fn a_process_that_gets_no_more_memory_serves_on() {
    let home = Home::new();
    let flags = ["--memory", "1g", "--buffer", "2m", "--workers", "2"];
    let mut command = home.standfast(&["serve", "-l", "0"]);
    command.args(flags);
    // Without heaps for each thread, for which the C library reserves address space ahead.
    command.env("MALLOC_ARENA_MAX", "1");
    let mut server = Server::spawn(command, 1);
    let mut early = server.connect();
    assert_echoes(&mut early, b"there is memory yet");
    // By then every thread runs: none may begin without memory.
    home.answer(&["status"]);
    // Less than the buffers of a few; beside the status that is asked for meanwhile.
    leave_address_space(&server, 8 << 20);
    let mut hogs = hogs(&home, &server, 16);
    until("there is less to have than was thought", || {
        for hog in &mut hogs {
            while hog.write(&[b'x'; 65536]).is_ok() {}
        }
        number(&memory(&home)["limit"]) < 64 * MIB
    });
    server.log_line("what it makes of that", |line| {
        line.contains(" warn out of memory, no more than that waits from here on ")
    });
    let memory = memory(&home);
    assert!(number(&memory["limit"]) < 64 << 20, "{memory}");
    for round in 0..50_usize {
        assert_echoes(&mut early, &[b'q'; 3000][..60 * (round + 1)]);
        if round % 10 == 0 {
            assert_echoes(&mut server.connect(), b"and who is new");
        }
    }
    assert!(server.is_running());
    let list = home.json(&["list"]);
    let there = hogs.iter().map(|hog| entry(&list, hog));
    assert_eq!(there.count(), 16, "and nobody was cut off");
}

#[test]
fn a_process_with_less_memory_left_than_it_keeps_for_need_serves_on_and_has_more_once_there_is() {
    let home = Home::new();
    let mut command = home.standfast(&["serve", "-l", "0", "--workers", "1"]);
    command.args(["--memory", "1g", "--buffer", "2m"]);
    command.env("MALLOC_ARENA_MAX", "1");
    let mut server = Server::spawn(command, 1);
    let mut early = server.connect();
    assert_echoes(&mut early, b"there is memory yet");
    // By then every thread runs: none may begin without memory.
    home.answer(&["status"]);
    let mut hog = connect_with_window(server.address(), 4096);
    // The 8 MiB that it keeps are more than there is when they are given up.
    leave_address_space(&server, (800 << 10) - (8 << 20));
    let sending = std::thread::spawn(move || {
        send_until_stuck(&mut hog, &[b'x'; 65536]);
        hog
    });
    server.log_line("what it makes of that", |line| {
        line.contains(" warn out of memory, no more than that waits from here on ")
    });
    let _hog = sending.join().unwrap();
    assert_echoes(&mut early, b"and who needs none is served");
    leave_address_space(&server, 2 << 30);
    server.log_line("what may wait then", |line| {
        line.contains(" info there is memory again, so much may wait ")
            && line.contains("budget=1073741824")
    });
    assert_eq!(number(&memory(&home)["limit"]), 1 << 30);
}

#[test]
fn a_crowd_for_which_there_is_no_memory_waits_and_ends_nobody() {
    let home = Home::new();
    let mut command = home.standfast(&["serve", "-l", "0", "--workers", "1"]);
    command.env("MALLOC_ARENA_MAX", "1");
    let mut server = Server::spawn(command, 1);
    let mut early = server.connect();
    assert_echoes(&mut early, b"there is memory yet");
    // By then every thread runs: none may begin without memory.
    home.answer(&["status"]);
    // Less than the crowd takes.
    leave_address_space(&server, 64 << 10);
    let crowd: Vec<_> = (0..900).map(|_| server.connect()).collect();
    server.log_line("newcomers wait", |line| {
        line.contains(" warn accepting paused, clients wait in the backlog ")
            && line.contains("errno=ENOMEM")
    });
    assert!(server.is_running());
    assert_echoes(&mut early, b"who was there is served");
    leave_address_space(&server, 64 << 20);
    for mut client in crowd {
        assert_echoes(&mut client, b"and who waited, once there is memory");
    }
}

#[test]
fn who_holds_most_of_half_lines_makes_room_for_the_others() {
    let home = Home::new();
    let flags = ["hub", "--memory", "1m", "--write-timeout", "2s"];
    let mut server = home.serve(&flags);
    // Each more than its share: nobody can come to the end of its line.
    let halves: Vec<_> = (0..64)
        .map(|_| {
            let mut client = server.connect();
            client.write_all(&[b'x'; 60_000]).unwrap();
            client
        })
        .collect();
    let closed = server.closed();
    let told = ["reason", "limit"].map(|key| closed.get(key));
    assert_eq!(told, ["limit", "memory"], "{}", closed.line);
    drop(halves);
}
