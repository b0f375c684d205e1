//! Every byte arrives once, in order, whatever waited where.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::clients::{Raised, Stream, connect_with_window, send_all, until_acknowledged};
use crate::support::home::{Home, entry, number};
use crate::support::{GUARD, Server, assert_echoes, connect, listening, pass, read_to_fin, until};

/// The entry's numbers under `keys`.
fn counts<const N: usize>(home: &Home, client: &TcpStream, keys: [&str; N]) -> [u64; N] {
    let list = home.json(&["list"]);
    keys.map(|key| number(&entry(&list, client)[key]))
}

#[test]
fn megabytes_that_wait_for_a_slow_reader_arrive() {
    const COUNT: u64 = 7 << 20;
    let home = Home::new();
    let args = ["--buffer", "8m"];
    let mut server = home.serve(&args);
    // One stays open; the other has ended, and waits for its answer.
    let mut clients = [(); 2].map(|()| connect_with_window(server.address(), 65536));
    let mut sent = Stream::default();
    let bytes = sent.next(usize::try_from(COUNT).unwrap());
    for client in &mut clients {
        client.write_all(&bytes).unwrap();
    }
    clients[1].shutdown(Shutdown::Write).unwrap();
    until("all is read, and waits", || {
        clients
            .iter()
            .all(|client| counts(&home, client, ["read"]) == [COUNT])
    });
    let waiting = |client: &TcpStream| counts(&home, client, ["waiting"])[0];
    let before = waiting(&clients[0]);
    assert!(before > 1 << 20, "{before}");
    for _ in 0..2 {
        server = home.succeed(&mut server, &args);
        let after = waiting(&clients[0]);
        assert!(after > 1 << 20 && after <= before, "{after}");
    }
    let [mut open, mut ended] = clients;
    Stream::default().read(&mut open, COUNT);
    assert_echoes(&mut open, b"and on");
    assert_eq!(Stream::default().read_to_fin(&mut ended), COUNT);
    drop((open, ended));
    for _ in 0..2 {
        assert_eq!(server.closed().reason(), "peer-closed");
    }
    assert!(server.drain().success());
}

#[test]
fn input_that_was_not_read_yet_is_read_by_the_next() {
    const COUNT: u64 = 24 << 20;
    let home = Home::new();
    let args = ["--buffer", "64k", "--workers", "2"];
    let mut server = home.serve(&args);
    let mut clients: Vec<_> = (0..3)
        .map(|_| connect_with_window(server.address(), 65536))
        .collect();
    let sending: Vec<_> = clients
        .iter()
        .map(|client| send_all(client, COUNT))
        .collect();
    let mut streams: Vec<_> = clients.iter().map(|_| Stream::default()).collect();
    for _ in 0..4 {
        let mut before = None;
        until("nothing moves", || {
            let now = [0, 1, 2].map(|at| counts(&home, &clients[at], ["read", "written"]));
            now.iter().all(|counts| counts[0] > 0) && before.replace(now) == Some(now)
        });
        server = home.succeed(&mut server, &args);
        for (stream, client) in streams.iter_mut().zip(&mut clients) {
            stream.read(client, 3 << 20);
        }
    }
    for (stream, client) in streams.iter_mut().zip(&mut clients) {
        assert_eq!(stream.read_to_fin(client), COUNT);
    }
    sending
        .into_iter()
        .for_each(|sending| sending.join().unwrap());
}

#[test]
fn under_full_load_no_byte_is_lost_doubled_or_moved() {
    const COUNT: u64 = 48 << 20;
    let home = Home::new();
    let mut server = home.serve(&["--workers", "2"]);
    let address = server.address();
    let receiving: Vec<_> = (0..3)
        .map(|_| {
            let mut client = connect(address);
            let sending = send_all(&client, COUNT);
            thread::spawn(move || {
                assert_eq!(Stream::default().read_to_fin(&mut client), COUNT);
                sending.join().unwrap();
            })
        })
        .collect();
    let mut generations = 0;
    while !receiving.iter().all(thread::JoinHandle::is_finished) && generations < 10 {
        server = home.succeed(&mut server, &["--workers", "2"]);
        generations += 1;
    }
    receiving.into_iter().for_each(|one| one.join().unwrap());
    assert!(generations > 0);
}

