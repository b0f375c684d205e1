//! Processes and their connections in another process's hands.

use std::io::{Read, Write};
use std::time::Duration;

use rustix::process::Signal;

use super::{children, line, lives};
use crate::support::clients::{narrow, unread};
use crate::support::home::Home;
use crate::support::{Began, now, pass, read_to_fin, until};

/// The words of a server that runs `script` for each connection.
pub(super) fn words<'a>(flags: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [&["exec"], flags, &["--", "sh", "-c", script]].concat()
}

const TALK: &str = "echo $$; while read x; do echo got $x; echo noted $x >&2; done; echo bye";

#[test]
fn processes_live_on_with_their_clients_and_their_stderr() {
    let home = Home::new();
    let mut server = home.serve(&words(&["--workers", "2"], TALK));
    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    let pids: Vec<String> = clients.iter_mut().map(line).collect();
    let descriptors = server.descriptors_at_rest();
    for round in 0..3 {
        let mut next = home.succeed(&mut server, &words(&["--workers", "2"], TALK));
        for (at, client) in clients.iter_mut().enumerate() {
            writeln!(client, "{round}-{at}").unwrap();
            assert_eq!(line(client), format!("got {round}-{at}"));
        }
        for _ in 0..10 {
            next.log_line("stderr", |line| {
                line.contains(&format!("line=\"noted {round}-"))
            });
        }
        assert!(pids.iter().all(|pid| lives(pid)));
        server = next;
    }
    until("as many descriptors as before", || {
        server.descriptors() <= descriptors + 1
    });
    for client in &mut clients {
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(client), b"bye\n");
    }
    for _ in 0..10 {
        let closed = server.closed();
        assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
        assert_eq!(
            (closed.get("read"), closed.get("id").len() < 3),
            ("12", true)
        );
    }
    assert!(server.drain().success());
}

#[test]
fn a_time_limit_goes_on_counting_and_the_number_of_processes_too() {
    let home = Home::new();
    let flags = ["--exec-timeout", "8s", "--max-children", "1"];
    let wait = "echo $$; exec sleep 1000";
    let mut server = home.serve(&words(&flags, wait));
    let (start, began) = (now(), Began::now());
    let mut client = server.connect();
    let pid = line(&mut client);
    pass(Duration::from_secs(3));
    let mut next = home.succeed(&mut server, &words(&flags, wait));
    let mut second = next.connect();
    assert_eq!(read_to_fin(&mut second), b"");
    assert_eq!(next.closed().reason(), "limit");
    assert_eq!(read_to_fin(&mut client), b"");
    let took = now() - start;
    assert!(took >= Duration::from_secs(8), "{took:?}");
    let took = began.unhindered();
    assert!(took < Duration::from_millis(10_900), "{took:?}");
    assert_eq!(next.closed().reason(), "service");
    assert!(!lives(&pid));
}

#[test]
fn a_process_of_the_former_server_s_is_ended_with_its_connection() {
    let home = Home::new();
    let script = "echo $$; trap '' TERM; while :; do sleep 0.05; done";
    let mut server = home.serve(&words(&[], script));
    let mut client = server.connect();
    let pid = line(&mut client);
    let mut next = home.succeed(&mut server, &words(&["--drain-timeout", "200ms"], script));
    assert_eq!(next.drain().code(), Some(1));
    assert!(!lives(&pid), "TERM, then KILL");
    drop(client);
}

#[test]
fn a_takeover_that_comes_to_nothing_changes_nothing() {
    let home = Home::new();
    let mut server = home.serve(&words(&[], TALK));
    let mut client = server.connect();
    let pid = line(&mut client);
    let address = server.address().to_string();
    let mut failing = home.standfast(&["serve", "exec", "--replace", "-l", &address]);
    failing
        .args(["--", "cat"])
        .env("STANDFAST_FAULT", "abort-freeze");
    let (mut child, start) = (
        failing.stderr(std::process::Stdio::null()).spawn().unwrap(),
        Began::now(),
    );
    until("the new process ended", || {
        child.try_wait().unwrap().is_some()
    });
    assert!(start.unhindered() < Duration::from_secs(20));
    client.write_all(b"still here\n").unwrap();
    assert_eq!(line(&mut client), "got still here");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"bye\n");
    assert_eq!(server.closed().reason(), "peer-closed");
    assert!(!lives(&pid));
    server.signal(Signal::TERM);
    assert!(server.wait().success());
}

#[test]
fn an_answer_that_waits_for_its_client_goes_along() {
    let home = Home::new();
    let script = "head -c 200000 /dev/zero";
    let mut server = home.serve(&words(&[], script));
    let mut client = narrow(server.address());
    client.read_exact(&mut [0; 1000]).unwrap();
    until("its process ended", || children(&server).is_empty());
    // The former server ends at once: nothing stays with it.
    let flags = ["--drain-timeout", "off"];
    let mut server = home.succeed(&mut server, &words(&flags, script));
    client.write_all(b"input that nobody reads").unwrap();
    let mut server = home.succeed(&mut server, &words(&flags, script));
    assert_eq!(read_to_fin(&mut client).len(), 199_000);
    drop(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "service", "{}", closed.line);
    assert!(server.drain().success());
}

#[test]
fn a_process_that_ends_in_the_new_server_s_hands_has_its_answer_delivered() {
    let home = Home::new();
    let script = "echo up; read x; head -c 200000 /dev/zero";
    let mut server = home.serve(&words(&[], script));
    let mut client = narrow(server.address());
    assert_eq!(line(&mut client), "up");
    let mut server = home.succeed(&mut server, &words(&[], script));
    client.write_all(b"go\nand more that nobody reads").unwrap();
    until("all of it is written", || unread(&client) > 0);
    client.write_all(b"and more").unwrap();
    assert_eq!(read_to_fin(&mut client).len(), 200_000);
    drop(client);
    assert_eq!(server.closed().reason(), "service");
}
