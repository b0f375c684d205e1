//! The control socket from outside: status, list, kill, drain and stop, and how a server is named to them.

/// Askers and servers in namespaces of processes of their own.
mod namespaces;
/// Whose a path is: foreign sockets at it, pipes in the place of locks, and who cleans up.
mod paths;
/// How long who asks waits, and what becomes of orders that were given up.
mod patience;
/// Where the socket stands, who may be there before it, and what is left of it.
mod place;
/// Who asks and should not, or asks what is no question, or asks when nothing is left to answer with.
pub(crate) mod strangers;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::clients::{Raised, assert_over, connect_with_window};
use crate::support::home::{Home, entry, number, refusal, seconds, text};
use crate::support::{
    Server, assert_echoes, connect, now, output, pass, read_to_fin, until,
    until_another_signal_counts,
};

/// The row of `client` in a table, by the words of its head.
#[track_caller]
fn row(table: &str, client: &TcpStream) -> HashMap<String, String> {
    let peer = client.local_addr().unwrap().to_string();
    let mut rows = table.lines().map(|line| line.split_ascii_whitespace());
    let head: Vec<_> = rows.next().unwrap().map(str::to_owned).collect();
    let row = rows.find(|row| row.clone().any(|cell| cell == peer));
    let row: Vec<_> = row.unwrap().map(str::to_owned).collect();
    assert_eq!(head.len(), row.len(), "a cell under each head:\n{table}");
    head.into_iter().zip(row).collect()
}

/// A client that sends and never reads, until so much output for it waits in the server that it is read from no more.
pub(crate) fn stuck(home: &Home, server: &Server) -> TcpStream {
    let mut client = connect_with_window(server.address(), 65536);
    client.set_nonblocking(true).unwrap();
    let address = server.address().to_string();
    let mut before = None;
    until("output waits, and nothing moves", || {
        while client.write(&[b'x'; 65536]).is_ok() {}
        let list = home.json(&["list", &address]);
        let counts = ["read", "written", "waiting"].map(|key| number(&entry(&list, &client)[key]));
        let same = before.replace(counts) == Some(counts);
        same && counts[2] >= 64 * 1024
    });
    client.set_nonblocking(false).unwrap();
    client
}

/// Every command there is for a running server.
const COMMANDS: [&[&str]; 5] = [
    &["status"],
    &["list"],
    &["kill", "1"],
    &["drain"],
    &["stop"],
];

// Which server.

