//! Connection limits, running out of descriptors, bursts, and how connections spread over the workers.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::clients::connect_from;
use crate::support::{
    Server, assert_echoes, cannot_run, connect, facts, leave_descriptors, now, output, pass,
    read_to_fin, shell,
};

// Limits on connections.

#[test]
fn over_max_conns_a_client_is_closed_with_reason_limit() {
    let mut server = Server::start(&["--max-conns", "2"]);
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    for id in ["3", "4", "5"] {
        let mut over = server.connect();
        assert_eq!(read_to_fin(&mut over), b"", "FIN, no reset");
        let closed = server.closed();
        let told = ["id", "reason", "read", "written"].map(|key| closed.get(key));
        assert_eq!(told, [id, "limit", "0", "0"]);
        assert_eq!(closed.get("limit"), "max-conns");
        assert_eq!(closed.get("peer"), over.local_addr().unwrap().to_string());
    }
    let [mut stays, leaves] = clients;
    drop(leaves);
    assert_eq!(server.closed().reason(), "peer-closed");
    assert_echoes(&mut server.connect(), b"there is room again");
    assert_echoes(&mut stays, b"and those who were there");
    assert!(server.drain().success());
    let ended = server.summary();
    assert_eq!((&*ended["accepted"], &*ended["limit"]), ("6", "3"));
    let warned = server.lines.iter().filter(|line| line.contains(" warn "));
    assert_eq!(warned.count(), 1, "{}", server.lines.join("\n"));
}

#[test]
fn when_full_clients_wait_in_the_backlog_if_asked() {
    let flags = ["--max-conns", "1", "--when-full", "wait", "--workers", "2"];
    let mut server = Server::start(&flags);
    let mut first = server.connect();
    assert_echoes(&mut first, b"hello");
    let mut second = server.connect();
    let mut third = server.connect();
    for client in [&mut second, &mut third] {
        client.write_all(b"hello").unwrap();
    }
    server.log_line("the limit", |line| {
        line.contains(" warn connection limit reached, clients wait in the backlog")
    });
    assert_idle(&server);
    for client in [&mut second, &mut third] {
        assert_has_no_answer(client);
    }
    assert_echoes(&mut first, b"and the first goes on");
    drop(first);
    assert_answer(&mut second, b"hello");
    assert_has_no_answer(&mut third);
    drop(second);
    assert_answer(&mut third, b"hello");
    drop(third);
    for _ in 0..3 {
        assert_eq!(server.closed().reason(), "peer-closed");
    }
    assert!(server.drain().success());
    let ended = server.summary();
    assert_eq!((&*ended["accepted"], &*ended["peer-closed"]), ("3", "3"));
}

/// Nothing has come for `client` yet.
fn assert_has_no_answer(client: &mut TcpStream) {
    client.set_nonblocking(true).unwrap();
    let error = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    client.set_nonblocking(false).unwrap();
}

fn assert_answer(client: &mut TcpStream, bytes: &[u8]) {
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, bytes);
}

/// The server spends next to nothing on waiting.
fn assert_idle(server: &Server) {
    let before = server.cpu();
    pass(Duration::from_secs(1));
    let spent = server.cpu() - before;
    assert!(spent <= Duration::from_millis(100), "{spent:?} in a second");
}

#[test]
fn whichever_worker_a_client_leaves_makes_room_for_one_that_waits() {
    let flags = ["--max-conns", "3", "--when-full", "wait", "--workers", "3"];
    let mut server = Server::start(&[&flags[..], &["-v"]].concat());
    let mut clients: HashMap<_, _> = (0..3).map(|_| server.connect()).map(by_address).collect();
    for _ in 0..2 {
        let workers = opened(&mut server, 3);
        assert_eq!(workers.len(), 3, "one each");
        for peers in workers.values() {
            let (near, mut waiting) = by_address(server.connect());
            waiting.write_all(b"hello").unwrap();
            // Time for the server to find that there is no room; if that is too little, nothing is proved or broken.
            pass(Duration::from_millis(100));
            assert_has_no_answer(&mut waiting);
            drop(clients.remove(&peers[0]));
            assert_answer(&mut waiting, b"hello");
            clients.insert(near, waiting);
        }
    }
}