#[test]
fn discard_reads_on() {
    let home = Home::new();
    let mut server = home.serve(&["discard"]);
    let mut client = server.connect();
    client.write_all(&[b'x'; 100_000]).unwrap();
    until_acknowledged(&client);
    let mut next = home.succeed(&mut server, &["discard"]);
    client.write_all(&[b'x'; 100_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    let closed = next.closed();
    assert_eq!(
        (closed.get("read"), closed.reason()),
        ("200000", "peer-closed")
    );
}

#[test]
fn a_line_begun_before_is_printed_whole_by_the_next() {
    let home = Home::new();
    let mut server = home.serve(&["print"]);
    let mut client = server.connect();
    client.write_all(b"whole\nfirst half,").unwrap();
    assert_eq!(server.stdout_line(), "whole");
    let mut next = home.succeed(&mut server, &["print"]);
    assert_eq!(server.stdout_rest(), b"", "no half line");
    client.write_all(b" and the rest\n").unwrap();
    assert_eq!(next.stdout_line(), "first half, and the rest");
    client.write_all(b"an end without a newline").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    assert!(next.drain().success());
    assert_eq!(next.stdout_rest(), b"an end without a newline");
}

/// Says numbered lines until `over`, in pieces that end anywhere. Answers how many.
fn talk(address: SocketAddr, name: usize, over: &AtomicBool) -> u64 {
    let mut client = connect(address);
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let filler = "=".repeat(usize::try_from(count * 7919 % 300).unwrap());
        let line = format!("client {name} line {count} {filler}|\n");
        let (one, two) = line.split_at(line.len() / 2);
        client.write_all(one.as_bytes()).unwrap();
        client.write_all(two.as_bytes()).unwrap();
        count += 1;
        if count % 16 == 0 {
            pass(Duration::from_millis(1));
        }
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    count
}

#[test]
fn print_restarted_on_its_own_stdout_tears_no_line_and_keeps_the_order() {
    const CLIENTS: usize = 4;
    let home = Home::new();
    let mut server = home.serve(&["print", "--drain-timeout", "off"]);
    let address = server.address();
    let over = AtomicBool::new(false);
    let (generations, said) = thread::scope(|scope| {
        let raised = Raised(&over);
        let talking: Vec<_> = (0..CLIENTS)
            .map(|name| {
                let over = &over;
                scope.spawn(move || talk(address, name, over))
            })
            .collect();
        // Each one has to live until it has printed what it took: to the end of the output.
        let mut generations = Vec::new();
        for _ in 0..4 {
            pass(Duration::from_millis(30));
            generations.push(home.restart(&[]));
        }
        drop(raised);
        let said: Vec<u64> = talking.into_iter().map(|one| one.join().unwrap()).collect();
        (generations, said)
    });
    // The answer to a client's FIN says that its lines were taken, not that they are on stdout.
    home.answer(&["drain"]);
    let printed = String::from_utf8(server.stdout_rest()).unwrap();
    drop(generations);
    let mut counts = HashMap::new();
    for line in printed
        .lines()
        .filter(|line| !line.starts_with("listening on "))
    {
        let words: Vec<_> = line.split(' ').collect();
        assert!(words.len() == 5 && line.ends_with('|'), "torn: {line}");
        let count = counts.entry(words[1].to_owned()).or_insert(0);
        assert_eq!(words[3].parse::<u64>().unwrap(), *count, "{line}");
        *count += 1;
    }
    for (name, said) in said.iter().enumerate() {
        assert_eq!(counts.get(&name.to_string()), Some(said), "client {name}");
    }
}

/// A server whose stdout is read only when the test reads it.
fn print_into_pipe(home: &Home, args: &[&str]) -> (Server, BufReader<PipeReader>, SocketAddr) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = home.standfast(&["serve", "print", "-l", "0"]);
    command.args(args).stdout(writer);
    let server = Server::launch(command);
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let address = listening(line.trim_end());
    (server, reader, address)
}

#[test]
fn what_a_blocked_stdout_did_not_take_yet_is_not_lost() {
    const COUNT: usize = 3 << 20;
    let home = Home::new();
    let args = ["--drain-timeout", "1", "--buffer", "64k"];
    let (mut server, mut stdout, address) = print_into_pipe(&home, &args);
    let mut client = connect(address);
    let line = [&[b'='; 98][..], b"|\n"].concat();
    let text = line.repeat(COUNT / line.len());
    let sending = thread::spawn({
        let (client, text) = (client.try_clone().unwrap(), text.clone());
        move || {
            let mut client = client;
            client.write_all(&text).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut before = None;
    until("nothing moves", || {
        let now = counts(&home, &client, ["read"]);
        now[0] > 0 && before.replace(now) == Some(now)
    });
    let mut command = home.successor(&[address], &["print", "--buffer", "64k"]);
    command.stdout(std::process::Stdio::piped());
    let mut next = Server::launch(command);
    next.log_line("it", |line| line.contains(" info took over "));
    pass(Duration::from_millis(2500));
    assert!(server.is_running(), "it has something to print yet");
    let mut first = Vec::new();
    stdout.read_to_end(&mut first).unwrap();
    assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
    assert_eq!(listening(&next.stdout_line()), address);
    sending.join().unwrap();
    client.set_read_timeout(Some(GUARD)).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    assert!(next.drain().success());
    let second = next.stdout_rest();
    assert!(!first.is_empty() && first.ends_with(b"|\n"), "whole lines");
    let all = [first, second].concat();
    assert!(all == text, "{} of {} bytes", all.len(), text.len());
}