#[test]
fn a_server_is_named_by_port_or_address_or_path_or_not_at_all_if_it_is_the_only_one() {
    let home = Home::new();
    for way in 0..6 {
        for end in ["drain", "stop"] {
            let mut server = home.serve(&[]);
            let mut client = server.connect();
            assert_echoes(&mut client, b"hello");
            let path = home.socket_of(&server);
            let port = server.address().port();
            let named: &[&str] = match way {
                0 => &[],
                1 => &[&port.to_string()],
                2 => &[&format!(":{port}")],
                3 => &[&server.address().to_string()],
                4 => &[text(&path)],
                _ => &["--control", text(&path)],
            };
            let ask = |command: &[&'static str]| home.json(&[command, named].concat());
            assert_eq!(ask(&["status"])["pid"], server.pid(), "{named:?}");
            let list = ask(&["list"]);
            assert_eq!(entry(&list, &client)["id"], 1, "{named:?}");
            assert!(ask(&["kill", "1"]).is_object(), "{named:?}");
            assert_over(&mut client);
            assert!(ask(&[end]).is_object(), "{named:?}");
            assert_eq!(server.wait().code(), Some(0), "{named:?}");
        }
    }
}

#[test]
fn a_server_on_every_address_is_named_by_its_port_and_by_what_it_printed() {
    let home = Home::new();
    let server = home.serve(&["-l", ":0"]);
    let other = home.serve(&["-l", "[::1]:0"]);
    for server in [server, other] {
        let address = server.address();
        let port = address.port().to_string();
        for named in [port, address.to_string()] {
            assert_eq!(home.json(&["status", &named])["pid"], server.pid());
        }
    }
}

#[test]
fn of_several_servers_one_has_to_be_named() {
    let home = Home::new();
    let first = home.serve(&[]);
    let port = first.address().port().to_string();
    // Where no other test has that port.
    let second = home.serve(&["-l", &format!("127.0.119.2:{port}")]);
    // No third one; what belongs to no server does not count.
    fs::write(home.join("standfast").join("notes.txt"), "").unwrap();
    for command in COMMANDS {
        for named in [&[][..], &[&*port]] {
            let (code, line) = home.refusal(&[command, named].concat());
            assert_eq!(code, 2, "{line}");
            for server in [&first, &second] {
                let name = home.socket_of(server);
                let name = name.file_stem().unwrap().to_str().unwrap();
                assert!(line.contains(name), "{name} in: {line}");
            }
            assert!(!line.contains("notes") && !line.contains(".lock"), "{line}");
        }
    }
    for server in [first, second] {
        let address = server.address().to_string();
        let status = home.json(&["status", &address]);
        assert_eq!(status["pid"], server.pid());
        assert_eq!(status["draining"], false, "nobody was told to");
    }
}

#[test]
fn what_a_killed_server_left_is_not_taken_for_a_server() {
    let home = Home::new();
    let mut dead = home.serve(&[]);
    let living = home.serve(&[]);
    dead.signal(Signal::KILL);
    dead.wait();
    assert!(home.socket_of(&dead).exists(), "nobody could take it away");
    assert_eq!(home.json(&["status"])["pid"], living.pid());
    let port = dead.address().port().to_string();
    assert_eq!(home.refusal(&["status", &port]).0, 1);
}

#[test]
fn what_several_killed_servers_left_is_no_choice_between_them() {
    let home = Home::new();
    let mut servers = [home.serve(&[]), home.serve(&[])];
    for server in &mut servers {
        server.signal(Signal::KILL);
        server.wait();
        assert!(home.socket_of(server).exists(), "nobody could take it away");
    }
    for command in COMMANDS {
        let (code, line) = home.refusal(command);
        assert_eq!(code, 1, "{line}");
        let said =
            "standfast: no server of this user on any address: none has a control socket in ";
        assert!(line.starts_with(said), "{line}");
    }
}

#[test]
fn where_no_server_is_every_command_says_so_in_one_line() {
    let home = Home::new();
    let mut killed = home.serve(&[]);
    killed.signal(Signal::KILL);
    killed.wait();
    let stale = home.socket_of(&killed);
    let missing = home.join("missing.sock");
    let file = home.join("file.sock");
    fs::write(&file, "no socket").unwrap();
    let stream = home.join("stream.sock");
    let _other_program = UnixListener::bind(&stream).unwrap();
    let empty = Home::new();
    for command in COMMANDS {
        for json in [&[][..], &["--json"]] {
            let ask = |named: &[&str]| empty.refusal(&[command, named, json].concat());
            for named in [&[][..], &["1"], &["127.0.0.1:1"], &["[::1]:1"]] {
                let (code, line) = ask(named);
                assert_eq!(code, 1, "{line}");
            }
            for path in [&missing, &file, &stream, &stale, &home.path] {
                for named in [&[text(path)][..], &["--control", text(path)]] {
                    let (code, line) = ask(named);
                    assert_eq!(code, 1, "{line}");
                    assert!(line.contains(text(path)), "says where: {line}");
                }
            }
        }
    }
    assert_eq!(fs::read(file).unwrap(), b"no socket");
}

#[test]
fn what_names_no_server_is_asked_wrongly() {
    let home = Home::new();
    let _server = home.serve(&[]);
    for command in COMMANDS {
        for named in [
            "",
            "echo",
            "70000",
            "127.0.0.1",
            "127.0.0.1:http",
            ":",
            "-1",
        ] {
            let (code, line) = home.refusal(&[command, &["--", named]].concat());
            assert_eq!(code, 2, "{named:?}: {line}");
        }
        let twice = [command, &["7000", "--control", "/tmp/x"]].concat();
        assert_eq!(home.refusal(&twice).0, 2);
    }
    for id in ["", "x", "-1", "1.5", "99999999999999999999"] {
        let (code, line) = home.refusal(&["kill", "--", id]);
        assert_eq!(code, 2, "{id:?}: {line}");
    }
    assert_eq!(home.json(&["status"])["draining"], false);
}

// Status.

#[test]
fn status_counts_what_came_and_went() {
    let home = Home::new();
    let start = now();
    let mut server = home.serve(&["--workers", "3"]);
    let mut clients = [server.connect(), server.connect(), server.connect()];
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    let [first, _second, _third] = clients;
    drop(first);
    server.closed();
    let status = home.json(&["status"]);
    assert_eq!(status["pid"], server.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["draining"], false);
    let counts = ["workers", "open", "accepted", "read", "written"];
    let counts = counts.map(|key| number(&status[key]));
    assert_eq!(counts, [3, 2, 3, 15, 15]);
    assert_eq!(status["closed"], serde_json::json!([["peer-closed", 1]]));
    let address = server.address().to_string();
    let closed = [("peer-closed", 1)];
    let listener = serde_json::json!({"address": address, "service": "echo", "accepted": 3, "open": 2, "closed": closed});
    assert_eq!(status["listeners"], Value::Array(vec![listener]));
    assert_eq!(status.get("takeover"), Some(&Value::Null));
    let uptime = seconds(&status["uptime"]);
    assert!(
        uptime > 0.0 && uptime <= start.elapsed().as_secs_f64(),
        "{uptime}"
    );
}

#[test]
fn the_status_table_says_the_same() {
    let home = Home::new();
    let mut server = home.serve(&["discard", "--workers", "2"]);
    let client = server.connect();
    client.shutdown(Shutdown::Write).unwrap();
    server.closed();
    let table = home.answer(&["status"]);
    let rows = table.lines().filter_map(|line| line.split_once(' '));
    let rows: HashMap<_, _> = rows.map(|(key, value)| (key, value.trim())).collect();
    assert_eq!(rows["pid"], server.pid().to_string());
    assert_eq!(rows["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(rows["state"], "serving");
    let numbers = ["workers", "open", "accepted", "read", "written"].map(|key| rows[key]);
    assert_eq!(numbers, ["2", "0", "1", "0", "0"]);
    assert_eq!(rows["closed"], "peer-closed 1");
    let address = server.address().to_string();
    for part in [&*address, "discard", "accepted=1"] {
        assert!(rows["listening"].contains(part), "{part} in:\n{table}");
    }
}

#[test]
fn status_counts_each_listener_apart() {
    let home = Home::new();
    let command = home.standfast(&["serve", "print", "-l", "0", "-l", "127.0.0.2:0"]);
    let server = Server::spawn(command, 2);
    for (address, count) in server.addresses.iter().zip([1, 2]) {
        for _ in 0..count {
            let mut client = connect(*address);
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_fin(&mut client), b"");
        }
    }
    let status = home.json(&["status"]);
    assert_eq!(status["accepted"], 3);
    let listeners = server.addresses.iter().zip([1, 2]).map(|(address, count)| {
        serde_json::json!({"address": address.to_string(), "service": "print", "accepted": count, "open": 0, "closed": [["peer-closed", count]]})
    });
    assert_eq!(status["listeners"], Value::Array(listeners.collect()));
}

// List.

#[test]
fn list_shows_each_connection() {
    let home = Home::new();
    let server = home.serve(&["--workers", "2"]);
    let start = now();
    let mut early = server.connect();
    assert_echoes(&mut early, b"a");
    pass(Duration::from_millis(300));
    assert_echoes(&mut early, b"hello");
    let late = server.connect();
    until("both are there", || {
        home.json(&["list"]).as_array().unwrap().len() == 2
    });
    let list = home.json(&["list"]);
    let early = entry(&list, &early);
    for (key, value) in [
        ("id", Value::from(1)),
        ("listener", server.address().to_string().into()),
        ("service", "echo".into()),
        ("read", 6.into()),
        ("written", 6.into()),
        ("waiting", 0.into()),
        ("unacknowledged", 0.into()),
    ] {
        assert_eq!(early[key], value, "{key}");
    }
    let late = entry(&list, &late);
    assert_eq!((&late["id"], &late["read"]), (&2.into(), &0.into()));
    let [age, idle] = ["age", "idle"].map(|key| seconds(&early[key]));
    let most = start.elapsed().as_secs_f64();
    assert!(
        idle >= 0.0 && idle + 0.3 <= age && age <= most,
        "{idle} {age} {most}"
    );
    let round_trip = seconds(&early["round_trip"]);
    assert!(round_trip > 0.0 && round_trip < 1.0, "{round_trip}");
}

#[test]
fn an_empty_list_is_an_empty_array_and_a_head() {
    let home = Home::new();
    let _server = home.serve(&[]);
    assert_eq!(home.json(&["list"]), serde_json::json!([]));
    let table = home.answer(&["list"]);
    let head: Vec<_> = table.split_ascii_whitespace().collect();
    assert_eq!(table.lines().count(), 1);
    for word in ["ID", "PEER", "LISTENER", "SERVICE", "AGE", "IDLE"] {
        assert!(head.contains(&word), "{word} in: {table}");
    }
}

#[test]
fn list_shows_what_waits_for_a_slow_reader() {
    let home = Home::new();
    let server = home.serve(&["--buffer", "64k", "-l", "0"]);
    let client = stuck(&home, &server);
    let mut other = server.connect();
    assert_echoes(&mut other, b"hello");
    // Until nothing moves any more, and both say the same.
    let (mut list, mut table) = (Value::Null, String::new());
    until("the list and the table are the same", || {
        list = home.json(&["list"]);
        table = home.answer(&["list"]);
        let slow = entry(&list, &client);
        let cells = row(&table, &client);
        [
            ("ID", "id"),
            ("READ", "read"),
            ("WRITTEN", "written"),
            ("WAITING", "waiting"),
            ("UNACKED", "unacknowledged"),
        ]
        .iter()
        .all(|&(head, key)| cells[head].parse() == Ok(number(&slow[key])))
    });
    let slow = entry(&list, &client);
    let count = |key: &str| number(&slow[key]);
    assert!(count("waiting") >= 64 * 1024, "{slow}");
    assert_eq!(count("read"), count("written") + count("waiting"), "{slow}");
    let unacknowledged = count("unacknowledged");
    assert!(
        unacknowledged > 0 && unacknowledged <= count("written"),
        "{slow}"
    );
    let cells = row(&table, &client);
    for (head, key) in [
        ("PEER", "peer"),
        ("LISTENER", "listener"),
        ("SERVICE", "service"),
    ] {
        assert_eq!(cells[head], slow[key].as_str().unwrap(), "{head}:\n{table}");
    }
    assert_eq!(cells["NEXT"], "output", "{table}");
    for time in ["AGE", "IDLE", "RTT", "IN"] {
        let digit = cells[time].starts_with(|c: char| c.is_ascii_digit());
        assert!(digit && cells[time].ends_with('s'), "{time}:\n{table}");
    }
    assert_eq!(row(&table, &other)["WAITING"], "0", "{table}");
}

#[test]
fn list_shows_the_deadline_that_comes_next() {
    let home = Home::new();
    let next = |server: &Server, client: &TcpStream| {
        let address = server.address().to_string();
        until("it is in the list", || {
            let list = home.json(&["list", &address]);
            !list.as_array().unwrap().is_empty()
        });
        let list = home.json(&["list", &address]);
        entry(&list, client)["next_deadline"].clone()
    };
    let due_in = |next: &Value| seconds(&next["due_in"]);

    let server = home.serve(&["--read-timeout", "10m"]);
    let silent = server.connect();
    let read = next(&server, &silent);
    assert_eq!(read["kind"], "read");
    assert!(due_in(&read) > 500.0 && due_in(&read) <= 600.0, "{read}");

    let server = home.serve(&["--read-timeout", "off"]);
    let silent = server.connect();
    assert_eq!(next(&server, &silent), Value::Null);
    let table = home.answer(&["list", &server.address().to_string()]);
    let cells = row(&table, &silent);
    assert_eq!((&*cells["NEXT"], &*cells["IN"]), ("-", "-"), "{table}");

    let server = home.serve(&["--read-timeout", "10m", "--dead-after", "100s"]);
    let client = stuck(&home, &server);
    let output = next(&server, &client);
    assert_eq!(output["kind"], "output");
    // When that cuts, not when it is looked next: 5 min from the first look, or as long as a slow reader needs.
    assert!(due_in(&output) > 290.0, "{output}");
    let table = home.answer(&["list", &server.address().to_string()]);
    assert_eq!(row(&table, &client)["NEXT"], "output", "{table}");

    // Written and acknowledged: nothing of its output can end it.
    let server = home.serve(&["--read-timeout", "off"]);
    let mut idle = server.connect();
    assert_echoes(&mut idle, b"hello");
    assert_eq!(next(&server, &idle), Value::Null);
}

#[test]
fn a_list_has_everyone_once_whoever_comes_and_goes_meanwhile() {
    let home = Home::new();
    let server = home.serve(&["-q", "--workers", "3"]);
    let mut steady: Vec<_> = (0..300).map(|_| server.connect()).collect();
    for client in &mut steady {
        assert_echoes(client, b"hello");
    }
    let address = server.address();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Ends the others also when an assertion below fails.
        let _over = Raised(&over);
        for _ in 0..2 {
            scope.spawn(|| churn(address, &over));
        }
        for _ in 0..15 {
            let list = home.json(&["list"]);
            let list = list.as_array().unwrap();
            let ids: Vec<_> = list.iter().map(|entry| number(&entry["id"])).collect();
            assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
            let peers: Vec<_> = list.iter().map(|entry| entry["peer"].clone()).collect();
            for client in &steady {
                let peer = client.local_addr().unwrap().to_string();
                let times = peers.iter().filter(|listed| **listed == *peer);
                assert_eq!(times.count(), 1, "{peer}");
            }
        }
    });
}