/// A client and its own address, as the log has it.
fn by_address(client: TcpStream) -> (String, TcpStream) {
    (client.local_addr().unwrap().to_string(), client)
}

#[test]
fn nobody_is_forgotten_in_the_backlog() {
    let flags = [
        "-q",
        "--max-conns",
        "3",
        "--when-full",
        "wait",
        "--workers",
        "4",
    ];
    let server = Server::start(&flags);
    let address = server.address();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(move || {
                for _ in 0..200 {
                    assert_echoes(&mut connect(address), b"hello");
                }
            });
        }
    });
}

#[test]
fn the_limit_of_one_address_leaves_the_others_alone() {
    for when_full in ["close", "wait"] {
        let flags = [
            "-l",
            ":0",
            "--max-conns-per-ip",
            "2",
            "--when-full",
            when_full,
        ];
        let mut server = Server::start(&flags);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.address().port()));
        let mut clients = [connect(address), connect(address)];
        for client in &mut clients {
            assert_echoes(client, b"hello");
        }
        let mut over = connect(address);
        assert_eq!(read_to_fin(&mut over), b"");
        let closed = server.closed();
        assert_eq!(closed.reason(), "limit");
        assert_eq!(closed.get("limit"), "max-conns-per-ip", "{}", closed.line);
        let other = Ipv4Addr::new(127, 0, 0, 9);
        assert_echoes(&mut connect_from(other, address), b"hello");
        assert_eq!(server.closed().reason(), "peer-closed");
        let [mut stays, leaves] = clients;
        drop(leaves);
        assert_eq!(server.closed().reason(), "peer-closed");
        assert_echoes(&mut connect(address), b"there is room again");
        assert_echoes(&mut stays, b"and the first goes on");
    }
}

#[test]
fn a_flood_over_the_limit_hurts_nobody() {
    let mut server = Server::start(&["--max-conns", "10"]);
    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    let address = server.address();
    thread::scope(|scope| {
        let floods: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    for _ in 0..500 {
                        assert_eq!(read_to_fin(&mut connect(address)), b"");
                    }
                })
            })
            .collect();
        while floods.iter().any(|flood| !flood.is_finished()) {
            for client in &mut clients {
                let start = now();
                assert_echoes(client, b"hello");
                assert!(
                    start.elapsed() < Duration::from_secs(10),
                    "{:?}",
                    start.elapsed()
                );
            }
        }
    });
    assert!(server.drain().success());
    let ended = server.summary();
    assert_eq!((&*ended["accepted"], &*ended["limit"]), ("2010", "2000"));
    // A busy machine's standstills are another matter.
    let warned = server.lines.iter().filter(|line| line.contains(" warn "));
    let warned: Vec<_> = warned
        .filter(|line| !line.contains(" stood still"))
        .collect();
    assert_eq!(warned.len(), 1, "the log is spared: {warned:?}");
}

// Descriptors.

#[test]
fn the_descriptor_limit_caps_max_conns() {
    let script = r#"ulimit -n 100; exec "$@""#;
    let command = shell(script, &["serve", "-l", "0", "--max-conns", "1000"]);
    let mut server = Server::spawn(command, 1);
    let mut clients: Vec<_> = (0..36).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    assert_eq!(read_to_fin(&mut server.connect()), b"");
    assert_eq!(server.closed().reason(), "limit");
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    let capped = server.lines.iter().find(|line| line.contains("capped"));
    let capped = facts(capped.expect("a word about the cap"));
    assert_eq!((&*capped["asked"], &*capped["allowed"]), ("1000", "36"));

    let (code, stdout, _) = output(shell(script, &["check", "--max-conns", "1000"]));
    assert_eq!(code, 0);
    for (name, value) in [("max-conns", "36"), ("descriptors", "100")] {
        let row = stdout
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        let shown = row.unwrap().split_whitespace().nth(1);
        assert_eq!(shown, Some(value), "{name}");
    }
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let script = r#"ulimit -S -n 70; ulimit -H -n 300; exec "$@""#;
    let mut server = Server::spawn(shell(script, &["serve", "-l", "0"]), 1);
    let line = server.log_line("the listener", |line| line.contains(" info listening "));
    assert_eq!(facts(&line)["max_conns"], "236");
    let mut clients: Vec<_> = (0..236).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
}