/// Clients come and go until `over`.
fn churn(address: SocketAddr, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        assert_echoes(&mut connect(address), b"hello");
        // At most a thousand a second: their ports are the host's.
        pass(Duration::from_millis(1));
    }
}

// Kill.

#[test]
fn kill_ends_exactly_that_connection() {
    let home = Home::new();
    let mut server = home.serve(&["--workers", "2"]);
    let mut clients: Vec<_> = (0..6).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    for at in [4, 1] {
        let mut victim = clients.remove(at);
        let list = home.json(&["list"]);
        let id = entry(&list, &victim)["id"].to_string();
        assert_eq!(home.answer(&["kill", &id]), format!("killed {id}\n"));
        assert_over(&mut victim);
        let closed = server.closed();
        let told = ["id", "reason", "peer"].map(|key| closed.get(key).to_owned());
        let peer = victim.local_addr().unwrap().to_string();
        assert_eq!(told, [id.clone(), "killed".to_owned(), peer]);
        let (code, line) = home.refusal(&["kill", &id]);
        assert!(code == 1 && line.contains(&id), "it is gone: {line}");
        for client in &mut clients {
            assert_echoes(client, b"and the others go on");
        }
        let left = home.json(&["list"]);
        assert_eq!(left.as_array().unwrap().len(), clients.len());
    }
    assert!(server.closed_so_far().is_empty());
    drop(clients);
    assert_eq!(server.drain().code(), Some(0));
    assert_eq!(server.summary()["killed"], "2");
}