#[test]
fn too_few_descriptors_to_start_are_said() {
    let command = shell(r#"ulimit -n 7; exec "$@""#, &["serve", "-l", "0"]);
    let (code, stdout, stderr) = output(command);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    let [line] = stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("one line:\n{stderr}")
    };
    assert!(
        line.starts_with("standfast: ") && line.contains("ulimit -n"),
        "{line}"
    );
}

#[test]
fn out_of_descriptors_it_neither_spins_nor_stalls_and_resumes_by_itself() {
    for workers in ["1", "3"] {
        // The control socket's accept(2) holds a descriptor ready, which no list shows.
        let mut server = Server::start(&["--workers", workers, "--control", "off"]);
        // The clients' have the highest numbers then, and each that leaves makes room.
        server.descriptors_at_rest();
        let mut old: Vec<_> = (0..10).map(|_| server.connect()).collect();
        for client in &mut old {
            assert_echoes(client, b"hello");
        }
        leave_descriptors(&server, 3);
        let mut new: Vec<_> = (0..20).map(|_| server.connect()).collect();
        for (at, client) in new.iter_mut().enumerate() {
            client.write_all(&[u8::try_from(at).unwrap()]).unwrap();
        }
        let line = server.log_line("the pause", |line| line.contains(" accepting paused"));
        assert!(line.contains(" warn "), "{line}");
        assert_eq!(facts(&line)["errno"], "EMFILE");
        assert_idle(&server);
        // Those that are open do not notice; those that wait are not turned away.
        for client in &mut old {
            assert_echoes(client, b"hello");
        }
        let (served, waiting) = new.split_at_mut(3);
        for (at, client) in served.iter_mut().enumerate() {
            assert_answer(client, &[u8::try_from(at).unwrap()]);
        }
        for client in &mut *waiting {
            assert_has_no_answer(client);
        }
        // Each that leaves makes room for one.
        for (gone, client) in old.drain(..).enumerate() {
            drop(client);
            let at = u8::try_from(3 + gone).unwrap();
            assert_answer(&mut waiting[gone], &[at]);
        }
        new.drain(..13);
        for (gone, client) in new.iter_mut().enumerate() {
            assert_answer(client, &[u8::try_from(13 + gone).unwrap()]);
        }
        server.log_line("the end of it", |line| {
            line.contains(" info accepting resumed")
        });
        assert_echoes(&mut server.connect(), b"hello");
        assert!(server.drain().success());
        let paused = server
            .lines
            .iter()
            .filter(|line| line.contains(" accepting paused"));
        assert_eq!(paused.count(), 1, "{}", server.lines.join("\n"));
        assert_eq!(server.summary()["accepted"], "31");
    }
}

#[test]
fn when_descriptors_come_back_from_elsewhere_accepting_resumes_by_itself() {
    let mut server = Server::start(&[]);
    let mut old = server.connect();
    assert_echoes(&mut old, b"hello");
    leave_descriptors(&server, 0);
    let mut waiting = server.connect();
    waiting.write_all(b"hello").unwrap();
    server.log_line("the pause", |line| line.contains(" accepting paused"));
    // No connection closes and none comes: only the server itself can notice.
    leave_descriptors(&server, 10);
    assert_answer(&mut waiting, b"hello");
    assert_echoes(&mut old, b"hello");
}

#[test]
fn out_of_descriptors_it_still_drains() {
    let mut server = Server::start(&[]);
    let mut old = server.connect();
    assert_echoes(&mut old, b"hello");
    leave_descriptors(&server, 0);
    let _waiting = server.connect();
    server.log_line("the pause", |line| line.contains(" accepting paused"));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(read_to_fin(&mut old), b"");
    drop(old);
    assert_eq!(server.wait().code(), Some(0));
}