#[test]
fn a_client_that_does_not_read_is_killed_as_fast() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client = stuck(&home, &server);
    home.answer(&["kill", "1"]);
    assert_eq!(server.closed().reason(), "killed");
    assert_over(&mut client);
    assert_eq!(home.json(&["status"])["open"], 0);
}

#[test]
fn there_is_nothing_to_kill_under_a_number_nobody_has() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    for id in ["0", "2", "18446744073709551615"] {
        for json in [&[][..], &["--json"]] {
            let (code, line) = home.refusal(&[&["kill", id], json].concat());
            assert_eq!(code, 1, "{line}");
            assert!(line.contains(id), "{line}");
        }
    }
    assert_echoes(&mut client, b"nothing happened");
    assert!(server.closed_so_far().is_empty());
}

// Drain and stop.

#[test]
fn drain_is_what_a_first_sigterm_does() {
    let home = Home::new();
    let mut server = home.serve(&["--drain-timeout", "off"]);
    let slow = stuck(&home, &server);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    assert_eq!(home.answer(&["drain"]), "draining\n");
    assert_eq!(read_to_fin(&mut client), b"", "FIN, no reset");
    drop(client);
    assert_eq!(server.closed().reason(), "drain");
    until("nobody new is let in", || {
        TcpStream::connect(server.address()).is_err()
    });
    // It can be asked all the while.
    let status = home.json(&["status"]);
    assert_eq!(status["draining"], true);
    assert_eq!(status["open"], 1);
    let table = home.answer(&["status"]);
    assert!(table.contains("draining"), "{table}");
    entry(&home.json(&["list"]), &slow);
    home.answer(&["drain"]);
    assert!(server.is_running(), "a second drain is the same drain");
    home.answer(&["kill", "1"]);
    let closed = |line: &str| line.contains(" info closed id=1 ");
    let line = server.log_line("the end of the slow one", closed);
    assert!(line.contains(" reason=killed "), "{line}");
    server.wait();
    assert_eq!(home.refusal(&["status"]).0, 1);
}

#[test]
fn stop_is_what_a_second_sigterm_does() {
    let home = Home::new();
    for draining in [false, true] {
        let mut server = home.serve(&["--drain-timeout", "off"]);
        let mut slow = stuck(&home, &server);
        if draining {
            home.answer(&["drain"]);
        }
        assert_eq!(home.answer(&["stop"]), "stopping\n");
        assert_over(&mut slow);
        assert_eq!(server.wait().code(), Some(1), "something had to be cut");
        assert_eq!(server.summary()["drain"], "1");
        assert_eq!(home.refusal(&["status"]).0, 1);
    }
}

#[test]
fn whoever_ends_a_server_hears_that_it_is_done() {
    let home = Home::new();
    for command in ["drain", "stop"].into_iter().cycle().take(20) {
        let mut server = home.serve(&["-q", "--workers", "1"]);
        home.answer(&[command]);
        assert_eq!(server.wait().code(), Some(0));
    }
}

#[test]
fn a_signal_after_a_drain_ends_at_once_as_a_second_signal_does() {
    let home = Home::new();
    let mut server = home.serve(&["--drain-timeout", "off"]);
    let slow = stuck(&home, &server);
    home.answer(&["drain"]);
    server.signal(Signal::TERM);
    server.log_line("the signal", |line| line.contains(" draining signal="));
    until_another_signal_counts();
    server.signal(Signal::INT);
    assert_eq!(server.wait().code(), Some(1));
    drop(slow);
}