// Bursts and balance.

#[test]
fn a_burst_of_connects_is_served_in_full() {
    const CLIENTS: usize = 3_000;
    const TEST: &str = "a_burst_of_connects_is_served_in_full";
    let descriptors = standfast::process::raise_descriptor_limit().unwrap_or(u64::MAX);
    if descriptors < 2 * CLIENTS as u64 {
        return cannot_run(TEST, "6000 descriptors (ulimit -Hn)");
    }
    let mut server = Server::start(&["-q"]);
    let address = server.address();
    let mut clients: Vec<TcpStream> = thread::scope(|scope| {
        let burst = || {
            (0..CLIENTS / 4)
                .map(|_| connect(address))
                .collect::<Vec<_>>()
        };
        let bursts: Vec<_> = (0..4).map(|_| scope.spawn(burst)).collect();
        let clients = bursts.into_iter().flat_map(|burst| burst.join().unwrap());
        clients.collect()
    });
    for (at, client) in clients.iter_mut().enumerate() {
        client.write_all(&at.to_le_bytes()).unwrap();
    }
    for (at, client) in clients.iter_mut().enumerate() {
        assert_answer(client, &at.to_le_bytes());
    }
    drop(clients);
    assert!(server.drain().success());
}

/// How many of the connections that opened since the last look each worker has.
fn opened(server: &mut Server, count: usize) -> HashMap<String, Vec<String>> {
    let mut workers: HashMap<String, Vec<String>> = HashMap::new();
    for _ in 0..count {
        let line = server.log_line("an opening", |line| line.contains(" debug opened "));
        let facts = facts(&line);
        let peers = workers.entry(facts["worker"].clone()).or_default();
        peers.push(facts["peer"].clone());
    }
    workers
}

#[test]
fn long_lived_connections_spread_evenly_over_the_workers() {
    let mut server = Server::start(&["--workers", "4", "-v"]);
    let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    let mut workers = opened(&mut server, 100);
    for (worker, peers) in &workers {
        assert_eq!(peers.len(), 25, "of worker {worker}");
    }
    assert_eq!(workers.len(), 4);
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    // All of one worker's leave, and half of another's: who comes next takes their places.
    let mut leaving = workers.remove("2").unwrap();
    leaving.extend(workers["1"].iter().take(12).cloned());
    clients.retain(|client| !leaving.contains(&client.local_addr().unwrap().to_string()));
    assert_eq!(clients.len(), 63);
    for _ in 0..37 {
        server.closed();
    }
    clients.extend((0..37).map(|_| server.connect()));
    let workers = opened(&mut server, 37);
    assert_eq!(workers["2"].len(), 25);
    assert_eq!(workers["1"].len(), 12);
}

#[test]
fn one_worker_has_them_all() {
    let mut server = Server::start(&["--workers", "1", "-v"]);
    let _clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    assert_eq!(opened(&mut server, 10)["0"].len(), 10);
}

/// A pair has two sockets, a process three descriptors: the limit says so, and serves somebody however low it is.
#[test]
fn what_a_connection_takes_counts_against_the_descriptor_limit() {
    let shown = |descriptors: u32, service: &[&str]| {
        let script = format!(r#"ulimit -n {descriptors}; exec "$@""#);
        let (code, stdout, stderr) = output(shell(&script, &[&["check"], service].concat()));
        assert_eq!(code, 0, "{stderr}");
        let row = stdout.lines().find(|line| line.starts_with("max-conns "));
        let row = row.unwrap_or_else(|| panic!("{stdout}"));
        row.split_ascii_whitespace().nth(1).unwrap().to_owned()
    };
    for (service, half, low) in [
        (&["echo"][..], "136", "1"),
        (&["forward", "9"], "68", "1"),
        (&["exec", "--", "cat"], "45", "1"),
    ] {
        assert_eq!(shown(200, service), half, "{service:?}");
        assert_eq!(shown(65, service), low, "{service:?}");
    }
}