// The answer.

#[test]
fn a_command_that_is_suspended_while_it_waits_goes_on() {
    let home = Home::new();
    let server = home.serve(&[]);
    server.suspend();
    let mut command = home.standfast(&["status", "--json"]);
    command.stdout(Stdio::piped());
    let mut asking = Server::launch(command);
    let stat = format!("/proc/{}/stat", asking.pid());
    until("it waits", || {
        fs::read_to_string(&stat).unwrap().contains(") S ")
    });
    // If it waits for something else yet, nothing is proved or broken.
    pass(Duration::from_millis(50));
    asking.suspend();
    asking.resume();
    server.resume();
    let answer = String::from_utf8(asking.stdout_rest()).unwrap();
    assert_eq!(asking.wait().code(), Some(0), "{:?}", asking.lines);
    assert!(answer.contains("pid"), "{answer}");
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure_and_one_nobody_reads_is_not() {
    let home = Home::new();
    let _server = home.serve(&[]);
    for command in ["status", "list"] {
        let full = home.shell(r#""$@" > /dev/full"#, &[command]);
        assert_eq!(refusal(full).0, 1);
        let closed = home.shell(r#"{ sleep 0.1; "$@"; echo $? >&2; } | true"#, &[command]);
        let (_, _, stderr) = output(closed);
        assert_eq!(stderr, "0");
    }
}
